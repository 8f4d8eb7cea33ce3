//! The code of four bits: a number is the low byte of its sixteen bits, and half a byte for the high one, that is its sign
//! and how far the upper seven bits of its exponent lie below the row's top, 0 to 7. So a row spans a factor of 2¹⁵ at least, and
//! one look-up gives the high byte. Of normally distributed numbers fewer than one in three thousand lie elsewhere; such a one stands in
//! the row's list with its place, three bytes above its high byte, in the order of places.
//!
//! A block is 64 low bytes, then 32 bytes of codes: those of the first 32 numbers in the lower halves, the others in the upper.
//! Of each 32 the numbers come in runs of four: the first four of each eight, then the second four, which is how bytes and then
//! units of sixteen bits interleave within lanes of 128.

use super::BLOCK;
use crate::kernels::simd::simd;
use half::bf16;

/// Bytes of a block.
pub(super) const BYTES: usize = BLOCK + BLOCK / 2;
/// Bytes of a number in the list.
pub(super) const LISTED: usize = 4;
/// How many codes there are beside the sign, whose bit is this one.
pub(super) const CODES: usize = 8;
/// Which number of a block each of its bytes is of.
const ORDER: [usize; BLOCK] = {
    let mut order = [0; BLOCK];
    let mut at = 0;
    while at < BLOCK {
        order[at] = at / 32 * 32 + at % 16 / 4 * 8 + at % 32 / 16 * 4 + at % 4;
        at += 1;
    }
    order
};

/// How far a number lies below the top.
#[inline(always)]
fn below(top: u8, bits: u16) -> u8 {
    top.wrapping_sub((bits >> 8 & 0x7F) as u8)
}

#[inline(always)]
fn is_elsewhere(top: u8, bits: u16) -> bool {
    usize::from(below(top, bits)) >= CODES
}

/// How many numbers of a row lie elsewhere.
pub(super) fn elsewhere(top: u8, row: &[bf16]) -> usize {
    let mut count = 0u32;
    simd(
        #[inline(always)]
        || row.iter().for_each(|x| count += u32::from(is_elsewhere(top, x.to_bits()))),
    );
    count as usize
}

