//! The rows of a matrix that have the largest dot products with a query, at the speed of memory.
//!
//! Rows are `f32`, `f16`, or bytes with a scale each. Blocks of rows are scored one after the other while they are in
//! the cache, for every query, and each block keeps only its best, so nothing is sorted but what may be returned.
//! Knows nothing of files, of what the rows stand for, or of their lengths: whoever wants cosines normalises.

#[cfg(target_arch = "x86_64")]
use super::cpu;
use super::{dots::row_dots, simd::simd};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::f16;
use rayon::prelude::*;
use std::{cmp::Ordering, collections::BinaryHeap, ops::Range};

/// Rows of one width, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Vectors<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Widened as they are read.
    F16(&'a [f16]),
    /// Number `j` of row `i` is `scales[i] · (codes[i, j] − 128)`, as [`to_codes`] writes it. Queries are rounded to such
    /// codes too, and products are summed exactly.
    Int8 {
        /// All rows.
        codes: &'a [u8],
        /// One per row.
        scales: &'a [f32],
    },
}

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Its place in the matrix, from 0.
    pub row: usize,
    /// Its dot product with the query.
    pub score: f32,
}

/// What stands for 0 in the codes of [`Vectors::Int8`].
const ZERO: u8 = 128;
/// Above, sums of bytes would leave 32 bits: 255 · 127 · 65,536 < 2³¹.
const WIDEST: usize = 1 << 16;
/// Rows that one unit of work keeps the best of. More of them are fewer rows that are kept for a while.
const UNIT: usize = 8192;
/// Bytes of rows that stay in the cache while all queries see them.
const CACHED: usize = 128 * 1024;
/// The most rows that are scored before their scores are looked at.
const SCORED: usize = 256;

/// For each query, a row of `queries`, the `k` rows of `vectors` with the largest dot products, best first; of equal ones
/// the lower row. Rows whose product is NaN are never found.
///
/// `width` is that of the rows and queries. The result does not depend on the number of threads.
///
/// # Errors
/// If the width is 0, above 65,536, or does not divide what is given.
///
/// ```
/// use mc_backend::search::{Hit, Vectors, nearest};
/// let rows = [1., 0., 0., 1., 0.6, 0.8];
/// let found = nearest(Vectors::F32(&rows), 2, &[1., 0.], 2)?;
/// assert_eq!(found, [[Hit { row: 0, score: 1. }, Hit { row: 2, score: 0.6 }]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn nearest(vectors: Vectors, width: usize, queries: &[f32], k: usize) -> Result<Vec<Vec<Hit>>> {
    Ok(look(vectors, width, queries, k)?.0)
}

/// The same, and the first row whose product with a query is not finite.
fn look(vectors: Vectors, width: usize, queries: &[f32], k: usize) -> Result<(Vec<Vec<Hit>>, Option<Hit>)> {
    let rows = vectors.rows(width)?;
    if !queries.len().is_multiple_of(width) {
        bail!("{} numbers are no queries of width {width}", queries.len())
    }
    let queries: Vec<Query> = queries.chunks_exact(width).map(Query::new).collect();
    let units = if k == 0 || queries.is_empty() { 0 } else { rows.div_ceil(UNIT) };
    let best: Vec<Vec<Best>> =
        (0..units).into_par_iter().map(|u| of_unit(vectors, u * UNIT..rows.min((u + 1) * UNIT), &queries, k)).collect();
    let (mut found, mut not_finite) = (vec![vec![]; queries.len()], None);
    for unit in best {
        for (found, best) in found.iter_mut().zip(unit) {
            not_finite = not_finite.or(best.not_finite);
            found.extend(best.heap.into_iter().map(|w| w.0));
        }
    }
    for found in &mut found {
        found.sort_unstable_by(rank);
        found.truncate(k);
    }
    Ok((found, not_finite))
}

