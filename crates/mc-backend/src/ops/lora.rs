//! Projection by a frozen matrix plus a trained product of two thin ones (Hu et al., "LoRA", 2021).

use super::{
    Linear,
    block::trained,
    group::{Group, are_few, rows_at_once},
    linear,
};
use crate::{
    Stream, Weight,
    graft::{Value, graft, graft_with},
    kernels::{
        self,
        operand::{Rows, round_rows},
        tile::Start,
    },
};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// The trained part of a projection: `scale·(dropout(x)·Aᵀ)·Bᵀ`.
#[derive(Clone, Debug)]
pub struct Lora<'a> {
    /// `(rank, in)`
    pub a: &'a Tensor,
    /// `(out, rank)`
    pub b: &'a Tensor,
    /// What the product is multiplied with: `alpha / rank`, or `alpha / √rank` with rsLoRA.
    pub scale: f64,
    /// Elements of `x` that are dropped before `A`; `None` outside training.
    pub dropout: Option<Dropout>,
}

/// Inverted dropout with a mask that depends on its stream and the element's place alone.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability that an element becomes 0, in `0..1`; the others are divided by `1 − probability`.
    pub probability: f32,
    /// Where the mask comes from; the same stream gives the same mask.
    pub stream: Stream,
}

impl Dropout {
    /// The mask for a tensor like `x`: 0 or `1 / (1 − probability)`.
    pub fn mask(&self, x: &Tensor) -> Result<Tensor> {
        /// Elements one unit of work fills, a multiple of the 4 that the stream makes at once.
        const UNIT: usize = 16 * 1024;
        if !(0.0..1.0).contains(&self.probability) {
            bail!("a dropout probability is in 0..1, not {}", self.probability)
        }
        let kept = 1.0 / (1.0 - self.probability);
        let mut mask = vec![0f32; x.elem_count()];
        mask.par_chunks_mut(UNIT).enumerate().for_each(|(unit, mask)| {
            self.stream.fill_uniform((unit * UNIT / 4) as u64, mask);
            for m in mask {
                *m = if *m < self.probability { 0.0 } else { kept };
            }
        });
        Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())
    }
}

/// `x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ`: x `(…, in)`, weight `(out, in)` → `(…, out)`. Gradients go to `x`, `A` and `B`.
///
/// # Errors
/// If the shapes do not match.
pub fn lora_linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, lora: &Lora) -> Result<Tensor> {
    check(x, weight, bias, lora)?;
    if ![x, lora.a, lora.b].into_iter().all(kernels::serve) || weight.elements().is_none() {
        return composed(x, weight, bias, lora);
    }
    fused(x, &Linear { weight, bias, lora: Some(lora.clone()) })
}

/// What a projection is, with or without a trained part.
pub(super) fn project(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    match &linear.lora {
        Some(lora) => lora_linear(x, linear.weight, linear.bias, lora),
        None => linear::linear(x, linear.weight, linear.bias),
    }
}

/// [`project`] of plain candle ops.
pub(super) fn project_composed(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    match &linear.lora {
        Some(lora) => composed(x, linear.weight, linear.bias, lora),
        None => linear::composed(x, linear.weight, linear.bias),
    }
}

