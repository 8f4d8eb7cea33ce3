//! How near each op comes to what the machine can do: arithmetic and memory measured first, then every op beside them.
//! Prints the table of docs/benchmarks.md. Widths are SmolLM2-135M's, 4 × 256 tokens, bf16 matrices.
//!
//! Run with: `cargo xtask bench roofline`

#![expect(clippy::print_stdout, reason = "a program says what it found")]

use mc_benches::{SmolLM2, noise, weight};
use metal_candle::{
    backend::{
        Arithmetic, Weight, in_pool,
        ops::{self, Attention, FeedForward, Linear, Lora, Rope, SelfAttention},
    },
    candle_core::{DType, Device, Result, Tensor, Var},
};
use std::{hint::black_box, sync::Barrier, time::Instant};

const BATCH: usize = 4;
const LENGTH: usize = 256;
const TOKENS: usize = BATCH * LENGTH;
const RANK: usize = 8;

/// As the binary has it: the system's allocator would clear the pages of every output.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    in_pool(all)
}

fn all() -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let limits = [peak(threads, false), peak(threads, true), reading(threads)];
    let [f32_limit, bf16_limit, memory_limit] = limits;
    println!(
        "Limits of {threads} threads: {f32_limit:.0} GFLOP/s in f32, {bf16_limit:.0} in bf16, {memory_limit:.1} GB/s.\n"
    );
    println!("| op | arithmetic | work | achieved | of the limit |\n|---|---|---|---|---|");
    // Summing an output and giving it a gradient is candle's part.
    let output = Var::from_tensor(&noise(&[TOKENS, SmolLM2::HIDDEN])?)?;
    let of_candle = seconds(&|| both(&output))?;
    let arithmetic = |name: &str, how: Arithmetic, flop: f64, f: &dyn Fn() -> Result<()>| {
        let limit = if how == Arithmetic::BF16 { bf16_limit } else { f32_limit };
        // The loss is one number, and needs no more.
        let sums = name.ends_with("backward") && !name.contains("cross_entropy");
        let speed = flop / (seconds(f)? - if sums { of_candle } else { 0.0 }) / 1e9;
        println!("| {name} | {how:?} | {:.2} GFLOP | {speed:.0} GFLOP/s | {:.0}% |", flop / 1e9, 100.0 * speed / limit);
        Ok::<_, metal_candle::candle_core::Error>(())
    };
    // Where the CPU has no products of bf16, both would be the same.
    let has_bf16 = weight(1, 1)?.with_arithmetic(Arithmetic::BF16).arithmetic() == Arithmetic::BF16;
    for how in [Arithmetic::BF16, Arithmetic::F32].into_iter().skip(usize::from(!has_bf16)) {
        products(&|name, flop, f| arithmetic(name, how, flop, f), how)?;
    }
    reads(&|name, bytes, f| {
        let speed = bytes / seconds(f)? / 1e9;
        println!("| {name} | F32 | {:.1} MB | {speed:.1} GB/s | {:.0}% |", bytes / 1e6, 100.0 * speed / memory_limit);
        Ok(())
    })
}

/// Runs and notes one op.
type Note<'a> = &'a dyn Fn(&str, f64, &dyn Fn() -> Result<()>) -> Result<()>;

fn both(y: &Tensor) -> Result<()> {
    y.sum_all()?.backward().map(drop)
}