/// The `k` rows of a matrix `(n, width)` with the largest dot products with `query`, which has `width` elements, best first;
/// of equal ones the lower row. Dot products are cosines where rows and query have length 1, as those of most embedding
/// models; nothing is brought to that length here.
///
/// The matrix is `f32` or `f16`, contiguous, and on the CPU; no row is copied.
///
/// # Errors
/// If it is not, the query has another width, or the dot product of a row with it is not finite, as with a row that has NaN
/// or an infinity in it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let rows = Tensor::new(&[[1f32, 0.], [0.6, 0.8]], &Device::Cpu)?;
/// let query = Tensor::new(&[0f32, 1.], &Device::Cpu)?;
/// assert_eq!(mc_backend::search::top_k(&rows, &query, 1)?[0].row, 1);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn top_k(matrix: &Tensor, query: &Tensor, k: usize) -> Result<Vec<Hit>> {
    let (_, width) = matrix.dims2()?;
    if query.elem_count() != width {
        bail!("a query of {} numbers for rows of {width}", query.elem_count())
    }
    let query: Vec<f32> = query.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1()?;
    if let Some(x) = query.iter().find(|x| !x.is_finite()) {
        bail!("the query has a number that is not finite: {x}")
    }
    let (storage, layout) = matrix.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the matrix is not contiguous") };
    let vectors = match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => Vectors::F32(&x[start..end]),
        Storage::Cpu(CpuStorage::F16(x)) => Vectors::F16(&x[start..end]),
        _ => bail!(
            "the matrix is {:?} on {:?}, expected F32 or F16 on the CPU",
            matrix.dtype(),
            matrix.device().location()
        ),
    };
    match look(vectors, width, &query, k)? {
        (_, Some(Hit { row, score })) => bail!("row {row} times the query is not finite: {score}"),
        (found, None) => Ok(found.into_iter().next().unwrap_or_default()),
    }
}

/// Writes the numbers of `x` as codes for [`Vectors::Int8`] and returns their scale, the largest magnitude over 127.
///
/// # Panics
/// If `codes` has another length.
pub fn to_codes(x: &[f32], codes: &mut [u8]) -> f32 {
    assert_eq!(x.len(), codes.len(), "as many codes as numbers");
    let (scale, inverse) = scale(x);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (i16::from(code_of(*x, inverse)) + i16::from(ZERO)) as u8;
    }
    scale
}

/// The scale of a row and its inverse; NaN if it has a number that is not finite.
fn scale(x: &[f32]) -> (f32, f32) {
    // Not `max`, which drops NaN.
    let top = x.iter().fold(0f32, |top, x| if x.abs() <= top { top } else { x.abs() });
    let finite = x.iter().all(|x| x.is_finite());
    let scale = if finite { top / 127.0 } else { f32::NAN };
    (scale, if scale > 0.0 { 127.0 / top } else { 0.0 })
}

fn code_of(x: f32, inverse: f32) -> i8 {
    // A cast saturates, and that of NaN is 0.
    (x * inverse).round().clamp(-127.0, 127.0) as i8
}

/// Larger scores first, then lower rows; a total order where no score is NaN.
fn rank(a: &Hit, b: &Hit) -> Ordering {
    b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.row.cmp(&b.row))
}

impl Vectors<'_> {
    /// How many rows of `width` there are.
    fn rows(self, width: usize) -> Result<usize> {
        let (len, scales) = match self {
            Self::F32(x) => (x.len(), None),
            Self::F16(x) => (x.len(), None),
            Self::Int8 { codes, scales } => (codes.len(), Some(scales.len())),
        };
        if width == 0 || width > WIDEST || !len.is_multiple_of(width) {
            bail!("{len} numbers are no rows of width {width}, which may be 1 to {WIDEST}")
        }
        let rows = len / width;
        match scales {
            Some(scales) if scales != rows => bail!("{scales} scales for {rows} rows"),
            _ => Ok(rows),
        }
    }

    fn bytes_per_number(self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F16(_) => 2,
            Self::Int8 { .. } => 1,
        }
    }

    /// The scores of these rows.
    fn score(self, rows: Range<usize>, query: &Query, scores: &mut [f32]) {
        let width = query.numbers.len();
        let numbers = rows.start * width..rows.end * width;
        match self {
            Self::F32(x) => row_dots(&x[numbers], query.numbers, scores),
            Self::F16(x) => row_dots(&x[numbers], query.numbers, scores),
            Self::Int8 { codes, scales } => {
                bytes(&codes[numbers], &query.codes, scores);
                for (score, scale) in scores.iter_mut().zip(&scales[rows]) {
                    *score *= scale * query.scale;
                }
            }
        }
    }
}

