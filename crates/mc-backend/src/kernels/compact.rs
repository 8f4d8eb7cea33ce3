//! Matrices of `bf16` in eleven bits a number, without loss: what decoding reads, which is as fast as memory.
//!
//! The exponents of a trained matrix lie close together (measured for language models by Zhang et al., "70% Size, 100%
//! Accuracy", 2025): most numbers of a row are within a factor of 2⁷ of each other. So a number is a byte of fraction and sign,
//! and three bits that say how far its exponent lies below the row's top: 0 to 6, or 7 for one that lies elsewhere, whose
//! exponent is a byte in a stream of its own. Any number can be written, zero and infinity too; of normally distributed ones
//! about 2.5% lie elsewhere. Widened, a number is what it was, and products add in the order of [`super::few`]: nobody can
//! tell which form was read.
//!
//! A row begins with its top in a byte and in three how many exponents lie elsewhere; then come those, then blocks of 64 numbers,
//! the last one filled with zeros. A block is 64 bytes of fractions and signs, then 24 bytes of codes, the first number's in
//! the lowest bits. Its numbers come in runs of eight: the first eight of the first 32, the first eight of the other 32, the
//! second eight of the first 32, and so on, which is how bytes of two vectors interleave. All rows are one stream of bytes, as
//! memory likes it.

use half::bf16;
use rayon::prelude::*;

/// Numbers of a block.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a block.
const BYTES: usize = BLOCK + BLOCK / 8 * 3;
/// Bytes before a row's exponents.
const HEADER: usize = 4;
/// The code of a number whose exponent lies elsewhere.
const ELSEWHERE: u8 = 7;

/// The compact form of a matrix.
pub(crate) struct Compact {
    /// Numbers of a row.
    width: usize,
    rows: Vec<u8>,
    /// The first byte of each row, and the end.
    starts: Vec<usize>,
}

/// Whether this CPU reads the form, and rows of so many numbers, an even number, may have it.
pub(crate) fn serves(width: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has && width > 0 && width.is_multiple_of(2) && width <= (1 << 24) - BLOCK
}

/// Bytes that the form of so many rows takes, if no exponent lies elsewhere.
pub(crate) fn bytes(rows: usize, width: usize) -> u64 {
    (rows * row_bytes(width, 0)) as u64
}

fn row_bytes(width: usize, elsewhere: usize) -> usize {
    HEADER + elsewhere + width.div_ceil(BLOCK) * BYTES
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
        let mut tops = vec![(0, 0); w.len() / width];
        tops.par_chunks_mut(ROWS).zip(w.par_chunks(ROWS * width)).for_each(|(tops, w)| {
            for (row, (top, elsewhere)) in w.chunks_exact(width).zip(tops) {
                *top = best_top(row);
                // SAFETY: the CPU has the instructions, as `serves` says.
                #[allow(unsafe_code)]
                let count = |bits| unsafe { avx512::elsewhere(*top, &bits) };
                *elsewhere = blocks(row).map(count).sum();
            }
        });
        let mut starts = vec![0];
        starts.extend(tops.iter().scan(0, |end, (_, elsewhere)| {
            *end += row_bytes(width, *elsewhere);
            Some(*end)
        }));
        let end = starts[tops.len()];
        if !saves(end as u64) {
            return None;
        }
        let (mut rows, mut units) = (vec![0u8; end], vec![]);
        let mut rest = &mut rows[..];
        for (first, tops) in (0..).step_by(ROWS).zip(tops.chunks(ROWS)) {
            let (unit, after) = rest.split_at_mut(starts[first + tops.len()] - starts[first]);
            units.push((unit, tops, &w[first * width..(first + tops.len()) * width]));
            rest = after;
        }
        units.into_par_iter().for_each(|(mut unit, tops, w)| {
            for ((top, elsewhere), row) in tops.iter().zip(w.chunks_exact(width)) {
                let (to, after) = std::mem::take(&mut unit).split_at_mut(row_bytes(width, *elsewhere));
                pack(*top, *elsewhere, row, to);
                unit = after;
            }
        });
        Some(Self { width, rows, starts })
    }

    /// Dot products of the rows from `first` on with x, given as its even and its odd numbers, both padded with zeros to
    /// whole blocks.
    pub(crate) fn dots(&self, first: usize, even: &[f32], odd: &[f32], y: &mut [f32]) {
        let half = self.width.div_ceil(BLOCK) * BLOCK / 2;
        assert!(even.len() >= half && odd.len() >= half, "x is shorter than a row");
        let mut rest = &self.rows[self.starts[first]..];
        for y in y {
            let header = rest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            let (top, elsewhere) = (header as u8, (header >> 8) as usize);
            let (row, after) = rest.split_at(row_bytes(self.width, elsewhere));
            // SAFETY: `new` makes the form only where the CPU has the instructions, a row's exponents are as many as its codes
            // ask for, and x is as long as the blocks, as asserted.
            #[allow(unsafe_code)]
            unsafe {
                *y = avx512::dot(top, &row[HEADER..], elsewhere, even, odd);
            }
            rest = after;
        }
    }
}

