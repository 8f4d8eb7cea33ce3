//! Products in sixteen bits with a frozen matrix that stays packed, for CPUs that do more of them than of `f32`: in `f16`
//! ([`float`], AVX-512-FP16) or in integers of 13 bits ([`integer`], AVX2).
//!
//! Layout and loop are those of [`super::tile`]: rows of units, panels of 16 columns, and a unit is a pair of neighbouring
//! numbers. What differs is that a row and a column have scales, one for each block of their depth; of `f16` all of it is one
//! block.
//!
//! Rows are shared out evenly over tiles, so that none is computed for nothing: one text often has no more than a tile or two.
//!
//! As there, a number depends on its row and column alone. On other CPUs plain Rust computes the same.

mod float;
mod integer;

use super::{
    cpu, holds,
    scratch::Scratch,
    simd::{Element, simd},
    tile::{LANES, Start},
    transpose,
};
use crate::weight::Elements;
use std::ops::Range;

/// What the sixteen bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    F16,
    I16,
}

impl Form {
    /// The one that this CPU multiplies faster than `f32`, if there is one.
    pub(crate) fn fastest() -> Option<Self> {
        let in_integers = Self::I16.has_vectors() && cpu::multiplies_integers_faster();
        if Self::F16.has_vectors() { Some(Self::F16) } else { in_integers.then_some(Self::I16) }
    }

    /// Whether this CPU has its instructions.
    fn has_vectors(self) -> bool {
        match self {
            Self::F16 => float::has_vectors(),
            Self::I16 => cpu::has_avx2(),
        }
    }

    /// Units of a block in rows of so many.
    fn block(self, depth: usize) -> usize {
        match self {
            Self::F16 => depth.max(1),
            Self::I16 => integer::BLOCK,
        }
    }

    /// Blocks in rows of so many units.
    fn blocks(self, depth: usize) -> usize {
        depth.div_ceil(self.block(depth)).max(1)
    }

    /// Numbers of a block as units, of which the last one is padded with zero, and their scale.
    fn encode(self, x: &[f32], units: &mut [u32]) -> f32 {
        match self {
            Self::F16 => float::encode(x, units),
            Self::I16 => integer::encode(x, units),
        }
    }

    /// The most rows of a tile, and of how many panels it is where it has so many rows.
    fn tile(self, rows: usize) -> (usize, usize) {
        match self {
            Self::F16 => (float::TALL, float::panels(rows.div_ceil(rows.div_ceil(float::TALL)))),
            Self::I16 => (integer::TALL, integer::PANELS),
        }
    }
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

/// The left side of products: rows of units, and their scales.
pub(crate) struct Rows {
    form: Form,
    n: usize,
    units: Scratch,
    /// Of each block of a row, row by row.
    scales: Vec<f32>,
    /// Units.
    depth: usize,
}

impl Rows {
    /// `n` rows of this width, to be filled.
    pub(crate) fn new(form: Form, n: usize, width: usize) -> Self {
        let depth = width.div_ceil(2);
        Self { form, n, units: Scratch::new(n * depth), scales: vec![0.0; n * form.blocks(depth)], depth }
    }

