//! Every architecture against transformers: logits, loss, greedy tokens, padded batches (golden files of mc-testkit).
//!
//! The reference is f32 itself; its own distance from f64 is up to 1.1e-5, hence an absolute tolerance of 1e-4 on
//! logits of size 10.

use candle_core::{DType, Device, IndexOp, Tensor};
use mc_backend::{computation::Products, ops};
use mc_checkpoint::ModelDir;
use mc_models::{KVCache, KVCacheConfig, Model, ModelLoader, Pass};
use mc_testkit::{Tolerance, assert_close, golden};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Every golden model.
fn models() -> Vec<String> {
    golden::cases("models", 15)
}

fn load(name: &str) -> Result<(Model, HashMap<String, Tensor>)> {
    let dir = golden::dir(&format!("models/{name}"));
    let model = ModelLoader::new().with_dtype(DType::F32).load_dir(&ModelDir::open(&dir)?)?;
    Ok((model, golden::tensors(dir.join("expected.safetensors"))))
}

fn ids(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?)
}

/// The padded batch of a model.
struct Padded {
    shape: (usize, usize),
    ids: Vec<u32>,
    /// How much of each row is padding.
    left: Vec<usize>,
}

fn padded(expected: &HashMap<String, Tensor>) -> Result<Padded> {
    let mask = expected["attention_mask"].to_dtype(DType::U32)?.to_vec2::<u32>()?;
    let left: Vec<usize> = mask.iter().map(|row| row.iter().take_while(|m| **m == 0).count()).collect();
    assert!(left.iter().any(|l| *l > 0), "there is no padding");
    Ok(Padded { shape: expected["padded_ids"].dims2()?, ids: ids(&expected["padded_ids"])?, left })
}

#[test]
fn logits_and_loss() -> Result<()> {
    for name in &models() {
        let (model, expected) = load(name)?;
        let input = &expected["input_ids"];
        let (b, t) = input.dims2()?;
        let ids = ids(input)?;
        let hidden = model.hidden(&ids, (b, t), &mut Pass::default())?;
        assert_close(name, &model.logits(&hidden)?, &expected["logits"], Tolerance::absolute(1e-4));

        let (mut positions, mut targets) = (vec![], vec![]);
        for i in (0..b * t).filter(|i| (i + 1) % t != 0) {
            positions.push(i as u32);
            targets.push(ids[i + 1]);
        }
        let sum = ops::linear_cross_entropy(&hidden, model.head(), &positions, &targets)?;
        let loss = (sum / targets.len() as f64)?;
        assert_close(&format!("{name}: loss"), &loss, &expected["loss"].reshape(())?, Tolerance::relative(1e-5));
    }
    Ok(())
}

#[test]
fn greedy_tokens_with_and_without_a_cache() -> Result<()> {
    for name in &models() {
        let (model, expected) = load(name)?;
        let (prompt, greedy) = (ids(&expected["prompt"])?, ids(&expected["greedy"])?);
        assert_eq!((prompt.len(), greedy.len()), (7, 24), "{name}");
        // A capacity below the prompt makes the cache grow on the way.
        let config = KVCacheConfig { initial_capacity: 3, ..KVCacheConfig::default() };
        let mut cache = KVCache::new(&*model, config)?;
        let mut sequence = prompt.clone();
        let mut new = prompt.clone();
        for (step, token) in greedy.iter().enumerate() {
            let mut pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let hidden = model.hidden(&new, (1, new.len()), &mut pass)?;
            let logits = model.logits(&hidden.i((0, new.len() - 1))?.unsqueeze(0)?)?.squeeze(0)?;
            let whole = model.hidden(&sequence, (1, sequence.len()), &mut Pass::default())?;
            let uncached = model.logits(&whole.i((0, sequence.len() - 1))?.unsqueeze(0)?)?.squeeze(0)?;
            assert_close(&format!("{name}: token {step}"), &logits, &uncached, Tolerance::absolute(1e-4));
            let next = logits.argmax(0)?.to_scalar::<u32>()?;
            assert_eq!(next, *token, "{name}: token {step}");
            sequence.push(next);
            new = vec![next];
        }
        assert_eq!(cache.len(), 7 + 24 - 1);
    }
    Ok(())
}

