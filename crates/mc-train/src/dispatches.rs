//! Ceilings for what a GPU is asked to do: dispatches of one decode token and of one training step.
//!
//! Models of two and of three blocks run on the CPU as a GPU would run them, in half precision on the composed paths,
//! and their dispatches are counted; the difference is a block. `f16` stands for `bf16`, for which candle's product on
//! the CPU makes buffers of its own.

use crate::{AdamW, AdamWConfig, Batch, Trainer, TrainingConfig, trainer::read_at_once};
use candle_core::{DType, Device, Result, Tensor};
use mc_backend::{Weight, in_pool};
use mc_checkpoint::WeightSource;
use mc_lora::{LoRAAdapter, LoRAAdapterConfig};
use mc_models::{Adapter, CausalLM, Decoder, KVCache, KVCacheConfig, ModelConfig, Pass};
use mc_testkit::{CountingAllocator, count_dispatches, random};
use serde_json::json;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Every tensor that is asked for, at random.
struct Random;

impl WeightSource for Random {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }

    fn dtype(&self, _: &str) -> Option<DType> {
        None
    }

    fn weight(
        &self,
        name: &str,
        shape: (usize, usize),
        device: &Device,
        _: Option<DType>,
    ) -> mc_checkpoint::Result<Weight> {
        Ok(Weight::from_tensor(&self.tensor(name, &[shape.0, shape.1], device, DType::F32)?)?)
    }

    fn tensor(&self, name: &str, shape: &[usize], _: &Device, dtype: DType) -> mc_checkpoint::Result<Tensor> {
        let seed = name.bytes().fold(0, |seed, byte| 31 * seed % 65_521 + u64::from(byte));
        Ok((random(seed, shape, dtype) * 0.2)?)
    }
}

/// A Qwen2 as a GPU would hold it.
fn model(blocks: usize) -> Decoder {
    let config = json!({"model_type": "qwen2", "vocab_size": 90, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": blocks, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": true});
    let config = ModelConfig::from_json("config.json", &config).unwrap();
    Decoder::load(config, &Random, &Device::Cpu, None).unwrap().plain(DType::F16).unwrap()
}

/// Dispatches that are there once, and those of each block.
#[derive(Debug, PartialEq, Eq)]
struct Dispatches {
    once: usize,
    per_block: usize,
}

/// What `count` says of models with so many blocks, as far as it depends on them.
fn dispatches(count: impl Fn(usize) -> Result<usize> + Sync) -> Dispatches {
    // On a thread of the pool the passes stay on it, and it is what the counter looks at.
    let [two, three, four] = [2, 3, 4].map(|blocks| in_pool(|| count(blocks)).unwrap());
    let per_block = three - two;
    assert_eq!(four - three, per_block, "every block is alike");
    Dispatches { once: two - 2 * per_block, per_block }
}

/// What the cache copies keys and values in place with, which is not seen.
const CACHED: usize = 2;

/// One token after a prompt of 5, with an adapter at every projection if `adapted`.
fn decode(blocks: usize, adapted: bool) -> Result<usize> {
    let model = model(blocks);
    let frozen = if adapted { Some(adapter(&model).freeze(&model).unwrap()) } else { None };
    let mut cache = KVCache::new(&model, KVCacheConfig::default())?;
    let mut run = |ids: &[u32]| {
        let adapter = frozen.as_ref().map(|frozen| frozen as &dyn Adapter);
        let mut pass = Pass { cache: Some(&mut cache), adapter, ..Pass::default() };
        let hidden = model.hidden(ids, (1, ids.len()), &mut pass)?;
        // As the generator reads them.
        model.logits(&hidden.narrow(1, ids.len() - 1, 1)?)?.to_dtype(DType::F32)
    };
    run(&[1, 2, 3, 4, 5])?;
    run(&[6])?;
    let (logits, dispatches) = count_dispatches(|| run(&[7]));
    assert!(logits?.sqr()?.sum_all()?.to_scalar::<f32>()?.is_finite());
    Ok(dispatches + blocks * CACHED)
}

fn adapter(model: &dyn CausalLM) -> LoRAAdapter {
    LoRAAdapter::new(model, LoRAAdapterConfig { rank: 4, ..Default::default() }).unwrap()
}

/// A step on two rows of 7 tokens, with an adapter at every projection.
fn train(blocks: usize) -> Result<usize> {
    let model = Arc::new(model(blocks));
    let adapter = adapter(&*model);
    let variables = adapter.variables().to_vec();
    let mut optimizer = AdamW::new(&variables, 1e-3, AdamWConfig::default()).unwrap();
    let mut trainer = Trainer::new(model, adapter, TrainingConfig::default()).unwrap();
    let positions: Vec<u32> = (0..14).filter(|i| i % 3 > 0).collect();
    let targets = positions.iter().map(|i| i * 5 % 90).collect();
    let batch = Batch { ids: (20..34).collect(), shape: (2, 7), positions, targets, tokens: 14 };
    // The trainer's own passes; its optimizer would take the CPU's way.
    let mut step = || {
        let (loss, gradient) = trainer.gradient(std::slice::from_ref(&batch)).unwrap();
        let read = read_at_once(&loss, &gradient)?;
        optimizer.step_composed(&gradient, 1.0).unwrap();
        Ok::<_, candle_core::Error>(read)
    };
    step()?;
    let (read, dispatches) = count_dispatches(&mut step);
    let (loss, norm) = read?;
    assert!(loss.is_finite() && norm > 0.0, "{loss} {norm}");
    // Not seen: each variable's part of the flat gradient, but for the first, and each variable that is set.
    Ok(dispatches + 2 * variables.len() - 1)
}

/// When one falls, its number here falls with it; none may rise.
#[test]
fn ceilings() {
    let check = |what, count: fn(usize) -> Result<usize>, ceiling| {
        assert_eq!(dispatches(count), ceiling, "{what}: a ceiling may fall, and is then lowered here, and never rises");
    };
    check("a token", |blocks| decode(blocks, false), Dispatches { once: 7, per_block: 34 });
    check("a token with an adapter", |blocks| decode(blocks, true), Dispatches { once: 7, per_block: 62 });
    check("a training step", train, Dispatches { once: 44, per_block: 291 });
}
