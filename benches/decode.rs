//! Prefill and decode of a small random model: two blocks of SmolLM2-135M's widths.
//!
//! Run with: `cargo bench -p mc-benches --bench decode`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mc_benches::{model, tokens};
use metal_candle::{
    inference::{KVCache, KVCacheConfig, TokenOptions, generate_tokens},
    models::CausalLM,
};
use std::error::Error;

fn generation(c: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let model = model()?;
    let mut group = c.benchmark_group("generation, 2 blocks");
    for (name, prompt, generate) in [("prefill of 512 tokens", 512, 1), ("16 + 64 tokens", 16, 64)] {
        let prompt = tokens(0, prompt);
        once(&*model, &prompt, generate)?;
        group.throughput(Throughput::Elements((prompt.len() + generate - 1) as u64));
        group.bench_function(name, |bench| bench.iter(|| once(&*model, &prompt, generate)));
    }
    group.finish();
    Ok(())
}

fn once(model: &dyn CausalLM, prompt: &[u32], max_tokens: usize) -> Result<Vec<u32>, Box<dyn Error>> {
    let mut cache = KVCache::new(model, KVCacheConfig::default())?;
    let options = TokenOptions { max_tokens, ..TokenOptions::default() };
    Ok(generate_tokens(model, prompt, &mut cache, None, &options, |_, _| true)?.tokens)
}

fn all(c: &mut Criterion) {
    if let Err(error) = generation(c) {
        panic!("{error}");
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = all }
criterion_main!(benches);