/// A query in the forms that rows are multiplied with.
struct Query<'a> {
    numbers: &'a [f32],
    codes: Vec<i8>,
    scale: f32,
}

impl<'a> Query<'a> {
    fn new(numbers: &'a [f32]) -> Self {
        let (scale, inverse) = scale(numbers);
        Self { numbers, codes: numbers.iter().map(|x| code_of(*x, inverse)).collect(), scale }
    }
}

/// The best rows so far, the worst of them on top of the heap.
struct Best {
    k: usize,
    heap: BinaryHeap<Worse>,
    /// The first row whose score is NaN or infinite.
    not_finite: Option<Hit>,
}

/// A hit that is the greater the worse it is.
struct Worse(Hit);

impl Ord for Worse {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(&self.0, &other.0)
    }
}
impl PartialOrd for Worse {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Worse {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Worse {}

impl Best {
    /// Rows come in their order, so of equal scores the one that is there stays.
    fn see(&mut self, first: usize, scores: &[f32]) {
        let mut least = self.least();
        for (i, score) in scores.iter().enumerate() {
            if !score.is_finite() {
                self.not_finite = self.not_finite.or(Some(Hit { row: first + i, score: *score }));
            }
            // False for NaN.
            if *score > least || *score == f32::NEG_INFINITY && self.heap.len() < self.k {
                let hit = Worse(Hit { row: first + i, score: *score });
                if self.heap.len() < self.k {
                    self.heap.push(hit);
                } else if let Some(mut worst) = self.heap.peek_mut() {
                    *worst = hit;
                }
                least = self.least();
            }
        }
    }

