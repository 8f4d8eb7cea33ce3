//! Frozen projections of one input that are kept as the kernels read them.
//!
//! An encoder reads short texts, each once, so packing its matrices for every call would cost more than the products. They
//! are packed at their first use and stay so; the matrices are let go, and come from the file again where somebody else wants
//! them.
//! A projection by itself has its gradient in [`super::linear`].

use super::{
    Gelu, Linear,
    block::{Ops, Side},
    group::{self, Group, Stage},
};
use crate::{
    Weight,
    computation::{Computation, Products},
    kernels::{
        operand::round,
        rows,
        scratch::Scratch,
        sixteen::{self, Panels},
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
    in_sixteen_bits: bool,
    packed: OnceLock<Option<Packed>>,
    packing: Mutex<()>,
}

/// Projections as the kernels read them.
pub(super) struct Packed {
    /// In which attention computes with what they give.
    pub(super) arithmetic: Arithmetic,
    /// Width of the input.
    pub(super) inner: usize,
    /// Width of all outputs together, and the columns of each.
    pub(super) outer: usize,
    pub(super) outputs: Vec<Range<usize>>,
    /// Of width `outer`; empty without any.
    bias: Vec<f32>,
    form: Form,
}

enum Form {
    Units(Stage),
    Sixteen(Panels),
}

/// Rows of input in the form that a product reads.
pub(super) enum Input<'a> {
    /// Rows of `f32` where they lie, so far apart; with padding, so that whole tiles may be read.
    InPlace(&'a [f32], usize),
    /// Rows that [`Packed::fill`] fills.
    Units(Scratch, usize),
    Sixteen(sixteen::Rows),
}

impl Packed {
    /// `None` where the kernels cannot read them.
    fn new(projections: &Projections) -> Result<Option<Self>> {
        let once = projections.members.iter().map(|(weight, bias)| (weight.to_read_once(), bias.clone()));
        let once = Projections::new(once.collect());
        let linears = once.linears();
        let Some(group) = Group::new(&linears.iter().collect::<Vec<_>>())? else { return Ok(None) };
        let (outputs, bias): (Vec<_>, _) = (group.outputs().collect(), group.bias().unwrap_or_default().to_vec());
        let form = if let Some(form) = projections.sixteen() {
            let members = outputs.iter().cloned().zip(&once.members);
            let matrices: Vec<_> = members.filter_map(|(columns, (w, _))| Some((columns, w.elements()?))).collect();
            Form::Sixteen(Panels::pack(form, group.inner, group.written(), &matrices))
        } else {
            Form::Units(group.forward_here())
        };
        projections.members.iter().for_each(|(weight, _)| weight.release());
        Ok(Some(Self { arithmetic: group.arithmetic, inner: group.inner, outer: group.outer, outputs, bias, form }))
    }

    /// The bias that all outputs begin with.
    pub(super) fn start(&self) -> Start<'_> {
        if self.bias.is_empty() { Start::Zero } else { Start::Row(&self.bias) }
    }

    /// Adds the bias, if there is any, to rows of the one projection's width.
    pub(super) fn add_bias(&self, y: &mut [f32]) {
        group::add_bias(&self.bias, self.outputs.first().map_or(1, Range::len), y);
    }

    /// Whether so many rows are one block, in which the threads share the columns: then each matrix is read once.
    pub(super) fn share_columns(rows: usize) -> bool {
        rows <= 48
    }

    /// Room for `n` rows of input, where they have to be brought into another form; `None` where `f32` is read where it lies.
    pub(super) fn room(&self, n: usize) -> Option<Input<'static>> {
        match &self.form {
            Form::Units(_) if self.arithmetic == Arithmetic::F32 => None,
            Form::Units(_) => Some(self.units(n)),
            Form::Sixteen(panels) => Some(Input::Sixteen(sixteen::Rows::new(panels.form(), n, self.inner))),
        }
    }

    fn units(&self, n: usize) -> Input<'static> {
        let stride = self.arithmetic.units(self.inner);
        Input::Units(Scratch::new(n.next_multiple_of(ROWS) * stride), stride)
    }

    /// Makes `x` row `i` of what there is room for.
    pub(super) fn fill(&self, input: &mut Input, i: usize, x: &[f32]) {
        match input {
            Input::InPlace(..) => unreachable!("read where it lies"),
            Input::Units(units, stride) => round(self.arithmetic, x, &mut units[i * *stride..(i + 1) * *stride]),
            Input::Sixteen(rows) => rows.fill(i, x),
        }
    }

    /// `y = start + x·Wᵀ` for rows of x, through a gelu if there is one, and `rows` of all the call has.
    pub(super) fn run(&self, x: &[f32], rows: usize, start: Start, gelu: Option<Gelu>, y: (&mut [f32], usize)) {
        let n = x.len() / self.inner.max(1);
        let input = match self.room(n) {
            // Whole tiles are read.
            None if n.is_multiple_of(ROWS) => Input::InPlace(x, self.inner),
            room => {
                let mut input = room.unwrap_or_else(|| self.units(n));
                x.chunks_exact(self.inner.max(1)).enumerate().for_each(|(i, x)| self.fill(&mut input, i, x));
                input
            }
        };
        self.run_input(n, rows, &input, start, gelu, y);
    }

    /// As [`Packed::run`] for `n` rows that are as the product reads them.
    pub(super) fn run_input(
        &self,
        n: usize,
        rows: usize,
        input: &Input,
        start: Start,
        gelu: Option<Gelu>,
        y: (&mut [f32], usize),
    ) {
        let cols = match &self.form {
            Form::Sixteen(panels) => panels.cols(),
            Form::Units(stage) => stage.cols(),
        };
        let product = |cols: Range<usize>, start: Start, (y, stride): (&mut [f32], usize)| {
            let width = cols.len();
            match (&self.form, input) {
                (Form::Sixteen(panels), Input::Sixteen(rows)) => panels.multiply(rows, cols, start, (y, stride)),
                (Form::Units(stage), Input::InPlace(x, of_row)) => {
                    stage.columns(n, (bytemuck::cast_slice(x), *of_row), cols, start, (y, stride));
                }
                (Form::Units(stage), Input::Units(units, of_row)) => {
                    stage.columns(n, (units, *of_row), cols, start, (y, stride));
                }
                _ => unreachable!("rows are in the form that is read"),
            }
            if let Some(form) = gelu {
                y.chunks_mut(stride).take(n).for_each(|y| rows::gelu_row(form, &mut y[..width]));
            }
        };
        if Self::share_columns(rows) {
            group::over_columns(cols, n, start, y, product);
        } else {
            product(0..cols, start, y);
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
        Self { members, in_sixteen_bits: false, packed: OnceLock::new(), packing: Mutex::new(()) }
    }

    /// The same; with `true`, products with `bf16` matrices may round both sides to other sixteen bits, where the CPU multiplies those
    /// faster than `f32` and has no faster product of `bf16`: [`Products::F16`] or [`Products::I16`].
    #[must_use]
    pub fn with_sixteen_bits(self, in_sixteen_bits: bool) -> Self {
        Self { in_sixteen_bits, ..self }
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

    /// In what they are computed; in `f32`, if they differ.
    pub fn computation(&self) -> Computation {
        let computation = self.computation_in_f32();
        match self.sixteen() {
            Some(sixteen::Form::F16) => Computation { products: Products::F16, ..computation },
            Some(sixteen::Form::I16) => Computation { products: Products::I16, ..computation },
            None => computation,
        }
    }

    /// The same, if nothing may be rounded to other sixteen bits.
    fn computation_in_f32(&self) -> Computation {
        let each = || self.members.iter().map(|(weight, _)| weight.computation());
        let first = each().next().unwrap_or(Computation { weights: DType::F32, products: Products::F32 });
        let alike = each().all(|c| c.products == first.products);
        Computation { products: if alike { first.products } else { Products::F32 }, ..first }
    }

    /// The sixteen bits in which it is computed, if that is what is done.
    fn sixteen(&self) -> Option<sixteen::Form> {
        // A group that computes in bf16 is as fast, and sums in f32.
        let rounds = self.in_sixteen_bits && self.computation_in_f32().products == Products::F32;
        let in_bf16 = self.members.iter().all(|(weight, _)| weight.computation().weights == DType::BF16);
        sixteen::Form::fastest().filter(|_| rounds && in_bf16)
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
                packed.run(&rows, 50, Start::Zero, None, (&mut y, 37));
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

    /// Only where that is allowed, the matrices are bf16 and the CPU is faster so; and a row's results do not depend on the others,
    /// nor on how many threads share the columns.
    #[test]
    fn sixteen_bits_are_chosen_and_depend_on_nothing_else() -> Result<()> {
        let projections = |dtype, arithmetic, allowed| {
            let weight = |seed| Weight::from_tensor(&random(seed, (70, 37), dtype));
            let members = [1, 2].map(|seed| Ok((weight(seed)?.with_arithmetic(arithmetic), None)));
            let members = members.into_iter().collect::<Result<_>>()?;
            Ok::<_, candle_core::Error>(Projections::new(members).with_sixteen_bits(allowed))
        };
        let is = |p: &Projections| {
            let said = p.computation().products;
            let form =
                p.packed()?.and_then(|p| if let Form::Sixteen(panels) = &p.form { Some(panels.form()) } else { None });
            assert_eq!(form == Some(sixteen::Form::F16), said == Products::F16);
            assert_eq!(form == Some(sixteen::Form::I16), said == Products::I16);
            assert!(p.packed()?.is_some_and(|p| (p.arithmetic == Arithmetic::BF16) == (said == Products::BF16)));
            Ok::<_, candle_core::Error>(p.packed()?.map(|_| form.is_some()))
        };
        assert_eq!(is(&projections(DType::F32, Arithmetic::F32, true)?)?, Some(false));
        assert_eq!(is(&projections(DType::BF16, Arithmetic::F32, false)?)?, Some(false));
        let in_bf16 = projections(DType::BF16, Arithmetic::BF16, true)?;
        let rounds = in_bf16.linears()[0].weight.arithmetic() == Arithmetic::BF16;
        assert!(!rounds || in_bf16.computation() == Computation { weights: DType::BF16, products: Products::BF16 });
        assert_eq!(is(&in_bf16)?, Some(!rounds && sixteen::Form::fastest().is_some()));
        // Members of which one is another.
        for (dtype, arithmetic) in [(DType::F32, Arithmetic::F32), (DType::BF16, Arithmetic::F32)] {
            let [rounds, other] = [(DType::BF16, Arithmetic::BF16), (dtype, arithmetic)].map(|(dtype, arithmetic)| {
                Weight::from_tensor(&random(1, (70, 37), dtype)).map(|w| (w.with_arithmetic(arithmetic), None))
            });
            let mixed = Projections::new(vec![rounds?, other?]).with_sixteen_bits(true);
            assert_eq!(is(&mixed)?, Some(dtype == DType::BF16 && sixteen::Form::fastest().is_some()));
        }
        let projections = projections(DType::BF16, Arithmetic::F32, true)?;
        assert_eq!(is(&projections)?, Some(sixteen::Form::fastest().is_some()));

        let Some(packed) = projections.packed()? else { panic!("not packed") };
        let x = random(3, (100, 37), DType::F32).flatten_all()?.to_vec1::<f32>()?;
        let run = |threads: usize, x: &[f32], rows: usize| {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
            let mut y = vec![f32::NAN; x.len() / 37 * packed.outer];
            pool.install(|| packed.run(x, rows, packed.start(), None, (&mut y, packed.outer)));
            Ok::<_, candle_core::Error>(y)
        };
        let all = run(1, &x, 100)?;
        for (first, n) in [(0, 1), (7, 13), (50, 50)] {
            for (threads, rows) in [(1, n), (3, n), (1, 100)] {
                let part = run(threads, &x[first * 37..(first + n) * 37], rows)?;
                assert!(part == all[first * packed.outer..(first + n) * packed.outer], "{first} {n} {threads} {rows}");
            }
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