/// Ops that compute: multiplications and additions counted, those of the backward pass into frozen matrices are none.
fn products(note: Note, how: Arithmetic) -> Result<()> {
    let (d, inner, (heads, kv, width)) = (SmolLM2::HIDDEN, SmolLM2::INTERMEDIATE, SmolLM2::HEADS);
    let matrix = |rows, cols| weight(rows, cols).map(|w| w.with_arithmetic(how));
    let flop = |weights: usize| 2.0 * TOKENS as f64 * weights as f64;
    let x = noise(&[BATCH, LENGTH, d])?;
    let tracked = Var::from_tensor(&x)?;

    let w = matrix(d, d)?;
    note("`linear` 576 → 576", flop(d * d), &|| ops::linear(&x, &w, None).map(drop))?;
    note("`linear` 576 → 576 with backward", 2.0 * flop(d * d), &|| both(&ops::linear(&tracked, &w, None)?))?;
    let (a, b) = (Var::from_tensor(&noise(&[RANK, d])?)?, Var::from_tensor(&noise(&[d, RANK])?)?);
    let lora = Lora { a: &a, b: &b, scale: 2.0, dropout: None };
    let with_lora = 2.0 * flop(d * d) + 3.0 * flop(RANK * (d + d));
    note("`lora_linear` 576 → 576 with backward", with_lora, &|| {
        both(&ops::lora_linear(&tracked, &w, None, &lora)?)
    })?;

    let norm = noise(&[d])?;
    let (gate, up, down) = (matrix(inner, d)?, matrix(inner, d)?, matrix(d, inner)?);
    let plain = |weight| Linear { weight, bias: None, lora: None };
    let half =
        FeedForward { norm: &norm, eps: 1e-5, gate: plain(&gate), up: plain(&up), down: plain(&down), project: None };
    note("`feed_forward`", flop(3 * d * inner), &|| ops::feed_forward(&x, &half).map(drop))?;
    note("`feed_forward` with backward", 2.0 * flop(3 * d * inner), &|| both(&ops::feed_forward(&tracked, &half)?))?;

    // Half of the scores are masked. Forward has two products of them, backward five.
    let scores = flop(heads * width * LENGTH / 2);
    let (q, k, v, o) = (matrix(d, d)?, matrix(kv * width, d)?, matrix(kv * width, d)?, matrix(d, d)?);
    let causal = Attention { causal: true, ..Attention::default() };
    let rope = Rope::new(Rope::frequencies(width, 1e5), &Device::Cpu);
    let positions: Vec<u32> = (0..LENGTH as u32).collect();
    let half = SelfAttention {
        norm: &norm,
        eps: 1e-5,
        q: plain(&q),
        k: plain(&k),
        v: plain(&v),
        o: plain(&o),
        head_norms: None,
        head_dim: width,
        rope: &rope,
        positions: &positions.into(),
        how: causal.clone(),
        project: None,
    };
    let weights = 2 * d * d + 2 * d * kv * width;
    note("`self_attention`", flop(weights) + 2.0 * scores, &|| ops::self_attention(&x, &half, None).map(drop))?;
    note("`self_attention` with backward", 2.0 * flop(weights) + 7.0 * scores, &|| {
        both(&ops::self_attention(&tracked, &half, None)?)
    })?;
    if how == Arithmetic::F32 {
        let var = |heads: usize| Var::from_tensor(&noise(&[BATCH, LENGTH, heads, width])?);
        let (q, k, v) = (var(heads)?, var(kv)?, var(kv)?);
        note("`attention` with backward", 7.0 * scores, &|| both(&ops::attention(&q, &k, &v, &causal)?))?;
    }

    let head = matrix(SmolLM2::VOCABULARY, d)?;
    let each: Vec<u32> = (0..TOKENS as u32).collect();
    note("`linear_cross_entropy` with backward", 2.0 * flop(d * SmolLM2::VOCABULARY), &|| {
        both(&ops::linear_cross_entropy(&tracked, &head, &each, &each)?)
    })
}

/// Ops that read: the bytes that must be read and written once, of the matrix as it is in the file.
fn reads(note: Note) -> Result<()> {
    /// Of 75 MB: more than the caches hold.
    const ROWS: usize = 32 * 1024;
    let (d, (heads, kv, width)) = (SmolLM2::HIDDEN, SmolLM2::HEADS);
    let head: Weight = weight(SmolLM2::VOCABULARY, d)?;
    let one = noise(&[1, 1, d])?;
    note("`linear` 576 → 49,152, one token", (2 * d * SmolLM2::VOCABULARY) as f64, &|| {
        ops::linear(&one, &head, None).map(drop)
    })?;
    // So many keys that they do not stay in the cache.
    let keys = 64 * 1024;
    let q = noise(&[1, 1, heads, width])?;
    for (dtype, name) in [(DType::F32, "`f32`"), (DType::F16, "`f16`")] {
        // As a cache keeps them.
        let kept = || noise(&[1, kv, keys, width])?.to_dtype(dtype)?.transpose(1, 2);
        let (k, v) = (kept()?, kept()?);
        let what = format!("`attention`, one query over 65,536 keys in {name}");
        note(&what, (2 * dtype.size_in_bytes() * keys * kv * width) as f64, &|| {
            ops::attention(&q, &k, &v, &Attention { causal: true, ..Attention::default() }).map(drop)
        })?;
    }
    let (x, norm) = (noise(&[ROWS, d])?, noise(&[d])?);
    note("`rms_norm` of 32,768 rows", (2 * 4 * x.elem_count()) as f64, &|| ops::rms_norm(&x, &norm, 1e-5).map(drop))?;
    note("`swiglu` of 32,768 rows", (3 * 4 * x.elem_count()) as f64, &|| ops::swiglu(&x, &x).map(drop))
}

