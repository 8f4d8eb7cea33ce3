//! Matrices of `bf16` in eleven or twelve bits a number, without loss: what decoding reads, which is as fast as memory.
//!
//! The exponents of a trained matrix lie close together (measured for language models by Zhang et al., "70% Size, 100%
//! Accuracy", 2025): most numbers of a row are within a factor of 2⁷ of each other. So a number is a byte and a short code that
//! says how far its exponent lies below the row's top; one whose exponent lies elsewhere stands in a list of the row. Any
//! number can be written, zero and infinity too. Widened, a number is what it was, and products add in the order of
//! [`super::few`]: nobody can tell which form was read.
//!
//! How codes are written is up to the CPU ([`Code`]): [`eleven`] needs AVX-512 that moves bytes, [`twelve`] AVX2. Common to both is the
//! row: its top in a byte, in three how many numbers lie elsewhere, what is said of those, then blocks of 64 numbers, the last one
//! filled up. All rows are one stream of bytes, as memory likes it.

mod eleven;
#[cfg(test)]
mod tests;
mod twelve;

use super::{cpu, few::Row, simd::simd};
use half::bf16;
use rayon::prelude::*;

/// Numbers of a block.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a row before the numbers that lie elsewhere.
const HEADER: usize = 4;

/// How the exponents of a row are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Code {
    /// In three bits.
    Eleven,
    /// In three bits, and the sign in a fourth; the last bit of an exponent stays beside its fraction.
    Twelve,
}

impl Code {
    /// The one that this CPU reads fastest, if there is one.
    pub(crate) fn of_this_cpu() -> Option<Self> {
        [Self::Eleven, Self::Twelve].into_iter().find(|code| code.is_read())
    }

    /// Whether this CPU has the instructions.
    fn is_read(self) -> bool {
        match self {
            Self::Eleven => eleven::is_read(),
            Self::Twelve => cpu::has_avx2(),
        }
    }

    /// Bytes of a block.
    fn block(self) -> usize {
        match self {
            Self::Eleven => eleven::BYTES,
            Self::Twelve => twelve::BYTES,
        }
    }

    /// Bytes of a number in the list of those that lie elsewhere.
    fn listed(self) -> usize {
        match self {
            Self::Eleven => 1,
            Self::Twelve => twelve::LISTED,
        }
    }

    /// How many values codes stand for, from the top down, and how many last bits of an exponent are no part of such a value.
    fn window(self) -> (usize, u32) {
        match self {
            Self::Eleven => (usize::from(eleven::ELSEWHERE), 0),
            Self::Twelve => (twelve::CODES, 1),
        }
    }

    /// What fills the last block of a row. In eleven bits it is multiplied, with zeros of x: a number of the top may be infinite.
    fn padding(self, top: u8) -> u16 {
        match self {
            Self::Eleven => 0,
            Self::Twelve => u16::from(top) << 8,
        }
    }

    fn row_bytes(self, width: usize, elsewhere: usize) -> usize {
        HEADER + elsewhere * self.listed() + width.div_ceil(BLOCK) * self.block()
    }

    /// How many numbers of a row lie elsewhere.
    fn count(self, top: u8, row: &[bf16]) -> usize {
        match self {
            Self::Eleven => blocks(row, self.padding(top)).map(|bits| eleven::elsewhere(top, &bits)).sum(),
            Self::Twelve => twelve::elsewhere(top, row),
        }
    }

    /// Writes a row.
    fn pack(self, top: u8, elsewhere: usize, row: &[bf16], to: &mut [u8]) {
        let (header, to) = to.split_at_mut(HEADER);
        header.copy_from_slice(&(u32::from(top) | (elsewhere as u32) << 8).to_le_bytes());
        let (mut list, packed) = to.split_at_mut(elsewhere * self.listed());
        for ((i, bits), to) in blocks(row, self.padding(top)).enumerate().zip(packed.chunks_exact_mut(self.block())) {
            let listed = match self {
                Self::Eleven => eleven::pack(top, &bits, list, to),
                Self::Twelve => twelve::pack(top, (i, &bits), list, to),
            };
            list = &mut std::mem::take(&mut list)[listed..];
        }
        debug_assert!(list.is_empty(), "fewer numbers lie elsewhere than were counted");
    }
}

/// The compact form of a matrix.
pub(crate) struct Compact {
    code: Code,
    /// Numbers of a row.
    width: usize,
    rows: Vec<u8>,
    /// The first byte of each row, and the end.
    starts: Vec<usize>,
}

/// Whether sums run over the even and the odd numbers of a [`Row`] by themselves.
#[cfg(target_arch = "x86_64")]
pub(super) fn reads_even_and_odd() -> bool {
    Code::of_this_cpu() == Some(Code::Eleven)
}

/// Whether rows of so many numbers, an even number, may have a compact form.
pub(crate) fn serves(width: usize) -> bool {
    width > 0 && width.is_multiple_of(2) && width <= (1 << 24) - BLOCK
}

/// Bytes that the form of so many rows takes on this CPU, if no exponent lies elsewhere; 0 if there is none.
pub(crate) fn bytes(rows: usize, width: usize) -> u64 {
    Code::of_this_cpu().map_or(0, |code| (rows * code.row_bytes(width, 0)) as u64)
}

