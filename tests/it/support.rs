//! A folder to run the program in.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::{temporary_folder, tiny_checkpoint, tiny_rows};

/// A temporary folder with a tiny `model/`, `train.jsonl` and `test.jsonl`.
pub(crate) struct Desk {
    // Removed with it.
    folder: Box<dyn AsRef<Path>>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = temporary_folder();
        tiny_checkpoint(&folder.path().join("model"));
        fs_write(&folder.path().join("train.jsonl"), &tiny_rows(0..24));
        fs_write(&folder.path().join("test.jsonl"), &tiny_rows(24..34));
        Self { folder: Box::new(folder) }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        (*self.folder).as_ref().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs_write(&self.at(name), text);
    }

    /// The program with arguments parted by spaces, to be run here.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gradpruner"));
        command.args(arguments.split_whitespace()).current_dir(self.at(""));
        // Many of these run at once, on a model too small for threads.
        command.env("OMP_NUM_THREADS", "1");
        command
    }

    pub(crate) fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn run(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The result of a command that must succeed, as JSON.
    pub(crate) fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.run(&format!("{arguments} --json"))).expect("only JSON there")
    }

    /// Exit status and standard error, as a user sees them.
    pub(crate) fn failure(&self, arguments: &str) -> String {
        let output = self.output(arguments);
        let code = output.status.code().map_or("killed".into(), |code| format!("exit {code}"));
        assert!(output.stdout.is_empty(), "an error prints no result");
        format!("{code}\n{}", text(&output.stderr))
    }

    /// Begins a command and kills it as soon as something is there, unless it has ended by then.
    pub(crate) fn kill_when(&self, arguments: &str, is_there: impl Fn() -> bool) {
        let mut command = self.command(arguments);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.spawn().expect("the program starts");
        while !is_there() && child.try_wait().expect("it is ours").is_none() {
            std::thread::yield_now();
        }
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
    }

    /// Whether a file or folder lies here whose path begins so.
    pub(crate) fn has_like(&self, start: &str) -> bool {
        let (folder, start) = start.rsplit_once('/').unwrap_or((".", start));
        let Ok(entries) = fs_err::read_dir(self.at(folder)) else { return false };
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(start))
    }

    /// What lies here, hidden files included.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut names: Vec<_> = fs_err::read_dir(self.at(""))
            .expect("the folder is there")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn fs_write(path: &Path, text: &str) {
    fs_err::write(path, text).expect("writable");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Cheap settings for training on the tiny model.
pub(crate) const CHEAP: &str = "--device cpu --dtype f32 --steps 3 --epochs 1 --batch 4 \
     --accumulate 1 --lr 1e-3 --rank 2";

/// The same for `finetune`.
pub(crate) const CHEAP_TRAINING: &str =
    "--device cpu --dtype f32 --epochs 1 --batch 4 --accumulate 1 --lr 1e-3 --rank 2";
