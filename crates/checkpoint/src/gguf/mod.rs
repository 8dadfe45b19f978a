//! GGUF files: reading them, and turning them into a folder in Hugging Face layout.

mod blocks;
mod convert;
mod reader;
mod tokenizer;

pub use blocks::{BlockFormat, dequantize};
pub use convert::{ConvertReport, convert};
pub use reader::{GgufFile, GgufTensor, GgufValue};