/// The numbers of a row's blocks, with zeros after the end.
fn blocks(row: &[bf16]) -> impl Iterator<Item = [u16; BLOCK]> {
    row.chunks(BLOCK).map(|numbers| {
        let mut bits = [0; BLOCK];
        bits.iter_mut().zip(numbers).for_each(|(bits, x)| *bits = x.to_bits());
        bits
    })
}

/// The top with which the fewest exponents lie elsewhere, of a sample of the row; no code below it means exponent 0.
fn best_top(row: &[bf16]) -> u8 {
    /// Numbers that are looked at.
    const SAMPLE: usize = 128;
    let mut counts = [0u32; 256];
    for x in row.iter().step_by(row.len().div_ceil(SAMPLE)) {
        counts[usize::from(x.to_bits() >> 7 & 0xFF)] += 1;
    }
    let codes = usize::from(ELSEWHERE);
    let window = |top: usize| counts[top + 1 - codes..=top].iter().sum::<u32>();
    // A top below the lowest number but zero, or above the highest, has none of them.
    let lowest = counts.iter().skip(1).position(|n| *n > 0).unwrap_or(0).max(codes);
    let highest = counts.iter().rposition(|n| *n > 0).unwrap_or(0).max(lowest);
    // Of equals the highest: what a sample misses among large numbers is in the window then.
    (lowest..=highest).max_by_key(|top| window(*top)).unwrap_or(highest) as u8
}

