//! Grouped-query attention on the CPU, forward and backward, never a t×t matrix.
//!
//! Everything is `(b, t, h, d)`: the layout projections produce and caches keep, so nothing is transposed. Queries go in
//! tiles of up to 48, and for each tile and head there are the scores against the keys that the tile can see: 48 × t
//! numbers, which stay in the L2 cache. Products are those of [`super::tile`]. Keys and values are packed once for all
//! tiles. All that the forward pass leaves for [`Gradients`] is each row's maximum and sum.

use super::{
    holds,
    operand::{Matrix, Rows, round},
    scratch::Scratch,
    softmax,
    tile::{Arithmetic, LANES, ROWS, Start},
};
use crate::{ops::RelativeBias, weight::Elements};
use candle_core::Layout;
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

mod backward;
mod few;
mod packed;

pub(crate) use backward::Gradients;
pub(crate) use few::{decode, sums};
pub(crate) use packed::Packed;
use packed::{PackedHead, Texts};

/// Queries in a tile: scores of 48 × 4,096 keys are 786 KB.
const TILE: usize = 48;

/// Sizes of one call and which keys a query sees.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    /// Per row of the batch, the keys that are not padding.
    pub(crate) valid: Option<Arc<[Range<usize>]>>,
    /// Texts that fill the one row.
    pub(crate) segments: Option<Arc<[Range<usize>]>>,
    pub(crate) bias: Option<Arc<RelativeBias>>,
}

impl Shape {
    /// The keys that query `i` of row `b` sees. Queries are the last ones: query `i` stands at `keys − queries + i`.
    pub(crate) fn visible(&self, b: usize, i: usize) -> Range<usize> {
        let position = self.position(i);
        let Range { mut start, mut end } = match (&self.segments, &self.valid) {
            (Some(segments), _) => segments[segments.partition_point(|s| s.end <= position)].clone(),
            (None, Some(valid)) => valid[b].clone(),
            (None, None) => 0..self.keys,
        };
        if self.causal {
            end = end.min(position + 1);
        }
        if let Some(window) = self.window {
            start = start.max((position + 1).saturating_sub(window));
            end = end.min(position.saturating_add(window));
        }
        start.min(end)..end
    }

    /// The key at which query `i` stands.
    pub(crate) fn position(&self, i: usize) -> usize {
        i + self.keys - self.queries
    }

    /// Adds what is added to the scores of query `i` of head `h` against the keys from `first` on, which are not scaled yet.
    fn add_bias(&self, scores: &mut [f32], (i, h): (usize, usize), first: usize) {
        if let Some(bias) = &self.bias {
            bias.add_to(scores, h, first as isize - self.position(i) as isize, 1.0 / self.scale);
        }
    }

    /// The keys that any query of a tile sees.
    fn visible_to_tile(&self, b: usize, tile: &Range<usize>) -> Range<usize> {
        let ranges = tile.clone().map(|i| self.visible(b, i)).filter(|r| !r.is_empty());
        ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// The keys that any query of a tile sees, from a multiple of a panel's columns on.
    fn keys_of_tile(&self, b: usize, tile: &Range<usize>) -> Range<usize> {
        from_panel(self.visible_to_tile(b, tile))
    }

    /// Row of the batch, time and head of element `unit` of a `(b, t, heads)`.
    fn query(&self, unit: usize) -> (usize, usize, usize) {
        (unit / self.heads / self.queries, unit / self.heads % self.queries, unit % self.heads)
    }

    /// Queries in a tile of this call: fewer where otherwise some threads had nothing to do.
    fn tile(&self) -> usize {
        let units = |tile: usize| self.batch * self.queries.div_ceil(tile);
        [TILE, 24, 12].into_iter().find(|t| units(*t) >= 4 * rayon::current_num_threads()).unwrap_or(12)
    }

    /// The tiles of one row of the batch that run side by side, of at most so many queries: of texts in one row none has a
    /// part of two, but several that are short together.
    fn tiles_at_once(&self, tile: usize) -> Vec<Range<usize>> {
        let Some(segments) = &self.segments else { return self.tiles(tile).collect() };
        let mut tiles: Vec<Range<usize>> = vec![];
        // Whether the last tile has whole texts.
        let mut whole = false;
        for segment in segments.iter() {
            match tiles.last_mut() {
                Some(last) if whole && last.len() + segment.len() <= tile => last.end = segment.end,
                _ => tiles.extend(segment.clone().step_by(tile).map(|from| from..(from + tile).min(segment.end))),
            }
            whole = segment.len() <= tile;
        }
        tiles
    }

    fn tiles(&self, tile: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        (0..queries.div_ceil(tile)).map(move |i| i * tile..((i + 1) * tile).min(queries))
    }
}

/// One argument `(b, t, h, d)` in memory, any strides but 1 in the last dimension.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    elements: Elements<'a>,
    strides: [usize; 3],
}

