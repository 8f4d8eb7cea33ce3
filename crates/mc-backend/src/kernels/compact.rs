//! Matrices of `bf16` in twelve bits a number, without loss: what decoding reads, which is as fast as memory.
//!
//! The exponents of a trained matrix lie close together (measured for language models by Zhang et al., "70% Size, 100%
//! Accuracy", 2025): of 128 neighbours all but one in some thousands are within 2¹⁴ of the largest. So a block of 128
//! numbers is the largest exponent once, then of each number sign and fraction in a byte, and in half a byte how far its
//! exponent lies below, 15 for zero. A block with a number that lies further below stays as it is, and so does the rest of a
//! row that would not be shorter. Widened, a number is what it was, and products add in the order of [`super::few`]: nobody
//! can tell which form was read. A row takes three quarters where its width is a multiple of 128; of 576 numbers, 78%.
//!
//! A block is three lines of 64 bytes. Numbers come in four groups of 32: 16 bytes of the even ones, 16 of the odd ones; the
//! last line has for each group 16 bytes with an even number's distance in the lower half and the odd one's in the upper.

use super::simd::simd;
use half::bf16;
use rayon::prelude::*;

/// Numbers of a block.
pub(crate) const BLOCK: usize = 128;
/// Lines of a block in this form.
const LINES: usize = 3;
/// Numbers of a line of a block that stays as it is.
const PLAIN: usize = 32;
/// The distance that stands for zero.
const ZERO: u16 = 15;

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// The compact form of a matrix.
pub(crate) struct Compact {
    /// Numbers of a row.
    width: usize,
    /// The largest exponent of each block, 0 where it stays as it is; row by row.
    tops: Vec<u8>,
    /// The first line of each row, and the end.
    starts: Vec<usize>,
    lines: Vec<Line>,
}

/// Whether this CPU reads the form, and rows of so many numbers, an even number, may have it.
pub(crate) fn serves(width: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has && width > 0 && width.is_multiple_of(2)
}

/// Bytes that the form of so many rows takes, if no block stays as it is.
pub(crate) fn bytes(rows: usize, width: usize) -> u64 {
    let rest = width % BLOCK;
    let lines = width / BLOCK * LINES + lines_of(u8::from(is_shorter(rest)), rest);
    (rows * lines * size_of::<Line>()) as u64
}

impl Compact {
    /// The form of rows of `width` numbers, or `None` where it would save less than an eighth.
    pub(crate) fn new(w: &[bf16], width: usize) -> Option<Self> {
        /// Rows that one unit of work packs.
        const ROWS: usize = 256;
        let saves = |bytes: u64| 8 * bytes <= 7 * (size_of_val(w) as u64);
        if !serves(width) || !saves(bytes(w.len() / width, width)) {
            return None;
        }
        let (rows, per_row) = (w.len() / width, width.div_ceil(BLOCK));
        let mut tops = vec![0u8; rows * per_row];
        let chunks = tops.par_chunks_mut(ROWS * per_row).zip(w.par_chunks(ROWS * width));
        chunks.for_each(|(tops, w)| {
            for (tops, row) in tops.chunks_exact_mut(per_row).zip(w.chunks_exact(width)) {
                tops.iter_mut().zip(row.chunks(BLOCK)).for_each(|(t, block)| {
                    *t = if is_shorter(block.len()) { top(&padded(block)) } else { 0 };
                });
            }
        });
        let mut starts = vec![0];
        starts.extend(tops.chunks_exact(per_row).scan(0, |end, tops| {
            let lines = tops.iter().enumerate().map(|(b, t)| lines_of(*t, BLOCK.min(width - b * BLOCK)));
            *end += lines.sum::<usize>();
            Some(*end)
        }));
        if !saves((starts[rows] * size_of::<Line>()) as u64) {
            return None;
        }
        let mut lines = vec![Line([0; 64]); starts[rows]];
        let mut units = vec![];
        let mut rest = &mut lines[..];
        for first in (0..rows).step_by(ROWS) {
            let end = (first + ROWS).min(rows);
            let (unit, after) = rest.split_at_mut(starts[end] - starts[first]);
            units.push((unit, &tops[first * per_row..end * per_row], &w[first * width..end * width]));
            rest = after;
        }
        units.into_par_iter().for_each(|(mut lines, tops, w)| {
            for (tops, row) in tops.chunks_exact(per_row).zip(w.chunks_exact(width)) {
                for (t, block) in tops.iter().zip(row.chunks(BLOCK)) {
                    let (to, after) = std::mem::take(&mut lines).split_at_mut(lines_of(*t, block.len()));
                    pack(*t, &padded(block), to);
                    lines = after;
                }
            }
        });
        Some(Self { width, tops, starts, lines })
    }

