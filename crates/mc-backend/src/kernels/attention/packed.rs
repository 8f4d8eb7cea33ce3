//! Keys and values as the right sides of attention's products.

use super::{Shape, View};
use crate::kernels::{
    operand::{Matrix, Panels, Part},
    tile::Arithmetic,
};
use rayon::prelude::*;
use std::ops::Range;

/// Where the values of one row of the batch lie as the right side of `p·v`: each text from a unit of its own on, so that the pairs of
/// `bf16` that are added up together are the same, whatever stands before it.
pub(super) struct Texts {
    pub(super) arithmetic: Arithmetic,
    /// The keys of each text, and its first unit.
    places: Vec<(Range<usize>, usize)>,
    units: usize,
}

impl Texts {
    pub(super) fn new(s: &Shape, arithmetic: Arithmetic, b: usize) -> Self {
        let keys: Vec<Range<usize>> = match (&s.segments, &s.valid) {
            // Units that are numbers need no beginning.
            _ if arithmetic.per_unit() == 1 => std::iter::once(0..s.keys).collect(),
            (Some(segments), _) => segments.to_vec(),
            (None, Some(valid)) => vec![valid[b].clone()],
            (None, None) => std::iter::once(0..s.keys).collect(),
        };
        let mut units = 0;
        let places = keys.into_iter().map(|keys| {
            let first = units;
            units += arithmetic.units(keys.len());
            (keys, first)
        });
        Self { arithmetic, places: places.collect(), units }
    }

    /// The units that hold the values of these keys, and the first key of the first of them.
    pub(super) fn units(&self, keys: &Range<usize>) -> (Range<usize>, usize) {
        if keys.is_empty() {
            return (0..0, keys.start);
        }
        let per = self.arithmetic.per_unit();
        let unit = |key: usize| {
            let (keys, first) = &self.places[self.places.partition_point(|(keys, _)| keys.end <= key)];
            let before = (key - keys.start) / per;
            (first + before, keys.start + before * per)
        };
        let (first, from) = unit(keys.start);
        (first..unit(keys.end - 1).0 + 1, from)
    }

    /// The values of one head `(t, d)`, packed.
    fn pack(&self, matrix: Matrix, d: usize) -> Panels {
        let part = |(keys, first): &(Range<usize>, usize)| Part {
            depth: *first,
            col: 0,
            size: (keys.len(), d),
            matrix: matrix.from(keys.start * matrix.stride),
            transposed: false,
        };
        let parts: Vec<Part> = self.places.iter().map(part).collect();
        Panels::pack_here(self.arithmetic, self.units, d, &parts)
    }
}

/// Keys and values of all heads, packed: the right sides of `q·kᵀ` and `p·v`, and backward of `ds·k` and `g·vᵀ`.
pub(crate) struct Packed {
    pub(super) arithmetic: Arithmetic,
    kv_heads: usize,
    heads: Vec<PackedHead>,
    /// Of each row of the batch.
    pub(super) texts: Vec<Texts>,
}

pub(super) struct PackedHead {
    pub(super) keys_t: Panels,
    pub(super) values: Panels,
    pub(super) keys: Panels,
    pub(super) values_t: Panels,
}

impl PackedHead {
    /// Packs head `unit` of those of all rows of the batch, whose texts these are.
    pub(super) fn new(s: &Shape, texts: &Texts, (k, v): (View, View), unit: usize, backward: bool) -> Self {
        let (d, t, arithmetic) = (s.dim, s.keys, texts.arithmetic);
        let (b, h) = (unit / s.kv_heads, unit % s.kv_heads);
        let pack = |wanted: bool, view: View, transposed: bool| {
            let size = if transposed { (d, t) } else { (t, d) };
            let part = Part { depth: 0, col: 0, size, matrix: view.head(b, 0, h), transposed };
            if wanted {
                Panels::pack_here(arithmetic, arithmetic.units(size.0), size.1, &[part])
            } else {
                Panels::default()
            }
        };
        Self {
            keys_t: pack(true, k, true),
            values: if backward { Panels::default() } else { texts.pack(v.head(b, 0, h), d) },
            keys: pack(backward, k, false),
            values_t: pack(backward, v, true),
        }
    }
}

impl Packed {
    /// Packs in parallel over the heads.
    pub(crate) fn new(s: &Shape, arithmetic: Arithmetic, k: View, v: View, backward: bool) -> Self {
        let texts: Vec<Texts> = (0..s.batch).map(|b| Texts::new(s, arithmetic, b)).collect();
        let heads = (0..s.batch * s.kv_heads).into_par_iter();
        let heads = heads.map(|unit| PackedHead::new(s, &texts[unit / s.kv_heads], (k, v), unit, backward));
        Self { arithmetic, kv_heads: s.kv_heads, heads: heads.collect(), texts }
    }

    pub(super) fn head(&self, s: &Shape, b: usize, h: usize) -> &PackedHead {
        &self.heads[b * self.kv_heads + h / (s.heads / s.kv_heads)]
    }
}
