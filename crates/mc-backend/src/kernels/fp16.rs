//! Products in `f16` with a frozen matrix that stays packed, for CPUs that do twice as many of them as of `f32` (AVX-512-FP16).
//!
//! Layout and loop are those of [`super::tile`]: rows of units, panels of 16 columns, and a unit is a pair of neighbouring
//! `f16`. What differs is what `f16` lacks:
//!
//! - *Range.* A row of A and a column of B are scaled by powers of two, so that their largest number is in [8, 16), or smaller
//!   if it is below 2⁻¹²³; the result is scaled back. What is less than 2⁻¹⁷ of the largest may lose precision, what becomes
//!   zero is at most 2⁻²⁸ of it, and each rounding of a sum loses up to 2⁻³¹ of the largest of the row times that of the column.
//!   Where the largest is infinite or NaN nothing is scaled, and no result of that row or column is finite.
//! - *Precision of sums.* No more than 32 products are summed one by one in `f16`; two such sums are added, widened and go on in
//!   `f32`. In 64 products below 16 · 16 there is no overflow. For random numbers the error is 9.3·10⁻⁴ of a result, where rounding
//!   one side to `bf16` makes 17·10⁻⁴ (root mean squares, from the test `errors_are_smaller_than_those_of_bf16`).
//!
//! Rows are shared out evenly over tiles of at most 8, so that none is computed for nothing: one text often has no more than a
//! tile or two. A tile is 8 rows × 3 panels, or 6 × 4: 24 sums, for the reasons there. The 32-product loop is a function by
//! itself: the sums, the vectors of B and a broadcast are all that it holds, and the compiler keeps them in registers only if
//! there is nothing else (measured: 83 and 349 GFLOP/s a core).
//!
//! As there, a number depends on its row and column alone. On other CPUs plain Rust computes the same.

use super::{
    holds,
    scratch::Scratch,
    simd::{Element, simd},
    tile::{LANES, Start},
    transpose,
};
use crate::weight::Elements;
use half::f16;
use std::ops::Range;

/// Rows of a tile, at most.
const TALL: usize = 8;
/// Panels of a tile, at most.
const PANELS: usize = 4;
/// Units of a sum in `f16`: each half of one is a product.
const CHAIN: usize = 32;
/// The exponent of the largest number of a row or column.
const TOP: i32 = 3;

#[cfg(target_arch = "x86_64")]
static HAS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
    let needed = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
    super::tile::has_avx512() && needed && is_x86_feature_detected!("avx512fp16")
});

/// Whether this CPU multiplies `f16` faster than `f32`.
pub(crate) fn serve() -> bool {
    #[cfg(target_arch = "x86_64")]
    let serve = *HAS;
    #[cfg(not(target_arch = "x86_64"))]
    let serve = false;
    serve
}

/// What numbers are multiplied by of which this is the largest, by its bits, and the exponent of the power of two that undoes
/// it; 1 where that is not finite.
fn scales(largest: u32) -> (f32, f32) {
    let exponent = (largest >> 23).cast_signed();
    if exponent == 255 {
        return (1.0, 0.0);
    }
    let by = (127 + TOP - exponent).min(126);
    (f32::from_bits((127 + by).cast_unsigned() << 23), -by as f32)
}

