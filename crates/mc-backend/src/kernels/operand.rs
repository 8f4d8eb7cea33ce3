//! The operands of a product, brought into the layout that [`super::tile`] reads.
//!
//! A ([`Rows`]) is a row-major matrix of `f32` or `bf16`, nothing more, so what one product wrote as its left side
//! another reads as a matrix ([`Matrix`]). B ([`Panels`]) is packed for each call from matrices that lie as they like:
//! mapped weights, trained matrices, activations. Packing reads and writes each number once where the product uses it
//! once per row of A, so from some dozens of rows on it costs little, and no panel of a weight outlives a call, but for
//! those of encoders ([`crate::ops::Projections`]).

use super::{
    scratch::Scratch,
    simd::{self, Element, simd},
    tile::{self, Arithmetic, LANES, Left, ROWS, Start},
    transpose,
};
use crate::weight::Elements;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// A row-major matrix in memory, rows `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) elements: Elements<'a>,
    pub(crate) stride: usize,
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(elements: Elements<'a>, stride: usize) -> Self {
        Self { elements, stride }
    }
    pub(crate) fn f32(data: &'a [f32], stride: usize) -> Self {
        Self::new(Elements::F32(data), stride)
    }
    /// From element `offset` on.
    pub(crate) fn from(self, offset: usize) -> Self {
        let elements = match self.elements {
            Elements::F32(x) => Elements::F32(x.get(offset..).unwrap_or_default()),
            Elements::F16(x) => Elements::F16(x.get(offset..).unwrap_or_default()),
            Elements::BF16(x) => Elements::BF16(x.get(offset..).unwrap_or_default()),
        };
        Self { elements, ..self }
    }
}

/// The left side of products: rows of units, in segments along the depth that each begin with a unit of their own.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) arithmetic: Arithmetic,
    /// With padding after the last row, so that whole tiles may be read.
    pub(crate) units: Scratch,
    /// Units of a row.
    pub(crate) stride: usize,
}

impl Rows {
    /// `n` rows for segments of these widths, to be filled: what is in them may be NaN, which a zero of the right side
    /// does not take away.
    pub(crate) fn new(arithmetic: Arithmetic, n: usize, segments: &[usize]) -> Self {
        let stride = segments.iter().map(|w| arithmetic.units(*w)).sum();
        Self { arithmetic, units: Scratch::new(n.next_multiple_of(ROWS) * stride), stride }
    }

    /// These numbers, `(n, width)`, rounded.
    pub(crate) fn of(arithmetic: Arithmetic, x: &[f32], width: usize) -> Self {
        let n = x.len().checked_div(width).unwrap_or(0);
        let mut rows = Self::new(arithmetic, n, &[width]);
        let (stride, chunk) = (rows.stride.max(1), (16 * 1024usize).div_ceil(width.max(1)));
        rows.units.par_chunks_mut(chunk * stride).zip(x.par_chunks(chunk * width.max(1))).for_each(|(units, x)| {
            round_rows(arithmetic, (x, width.max(1)), (units, stride));
        });
        rows
    }

    /// The left side of a product.
    pub(crate) fn left(&self) -> (&[u32], usize) {
        (&self.units, self.stride)
    }