    /// Row `i`, which must be as wide as was said.
    pub(crate) fn fill(&mut self, i: usize, x: &[f32]) {
        assert_eq!(x.len().div_ceil(2), self.depth, "a row of another width");
        let (block, blocks) = (self.form.block(self.depth), self.form.blocks(self.depth));
        let units = &mut self.units[i * self.depth..(i + 1) * self.depth];
        let scales = &mut self.scales[i * blocks..(i + 1) * blocks];
        for ((x, units), scale) in x.chunks(2 * block).zip(units.chunks_mut(block)).zip(scales) {
            *scale = self.form.encode(x, units);
        }
    }
}

/// The right side of products, packed.
pub(crate) struct Panels {
    form: Form,
    units: Vec<u32>,
    /// Of each column of each block of a panel, panel by panel.
    scales: Vec<f32>,
    /// Units.
    depth: usize,
    cols: usize,
}

impl Panels {
    /// Packs matrices `(columns, width)`, each at its columns, on this thread. Other columns are zero.
    pub(crate) fn pack(form: Form, width: usize, cols: usize, matrices: &[(Range<usize>, Elements)]) -> Self {
        let (depth, panels) = (width.div_ceil(2), cols.div_ceil(LANES));
        let (block, blocks) = (form.block(depth), form.blocks(depth));
        let mut units = vec![0u32; panels * LANES * depth];
        let mut scales = vec![0f32; panels * LANES * blocks];
        let mut row = vec![0f32; width];
        let stride = depth.next_multiple_of(LANES);
        let mut halves = vec![0u32; LANES * stride];
        let mut square = [[0u32; LANES]; LANES];
        let each = units.chunks_exact_mut((LANES * depth).max(1)).zip(scales.chunks_exact_mut(LANES * blocks));
        for (p, (to, scales)) in each.enumerate() {
            for (j, halves) in halves.chunks_exact_mut(stride.max(1)).enumerate() {
                let col = p * LANES + j;
                match matrices.iter().find(|(range, _)| range.contains(&col)) {
                    None => row.fill(0.0),
                    Some((range, elements)) => {
                        let at = (col - range.start) * width;
                        match elements {
                            Elements::F32(x) => row.copy_from_slice(&x[at..at + width]),
                            Elements::F16(x) => widen(&x[at..at + width], &mut row),
                            Elements::BF16(x) => widen(&x[at..at + width], &mut row),
                        }
                    }
                }
                for (b, (x, units)) in row.chunks(2 * block).zip(halves[..depth].chunks_mut(block)).enumerate() {
                    scales[b * LANES + j] = form.encode(x, units);
                }
            }
            for (s, to) in to.chunks_mut(LANES * LANES).enumerate() {
                for (line, halves) in square.iter_mut().zip(halves.chunks_exact(stride)) {
                    line.copy_from_slice(&halves[s * LANES..(s + 1) * LANES]);
                }
                transpose::transpose(&mut square);
                to.copy_from_slice(&square.as_flattened()[..to.len()]);
            }
        }
        Self { form, units, scales, depth, cols }
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Columns of the result.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// `c = start + a·self` in some columns, of which the first is a multiple of 16, on this thread; c has as many, in rows `stride`
    /// apart.
    pub(crate) fn multiply(&self, a: &Rows, cols: Range<usize>, start: Start, c: (&mut [f32], usize)) {
        self.multiply_in(self.form.has_vectors(), a, cols, start, c);
    }

    /// The same in vectors or in plain Rust.
    fn multiply_in(
        &self,
        vectors: bool,
        a: &Rows,
        cols: Range<usize>,
        start: Start,
        (c, c_stride): (&mut [f32], usize),
    ) {
        let (rows, depth, blocks) = (a.n, self.depth, self.form.blocks(self.depth));
        if rows == 0 || cols.is_empty() {
            return;
        }
        assert!(a.form == self.form && a.depth == depth && a.units.len() >= rows * depth, "rows of a product");
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
        let (tall, at_once) = self.form.tile(rows);
        let tiles = rows.div_ceil(tall);
        for panel in panels.clone().step_by(at_once) {
            let wide = panel..(panel + at_once).min(panels.end);
            let from = panel * LANES - cols.start;
            let width = (cols.len() - from).min(at_once * LANES);
            for tile in 0..tiles {
                let [row, end] = [tile, tile + 1].map(|tile| tile * rows / tiles);
                Tile {
                    depth,
                    size: (end - row, wide.len()),
                    a: &a.units[row * depth..end * depth],
                    b: &self.units[wide.start * LANES * depth..wide.end * LANES * depth],
                    rows: &a.scales[row * blocks..end * blocks],
                    columns: &self.scales[wide.start * LANES * blocks..wide.end * LANES * blocks],
                    width,
                    add: add.get(row * add_stride + from..).unwrap_or_default(),
                    add_stride,
                    c: &mut c[row * c_stride + from..],
                    c_stride,
                }
                .run(self.form, vectors);
            }
        }
    }
}

/// A tile's inputs and where its results go.
struct Tile<'a> {
    /// Units.
    depth: usize,
    /// Rows and panels.
    size: (usize, usize),
    a: &'a [u32],
    b: &'a [u32],
    /// Scales, as in [`Rows`] and in [`Panels`].
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
    fn run(mut self, form: Form, vectors: bool) {
        let ((rows, panels), blocks) = (self.size, form.blocks(self.depth));
        assert!(self.a.len() == rows * self.depth && self.b.len() == panels * LANES * self.depth, "tile out of bounds");
        let scales = self.rows.len() == rows * blocks && self.columns.len() == panels * LANES * blocks;
        assert!(scales && self.width <= panels * LANES, "scales of a tile out of bounds");
        assert!(holds(self.c.len(), rows, self.c_stride, self.width), "result of a tile out of bounds");
        let starts = self.add.is_empty() || holds(self.add.len(), rows, self.add_stride, self.width);
        assert!(starts, "start of a tile out of bounds");
        #[cfg(target_arch = "x86_64")]
        if vectors {
            // SAFETY: who asks for vectors has looked that the CPU has them; the sizes are as asserted.
            #[allow(unsafe_code)]
            unsafe {
                match form {
                    Form::F16 => float::tile(&mut self),
                    Form::I16 => integer::tile(&mut self),
                }
            }
            return;
        }
        let _ = vectors;
        match form {
            Form::F16 => self.plain(float::product),
            Form::I16 => self.plain(integer::product),
        }
    }

    /// By a function that gives the product of a row and a column of a panel: of the units, rows' and columns' of 16, and of the scales.
    fn plain(&mut self, product: impl Fn([&[u32]; 2], [&[f32]; 2]) -> f32) {
        let rows = self.size.0;
        let blocks = self.rows.len() / rows;
        for i in 0..rows {
            let (row, scales) =
                (&self.a[i * self.depth..(i + 1) * self.depth], &self.rows[i * blocks..(i + 1) * blocks]);
            for j in 0..self.width {
                let (panel, lane) = (j / LANES, j % LANES);
                let column = self.b.get(panel * LANES * self.depth + lane..).unwrap_or_default();
                let columns = &self.columns[panel * LANES * blocks + lane..];
                let product = product([row, column], [scales, columns]);
                let start = (!self.add.is_empty()).then(|| self.add[i * self.add_stride + j]);
                // A zero that is added takes the sign of one that is less.
                self.c[i * self.c_stride + j] = start.map_or(product, |start| product + start);
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

#[cfg(test)]
mod tests;
