//! A model's folder: one that is here, or one that is fetched from the hub by name.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;

use crate::{CheckpointError, Result};

/// The folder of `model`: itself if there is such a folder, else the hub's model of that name.
///
/// What is fetched lies in the hub's usual cache (`HF_HOME`), shared with Python's tools, and is
/// fetched once. `HF_ENDPOINT` names another hub, `HF_TOKEN` opens gated models. Only
/// configuration, tokenizer and safetensors files are taken.
///
/// # Errors
///
/// [`CheckpointError::NoModel`] if there is no such folder and it cannot be a hub name;
/// [`CheckpointError::Hub`] if the hub does not give the model.
pub fn locate(model: &str) -> Result<PathBuf> {
    find(model, &is_wanted)
}

/// As [`locate`], but of a hub's model only configuration and tokenizer are fetched.
///
/// # Errors
///
/// As [`locate`].
pub fn locate_configuration(model: &str) -> Result<PathBuf> {
    find(model, &|file| is_wanted(file) && !file.ends_with(".safetensors"))
}

fn find(model: &str, wanted: &dyn Fn(&str) -> bool) -> Result<PathBuf> {
    let folder = Path::new(model);
    // A hub name is `owner/name`; whatever cannot be one is meant as a path.
    let is_name = model.split('/').count() == 2
        && !model.starts_with(['.', '/', '~'])
        && !model.ends_with('/');
    if folder.exists() {
        return Ok(folder.to_owned());
    }
    if !is_name {
        return Err(CheckpointError::NoModel { name: model.to_owned() });
    }
    fetch(model, wanted)
        .map_err(|source| CheckpointError::Hub { name: model.to_owned(), source: Box::new(source) })
}

fn fetch(
    name: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<PathBuf, hf_hub::api::sync::ApiError> {
    let mut builder = ApiBuilder::from_env().with_progress(false);
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let repository = builder.build()?.model(name.to_owned());
    let mut folder = None;
    for file in repository.info()?.siblings {
        let file = file.rfilename;
        if wanted(&file) {
            tracing::info!(model = name, file, "fetching");
            let path = repository.get(&file)?;
            folder = path.parent().map(Path::to_owned);
        }
    }
    Ok(folder.unwrap_or_default())
}

/// Files in subfolders are other formats of the same weights.
fn is_wanted(file: &str) -> bool {
    let endings = [".json", ".safetensors", ".jinja", ".model", ".txt", "LICENSE"];
    !file.contains('/') && endings.iter().any(|ending| file.ends_with(ending))
}
