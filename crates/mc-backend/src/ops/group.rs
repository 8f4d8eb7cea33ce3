//! Projections that read the same input, computed as one product, each with its low-rank part inside it.
//!
//! The part that LoRA adds, `s·(x·Aᵀ)·Bᵀ`, costs no pass over the output: with `h = s·x·Aᵀ` the whole is
//! `[x | h]·[W | B]ᵀ`, a product whose depth is longer by the rank. Backward it is the same with the sides exchanged:
//! with `e = s·g·B` the gradient of the input is `[g | e]·[W ; A]`, and those of A and B are `eᵀ·x` and `gᵀ·h`.

use super::Lora;
use crate::{
    Weight,
    kernels::{
        self, few,
        operand::{Matrix, Panels, Part, Rows, round},
        scratch::Scratch,
        simd::simd,
        tall,
        tile::{Arithmetic, LANES, ROWS, Start},
    },
};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::{Deref, Range};

/// A projection by a frozen matrix, with what an adapter adds: `x·Wᵀ + bias + scale·(dropout(x)·Aᵀ)·Bᵀ`.
#[derive(Clone, Debug)]
pub struct Linear<'a> {
    /// `(out, in)`
    pub weight: &'a Weight,
    /// `(out)`, frozen.
    pub bias: Option<&'a Tensor>,
    /// The trained part, if there is one.
    pub lora: Option<Lora<'a>>,
}

/// Projections side by side: the output of each begins at a multiple of 16 columns.
pub(super) struct Group {
    pub(super) arithmetic: Arithmetic,
    /// What outputs are rounded to that are kept for the backward pass.
    pub(super) kept: Arithmetic,
    /// Width of the input.
    pub(super) inner: usize,
    /// Width of all outputs together.
    pub(super) outer: usize,
    /// Width of all low-rank parts together.
    pub(super) rank: usize,
    members: Vec<Member>,
    /// Of width `outer`; empty without any.
    bias: Vec<f32>,
}

struct Member {
    weight: Weight,
    out: Range<usize>,
    low: Option<Low>,
}

struct Low {
    /// `(rank, in)`
    a: Tensor,
    /// `(out, rank)`
    b: Tensor,
    scale: f32,
    ranks: Range<usize>,
}

impl Low {
    /// The numbers of A and of B.
    fn numbers(&self) -> Result<(impl Deref<Target = [f32]> + '_, impl Deref<Target = [f32]> + '_)> {
        Ok((kernels::slice(&self.a)?, kernels::slice(&self.b)?))
    }
}

impl Group {
    /// `None` if a matrix is not on the CPU in a dtype of the kernels, a trained part is not `f32`, or there is dropout.
    pub(super) fn new(projections: &[&Linear]) -> Result<Option<Self>> {
        let on_cpu = projections.iter().all(|p| p.weight.elements().is_some());
        let dropout = projections.iter().any(|p| p.lora.as_ref().is_some_and(|l| l.dropout.is_some()));
        let lora = || projections.iter().filter_map(|p| p.lora.as_ref());
        if !on_cpu || dropout || lora().any(|l| !kernels::serve(l.a) || !kernels::serve(l.b)) {
            return Ok(None);
        }
        let Some(inner) = projections.first().map(|p| p.weight.cols()) else { return Ok(None) };
        // Rounded where all are.
        let of_all = |of: fn(&Weight) -> Arithmetic| {
            let rounds = projections.iter().all(|p| of(p.weight) == Arithmetic::BF16);
            if rounds { Arithmetic::BF16 } else { Arithmetic::F32 }
        };
        let (arithmetic, kept) = (of_all(Weight::arithmetic), of_all(Weight::kept));
        let (mut outer, mut rank, mut members) = (0, 0, vec![]);
        for p in projections {
            if p.weight.cols() != inner {
                bail!("projections of widths {inner} and {} do not read the same input", p.weight.cols())
            }
            let low = match &p.lora {
                Some(lora) => {
                    let r = lora.a.dim(0)?;
                    let (a, b) = (lora.a.detach().contiguous()?, lora.b.detach().contiguous()?);
                    let low = Low { a, b, scale: lora.scale as f32, ranks: rank..rank + r };
                    rank += r.next_multiple_of(arithmetic.per_unit());
                    Some(low)
                }
                None => None,
            };
            members.push(Member { weight: p.weight.clone(), out: outer..outer + p.weight.rows(), low });
            outer += p.weight.rows().next_multiple_of(LANES);
        }
        let mut bias = vec![];
        for (p, member) in projections.iter().zip(&members) {
            if let Some(b) = p.bias {
                bias.resize(outer, 0.0);
                bias[member.out.clone()].copy_from_slice(&b.detach().to_dtype(DType::F32)?.to_vec1::<f32>()?);
            }
        }
        Ok(Some(Self { arithmetic, kept, inner, outer, rank, members, bias }))
    }