    /// Blocks of so many of `n` rows to write to from several threads; blocks that ignore what they are given without rows.
    pub(crate) fn blocks(rows: Option<&mut Self>, n: usize, at_once: usize) -> Vec<Block<'_>> {
        match rows {
            Some(rows) => {
                let (stride, arithmetic) = (rows.stride, rows.arithmetic);
                rows.units
                    .chunks_mut((at_once * stride).max(1))
                    .map(|units| Block(Some((arithmetic, units, stride))))
                    .collect()
            }
            None => (0..n.div_ceil(at_once)).map(|_| Block(None)).collect(),
        }
    }

    /// The units of row `i`.
    pub(crate) fn row(&self, i: usize) -> &[u32] {
        &self.units[i * self.stride..(i + 1) * self.stride]
    }

    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [u32] {
        &mut self.units[i * self.stride..(i + 1) * self.stride]
    }

    /// The left side of a product that begins at row `i`.
    pub(crate) fn left_from(&self, i: usize) -> (&[u32], usize) {
        (&self.units[i * self.stride..], self.stride)
    }

    /// The matrix that begins at unit `offset` of each row, as a right side or for [`Rows::transposed`].
    pub(crate) fn matrix(&self, offset: usize) -> Matrix<'_> {
        matrix(self.arithmetic, &self.units, self.stride).from(offset * self.arithmetic.per_unit())
    }

    /// The transpose of the first `width` columns of a matrix of `n` rows.
    pub(crate) fn transposed(arithmetic: Arithmetic, m: Matrix, n: usize, width: usize) -> Self {
        let mut rows = Self::new(arithmetic, width, &[n]);
        let (depth, stride) = (rows.stride, rows.stride);
        // A panel of 16 columns is, but for its order, 16 rows of the transpose.
        let mut panel = vec![0u32; depth * LANES];
        for (first, rows) in (0..width).step_by(LANES).zip(rows.units.chunks_mut((LANES * stride).max(1))) {
            let cols = LANES.min(width - first);
            let part = Part { depth: 0, col: 0, size: (n, cols), matrix: m.from(first), transposed: false };
            pack(arithmetic, depth, 0..cols, &[part], &mut panel);
            let mut square = [[0u32; LANES]; LANES];
            for (s, lines) in panel.chunks(LANES * LANES).enumerate() {
                let (at, deep) = (s * LANES, lines.len() / LANES);
                square.as_flattened_mut()[..lines.len()].copy_from_slice(lines);
                transpose::transpose(&mut square);
                for (line, row) in square.iter().zip(rows.chunks_exact_mut(stride)).take(cols) {
                    row[at..at + deep].copy_from_slice(&line[..deep]);
                }
            }
        }
        rows
    }
}

/// A block of rows to be kept, or nothing.
pub(crate) struct Block<'a>(Option<(Arithmetic, &'a mut [u32], usize)>);

impl Block<'_> {
    /// Rounds rows of `width` numbers into it.
    pub(crate) fn fill(mut self, x: &[f32], width: usize) {
        self.fill_columns(x, (width, width), 0);
    }

    /// Rounds the first `width` numbers of rows that are `stride` apart into its columns from `first` on, an even number; an odd
    /// `width` clears the column after it.
    pub(crate) fn fill_columns(&mut self, x: &[f32], (stride, width): (usize, usize), first: usize) {
        if let Some((arithmetic, units, of_row)) = &mut self.0 {
            for (x, units) in x.chunks_exact(stride).zip(units.chunks_exact_mut(*of_row)) {
                round(*arithmetic, &x[..width], &mut units[arithmetic.units(first)..]);
            }
        }
    }
}

/// Units read as the matrix that they are in memory; rows `stride` units apart.
pub(crate) fn matrix(arithmetic: Arithmetic, units: &[u32], stride: usize) -> Matrix<'_> {
    let elements = match arithmetic {
        Arithmetic::F32 => Elements::F32(bytemuck::cast_slice(units)),
        Arithmetic::BF16 => Elements::BF16(bytemuck::cast_slice(units)),
    };
    Matrix::new(elements, stride * arithmetic.per_unit())
}

/// Numbers as units.
pub(crate) fn round(arithmetic: Arithmetic, x: &[f32], units: &mut [u32]) {
    match arithmetic {
        Arithmetic::F32 => units[..x.len()].copy_from_slice(bytemuck::cast_slice(x)),
        Arithmetic::BF16 => {
            let halves: &mut [bf16] = bytemuck::cast_slice_mut(units);
            super::round::nearest(x, halves);
            if let Some(rest) = halves.get_mut(x.len()..x.len().next_multiple_of(2)) {
                rest.fill(bf16::ZERO);
            }
        }
    }
}

/// Rows of `width` numbers as rows of units that begin `stride` apart.
pub(crate) fn round_rows(arithmetic: Arithmetic, (x, width): (&[f32], usize), (units, stride): (&mut [u32], usize)) {
    for (x, units) in x.chunks_exact(width).zip(units.chunks_exact_mut(stride)) {
        round(arithmetic, x, units);
    }
}

/// Units as numbers.
pub(crate) fn widen(arithmetic: Arithmetic, units: &[u32], x: &mut [f32]) {
    simd(
        #[inline(always)]
        || match arithmetic {
            Arithmetic::F32 => x.iter_mut().zip(units).for_each(|(x, u)| *x = f32::from_bits(*u)),
            Arithmetic::BF16 => super::simd::widen(bytemuck::cast_slice::<u32, bf16>(units), x),
        },
    );
}

