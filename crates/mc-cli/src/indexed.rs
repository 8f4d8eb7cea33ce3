//! What `index` and `search` share: the model of an index, and how its files are named.

use crate::{failure::wrong, global::Global, source};
use anyhow::Result;
use metal_candle::embeddings::{EmbeddingModel, documents::DocumentIndex};
use std::path::Path;

/// The model of an index, and its name; `asked` is where it is now.
pub(crate) fn model_of(
    global: &Global,
    index: &DocumentIndex,
    asked: Option<&str>,
) -> Result<(String, EmbeddingModel)> {
    let known = Path::new(&index.vectors().config().model);
    if asked.is_none() && known.is_absolute() && !known.exists() {
        let what = format!("{}: its model {} is not there", index.vectors().dir().display(), known.display());
        return Err(wrong(what, "if it has moved, say where it is with --model"));
    }
    let name = asked.map_or_else(|| index.vectors().config().model.clone(), model_name);
    let model = open(global, &name)?;
    Ok((name, model))
}

/// What an index calls a model: a directory by its whole path, so that it is found from anywhere.
pub(crate) fn model_name(name: &str) -> String {
    let whole = Path::new(name).canonicalize().ok();
    whole.map_or(name.into(), |path| path.display().to_string())
}

/// An embedding model, with the device and dtype asked for. What it does is said if some of that is assumed.
pub(crate) fn open(global: &Global, name: &str) -> Result<EmbeddingModel> {
    let dir = source::open_dir(global, Some(name))?;
    let model = EmbeddingModel::from_dir(&dir, &global.loader()?)?;
    if model.assumes_pooling() {
        global.say(model.describe());
    }
    Ok(model)
}

/// A path as it is named from the current directory, if it is below.
pub(crate) fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    here.ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display().to_string()
}
