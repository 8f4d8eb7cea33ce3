//! Projection by a frozen matrix plus a trained product of two thin ones (Hu et al., "LoRA", 2021).

use super::linear;
use crate::{
    Stream, Weight,
    graft::{Value, graft},
    kernels::{
        self,
        gemm::{self, Matrix},
    },
};
use candle_core::{D, Result, Tensor, bail};
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
    if !kernels::serve(x) || weight.elements().is_none() {
        return composed(x, weight, bias, lora);
    }
    let (n, inner, outer, rank) = (x.elem_count() / weight.cols().max(1), weight.cols(), weight.rows(), lora.a.dim(0)?);
    let mask = lora.dropout.as_ref().map(|d| d.mask(x)).transpose()?;
    let (a, b) = (lora.a.detach().contiguous()?, lora.b.detach().contiguous()?);
    let scale = lora.scale as f32;
    let input = dropped(x, mask.as_ref())?;
    let mut y = linear::forward(x, weight, bias)?;
    let mut h = vec![0f32; n * rank];
    {
        let (input, a, b) = (kernels::slice(&input)?, kernels::slice(&a)?, kernels::slice(&b)?);
        gemm::parallel(
            (n, rank, inner),
            1.0,
            Matrix::new(&input, inner),
            Matrix::new(&a, inner).transposed(),
            0.0,
            &mut h,
        );
        gemm::parallel((n, outer, rank), scale, Matrix::new(&h, rank), Matrix::new(&b, rank).transposed(), 1.0, &mut y);
    }

    let (w, wants_x) = (weight.clone(), x.track_op());
    let value = Value::cpu(y, linear::output_shape(x, weight));
    graft([x, lora.a, lora.b], value, move |g| {
        let slice = kernels::slice(g)?;
        let g_rows = Matrix::new(&slice, outer);
        let mut db = vec![0f32; outer * rank];
        gemm::parallel((outer, rank, n), scale, g_rows.transposed(), Matrix::new(&h, rank), 0.0, &mut db);
        let mut dh = vec![0f32; n * rank];
        let b_slice = kernels::slice(&b)?;
        gemm::parallel((n, rank, outer), scale, g_rows, Matrix::new(&b_slice, rank), 0.0, &mut dh);
        let mut da = vec![0f32; rank * inner];
        let input_slice = kernels::slice(&input)?;
        gemm::parallel(
            (rank, inner, n),
            1.0,
            Matrix::new(&dh, rank).transposed(),
            Matrix::new(&input_slice, inner),
            0.0,
            &mut da,
        );
        let dx = if wants_x { Some(input_gradient(g, &w, (&dh, &a), mask.as_ref())?) } else { None };
        let device = g.device();
        Ok([dx, Some(Tensor::from_vec(da, (rank, inner), device)?), Some(Tensor::from_vec(db, (outer, rank), device)?)])
    })
}

/// `g·W + mask∘(dh·A)`
fn input_gradient(g: &Tensor, weight: &Weight, (dh, a): (&[f32], &Tensor), mask: Option<&Tensor>) -> Result<Tensor> {
    let (rank, inner) = a.dims2()?;
    let n = dh.len() / rank.max(1);
    let a = kernels::slice(a)?;
    let mut shape = g.dims().to_vec();
    shape.pop();
    shape.push(inner);
    let frozen = linear::backward(g, weight)?;
    if let Some(mask) = mask {
        let mut low = vec![0f32; n * inner];
        gemm::parallel((n, inner, rank), 1.0, Matrix::new(dh, rank), Matrix::new(&a, inner), 0.0, &mut low);
        return frozen + (Tensor::from_vec(low, shape, g.device())? * mask)?;
    }
    let mut dx = kernels::slice(&frozen)?.to_vec();
    gemm::parallel((n, inner, rank), 1.0, Matrix::new(dh, rank), Matrix::new(&a, inner), 1.0, &mut dx);
    Tensor::from_vec(dx, shape, g.device())
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
    let ((rank, inner), (outer, rank_b)) = (lora.a.dims2()?, lora.b.dims2()?);
    if rank != rank_b || inner != weight.cols() || outer != weight.rows() || rank == 0 {
        let (a, b) = (lora.a.shape(), lora.b.shape());
        bail!("LoRA matrices {a:?} and {b:?} do not fit a projection ({}, {})", weight.rows(), weight.cols())
    }
    Ok(())
}

/// The rows that `A` reads, `(n, in)`.
fn dropped(x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let x = x.detach();
    let x = match mask {
        Some(mask) => (x * mask)?,
        None => x,
    };
    let width = x.dim(D::Minus1)?;
    x.contiguous()?.reshape(((), width))
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
