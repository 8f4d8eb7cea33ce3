//! Frozen projections of one input that are kept as the kernels read them.
//!
//! An encoder reads short texts, each once, so packing its matrices for every call would cost more than the products. They
//! are packed at their first use and stay so; the matrices are let go, and come from the file again where somebody else wants
//! them.
//! A projection by itself has its gradient in [`super::linear`].

use super::{
    Linear,
    block::{Ops, Side},
    group::{self, Group, Stage},
};
use crate::{
    Weight,
    kernels::{
        operand::round_rows,
        scratch::Scratch,
        tile::{Arithmetic, ROWS, Start},
    },
};
use candle_core::{DType, Result, Tensor};
use std::{
    ops::Range,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Frozen projections that read the same input, each `x·Wᵀ + bias`.
#[derive(Debug)]
pub struct Projections {
    members: Vec<(Weight, Option<Tensor>)>,
    packed: OnceLock<Option<Packed>>,
    packing: Mutex<()>,
}

/// Projections as the kernels read them.
pub(super) struct Packed {
    pub(super) arithmetic: Arithmetic,
    /// Width of the input.
    pub(super) inner: usize,
    /// Width of all outputs together, and the columns of each.
    pub(super) outer: usize,
    pub(super) outputs: Vec<Range<usize>>,
    /// Of width `outer`; empty without any.
    bias: Vec<f32>,
    stage: Stage,
}

impl Packed {
    /// `None` where the kernels cannot read them.
    fn new(projections: &Projections) -> Result<Option<Self>> {
        let once = projections.members.iter().map(|(weight, bias)| Ok((weight.to_read_once()?, bias.clone())));
        let once = Projections::new(once.collect::<Result<_>>()?);
        let linears = once.linears();
        let Some(group) = Group::new(&linears.iter().collect::<Vec<_>>())? else { return Ok(None) };
        let stage = group.forward_here();
        projections.members.iter().for_each(|(weight, _)| weight.release());
        let (arithmetic, inner, outer) = (group.arithmetic, group.inner, group.outer);
        let (outputs, bias) = (group.outputs().collect(), group.bias().unwrap_or_default().to_vec());
        Ok(Some(Self { arithmetic, inner, outer, outputs, bias, stage }))
    }

    /// The bias that all outputs begin with.
    pub(super) fn start(&self) -> Start<'_> {
        if self.bias.is_empty() { Start::Zero } else { Start::Row(&self.bias) }
    }

    /// Adds the bias, if there is any, to rows of the one projection's width.
    pub(super) fn add_bias(&self, y: &mut [f32]) {
        group::add_bias(&self.bias, self.outputs.first().map_or(1, Range::len), y);
    }

    /// Columns that are computed.
    fn written(&self) -> usize {
        if let [only] = &self.outputs[..] { only.end } else { self.outer }
    }

    /// Whether so many rows are one block, in which the threads share the columns: then each matrix is read once.
    pub(super) fn share_columns(rows: usize) -> bool {
        rows <= 48
    }

    /// `y = start + x·Wᵀ` for rows of x, and `rows` of all the call has.
    pub(super) fn run(&self, x: &[f32], rows: usize, start: Start, y: (&mut [f32], usize)) {
        let (arithmetic, width) = (self.arithmetic, self.inner);
        let n = x.len() / width.max(1);
        let stride = arithmetic.units(width);
        // Whole tiles are read.
        if arithmetic == Arithmetic::F32 && n.is_multiple_of(ROWS) {
            return self.run_units(n, rows, (bytemuck::cast_slice(x), stride), start, y);
        }
        let mut units = Scratch::new(n.next_multiple_of(ROWS) * stride);
        round_rows(arithmetic, (x, width), (&mut units, stride));
        self.run_units(n, rows, (&units, stride), start, y);
    }

    /// As [`Packed::run`] for `n` rows that are units already.
    pub(super) fn run_units(
        &self,
        n: usize,
        rows: usize,
        units: (&[u32], usize),
        start: Start,
        y: (&mut [f32], usize),
    ) {
        if Self::share_columns(rows) {
            self.stage.run_wide(n, units, start, y);
        } else {
            self.stage.columns(n, units, 0..self.written(), start, y);
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").finish_non_exhaustive()
    }
}

impl Projections {
    /// Projections by these matrices `(out, in)` and biases `(out)`.
    pub fn new(members: Vec<(Weight, Option<Tensor>)>) -> Self {
        Self { members, packed: OnceLock::new(), packing: Mutex::new(()) }
    }

    /// The same as another device would hold them: plain tensors of `dtype`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn plain(&self, dtype: DType) -> Result<Self> {
        let plain = |(weight, bias): &(Weight, Option<Tensor>)| {
            Ok((weight.plain(dtype)?, bias.as_ref().map(|b| b.to_dtype(dtype)).transpose()?))
        };
        Ok(Self::new(self.members.iter().map(plain).collect::<Result<_>>()?))
    }

    /// Each projection's width of input and of output.
    pub(super) fn widths(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.members.iter().map(|(weight, _)| (weight.cols(), weight.rows()))
    }

    pub(super) fn linears(&self) -> Vec<Linear<'_>> {
        let linear = |(weight, bias)| Linear { weight, bias, lora: None };
        self.members.iter().map(|(weight, bias)| linear((weight, bias.as_ref()))).collect()
    }

    /// What each gives, by the ops that compute one projection.
    pub(super) fn unfused(&self, ops: &Ops, side: Side, x: &Tensor) -> Result<Vec<Tensor>> {
        ops.project(None, side, &self.linears().iter().collect::<Vec<_>>(), x)
    }

    /// As the kernels read them; `None` where they cannot.
    pub(super) fn packed(&self) -> Result<Option<&Packed>> {
        if self.packed.get().is_none() {
            // Threads have texts of their own, and the first to come packs for all. It shares no work meanwhile, or it could be
            // given a text that waits for it.
            let _packing = self.packing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.packed.get().is_none() {
                let _ = self.packed.set(Packed::new(self)?);
            }
        }
        Ok(self.packed.get().and_then(Option::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() -> Result<()> {
        let members = vec![(Weight::from_tensor(&random(1, (5, 3), DType::F64))?, Some(random(2, 5, DType::F64)))];
        let projections = Projections::new(members).plain(DType::F64)?;
        assert_eq!(projections.widths().collect::<Vec<_>>(), [(3, 5)]);
        assert!(projections.packed()?.is_none());
        let linear = &projections.linears()[0];
        gradcheck("projections", &[random(3, (2, 3), DType::F64)], |x| ops::linear(&x[0], linear.weight, linear.bias));
        Ok(())
    }
}