/// The bits of the largest magnitude; of NaN, if there is one.
fn largest(x: &[f32]) -> u32 {
    simd(
        #[inline(always)]
        || {
            let (whole, rest) = x.as_chunks::<LANES>();
            let mut lanes = [0u32; LANES];
            for x in whole {
                for j in 0..LANES {
                    lanes[j] = lanes[j].max(x[j].to_bits() & 0x7FFF_FFFF);
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *lane = (*lane).max(x.to_bits() & 0x7FFF_FFFF);
            }
            lanes.into_iter().max().unwrap_or(0)
        },
    )
}

/// Scaled numbers as units, rounded to nearest with ties to even; what is left of the last one is zero.
fn round(vectors: bool, x: &[f32], by: f32, units: &mut [u32]) {
    let halves: &mut [u16] = bytemuck::cast_slice_mut(units);
    let (halves, rest) = halves.split_at_mut(x.len());
    rest.fill(0);
    #[cfg(target_arch = "x86_64")]
    if vectors {
        // SAFETY: who asks for vectors has looked that the CPU has AVX-512-FP16, and the rest; both are as long.
        #[allow(unsafe_code)]
        unsafe {
            avx512::round(x, by, halves);
        }
        return;
    }
    let _ = vectors;
    halves.iter_mut().zip(x).for_each(|(h, x)| *h = f16::from_f32(x * by).to_bits());
}

/// The left side of products: rows of scaled units.
pub(crate) struct Rows {
    units: Scratch,
    /// The power of two of each row's results.
    scales: Vec<f32>,
    stride: usize,
}

impl Rows {
    /// `n` rows of this width, to be filled.
    pub(crate) fn new(n: usize, width: usize) -> Self {
        let stride = width.div_ceil(2);
        Self { units: Scratch::new(n * stride), scales: vec![0.0; n], stride }
    }

    /// Row `i`.
    pub(crate) fn fill(&mut self, i: usize, x: &[f32]) {
        let (by, back) = scales(largest(x));
        round(serve(), x, by, &mut self.units[i * self.stride..(i + 1) * self.stride]);
        self.scales[i] = back;
    }
}

/// The right side of products, packed.
pub(crate) struct Panels {
    units: Vec<u32>,
    /// The power of two of each column's results, of whole panels.
    scales: Vec<f32>,
    /// Units.
    depth: usize,
    cols: usize,
}

impl Panels {
    /// Packs matrices `(columns, width)`, each at its columns, on this thread. Other columns are zero.
    pub(crate) fn pack(width: usize, cols: usize, matrices: &[(Range<usize>, Elements)]) -> Self {
        let (depth, panels) = (width.div_ceil(2), cols.div_ceil(LANES));
        let mut units = vec![0u32; panels * LANES * depth];
        let mut back = vec![0f32; panels * LANES];
        let mut rows = vec![0f32; LANES * width];
        let mut halves = vec![0u32; LANES * depth.next_multiple_of(LANES)];
        let mut square = [[0u32; LANES]; LANES];
        let each = units.chunks_exact_mut((LANES * depth).max(1)).zip(back.chunks_exact_mut(LANES));
        for (p, (to, back)) in each.enumerate() {
            rows.fill(0.0);
            for (col, row) in (p * LANES..).zip(rows.chunks_exact_mut(width.max(1))) {
                if let Some((range, elements)) = matrices.iter().find(|(range, _)| range.contains(&col)) {
                    let at = (col - range.start) * width;
                    match elements {
                        Elements::F32(x) => row.copy_from_slice(&x[at..at + width]),
                        Elements::F16(x) => widen(&x[at..at + width], row),
                        Elements::BF16(x) => widen(&x[at..at + width], row),
                    }
                }
            }
            let stride = depth.next_multiple_of(LANES);
            let each = rows.chunks_exact(width.max(1)).zip(halves.chunks_exact_mut(stride.max(1)));
            for ((row, halves), back) in each.zip(back) {
                let by;
                (by, *back) = scales(largest(row));
                round(serve(), row, by, halves);
            }
            for (s, to) in to.chunks_mut(LANES * LANES).enumerate() {
                for (line, halves) in square.iter_mut().zip(halves.chunks_exact(stride)) {
                    line.copy_from_slice(&halves[s * LANES..(s + 1) * LANES]);
                }
                transpose::transpose(&mut square);
                to.copy_from_slice(&square.as_flattened()[..to.len()]);
            }
        }
        Self { units, scales: back, depth, cols }
    }

    /// Columns of the result.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// `c = start + a·self` in some columns, of which the first is a multiple of 16, on this thread; c has as many, in rows `stride`
    /// apart.
    pub(crate) fn multiply(&self, a: &Rows, cols: Range<usize>, start: Start, c: (&mut [f32], usize)) {
        self.multiply_in(serve(), a, cols, start, c);
    }

    /// The same in AVX-512 or in plain Rust.
    fn multiply_in(
        &self,
        vectors: bool,
        a: &Rows,
        cols: Range<usize>,
        start: Start,
        (c, c_stride): (&mut [f32], usize),
    ) {
        let (rows, depth) = (a.scales.len(), self.depth);
        if rows == 0 || cols.is_empty() {
            return;
        }
        assert!(a.stride == depth && a.units.len() >= rows * depth, "rows of a product");
        assert!(cols.start.is_multiple_of(LANES) && cols.end <= self.cols, "columns of a product");
        assert!(holds(c.len(), rows, c_stride, cols.len()), "result of a product out of bounds");
        let (add, add_stride): (&[f32], usize) = match start {
            Start::Zero => (&[], 0),
            Start::Row(row) => (&row[..cols.len()], 0),
            Start::Matrix(m, stride) => {
                assert!(holds(m.len(), rows, stride, cols.len()), "start of a product out of bounds");
                (m, stride)
            }
            Start::Itself => unreachable!("no depth is cut here"),
        };
        let panels = cols.start / LANES..cols.end.div_ceil(LANES);
        let tiles = rows.div_ceil(TALL);
        let at_once = if rows.div_ceil(tiles) <= 6 { PANELS } else { PANELS - 1 };
        for panel in panels.clone().step_by(at_once) {
            let wide = panel..(panel + at_once).min(panels.end);
            let from = panel * LANES - cols.start;
            let width = (cols.len() - from).min(at_once * LANES);
            for tile in 0..tiles {
                let [row, end] = [tile, tile + 1].map(|tile| tile * rows / tiles);
                let tile = Tile {
                    depth,
                    a: &a.units[row * depth..end * depth],
                    b: &self.units[wide.start * LANES * depth..wide.end * LANES * depth],
                    rows: &a.scales[row..end],
                    columns: &self.scales[wide.start * LANES..wide.end * LANES],
                    width,
                    add: add.get(row * add_stride + from..).unwrap_or_default(),
                    add_stride,
                    c: &mut c[row * c_stride + from..],
                    c_stride,
                };
                if vectors { tile.vectors() } else { tile.plain() }
            }
        }
    }
}

/// A tile's inputs and where its results go.
struct Tile<'a> {
    depth: usize,
    a: &'a [u32],
    b: &'a [u32],
    /// Powers of two, of the rows and of whole panels.
    rows: &'a [f32],
    columns: &'a [f32],
    /// Columns, of which the last panel may lack some.
    width: usize,
    /// What is added; nothing if it is empty.
    add: &'a [f32],
    add_stride: usize,
    c: &'a mut [f32],
    c_stride: usize,
}