/// Writes block i of a row, and to the list what lies elsewhere; returns how many bytes of it that is.
pub(super) fn pack(top: u8, (i, bits): (usize, &[u16; BLOCK]), list: &mut [u8], to: &mut [u8]) -> usize {
    let Some(to) = to.first_chunk_mut() else { return 0 };
    // SAFETY: a form is made only where the CPU has the instructions.
    #[allow(unsafe_code)]
    if unsafe { avx2::pack(top, bits, to) } {
        return 0;
    }
    let found = ORDER.iter().enumerate().filter(|(_, n)| is_elsewhere(top, bits[**n]));
    let mut listed = 0;
    for ((at, n), to) in found.zip(list.as_chunks_mut().0) {
        *to = (((i * BLOCK + at) as u32) << 8 | u32::from(bits[*n] >> 8)).to_le_bytes();
        listed += LISTED;
    }
    listed
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! Making the form, and the dot product in the order of [`simd::dot`], in AVX2.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{
        super::{BLOCK, Packed, PackedRow},
        BYTES, CODES, LISTED, ORDER,
    };
    use crate::kernels::{
        simd::{self, UNROLL},
        tile::LANES,
    };
    use half::bf16;
    use std::arch::x86_64::*;

    /// What is listed of a row, from its next number on.
    struct List<'a>(&'a [[u8; LISTED]]);

    impl List<'_> {
        /// The block of the next number; past all blocks if there is none.
        #[inline(always)]
        fn block(&self) -> usize {
            self.0.first().map_or(usize::MAX, |next| u32::from_le_bytes(*next) as usize >> 8) / BLOCK
        }

        /// Puts the high bytes of block i where they belong.
        #[cold]
        fn put(&mut self, i: usize, high: &mut [u8; BLOCK]) {
            while self.block() == i
                && let [next, rest @ ..] = self.0
            {
                let next = u32::from_le_bytes(*next);
                high[(next >> 8) as usize % BLOCK] = next as u8;
                self.0 = rest;
            }
        }
    }

    /// Writes a block; whether all its numbers lie near the top.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn pack(top: u8, bits: &[u16; BLOCK], to: &mut [u8; BYTES]) -> bool {
        let (byte, exponent) = (_mm256_set1_epi16(0xFF), _mm256_set1_epi8(0x7F));
        let (top, code) = (_mm256_set1_epi8(top.cast_signed()), _mm256_set1_epi8(CODES as i8 - 1));
        let (sign, half) = (_mm256_set1_epi8(CODES as i8), _mm256_set1_epi8(0xF));
        // Two vectors of units make one of bytes, four at a time from the one and the other; this is where they belong.
        let in_order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
        let mut codes = [_mm256_setzero_si256(); 2];
        let mut far = _mm256_setzero_si256();
        for (h, codes) in codes.iter_mut().enumerate() {
            // SAFETY: 32 numbers are two vectors, and half the low bytes one.
            unsafe {
                let from = bits.as_ptr().add(32 * h);
                let (first, second) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
                let low = _mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(second, byte));
                let high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(first), _mm256_srli_epi16::<8>(second));
                let low = _mm256_permutevar8x32_epi32(low, in_order);
                _mm256_storeu_si256(to.as_mut_ptr().add(32 * h).cast(), low);
                let high = _mm256_permutevar8x32_epi32(high, in_order);
                let below = _mm256_sub_epi8(top, _mm256_and_si256(high, exponent));
                far = _mm256_or_si256(far, _mm256_andnot_si256(code, below));
                let signs = _mm256_and_si256(_mm256_srli_epi16::<4>(high), sign);
                *codes = _mm256_or_si256(_mm256_and_si256(below, code), signs);
            }
        }
        let upper = _mm256_slli_epi16::<4>(_mm256_and_si256(codes[1], half));
        // SAFETY: the codes are as many bytes as a vector.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().add(BLOCK).cast(), _mm256_or_si256(codes[0], upper)) };
        _mm256_testz_si256(far, far) == 1
    }

    /// Dot products of the next rows with x.
    ///
    /// # Safety
    /// The CPU has the instructions; each row has as many whole blocks as x needs.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn dots(rows: Packed, x: &[f32], y: &mut [f32]) {
        for (y, row) in y.iter_mut().zip(rows) {
            // SAFETY: the caller's promise.
            *y = unsafe { dot(row, x) };
        }
    }

    /// Dot product of a row with x.
    ///
    /// # Safety
    /// As for [`dots`].
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot((top, list, row): PackedRow, x: &[f32]) -> f32 {
        /// Bytes ahead of those in use that are fetched.
        const AHEAD: usize = 4096;
        let (list, blocks) = row.split_at(list);
        let (mut list, blocks) = (List(list.as_chunks().0), blocks.as_chunks::<BYTES>().0);
        let mut next = list.block();
        let table = table(top);
        let (whole, rest) = x.as_chunks::<BLOCK>();
        let mut sums = [[_mm256_setzero_ps(); 2]; UNROLL];
        for (i, (block, x)) in blocks.iter().zip(whole).enumerate() {
            let ahead = block.as_ptr().wrapping_add(AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
            let mut high = high(table, block);
            if i == next {
                list.put(i, bytemuck::cast_mut(&mut high));
                next = list.block();
            }
            let numbers = widened(block, high);
            // SAFETY: x is a block of numbers.
            unsafe {
                for u in 0..UNROLL {
                    for h in 0..2 {
                        let x = _mm256_loadu_ps(x.as_ptr().add(u * LANES + 8 * h));
                        sums[u][h] = _mm256_fmadd_ps(numbers[2 * u + h], x, sums[u][h]);
                    }
                }
            }
        }
        if rest.is_empty() {
            return total(sums);
        }
        let mut last = [bf16::ZERO; BLOCK];
        if let Some(block) = blocks.get(whole.len()) {
            let mut high = bytemuck::cast(high(table, block));
            list.put(whole.len(), &mut high);
            for (at, n) in ORDER.iter().enumerate() {
                last[*n] = bf16::from_bits(u16::from_le_bytes([block[at], high[at]]));
            }
        }
        simd::finish::<bf16>(bytemuck::cast(sums), &last[..rest.len()], rest)
    }

    /// What [`simd::finish`] makes of sums where nothing is left, in its order, but in registers: there they go through memory, which
    /// takes as long as several blocks.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn total(sums: [[__m256; 2]; UNROLL]) -> f32 {
        let mut sum = [_mm256_setzero_ps(); 2];
        for sums in sums {
            for (sum, more) in sum.iter_mut().zip(sums) {
                *sum = _mm256_add_ps(*sum, more);
            }
        }
        let eight = _mm256_add_ps(sum[0], sum[1]);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// The high byte of each code, in both lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn table(top: u8) -> __m256i {
        let code = |i: usize| ((i & CODES) << 4) as u8 | (top - (i % CODES) as u8);
        let table: [u8; 16] = std::array::from_fn(code);
        _mm256_broadcastsi128_si256(bytemuck::cast(table))
    }

    /// The high bytes of a block as its codes say.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn high(table: __m256i, block: &[u8; BYTES]) -> [__m256i; 2] {
        // SAFETY: the codes are as many bytes as a vector.
        let codes = unsafe { _mm256_loadu_si256(block.as_ptr().add(BLOCK).cast()) };
        let half = _mm256_set1_epi8(0xF);
        let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), half);
        [_mm256_shuffle_epi8(table, _mm256_and_si256(codes, half)), _mm256_shuffle_epi8(table, upper)]
    }

    /// The numbers of a block, in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn widened(block: &[u8; BYTES], high: [__m256i; 2]) -> [__m256; 2 * UNROLL] {
        let zero = _mm256_setzero_si256();
        let mut numbers = [_mm256_setzero_ps(); 2 * UNROLL];
        for (h, high) in high.into_iter().enumerate() {
            // SAFETY: the low bytes are as many as two vectors.
            let low = unsafe { _mm256_loadu_si256(block.as_ptr().add(32 * h).cast()) };
            let units = [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
            for (u, units) in units.into_iter().enumerate() {
                let at = 4 * h + 2 * u;
                numbers[at] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, units));
                numbers[at + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, units));
            }
        }
        numbers
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) mod avx2 {
    //! No other CPU has the form, as [`super::super::Code::is_read`] says: nothing of this runs.
    #![allow(unsafe_code)]

    use super::{
        super::{BLOCK, Packed},
        BYTES,
    };

    /// # Safety
    /// None is asked for.
    pub(super) unsafe fn pack(_: u8, _: &[u16; BLOCK], _: &mut [u8; BYTES]) -> bool {
        true
    }

    /// # Safety
    /// None is asked for.
    pub(in super::super) unsafe fn dots(_: Packed, _: &[f32], _: &mut [f32]) {}
}