/// What a cache in f16 leaves out is less than what products in bf16 do; where nothing is rounded, the cache rounds nothing.
#[test]
fn a_cache_is_as_near_to_transformers_as_the_whole_pass() -> Result<()> {
    let (exact, expected) = load("qwen2-bf16")?;
    let model = ModelLoader::new().load_dir(&ModelDir::open(golden::dir("models/qwen2-bf16"))?)?;
    let sequence: Vec<u32> = [ids(&expected["prompt"])?, ids(&expected["greedy"])?].concat();
    let logits = |model: &Model, tokens: &[u32], cache: Option<&mut KVCache>| -> Result<Tensor> {
        let hidden = model.hidden(tokens, (1, tokens.len()), &mut Pass { cache, ..Pass::default() })?;
        Ok(model.logits(&hidden.squeeze(0)?)?)
    };
    let reference = logits(&exact, &sequence, None)?;
    let mut cache = KVCache::new(&*model, KVCacheConfig::default())?;
    let prompt = logits(&model, &sequence[..16], Some(&mut cache))?;
    assert_eq!(prompt.to_vec2::<f32>()?, logits(&model, &sequence[..16], None)?.to_vec2::<f32>()?);
    let answer = sequence[16..].iter().map(|token| logits(&model, &[*token], Some(&mut cache)));
    let answer = Tensor::cat(&answer.collect::<Result<Vec<_>>>()?, 0)?;
    let reference = reference.narrow(0, 16, sequence.len() - 16)?;
    let error = |found: &Tensor| -> Result<f32> { Ok((found - &reference)?.abs()?.max_all()?.to_scalar()?) };
    let whole = logits(&model, &sequence, None)?.narrow(0, 16, sequence.len() - 16)?;
    let (whole, cached) = (error(&whole)?, error(&answer)?);
    assert!(cached <= whole + 2e-5, "{cached} with a cache, {whole} without");
    assert_eq!(whole > 1e-4, model.computation().products == Products::BF16, "{whole}");
    Ok(())
}

#[test]
fn a_padded_row_equals_transformers_and_the_row_alone() -> Result<()> {
    for name in &models() {
        let (model, expected) = load(name)?;
        let Padded { shape: (b, t), ids: all, left } = padded(&expected)?;
        let mut pass = Pass { left_padding: Some(&left), ..Pass::default() };
        let hidden = model.hidden(&all, (b, t), &mut pass)?;
        let last = model.logits(&hidden.i((.., t - 1))?)?;
        assert_close(name, &last, &expected["padded_last_logits"], Tolerance::absolute(1e-4));
        for (row, pad) in left.iter().enumerate() {
            let alone = &all[row * t + pad..(row + 1) * t];
            let hidden = model.hidden(alone, (1, alone.len()), &mut Pass::default())?;
            let logits = model.logits(&hidden.i((.., alone.len() - 1))?)?;
            assert_close(&format!("{name}: row {row}"), &last.i(row..=row)?, &logits, Tolerance::absolute(1e-5));
        }
    }
    Ok(())
}

#[test]
fn a_padded_batch_decodes_with_a_cache_as_each_row_alone() -> Result<()> {
    for name in &models() {
        let (model, expected) = load(name)?;
        let Padded { shape: (b, t), ids: all, left } = padded(&expected)?;
        let mut cache = KVCache::new(&*model, KVCacheConfig { batch_size: b, ..KVCacheConfig::default() })?;
        let mut run = |ids: &[u32], n: usize| -> Result<Tensor> {
            let mut pass = Pass { cache: Some(&mut cache), left_padding: Some(&left), ..Pass::default() };
            let hidden = model.hidden(ids, (b, n), &mut pass)?;
            Ok(model.logits(&hidden.i((.., n - 1))?)?)
        };
        run(&all, t)?;
        let next = [5u32, 17, 31];
        let batched = run(&next, 1)?;
        for (row, pad) in left.iter().enumerate() {
            let mut alone = all[row * t + pad..(row + 1) * t].to_vec();
            alone.push(next[row]);
            let hidden = model.hidden(&alone, (1, alone.len()), &mut Pass::default())?;
            let logits = model.logits(&hidden.i((.., alone.len() - 1))?)?;
            // One query reads its keys in another order than many do.
            assert_close(&format!("{name}: row {row}"), &batched.i(row..=row)?, &logits, Tolerance::absolute(2e-5));
        }
    }
    Ok(())
}

#[test]
fn the_device_of_a_model_is_where_it_was_loaded() -> Result<()> {
    let (model, _) = load("qwen2")?;
    assert!(matches!(model.device(), Device::Cpu));
    assert_eq!(model.dtype(), DType::F32);
    Ok(())
}
