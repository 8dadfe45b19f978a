//! The program as a whole, run as a user runs it.

#![expect(clippy::unwrap_used, reason = "a test stops at what should not be")]
#![expect(clippy::needless_raw_string_hashes, reason = "`expect!` writes them")]

mod amount;
mod commands;
mod compare;
mod data;
mod errors;
mod files;
mod hub;
mod launcher;
mod processes;
mod push;
mod race;
mod run;
mod support;
mod tuning;
mod validation;
