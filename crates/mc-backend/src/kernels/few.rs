//! Products of a few rows with a matrix as it lies: dot products with each of its rows.
//!
//! With one token at a time a product reads every weight once and uses it once, so it is as fast as memory, and
//! neither packing nor rounding could gain anything. Weights are widened as they are read.

use super::{
    Shared,
    operand::Matrix,
    simd::{Element, dot, simd},
};
use crate::weight::Elements;
use rayon::prelude::*;

/// Up to this many rows; above, packing pays.
pub(crate) const FEW: usize = 4;

/// A low-rank part: `h·Bᵀ` with h `(n, rank)` and B `(out, rank)`.
#[derive(Clone, Copy)]
pub(crate) struct Low<'a> {
    pub(crate) h: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) rank: usize,
}

/// Writes `x·Wᵀ + bias + h·Bᵀ` into columns `first..` of `y`, whose rows are `stride` apart.
///
/// x is `(n, in)`, W `(out, in)`; the number of rows of W is taken from what it holds.
pub(crate) fn times_transposed(
    n: usize,
    x: &[f32],
    w: Matrix,
    bias: Option<&[f32]>,
    low: Option<Low>,
    y: (&mut [f32], usize, usize),
) {
    match w.elements {
        Elements::F32(m) => run(n, x, (m, w.stride), bias, low, y),
        Elements::F16(m) => run(n, x, (m, w.stride), bias, low, y),
        Elements::BF16(m) => run(n, x, (m, w.stride), bias, low, y),
    }
}

fn run<T: Element>(
    n: usize,
    x: &[f32],
    (w, k): (&[T], usize),
    bias: Option<&[f32]>,
    low: Option<Low>,
    (y, stride, first): (&mut [f32], usize, usize),
) {
    /// Numbers of a matrix that one unit of work reads: long enough to be worth handing over.
    const UNIT: usize = 64 * 1024;
    if n == 0 || k == 0 || w.is_empty() {
        return;
    }
    let out = w.len() / k;
    let rows = UNIT.div_ceil(k);
    let shared = Shared::new(y);
    let unit = |u: usize| {
        let range = u * rows..((u + 1) * rows).min(out);
        for i in 0..n {
            // SAFETY: units own disjoint columns of y, as `slice` keeps them in bounds; one row's part at a time.
            #[allow(unsafe_code)]
            let y = unsafe { shared.slice(i * stride + first + range.start, range.len()) };
            let x = &x[i * k..(i + 1) * k];
            simd(
                #[inline(always)]
                || {
                    for (y, j) in y.iter_mut().zip(range.clone()) {
                        *y = dot(&w[j * k..(j + 1) * k], x) + bias.map_or(0.0, |b| b[j]);
                    }
                },
            );
            if let Some(Low { h, b, rank: r }) = low {
                let h = &h[i * r..(i + 1) * r];
                for (y, j) in y.iter_mut().zip(range.clone()) {
                    *y += b[j * r..(j + 1) * r].iter().zip(h).map(|(b, h)| b * h).sum::<f32>();
                }
            }
        }
    };
    let units = out.div_ceil(rows);
    if units == 1 { unit(0) } else { (0..units).into_par_iter().for_each(unit) }
}