/// Each two rows of a matrix `(rows, width)` as one row of units, all `stride` apart: the transpose, as [`Left::Columns`] in `bf16`.
/// After an odd number of rows comes one of zeros.
pub(crate) fn pair_rows(x: &[f32], (rows, width): (usize, usize), stride: usize, units: &mut [u32]) {
    simd(
        #[inline(always)]
        || {
            for (l, units) in units.chunks_exact_mut(stride).enumerate().take(rows.div_ceil(2)) {
                let (first, units) = (&x[2 * l * stride..][..width], &mut units[..width]);
                if 2 * l + 1 < rows {
                    pairs::<f32, 2>(first, &x[(2 * l + 1) * stride..][..width], units);
                } else {
                    units.iter_mut().zip(first).for_each(|(u, x)| *u = u32::from(x.nearest().to_bits()));
                }
            }
        },
    );
}

/// A part of the right side: a matrix, or its transpose, at a place in it.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    /// First unit of the depth.
    pub(crate) depth: usize,
    /// First column.
    pub(crate) col: usize,
    /// How deep and how wide it is, in numbers.
    pub(crate) size: (usize, usize),
    pub(crate) matrix: Matrix<'a>,
    /// Whether column j of the right side is row j of the matrix; otherwise row l of it is row l.
    pub(crate) transposed: bool,
}

/// The right side of a product, packed: see [`super::tile`].
#[derive(Debug, Default)]
pub(crate) struct Panels {
    arithmetic: Option<Arithmetic>,
    units: Scratch,
    /// Units.
    pub(crate) depth: usize,
    pub(crate) cols: usize,
}

impl Panels {
    /// Packs `depth` units × `cols` in parallel; where no part lies there are zeros.
    pub(crate) fn pack(arithmetic: Arithmetic, depth: usize, cols: usize, parts: &[Part]) -> Self {
        // Panels that one unit of work fills: many where they are columns of the matrix, so that rows are read in long pieces.
        let as_it_lies = parts.iter().any(|p| !p.transposed);
        let most = if as_it_lies { 32 } else { 4 };
        let unit = cols.div_ceil(LANES).div_ceil(rayon::current_num_threads()).clamp(1, most) * LANES;
        let mut panels = Self::empty(arithmetic, depth, cols);
        panels.units.par_chunks_mut((unit * depth).max(1)).enumerate().for_each(|(u, units)| {
            pack(arithmetic, depth, u * unit..((u + 1) * unit).min(cols), parts, units);
        });
        panels
    }

    /// As [`Panels::pack`], on this thread.
    pub(crate) fn pack_here(arithmetic: Arithmetic, depth: usize, cols: usize, parts: &[Part]) -> Self {
        let mut panels = Self::empty(arithmetic, depth, cols);
        pack(arithmetic, depth, 0..cols, parts, &mut panels.units);
        panels
    }

    fn empty(arithmetic: Arithmetic, depth: usize, cols: usize) -> Self {
        let units = Scratch::new(cols.div_ceil(LANES) * LANES * depth);
        Self { arithmetic: Some(arithmetic), units, depth, cols }
    }

    /// `c = start + a·self` on this thread; c has rows `c_stride` apart.
    pub(crate) fn multiply(&self, rows: usize, a: (&[u32], usize), start: Start, (c, stride): (&mut [f32], usize)) {
        self.multiply_cols(rows, a, 0..self.cols, start, (c, stride));
    }

    /// As [`Panels::multiply`] with some columns, of which the first is a multiple of 16.
    ///
    /// Where the depth is so long that the panels of a tile do not stay in the L2 cache, it goes in equal pieces.
    pub(crate) fn multiply_cols(
        &self,
        rows: usize,
        (a, a_stride): (&[u32], usize),
        cols: Range<usize>,
        start: Start,
        (c, c_stride): (&mut [f32], usize),
    ) {
        /// Units: 4 panels of them are 328 KB.
        const DEPTH: usize = 1280;
        /// Columns of a tile.
        const WIDE: usize = 4 * LANES;
        let piece = self.depth.div_ceil(self.depth.div_ceil(DEPTH).max(1));
        if piece == self.depth || rows == 0 {
            return self.multiply_part(rows, (a, a_stride), (0..self.depth, cols), start, (c, c_stride));
        }
        for first in cols.clone().step_by(WIDE) {
            let (wide, at) = (first..(first + WIDE).min(cols.end), first - cols.start);
            for top in (0..self.depth).step_by(piece) {
                let start = match start {
                    _ if top > 0 => Start::Itself,
                    Start::Row(row) => Start::Row(&row[at..]),
                    Start::Matrix(m, stride) => Start::Matrix(&m[at..], stride),
                    start => start,
                };
                let depth = top..(top + piece).min(self.depth);
                self.multiply_part(rows, (&a[top..], a_stride), (depth, wide.clone()), start, (&mut c[at..], c_stride));
            }
        }
    }

