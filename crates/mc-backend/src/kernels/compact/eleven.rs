//! The code of three bits: a number is a byte of fraction and sign, and three bits that say how far its exponent lies below the
//! row's top, 0 to 6, or 7 for one that lies elsewhere, whose exponent is a byte of the row's list. Of normally distributed
//! numbers about 2.5% lie elsewhere, which makes 11.2 bits.
//!
//! A block is 64 bytes of fractions and signs, then 24 bytes of codes, the first number's in
//! the lowest bits. Its numbers come in runs of eight: the first eight of the first 32, the first eight of the other 32, the
//! second eight of the first 32, and so on, which is how bytes of two vectors interleave.

use super::BLOCK;

/// Bytes of a block.
pub(super) const BYTES: usize = BLOCK + BLOCK / 8 * 3;
/// The code of a number whose exponent lies elsewhere.
pub(super) const ELSEWHERE: u8 = 7;

pub(super) fn is_read() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// How many exponents of a block lie elsewhere.
pub(super) fn elsewhere(top: u8, bits: &[u16; BLOCK]) -> usize {
    // SAFETY: a form is made only where the CPU has the instructions.
    #[allow(unsafe_code)]
    unsafe {
        avx512::elsewhere(top, bits)
    }
}

/// Writes a block, and to the list the exponents that lie elsewhere; returns how many bytes of it those are.
pub(super) fn pack(top: u8, bits: &[u16; BLOCK], list: &mut [u8], to: &mut [u8]) -> usize {
    let Some(to) = to.first_chunk_mut() else { return 0 };
    // SAFETY: a form is made only where the CPU has the instructions.
    #[allow(unsafe_code)]
    let (far, n) = unsafe { avx512::pack(top, bits, to) };
    list[..n].copy_from_slice(&far[..n]);
    n
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    //! Making the form, and dot products, in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{
        super::{BLOCK, Packed, PackedRow},
        BYTES, ELSEWHERE,
    };
    use crate::kernels::{
        dots::avx512::{ROWS, totals},
        few::avx512::{GROUPS, add, together},
    };
    use std::arch::x86_64::*;

    /// For each of eight bytes of codes, which of the 24 it reads; only the first three count.
    const SPREAD: [u8; 64] = {
        let mut at = [0; 64];
        let mut i = 0;
        while i < 64 {
            at[i] = (i / 8 * 3 + i % 8 % 3) as u8;
            i += 1;
        }
        at
    };
    /// The other way round: of each eight bytes the first three.
    const GATHER: [u8; 64] = {
        let mut at = [0; 64];
        let mut i = 0;
        while i < BYTES - BLOCK {
            at[i] = (i / 3 * 8 + i % 3) as u8;
            i += 1;
        }
        at
    };
    /// The bytes of a block's codes.
    const CODES: __mmask32 = (1 << (BYTES - BLOCK)) - 1;
    /// The first bit of each of eight codes.
    const BITS: i64 = i64::from_le_bytes([0, 3, 6, 9, 12, 15, 18, 21]);

    /// What a block is made of.
    struct Parts {
        fractions: __m512i,
        exponents: __m512i,
        codes: __m512i,
        /// Which exponents lie elsewhere.
        asked: __mmask64,
    }

    /// Takes numbers apart.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[inline]
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    unsafe fn take_apart(top: u8, bits: &[u16; BLOCK]) -> Parts {
        let (low, last) = (_mm512_set1_epi16(0xFF), _mm512_set1_epi8(ELSEWHERE.cast_signed()));
        // SAFETY: a block is two vectors.
        let (first, second) = unsafe {
            let from = bits.as_ptr();
            (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(BLOCK / 2).cast()))
        };
        // Turned by one, fraction and sign are below and the exponent is above.
        let first = _mm512_shldi_epi16::<1>(first, first);
        let second = _mm512_shldi_epi16::<1>(second, second);
        let fractions = _mm512_packus_epi16(_mm512_and_si512(first, low), _mm512_and_si512(second, low));
        let exponents = _mm512_packus_epi16(_mm512_srli_epi16::<8>(first), _mm512_srli_epi16::<8>(second));
        let codes = _mm512_min_epu8(_mm512_sub_epi8(_mm512_set1_epi8(top.cast_signed()), exponents), last);
        Parts { fractions, exponents, codes, asked: _mm512_cmpeq_epi8_mask(codes, last) }
    }

    /// How many exponents of a block lie elsewhere.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    pub(super) unsafe fn elsewhere(top: u8, bits: &[u16; BLOCK]) -> usize {
        // SAFETY: the caller's promise.
        unsafe { take_apart(top, bits).asked.count_ones() as usize }
    }

    /// Writes a block; returns the exponents that lie elsewhere, and their number.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    pub(super) unsafe fn pack(top: u8, bits: &[u16; BLOCK], to: &mut [u8; BYTES]) -> ([u8; BLOCK], usize) {
        let mut elsewhere = [0; BLOCK];
        // SAFETY: the caller's promise; a block is written, and as many exponents as there may be.
        unsafe {
            let Parts { fractions, exponents, codes, asked } = take_apart(top, bits);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), fractions);
            // Neighbours move together: two codes in 6 bits, four in 12, eight in 24.
            let two = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0801));
            let four = _mm512_madd_epi16(two, _mm512_set1_epi32(0x0040_0001));
            let eight = _mm512_or_si512(four, _mm512_srli_epi64::<20>(four));
            let gather = _mm512_loadu_si512(GATHER.as_ptr().cast());
            let packed = _mm512_castsi512_si256(_mm512_permutexvar_epi8(gather, eight));
            _mm256_mask_storeu_epi8(to.as_mut_ptr().add(BLOCK).cast(), CODES, packed);
            _mm512_storeu_si512(elsewhere.as_mut_ptr().cast(), _mm512_maskz_compress_epi8(asked, exponents));
            (elsewhere, asked.count_ones() as usize)
        }
    }

    /// Dot products of the next rows with x.
    ///
    /// # Safety
    /// The CPU has the instructions; each row has so many exponents, as its codes ask for, and then whole blocks, at least one, so
    /// that a vector can be read wherever exponents are; `even` and `odd` are as long as the blocks.
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    pub(in super::super) unsafe fn dots(mut rows: Packed, even: &[f32], odd: &[f32], y: &mut [f32]) {
        for y in y.chunks_mut(ROWS) {
            let mut sums = [_mm512_setzero_ps(); ROWS];
            for (sum, row) in sums.iter_mut().take(y.len()).zip(&mut rows) {
                // SAFETY: the caller's promise.
                *sum = unsafe { products(row, even, odd) };
            }
            y.copy_from_slice(&totals(&sums)[..y.len()]);
        }
    }

    /// What is the same for all blocks of a row.
    struct Row {
        /// The exponent of each code, 0 for those that lie elsewhere, eight times: a look-up heeds six bits of an index, of
        /// which three are the next code's.
        exponents: __m512i,
        spread: __m512i,
        bits: __m512i,
    }

    /// Products of a row with x, added up in 16 sums.
    ///
    /// # Safety
    /// As for [`dots`].
    #[inline]
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    unsafe fn products((top, list, row): PackedRow, even: &[f32], odd: &[f32]) -> __m512 {
        let blocks = &row[list..];
        let mut sums = [_mm512_setzero_ps(); 2 * GROUPS];
        let (mut elsewhere, mut even, mut odd) = (row.as_ptr(), even.as_ptr(), odd.as_ptr());
        let steps = _mm512_set1_epi64(i64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 0]));
        let near = !(0x0101_0101_0101_0101 << ELSEWHERE);
        let of_row = Row {
            exponents: _mm512_maskz_sub_epi8(near, _mm512_set1_epi8(top.cast_signed()), steps),
            // SAFETY: as long as a vector.
            spread: unsafe { _mm512_loadu_si512(SPREAD.as_ptr().cast()) },
            bits: _mm512_set1_epi64(BITS),
        };
        let (pairs, last) = blocks.as_chunks::<{ 2 * BYTES }>();
        // SAFETY: all of a block is there, and its numbers of x and its exponents.
        unsafe {
            for pair in pairs {
                add_block(&mut sums, 0, &of_row, pair.as_ptr(), &mut elsewhere, even, odd);
                let next = (even.add(BLOCK / 2), odd.add(BLOCK / 2));
                add_block(&mut sums, 2, &of_row, pair.as_ptr().add(BYTES), &mut elsewhere, next.0, next.1);
                (even, odd) = (next.0.add(BLOCK / 2), next.1.add(BLOCK / 2));
            }
            if !last.is_empty() {
                add_block(&mut sums, 0, &of_row, last.as_ptr(), &mut elsewhere, even, odd);
            }
        }
        together(sums)
    }

    /// Loads a vector, in an instruction of its own: as part of the one that expands it, it makes decoding slower
    /// than from sixteen bits (measured on Zen 5: docs/benchmarks.md).
    ///
    /// # Safety
    /// The CPU has the instructions, and the bytes are there.
    #[inline]
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    unsafe fn load(from: *const u8) -> __m512i {
        let loaded: __m512i;
        // SAFETY: the caller's promise; nothing is written.
        unsafe {
            std::arch::asm!("vmovdqu64 {0}, [{1}]", out(zmm_reg) loaded, in(reg) from,
                options(pure, readonly, nostack, preserves_flags));
        }
        loaded
    }

    /// Adds the products of a block with x to the sums from `group` on.
    ///
    /// # Safety
    /// As for [`dots`].
    #[inline]
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    unsafe fn add_block(
        sums: &mut [__m512; 2 * GROUPS],
        group: usize,
        row: &Row,
        at: *const u8,
        elsewhere: &mut *const u8,
        even: *const f32,
        odd: *const f32,
    ) {
        /// Bytes ahead of those in use that are fetched, into L2: past it Golden Cove, which waits for fewer lines there, is slower
        /// than without this form (docs/benchmarks.md).
        const AHEAD: usize = 5120;
        // SAFETY: the caller's promise; what is fetched ahead need not be there.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(AHEAD + 64).cast());
            let codes = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(CODES, at.add(BLOCK).cast()));
            let codes = _mm512_multishift_epi64_epi8(row.bits, _mm512_permutexvar_epi8(row.spread, codes));
            let exponent = _mm512_permutexvar_epi8(codes, row.exponents);
            let asked = _mm512_testn_epi8_mask(exponent, exponent);
            let exponent = _mm512_mask_expand_epi8(exponent, asked, load(*elsewhere));
            *elsewhere = elsewhere.add(asked.count_ones() as usize);
            let fraction = _mm512_loadu_si512(at.cast());
            // Exponent, fraction and sign in 16 bits; turned by one, the sign is in front.
            let first = _mm512_unpacklo_epi8(fraction, exponent);
            let second = _mm512_unpackhi_epi8(fraction, exponent);
            add(sums, group, _mm512_shrdi_epi16::<1>(first, first), even, odd);
            add(sums, group + 1, _mm512_shrdi_epi16::<1>(second, second), even.add(16), odd.add(16));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) mod avx512 {
    //! No other CPU has the form, as [`super::is_read`] says: nothing of this runs.
    #![allow(unsafe_code)]

    use super::{
        super::{BLOCK, Packed},
        BYTES,
    };

    /// # Safety
    /// None is asked for.
    pub(super) unsafe fn elsewhere(_: u8, _: &[u16; BLOCK]) -> usize {
        0
    }

    /// # Safety
    /// None is asked for.
    pub(super) unsafe fn pack(_: u8, _: &[u16; BLOCK], _: &mut [u8; BYTES]) -> ([u8; BLOCK], usize) {
        ([0; BLOCK], 0)
    }

    /// # Safety
    /// None is asked for.
    pub(in super::super) unsafe fn dots(_: Packed, _: &[f32], _: &[f32], _: &mut [f32]) {}
}
