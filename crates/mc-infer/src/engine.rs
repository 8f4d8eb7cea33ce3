//! Turns token ids into token ids. Knows nothing about text.

use crate::{Error, RepetitionPenalty, Result, SamplingStrategy, sampler::Sampler};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use mc_backend::{Purpose, Stream, in_pool};
use mc_models::{Adapter, CausalLM, KVCache, Pass};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What tokens are chosen by, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOptions {
    /// The most tokens to generate, at least 1; the model's context or the cache may allow fewer.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub strategy: SamplingStrategy,
    /// What the logits of tokens that were there already are divided by (see [`RepetitionPenalty`]); 1 is no penalty.
    pub repetition_penalty: f64,
    /// Names the random choices: the same seed, prompt and options give the same tokens.
    pub seed: u64,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// How many tokens of the prompt go through the model at once, at least 1: bounds the memory of activations.
    pub prefill_chunk: usize,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            strategy: SamplingStrategy::Greedy,
            repetition_penalty: 1.0,
            seed: 0,
            eos_token_ids: Vec::new(),
            prefill_chunk: 512,
        }
    }
}

impl TokenOptions {
    /// Checks that every option is in its range.
    pub(crate) fn check(&self) -> Result<()> {
        for (option, value) in [("max_tokens", self.max_tokens), ("prefill_chunk", self.prefill_chunk)] {
            if value == 0 {
                return Err(Error::Option { option, found: "0".into(), expected: "at least 1" });
            }
        }
        RepetitionPenalty::new(self.repetition_penalty)?;
        self.strategy.check()
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// There are as many tokens as were asked for, or as the model's context or the cache holds.
    Length,
    /// The caller wanted no more.
    Cancelled,
}

/// The tokens of one request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TokenRun {
    /// Every token that was generated, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: FinishReason,
    /// Time to the first logits: the whole prompt.
    pub prefill_time: Duration,
    /// Time after that: all tokens but the first, each with a pass of its own.
    pub decode_time: Duration,
}

/// Goes on from `prompt`: reads it once, in chunks, then generates token by token.
///
/// `cache` may hold the tokens before the prompt; afterwards it also holds the prompt and every new token but the
/// last. After an error it is of no more use. `on_token` is called with each token as it comes, and with the reason if
/// it is the last; if it returns false there are no more. The repetition penalty counts the prompt and the new tokens.
/// The random choice of a token depends on the seed and its position in the sequence, and on nothing else.
///
/// ```
/// # use mc_infer::*;
/// # fn example(model: &dyn mc_models::CausalLM) -> Result<()> {
/// let mut cache = KVCache::new(model, KVCacheConfig::default())?;
/// let options = TokenOptions { max_tokens: 8, ..TokenOptions::default() };
/// let run = generate_tokens(model, &[1, 2, 3], &mut cache, None, &options, |_id, _finish| true)?;
/// assert!(run.tokens.len() <= 8);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If an option is out of its range, the prompt is empty, too long for the model's context or the cache, or has a token
/// outside the vocabulary, or a pass fails or gives logits that are not finite.
pub fn generate_tokens(
    model: &dyn CausalLM,
    prompt: &[u32],
    cache: &mut KVCache,
    adapter: Option<&dyn Adapter>,
    options: &TokenOptions,
    mut on_token: impl FnMut(u32, Option<FinishReason>) -> bool,
) -> Result<TokenRun> {
    options.check()?;
    let mut position = cache.len() + prompt.len();
    let limit = check_prompt(model, prompt, position, cache.max_length())?.min(options.max_tokens);
    let mut sampler = Sampler::new(options.strategy)?;
    let mut penalty = RepetitionPenalty::new(options.repetition_penalty)?;
    penalty.see(prompt);

    let start = Instant::now();
    let mut logits = Vec::new();
    let mut chunks = prompt.chunks(options.prefill_chunk).peekable();
    while let Some(chunk) = chunks.next() {
        let last = chunks.peek().is_none();
        forward(model, chunk, cache, adapter, last.then_some(&mut logits))?;
    }
    let prefill_time = start.elapsed();

    let start = Instant::now();
    let mut tokens = Vec::new();
    let finish = loop {
        penalty.apply(&mut logits);
        let id = sampler.sample(&logits, &mut Stream::new(options.seed, Purpose::Sample, position as u64))?;
        tokens.push(id);
        let finish = if options.eos_token_ids.contains(&id) {
            Some(FinishReason::Stop)
        } else {
            (tokens.len() == limit).then_some(FinishReason::Length)
        };
        let wanted = on_token(id, finish);
        if let Some(finish) = finish.or((!wanted).then_some(FinishReason::Cancelled)) {
            break finish;
        }
        penalty.see(&[id]);
        forward(model, &[id], cache, adapter, Some(&mut logits))?;
        position += 1;
    };
    Ok(TokenRun { tokens, finish, prefill_time, decode_time: start.elapsed() })
}

/// How many tokens the model's context and the cache allow after a prompt that ends at `position`: the last one is not
/// read again, so it needs no place.
fn check_prompt(model: &dyn CausalLM, prompt: &[u32], position: usize, cache: usize) -> Result<usize> {
    let config = model.config();
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let limit = config.max_position_embeddings.min(cache);
    let room = limit.checked_sub(position).ok_or(Error::PromptTooLong { tokens: position, limit })?;
    match prompt.iter().find(|id| **id as usize >= config.vocab_size) {
        Some(&id) => Err(Error::UnknownToken { id, vocab_size: config.vocab_size }),
        None => Ok(room + 1),
    }
}

/// The next tokens through the model: `(1, t, hidden size)`.
fn forward(
    model: &dyn CausalLM,
    ids: &[u32],
    cache: &mut KVCache,
    adapter: Option<&dyn Adapter>,
    logits: Option<&mut Vec<f32>>,
) -> Result<()> {
    in_pool(|| {
        let hidden = model.hidden(ids, (1, ids.len()), &mut Pass { cache: Some(cache), adapter, ..Pass::default() })?;
        logits.map_or(Ok(()), |logits| read_logits(model, &hidden, logits))
    })
}

/// The logits of the last position of `hidden` `(1, t, hidden size)`, into memory that is used again.
fn read_logits(model: &dyn CausalLM, hidden: &Tensor, logits: &mut Vec<f32>) -> Result<()> {
    let (_, t, _) = hidden.dims3()?;
    let tensor = model.logits(&hidden.narrow(1, t - 1, 1)?)?.to_dtype(DType::F32)?.flatten_all()?;
    logits.clear();
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        logits.extend_from_slice(&values[start..end]);
        return Ok(());
    }
    drop(storage);
    *logits = tensor.to_vec1()?;
    Ok(())
}