impl Compact {
    /// The form of rows of `width` numbers, or `None` where there is none or it would save less than an eighth.
    pub(crate) fn new(w: &[bf16], width: usize) -> Option<Self> {
        Self::of(Code::of_this_cpu()?, w, width)
    }

    /// In a code that this CPU reads.
    fn of(code: Code, w: &[bf16], width: usize) -> Option<Self> {
        /// Rows that one unit of work packs.
        const ROWS: usize = 256;
        assert!(code.is_read(), "{code:?} is for other CPUs");
        let saves = |bytes: usize| 8 * bytes <= 7 * size_of_val(w);
        if !serves(width) || !saves(w.len() / width * code.row_bytes(width, 0)) {
            return None;
        }
        let mut tops = vec![(0, 0); w.len() / width];
        tops.par_chunks_mut(ROWS).zip(w.par_chunks(ROWS * width)).for_each(|(tops, w)| {
            for (row, (top, elsewhere)) in w.chunks_exact(width).zip(tops) {
                *top = best_top(code, row);
                *elsewhere = code.count(*top, row);
            }
        });
        let mut starts = vec![0];
        starts.extend(tops.iter().scan(0, |end, (_, elsewhere)| {
            *end += code.row_bytes(width, *elsewhere);
            Some(*end)
        }));
        let end = starts[tops.len()];
        if !saves(end) {
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
                let (to, after) = std::mem::take(&mut unit).split_at_mut(code.row_bytes(width, *elsewhere));
                code.pack(*top, *elsewhere, row, to);
                unit = after;
            }
        });
        Some(Self { code, width, rows, starts })
    }

    /// Dot products of the rows from `first` on with x.
    pub(crate) fn dots(&self, first: usize, x: Row, y: &mut [f32]) {
        let half = self.width.next_multiple_of(BLOCK) / 2;
        assert!(x.even.len() >= half && x.odd.len() >= half && x.x.len() >= self.width, "x is shorter than a row");
        assert!(first + y.len() < self.starts.len(), "more products than rows");
        let rows = Packed { code: self.code, width: self.width, rest: &self.rows[self.starts[first]..] };
        // SAFETY: `of` makes the form only where the CPU has the instructions, a row's exponents are as many as its codes
        // ask for, and the halves of x are as long as the blocks, as asserted.
        #[allow(unsafe_code)]
        unsafe {
            match self.code {
                Code::Eleven => eleven::avx512::dots(rows, x.even, x.odd, y),
                Code::Twelve => twelve::avx2::dots(rows, &x.x[..self.width], y),
            }
        }
    }
}

/// Packed rows, one after the other.
struct Packed<'a> {
    code: Code,
    width: usize,
    rest: &'a [u8],
}

/// A row: its top, how many bytes list what lies elsewhere, and those bytes with the blocks behind them.
type PackedRow<'a> = (u8, usize, &'a [u8]);

impl<'a> Iterator for Packed<'a> {
    type Item = PackedRow<'a>;
    #[inline]
    fn next(&mut self) -> Option<PackedRow<'a>> {
        let header = u32::from_le_bytes(*self.rest.first_chunk()?);
        let (top, elsewhere) = (header as u8, (header >> 8) as usize);
        let (row, rest) = self.rest.split_at_checked(self.code.row_bytes(self.width, elsewhere))?;
        self.rest = rest;
        Some((top, elsewhere * self.code.listed(), &row[HEADER..]))
    }
}

/// The numbers of a row's blocks, with `padding` after the end.
fn blocks(row: &[bf16], padding: u16) -> impl Iterator<Item = [u16; BLOCK]> {
    row.chunks(BLOCK).map(move |numbers| {
        let mut bits = [padding; BLOCK];
        bits.iter_mut().zip(numbers).for_each(|(bits, x)| *bits = x.to_bits());
        bits
    })
}

/// The top with which the fewest exponents of a sample lie elsewhere.
fn best_top(code: Code, row: &[bf16]) -> u8 {
    /// With it no code means less than 0, nor 0 itself in eleven bits, where a look-up takes it for one that lies elsewhere.
    const LOWEST: usize = 7;
    /// Numbers that are looked at.
    const SAMPLE: usize = 128;
    let (codes, left_out) = code.window();
    let mut counts = [0u32; 256];
    for x in row.iter().step_by(row.len().div_ceil(SAMPLE)) {
        counts[usize::from((x.to_bits() >> 7 & 0xFF) >> left_out)] += 1;
    }
    let window = |top: usize| counts[top + 1 - codes..=top].iter().sum::<u32>();
    // A top below the lowest number but zero has none of them.
    let lowest = counts.iter().skip(1).position(|n| *n > 0).unwrap_or(0).max(LOWEST);
    let mut magnitude = 0;
    simd(
        #[inline(always)]
        || magnitude = row.iter().fold(0, |highest, x| highest.max(x.to_bits() & 0x7FFF)),
    );
    // The row's highest may be above the sample's; if it is far above, it is one of few.
    let sampled = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
    let highest = usize::from(magnitude >> 7 >> left_out).min(sampled + 1).max(lowest);
    // Of equals the highest, as it loses nothing of the sample.
    (lowest..=highest).max_by_key(|top| window(*top)).unwrap_or(highest) as u8
}
