//! The program as a whole, run as a user runs it.

mod commands;
mod errors;
mod hub;
mod run;
mod support;
