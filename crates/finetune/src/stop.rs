//! Asking what is under way to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::{FinetuneError, Result};

/// Once this is true a training stops after its step, with its state saved, and other passes over rows stop where they
/// are. A signal handler may set it.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    Arc::clone(FLAG.get_or_init(Arc::default))
}

/// Whether somebody asked to stop.
pub(crate) fn is_asked() -> bool {
    stop_flag().load(Ordering::Relaxed)
}

/// Stops what keeps nothing half-done.
pub(crate) fn check() -> Result<()> {
    if is_asked() { Err(FinetuneError::StoppedUnsaved) } else { Ok(()) }
}
