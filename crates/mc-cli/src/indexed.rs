//! What `index` and `search` share: the model of an index, and how its files are named.

use crate::{failure::wrong, global::Global, source};
use anyhow::Result;
use metal_candle::embeddings::{
    EmbeddingModel, Error,
    documents::{DocumentIndex, TextModel},
};
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

/// What an index asks of its model: for vectors as it has them, or of so many dimensions where it has none yet.
pub(crate) fn functions<'a>(
    name: &'a str,
    model: &'a EmbeddingModel,
    index: Option<&DocumentIndex>,
    asked: Option<usize>,
) -> Result<TextModel<'a>> {
    let vectors = index.map(DocumentIndex::vectors).filter(|vectors| !vectors.is_empty());
    let most = model.max_dimensions();
    let dimensions = match (vectors.map(|vectors| vectors.config().dimensions), asked) {
        // Of a model that has not so many the index says itself that it is another one.
        (Some(of_index), _) if of_index <= most => of_index,
        (None, Some(asked)) if asked == 0 || asked > most => {
            return Err(Error::Dimensions { asked, width: most }.into());
        }
        (None, Some(asked)) => asked,
        _ => model.dimensions(),
    };
    Ok(TextModel::with_dimensions(name, model, dimensions))
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
    if let Some(other) = model.other_similarity() {
        global.say(format!(
            "the model's vectors are meant to be compared by `{other}`; an index compares them by cosine"
        ));
    }
    Ok(model)
}

/// A path as it is named from the current directory, if it is below.
pub(crate) fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    here.ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display().to_string()
}
