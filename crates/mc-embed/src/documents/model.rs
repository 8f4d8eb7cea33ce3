//! What an index asks of a model, in functions, so that it knows none.

use crate::{
    EmbeddingModel, EncodeOptions, Prompt,
    index::{Error, Result},
};
use candle_core::Device;

/// The text whose vector is the fingerprint of a model; long enough that models differ on it.
const FINGERPRINT: &str = "What is found here was measured twice: 17 red kites over the old harbour, before the rain.";

/// What a model does for an index, in functions.
pub struct TextModel<'a> {
    /// How errors and the index call it.
    pub name: &'a str,
    /// The number of tokens in a text, with those that the model adds to any.
    pub tokens: CountTokens<'a>,
    /// How many of them it reads.
    pub limit: usize,
    /// The vectors of texts, one after the other.
    pub embed: Embed<'a>,
}

impl std::fmt::Debug for TextModel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextModel").field("name", &self.name).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a> TextModel<'a> {
    /// Those of a model, for documents.
    pub fn new(name: &'a str, model: &'a EmbeddingModel) -> Self {
        Self::with_dimensions(name, model, model.dimensions())
    }

    /// The same with vectors of the first `dimensions` numbers, which must be 1 to [`EmbeddingModel::max_dimensions`].
    pub fn with_dimensions(name: &'a str, model: &'a EmbeddingModel, dimensions: usize) -> Self {
        Self {
            name,
            tokens: Box::new(|text| Ok(model.count_tokens(text, Prompt::Document)?)),
            limit: model.max_tokens(),
            embed: Box::new(move |texts| {
                let dimensions = Some(dimensions);
                let options = EncodeOptions { prompt: Prompt::Document, dimensions, ..EncodeOptions::default() };
                let vectors = model.encode_with(texts, &options, &mut |_| {})?.vectors;
                Ok(vectors.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
            }),
        }
    }

    pub(super) fn count_tokens(&self, text: &str, what: &str) -> Result<usize> {
        (self.tokens)(text).map_err(|source| Error::Model { what: what.into(), source })
    }

    /// The vector by which an index knows the model again.
    pub(super) fn fingerprint(&self) -> Result<Vec<f32>> {
        (self.embed)(&[FINGERPRINT]).map_err(|source| self.failed(source))
    }

    /// A vector for each text.
    pub(super) fn vectors(&self, texts: &[&str], dimensions: usize) -> Result<Vec<f32>> {
        let vectors = (self.embed)(texts).map_err(|source| self.failed(source))?;
        if vectors.len() == texts.len() * dimensions {
            return Ok(vectors);
        }
        let what = format!("`{}` made {} numbers of {} texts", self.name, vectors.len(), texts.len());
        Err(Error::argument(what, "a model makes as many numbers for each text"))
    }

    fn failed(&self, source: Failure) -> Error {
        Error::Model { what: format!("`{}`", self.name), source }
    }
}

/// A text in, how many tokens it has out.
pub type CountTokens<'a> = Box<dyn Fn(&str) -> Result<usize, Failure> + Send + Sync + 'a>;

/// Texts in, their vectors out.
pub type Embed<'a> = Box<dyn Fn(&[&str]) -> Result<Vec<f32>, Failure> + Send + Sync + 'a>;

/// What a function of a [`TextModel`] says when it fails.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
