//! Storing a result that is larger than the caches: past them, so that its lines are not read before
//! they are written and what is read again and again stays.

use pulp::Simd;

/// Stores vectors past the caches where the processor can and `out` begins at a multiple of a
/// vector's size, else the usual way.
///
/// # Panics
///
/// If `out` has not the vectors' size.
///
/// # Safety
///
/// Before anybody reads or writes `out` again, this thread calls [`fence`].
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(_: S, out: &mut [f32], vectors: &[S::f32s]) {
    assert_eq!(out.len(), vectors.len() * S::F32_LANES);
    #[cfg(target_arch = "x86_64")]
    {
        use std::any::TypeId;
        use std::arch::x86_64::{__m256, __m512, _mm256_stream_ps, _mm512_stream_ps};
        use std::mem::transmute_copy;

        use pulp::x86::{V3, V4};

        if out.as_ptr().addr().is_multiple_of(size_of::<S::f32s>()) {
            let places = out.chunks_exact_mut(S::F32_LANES).zip(vectors);
            let these = TypeId::of::<S>();
            if these == TypeId::of::<V4>() {
                for (place, vector) in places {
                    // SAFETY: there is a `V4`, so there is AVX-512, and its vectors are sixteen
                    // numbers. `place` has room for them, borrowed for writing, at a multiple of
                    // their size; the caller sees to the fence.
                    unsafe {
                        let vector = transmute_copy::<S::f32s, __m512>(vector);
                        _mm512_stream_ps(place.as_mut_ptr(), vector);
                    }
                }
                return;
            }
            if these == TypeId::of::<V3>() {
                for (place, vector) in places {
                    // SAFETY: as above, with AVX and eight numbers.
                    unsafe {
                        let vector = transmute_copy::<S::f32s, __m256>(vector);
                        _mm256_stream_ps(place.as_mut_ptr(), vector);
                    }
                }
                return;
            }
        }
    }
    out.copy_from_slice(bytemuck::cast_slice(vectors));
}

/// Ends the stores of this thread: whoever is told of them after it sees them.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
