//! Integers of 13 bits, whose pairs AVX2 multiplies and adds in one instruction (`vpmaddwd`): 16 products where `f32` has 8.
//!
//! - *Blocks.* Of each 128 numbers the largest becomes 4,095 or −4,095, so that 128 products fit 32 bits: 4095² · 128 < 2³¹. Sums of a
//!   block are exact; they are scaled and added up in `f32`. One large number costs those of its own block precision, and no others.
//! - *Precision.* A number is off by at most about 1/8,190 of its block's largest. For random numbers the error is 2.9·10⁻⁴ of a result,
//!   where rounding one side to `bf16` makes 17·10⁻⁴ (root mean squares, from the test `errors_are_smaller_than_those_of_bf16`).
//! - *Range.* Where a block's largest is below 2⁻¹¹³, what is 2⁻¹²⁶ and less is lost; where a row's is above 2¹⁰⁸, a result may be infinite
//!   or NaN. Where it is infinite or NaN itself, all of its row or column is NaN.
//!
//! A tile is up to 6 rows × 4 panels, which it goes through one after the other while its rows are in the first cache: 12 sums of 16
//! registers at a time. The loop over a block is a function by itself, for the reason in [`super::float`].

use super::{super::simd::simd, LANES, largest};

/// Units of a block.
pub(super) const BLOCK: usize = 64;
// What `Products::I16` tells, and no sum that does not fit.
const _: () = assert!(2 * BLOCK == 128 && 2 * BLOCK as u64 * (TOP as u64 * TOP as u64) <= i32::MAX as u64);
/// Rows of a tile, at most.
pub(super) const TALL: usize = 6;
/// Panels that a tile goes through while its rows are in the first cache.
pub(super) const PANELS: usize = 4;
/// What the largest number of a block becomes.
const TOP: f32 = 4095.0;
/// What it is taken for if it is less, so that no scale is subnormal: 2⁻¹¹³.
const LEAST: f32 = f32::from_bits((127 - 113) << 23);

/// A block of numbers as units, rounded to nearest with ties to even; what one of them stands for.
pub(super) fn encode(x: &[f32], units: &mut [u32]) -> f32 {
    /// Added to a number of few bits, this leaves it, rounded, in the lowest ones: 1.5·2²³.
    const ROUND: f32 = 12_582_912.0;
    let halves: &mut [u16] = bytemuck::cast_slice_mut(units);
    let (halves, rest) = halves.split_at_mut(x.len());
    rest.fill(0);
    let largest = f32::from_bits(largest(x));
    if !largest.is_finite() {
        halves.fill(0);
        return f32::NAN;
    }
    let largest = largest.max(LEAST);
    let by = TOP / largest;
    simd(
        #[inline(always)]
        || halves.iter_mut().zip(x).for_each(|(h, x)| *h = (x * by + ROUND).to_bits() as u16),
    );
    largest / TOP
}

