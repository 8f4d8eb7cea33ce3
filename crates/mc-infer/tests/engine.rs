//! Token ids to token ids: against transformers, against passes without a cache, and with a model that reads a script.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scripted;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use mc_backend::Weight;
use mc_checkpoint::ModelDir;
use mc_infer::{
    Error, FinishReason, KVCache, KVCacheConfig, SamplingStrategy, TokenOptions, TokenRun, generate_tokens,
};
use mc_models::{Adapter, CausalLM, Model, ModelConfig, ModelLoader, Pass, Projection, Site};
use mc_testkit::{golden, random};
use scripted::Scripted;
use std::{collections::HashMap, path::Path, sync::Mutex};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SAMPLE: SamplingStrategy =
    SamplingStrategy::Sample { temperature: 1.2, top_k: Some(20), top_p: Some(0.95), min_p: None };

fn load(name: &str) -> Result<(Model, HashMap<String, Tensor>)> {
    let dir = golden::dir(&format!("models/{name}"));
    let model = ModelLoader::new().with_dtype(DType::F32).load_dir(&ModelDir::open(&dir)?)?;
    Ok((model, golden::tensors(dir.join("expected.safetensors"))))
}

fn ids(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?)
}

fn options(max_tokens: usize) -> TokenOptions {
    TokenOptions { max_tokens, ..TokenOptions::default() }
}

fn run(
    model: &dyn CausalLM,
    prompt: &[u32],
    adapter: Option<&dyn Adapter>,
    options: &TokenOptions,
) -> Result<TokenRun> {
    let mut cache = KVCache::new(model, KVCacheConfig { initial_capacity: 4, ..KVCacheConfig::default() })?;
    Ok(generate_tokens(model, prompt, &mut cache, adapter, options, |_, _| true)?)
}

/// The logits after `ids`, from one pass over all of them.
fn uncached(model: &dyn CausalLM, ids: &[u32], adapter: Option<&dyn Adapter>) -> Result<Vec<f32>> {
    let hidden = model.hidden(ids, (1, ids.len()), &mut Pass { adapter, ..Pass::default() })?;
    Ok(model.logits(&hidden.narrow(1, ids.len() - 1, 1)?)?.flatten_all()?.to_vec1()?)
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

#[test]
fn greedy_tokens_are_those_of_transformers_in_chunks_of_any_size() -> Result<()> {
    for name in &golden::cases("models", 15) {
        let (model, expected) = load(name)?;
        let (prompt, greedy) = (ids(&expected["prompt"])?, ids(&expected["greedy"])?);
        assert_eq!((prompt.len(), greedy.len()), (7, 24), "{name}");
        for prefill_chunk in [1, 3, 5, 7, 512] {
            let run = run(&*model, &prompt, None, &TokenOptions { prefill_chunk, ..options(24) })?;
            assert_eq!(run.tokens, greedy, "{name} in chunks of {prefill_chunk}");
            assert_eq!(run.finish, FinishReason::Length);
        }
    }
    Ok(())
}

#[test]
fn a_repetition_penalty_is_that_of_transformers() -> Result<()> {
    let golden = golden::json(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expected.json"));
    let numbers = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
    };
    for case in golden["penalised_greedy"].as_array().unwrap() {
        let (model, _) = load(case["model"].as_str().unwrap())?;
        let penalty = case["penalty"].as_f64().unwrap();
        let prompt = numbers(&case["prompt"]);
        let penalised = run(&*model, &prompt, None, &TokenOptions { repetition_penalty: penalty, ..options(24) })?;
        assert_eq!(penalised.tokens, numbers(&case["tokens"]), "{} {penalty}", case["model"]);
        assert_ne!(penalised.tokens, run(&*model, &prompt, None, &options(24))?.tokens);
    }
    Ok(())
}

/// A model that remembers the logits it gave and how many positions it read.
struct Recording {
    model: Model,
    logits: Mutex<Vec<Vec<f32>>>,
    read: Mutex<Vec<usize>>,
}

impl Recording {
    fn new(model: Model) -> Self {
        Self { model, logits: Mutex::default(), read: Mutex::default() }
    }
}

impl CausalLM for Recording {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }
    fn device(&self) -> &Device {
        self.model.device()
    }
    fn dtype(&self) -> DType {
        self.model.dtype()
    }
    fn sites(&self) -> &[Site] {
        self.model.sites()
    }
    fn projection(&self, index: usize) -> Option<&Projection> {
        self.model.projection(index)
    }
    fn embed(&self, ids: &[u32], shape: (usize, usize)) -> CandleResult<Tensor> {
        self.read.lock().unwrap().push(ids.len());
        self.model.embed(ids, shape)
    }
    fn block(&self, index: usize, x: &Tensor, pass: &mut Pass) -> CandleResult<Tensor> {
        self.model.block(index, x, pass)
    }
    fn norm(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.model.norm(x)
    }
    fn head(&self) -> &Weight {
        self.model.head()
    }
    fn logits(&self, hidden: &Tensor) -> CandleResult<Tensor> {
        let logits = self.model.logits(hidden)?;
        self.logits.lock().unwrap().push(logits.flatten_all()?.to_vec1()?);
        Ok(logits)
    }
}