impl<'a> View<'a> {
    /// `data` is the whole storage that `layout` lies in; `None` if the last dimension is not dense.
    pub(crate) fn new(data: Elements<'a>, layout: &Layout) -> Option<Self> {
        let stride = layout.stride();
        (stride[3] == 1 || layout.dims()[3] == 1).then(|| Self {
            elements: Matrix::new(data, 0).from(layout.start_offset()).elements,
            strides: [stride[0], stride[1], stride[2]],
        })
    }

    /// Heads of width `d` that begin at column `first` of a matrix with `t` rows for each row of the batch.
    pub(crate) fn columns(m: Matrix<'a>, first: usize, t: usize, d: usize) -> Self {
        Self { elements: m.from(first).elements, strides: [t * m.stride, m.stride, d] }
    }

    /// The `(t, d)` matrix of one head, from time `from` on.
    fn head(&self, b: usize, from: usize, h: usize) -> Matrix<'a> {
        let start = b * self.strides[0] + from * self.strides[1] + h * self.strides[2];
        Matrix::new(self.elements, self.strides[1]).from(start)
    }

    /// The vector at time `t` of one head in its elements.
    fn row<'b, T>(&self, elements: &'b [T], at: (usize, usize, usize), d: usize) -> &'b [T] {
        &self.rows(elements, at).0[..d]
    }

    /// Its elements from the vector at time `t` of one head on, and how far the next one is.
    fn rows<'b, T>(&self, elements: &'b [T], (b, t, h): (usize, usize, usize)) -> (&'b [T], usize) {
        (&elements[b * self.strides[0] + t * self.strides[1] + h * self.strides[2]..], self.strides[1])
    }

    /// `n` rows of one head, from time `from` on, as the left side of a product: where they lie, if that can be read.
    fn side(&self, arithmetic: Arithmetic, (b, from, h): (usize, usize, usize), (n, d): (usize, usize)) -> Side<'a> {
        let m = self.head(b, from, h);
        let whole_tiles = n.next_multiple_of(ROWS);
        let lying = match (arithmetic, m.elements) {
            (Arithmetic::F32, Elements::F32(x)) => Some(bytemuck::cast_slice(x)),
            (Arithmetic::BF16, Elements::BF16(x)) if d.is_multiple_of(2) && m.stride.is_multiple_of(2) => {
                bytemuck::try_cast_slice(&x[..x.len() / 2 * 2]).ok()
            }
            _ => None,
        };
        let stride = m.stride / arithmetic.per_unit();
        if let Some(units) = lying.filter(|units| holds(units.len(), whole_tiles, stride, arithmetic.units(d))) {
            return Side::Lying(units, stride);
        }
        let mut rows = Rows::new(arithmetic, n, &[d]);
        let stride = rows.stride;
        for (i, units) in rows.units.chunks_exact_mut(stride).take(n).enumerate() {
            match m.from(i * m.stride).elements {
                Elements::F32(x) => round(arithmetic, &x[..d], units),
                other => {
                    let wide: Vec<f32> = (0..d).map(|j| other.get(j)).collect();
                    round(arithmetic, &wide, units);
                }
            }
        }
        Side::Rounded(rows)
    }
}

/// The left side of a product with one head.
enum Side<'a> {
    /// Units that others hold, and from one row to the next.
    Lying(&'a [u32], usize),
    Rounded(Rows),
}