    /// The columns of each projection's output.
    pub(super) fn outputs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.members.iter().map(|m| m.out.clone())
    }

    /// The bias of all outputs, if there is any.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        (!self.bias.is_empty()).then_some(&self.bias)
    }

    /// Adds the bias, if there is any, to rows of the one projection's width.
    pub(super) fn add_bias(&self, y: &mut [f32]) {
        add_bias(&self.bias, self.members.first().map_or(1, |m| m.out.len()), y);
    }

    /// Rows for the input and its low-rank parts.
    pub(super) fn input_rows(&self, n: usize) -> Rows {
        Rows::new(self.arithmetic, n, &[self.inner, self.rank])
    }

    /// What [`Group::gradients`] reads of the input: nothing where there are no low-rank parts.
    pub(super) fn keep(&self, input: Rows) -> Rows {
        if self.rank > 0 { input } else { Rows::new(self.arithmetic, 0, &[]) }
    }

    /// Rows for the gradient of the output and its low-rank parts; zero in columns that belong to no output.
    pub(super) fn gradient_rows(&self, n: usize) -> Rows {
        let mut rows = Rows::new(self.arithmetic, n, &[self.outer, self.rank]);
        if self.outputs().any(|out| !out.len().is_multiple_of(LANES)) {
            rows.units.fill(0);
        }
        rows
    }

    /// The product of the forward pass: [`Group::input_rows`] → `(n, outer)`.
    pub(super) fn forward(&self) -> Result<Stage> {
        let (inner, unit) = (self.inner, |n| self.arithmetic.units(n));
        let mut whole = self.matrices();
        let (numbers, mut low) = (self.numbers()?, vec![]);
        for ((m, l), (a, b)) in self.low().zip(&numbers) {
            let r = l.ranks.len();
            let matrix = Matrix::f32(a, inner);
            low.push(Part { depth: 0, col: l.ranks.start, size: (inner, r), matrix, transposed: true });
            let matrix = Matrix::f32(b, r);
            let depth = unit(inner) + unit(l.ranks.start);
            whole.push(Part { depth, col: m.out.start, size: (r, m.out.len()), matrix, transposed: true });
        }
        Ok(self.stage(inner, self.written(), &low, &whole))
    }

    /// [`Group::forward`] without low-rank parts, packed on this thread alone.
    pub(super) fn forward_here(&self) -> Stage {
        let first = self.arithmetic.units(self.inner);
        Stage {
            arithmetic: self.arithmetic,
            first,
            scales: vec![],
            low: Panels::default(),
            whole: Panels::pack_here(self.arithmetic, first, self.written(), &self.matrices()),
        }
    }

    /// Of several, with the columns between and after them, so that all of the output is written.
    pub(super) fn written(&self) -> usize {
        if let [only] = &self.members[..] { only.out.end } else { self.outer }
    }

    /// The matrices of the forward pass.
    fn matrices(&self) -> Vec<Part<'_>> {
        self.weights(|m, elements| Part {
            depth: 0,
            col: m.out.start,
            size: (self.inner, m.out.len()),
            matrix: Matrix::new(elements, self.inner),
            transposed: true,
        })
    }

    /// The product of the backward pass: [`Group::gradient_rows`] → `(n, inner)`, with the part that comes through the
    /// low-rank parts, or without.
    pub(super) fn backward(&self, with_low: bool) -> Result<Stage> {
        let (inner, unit) = (self.inner, |n| self.arithmetic.units(n));
        let mut whole: Vec<Part> = self.weights(|m, elements| Part {
            depth: unit(m.out.start),
            col: 0,
            size: (m.out.len(), inner),
            matrix: Matrix::new(elements, inner),
            transposed: false,
        });
        let (numbers, mut low) = (self.numbers()?, vec![]);
        for ((m, l), (a, b)) in self.low().zip(&numbers) {
            let r = l.ranks.len();
            let (matrix, depth) = (Matrix::f32(b, r), unit(m.out.start));
            low.push(Part { depth, col: l.ranks.start, size: (m.out.len(), r), matrix, transposed: false });
            let (matrix, depth) = (Matrix::f32(a, inner), unit(self.outer) + unit(l.ranks.start));
            if with_low {
                whole.push(Part { depth, col: 0, size: (r, inner), matrix, transposed: false });
            }
        }
        Ok(self.stage(self.outer, inner, &low, &whole))
    }

    /// What comes through the low-rank parts alone: their units of [`Group::gradient_rows`] → `(n, inner)`.
    pub(super) fn low_backward(&self) -> Result<Panels> {
        let numbers = self.numbers()?;
        let parts = self.low().zip(&numbers).map(|((_, l), (a, _))| Part {
            depth: self.arithmetic.units(l.ranks.start),
            col: 0,
            size: (l.ranks.len(), self.inner),
            matrix: Matrix::f32(a, self.inner),
            transposed: false,
        });
        let parts: Vec<_> = parts.collect();
        Ok(Panels::pack(self.arithmetic, self.arithmetic.units(self.rank), self.inner, &parts))
    }

    fn stage(&self, from: usize, to: usize, low: &[Part], whole: &[Part]) -> Stage {
        let (first, rank) = (self.arithmetic.units(from), self.arithmetic.units(self.rank));
        let mut scales = vec![0f32; self.rank];
        self.low().for_each(|(_, l)| scales[l.ranks.clone()].fill(l.scale));
        Stage {
            arithmetic: self.arithmetic,
            first,
            scales,
            low: Panels::pack(self.arithmetic, first, self.rank, low),
            whole: Panels::pack(self.arithmetic, first + rank, to, whole),
        }
    }

    fn weights<'a>(&'a self, part: impl Fn(&'a Member, crate::weight::Elements<'a>) -> Part<'a>) -> Vec<Part<'a>> {
        self.members.iter().filter_map(|m| Some(part(m, m.weight.elements()?))).collect()
    }

    /// The numbers of all low-rank parts.
    fn numbers(&self) -> Result<Vec<(impl Deref<Target = [f32]> + '_, impl Deref<Target = [f32]> + '_)>> {
        self.low().map(|(_, l)| l.numbers()).collect()
    }

    fn low(&self) -> impl Iterator<Item = (&Member, &Low)> {
        self.members.iter().filter_map(|m| Some((m, m.low.as_ref()?)))
    }

    /// The gradients of A and B, member by member and in turn, from the rows of `n` inputs and of their outputs' gradients, both
    /// with their low-rank parts. `dropped` is what the low-rank parts read, where that is not the input.
    pub(super) fn gradients(
        &self,
        n: usize,
        input: &Rows,
        dropped: Option<&Rows>,
        gradient: &Rows,
    ) -> Result<Vec<Tensor>> {
        if self.rank == 0 {
            return Ok(vec![]);
        }
        let (arithmetic, units) = (self.arithmetic, |n| self.arithmetic.units(n));
        let low = |rows: &Rows, width| Rows::transposed(arithmetic, rows.matrix(units(width)), n, self.rank);
        let read = dropped.unwrap_or(input);
        let a = tall::multiply(&low(gradient, self.outer), self.rank, read, (n, self.inner));
        let b = tall::multiply(&low(input, self.inner), self.rank, gradient, (n, self.outer));
        let device = &candle_core::Device::Cpu;
        let mut gradients = vec![];
        for (m, l) in self.low() {
            let (r, inner, outer) = (l.ranks.len(), self.inner, self.outer);
            let db = m.out.clone().flat_map(|o| l.ranks.clone().map(move |r| r * outer + o)).map(|i| b[i]);
            let da = &a[l.ranks.start * inner..l.ranks.end * inner];
            gradients.push(Tensor::from_slice(da, (r, inner), device)?);
            gradients.push(Tensor::from_iter(db, device)?.reshape((m.out.len(), r))?);
        }
        Ok(gradients)
    }

    /// The forward pass of a few rows, whose cost is reading the matrices: rows of `stride`, nothing rounded.
    pub(super) fn few(&self, n: usize, x: &[f32], y: (&mut [f32], usize)) -> Result<()> {
        let numbers = self.members.iter().map(|m| m.low.as_ref().map(Low::numbers).transpose());
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        let low = self.members.iter().zip(&numbers).map(|(m, numbers)| {
            let (low, (a, b)) = m.low.as_ref().zip(numbers.as_ref())?;
            let mut h = vec![0f32; n * low.ranks.len()];
            let a = few::Factor { w: Matrix::f32(a, self.inner), compact: None, bias: None, low: None, first: 0 };
            few::times_transposed(n, x, &[a], (&mut h, low.ranks.len()));
            for h in &mut h {
                *h *= low.scale;
            }
            Some((h, &**b, low.ranks.len()))
        });
        let low: Vec<_> = low.collect();
        let factors = self.members.iter().zip(&low).filter_map(|(m, low)| {
            let w = Matrix::new(m.weight.elements()?, self.inner);
            let bias = self.bias().map(|b| &b[m.out.clone()]);
            let low = low.as_ref().map(|(h, b, rank)| few::Low { h, b, rank: *rank });
            Some(few::Factor { w, compact: m.weight.compact(), bias, low, first: m.out.start })
        });
        few::times_transposed(n, x, &factors.collect::<Vec<_>>(), y);
        Ok(())
    }
}

