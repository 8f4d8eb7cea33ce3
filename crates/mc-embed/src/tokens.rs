//! Texts as a model reads them: tokenized, cut to what it can read. Knows no tensors.

use crate::{
    Result,
    directory::{Directory, Object},
};
use mc_text::{CutSide, Encoded, Tokenizer};
use rayon::prelude::*;
use serde_json::Value;

/// A tokenizer, and how long texts may be.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    tokenizer: Tokenizer,
    /// Tokens of a text at most, special ones included.
    pub(crate) limit: usize,
    side: CutSide,
    /// Whether the model is told which part of a pair a token is of.
    pub(crate) types: bool,
}

impl Tokens {
    /// The tokenizer of a model's directory. A text has `asked` tokens at most, or what the tokenizer's file says, and never
    /// more than `most`, which is what the model can read.
    pub(crate) fn read(directory: &Directory, asked: Option<usize>, most: usize, lower_case: bool) -> Result<Self> {
        let mut tokenizer = Tokenizer::load(directory.path()?)?;
        if lower_case {
            tokenizer = tokenizer.lower_cased()?;
        }
        let config = directory.json("tokenizer_config.json")?;
        // Where there is no limit, transformers writes 10^30.
        let written = config.as_ref().and_then(|c| c.number("model_max_length")).map(|n| n as usize);
        let side = match config.as_ref().and_then(|c| c.text("truncation_side")) {
            Some("left") => CutSide::Start,
            _ => CutSide::End,
        };
        let types = config.as_ref().is_none_or(gives_types);
        let limit = asked.or(written).unwrap_or(most).min(most);
        Ok(Self { tokenizer, limit, side, types })
    }

    /// Each text, behind a prompt.
    pub(crate) fn of_texts<S: AsRef<str> + Sync>(&self, texts: &[S], prompt: &str) -> Result<Vec<Encoded>> {
        let one = |text: &S| {
            let encoded = if prompt.is_empty() {
                self.tokenizer.encode_within(text.as_ref(), None, self.limit, self.side)
            } else {
                self.tokenizer.encode_within(&format!("{prompt}{}", text.as_ref()), None, self.limit, self.side)
            };
            Ok(encoded?)
        };
        texts.par_iter().map(one).collect()
    }

    /// One text with each of the others.
    pub(crate) fn of_pairs<S: AsRef<str> + Sync>(&self, first: &str, second: &[S]) -> Result<Vec<Encoded>> {
        let pair = |s: &S| Ok(self.tokenizer.encode_within(first, Some(s.as_ref()), self.limit, self.side)?);
        second.par_iter().map(pair).collect()
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

/// Whether a tokenizer tells which part of a pair a token is of: it says so, or its class does, of which those without a
/// name of their own do not (transformers 5, `tokenization_utils_base.py`).
fn gives_types(config: &Object) -> bool {
    match config.map.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => !matches!(config.text("tokenizer_class"), Some("PreTrainedTokenizerFast" | "TokenizersBackend")),
    }
}