impl<'a> Side<'a> {
    /// The first `n` numbers of rows that lie `stride` apart.
    fn of(arithmetic: Arithmetic, (x, stride): (&'a [u32], usize), (rows, n): (usize, usize)) -> Self {
        if arithmetic == Arithmetic::F32 {
            return Self::Lying(x, stride);
        }
        let mut rounded = Rows::new(arithmetic, rows, &[n]);
        let units = rounded.stride;
        for (x, units) in x.chunks(stride).zip(rounded.units.chunks_exact_mut(units.max(1))).take(rows) {
            round(arithmetic, bytemuck::cast_slice(&x[..n]), units);
        }
        Self::Rounded(rounded)
    }

    fn left(&self) -> (&[u32], usize) {
        match self {
            Self::Lying(units, stride) => (units, *stride),
            Self::Rounded(rows) => rows.left(),
        }
    }
}

/// Calls `f(row of the batch, queries, their rows of y, their sums)` for tiles of queries, in parallel.
///
/// `y` has a row of this width for each query, and may be longer; `sums` is `(b·t, heads)`, or empty.
pub(crate) fn over_tiles<T: Send>(
    s: &Shape,
    (mut y, width): (&mut [T], usize),
    mut sums: &mut [RowSum],
    f: impl Fn(usize, Range<usize>, &mut [T], &mut [RowSum]) + Sync,
) {
    let tiles = s.tiles_at_once(s.tile());
    let mut parts = Vec::with_capacity(s.batch * tiles.len());
    for (b, tile) in (0..s.batch).flat_map(|b| tiles.iter().map(move |tile| (b, tile.clone()))) {
        let (of_y, of_sums) = (tile.len() * width, tile.len() * s.heads);
        let y = y.split_off_mut(..of_y).unwrap_or_default();
        parts.push((b, tile, y, sums.split_off_mut(..of_sums).unwrap_or_default()));
    }
    parts.into_par_iter().for_each(|(b, tile, y, sums)| f(b, tile, y, sums));
}

/// `softmax(q·kᵀ·scale)·v` of one tile of queries, all heads: `out` is `(tile, heads·d)`.
///
/// `sums` becomes that of each query and head, `(tile, heads)`, unless it is empty.
pub(crate) fn forward(
    s: &Shape,
    packed: &Packed,
    (b, tile): (usize, Range<usize>),
    q: View,
    out: &mut [f32],
    sums: &mut [RowSum],
) {
    let (d, width) = (s.dim, s.heads * s.dim);
    let mut of_tile = Tile::new(s, &packed.texts[b], (b, tile));
    for h in 0..s.heads {
        let sums = sums.get_mut(h..).unwrap_or_default();
        of_tile.attend(s, packed.head(s, b, h), h, q, (&mut out[h * d..], width), (sums, s.heads));
    }
}

/// [`forward`] of a few queries, packing included, with the heads in parallel: `out` is `(b, tq, heads·d)`.
pub(crate) fn over_heads(s: &Shape, arithmetic: Arithmetic, [q, k, v]: [View; 3], out: &mut [f32]) {
    let (d, group, t) = (s.dim, s.heads / s.kv_heads, s.queries);
    let (tiles, width) = (s.tiles_at_once(TILE), group * d);
    // The query heads of one key-value head, `(tq, group·d)`.
    let attended = |unit: usize| {
        let (b, first) = (unit / s.kv_heads, unit % s.kv_heads * group);
        let texts = Texts::new(s, arithmetic, b);
        let head = PackedHead::new(s, &texts, (k, v), unit, false);
        let mut attended = Scratch::new(t * width);
        for tile in &tiles {
            let mut of_tile = Tile::new(s, &texts, (b, tile.clone()));
            let rows = &mut attended.f32()[tile.start * width..tile.end * width];
            for g in 0..group {
                of_tile.attend(s, &head, first + g, q, (&mut rows[g * d..], width), (&mut [], 1));
            }
        }
        attended
    };
    let heads: Vec<Scratch> = (0..s.batch * s.kv_heads).into_par_iter().map(attended).collect();
    for (unit, head) in heads.iter().enumerate() {
        let (b, h) = (unit / s.kv_heads, unit % s.kv_heads);
        let rows = out.chunks_exact_mut(s.heads * d).skip(b * t).zip(head.numbers().chunks_exact(width));
        rows.for_each(|(out, row)| out[h * width..(h + 1) * width].copy_from_slice(row));
    }
}

/// What one query sees of the keys of its tile: by default nothing.
#[derive(Clone, Default)]
struct Seen {
    /// The scores against what it sees.
    columns: Range<usize>,
    /// The first score that is read, and the units of the probabilities from there on, if they are rounded.
    from: usize,
    units: Range<usize>,
}

/// What the heads of a tile of queries use one after the other.
struct Tile<'a> {
    texts: &'a Texts,
    b: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    /// Where the values of these keys are.
    units: Range<usize>,
    /// Of each query.
    seen: Vec<Seen>,
    /// `(queries, keys)`, rows [`score_stride`] apart, and so many that they are a multiple of a tile's.
    scores: Scratch,
    /// The same as probabilities, where they must be rounded; zero where nothing is seen.
    p: Option<Rows>,
    inverse: Vec<f32>,
}