impl Tile<'_> {
    fn vectors(self) {
        let (rows, panels) = (self.rows.len(), self.columns.len() / LANES);
        assert!(self.a.len() == rows * self.depth && self.b.len() == panels * LANES * self.depth, "tile out of bounds");
        assert!(
            (1..=TALL).contains(&rows) && (1..=PANELS).contains(&panels) && self.width <= self.columns.len(),
            "tile too large"
        );
        assert!(holds(self.c.len(), rows, self.c_stride, self.width), "result of a tile out of bounds");
        let starts = self.add.is_empty() || holds(self.add.len(), rows, self.add_stride, self.width);
        assert!(starts, "start of a tile out of bounds");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: who asks for vectors has looked that the CPU has AVX-512-FP16; the sizes are as asserted.
        #[allow(unsafe_code)]
        unsafe {
            let mut tile = self;
            avx512::tile(&mut tile);
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.plain();
    }

    fn plain(self) {
        let add = |sum: f16, a: f16, b: f16| nearest(a.to_f64().mul_add(b.to_f64(), sum.to_f64()));
        let halves = |unit: u32| [unit as u16, (unit >> 16) as u16].map(f16::from_bits);
        for (i, row_scale) in self.rows.iter().enumerate() {
            let row = &self.a[i * self.depth..(i + 1) * self.depth];
            for j in 0..self.width {
                let panel = &self.b[j / LANES * LANES * self.depth..][..LANES * self.depth];
                let mut wide = [0f32; 2];
                let mut chains = row.chunks(CHAIN).zip(panel.chunks(CHAIN * LANES)).map(|(a, b)| {
                    let both = a.iter().zip(b.chunks_exact(LANES)).map(|(a, b)| (halves(*a), halves(b[j % LANES])));
                    both.fold([f16::ZERO; 2], |sum, (a, b)| [add(sum[0], a[0], b[0]), add(sum[1], a[1], b[1])])
                });
                while let Some(first) = chains.next() {
                    let second = chains.next().unwrap_or_default();
                    let [even, odd] = [0, 1].map(|i| add(first[i], second[i], f16::ONE).to_f32());
                    wide = [wide[0] + even, wide[1] + odd];
                }
                // In f64 nothing is lost on the way to numbers at the ends of f32.
                let power = 2f64.powf(f64::from(row_scale + self.columns[j]));
                let scaled = (f64::from(wide[0] + wide[1]) * power) as f32;
                let start = if self.add.is_empty() { 0.0 } else { self.add[i * self.add_stride + j] };
                self.c[i * self.c_stride + j] = scaled + start;
            }
        }
    }
}

fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    simd(
        #[inline(always)]
        || super::simd::widen(from, to),
    );
}

/// The nearest `f16`, of two the even one, rounded once; its library goes by way of `f32`.
fn nearest(x: f64) -> f16 {
    let close = f16::from_f64(x);
    if !close.is_finite() {
        return close;
    }
    let bits = close.to_bits();
    // Beyond the ends there is NaN or infinity, which is farther than any.
    let around = [bits, bits.wrapping_sub(1), bits.wrapping_add(1)].map(f16::from_bits);
    let distance = |h: &f16| (h.to_f64() - x).abs();
    around
        .into_iter()
        .min_by(|a, b| {
            let order = distance(a).total_cmp(&distance(b));
            order.then((a.to_bits() & 1).cmp(&(b.to_bits() & 1)))
        })
        .unwrap_or(close)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The same in AVX-512, of which rows are not read beyond their end.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{CHAIN, LANES, PANELS, TALL, Tile};
    use std::{arch::x86_64::*, mem::MaybeUninit};

    /// # Safety
    /// The CPU has AVX-512 with BW and VL, and both are as long.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn round(x: &[f32], by: f32, halves: &mut [u16]) {
        let by = _mm512_set1_ps(by);
        for (x, halves) in x.chunks(LANES).zip(halves.chunks_mut(LANES)) {
            let mask = !0 >> (LANES - x.len());
            // SAFETY: what is read and written is masked to their length.
            unsafe {
                let scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x.as_ptr()), by);
                let rounded = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
                _mm256_mask_storeu_epi16(halves.as_mut_ptr().cast(), mask, rounded);
            }
        }
    }

    /// One vector for each row and panel of a tile.
    type Vectors = [[MaybeUninit<__m512i>; PANELS]; TALL];
    /// [`chain`] of some size.
    ///
    /// # Safety
    /// As for that.
    type Chain = unsafe fn(usize, usize, *const u32, *const u32, &mut Vectors);

    /// [`chain`] for so many rows and panels, both less one.
    #[rustfmt::skip]
    static CHAINS: [[Chain; PANELS]; TALL] = [
        [chain::<1, 1>, chain::<1, 2>, chain::<1, 3>, chain::<1, 4>],
        [chain::<2, 1>, chain::<2, 2>, chain::<2, 3>, chain::<2, 4>],
        [chain::<3, 1>, chain::<3, 2>, chain::<3, 3>, chain::<3, 4>],
        [chain::<4, 1>, chain::<4, 2>, chain::<4, 3>, chain::<4, 4>],
        [chain::<5, 1>, chain::<5, 2>, chain::<5, 3>, chain::<5, 4>],
        [chain::<6, 1>, chain::<6, 2>, chain::<6, 3>, chain::<6, 4>],
        [chain::<7, 1>, chain::<7, 2>, chain::<7, 3>, chain::<7, 4>],
        [chain::<8, 1>, chain::<8, 2>, chain::<8, 3>, chain::<8, 4>],
    ];

    /// The sums in `f16` of `n` units, at most [`CHAIN`], of R rows and P panels into `out`.
    ///
    /// # Safety
    /// The CPU has AVX-512-FP16; R rows `stride` apart at `a` have so many units, panels `LANES·stride` apart at `b` too.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512fp16")]
    unsafe fn chain<const R: usize, const P: usize>(
        n: usize,
        stride: usize,
        a: *const u32,
        b: *const u32,
        out: &mut Vectors,
    ) {
        /// How far ahead B comes into the first cache, as in the tile of `f32`.
        const AHEAD: usize = 8 * LANES;
        let mut sums = [[_mm512_setzero_ph(); P]; R];
        for l in 0..n {
            let mut columns = [_mm512_setzero_ph(); P];
            for (q, column) in columns.iter_mut().enumerate() {
                let at = b.wrapping_add(q * LANES * stride + l * LANES);
                // SAFETY: unit l of panel q; what is fetched ahead is not read.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                    *column = _mm512_castsi512_ph(_mm512_loadu_si512(at.cast()));
                }
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: unit l of row i.
                let unit = unsafe { *a.add(i * stride + l) };
                let unit = _mm512_castsi512_ph(_mm512_set1_epi32(unit.cast_signed()));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ph(unit, column, *sum);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.iter_mut().zip(sums) {
                out.write(_mm512_castph_si512(sum));
            }
        }
    }

    /// # Safety
    /// The CPU has AVX-512-FP16, and the tile is in bounds, as [`Tile::vectors`] asserts.
    #[target_feature(enable = "avx512f,avx512fp16")]
    pub(super) unsafe fn tile(tile: &mut Tile) {
        let (depth, a, b) = (tile.depth, tile.a.as_ptr(), tile.b.as_ptr());
        let (rows, panels) = (tile.rows.len(), tile.columns.len() / LANES);
        let chain = CHAINS[rows - 1][panels - 1];
        // What is written last is asked for first.
        for i in 0..rows {
            for q in 0..panels {
                let at = tile.c.as_ptr().wrapping_add(i * tile.c_stride + q * LANES);
                _mm_prefetch::<_MM_HINT_ET0>(at.cast());
            }
        }
        // Clearing what a tile does not use would take as long as a short chain.
        let mut sums: [Vectors; 2] = [[[MaybeUninit::uninit(); PANELS]; TALL]; 2];
        // Both halves of 8 columns, and of the other 8.
        let mut wide = [[[MaybeUninit::uninit(); 2]; PANELS]; TALL];
        wide.iter_mut().take(rows).flat_map(|wide| &mut wide[..panels]).for_each(|wide| {
            *wide = [MaybeUninit::new(_mm512_setzero_ps()); 2];
        });
        for l in (0..depth).step_by(2 * CHAIN) {
            for (l, sums) in [l, l + CHAIN].into_iter().zip(&mut sums) {
                let (n, a, b) = (CHAIN.min(depth.saturating_sub(l)), a.wrapping_add(l), b.wrapping_add(l * LANES));
                // SAFETY: the caller's promise, and no more units than there are, which may be none.
                unsafe { chain(n, depth, a, b, sums) };
            }
            for (i, wide) in wide.iter_mut().take(rows).enumerate() {
                for (q, wide) in wide.iter_mut().take(panels).enumerate() {
                    // SAFETY: a chain has written the sums of these rows and panels, and their wide ones were set.
                    let ([first, second], [low, high]) = unsafe {
                        ([sums[0][i][q].assume_init(), sums[1][i][q].assume_init()], wide.map(|w| w.assume_init()))
                    };
                    let sum = _mm512_add_ph(_mm512_castsi512_ph(first), _mm512_castsi512_ph(second));
                    let sum = _mm512_castph_si512(sum);
                    wide[0].write(_mm512_add_ps(low, _mm512_cvtph_ps(_mm512_castsi512_si256(sum))));
                    wide[1].write(_mm512_add_ps(high, _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sum))));
                }
            }
        }
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        for (i, (row, wide)) in tile.rows.iter().zip(&wide).enumerate() {
            for (q, (columns, wide)) in tile.columns.chunks_exact(LANES).zip(wide).enumerate() {
                // SAFETY: those of these rows and panels were set.
                let [low, high] = unsafe { wide.map(|w| w.assume_init()) };
                let first = _mm512_permutex2var_ps(low, even, high);
                let second = _mm512_permutex2var_ps(low, odd, high);
                // SAFETY: 16 columns.
                let power = _mm512_add_ps(unsafe { _mm512_loadu_ps(columns.as_ptr()) }, _mm512_set1_ps(*row));
                let mut result = _mm512_scalef_ps(_mm512_add_ps(first, second), power);
                let left = tile.width.saturating_sub(q * LANES);
                let mask: __mmask16 = if left >= LANES { !0 } else { (1 << left) - 1 };
                // SAFETY: what is read and written is masked to the rows and columns that there are.
                unsafe {
                    if !tile.add.is_empty() {
                        let add = tile.add.as_ptr().wrapping_add(i * tile.add_stride + q * LANES);
                        result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(mask, add));
                    }
                    let c = tile.c.as_mut_ptr().wrapping_add(i * tile.c_stride + q * LANES);
                    _mm512_mask_storeu_ps(c, mask, result);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
