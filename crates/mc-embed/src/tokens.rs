//! Texts as a model reads them: tokenized, cut to what it can read. Knows no tensors.

use crate::{
    Error, Result,
    directory::{Directory, Object},
    modules::Reading,
};
use mc_models::Encoder;
use mc_text::{CutSide, Encoded, Tokenizer};
use rayon::prelude::*;

/// A tokenizer, and how long texts may be.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    /// Tokens of a text at most, special ones included.
    pub(crate) limit: usize,
    side: CutSide,
    /// Ids are below it.
    vocab_size: usize,
    /// How many parts of a pair the model tells apart; 0 if it is not told of which a token is.
    pub(crate) types: usize,
}

impl Tokens {
    /// The tokenizer of a model's directory. A text has as many tokens at most as `reading` says, or the tokenizer's file,
    /// and never more than the encoder can read.
    pub(crate) fn read(directory: &Directory, reading: Reading, encoder: &dyn Encoder) -> Result<Self> {
        let mut tokenizer = Tokenizer::load(directory.path()?)?;
        if reading.lower_case {
            tokenizer = tokenizer.lower_cased()?;
        }
        let config = directory.json("tokenizer_config.json")?;
        let written = config.as_ref().map(|c| c.limit("model_max_length")).transpose()?.flatten();
        let written_side = config.as_ref().map(cut_side).transpose()?.flatten();
        let side = reading.side.or(written_side).or(tokenizer.cut_side()).unwrap_or_default();
        let types = if tokenizer.gives_types() { encoder.token_types() } else { 0 };
        let limit = reading.limit.or(written).unwrap_or(usize::MAX).min(encoder.max_tokens());
        if limit <= tokenizer.encode_within("", None, usize::MAX, side)?.ids.len() {
            let problem = format!("texts may have {limit} tokens, which leaves none beside the special ones");
            let hint =
                "see `model_max_length` there, and `max_seq_length` in sentence_bert_config.json if there is one";
            return Err(directory.error("tokenizer_config.json", &problem, Some(hint)));
        }
        Ok(Self { tokenizer, limit, side, vocab_size: encoder.vocab_size(), types })
    }

    /// Each text, behind a prompt.
    pub(crate) fn of_texts<S: AsRef<str> + Sync>(&self, texts: &[S], prompt: &str) -> Result<Vec<Encoded>> {
        let one = |(i, text): (usize, &S)| {
            if prompt.is_empty() {
                return self.one(i, text.as_ref(), None);
            }
            self.one(i, &format!("{prompt}{}", text.as_ref()), None)
        };
        first_error(texts.par_iter().enumerate().map(one).collect())
    }

    /// One text with each of the others.
    pub(crate) fn of_pairs<S: AsRef<str> + Sync>(&self, first: &str, second: &[S]) -> Result<Vec<Encoded>> {
        let one = |(i, text): (usize, &S)| {
            let encoded = self.one(i, first, Some(text.as_ref()))?;
            match encoded.type_ids.iter().find(|found| self.types > 0 && **found as usize >= self.types) {
                Some(found) => Err(Error::TokenType { text: i, found: *found, rows: self.types }),
                None => Ok(encoded),
            }
        };
        first_error(second.par_iter().enumerate().map(one).collect())
    }

    /// The text or the pair at this index.
    fn one(&self, index: usize, text: &str, pair: Option<&str>) -> Result<Encoded> {
        let encoded = self.tokenizer.encode_within(text, pair, self.limit, self.side)?;
        match encoded.ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => Err(Error::TokenId { text: index, id: *id, vocab_size: self.vocab_size }),
            None => Ok(encoded),
        }
    }

    /// How many tokens a text has behind a prompt, special ones and those beyond the limit counted.
    pub(crate) fn count(&self, text: &str, prompt: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(&format!("{prompt}{text}"), true)?.len())
    }

    /// How many of a text's first tokens are those of a prompt.
    pub(crate) fn of_prompt(&self, prompt: &str) -> Result<usize> {
        if prompt.is_empty() {
            return Ok(0);
        }
        let ids = self.tokenizer.encode_within(prompt, None, self.limit, self.side)?.ids;
        let closes = ids.last().is_some_and(|id| self.tokenizer.is_special(*id));
        Ok(ids.len() - usize::from(closes))
    }
}

/// Of several errors the first in order: collected in parallel, it would be the first in time.
fn first_error(all: Vec<Result<Encoded>>) -> Result<Vec<Encoded>> {
    all.into_iter().collect()
}

/// What `truncation_side` says.
pub(crate) fn cut_side(config: &Object) -> Result<Option<CutSide>> {
    match config.text("truncation_side")? {
        None => Ok(None),
        Some("left") => Ok(Some(CutSide::Start)),
        Some("right") => Ok(Some(CutSide::End)),
        Some(other) => Err(config.wrong("truncation_side", &other.into(), "left or right")),
    }
}
