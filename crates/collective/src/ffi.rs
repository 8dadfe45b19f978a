//! The C functions of `native/group.cpp`, and owners of what they hand out.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use crate::{CollectiveError, Result};

/// Opaque: a `Group` of `native/group.cpp`.
#[repr(C)]
struct RawGroup([u8; 0]);
/// Opaque: a `Work` of `native/group.cpp`.
#[repr(C)]
struct RawWork([u8; 0]);

unsafe extern "C" {
    fn collective_open(
        host: *const c_char,
        port: u16,
        serves: bool,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_seconds: u64,
        out: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn collective_close(group: *mut RawGroup);
    fn collective_start_sum(
        group: *mut RawGroup,
        numbers: *mut c_void,
        count: i64,
        is_double: bool,
        out: *mut *mut RawWork,
    ) -> *mut c_char;
    fn collective_wait(work: *mut RawWork) -> *mut c_char;
}

/// Where a group meets and who is in it.
#[derive(Debug)]
pub(crate) struct Meeting<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// Whether this process keeps the store at which all meet.
    pub(crate) serves: bool,
    /// What tells this meeting from others at the same store.
    pub(crate) prefix: &'a str,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) timeout_seconds: u64,
}

/// An open group.
#[derive(Debug)]
pub(crate) struct OpenGroup(NonNull<RawGroup>);

impl OpenGroup {
    pub(crate) fn meet(meeting: &Meeting<'_>) -> Result<Self> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| CollectiveError::Variable {
                name: "MASTER_ADDR",
                found: text.to_owned(),
            })
        };
        let (host, prefix) = (text(meeting.host)?, text(meeting.prefix)?);
        let number = |of: usize| c_int::try_from(of).unwrap_or(c_int::MAX);
        let mut group = ptr::null_mut();
        // SAFETY: the strings end in zero and outlive the call, which keeps copies; `group` is written if it succeeds.
        let error = unsafe {
            collective_open(
                host.as_ptr(),
                meeting.port,
                meeting.serves,
                prefix.as_ptr(),
                number(meeting.rank),
                number(meeting.size),
                meeting.timeout_seconds,
                &raw mut group,
            )
        };
        succeeded(error)?;
        NonNull::new(group).map(Self).ok_or_else(|| CollectiveError::Group("no group".into()))
    }

    pub(crate) fn start_sum<T: Number>(&self, numbers: Vec<T>) -> Result<Pending<T>> {
        let mut numbers = numbers;
        let mut work = ptr::null_mut();
        // SAFETY: the group is open. The numbers, as many as said and of the type said, stay where they are until the sum
        // is waited for: the vector's memory is `Pending`'s, which waits before it lets go of it, and if it is forgotten,
        // so is the memory.
        let error = unsafe {
            let count = numbers.len() as i64;
            let first = numbers.as_mut_ptr().cast();
            collective_start_sum(self.0.as_ptr(), first, count, T::IS_DOUBLE, &raw mut work)
        };
        succeeded(error)?;
        Ok(Pending { numbers, work: NonNull::new(work) })
    }
}

impl Drop for OpenGroup {
    fn drop(&mut self) {
        // SAFETY: the group is open, and nothing uses it after this.
        unsafe { collective_close(self.0.as_ptr()) };
    }
}

/// A number that can be summed.
pub trait Number: Copy + sealed::Sealed {
    /// Whether it is one of 64 bits; else it is one of 32.
    const IS_DOUBLE: bool;
}

impl Number for f32 {
    const IS_DOUBLE: bool = false;
}

impl Number for f64 {
    const IS_DOUBLE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// A sum under way.
#[derive(Debug)]
pub(crate) struct Pending<T> {
    numbers: Vec<T>,
    /// `None` once it was waited for.
    work: Option<NonNull<RawWork>>,
}

impl<T> Pending<T> {
    /// Waits for the sums.
    pub(crate) fn wait(mut self) -> Result<Vec<T>> {
        self.finish()?;
        Ok(std::mem::take(&mut self.numbers))
    }

    fn finish(&mut self) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        // SAFETY: the handle was not waited for yet; it is taken, so it will not be again.
        succeeded(unsafe { collective_wait(work.as_ptr()) })
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        // Gloo's thread may be writing to the numbers; nobody is left to tell of an error.
        let _ = self.finish();
    }
}

pub(crate) fn succeeded(error: *mut c_char) -> Result<()> {
    // SAFETY: what the functions of `native/` return is of `caught`, and used here alone.
    unsafe { caught::checked(error) }.map_err(CollectiveError::Group)
}