/// The kernel's path. With dropout the trained part reads other numbers than the frozen one, and so its products and
/// its share of the input's gradient are its own.
pub(super) fn fused(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    let dropout = linear.lora.as_ref().and_then(|l| l.dropout.clone());
    let mask = dropout.map(|d| d.mask(x)?.flatten_all()?.to_vec1::<f32>()).transpose()?;
    let whole = Linear { lora: linear.lora.clone().map(|l| Lora { dropout: None, ..l }), ..linear.clone() };
    let Some(group) = Group::new(&[&whole])? else { bail!("the weight is not on the CPU") };
    let (arithmetic, inner, outer) = (group.arithmetic, group.inner, linear.weight.rows());
    let n = x.elem_count().checked_div(inner).unwrap_or(0);
    let dense = x.detach().contiguous()?;
    let x_slice = kernels::slice(&dense)?;
    let trained = trained(&[linear]);
    let tracked = x.track_op() || trained.iter().any(|t| t.track_op());
    let shape = linear::output_shape(x, linear.weight);

    if are_few(n) && !tracked && mask.is_none() {
        let mut y = vec![0f32; n * outer];
        group.few(n, &x_slice, (&mut y, outer))?;
        return Tensor::from_vec(y, shape, x.device());
    }

    let masked = |mask: &[f32]| x_slice.iter().zip(mask).map(|(x, m)| x * m).collect::<Vec<f32>>();
    let dropped = mask.as_ref().map(|mask| Rows::of(arithmetic, &masked(mask), inner));
    let mut input = group.input_rows(n);
    let mut y = vec![0f32; n * outer];
    let (stage, stride, at_once) = (group.forward()?, input.stride, rows_at_once(n));
    let units = input.units.par_chunks_mut((at_once * stride).max(1)).enumerate();
    let rows = y.par_chunks_mut((at_once * outer).max(1)).zip(x_slice.par_chunks((at_once * inner).max(1)));
    units.zip(rows).for_each(|((block, units), (y, x))| {
        round_rows(arithmetic, (x, inner), (units, stride));
        let low = dropped.as_ref().map(|d| d.left_from(block * at_once));
        let n = x.len() / inner;
        stage.low(n, low, (&mut *units, stride));
        stage.columns(n, (units, stride), 0..outer, group.bias().map_or(Start::Zero, Start::Row), (y, outer));
    });
    drop((stage, x_slice));

    let (like, wants_x) = (dense, x.track_op());
    graft_with(x, &trained, Value::cpu(y, shape), move |g| {
        let g_slice = kernels::slice(g)?;
        let mut gradient = group.gradient_rows(n);
        let mut dx = vec![0f32; n * inner];
        let (stage, stride) = (group.backward(mask.is_none())?, gradient.stride);
        let low = mask.as_ref().map(|_| group.low_backward()).transpose()?;
        let units = gradient.units.par_chunks_mut((at_once * stride).max(1)).enumerate();
        let rows = dx.par_chunks_mut((at_once * inner).max(1)).zip(g_slice.par_chunks((at_once * outer).max(1)));
        units.zip(rows).for_each(|((block, units), (dx, g))| {
            round_rows(arithmetic, (g, outer), (units, stride));
            let n = g.len() / outer;
            stage.run(n, (units, stride), Start::Zero, (dx, inner));
            if let (Some(low), Some(mask)) = (&low, &mask) {
                let mut part = vec![0f32; dx.len()];
                low.multiply(n, (&units[stage.first()..], stride), Start::Zero, (&mut part, inner));
                let mask = &mask[block * at_once * inner..][..dx.len()];
                dx.iter_mut().zip(part.iter().zip(mask)).for_each(|(dx, (p, m))| *dx += p * m);
            }
        });
        let gradients = group.gradients(n, &input, dropped.as_ref(), &gradient)?;
        let dx = if wants_x { Some(Tensor::from_vec(dx, like.shape(), g.device())?) } else { None };
        Ok((dx, gradients))
    })
}