    /// What a score must be above.
    fn least(&self) -> f32 {
        self.heap.peek().filter(|_| self.heap.len() == self.k).map_or(f32::NEG_INFINITY, |w| w.0.score)
    }
}

/// The best of these rows for each query.
fn of_unit(vectors: Vectors, rows: Range<usize>, queries: &[Query], k: usize) -> Vec<Best> {
    let mut best: Vec<_> = queries.iter().map(|_| Best { k, heap: BinaryHeap::new(), not_finite: None }).collect();
    let width = queries.first().map_or(1, |q| q.numbers.len());
    let step = (CACHED / (width * vectors.bytes_per_number())).clamp(1, SCORED);
    let mut scores = [0f32; SCORED];
    for first in rows.clone().step_by(step) {
        let some = first..rows.end.min(first + step);
        for (best, query) in best.iter_mut().zip(queries) {
            let scores = &mut scores[..some.len()];
            vectors.score(some.clone(), query, scores);
            best.see(first, scores);
        }
    }
    best
}

/// Dot products of codes, less what stands for 0, with those of a query; exact before they become `f32`.
fn bytes(codes: &[u8], query: &[i8], scores: &mut [f32]) {
    if !bytes_avx512(codes, query, scores) && !bytes_avx2(codes, query, scores) {
        plain_bytes(codes, query, scores);
    }
}

/// In AVX-512, if this CPU has it; whether it was done.
fn bytes_avx512(codes: &[u8], query: &[i8], scores: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has these instructions, which stand on AVX-512.
        #[allow(unsafe_code)]
        unsafe {
            avx512::bytes(codes, query, scores);
        }
        return true;
    }
    let _ = (codes, query, scores);
    false
}

/// As [`bytes_avx512`], in AVX2.
fn bytes_avx2(codes: &[u8], query: &[i8], scores: &mut [f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if cpu::has_avx2() {
        // SAFETY: the CPU has AVX2.
        #[allow(unsafe_code)]
        unsafe {
            avx2::bytes(codes, query, scores);
        }
        return true;
    }
    let _ = (codes, query, scores);
    false
}

fn plain_bytes(codes: &[u8], query: &[i8], scores: &mut [f32]) {
    let offset = i32::from(ZERO) * sum(query);
    simd(
        #[inline(always)]
        || {
            for (score, codes) in scores.iter_mut().zip(codes.chunks_exact(query.len())) {
                let products = codes.iter().zip(query).map(|(c, q)| i32::from(*c) * i32::from(*q));
                *score = (products.sum::<i32>() - offset) as f32;
            }
        },
    );
}

fn sum(query: &[i8]) -> i32 {
    query.iter().map(|q| i32::from(*q)).sum()
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! Sums of bytes in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{ZERO, sum};
    use std::arch::x86_64::*;

    /// Four products of a byte with a code are summed at once; what stands for 0 is taken off the whole sum.
    ///
    /// # Safety
    /// The CPU has AVX-512 with its instructions for bytes and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) unsafe fn bytes(codes: &[u8], query: &[i8], scores: &mut [f32]) {
        const LANES: usize = 64;
        let offset = i32::from(ZERO) * sum(query);
        let whole = query.len() / LANES * LANES;
        let rest = (1u64 << (query.len() - whole)) - 1;
        for (score, codes) in scores.iter_mut().zip(codes.chunks_exact(query.len())) {
            let mut sums = [_mm512_setzero_si512(); 2];
            for (i, at) in (0..whole).step_by(LANES).enumerate() {
                // SAFETY: `at` and the 63 after it are inside both, which are equally long.
                unsafe {
                    let c = _mm512_loadu_si512(codes.as_ptr().add(at).cast());
                    let q = _mm512_loadu_si512(query.as_ptr().add(at).cast());
                    sums[i % 2] = _mm512_dpbusd_epi32(sums[i % 2], c, q);
                }
            }
            if rest != 0 {
                // SAFETY: what is beyond both is masked, and masked bytes are not read.
                unsafe {
                    let c = _mm512_maskz_loadu_epi8(rest, codes.as_ptr().add(whole).cast());
                    let q = _mm512_maskz_loadu_epi8(rest, query.as_ptr().add(whole).cast());
                    sums[0] = _mm512_dpbusd_epi32(sums[0], c, q);
                }
            }
            *score = (_mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])) - offset) as f32;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Sums of bytes in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{ZERO, sum};
    use std::arch::x86_64::*;

    const LANES: usize = 32;

    /// Of 32 codes the even ones and the odd ones are multiplied in sixteen bits each, exactly, and two products summed at once: the
    /// instruction that multiplies bytes cuts its sums off.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn bytes(codes: &[u8], query: &[i8], scores: &mut [f32]) {
        let offset = i32::from(ZERO) * sum(query);
        let (whole, rest) = query.as_chunks::<LANES>();
        let half =
            |q: &[i8; LANES], odd: usize| -> [i16; LANES / 2] { std::array::from_fn(|i| i16::from(q[2 * i + odd])) };
        let whole: Vec<[__m256i; 2]> =
            whole.iter().map(|q| [bytemuck::cast(half(q, 0)), bytemuck::cast(half(q, 1))]).collect();
        for (score, codes) in scores.iter_mut().zip(codes.chunks_exact(query.len())) {
            let (codes, last) = codes.as_chunks::<LANES>();
            let mut sums = [_mm256_setzero_si256(); 2];
            for (codes, [even, odd]) in codes.iter().zip(&whole) {
                // SAFETY: as many bytes as a vector.
                let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
                let (first, second) = (_mm256_and_si256(codes, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16::<8>(codes));
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(first, *even));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(second, *odd));
            }
            let lanes: [i32; LANES / 4] = bytemuck::cast(_mm256_add_epi32(sums[0], sums[1]));
            let last = last.iter().zip(rest).map(|(c, q)| i32::from(*c) * i32::from(*q));
            *score = (lanes.into_iter().chain(last).sum::<i32>() - offset) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