    /// As [`Panels::multiply`] with some units of the depth, all at once, and some columns, of which the first is a multiple of 16.
    pub(crate) fn multiply_part<'a>(
        &self,
        rows: usize,
        a: impl Into<Left<'a>>,
        (depth, cols): (Range<usize>, Range<usize>),
        start: Start,
        c: (&mut [f32], usize),
    ) {
        let Some(arithmetic) = self.arithmetic else { return };
        assert!(cols.start.is_multiple_of(LANES) && cols.end <= self.cols && depth.end <= self.depth, "part of panels");
        let panels = &self.units[(cols.start * self.depth + depth.start * LANES).min(self.units.len())..];
        tile::multiply(arithmetic, (rows, cols.len(), depth.len()), a.into(), (panels, self.depth * LANES), start, c);
    }
}

/// Fills the panels of these columns, of which the first is a multiple of 16.
fn pack(arithmetic: Arithmetic, depth: usize, cols: Range<usize>, parts: &[Part], units: &mut [u32]) {
    let covered: usize = parts.iter().map(|p| arithmetic.units(p.size.0) * overlap(p, &cols).len()).sum();
    if covered < units.len() {
        units.fill(0);
    }
    for part in parts {
        let inside = overlap(part, &cols);
        if inside.is_empty() {
            continue;
        }
        let run = Run {
            depth: part.size.0,
            first: inside.start - cols.start,
            col: inside.start - part.col,
            width: inside.len(),
            stride: part.matrix.stride,
            panel: depth * LANES,
        };
        let to = &mut units[part.depth * LANES..];
        match part.matrix.elements {
            Elements::F32(x) => pack_part(arithmetic, x, &run, part.transposed, to),
            Elements::F16(x) => pack_part(arithmetic, x, &run, part.transposed, to),
            Elements::BF16(x) => pack_part(arithmetic, x, &run, part.transposed, to),
        }
    }
}

/// One part's share of some panels.
struct Run {
    /// In numbers.
    depth: usize,
    /// Its first column in the panels, and in the matrix (or its first row there, transposed).
    first: usize,
    col: usize,
    width: usize,
    stride: usize,
    /// Units from one panel to the next.
    panel: usize,
}

