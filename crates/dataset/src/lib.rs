//! Rows of many spellings to chats, and chats to token ids with a loss mask.
//!
//! [`read_rows`] reads the files (JSONL, JSON, CSV, Parquet) and understands what fine-tuning tools
//! commonly take (messages, alpaca, ShareGPT, prompt and completion, plain text); [`Encoder`]
//! renders a row through the model's own chat template and marks the tokens that count for the
//! loss; [`Sampler`] says which rows a step trains on.

mod bounded;
mod chat;
mod dialects;
mod encode;
mod encoded;
mod error;
mod fields;
mod files;
mod jinja;
mod json;
mod row;
mod sampler;
mod shown;
mod template;
mod third_party;
mod tokenizer;
mod turn;

pub use chat::{Chat, Content, Message, Place, Row};
pub use encode::{Encoder, Example, Question, Stretch};
pub use encoded::{Encoded, RowCounts, is_much};
pub use error::DatasetError;
pub use files::data_files;
pub use row::read_rows;
pub use sampler::Sampler;
pub use template::ChatTemplate;

/// What every function here returns.
pub type Result<T, E = DatasetError> = std::result::Result<T, E>;