/// The median time of a call, after some that warm up.
fn seconds(f: &dyn Fn() -> Result<()>) -> Result<f64> {
    /// From the fourth call on a product with few rows reads the compact form of its matrix.
    const WARM: usize = 6;
    for _ in 0..WARM {
        f()?;
    }
    let mut times = vec![];
    let start = Instant::now();
    while times.len() < 11 || start.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// The best of some runs of `f` on so many threads at once, as work over time.
fn best(threads: usize, work: f64, f: impl Fn(usize) + Sync) -> f64 {
    let mut best = 0f64;
    for _ in 0..5 {
        let barrier = Barrier::new(threads);
        let times: Vec<f64> = std::thread::scope(|scope| {
            let run = |thread| {
                let (barrier, f) = (&barrier, &f);
                move || {
                    barrier.wait();
                    let start = Instant::now();
                    f(thread);
                    start.elapsed().as_secs_f64()
                }
            };
            let handles: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
            handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
        });
        best = best.max(work / times.into_iter().fold(0.0, f64::max));
    }
    best / 1e9
}

/// GFLOP/s of multiplications that need no memory, in `f32` or, where the CPU has them, in pairs of `bf16`.
fn peak(threads: usize, bf16: bool) -> f64 {
    const ROUNDS: usize = 4_000_000;
    let limit = |of_a_round: usize, f: &(dyn Fn() -> f32 + Sync)| {
        best(threads, (threads * ROUNDS * of_a_round) as f64, |_| _ = black_box(f()))
    };
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    {
        if bf16 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has what is called.
            return limit(avx512::SUMS * 16 * 4, &|| unsafe { avx512::bf16(ROUNDS) });
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            return limit(avx512::SUMS * 16 * 2, &|| unsafe { avx512::f32(ROUNDS) });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return limit(avx2::SUMS * 8 * 2, &|| unsafe { avx2::f32(ROUNDS) });
        }
    }
    let _ = bf16;
    limit(64 * 2, &|| {
        let mut sums = [1f32; 64];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // An x86 that comes here has no multiply-add: `mul_add` would call a function.
                *sum = if cfg!(target_arch = "x86_64") { *sum * 0.999 + 1e-3 } else { sum.mul_add(0.999, 1e-3) };
            }
        }
        sums.iter().sum()
    })
}

/// GB/s of reading 512 MB, each thread its part.
fn reading(threads: usize) -> f64 {
    const WORDS: usize = 64 << 20;
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let part = WORDS / threads;
    best(threads, (part * threads * 8) as f64, |thread| {
        let words = &words[thread * part..(thread + 1) * part];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512.
            #[allow(unsafe_code)]
            unsafe {
                black_box(avx512::read(words));
            }
            return;
        }
        black_box(words.iter().fold(0, |a, b| a ^ b));
    })
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! For CPUs without AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use std::arch::x86_64::*;

    /// Sums that do not wait for each other; with the factor they fit into the 16 registers.
    pub(super) const SUMS: usize = 12;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32(rounds: usize) -> f32 {
        let small = _mm256_set1_ps(1e-3);
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(small, small, *sum);
            }
        }
        let mut total = _mm256_setzero_ps();
        for sum in sums {
            total = _mm256_add_ps(total, sum);
        }
        // SAFETY: both are 8 numbers of 32 bits.
        unsafe { std::mem::transmute::<__m256, [f32; 8]>(total) }.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! Loops that do one thing.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use std::arch::x86_64::*;

    /// Sums that do not wait for each other.
    pub(super) const SUMS: usize = 24;

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16(rounds: usize) -> f32 {
        // SAFETY: both are 512 bits.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(0x3F80_3F80)) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        total(&sums)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32(rounds: usize) -> f32 {
        let small = _mm512_set1_ps(1e-3);
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(small, small, *sum);
            }
        }
        total(&sums)
    }

    #[target_feature(enable = "avx512f")]
    fn total(sums: &[__m512; SUMS]) -> f32 {
        let mut total = _mm512_setzero_ps();
        for sum in sums {
            total = _mm512_add_ps(total, *sum);
        }
        _mm512_reduce_add_ps(total)
    }

    /// With a prefetch 4 KB ahead, which is faster than without.
    #[target_feature(enable = "avx512f")]
    pub(super) fn read(words: &[u64]) -> i64 {
        const VECTOR: usize = 8;
        let mut sums = [_mm512_setzero_si512(); 8];
        for chunk in words.chunks_exact(8 * VECTOR) {
            for (i, sum) in sums.iter_mut().enumerate() {
                let at = chunk.as_ptr().wrapping_add(i * VECTOR);
                // SAFETY: a vector inside the chunk; what is fetched ahead need not be there.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(512).cast());
                    *sum = _mm512_xor_si512(*sum, _mm512_loadu_si512(at.cast()));
                }
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = _mm512_xor_si512(all, *sum);
        }
        _mm512_reduce_add_epi64(all)
    }
}