#[test]
fn every_step_gives_the_logits_of_an_uncached_pass() -> Result<()> {
    for (name, chunk) in [("qwen2", 512), ("qwen2-window", 3), ("mistral", 4), ("qwen3", 2), ("llama3", 6)] {
        let (model, expected) = load(name)?;
        let model = Recording::new(model);
        let prompt = ids(&expected["input_ids"])?[..11].to_vec();
        let sampled = TokenOptions { strategy: SAMPLE, prefill_chunk: chunk, ..options(20) };
        let tokens = run(&model, &prompt, None, &sampled)?.tokens;
        let mut sequence = prompt.clone();
        let steps = model.logits.lock().unwrap().clone();
        assert_eq!(steps.len(), 20);
        for (step, (logits, token)) in steps.iter().zip(&tokens).enumerate() {
            let whole = uncached(&*model.model, &sequence, None)?;
            assert_eq!(logits.len(), whole.len(), "logits of one position only");
            for (a, b) in logits.iter().zip(&whole) {
                assert!((a - b).abs() <= 1e-4, "{name}, step {step}: {a} {b}");
            }
            // A top-k of 20: nothing else can be drawn.
            let rank = whole.iter().filter(|l| **l > whole[*token as usize]).count();
            assert!(rank < 20, "{name}, step {step}: token {token} is number {rank}");
            sequence.push(*token);
        }
        // The prompt once, in chunks; then one position per token, and none for the last.
        let mut expected: Vec<usize> = prompt.chunks(chunk).map(<[u32]>::len).collect();
        expected.extend([1; 19]);
        assert_eq!(*model.read.lock().unwrap(), expected);
    }
    Ok(())
}

/// Adds `x·A·B` at every site, A and B random.
struct LowRank(Vec<(Tensor, Tensor)>);

impl LowRank {
    fn new(model: &dyn CausalLM, seed: u64, scale: f64) -> Result<Self> {
        let matrices = model.sites().iter().map(|site| {
            let seed = seed + 2 * site.index as u64;
            let a = (random(seed, (site.in_features, 2), DType::F32) * scale)?;
            Ok((a, random(seed + 1, (2, site.out_features), DType::F32)))
        });
        Ok(Self(matrices.collect::<Result<_>>()?))
    }
}

impl Adapter for LowRank {
    fn project(&self, group: &[Projection], x: &Tensor) -> CandleResult<Vec<Tensor>> {
        let one = |p: &Projection| {
            let (a, b) = &self.0[p.site.index];
            p.forward(x)? + x.broadcast_matmul(a)?.broadcast_matmul(b)?
        };
        group.iter().map(one).collect()
    }
}

#[test]
fn an_adapter_is_an_argument() -> Result<()> {
    for name in ["qwen2", "llama-bias", "mistral", "qwen3"] {
        let (model, expected) = load(name)?;
        let (prompt, greedy) = (ids(&expected["prompt"])?, ids(&expected["greedy"])?);
        let adapters = [LowRank::new(&*model, 100, 0.05)?, LowRank::new(&*model, 900, 0.05)?];
        let mut runs = vec![greedy];
        for adapter in &adapters {
            let tokens =
                run(&*model, &prompt, Some(adapter), &TokenOptions { prefill_chunk: 4, ..options(24) })?.tokens;
            let mut sequence = prompt.clone();
            for token in &tokens {
                assert_eq!(*token, argmax(&uncached(&*model, &sequence, Some(adapter))?), "{name}");
                sequence.push(*token);
            }
            runs.push(tokens);
        }
        assert!(runs[0] != runs[1] && runs[0] != runs[2] && runs[1] != runs[2], "{name}: {runs:?}");
        // And without one the model is as before.
        assert_eq!(run(&*model, &prompt, None, &options(24))?.tokens, runs[0]);
    }
    Ok(())
}

