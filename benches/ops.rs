//! The ops of one training step of SmolLM2-135M on 4 × 256 tokens, forward and backward, and of one decoded token.
//!
//! Run with: `cargo bench -p mc-benches --bench ops`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mc_benches::{SmolLM2, noise, weight};
use metal_candle::{
    backend::ops::{self, Attention, Lora},
    candle_core::{Result, Tensor, Var},
};

const TOKENS: usize = 4 * 256;

/// Forward, and backward into every variable.
fn both(f: impl Fn() -> Result<Tensor>) -> Result<()> {
    f()?.sum_all()?.backward().map(drop)
}

fn projection(c: &mut Criterion) -> Result<()> {
    let (inner, outer) = (SmolLM2::HIDDEN, SmolLM2::INTERMEDIATE);
    let w = weight(outer, inner)?;
    let mut group = c.benchmark_group("projection 576 → 1536, bf16 weight");
    let x = Var::from_tensor(&noise(&[TOKENS, inner])?)?;
    let (a, b) = (Var::from_tensor(&noise(&[8, inner])?)?, Var::from_tensor(&noise(&[outer, 8])?)?);
    group.throughput(Throughput::Elements((4 * TOKENS * inner * outer) as u64));
    group.bench_function("linear, forward + backward", |bench| bench.iter(|| both(|| ops::linear(&x, &w, None))));
    let lora = Lora { a: &a, b: &b, scale: 2.0, dropout: None };
    group.bench_function("LoRA rank 8, forward + backward", |bench| {
        bench.iter(|| both(|| ops::lora_linear(&x, &w, None, &lora)));
    });
    let one = noise(&[1, inner])?;
    group.throughput(Throughput::Bytes((2 * inner * outer) as u64));
    group.bench_function("linear, one token", |bench| bench.iter(|| ops::linear(&one, &w, None)));
    group.finish();
    Ok(())
}

fn attention(c: &mut Criterion) -> Result<()> {
    let (heads, kv, d) = SmolLM2::HEADS;
    let how = Attention { causal: true, ..Attention::default() };
    let var = |t: usize, h: usize| Var::from_tensor(&noise(&[4, t, h, d])?);
    let (q, k, v) = (var(256, heads)?, var(256, kv)?, var(256, kv)?);
    c.bench_function("attention 4 × 256, forward + backward", |bench| {
        bench.iter(|| both(|| ops::attention(&q, &k, &v, &how)));
    });
    let (q, k, v) = (noise(&[1, 1, heads, d])?, noise(&[1, 1024, kv, d])?, noise(&[1, 1024, kv, d])?);
    c.bench_function("attention, one query over 1024 keys", |bench| bench.iter(|| ops::attention(&q, &k, &v, &how)));
    Ok(())
}

fn loss(c: &mut Criterion) -> Result<()> {
    let head = weight(SmolLM2::VOCABULARY, SmolLM2::HIDDEN)?;
    let hidden = Var::from_tensor(&noise(&[256, SmolLM2::HIDDEN])?)?;
    let positions: Vec<u32> = (0..256).collect();
    c.bench_function("head + cross-entropy of 256 tokens, forward + backward", |bench| {
        bench.iter(|| both(|| ops::linear_cross_entropy(&hidden, &head, &positions, &positions)));
    });
    Ok(())
}

fn all(c: &mut Criterion) {
    for subject in [projection, attention, loss] {
        if let Err(error) = subject(c) {
            panic!("{error}");
        }
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = all }
criterion_main!(benches);
