//! What the disk has room for.

use std::path::Path;

/// Bytes that may still be written where `path` is, or will be; `None` if the system does not say.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|path| path.exists());
    // A relative path's last ancestor is empty and means the current folder.
    let there = there.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_bavail * found.f_frsize)
}
