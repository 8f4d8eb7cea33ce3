//! A training step on a small random model: two blocks of SmolLM2-135M's widths, rank 8 on all projections.
//!
//! Run with: `cargo bench -p mc-benches --bench step`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mc_benches::{model, tokens};
use metal_candle::{
    lora::{LoRAAdapter, LoRAAdapterConfig},
    training::{Batch, Example, Trainer, TrainingConfig},
};
use std::error::Error;

const ROWS: usize = 4;
const SEQ: usize = 256;

fn steps(c: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let model = model()?;
    // The last token of a row is only predicted.
    let rows: Vec<_> = (0..ROWS as u64).map(|row| Example::new(tokens(row, SEQ + 1), vec![true; SEQ + 1])).collect();
    let batch = [Batch::new(&rows)];
    let mut group = c.benchmark_group("training step, 2 blocks, 4 × 256 tokens");
    group.throughput(Throughput::Elements((ROWS * SEQ) as u64));
    for (name, grad_checkpoint) in [("whole graph", false), ("gradient checkpointing", true)] {
        let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig::default())?;
        let config = TrainingConfig { grad_checkpoint, ..TrainingConfig::default() };
        let mut trainer = Trainer::new(model.clone(), adapter, config)?;
        trainer.step(&batch)?;
        group.bench_function(name, |bench| bench.iter(|| trainer.step(&batch)));
    }
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    if let Err(error) = steps(c) {
        panic!("{error}");
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = all }
criterion_main!(benches);
