//! Ranges of one file copied into another by the kernel, shared where the file system can.

use std::io;

use fs_err::os::unix::fs::FileExt;

/// Blocks that file systems can share between files.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes that are read and written at a time where the kernel cannot copy.
const BUFFER: usize = 1 << 20;

/// Copies `size` bytes of `source` from `from` on to `target` at `to`.
///
/// # Errors
///
/// If the disk refuses or is full, or the source ends early.
pub(crate) fn copy_range(
    (source, from): (&fs_err::File, u64),
    (target, to): (&fs_err::File, u64),
    size: u64,
) -> io::Result<()> {
    // Blocks are shared from a whole one on, so what comes before is copied by itself.
    let head = match from % BLOCK == to % BLOCK {
        true => ((BLOCK - from % BLOCK) % BLOCK).min(size),
        false => 0,
    };
    by_hand((source, from), (target, to), head)?;
    let (from, to, size) = (from + head, to + head, size - head);
    let copied = by_the_kernel((source, from), (target, to), size)?;
    by_hand((source, from + copied), (target, to + copied), size - copied)
}

/// As many bytes as the kernel copies from file to file; the rest is for [`by_hand`].
#[cfg(target_os = "linux")]
fn by_the_kernel(
    (source, mut from): (&fs_err::File, u64),
    (target, mut to): (&fs_err::File, u64),
    size: u64,
) -> io::Result<u64> {
    use rustix::io::Errno;

    let first = from;
    while from < first + size {
        let left = usize::try_from(first + size - from).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(
            source.file(),
            Some(&mut from),
            target.file(),
            Some(&mut to),
            left,
        );
        match copied {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            // Two file systems, or one that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                break;
            }
            Err(error) => {
                let kind = io::Error::from(error).kind();
                let (source, target) = (source.path().display(), target.path().display());
                let text = format!("failed to copy from `{source}` to `{target}`: {error}");
                return Err(io::Error::new(kind, text));
            }
        }
    }
    Ok(from - first)
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "as on Linux")]
fn by_the_kernel(_: (&fs_err::File, u64), _: (&fs_err::File, u64), _: u64) -> io::Result<u64> {
    Ok(0)
}

fn by_hand(
    (source, from): (&fs_err::File, u64),
    (target, to): (&fs_err::File, u64),
    size: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER))];
    let mut done = 0;
    while done < size {
        let count = buffer.len().min(usize::try_from(size - done).unwrap_or(BUFFER));
        source.read_exact_at(&mut buffer[..count], from + done)?;
        target.write_all_at(&buffer[..count], to + done)?;
        done += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Copy = fn((&fs_err::File, u64), (&fs_err::File, u64), u64) -> io::Result<()>;

    #[test]
    fn either_way_the_same_bytes() {
        let folder = testkit::temporary_folder();
        let bytes: Vec<u8> = (0..3 * BUFFER + 77).map(|at| (at * 7 / 8) as u8).collect();
        let path = folder.path().join("source");
        fs_err::write(&path, &bytes).unwrap();
        let source = fs_err::File::open(&path).unwrap();
        let (from, size) = (13, 3 * BUFFER as u64 + 1);
        let ways: [(&str, Copy, u64); 3] =
            [("kernel", copy_range, 5), ("shared", copy_range, BLOCK + 13), ("hand", by_hand, 5)];
        for (name, copy, to) in ways {
            let path = folder.path().join(name);
            let target = fs_err::File::create(&path).unwrap();
            copy((&source, from), (&target, to), size).unwrap();
            let found = fs_err::read(path).unwrap();
            assert_eq!(found.len() as u64, to + size);
            assert!(found[to as usize..] == bytes[13..13 + size as usize], "{name}");
            let error = copy((&source, 100), (&target, 0), bytes.len() as u64).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}");
            assert!(error.to_string().contains("source"), "{error}");
        }
    }
}
