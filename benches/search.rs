//! Search over 1,000,000 vectors of 384 numbers, in each form that an index can have.
//!
//! Run with: `cargo bench -p mc-benches --bench search`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mc_benches::noise;
use metal_candle::{
    backend::search::{Vectors, nearest, to_codes},
    candle_core::{DType, Result},
};

const ROWS: usize = 1_000_000;
const WIDTH: usize = 384;
const BEST: usize = 10;

fn forms(c: &mut Criterion) -> Result<()> {
    let tensor = noise(&[ROWS, WIDTH])?;
    let query = noise(&[WIDTH])?.to_vec1::<f32>()?;
    let mut group = c.benchmark_group("10 best of 1,000,000 × 384");
    group.sample_size(20);
    let mut bench = |name: &str, bytes: usize, vectors: Vectors| {
        group.throughput(Throughput::Bytes((ROWS * bytes) as u64));
        group.bench_function(name, |bench| bench.iter(|| nearest(vectors, WIDTH, &query, BEST)));
    };
    let halves = tensor.to_dtype(DType::F16)?.flatten_all()?.to_vec1()?;
    let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
    drop(tensor);
    bench("f32", 4 * WIDTH, Vectors::F32(&numbers));
    bench("f16", 2 * WIDTH, Vectors::F16(&halves));
    drop(halves);
    let mut codes = vec![0; numbers.len()];
    let rows = numbers.chunks_exact(WIDTH).zip(codes.chunks_exact_mut(WIDTH));
    let scales: Vec<f32> = rows.map(|(x, codes)| to_codes(x, codes)).collect();
    bench("int8", WIDTH, Vectors::Int8 { codes: &codes, scales: &scales });
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    if let Err(error) = forms(c) {
        panic!("{error}");
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