#[test]
fn a_seed_names_its_tokens_wherever_the_prompt_ends() -> Result<()> {
    let (model, expected) = load("qwen2")?;
    let prompt = ids(&expected["prompt"])?;
    let sampled = |seed| TokenOptions { strategy: SAMPLE, seed, ..options(30) };
    let first = run(&*model, &prompt, None, &sampled(1))?.tokens;
    assert_eq!(run(&*model, &prompt, None, &sampled(1))?.tokens, first);
    assert_ne!(run(&*model, &prompt, None, &sampled(2))?.tokens, first);
    // The rest of the sequence, from a longer prompt, and from the cache that the first part left.
    let longer = [&prompt[..], &first[..10]].concat();
    let rest = TokenOptions { max_tokens: 20, ..sampled(1) };
    assert_eq!(run(&*model, &longer, None, &rest)?.tokens, first[10..]);
    let mut cache = KVCache::new(&*model, KVCacheConfig::default())?;
    let part = TokenOptions { max_tokens: 10, ..sampled(1) };
    generate_tokens(&*model, &prompt, &mut cache, None, &part, |_, _| true)?;
    assert_eq!(cache.len(), prompt.len() + 9);
    let run = generate_tokens(&*model, &first[9..10], &mut cache, None, &rest, |_, _| true)?;
    assert_eq!(run.tokens, first[10..]);
    Ok(())
}

/// Only the seed and the place in the sequence choose, so that a run's tokens are the first ones of runs from later on.
#[test]
fn each_position_draws_anew() -> Result<()> {
    const PROMPT: [u32; 23] = [1; 23];
    let strategy = SamplingStrategy::Sample { temperature: 1.0, top_k: None, top_p: None, min_p: None };
    let drawn = |seed, position: usize, max_tokens| -> Result<Vec<u32>> {
        let flat = Scripted::new(20, &[Scripted::FLAT; 20]);
        Ok(run(&flat, &PROMPT[..position], None, &TokenOptions { strategy, seed, ..options(max_tokens) })?.tokens)
    };
    for seed in [0, 7] {
        let tokens = drawn(seed, 3, 20)?;
        let fresh = (3..23).map(|position| Ok(drawn(seed, position, 1)?[0])).collect::<Result<Vec<_>>>()?;
        assert_eq!(tokens, fresh);
        // Of 20 draws among 20 tokens about 13 differ.
        let distinct = (0..20).filter(|token| tokens.contains(token)).count();
        assert!((9..=17).contains(&distinct), "{tokens:?}");
    }
    assert_ne!(drawn(0, 3, 20)?, drawn(7, 3, 20)?);
    Ok(())
}

#[test]
fn the_context_ends_the_text() -> Result<()> {
    let (model, expected) = load("qwen2")?;
    let prompt = ids(&expected["prompt"])?;
    let context = model.config().max_position_embeddings;
    let full = run(&*model, &prompt, None, &options(100_000))?;
    // The last token is not read again.
    assert_eq!((full.tokens.len(), full.finish), (context - prompt.len() + 1, FinishReason::Length));
    let sequence = [prompt, full.tokens].concat();
    assert_eq!(sequence[context], argmax(&uncached(&*model, &sequence[..context], None)?));

    assert_eq!(run(&*model, &sequence[..context], None, &options(9))?.tokens, sequence[context..]);
    let error = run(&*model, &sequence, None, &options(9)).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 65 tokens, expected at most 64");
    Ok(())
}

/// A cache that holds less than the context is no error in the middle of a text: it ends the text.
#[test]
fn a_full_cache_ends_the_text() -> Result<()> {
    let (model, expected) = load("qwen2")?;
    let (prompt, greedy) = (ids(&expected["prompt"])?, ids(&expected["greedy"])?);
    let max_length = prompt.len() + 4;
    let mut cache = KVCache::new(&*model, KVCacheConfig { max_length, ..KVCacheConfig::default() })?;
    let mut seen = vec![];
    let full = generate_tokens(&*model, &prompt, &mut cache, None, &options(24), |id, finish| {
        seen.push((id, finish));
        true
    })?;
    // The last token is not read again.
    assert_eq!((&full.tokens[..], full.finish), (&greedy[..5], FinishReason::Length));
    assert_eq!(seen.last(), Some(&(greedy[4], Some(FinishReason::Length))));
    assert_eq!(cache.len(), max_length);

    // What is in it already counts, and nothing is read of what does not fit.
    let error = generate_tokens(&*model, &prompt[..1], &mut cache, None, &options(1), |_, _| true).unwrap_err();
    assert_eq!(error.to_string(), format!("the prompt has {} tokens, expected at most {max_length}", max_length + 1));
    assert_eq!(cache.len(), max_length);
    cache.truncate(prompt.len());
    let rest = generate_tokens(&*model, &greedy[..2], &mut cache, None, &options(24), |_, _| true)?;
    assert_eq!(rest.tokens, greedy[2..5]);
    Ok(())
}