/// The product of a row and a column, in plain Rust.
pub(super) fn product([row, column]: [&[u32]; 2], [rows, columns]: [&[f32]; 2]) -> f32 {
    let numbers = |unit: u32| [unit as u16, (unit >> 16) as u16].map(|h| i32::from(h.cast_signed()));
    let (row, column) = (row.chunks(BLOCK), column.chunks(BLOCK * LANES));
    let scales = rows.iter().zip(columns.iter().step_by(LANES));
    row.zip(column).zip(scales).fold(0.0, |sum, ((row, column), (of_row, of_column))| {
        let pairs = row.iter().zip(column.iter().step_by(LANES)).map(|(a, b)| (numbers(*a), numbers(*b)));
        let block: i32 = pairs.map(|(a, b)| a[0] * b[0] + a[1] * b[1]).sum();
        (block as f32 * of_row).mul_add(*of_column, sum)
    })
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::tile;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{super::Tile, BLOCK, LANES};
    use crate::kernels::tile::write;
    use std::arch::x86_64::*;

    /// Units of a vector.
    const WIDE: usize = LANES / 2;

    /// # Safety
    /// The CPU has AVX2 and FMA, and the tile is in bounds, as [`Tile::run`] asserts.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn tile(tile: &mut Tile) {
        for panel in 0..tile.size.1 {
            // SAFETY: the caller's promise; it has so many rows.
            unsafe {
                match tile.size.0 {
                    1 => rows::<1>(tile, panel),
                    2 => rows::<2>(tile, panel),
                    3 => rows::<3>(tile, panel),
                    4 => rows::<4>(tile, panel),
                    5 => rows::<5>(tile, panel),
                    6 => rows::<6>(tile, panel),
                    other => unreachable!("a tile of {other} rows"),
                }
            }
        }
    }

    /// R rows of one panel.
    ///
    /// # Safety
    /// As for [`tile`], which has R rows and this panel.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn rows<const R: usize>(tile: &mut Tile, panel: usize) {
        let (depth, blocks) = (tile.depth, tile.rows.len() / R);
        let b = tile.b[panel * LANES * depth..(panel + 1) * LANES * depth].as_ptr();
        let columns = &tile.columns[panel * LANES * blocks..(panel + 1) * LANES * blocks];
        let mut wide = [[_mm256_setzero_ps(); 2]; R];
        for (k, columns) in columns.chunks_exact(LANES).enumerate() {
            let first = k * BLOCK;
            let n = BLOCK.min(depth - first);
            // SAFETY: R rows and the panel have units `first..first + n`; of scales there are one a row and block, and 16.
            unsafe {
                let (a, rows) = (tile.a.as_ptr().add(first), tile.rows.as_ptr().add(k));
                block(n, (a, depth), b.add(first * LANES), (rows, blocks), columns.as_ptr(), &mut wide);
            }
        }
        let from = panel * LANES;
        let cols = tile.width.saturating_sub(from).min(LANES);
        for (i, [low, high]) in wide.into_iter().enumerate() {
            let start = (!tile.add.is_empty()).then(|| tile.add.as_ptr().wrapping_add(i * tile.add_stride + from));
            let c = tile.c.as_mut_ptr().wrapping_add(i * tile.c_stride + from);
            // SAFETY: row i, with so many columns, is inside `c` and inside `add`, if there is one; two vectors are 16 numbers.
            unsafe {
                if cols == LANES {
                    let (mut low, mut high) = (low, high);
                    if let Some(start) = start {
                        low = _mm256_add_ps(low, _mm256_loadu_ps(start));
                        high = _mm256_add_ps(high, _mm256_loadu_ps(start.add(WIDE)));
                    }
                    _mm256_storeu_ps(c, low);
                    _mm256_storeu_ps(c.add(WIDE), high);
                } else {
                    let sums = std::mem::transmute::<[__m256; 2], [f32; LANES]>([low, high]);
                    write(sums, cols, start.unwrap_or(std::ptr::null()), c);
                }
            }
        }
    }

    /// Adds to `wide` the scaled sums of `n` units of R rows and of a panel.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA. For each row i there are `n` units from `a + i·stride` on, and a scale at `of_rows + i·next`; there are `n`
    /// units of the panel, 16 columns each, from `b` on, and 16 scales from `of_columns` on.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const R: usize>(
        n: usize,
        (a, stride): (*const u32, usize),
        b: *const u32,
        (of_rows, next): (*const f32, usize),
        of_columns: *const f32,
        wide: &mut [[__m256; 2]; R],
    ) {
        /// How far ahead B comes into the first cache.
        const AHEAD: usize = 32 * LANES;
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        let mut rows = [a; R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = a.wrapping_add(i * stride);
        }
        for l in 0..n {
            // SAFETY: unit l of the panel is 16 pairs.
            let columns = unsafe {
                let at = b.add(l * LANES);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(WIDE).cast())]
            };
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: unit l of the row.
                let row = _mm256_set1_epi32(unsafe { *row.add(l) }.cast_signed());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(row, column));
                }
            }
        }
        // SAFETY: 16 scales are two vectors.
        let of_columns = unsafe { [_mm256_loadu_ps(of_columns), _mm256_loadu_ps(of_columns.add(WIDE))] };
        for (i, (wide, sums)) in wide.iter_mut().zip(sums).enumerate() {
            // SAFETY: row i has a scale.
            let of_row = _mm256_set1_ps(unsafe { *of_rows.add(i * next) });
            for ((wide, sum), of_columns) in wide.iter_mut().zip(sums).zip(of_columns) {
                *wide = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), of_row), of_columns, *wide);
            }
        }
    }
}
