//! Memory for results that are larger than the caches.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Memory for a whole IGIA-Matrix: it begins at a multiple of 64 bytes, so that a vector never
/// crosses two lines of the cache, and lies in large pages where the system has them.
#[derive(Debug, Default)]
pub struct Buffer(Option<MmapMut>);

impl Buffer {
    /// Room for `count` values, all of them zero.
    ///
    /// # Errors
    ///
    /// If the system does not give that much memory.
    pub fn zeroed(count: usize) -> io::Result<Self> {
        let too_much = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = count.checked_mul(size_of::<f32>()).ok_or_else(too_much)?;
        if bytes == 0 {
            return Ok(Self::default());
        }
        let map = MmapMut::map_anon(bytes)?;
        // Nothing is lost where there are none: pages of the usual size do as well, more slowly.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(Some(map)))
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_deref_mut().map_or(&mut [], bytemuck::cast_slice_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_zero() {
        for count in [0, 1, 100_000] {
            let mut buffer = Buffer::zeroed(count).unwrap();
            assert_eq!(
                (buffer.len(), count == 0 || buffer.as_ptr().addr().is_multiple_of(64)),
                (count, true)
            );
            assert!(buffer.iter().all(|&value| value == 0.0));
            buffer.fill(1.0);
        }
        assert!(Buffer::zeroed(usize::MAX).is_err());
        assert!(Buffer::zeroed(usize::MAX / 8).is_err());
    }
}