impl Run {
    /// Its pieces that lie in one panel each: panel, first lane, first column of the matrix, width.
    #[inline(always)]
    fn pieces(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<> {
        let (first, col, end) = (self.first, self.col, self.first + self.width);
        (first / LANES..end.div_ceil(LANES)).map(move |p| {
            let start = first.max(p * LANES);
            (p, start - p * LANES, col + start - first, end.min((p + 1) * LANES) - start)
        })
    }
}

fn overlap(part: &Part, cols: &Range<usize>) -> Range<usize> {
    let start = cols.start.max(part.col);
    start..cols.end.min(part.col + part.size.1).max(start)
}

fn pack_part<T: Element>(arithmetic: Arithmetic, x: &[T], run: &Run, transposed: bool, to: &mut [u32]) {
    simd(
        #[inline(always)]
        || match (arithmetic, transposed) {
            (Arithmetic::F32, true) => transpose::<T, 1>(x, run, to),
            (Arithmetic::BF16, true) => transpose::<T, 2>(x, run, to),
            (Arithmetic::F32, false) => interleave::<T, 1>(x, run, to),
            (Arithmetic::BF16, false) => interleave::<T, 2>(x, run, to),
        },
    );
}

/// A column of the panels is a row of `x`.
#[inline(always)]
fn transpose<T: Element, const PER: usize>(x: &[T], run: &Run, to: &mut [u32]) {
    for (p, lane, col, width) in run.pieces() {
        transpose_panel::<T, PER>(x, (run.depth, lane, col, width, run.stride), &mut to[p * run.panel..]);
    }
}

#[inline(always)]
fn transpose_panel<T: Element, const PER: usize>(
    x: &[T],
    (depth, lane, col, width, stride): (usize, usize, usize, usize, usize),
    to: &mut [u32],
) {
    /// Squares of 16 × 16 units that are read at once: whole lines of memory, several in a row.
    const SQUARES: usize = 4;
    let (to, _) = to[..depth.div_ceil(PER) * LANES].as_chunks_mut();
    let whole = depth / PER / LANES * LANES;
    let done = width == LANES && T::fast_columns::<PER>(&x[col * stride..], stride, &mut to[..whole]);
    let first = if done { whole } else { 0 };
    let mut squares = [[[0u32; LANES]; LANES]; SQUARES];
    for (s, to) in to[first..].chunks_mut(SQUARES * LANES).enumerate() {
        let from = (first + s * SQUARES * LANES) * PER;
        let n = (to.len() * PER).min(depth - from);
        for j in 0..width {
            let row = &x[(col + j) * stride + from..][..n];
            for (square, x) in squares.iter_mut().zip(row.chunks(LANES * PER)) {
                match <&[T; LANES * 2]>::try_from(x) {
                    Ok(x) if PER == 2 => units_of::<T, PER>(x, &mut square[lane + j]),
                    _ => units_of::<T, PER>(x, &mut square[lane + j]),
                }
            }
        }
        for (square, to) in squares.iter_mut().zip(to.chunks_mut(LANES)) {
            transpose::transpose(square);
            if width == LANES {
                to.copy_from_slice(&square[..to.len()]);
            } else {
                for (to, line) in to.iter_mut().zip(&*square) {
                    to[lane..lane + width].copy_from_slice(&line[lane..lane + width]);
                }
            }
        }
    }
}

/// Neighbouring numbers as units; what is left of the last unit is zero.
#[inline(always)]
fn units_of<T: Element, const PER: usize>(x: &[T], units: &mut [u32; LANES]) {
    if PER == 1 {
        units.iter_mut().zip(x).for_each(|(u, x)| *u = x.widen().to_bits());
        return;
    }
    let halves: &mut [bf16] = bytemuck::cast_slice_mut(units);
    halves.iter_mut().zip(x).for_each(|(h, x)| *h = x.nearest());
    if x.len() % 2 == 1 {
        halves[x.len()] = bf16::ZERO;
    }
}

/// A column of the panels is a column of `x`.
#[inline(always)]
fn interleave<T: Element, const PER: usize>(x: &[T], run: &Run, to: &mut [u32]) {
    /// Units of the depth that all panels take before the next ones: rows of memory are read while they are near.
    const UNITS: usize = 32;
    let zeros = [T::ZERO; LANES];
    for first in (0..run.depth.div_ceil(PER)).step_by(UNITS) {
        let whole = UNITS.min(run.depth / PER - first.min(run.depth / PER));
        for (p, lane, col, width) in run.pieces() {
            let to = &mut to[p * run.panel + first * LANES..];
            let from = &x[(first * PER * run.stride + col).min(x.len())..];
            if width == LANES && PER == 2 {
                simd::pairs(from, run.stride, to[..whole * LANES].as_chunks_mut().0);
            } else {
                for (u, to) in to.chunks_exact_mut(LANES).take(whole).enumerate() {
                    let row = |i: usize| &from[(u * PER + i) * run.stride..][..width];
                    pairs::<T, PER>(row(0), row(PER - 1), &mut to[lane..lane + width]);
                }
            }
            // The last unit of an odd depth.
            if whole < UNITS && !run.depth.is_multiple_of(PER) {
                let row = &from[whole * PER * run.stride..][..width];
                pairs::<T, PER>(row, &zeros, &mut to[whole * LANES + lane..][..width]);
            }
        }
    }
}

/// Units of the numbers of one row, or of those of two rows in pairs.
#[inline(always)]
fn pairs<T: Element, const PER: usize>(first: &[T], second: &[T], units: &mut [u32]) {
    for ((u, a), b) in units.iter_mut().zip(first).zip(second) {
        *u = if PER == 1 {
            a.widen().to_bits()
        } else {
            u32::from(a.nearest().to_bits()) | u32::from(b.nearest().to_bits()) << 16
        };
    }
}
