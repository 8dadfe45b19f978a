//! A file that is cut short while it is mapped: reading beyond its end raises a signal, SIGBUS, that
//! ends a program without a word. Here it ends with an error that names the file.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::stdio::stderr;

/// Reports such a file and ends the program, from now on.
pub(crate) fn report() {
    // SAFETY: what the handler does, signal handlers may: it allocates nothing, takes no lock, and
    // calls `open`, `read`, `write` and `_exit` alone.
    let registered = unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, handle) };
    if let Err(error) = registered {
        tracing::debug!("a mapped file that is cut short will not be reported: {error}");
    }
}

fn handle(signal: &libc::siginfo_t) {
    // SAFETY: the system fills in the address for this signal.
    let address = unsafe { signal.si_addr() }.addr();
    let mut line = [0; 1024];
    // What lies in no file is none of ours, and ends the program as ever.
    let Some(path) = mapped_file(address, &mut line) else { return };
    let parts = [
        b"error: ".as_slice(),
        path,
        b": it was cut short while it was read; run the command again when nothing writes to it\n",
    ];
    for part in parts {
        let _ = write(stderr(), part);
    }
    // SAFETY: it ends the process.
    unsafe { libc::_exit(1) }
}

/// The path of the file that is mapped at an address.
fn mapped_file(address: usize, line: &mut [u8]) -> Option<&[u8]> {
    let maps = open(c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = find_line(maps.as_fd(), address, line)?;
    let line = &line[..length];
    let path = line.iter().position(|&byte| byte == b'/')?;
    Some(&line[path..])
}

/// Reads lines until that of the mapping around an address; how long that is. What does not fit
/// `line` is left away.
fn find_line(maps: impl AsFd, address: usize, line: &mut [u8]) -> Option<usize> {
    let (mut chunk, mut length) = ([0; 256], 0);
    loop {
        let count = read(&maps, &mut chunk).ok().filter(|&count| count > 0)?;
        for &byte in &chunk[..count] {
            if byte != b'\n' {
                if let Some(place) = line.get_mut(length) {
                    *place = byte;
                    length += 1;
                }
            } else if holds(&line[..length], address) {
                return Some(length);
            } else {
                length = 0;
            }
        }
    }
}

/// Whether a line, `first-last …` in hexadecimal digits, is of the mapping around an address.
fn holds(line: &[u8], address: usize) -> bool {
    let mut ends = line.split(|byte| b"- ".contains(byte)).map(|digits| {
        let digits = digits.iter().map(|&digit| char::from(digit).to_digit(16));
        digits.fold(0, |number, digit| number << 4 | digit.unwrap_or(0) as usize)
    });
    let (first, last) = (ends.next(), ends.next());
    first.is_some_and(|first| first <= address) && last.is_some_and(|last| address < last)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use checkpoint::MappedFile;

    use super::*;

    const FOLDER: &str = "GRADPRUNER_TEST_CUT_SHORT";

    #[test]
    fn a_file_that_is_cut_short_is_named() {
        // In the process that this test starts.
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = std::path::Path::new(&folder).join("weights");
            fs_err::write(&path, vec![1; 1 << 20]).unwrap();
            report();
            let mapped = MappedFile::open(&path).unwrap();
            fs_err::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
            let sum: u64 = mapped.bytes().iter().map(|&byte| u64::from(byte)).sum();
            panic!("all of it was read, {sum}");
        }
        let folder = testkit::temporary_folder();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cut_short::tests::a_file_that_is_cut_short_is_named"])
            .arg("--nocapture")
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&child.stderr);
        let path = folder.path().join("weights");
        let expected = format!("error: {}: it was cut short", path.display());
        assert!(errors.contains(&expected), "{errors}");
        assert_eq!(child.status.code(), Some(1));
    }

    #[test]
    fn mappings_are_found_by_address() {
        let line = b"7f00a000-7f00c000 r--p 00000000 fe:00 42   /a folder/step.safetensors";
        assert!(holds(line, 0x7f00_a000) && holds(line, 0x7f00_bfff));
        assert!(!holds(line, 0x7f00_c000) && !holds(line, 0x7f00_9fff));
        let own = a_file_that_is_cut_short_is_named as fn() as usize;
        let mut line = [0; 1024];
        let path = String::from_utf8_lossy(mapped_file(own, &mut line).unwrap()).into_owned();
        assert_eq!(std::path::Path::new(&path), std::env::current_exe().unwrap());
        assert!(mapped_file(usize::MAX, &mut [0; 64]).is_none());
    }
}
