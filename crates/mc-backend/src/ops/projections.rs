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
        let once = projections.members.iter().map(|(weight, bias)| (weight.to_read_once(), bias.clone()));
        let once = Projections::new(once.collect());
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
    use crate::{ops, weight::Bytes};
    use mc_testkit::{gradcheck, random};
    use std::sync::Arc;

    /// Bytes that tell what of them was released.
    struct Watched(Vec<u8>, Arc<Mutex<Vec<Range<usize>>>>);

    impl Bytes for Watched {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
        fn release(&self, range: Range<usize>) {
            self.1.lock().unwrap().push(range);
        }
    }

    /// From several threads at once, of which each also shares work with the others.
    #[test]
    fn matrices_are_packed_once_and_let_go() -> Result<()> {
        let numbers = random(1, (37, 20), DType::F32).flatten_all()?.to_vec1::<f32>()?;
        let (released, input) = (Arc::default(), random(2, (50, 20), DType::F32));
        let owner = Arc::new(Watched(bytemuck::cast_slice(&numbers).to_vec(), Arc::clone(&released)));
        for dtype in [DType::F32, DType::BF16] {
            let weight = Weight::from_bytes(owner.clone(), 0..37 * 80, DType::F32, (37, 20))?.with_dtype(dtype)?;
            let expected = ops::linear(&input, &weight.plain(DType::F32)?, None)?.flatten_all()?.to_vec1::<f32>()?;
            let projections = Projections::new(vec![(weight.clone(), None)]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().map_err(candle_core::Error::wrap)?;
            let rows = input.flatten_all()?.to_vec1::<f32>()?;
            let results = pool.broadcast(|_| {
                let packed = projections.packed()?.ok_or_else(|| candle_core::Error::Msg("not packed".into()))?;
                let mut y = vec![0f32; 50 * 37];
                packed.run(&rows, 50, Start::Zero, (&mut y, 37));
                Ok(y)
            });
            for y in results.into_iter().collect::<Result<Vec<_>>>()? {
                assert!(y.iter().zip(&expected).all(|(y, e)| (y - e).abs() < 1e-5));
            }
            let mut released = released.lock().unwrap();
            assert!(released.len() == 1 && released[0] == (0..37 * 80), "{dtype:?}: {released:?}");
            released.clear();
            // And whoever wants the matrix gets it.
            assert_eq!(weight.to_tensor(DType::F32)?.dims(), [37, 20]);
        }
        Ok(())
    }

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
