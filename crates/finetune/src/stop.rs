//! Asking a training to stop after the step it is at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Trainings stop, with their state saved, once this is true. A signal handler may set it.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    Arc::clone(FLAG.get_or_init(Arc::default))
}

/// Whether somebody asked to stop.
pub(crate) fn is_asked() -> bool {
    stop_flag().load(Ordering::Relaxed)
}