    /// Dot products of the rows from `first` on with x, given as its even and its odd numbers, both padded with zeros to
    /// whole blocks.
    pub(crate) fn dots(&self, first: usize, even: &[f32], odd: &[f32], y: &mut [f32]) {
        let per_row = self.width.div_ceil(BLOCK);
        assert!(even.len() >= per_row * BLOCK / 2 && odd.len() >= per_row * BLOCK / 2, "x is shorter than a row");
        for (i, y) in y.iter_mut().enumerate() {
            let row = first + i;
            let lines = &self.lines[self.starts[row]..self.starts[row + 1]];
            let tops = &self.tops[row * per_row..(row + 1) * per_row];
            #[cfg(target_arch = "x86_64")]
            {
                // SAFETY: `new` makes the form only where the CPU has AVX-512, `lines` are those that `tops` ask for in a
                // row of this width, and x is as long as the blocks, as asserted.
                #[allow(unsafe_code)]
                unsafe {
                    *y = avx512::dot((tops, lines), self.width, even, odd);
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (lines, tops, &y);
        }
    }
}

fn lines_of(top: u8, numbers: usize) -> usize {
    if top == 0 { numbers.div_ceil(PLAIN) } else { LINES }
}

/// Whether a block of so many numbers is shorter in the form than as it is.
fn is_shorter(numbers: usize) -> bool {
    LINES < numbers.div_ceil(PLAIN)
}

/// The bits of a block, with zeros after the end of a row.
#[inline(always)]
fn padded(block: &[bf16]) -> [u16; BLOCK] {
    let mut bits = [0u16; BLOCK];
    bits.iter_mut().zip(block).for_each(|(b, x)| *b = x.to_bits());
    bits
}

/// The largest exponent, or 0 if the block stays as it is.
fn top(bits: &[u16; BLOCK]) -> u8 {
    simd(
        #[inline(always)]
        || {
            let mut top = 0;
            for x in bits {
                top = top.max(x >> 7 & 0xFF);
            }
            let mut near = true;
            for x in bits {
                let exponent = x >> 7 & 0xFF;
                near &= x << 1 == 0 || exponent > 0 && top - exponent < ZERO;
            }
            // A block of zeros has any.
            if near { top.max(1) as u8 } else { 0 }
        },
    )
}

fn pack(top: u8, bits: &[u16; BLOCK], lines: &mut [Line]) {
    if top == 0 {
        for (line, bits) in lines.iter_mut().zip(bits.chunks_exact(PLAIN)) {
            line.0.copy_from_slice(bytemuck::cast_slice(bits));
        }
        return;
    }
    let top = u16::from(top);
    let (mut bytes, mut far) = ([0u8; BLOCK], [0u8; BLOCK]);
    simd(
        #[inline(always)]
        || {
            for ((x, byte), far) in bits.iter().zip(&mut bytes).zip(&mut far) {
                let zero = x << 1 == 0;
                *byte = (x >> 8 & 0x80 | x & 0x7F) as u8;
                *far = if zero { ZERO as u8 } else { (top.wrapping_sub(x >> 7 & 0xFF)) as u8 };
            }
        },
    );
    let (numbers, distances) = lines.split_at_mut(2);
    for group in 0..4 {
        let (bytes, far) = (&bytes[group * 32..][..32], &far[group * 32..][..32]);
        let to = &mut numbers[group / 2].0[group % 2 * 32..][..32];
        for j in 0..16 {
            to[j] = bytes[2 * j];
            to[16 + j] = bytes[2 * j + 1];
            distances[0].0[group * 16 + j] = far[2 * j] | far[2 * j + 1] << 4;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The dot product in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{BLOCK, LINES, Line, PLAIN};
    use crate::kernels::few::avx512::{GROUPS, add, total};
    use std::arch::x86_64::*;

    /// Dot product of a row with x.
    ///
    /// # Safety
    /// The CPU has AVX-512; `lines` are the blocks that `tops` say of a row of so many numbers; `even` and `odd` are as long
    /// as whole blocks.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dot((tops, lines): (&[u8], &[Line]), width: usize, even: &[f32], odd: &[f32]) -> f32 {
        /// Lines ahead of the one in use that are fetched.
        const AHEAD: usize = 32;
        let mut sums = [_mm512_setzero_ps(); 2 * GROUPS];
        let (mut at, mut even, mut odd) = (lines.as_ptr(), even.as_ptr(), odd.as_ptr());
        let steps = _mm512_slli_epi32::<23>(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        let sign_and_fraction = _mm512_set1_epi32(0x807F_FFFF_u32.cast_signed());
        for (block, top) in tops.iter().enumerate() {
            // SAFETY: a block's lines and numbers of x are there; what is fetched ahead need not be.
            unsafe {
                for line in 0..LINES {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line).cast());
                }
                if *top == 0 {
                    let plain = GROUPS.min((width - block * BLOCK).div_ceil(PLAIN));
                    for i in 0..plain {
                        add(&mut sums, i, _mm512_loadu_si512(at.add(i).cast()), even.add(16 * i), odd.add(16 * i));
                    }
                    at = at.add(plain);
                } else {
                    let largest = _mm512_set1_epi32(i32::from(*top) << 23);
                    // The exponents of distances 0 to 14, and zero.
                    let exponents = _mm512_maskz_sub_epi32(0x7FFF, largest, steps);
                    for i in 0..GROUPS {
                        let (bytes, far) = (at.cast::<u8>().add(32 * i), at.add(2).cast::<u8>().add(16 * i));
                        let far = _mm512_cvtepu8_epi32(_mm_load_si128(far.cast()));
                        // A permutation heeds the lower four bits of each index.
                        let exponent = [
                            _mm512_permutexvar_epi32(far, exponents),
                            _mm512_permutexvar_epi32(_mm512_srli_epi32::<4>(far), exponents),
                        ];
                        for (half, exponent) in exponent.into_iter().enumerate() {
                            let byte = _mm512_cvtepi8_epi32(_mm_load_si128(bytes.add(16 * half).cast()));
                            // (byte << 16 & sign_and_fraction) | exponent
                            let w = _mm512_ternarylogic_epi32::<0xEA>(
                                _mm512_slli_epi32::<16>(byte),
                                sign_and_fraction,
                                exponent,
                            );
                            let x = _mm512_loadu_ps(if half == 0 { even } else { odd }.add(16 * i));
                            let sum = &mut sums[2 * i + half];
                            *sum = _mm512_fmadd_ps(_mm512_castsi512_ps(w), x, *sum);
                        }
                    }
                    at = at.add(LINES);
                }
                even = even.add(16 * GROUPS);
                odd = odd.add(16 * GROUPS);
            }
        }
        total(&sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with a spread of exponents, of which some are zero and a few too small.
    fn numbers(rows: usize, width: usize, seed: usize) -> Vec<bf16> {
        let number = |i: usize| {
            let bits = (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 17;
            match bits % 9973 {
                0 => bf16::from_f32(1e-20),
                1 => bf16::from_bits(3),
                2..9 => bf16::NEG_ZERO,
                9..99 => bf16::ZERO,
                n => bf16::from_f32((n as f32 - 4999.5) / 5000.0 + 0.01f32.copysign(n as f32 - 4999.5)),
            }
        };
        (0..rows * width).map(number).collect()
    }

    /// The numbers of a row, read back by products with unit vectors.
    fn read_back(form: &Compact, row: usize) -> Vec<f32> {
        let half = form.width.div_ceil(BLOCK) * BLOCK / 2;
        let at = |i: usize| {
            let mut halves = [vec![0f32; half], vec![0f32; half]];
            halves[i % 2][i / 2] = 1.0;
            let mut y = [f32::NAN];
            form.dots(row, &halves[0], &halves[1], &mut y);
            y[0]
        };
        (0..form.width).map(at).collect()
    }

    #[test]
    fn every_number_is_what_it_was() {
        if !serves(2) {
            return;
        }
        let (mut kept, mut packed) = (0, 0);
        for (rows, width) in [(3, 128), (5, 250), (2, 576), (600, 128), (40, 896), (20, 1022)] {
            let w = numbers(rows, width, rows * width);
            let form = Compact::new(&w, width).expect("it saves an eighth");
            let shorter = form.tops.iter().map(|top| usize::from(*top > 0)).sum::<usize>();
            (kept, packed) = (kept + form.tops.len() - shorter, packed + shorter);
            for row in 0..rows {
                let expected = w[row * width..(row + 1) * width].iter().map(|x| x.to_f32());
                // Sums begin at 0, which a zero of either sign leaves as it is.
                assert!(read_back(&form, row).into_iter().eq(expected), "row {row} of {rows} x {width}");
            }
        }
        assert!(kept > 0 && packed > 100, "{kept} {packed}");
    }

    #[test]
    fn infinity_stays() {
        if !serves(2) {
            return;
        }
        let mut w = vec![bf16::ONE; 256 * 20];
        w[256 * 3 + 5] = bf16::NEG_INFINITY;
        let form = Compact::new(&w, 256).expect("one block of forty stays as it is");
        let mut y = [0f32; 5];
        form.dots(0, &[1.0; 128], &[1.0; 128], &mut y);
        assert_eq!(y, [256.0, 256.0, 256.0, f32::NEG_INFINITY, 256.0]);
    }

    #[test]
    fn what_would_save_little_is_not_made() {
        let spread: Vec<bf16> = (0..1024).map(|i| bf16::from_f32(0.5f32.powi(i % 60))).collect();
        assert!(Compact::new(&spread, 128).is_none());
        // Rows that end in the first half of a block.
        assert!(Compact::new(&[bf16::ONE; 640], 64).is_none() && Compact::new(&[bf16::ONE; 1300], 130).is_none());
        assert!(!serves(0) && !serves(3));
    }
}