/// Adds a bias, if there is any, to rows of this width.
pub(super) fn add_bias(bias: &[f32], width: usize, y: &mut [f32]) {
    if !bias.is_empty() {
        y.chunks_exact_mut(width).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    }
}

/// A product for a few rows, of which each thread computes some columns: those it is told, into what it is given.
pub(super) fn over_columns(
    cols: usize,
    rows: usize,
    start: Start,
    (y, stride): (&mut [f32], usize),
    product: impl Fn(Range<usize>, Start, (&mut [f32], usize)) + Sync,
) {
    debug_assert!(!matches!(start, Start::Itself), "each thread has an output of its own");
    let part = cols.div_ceil(rayon::current_num_threads()).next_multiple_of(LANES).max(LANES);
    let parts: Vec<_> = (0..cols).step_by(part).map(|from| from..(from + part).min(cols)).collect();
    let one = |cols: &Range<usize>| {
        let start = match start {
            Start::Row(row) => Start::Row(&row[cols.clone()]),
            Start::Matrix(m, stride) => Start::Matrix(&m[cols.start..], stride),
            other => other,
        };
        let mut c = Scratch::new(rows * cols.len());
        product(cols.clone(), start, (c.f32(), cols.len()));
        c
    };
    let results: Vec<Scratch> = parts.par_iter().map(one).collect();
    for (cols, mut c) in parts.into_iter().zip(results) {
        for (y, c) in y.chunks_mut(stride).zip(c.f32().chunks_exact(cols.len())) {
            y[cols.clone()].copy_from_slice(c);
        }
    }
}

