//! The exact command, as a shell takes it; `command.txt` of a folder keeps those that were given for it.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use checkpoint::Staging;

/// The file's name.
const FILE: &str = "command.txt";

/// This process's command.
pub(crate) fn this_command() -> String {
    command_text(std::env::args_os().skip(1))
}

/// The program with these arguments, as a shell takes it.
pub(crate) fn command_text(arguments: impl IntoIterator<Item = OsString>) -> String {
    let arguments = arguments.into_iter().map(|argument| quoted(&argument.to_string_lossy()));
    let words: Vec<String> = std::iter::once("gradpruner".to_owned()).chain(arguments).collect();
    words.join(" ")
}

/// An argument as a shell takes it, quoted if it must be.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

/// Adds a command to a folder's, unless it is the last one there.
pub(crate) fn keep(folder: &Path, command: &str) -> io::Result<()> {
    let mut text = kept(folder)?;
    if !format!("\n{text}").ends_with(&format!("\n{command}\n")) {
        text.push_str(&format!("{command}\n"));
        Staging::write(&folder.join(FILE), text.as_bytes()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A folder's commands, a line each; nothing if it keeps none.
pub(crate) fn kept(folder: &Path) -> io::Result<String> {
    match fs_err::read_to_string(folder.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        for (argument, expected) in [
            ("--prune", "--prune"),
            ("33%", "33%"),
            ("hub:owner/name", "hub:owner/name"),
            ("", "''"),
            ("my rows.jsonl", "'my rows.jsonl'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("~/x", "'~/x'"),
        ] {
            assert_eq!(quoted(argument), expected);
        }
    }

    #[test]
    fn the_same_command_is_kept_once() {
        let folder = testkit::temporary_folder();
        let folder = folder.path();
        assert_eq!(kept(folder).unwrap(), "");
        for command in ["run a", "run a", "run a b", "run a b", "run a"] {
            keep(folder, command).unwrap();
        }
        assert_eq!(kept(folder).unwrap(), "run a\nrun a b\nrun a\n");
        // One that ends like the last is another.
        keep(folder, "a").unwrap();
        assert_eq!(kept(folder).unwrap(), "run a\nrun a b\nrun a\na\n");
    }
}
