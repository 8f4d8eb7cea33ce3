//! Text to token ids and back, as tokenizer.json says. Knows nothing about conversations.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{AddedToken, PostProcessor, TruncationDirection, TruncationParams};

use crate::config::TokenizerConfig;
use crate::error::one_line;
use crate::guard::guarded;
use crate::{Detokenizer, Error, Result, TokenizerFiles, tokenizer_json};

/// A tokenizer with its special tokens; a clone shares everything.
///
/// Where the library below panics over an odd file, that is an error, and is not printed: the first call puts a hook before the
/// process's panic hook, which still hears of every other panic.
///
/// It encodes as tokenizer.json says, with what tokenizer_config.json says of special tokens and of options of BERT's classes and of
/// byte-level ones, as transformers has them; where transformers 5 makes a class anew that the file says otherwise of, the file counts
/// (docs/adr/0012). It never truncates and never pads, whatever tokenizer.json asks for: both would change training data without a word.
///
/// ```
/// use mc_text::Tokenizer;
///
/// # let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/qwen");
/// let tokenizer = Tokenizer::load(directory)?;
/// let ids = tokenizer.encode("Hello, world", true)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Hello, world");
/// # Ok::<(), mc_text::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    file: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    named_tokens: BTreeMap<String, String>,
    cut_side: Option<CutSide>,
    gives_types: bool,
}

/// Where a text that is too long is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CutSide {
    /// Its end goes.
    #[default]
    End,
    /// Its start goes.
    Start,
}

