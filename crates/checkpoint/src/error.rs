//! Why something on disk could not be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint, record or adapter could not be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
#[non_exhaustive]
pub enum CheckpointError {
    #[error(transparent)]
    Io(#[from] io::Error), // From `fs_err`, which names the file.
    #[error("{}: {}", path.display(), json_trouble(source))]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: gives two values for one name; remove one of them", path.display())]
    KeyTwice { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a file; put the file itself there", path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "{}: a link out of the model's folder, to {}; put the file itself there, or remove the link",
        path.display(), target.display()
    )]
    LeavesFolder { path: PathBuf, target: PathBuf },
    #[error("{}: larger than {} MB, too large for such a file", path.display(), most >> 20)]
    TooLarge { path: PathBuf, most: u64 },
    #[error(
        "{}: not a complete safetensors file; it may be truncated, fetch it again",
        path.display()
    )]
    Safetensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error(
        "{}: shard `{shard}` is missing, the index names it; fetch the checkpoint again",
        folder.display()
    )]
    MissingShard { folder: PathBuf, shard: String },
    #[error(
        "{}: neither `model.safetensors` nor `model.safetensors.index.json` is there; is this a \
         folder in Hugging Face layout?",
        folder.display()
    )]
    NoWeights { folder: PathBuf },
    #[error(
        "{}: holds `{file}` and no safetensors; convert it once with transformers: \
         `AutoModelForCausalLM.from_pretrained(…, dtype=\"auto\").save_pretrained(…)`",
        folder.display()
    )]
    OnlyPickled { folder: PathBuf, file: String },
    #[error(
        "{}: a model as GGUF (`{file}`); turn it into a folder with `gradpruner convert`",
        folder.display()
    )]
    OnlyGguf { folder: PathBuf, file: String },
    #[error(
        "{}: an adapter and no model; give the model it belongs to, and the adapter by `--adapter`",
        folder.display()
    )]
    OnlyAdapter { folder: PathBuf },
    #[error(
        "{}: holds `{name}`, which the index does not place there; fetch the checkpoint again",
        path.display()
    )]
    NotInIndex { path: PathBuf, name: String },
    #[error(
        "{}: holds `{name}`, which a {family} model with this config.json does not use; is \
         config.json of this model?",
        path.display()
    )]
    UnusedTensor { path: PathBuf, name: String, family: &'static str },
    #[error(
        "{}: the weights are quantised (`{name}` is {found}); use the model's original in BF16, F16 \
         or F32",
        path.display()
    )]
    Quantised { path: PathBuf, name: String, found: String },
    #[error("{}: `{name}` cannot be widened: {what}", path.display())]
    FourBits { path: PathBuf, name: String, what: String },
    #[error("{}: `{name}` is not the JSON of a bitsandbytes quant state", path.display())]
    QuantState { path: PathBuf, name: String, source: serde_json::Error },
    #[error("{}: tensor `{name}` is missing; is config.json of this model?", path.display())]
    MissingTensor { path: PathBuf, name: String },
    #[error(
        "{}: `{name}` is {found:?}, config.json implies {expected:?}; are both of one model?",
        path.display()
    )]
    Shape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: `{name}` is stored as {found}; F32, F16 and BF16 are understood", path.display())]
    Dtype { path: PathBuf, name: String, found: String },
    #[error("{}: {what}", path.display())]
    Config { path: PathBuf, what: String },
    /// A model that can be scored and pruned, and that the engine does not train.
    #[error("{}: {what}", path.display())]
    Untrained { path: PathBuf, what: String },
    #[error(
        "{}: `{name}` holds a number that is infinite, NaN or too large, which {format} cannot store; F32 can",
        path.display()
    )]
    Unpackable { path: PathBuf, name: String, format: String },
    #[error("{}: not a usable GGUF file: {what}", path.display())]
    Gguf { path: PathBuf, what: String },
    #[error("{}: not a usable gradient record: {what}", path.display())]
    Record { path: PathBuf, what: String },
    #[error("{}: not a usable PEFT adapter: {what}", path.display())]
    Adapter { path: PathBuf, what: String },
    #[error("{} exists already; remove it or choose another name", path.display())]
    Exists { path: PathBuf },
    #[error(
        "{}: changed while it was read; leave it as it is meanwhile, and begin again",
        path.display()
    )]
    Changed { path: PathBuf },
    #[error(
        "{}: {:.1} GB are to be written and {:.1} GB are free; make room or choose another disk",
        folder.display(), *needed as f64 / 1e9, *free as f64 / 1e9
    )]
    NoRoom { folder: PathBuf, needed: u64, free: u64 },
    #[error(
        "there is no folder `{name}` here, and a hub name has the form `owner/model`; check the spelling"
    )]
    NoModel { name: String },
    #[error(
        "`{name}` is neither a folder here nor a model that could be fetched from the hub; check \
         the name, the network and HF_ENDPOINT"
    )]
    Hub { name: String, source: Box<CheckpointError> },
    #[error("no answer from {url}")]
    HubRequest { url: String, source: Box<ureq::Error> },
    #[error("{url}: {what}")]
    HubAnswer { url: String, what: String },
    #[error("{url}: is not there")]
    HubMissing { url: String },
    #[error(
        "the hub did not say whether it committed to `{name}`; look at the repository's page, or push again: what is \
         there already is not sent again"
    )]
    HubCommit { name: String, source: Box<CheckpointError> },
    #[error("`{name}`: {what}")]
    HubData { name: String, what: String },
}

/// Whether a text is no JSON, or JSON of something else.
fn json_trouble(error: &serde_json::Error) -> &'static str {
    match error.is_data() {
        true => "it is JSON, and not as this file must be; is it another one, or edited by hand?",
        false => "not valid JSON; was it cut off or edited by hand?",
    }
}

impl CheckpointError {
    /// Whether asking the hub again may help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::HubRequest { .. })
    }

    pub(crate) fn config(path: &Path, what: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn untrained(path: &Path, what: impl Into<String>) -> Self {
        Self::Untrained { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn gguf(path: &Path, what: impl Into<String>) -> Self {
        Self::Gguf { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn record(path: &Path, what: impl Into<String>) -> Self {
        Self::Record { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn adapter(path: &Path, what: impl Into<String>) -> Self {
        Self::Adapter { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Json { path, source }
    }

    pub(crate) fn safetensors(path: &Path) -> impl FnOnce(safetensors::SafeTensorError) -> Self {
        let path = path.to_owned();
        |source| Self::Safetensors { path, source }
    }
}