/// A product with its low-rank part, ready to run on blocks of rows from several threads.
pub(super) struct Stage {
    arithmetic: Arithmetic,
    /// Units of a row before its low-rank parts.
    first: usize,
    scales: Vec<f32>,
    low: Panels,
    whole: Panels,
}

impl Stage {
    /// Units of a row before its low-rank parts.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// `out = start + rows·…` for `rows` rows of units on this thread; fills their low-rank parts.
    pub(super) fn run(
        &self,
        rows: usize,
        (units, stride): (&mut [u32], usize),
        start: Start,
        out: (&mut [f32], usize),
    ) {
        self.low(rows, None, (&mut *units, stride));
        self.whole.multiply(rows, (units, stride), start, out);
    }

    /// Columns of the product.
    pub(super) fn cols(&self) -> usize {
        self.whole.cols
    }

    /// Some columns of the product, after [`Stage::low`] filled the low-rank parts of its rows.
    pub(super) fn columns(
        &self,
        rows: usize,
        units: (&[u32], usize),
        columns: Range<usize>,
        start: Start,
        out: (&mut [f32], usize),
    ) {
        self.whole.multiply_cols(rows, units, columns, start, out);
    }

    /// Fills the low-rank parts of rows of units, computed of these rows or of others, if there are any.
    pub(super) fn low(&self, rows: usize, low: Option<(&[u32], usize)>, (units, stride): (&mut [u32], usize)) {
        let rank = self.scales.len();
        if rank > 0 {
            let mut h = vec![0f32; rows * rank];
            self.low.multiply(rows, low.unwrap_or((units, stride)), Start::Zero, (&mut h, rank));
            for (h, row) in h.chunks_exact_mut(rank).zip(units.chunks_exact_mut(stride)) {
                simd(
                    #[inline(always)]
                    || h.iter_mut().zip(&self.scales).for_each(|(h, s)| *h *= s),
                );
                round(self.arithmetic, h, &mut row[self.first..]);
            }
        }
    }
}

/// Rows that one unit of work takes through a block: as large as possible while all threads have as much to do.
///
/// A multiple of a tile's rows. No number depends on it: each is computed whole, in one order, within a unit.
pub(super) fn rows_at_once(n: usize) -> usize {
    /// Rows of units that stay in the L2 cache beside panels, for most widths.
    const MOST: usize = 270;
    let threads = rayon::current_num_threads();
    let units = threads * n.div_ceil(threads * MOST).max(1);
    n.div_ceil(units).next_multiple_of(ROWS).clamp(2 * ROWS, MOST)
}

/// Whether so many rows are better read by [`Group::few`].
pub(super) fn are_few(n: usize) -> bool {
    n <= kernels::few::FEW
}
