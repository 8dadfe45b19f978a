//! C++ exceptions as errors.
//!
//! A C function over libtorch's C++ wraps its body in `caught` of `caught.h`, whose folder build scripts find in
//! `DEP_GRADPRUNER_CAUGHT_INCLUDE`, and returns what that returns; [`checked`] makes a [`Result`] of it.

use std::ffi::{CStr, c_char};

/// `Ok`, or the first line of a C function's error.
///
/// # Errors
///
/// If it is not null.
///
/// # Safety
///
/// What is not null is a string from C's allocator that ends in zero, and nobody else uses it.
pub unsafe fn checked(error: *mut c_char) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        libc::free(error.cast());
        text
    };
    Err(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_its_first_line() {
        // SAFETY: null, and a copy that C made.
        let found = unsafe {
            [checked(std::ptr::null_mut()), checked(libc::strdup(c" gone \nat line 3".as_ptr()))]
        };
        assert_eq!(found, [Ok(()), Err("gone".to_owned())]);
    }
}
