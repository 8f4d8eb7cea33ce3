//! Search over 1,000,000 vectors of 384 numbers, in each form that an index can have.
//!
//! Run with: `cargo bench -p mc-benches --bench search`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mc_benches::noise;
use metal_candle::{
    backend::search::{Vectors, nearest, to_codes},
    candle_core::{DType, Error, Result},
    embeddings::{
        self,
        index::{IndexConfig, VectorDtype, VectorIndex},
    },
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

/// The same from a directory, as `metal-candle search` does it: bytes first, the best of them scored again.
fn index(c: &mut Criterion) -> Result<()> {
    let wrong = |e: embeddings::index::Error| Error::Msg(e.to_string());
    let query = noise(&[WIDTH])?.to_vec1::<f32>()?;
    let mut group = c.benchmark_group("10 best of an index of 1,000,000 × 384");
    group.sample_size(20);
    for vectors in [VectorDtype::F16, VectorDtype::Int8] {
        let dir = tempfile::tempdir()?;
        let config = IndexConfig { dimensions: WIDTH, vectors, ..IndexConfig::default() };
        let mut index = VectorIndex::create(dir.path().join("index"), config).map_err(wrong)?;
        let rows = noise(&[ROWS, WIDTH])?.flatten_all()?.to_vec1::<f32>()?;
        index.append(&rows, &[]).map_err(wrong)?;
        drop(rows);
        group.bench_function(vectors.to_string(), |bench| bench.iter(|| index.search(&query, BEST)));
        group.bench_function(format!("{vectors}, opened anew"), |bench| {
            bench.iter(|| VectorIndex::open(index.dir()).and_then(|index| index.search(&query, BEST)));
        });
    }
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    for subject in [forms, index] {
        if let Err(error) = subject(c) {
            panic!("{error}");
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
