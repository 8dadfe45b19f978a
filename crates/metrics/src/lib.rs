//! Predictions and answers to figures, as lm-evaluation-harness and `rouge_score` define them.

mod choice;
mod interval;
mod paired;
mod rank;
mod resampling;
mod rouge;
mod stem;
mod text;

pub use choice::{ChoiceScore, pick, pick_by_bytes};
pub use interval::{Interval, wilson};
pub use paired::sign_flip_test;
pub use rank::kendall_tau;
pub use resampling::{bootstrap, drawn_sign_flip_test};
pub use rouge::{RougeScores, rouge};
pub use stem::stem;
pub use text::{exact_match, perplexity};
