//! GGUF files: reading them, turning them into a folder in Hugging Face layout, and such a folder into them.

mod architectures;
mod blocks;
mod convert;
mod export;
mod file_type;
#[cfg(test)]
mod golden;
mod modelfile;
mod quantize;
mod reader;
mod tokenizer;
mod vocabulary;
mod writer;

pub use blocks::{BlockFormat, dequantize};
pub use convert::{ConvertReport, convert};
pub use export::{ExportReport, export};
pub use file_type::FileType;
pub use modelfile::modelfile;
pub use reader::{GgufFile, GgufTensor, GgufValue};