/// Writes a row.
fn pack(top: u8, elsewhere: usize, row: &[bf16], to: &mut [u8]) {
    let (header, to) = to.split_at_mut(HEADER);
    header.copy_from_slice(&(u32::from(top) | (elsewhere as u32) << 8).to_le_bytes());
    let (mut exponents, packed) = to.split_at_mut(elsewhere);
    for (bits, to) in blocks(row).zip(packed.as_chunks_mut().0) {
        // SAFETY: `new` comes here only where the CPU has the instructions.
        #[allow(unsafe_code)]
        let (far, n) = unsafe { avx512::pack(top, &bits, to) };
        let (now, later) = std::mem::take(&mut exponents).split_at_mut(n);
        now.copy_from_slice(&far[..n]);
        exponents = later;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    //! The dot product in AVX-512.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{BLOCK, BYTES, ELSEWHERE};
    use crate::kernels::few::avx512::{GROUPS, add, total};
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

    /// What is the same for all blocks of a row.
    struct Row {
        /// The exponent of each code, 0 for those that lie elsewhere, eight times: a look-up heeds six bits of an index, of
        /// which three are the next code's.
        exponents: __m512i,
        spread: __m512i,
        bits: __m512i,
    }

    /// Dot product of a row with x.
    ///
    /// # Safety
    /// The CPU has the instructions; `row` has so many exponents, as its codes ask for, and then whole blocks, at least one, so
    /// that a vector can be read wherever exponents are; `even` and `odd` are as long as the blocks.
    #[target_feature(enable = "popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    pub(super) unsafe fn dot(top: u8, row: &[u8], elsewhere: usize, even: &[f32], odd: &[f32]) -> f32 {
        let blocks = &row[elsewhere..];
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
        total(&sums)
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
    /// As for [`dot`].
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
mod avx512 {
    //! No other CPU has the form, as [`super::serves`] says: nothing of this runs.
    #![allow(unsafe_code)]

    use super::{BLOCK, BYTES};

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
    pub(super) unsafe fn dot(_: u8, _: &[u8], _: usize, _: &[f32], _: &[f32]) -> f32 {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers with a spread of exponents, of which some are zero, some far away, and some no numbers at all.
    fn numbers(rows: usize, width: usize, seed: usize) -> Vec<bf16> {
        let number = |i: usize| {
            let bits = (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 17;
            match bits % 9973 {
                0 => bf16::from_f32(1e-20),
                1 => bf16::from_bits(3),
                2..9 => bf16::NEG_ZERO,
                9..99 => bf16::ZERO,
                99..110 => bf16::MAX,
                110..113 => bf16::NEG_INFINITY,
                n => bf16::from_f32((n as f32 - 4999.5) / 5000.0),
            }
        };
        (0..rows * width).map(number).collect()
    }

    /// The numbers of a row, read back by products with unit vectors: those of one lane.
    fn read_back(form: &Compact, row: usize, only: usize) -> f32 {
        let half = form.width.div_ceil(BLOCK) * BLOCK / 2;
        let mut halves = [vec![0f32; half], vec![0f32; half]];
        halves[only % 2][only / 2] = 1.0;
        let mut y = [f32::NAN];
        form.dots(row, &halves[0], &halves[1], &mut y);
        y[0]
    }

    #[test]
    fn every_number_is_what_it_was() {
        if !serves(2) {
            return;
        }
        let mut far = 0;
        for (rows, width) in [(3, 64), (5, 250), (2, 576), (600, 128), (40, 896), (20, 1022)] {
            let mut w = numbers(rows, width, rows * width);
            // An infinite number makes NaN of the zeros that unit vectors have beside their one.
            w.iter_mut().filter(|x| x.is_infinite()).for_each(|x| *x = bf16::MIN);
            let form = Compact::new(&w, width).expect("it saves an eighth");
            far += form.starts[rows] - bytes(rows, width) as usize;
            for row in 0..rows {
                for i in 0..width {
                    // Sums begin at 0, which a zero of either sign leaves as it is.
                    assert_eq!(
                        read_back(&form, row, i),
                        w[row * width + i].to_f32(),
                        "{i} of row {row}, {rows} x {width}"
                    );
                }
            }
        }
        assert!(far > 1000, "{far}");
    }

    #[test]
    fn infinity_and_what_is_no_number_stay() {
        if !serves(2) {
            return;
        }
        let mut w = vec![bf16::ONE; 256 * 20];
        w[256 * 3 + 5] = bf16::NEG_INFINITY;
        w[256 * 4 + 200] = bf16::NAN;
        let form = Compact::new(&w, 256).expect("two exponents lie elsewhere");
        assert_eq!(form.starts[20] as u64, bytes(20, 256) + 2);
        let mut y = [0f32; 6];
        form.dots(0, &[1.0; 128], &[1.0; 128], &mut y);
        assert_eq!((&y[..4], y[4].is_nan(), y[5]), (&[256.0, 256.0, 256.0, f32::NEG_INFINITY][..], true, 256.0));
    }

    /// Rows of infinities only, whose top is the highest there is, and of the smallest numbers, whose top is the lowest.
    #[test]
    fn the_ends_of_the_range() {
        if !serves(2) {
            return;
        }
        let mut w = vec![bf16::INFINITY; 128];
        w.extend([bf16::from_bits(0x0080); 128]);
        w.extend([bf16::from_bits(0x807F); 128]);
        w.extend([bf16::ZERO; 128]);
        w.extend([bf16::ONE; 128 * 40]);
        let form = Compact::new(&w, 128).expect("most of it is ones");
        let mut y = [0f32; 5];
        form.dots(0, &[1.0; 64], &[1.0; 64], &mut y);
        let sum = |x: u16| 128.0 * bf16::from_bits(x).to_f32();
        assert_eq!(y, [f32::INFINITY, sum(0x0080), sum(0x807F), 0.0, 128.0]);
    }

    #[test]
    fn what_would_save_little_is_not_made() {
        let spread: Vec<bf16> = (0..1024).map(|i| bf16::from_f32(0.5f32.powi(i % 60))).collect();
        assert!(Compact::new(&spread, 128).is_none());
        // Rows that end soon after the beginning of a block.
        assert!(Compact::new(&[bf16::ONE; 660], 66).is_none() && Compact::new(&[bf16::ONE; 320], 32).is_none());
        assert!(!serves(0) && !serves(3));
        assert!(!serves((1 << 24) - 2), "a row of zeros would not fit its header");
    }
}