impl<'a> Tile<'a> {
    fn new(s: &Shape, texts: &'a Texts, (b, queries): (usize, Range<usize>)) -> Self {
        let (arithmetic, seen) = (texts.arithmetic, s.visible_to_tile(b, &queries));
        let (units, from) = texts.units(&seen);
        let keys = from_panel(from..seen.end);
        let (t, n) = (queries.len(), keys.len());
        let scores = Scratch::new(t.next_multiple_of(ROWS) * score_stride(n));
        let (units, p) = match arithmetic {
            Arithmetic::F32 => (keys.clone(), None),
            Arithmetic::BF16 => {
                let mut p = Rows::new(arithmetic, t, &[units.len() * arithmetic.per_unit()]);
                p.units.fill(0);
                (units, Some(p))
            }
        };
        let seen_by = |i: usize| {
            let seen = s.visible(b, i);
            let columns = within(&seen, keys.start, n);
            if columns.is_empty() {
                return Seen::default();
            }
            if arithmetic == Arithmetic::F32 {
                return Seen { columns, ..Seen::default() };
            }
            let (of_query, from) = texts.units(&seen);
            Seen { columns, from: from - keys.start, units: of_query.start - units.start..of_query.end - units.start }
        };
        let seen = queries.clone().map(seen_by).collect();
        Self { texts, b, queries, keys, units, seen, scores, p, inverse: vec![0.0; t] }
    }

    /// `softmax(q·kᵀ·scale)·v` of head `h` into rows of `out`, and what its rows sum up to into `sums` unless it is empty, with their strides.
    fn attend(
        &mut self,
        s: &Shape,
        head: &PackedHead,
        h: usize,
        q: View,
        (out, stride): (&mut [f32], usize),
        (sums, sums_stride): (&mut [RowSum], usize),
    ) {
        let (arithmetic, b, d, t, n) = (self.texts.arithmetic, self.b, s.dim, self.queries.len(), self.keys.len());
        let (scores, p) = (self.scores.f32(), &mut self.p);
        let side = q.side(arithmetic, (b, self.queries.start, h), (t, d));
        let (whole, of_row) = ((0..head.keys_t.depth, self.keys.clone()), score_stride(n));
        head.keys_t.multiply_part(t, side.left(), whole, Start::Zero, (&mut *scores, of_row));
        for (i, (row, seen)) in self.queries.clone().zip(&self.seen).enumerate() {
            let x = &mut scores[i * of_row..(i + 1) * of_row];
            s.add_bias(&mut x[..n], (row, h), self.keys.start);
            let Seen { columns, from, units } = seen.clone();
            let sum = exponents(&mut x[columns.start..], columns.len(), s.scale);
            self.inverse[i] = sum.inverse();
            if let Some(of_row) = sums.get_mut(i * sums_stride) {
                *of_row = sum;
            }
            // What is read and not seen: all of the row, or the number that the first makes one unit with.
            x[from..columns.start].fill(0.0);
            match p {
                Some(p) => round(arithmetic, &x[from..columns.end], &mut p.row_mut(i)[units]),
                None => x[columns.end..n].fill(0.0),
            }
        }
        let p = p.as_ref().map_or((bytemuck::cast_slice(scores), of_row), Rows::left);
        head.values.multiply_part(t, p, (self.units.clone(), 0..d), Start::Zero, (&mut *out, stride));
        for (row, inverse) in out.chunks_mut(stride).zip(&self.inverse) {
            row[..d].iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// These keys, from a multiple of a panel's columns on.
fn from_panel(keys: Range<usize>) -> Range<usize> {
    keys.start / LANES * LANES..keys.end
}

/// From one row of `n` scores to the next: wherever what is seen of them ends, whole vectors from its beginning on are in the row.
fn score_stride(n: usize) -> usize {
    (n + LANES - 1).next_multiple_of(LANES)
}

/// What a row of scores sums up to, `Σ exp((score − top)·scale)` with the largest score for top; 0 of no key, else at least 1 or no number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowSum {
    pub(crate) top: f32,
    pub(crate) sum: f32,
}

impl RowSum {
    /// What makes probabilities of the row; 0 of no key.
    fn inverse(self) -> f32 {
        if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum }
    }
}

/// Turns `n` scores into `exp((score − top)·scale)`; returns what they sum up to. What follows them up to a multiple of 16 becomes 0.
fn exponents(x: &mut [f32], n: usize, scale: f32) -> RowSum {
    if n == 0 {
        return RowSum::default();
    }
    let top = softmax::max(x, n);
    RowSum { top, sum: softmax::exp_row(x, n, scale, (top, 0.0)) }
}

/// A range of keys counted from `first`, at most `n`.
fn within(seen: &Range<usize>, first: usize, n: usize) -> Range<usize> {
    let end = seen.end.saturating_sub(first).min(n);
    seen.start.saturating_sub(first).min(end)..end
}
