//! Memory for results that are larger than the caches.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// Memory for a whole IGIA-Matrix: it begins at a multiple of 64 bytes, so that a vector never
/// crosses two lines of the cache, and lies in large pages where the system has them.
#[derive(Debug)]
pub struct Buffer(MmapMut);

impl Buffer {
    /// Room for `count` values, all of them zero.
    ///
    /// # Errors
    ///
    /// If the system does not give that much memory.
    pub fn zeroed(count: usize) -> io::Result<Self> {
        let too_much = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = count.checked_mul(size_of::<f32>()).ok_or_else(too_much)?;
        let map = MmapMut::map_anon(bytes)?;
        // Nothing is lost where there are none: pages of the usual size do as well, more slowly.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        Ok(Self(map))
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_zero() {
        for count in [0, 1, 100_000] {
            let mut buffer = Buffer::zeroed(count).unwrap();
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % 64), (count, 0));
            assert!(buffer.iter().all(|&value| value == 0.0));
            buffer.fill(1.0);
        }
        assert!(Buffer::zeroed(usize::MAX).is_err());
        assert!(Buffer::zeroed(usize::MAX / 8).is_err());
    }
}
