//! Tests of mc-train: recorded runs, whole runs, single steps, faults in numbers, data.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod data;
mod golden;
mod not_finite;
mod runs;
mod steps;

use candle_core::{DType, Tensor};
use mc_backend::{Purpose, Stream};
use mc_lora::{LoRAAdapter, LoRAAdapterConfig};
use mc_models::{Model, ModelLoader};
use mc_train::{Dataset, Example, LRScheduler, Trainer, TrainingConfig};

fn model(name: &str) -> Model {
    ModelLoader::new().with_dtype(DType::F32).load(mc_testkit::golden::dir(&format!("models/{name}"))).unwrap()
}

fn adapter_config() -> LoRAAdapterConfig {
    LoRAAdapterConfig { rank: 3, dropout: 0.3, seed: 5, ..Default::default() }
}

/// Examples of random tokens and lengths, their first tokens a prompt.
fn random_data(seed: u64, count: usize) -> Dataset {
    answered(seed, count, 0)
}

/// The prompts of [`random_data`] with other answers, whose tokens are further on by so much: who learns one kind does worse on the other.
fn answered(seed: u64, count: usize, by: u32) -> Dataset {
    let mut stream = Stream::new(seed, Purpose::Sample, 0);
    let mut example = || {
        let length = 4 + stream.below(7) as usize;
        let ids = (0..length).map(|i| (stream.below(90) + if i >= 2 { by } else { 0 }) % 90).collect();
        Example::new(ids, (0..length).map(|i| i >= 2).collect())
    };
    Dataset::from_examples((0..count).map(|_| example()))
}

/// Seven examples in batches of two, two batches to a step: epochs of two steps, the last of one whole and one half batch.
fn config(steps: u64) -> TrainingConfig {
    TrainingConfig {
        max_steps: Some(steps),
        batch_size: 2,
        grad_accum: 2,
        lr_scheduler: LRScheduler::warmup_cosine(3, 10, 1e-2, 1e-4),
        seed: 11,
        eval_every: Some(2),
        ..Default::default()
    }
}

fn trainer(config: TrainingConfig) -> Trainer {
    let model = model("qwen2");
    let adapter = LoRAAdapter::new(&*model, adapter_config()).unwrap();
    Trainer::new(model, adapter, config).unwrap()
}

fn values(trainer: &Trainer) -> Vec<Tensor> {
    trainer.lora_adapter().variables().iter().map(|(_, var)| var.as_detached_tensor().copy().unwrap()).collect()
}
