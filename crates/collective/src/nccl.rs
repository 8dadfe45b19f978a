//! Sums of what GPUs hold, made between them by NCCL.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::ptr::{self, NonNull};

use tch::{Device, Kind, Tensor};

use crate::ffi::succeeded;
use crate::{CollectiveError, Group, Result};

/// Opaque: an `Nccl` of `native/nccl.cpp`.
#[repr(C)]
struct RawNccl([u8; 0]);
/// Opaque: an `at::Tensor`.
#[repr(C)]
struct RawTensor([u8; 0]);

unsafe extern "C" {
    fn collective_nccl_load(path: *const c_char, gpu: c_int, out: *mut *mut RawNccl)
    -> *mut c_char;
    fn collective_nccl_id(nccl: *mut RawNccl, id: *mut c_char) -> *mut c_char;
    fn collective_nccl_meet(
        nccl: *mut RawNccl,
        id: *const c_char,
        rank: c_int,
        size: c_int,
    ) -> *mut c_char;
    fn collective_nccl_start_sum(nccl: *mut RawNccl, tensor: *const RawTensor) -> *mut c_char;
    fn collective_nccl_wait(nccl: *mut RawNccl) -> *mut c_char;
    fn collective_nccl_close(nccl: *mut RawNccl);
}

/// Bytes of what processes meet by.
const ID_BYTES: usize = 128;

/// The processes of a [`Group`], each with a GPU of its own, which sum tensors without the computer's memory between them.
#[derive(Debug)]
pub struct Nccl {
    open: NonNull<RawNccl>,
    /// What is being summed: it stays where it is until the sums are waited for.
    under_way: RefCell<Vec<Tensor>>,
}

impl Nccl {
    /// The library that PyTorch with CUDA brings along and has loaded.
    pub const LIBRARY: &str = "libnccl.so.2";

    /// Meets the other processes of a group, which all call this, and tries a sum. Either all of them have it then or none.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::NoNccl`] if it is not there, or does not work between these devices: two processes on one GPU are
    /// refused by it; [`CollectiveError::NoNcclElsewhere`] if only another process finds so. [`CollectiveError::Group`] if a process is gone.
    pub fn meet(group: &Group, device: Device, library: &str) -> Result<Self> {
        let nccl = agreed(group, Self::load(device, library))?;
        let own = match group.rank() {
            0 => nccl.id(),
            _ => Ok([0; ID_BYTES]),
        };
        let own = agreed(group, own)?;
        // The others add zeros.
        let id = group.sum(own.map(f32::from).to_vec())?;
        let id: Vec<u8> = id.into_iter().map(|byte| byte as u8).collect();
        agreed(group, nccl.open(&id, group))?;
        nccl.try_out(group, device)?;
        Ok(nccl)
    }

    fn load(device: Device, library: &str) -> Result<Self> {
        let gpu = match device {
            Device::Cuda(number) => c_int::try_from(number).unwrap_or(c_int::MAX),
            _ => -1,
        };
        let path = CString::new(library)
            .map_err(|_| CollectiveError::NoNccl(format!("`{library}` is no name")))?;
        let mut nccl = ptr::null_mut();
        // SAFETY: the name ends in zero and outlives the call; `nccl` is written if it succeeds. The library's initialisers
        // run, as they do when libtorch's CUDA part loads it.
        succeeded(unsafe { collective_nccl_load(path.as_ptr(), gpu, &raw mut nccl) })?;
        let open =
            NonNull::new(nccl).ok_or_else(|| CollectiveError::NoNccl("nothing loaded".into()))?;
        Ok(Self { open, under_way: RefCell::default() })
    }

    fn id(&self) -> Result<[u8; ID_BYTES]> {
        let mut id = [0; ID_BYTES];
        // SAFETY: there is room for as many bytes as are written.
        succeeded(unsafe { collective_nccl_id(self.open.as_ptr(), id.as_mut_ptr().cast()) })?;
        Ok(id)
    }

    fn open(&self, id: &[u8], group: &Group) -> Result<()> {
        debug_assert_eq!(id.len(), ID_BYTES);
        let [rank, size] =
            [group.rank(), group.size()].map(|of| c_int::try_from(of).unwrap_or(c_int::MAX));
        // SAFETY: the id has as many bytes as are read; it opens once, in `meet`.
        succeeded(unsafe {
            collective_nccl_meet(self.open.as_ptr(), id.as_ptr().cast(), rank, size)
        })
    }

    /// A sum whose result is known.
    fn try_out(&self, group: &Group, device: Device) -> Result<()> {
        let failed = |error: tch::TchError| CollectiveError::NoNccl(error.to_string());
        let sum = Tensor::f_full([1000], group.rank() as f64 + 1.0, (Kind::Float, device));
        // Nobody waits for it unless all have begun it.
        let sum =
            agreed(group, sum.map_err(failed).and_then(|sum| self.start_sum(&sum).map(|()| sum)))?;
        agreed(group, self.wait().and_then(|()| Self::check(group, &sum)))
    }

