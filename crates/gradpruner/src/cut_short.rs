//! A file that is cut short while it is mapped: reading beyond its end raises a signal, SIGBUS, that
//! ends a program without a word. Here it ends with an error that names the file.

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_void, siginfo_t};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};
use rustix::stdio::stderr;

/// Reports such a file and ends the program, from now on.
pub(crate) fn report() {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    // SAFETY: all fields are numbers or pointers that may be zero, and those that matter are set.
    // The handler does what signal handlers may: it allocates nothing, takes no lock, and calls
    // `open`, `read`, `close`, `write`, `pause`, `signal` and `_exit` alone.
    //
    // The standard library's own handler is not called on: it would set the signal back to its
    // default, which ends the program as soon as a second thread gets it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
    }
}

static REPORTING: AtomicBool = AtomicBool::new(false);

extern "C" fn handle(_: c_int, signal: *mut siginfo_t, _: *mut c_void) {
    if REPORTING.swap(true, Ordering::SeqCst) {
        loop {
            // SAFETY: it waits; the thread that reports ends the process.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: the system gives what the handler was registered for, with an address.
    let (code, address) = unsafe { ((*signal).si_code, (*signal).si_addr()) };
    let mut line = [0; 1024];
    let path = mapped_file(address.addr(), &mut line).filter(|_| code == libc::BUS_ADRERR);
    let Some(path) = path else {
        // It is about no file. The same instruction raises it again, and that ends the program.
        // SAFETY: a default handler is one that there is.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        return;
    };
    let parts = [
        b"error: ".as_slice(),
        path,
        b" could not be read to its end: it was cut short meanwhile, or its disk failed\n",
        b"  run the command again when nothing writes to it\n",
    ];
    let (mut message, mut length) = ([0; 1200], 0);
    for &byte in parts.iter().copied().flatten() {
        message[length] = byte;
        length += 1;
    }
    let _ = write(stderr(), &message[..length]);
    // SAFETY: it ends the process.
    unsafe { libc::_exit(1) }
}

/// The path of the file that is mapped at an address.
fn mapped_file(address: usize, line: &mut [u8; 1024]) -> Option<&[u8]> {
    let maps = open(c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = find_line(maps.as_fd(), address, line)?;
    let line = &line[..length];
    let path = &line[line.iter().position(|&byte| byte == b'/')?..];
    // Shared memory and devices are no files that somebody writes to.
    let others = [b"/dev/".as_slice(), b"/memfd:", b"/SYSV"];
    (!others.iter().any(|other| path.starts_with(other))).then_some(path)
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

#[cfg(test)]
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
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| mapped.bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>());
                }
            });
            panic!("all of it was read");
        }
        let folder = testkit::temporary_folder();
        let path = folder.path().join("weights");
        let expected = format!("error: {} could not be read to its end", path.display());
        for _ in 0..20 {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "cut_short::tests::a_file_that_is_cut_short_is_named"])
                .arg("--nocapture")
                .env(FOLDER, folder.path())
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&child.stderr);
            assert_eq!(errors.matches(&expected).count(), 1, "{errors}");
            assert_eq!(child.status.code(), Some(1));
        }
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
        assert!(mapped_file(usize::MAX, &mut line).is_none());
    }
}