/// [`lora_linear`] of plain candle ops.
pub fn composed(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, lora: &Lora) -> Result<Tensor> {
    check(x, weight, bias, lora)?;
    let mask = lora.dropout.as_ref().map(|d| linear::flat(&d.mask(x)?)).transpose()?;
    let dropped = |x: &Tensor| mask.as_ref().map_or_else(|| Ok(x.clone()), |mask| x * mask);
    let rows = linear::flat(x)?;
    let input = dropped(&rows)?;
    // The parameters are f32; on devices whose activations are not, they are rounded here, and their gradients widened.
    let (a, b) = (lora.a.detach().to_dtype(x.dtype())?, lora.b.detach().to_dtype(x.dtype())?);
    let h = (input.matmul(&a.t()?)? * lora.scale)?;
    let y = (linear::composed_forward(&rows, weight, bias)? + h.matmul(&b.t()?)?)?;
    let y = y.reshape(linear::output_shape(x, weight))?;

    let (weight, shape, wants_x, scale) = (weight.clone(), x.shape().clone(), x.track_op(), lora.scale);
    let (a_dtype, b_dtype, mask) = (lora.a.dtype(), lora.b.dtype(), mask.clone());
    graft([x, lora.a, lora.b], Value::Tensor(y), move |g| {
        let g = linear::flat(g)?;
        let db = g.t()?.matmul(&h)?.to_dtype(b_dtype)?;
        let dh = (g.matmul(&b)? * scale)?;
        let da = dh.t()?.matmul(&input)?.to_dtype(a_dtype)?;
        let dx = if wants_x {
            let low = dh.matmul(&a)?;
            let low = mask.as_ref().map_or_else(|| Ok(low.clone()), |mask| &low * mask)?;
            Some((linear::composed_backward(&g, &weight)? + low)?.reshape(shape.clone())?)
        } else {
            None
        };
        Ok([dx, Some(da), Some(db)])
    })
}

fn check(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, lora: &Lora) -> Result<()> {
    linear::check(x, weight, bias)?;
    check_shapes(weight, lora)
}

fn check_shapes(weight: &Weight, lora: &Lora) -> Result<()> {
    let ((rank, inner), (outer, rank_b)) = (lora.a.dims2()?, lora.b.dims2()?);
    if rank != rank_b || inner != weight.cols() || outer != weight.rows() || rank == 0 {
        let (a, b) = (lora.a.shape(), lora.b.shape());
        bail!("LoRA matrices {a:?} and {b:?} do not fit a projection ({}, {})", weight.rows(), weight.cols())
    }
    Ok(())
}

pub(super) fn check_linear(linear: &Linear) -> Result<()> {
    let Linear { weight, bias, lora } = linear;
    if let Some(bias) = bias.filter(|b| b.dims() != [weight.rows()]) {
        bail!("a bias of {:?} for {} outputs", bias.shape(), weight.rows())
    }
    lora.as_ref().map_or(Ok(()), |lora| check_shapes(weight, lora))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Purpose;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    fn dropout() -> Dropout {
        Dropout { probability: 0.4, stream: Stream::new(3, Purpose::Dropout, 1) }
    }

    #[test]
    fn gradient() {
        let weight = Weight::from_tensor(&random(1, (5, 3), DType::F64)).unwrap();
        let inputs = [random(3, (2, 3, 3), DType::F64), random(4, (2, 3), DType::F64), random(5, (5, 2), DType::F64)];
        for dropout in [None, Some(dropout())] {
            gradcheck("lora_linear", &inputs, |x| {
                let lora = Lora { a: &x[1], b: &x[2], scale: 1.7, dropout: dropout.clone() };
                lora_linear(&x[0], &weight, None, &lora)
            });
        }
    }

    #[test]
    fn dropout_keeps_the_mean_and_repeats() -> Result<()> {
        let x = Tensor::ones((100, 100), DType::F32, &candle_core::Device::Cpu)?;
        let mask = dropout().mask(&x)?;
        let mean = mask.mean_all()?.to_scalar::<f32>()?;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert_eq!(mask.to_vec2::<f32>()?, dropout().mask(&x)?.to_vec2::<f32>()?);
        // A number depends on its place alone, not on how the work was cut.
        let longer = dropout().mask(&Tensor::ones((300, 100), DType::F32, x.device())?)?;
        assert_eq!(mask.to_vec2::<f32>()?, longer.narrow(0, 0, 100)?.to_vec2::<f32>()?);
        Ok(())
    }
}