    /// Whether the sum is that of all ranks and one more each.
    fn check(group: &Group, sum: &Tensor) -> Result<()> {
        let failed = |error: tch::TchError| CollectiveError::NoNccl(error.to_string());
        let expected = (group.size() * (group.size() + 1) / 2) as f64;
        let is_right = sum.f_eq(expected).and_then(|right| right.f_all()).map_err(failed)?;
        match is_right.f_int64_value(&[]).map_err(failed)? {
            0 => Err(CollectiveError::NoNccl("a sum that it made is wrong".into())),
            _ => Ok(()),
        }
    }

    /// Begins to sum a tensor of f32 with those of all other processes, as many numbers in each, in place and once the device
    /// has made it. Nothing may be done with it before [`Nccl::wait`].
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Group`] if it cannot, or the tensor is another type or lies elsewhere or not in a row.
    pub fn start_sum(&self, tensor: &Tensor) -> Result<()> {
        self.under_way.borrow_mut().push(tensor.shallow_clone());
        // SAFETY: the pointer is one to libtorch's tensor, which the call only reads. The memory that is summed stays: a
        // handle to it is kept until `wait`, or until all sums were given up.
        succeeded(unsafe { collective_nccl_start_sum(self.open.as_ptr(), tensor.as_ptr().cast()) })
    }

    /// Makes the device wait for all sums that were begun: what it does from here on finds them. Every process must have begun
    /// them, or it waits for ever; a [`Group::sum`] before this makes sure.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Group`] if one of them failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: it is open.
        succeeded(unsafe { collective_nccl_wait(self.open.as_ptr()) })?;
        self.under_way.borrow_mut().clear();
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing uses it after this.
        unsafe { collective_nccl_close(self.open.as_ptr()) };
    }
}

/// What this process has found, if all others have found theirs.
fn agreed<T>(group: &Group, own: Result<T>) -> Result<T> {
    let all = group.sum(vec![f64::from(u8::from(own.is_ok()))])?[0] == group.size() as f64;
    match own {
        Ok(own) if all => Ok(own),
        Ok(_) => Err(CollectiveError::NoNcclElsewhere),
        Err(CollectiveError::Group(why)) => Err(CollectiveError::NoNccl(why)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What each of some members, as threads, comes to.
    fn members<T: Send + 'static>(
        size: usize,
        member: impl Fn(&Group) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let start = |rank: usize| {
            let member = member.clone();
            thread::spawn(move || member(&Group::meet("127.0.0.1", port, rank, size).unwrap()))
        };
        let started: Vec<_> = (0..size).map(start).collect();
        started.into_iter().map(|member| member.join().unwrap()).collect()
    }

    /// Sums that begin one after the other and are waited for together; what is no row of f32 is refused.
    #[test]
    fn every_member_has_the_sums() {
        let folder = testkit::temporary_folder();
        let library = testkit::nccl_stand_in(folder.path()).display().to_string();
        let found = members(3, move |group| {
            let nccl = Nccl::meet(group, Device::Cpu, &library).unwrap();
            let own = group.rank() as f64;
            let sums = [1_i64, 5000]
                .map(|count| Tensor::full([count, 2], own, (Kind::Float, Device::Cpu)));
            for sum in &sums {
                nccl.start_sum(sum).unwrap();
            }
            group.sum(vec![0.0_f32]).unwrap();
            nccl.wait().unwrap();
            assert!(nccl.start_sum(&sums[1].tr()).is_err());
            assert!(nccl.start_sum(&sums[1].to_kind(Kind::Double)).is_err());
            sums.iter().all(|sum| bool::try_from(sum.eq(3.0).all()).unwrap())
        });
        assert_eq!(found, [true; 3]);
    }

    /// One member has no library, or another sum than it should: none uses it, and each goes on.
    #[test]
    fn all_have_it_or_none() {
        let folder = testkit::temporary_folder();
        let library = testkit::nccl_stand_in(folder.path()).display().to_string();
        for (size, last) in [(2, "libnccl-not-there.so"), (13, &*library.clone())] {
            let (library, last) = (library.clone(), last.to_owned());
            let found = members(size, move |group| {
                let library = if group.rank() + 1 == size { &last } else { &library };
                let error = Nccl::meet(group, Device::Cpu, library).unwrap_err();
                group.sum(vec![1.0_f32]).unwrap();
                error.to_string()
            });
            let named =
                found.iter().filter(|text| !text.contains("another process cannot")).count();
            assert!(named == 1 || named == size, "{found:?}");
            assert!(
                found.iter().all(|text| text.starts_with("NCCL cannot be used: ")),
                "{found:?}"
            );
        }
    }
}