#[test]
fn any_token_of_the_list_ends_the_text() -> Result<()> {
    let model = Scripted::new(50, &[9, 8, 7, 6, 5]);
    let eos = |ids: &[u32]| TokenOptions { eos_token_ids: ids.to_vec(), ..options(5) };
    let check = |eos_ids: &[u32], tokens: &[u32], finish| -> Result<()> {
        let mut seen = vec![];
        let mut cache = KVCache::new(&model, KVCacheConfig::default())?;
        model.rewind();
        let run = generate_tokens(&model, &[1, 2], &mut cache, None, &eos(eos_ids), |id, finish| {
            seen.push((id, finish));
            true
        })?;
        assert_eq!((&run.tokens[..], run.finish), (tokens, finish));
        // Every token comes once, the last with the reason.
        let reasons = (1..tokens.len()).map(|_| None).chain([Some(finish)]);
        assert_eq!(seen, tokens.iter().copied().zip(reasons).collect::<Vec<_>>());
        Ok(())
    };
    check(&[], &[9, 8, 7, 6, 5], FinishReason::Length)?;
    check(&[7], &[9, 8, 7], FinishReason::Stop)?;
    check(&[40, 8, 7], &[9, 8], FinishReason::Stop)?;
    check(&[9], &[9], FinishReason::Stop)?;
    // Ended by the model, though it is the last one allowed too.
    check(&[5], &[9, 8, 7, 6, 5], FinishReason::Stop)
}

#[test]
fn the_caller_may_want_no_more() -> Result<()> {
    let model = Scripted::new(50, &[9, 8, 7, 6, 5]);
    let mut cache = KVCache::new(&model, KVCacheConfig::default())?;
    let run = generate_tokens(&model, &[1], &mut cache, None, &options(5), |id, _| id != 7)?;
    assert_eq!((run.tokens, run.finish), (vec![9, 8, 7], FinishReason::Cancelled));
    Ok(())
}

#[test]
fn what_cannot_be_generated_from_is_refused_before_any_pass() {
    let model = Scripted::new(50, &[]);
    let check = |prompt: &[u32], options: &TokenOptions, message: &str| {
        let error = run(&model, prompt, None, options).unwrap_err();
        assert_eq!(error.to_string(), message);
        error.downcast_ref::<Error>().and_then(Error::hint)
    };
    assert!(check(&[], &options(1), "the prompt is empty, and no token that begins a text is known").is_some());
    let message = "the prompt has token id 50, expected ids below the model's vocabulary of 50";
    assert!(check(&[3, 50, 51], &options(1), message).unwrap().contains("same directory"));
    check(&[1], &options(0), "`max_tokens` is 0, expected at least 1");
    check(&[1], &TokenOptions { prefill_chunk: 0, ..options(1) }, "`prefill_chunk` is 0, expected at least 1");
    for (penalty, shown) in [(0.0, "0"), (-1.5, "-1.5"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let message = format!("`repetition_penalty` is {shown}, expected a number above 0; 1 is no penalty");
        check(&[1], &TokenOptions { repetition_penalty: penalty, ..options(1) }, &message);
    }
    let hot = SamplingStrategy::Sample { temperature: -1.0, top_k: None, top_p: None, min_p: None };
    let message = "`temperature` is -1, expected a number above 0, or 0 for the likeliest token";
    check(&[1], &TokenOptions { strategy: hot, ..options(1) }, message);
    assert_eq!(model.passes(), 0);
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let model = Scripted::new(50, &[3, Scripted::NAN]);
    let error = run(&model, &[1], None, &options(5)).unwrap_err();
    assert!(error.to_string().starts_with("the logits are not finite: that of token 0 is NaN"), "{error}");
}