/// A text or a pair of them as a model reads it; see [`Tokenizer::encode_within`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each, of which part of a pair it is.
    pub type_ids: Vec<u32>,
    /// Whether the text was too long.
    pub cut: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("file", &self.shared.file)
            .field("vocab_size", &self.vocab_size())
            .field("named_tokens", &self.shared.named_tokens)
            .finish()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model directory.
    pub fn load(directory: impl AsRef<Path>) -> Result<Self> {
        Self::from_files(&TokenizerFiles::read(directory)?)
    }

    /// Makes a tokenizer of files in memory.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self> {
        let file = files.directory.join("tokenizer.json");
        let malformed = |error: tokenizers::Error| Error::Malformed { file: file.clone(), reason: one_line(error) };
        let (mut tokenizer, cut_side) = guarded(|| tokenizer_json::read(&files.tokenizer_json))
            .map_err(|error| not_a_tokenizer(&file, &files.tokenizer_json, error))?;

        let config = TokenizerConfig::parse(files)?;
        // What the configuration says of options and of an added token goes over what tokenizer.json says.
        guarded(|| {
            config.class.apply(&mut tokenizer)?;
            tokenizer.add_tokens(config.added_tokens.iter().cloned())?;
            let missing = missing_special_tokens(&tokenizer, &config);
            tokenizer.add_tokens(missing)
        })
        .map_err(malformed)?;

        let named_tokens = config.named_tokens.into_iter().map(|(name, token)| (name, token.content)).collect();
        let shared = Shared { file, tokenizer, named_tokens, cut_side, gives_types: config.gives_types };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The ids of `text`; with `add_special_tokens` also those that the tokenizer puts around a text, such as BOS.
    ///
    /// Special tokens written out in `text` become their ids. A rendered chat template has them all: encode it with
    /// `add_special_tokens` false.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        self.encode_by(|tokenizer| Ok(tokenizer.encode_fast(text, add_special_tokens)?.get_ids().to_vec()))
    }

    /// The ids of a prompt: those of a text, but without what some tokenizers put after every text, such as EOS: nothing goes on after it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(prompt, true)?;
        ids.truncate(ids.len() - self.ids_after_a_text()?.min(ids.len()));
        Ok(ids)
    }

    /// How many ids the tokenizer puts after every text.
    fn ids_after_a_text(&self) -> Result<usize> {
        if self.shared.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false)) == 0 {
            return Ok(0);
        }
        let (text, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let at = whole.windows(text.len().max(1)).rposition(|ids| ids == text);
        Ok(at.map_or(0, |at| whole.len() - at - text.len()))
    }

    /// A text, or a pair of them, with the special tokens that the tokenizer puts around it and at most `limit` ids: what is
    /// too much is cut off `text` and `pair`, of the longer one first, never off the special tokens.
    pub fn encode_within(&self, text: &str, pair: Option<&str>, limit: usize, side: CutSide) -> Result<Encoded> {
        self.encode_by(|tokenizer| {
            let mut first = tokenizer.encode_fast(text, false)?;
            let mut second = pair.map(|pair| tokenizer.encode_fast(pair, false)).transpose()?;
            let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(pair.is_some()));
            let room = limit.saturating_sub(special);
            let cut = first.len() + second.as_ref().map_or(0, tokenizers::Encoding::len) > room;
            if cut {
                let direction = match side {
                    CutSide::End => TruncationDirection::Right,
                    CutSide::Start => TruncationDirection::Left,
                };
                let params = TruncationParams { max_length: room, direction, ..TruncationParams::default() };
                (first, second) = truncate_encodings(first, second, &params)?;
                // What was cut off would be given its special tokens too.
                for part in std::iter::once(&mut first).chain(&mut second) {
                    part.take_overflowing();
                }
            }
            let encoding = tokenizer.post_process(first, second, true)?;
            Ok(Encoded { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec(), cut })
        })
    }

    /// Where tokenizer.json cuts a text that is too long; transformers goes by it where tokenizer_config.json has no `truncation_side`.
    pub fn cut_side(&self) -> Option<CutSide> {
        self.shared.cut_side
    }

    /// Whether transformers tells a model of which part of a pair a token is: `model_input_names` says so, or the tokenizer's class.
    pub fn gives_types(&self) -> bool {
        self.shared.gives_types
    }

    /// The same tokenizer for texts in lower case, whatever it does to them besides.
    pub fn lower_cased(&self) -> Result<Self> {
        use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence};
        let mut tokenizer = self.shared.tokenizer.clone();
        let mut normalizers = vec![NormalizerWrapper::Lowercase(Lowercase)];
        normalizers.extend(tokenizer.get_normalizer().cloned());
        let Shared { file, named_tokens, cut_side, gives_types, .. } = &*self.shared;
        let malformed = |error: tokenizers::Error| Error::Malformed { file: file.clone(), reason: one_line(error) };
        // It looks at the added tokens again.
        guarded(|| tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map(drop)).map_err(malformed)?;
        let (file, named_tokens) = (file.clone(), named_tokens.clone());
        let shared = Shared { file, tokenizer, named_tokens, cut_side: *cut_side, gives_types: *gives_types };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The ids of `text`, without special tokens around it, and for each whether it stands for any of the bytes in
    /// `ranges`, as [`ChatTemplate::render_with_assistant_ranges`](crate::ChatTemplate::render_with_assistant_ranges)
    /// gives them (ascending, apart).
    pub fn encode_with_mask(&self, text: &str, ranges: &[Range<usize>]) -> Result<(Vec<u32>, Vec<bool>)> {
        let covered = |&(start, end): &(usize, usize)| {
            // A byte-level tokenizer trims white space off its offsets: a token of nothing else is left empty, at its end.
            let start = start.min(end.saturating_sub(1));
            let next = ranges.partition_point(|range| range.end <= start);
            ranges.get(next).is_some_and(|range| range.start < end)
        };
        self.encode_by(|tokenizer| {
            let encoding = tokenizer.encode(text, false)?;
            let mask = encoding.get_offsets().iter().map(covered).collect();
            Ok((encoding.get_ids().to_vec(), mask))
        })
    }

    /// The text of `ids`, with or without special tokens; ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.shared.tokenizer.decode(ids, skip_special))
            .map_err(|error| Error::Decode { file: self.shared.file.clone(), reason: one_line(error) })
    }

    /// A detokenizer for ids that come one by one.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.tokenizer.token_to_id(token)
    }

    /// The id of the special token that a text is, which decoding leaves out; `None` if it is none.
    pub fn special_text_id(&self, text: &str) -> Option<u32> {
        let id = self.token_to_id(text)?;
        let added = self.shared.tokenizer.get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special).then_some(id)
    }

    /// A token as the vocabulary spells it, which is not always its text.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.tokenizer.id_to_token(id)
    }

    /// How many tokens there are, added ones included; a model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.tokenizer.get_vocab_size(true)
    }

    /// Whether `id` is a special token: one that `decode` can skip.
    pub fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.shared.tokenizer.get_added_vocabulary();
        vocabulary.simple_id_to_token(id).is_some_and(|token| vocabulary.is_special_token(&token))
    }

    /// The text of the special token of this name in tokenizer_config.json: `bos_token`, `image_token`, ….
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.shared.named_tokens.get(name).map(String::as_str)
    }

    /// The id of the special token of this name in tokenizer_config.json.
    pub fn special_token_id(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.special_token(name)?)
    }

    /// The token that begins a sequence.
    pub fn bos_token(&self) -> Option<&str> {
        self.special_token("bos_token")
    }

    /// The id of the token that begins a sequence.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.special_token_id("bos_token")
    }

    /// The token that ends a sequence; generation_config.json may name more.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// The id of the token that ends a sequence.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.special_token_id("eos_token")
    }

    /// The token that fills up a batch.
    pub fn pad_token(&self) -> Option<&str> {
        self.special_token("pad_token")
    }

    /// The id of the token that fills up a batch.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.special_token_id("pad_token")
    }

    /// The token for what the vocabulary cannot spell.
    pub fn unk_token(&self) -> Option<&str> {
        self.special_token("unk_token")
    }

    /// The id of the token for what the vocabulary cannot spell.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.special_token_id("unk_token")
    }

    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.shared.tokenizer
    }

    pub(crate) fn file(&self) -> &Path {
        &self.shared.file
    }

    /// What the library makes of a text.
    fn encode_by<T>(&self, work: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>) -> Result<T> {
        guarded(|| work(&self.shared.tokenizer))
            .map_err(|error| Error::Encode { file: self.shared.file.clone(), reason: one_line(error) })
    }
}

/// Special tokens of the configuration that are not among the added tokens yet, as transformers adds them: only added
/// tokens are found in a text as one piece, and skipped on decoding.
fn missing_special_tokens(tokenizer: &tokenizers::Tokenizer, config: &TokenizerConfig) -> Vec<AddedToken> {
    let known = tokenizer.get_added_vocabulary().get_vocab();
    let named = config.named_tokens.iter().map(|(_, token)| AddedToken { special: true, ..token.clone() });
    named.chain(config.extra_tokens.iter().cloned()).filter(|token| !known.contains_key(&token.content)).collect()
}

/// Says what is wrong with a tokenizer.json better than the parser of its untagged enums does.
fn not_a_tokenizer(file: &Path, bytes: &[u8], error: tokenizers::Error) -> Error {
    let reason = match serde_json::from_slice::<Value>(bytes) {
        Err(error) => format!("not valid JSON: {}", one_line(error)),
        Ok(json) if !json.get("model").is_some_and(Value::is_object) => {
            return Error::Field {
                file: file.to_path_buf(),
                field: "model".into(),
                found: "missing or no object".into(),
                expected: "the object of a tokenizer model",
            };
        }
        Ok(_) => one_line(error),
    };
    Error::Malformed { file: file.to_path_buf(), reason }
}
