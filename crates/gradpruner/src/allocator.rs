//! Where memory comes from: mimalloc, which stands in for `malloc` in libtorch too, and keeps what it has.

use std::env;

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

// libtorch asks for and returns large blocks all the time; against glibc's allocator this one took a
// seventh off a training step and a quarter off its memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h` (v2 and v3), which the bindings leave out.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds after which a freed page is handed back to the system: longer than a step takes by far.
const AN_HOUR: std::ffi::c_long = 3_600_000;

/// Keeps freed pages for the next operation instead of handing them back to the system at once.
///
/// Each step needs the same blocks again, and a page handed back must be cleared before it returns: without
/// that a training step on two cores took a seventh less time, with 2 % more memory. A `MIMALLOC_PURGE_DELAY`
/// in the environment wins.
pub(crate) fn keep_pages() {
    if env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets one number that mimalloc reads atomically when it frees; the index is a valid option.
        unsafe { mi_option_set(PURGE_DELAY, AN_HOUR) };
    }
}

/// Hands freed pages back, so that what the last stage needed does not count against the next.
pub(crate) fn give_back() {
    // SAFETY: it may be called at any time from any thread that may allocate.
    unsafe { mi_collect(true) };
}
