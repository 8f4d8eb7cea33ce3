//! The adapter of one projection: its parameters, and what it makes of the projection's input. Knows no model.

use crate::{LoRAConfig, Result};
use candle_core::{DType, Tensor, Var};
use mc_backend::{
    Purpose, Stream, Weight,
    ops::{self, Dropout, Lora},
};
use mc_models::{Addition, Projection};

/// LoRA or DoRA at one projection; parameters are `f32` on the projection's device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_backend::Weight;
/// use mc_lora::{LoRAConfig, LoRALayer};
/// use mc_models::{Projection, Site};
/// let weight = Weight::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?)?;
/// let site = Site { index: 0, path: "model.layers.0.self_attn.q_proj".into(), in_features: 2, out_features: 3 };
/// let layer = LoRALayer::new(&Projection { site, weight, bias: None }, LoRAConfig { rank: 1, ..Default::default() }, 7)?;
/// assert_eq!((layer.a().dims(), layer.b().dims()), ([1, 2].as_slice(), [3, 1].as_slice()));
/// # Ok::<(), mc_lora::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoRALayer {
    path: String,
    config: LoRAConfig,
    a: Var,
    b: Var,
    dora: Option<Dora>,
}

#[derive(Clone, Debug)]
struct Dora {
    /// `(out)`
    magnitude: Var,
    /// `‖W‖²` per row, `(out)`.
    weight_square_sums: Tensor,
}

/// The first or stored values of a layer.
pub(crate) struct Parameters {
    /// `(rank, in)`
    pub(crate) a: Tensor,
    /// `(out, rank)`
    pub(crate) b: Tensor,
    /// `(out)`, with DoRA.
    pub(crate) magnitude: Option<Tensor>,
}

impl LoRALayer {
    /// A layer that changes nothing yet: A uniform in ±1/√in, B zero, the magnitudes those of the weight's rows.
    ///
    /// A depends on `seed` and the site's index alone.
    ///
    /// # Errors
    /// If the configuration is out of range, or the device has no room.
    pub fn new(projection: &Projection, config: LoRAConfig, seed: u64) -> Result<Self> {
        config.check("rank", "alpha")?;
        let site = &projection.site;
        let device = projection.weight.device();
        let bound = 1.0 / (site.in_features as f32).sqrt();
        let mut stream = Stream::new(seed, Purpose::Init, site.index as u64);
        let a: Vec<f32> = (0..config.rank * site.in_features).map(|_| (2.0 * stream.uniform() - 1.0) * bound).collect();
        let a = Tensor::from_vec(a, (config.rank, site.in_features), &device)?;
        let b = Tensor::zeros((site.out_features, config.rank), DType::F32, &device)?;
        Self::from_parameters(projection, config, &Parameters { a, b, magnitude: None })
    }

    /// A layer of values that have the right shapes; without a magnitude it is the rows' of the weight.
    pub(crate) fn from_parameters(projection: &Projection, config: LoRAConfig, values: &Parameters) -> Result<Self> {
        let var = |t: &Tensor| -> candle_core::Result<Var> {
            Var::from_tensor(&t.to_device(&projection.weight.device())?.to_dtype(DType::F32)?.contiguous()?)
        };
        let dora = if config.use_dora {
            let weight_square_sums = projection.weight.row_square_sums()?;
            let magnitude = match &values.magnitude {
                Some(magnitude) => var(magnitude)?,
                None => var(&weight_square_sums.sqrt()?)?,
            };
            Some(Dora { magnitude, weight_square_sums })
        } else {
            None
        };
        Ok(Self { path: projection.site.path.clone(), config, a: var(&values.a)?, b: var(&values.b)?, dora })
    }

    /// The path of its projection.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its settings, after patterns.
    pub fn config(&self) -> &LoRAConfig {
        &self.config
    }

    /// `(rank, in)`
    pub fn a(&self) -> &Var {
        &self.a
    }

    /// `(out, rank)`
    pub fn b(&self) -> &Var {
        &self.b
    }

    /// `(out)`; only with DoRA.
    pub fn magnitude(&self) -> Option<&Var> {
        self.dora.as_ref().map(|d| &d.magnitude)
    }

    /// Whether the norms of the weight's rows take part.
    pub(crate) fn is_dora(&self) -> bool {
        self.dora.is_some()
    }

    /// What the layer computes with as its parameters are now; gradients reach them.
    pub(crate) fn terms(&self, weight: &Weight) -> candle_core::Result<Terms> {
        let row_scale = self.dora.as_ref().map(|dora| dora.row_scale(self, weight)).transpose()?;
        Ok(Terms {
            a: self.a.as_tensor().clone(),
            b: self.b.as_tensor().clone(),
            scale: self.config.scaling(),
            row_scale,
        })
    }
}

impl Dora {
    /// `m / ‖W + s·B·A‖` per output row, the norm without gradient (Liu et al., "DoRA", 2024, section 4.3).
    ///
    /// `‖W + s·B·A‖² = ‖W‖² + 2s·Σ B∘(W·Aᵀ) + s²·Σ (B·A·Aᵀ)∘B`, so the whole `B·A` is never made. Its relative error is
    /// that of f32 times `(‖W‖² + ‖s·B·A‖²) / ‖W + s·B·A‖²`, which is near 1 unless training all but erases a row.
    fn row_scale(&self, layer: &LoRALayer, weight: &Weight) -> candle_core::Result<Tensor> {
        let (a, b, s) = (layer.a.as_detached_tensor(), layer.b.as_detached_tensor(), layer.config.scaling());
        let cross = (&b * weight_times(weight, &a)?)?.sum(1)?;
        let own = (b.matmul(&a.matmul(&a.t()?)?)? * &b)?.sum(1)?;
        let square = ((&self.weight_square_sums + (cross * (2.0 * s))?)? + (own * (s * s))?)?;
        // Rounding may take a square below zero; and a row of zeros stays one instead of becoming 0/0.
        let norm = square.maximum(0f32)?.sqrt()?.maximum(f32::MIN_POSITIVE)?;
        ops::mul_frozen(self.magnitude.as_tensor(), &norm.recip()?)
    }
}

/// `W·Aᵀ` in `f32`: A `(rank, in)` → `(out, rank)`.
fn weight_times(weight: &Weight, a: &Tensor) -> candle_core::Result<Tensor> {
    /// Rows of the weight that are widened at a time, where there is no kernel that widens as it goes.
    const ROWS: usize = 1024;
    if weight.device().is_cpu() { ops::linear(a, weight, None)?.t() } else { chunked(weight, a, ROWS) }
}

/// `W·Aᵀ` with so many rows of `W` widened at a time.
fn chunked(weight: &Weight, a: &Tensor, rows: usize) -> candle_core::Result<Tensor> {
    let (w, a) = (weight.to_tensor(weight.dtype())?, a.t()?);
    let chunk = |start: usize| w.narrow(0, start, rows.min(weight.rows() - start))?.to_dtype(a.dtype())?.matmul(&a);
    Tensor::cat(&(0..weight.rows()).step_by(rows).map(chunk).collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// Everything that one projection's adapter computes with.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    a: Tensor,
    b: Tensor,
    scale: f64,
    /// `(out)`, with DoRA.
    row_scale: Option<Tensor>,
}

impl Terms {
    /// The same values without a graph, in memory that is still the layer's.
    pub(crate) fn detached(&self) -> Self {
        let row_scale = self.row_scale.as_ref().map(Tensor::detach);
        Self { a: self.a.detach(), b: self.b.detach(), scale: self.scale, row_scale }
    }

    /// The same values without a graph, in memory of their own; the matrices in the dtype of activations, so that no pass
    /// has to round them.
    pub(crate) fn copied(&self, dtype: DType) -> candle_core::Result<Self> {
        let row_scale = self.row_scale.as_ref().map(|t| t.detach().copy()).transpose()?;
        let copied = |t: &Tensor| if t.dtype() == dtype { t.detach().copy() } else { t.detach().to_dtype(dtype) };
        Ok(Self { a: copied(&self.a)?, b: copied(&self.b)?, scale: self.scale, row_scale })
    }

    /// What they add, said for a fused block: with DoRA it is more than a low-rank part.
    pub(crate) fn addition(self, dropout: Option<Dropout>) -> Addition {
        match self.row_scale {
            Some(_) => Addition::Other,
            None => Addition::LowRank { a: self.a, b: self.b, scale: self.scale, dropout },
        }
    }

    /// `x·Wᵀ + bias + s·(d(x)·Aᵀ)·Bᵀ`, where `d` is the dropout; x `(…, in)` → `(…, out)`.
    ///
    /// With DoRA `x·Wᵀ + bias + (g − 1)∘d(x)·Wᵀ + g∘s·(d(x)·Aᵀ)·Bᵀ` with the row scale `g`, as PEFT computes it.
    pub(crate) fn project(
        &self,
        projection: &Projection,
        x: &Tensor,
        dropout: Option<Dropout>,
    ) -> candle_core::Result<Tensor> {
        let Projection { weight, bias, .. } = projection;
        let lora = Lora { a: &self.a, b: &self.b, scale: self.scale, dropout };
        let Some(row_scale) = &self.row_scale else {
            return ops::lora_linear(x, weight, bias.as_ref(), &lora);
        };
        let (kept, lora) = match lora.dropout {
            None => (None, lora),
            Some(dropout) => (Some(ops::mul_frozen(x, &dropout.mask(x)?)?), Lora { dropout: None, ..lora }),
        };
        // In f32 at least: a row scale is near 1, where bf16 has no other number within 2⁻⁸.
        let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let row_scale = row_scale.to_dtype(wide)?;
        let scaled = |x: &Tensor| {
            let y = ops::lora_linear(x, weight, None, &lora)?.to_dtype(wide)?;
            y.broadcast_mul(&row_scale)?.to_dtype(x.dtype())
        };
        match (kept, bias) {
            // The two terms without `g` are one projection of `x − d(x)`.
            (Some(kept), _) => ops::linear(&(x - &kept)?, weight, bias.as_ref())? + scaled(&kept)?,
            (None, Some(bias)) => ops::add_frozen(&scaled(x)?, &bias.to_dtype(x.dtype())?),
            (None, None) => scaled(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_models::Site;
    use mc_testkit::{Tolerance, assert_close, gradcheck, random};

    const OUT: usize = 7;
    const IN: usize = 19;

    fn projection(weight: &Tensor, bias: Option<Tensor>) -> Projection {
        let (out_features, in_features) = weight.dims2().unwrap();
        let site = Site { index: 0, path: "model.layers.0.mlp.up_proj".into(), in_features, out_features };
        Projection { site, weight: Weight::from_tensor(weight).unwrap(), bias }
    }

    fn dropout() -> Dropout {
        Dropout { probability: 0.4, stream: Stream::new(3, Purpose::Dropout, 1) }
    }

    fn dora(projection: &Projection, a: &Tensor, b: &Tensor) -> LoRALayer {
        let config = LoRAConfig { alpha: 3.0, use_dora: true, ..Default::default() };
        layer(projection, config, a, b)
    }

    fn layer(projection: &Projection, config: LoRAConfig, a: &Tensor, b: &Tensor) -> LoRALayer {
        let config = LoRAConfig { rank: a.dim(0).unwrap(), ..config };
        let magnitude = Some(random(9, projection.site.out_features, DType::F32));
        let values = Parameters { a: a.clone(), b: b.clone(), magnitude };
        LoRALayer::from_parameters(projection, config, &values).unwrap()
    }

    /// In x, A, B and the magnitude, the norm held fixed.
    #[test]
    fn gradient() {
        for (bias, dropout) in [(None, None), (Some(random(6, OUT, DType::F64)), Some(dropout()))] {
            let projection = projection(&random(1, (OUT, IN), DType::F64), bias);
            let norm = (random(2, OUT, DType::F64).abs().unwrap() + 0.5).unwrap();
            let inputs = [
                random(3, (2, 3, IN), DType::F64),
                random(4, (2, IN), DType::F64),
                random(5, (OUT, 2), DType::F64),
                random(7, OUT, DType::F64),
            ];
            gradcheck("dora", &inputs, |i| {
                let row_scale = Some((&i[3] / &norm)?);
                let terms = Terms { a: i[1].clone(), b: i[2].clone(), scale: 1.7, row_scale };
                terms.project(&projection, &i[0], dropout.clone())
            });
        }
    }

    /// The fused path in f32 and the composed one in f64 give one result and one gradient.
    #[test]
    fn fused_equals_composed() {
        let bias = Some(random(6, OUT, DType::F32));
        let projection = projection(&random(1, (OUT, IN), DType::F32), bias);
        let layer = dora(&projection, &random(4, (2, IN), DType::F32), &random(5, (OUT, 2), DType::F32));
        let x = random(3, (2, 3, IN), DType::F32);
        for dropout in [None, Some(dropout())] {
            let [fused, composed] = [DType::F32, DType::F64].map(|dtype| {
                let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
                let y = layer.terms(&projection.weight).unwrap().project(&projection, &x, dropout.clone()).unwrap();
                let weights = random(8, y.shape(), dtype);
                let gradients = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
                let vars = [&x, layer.a(), layer.b(), layer.magnitude().unwrap()];
                (y.clone(), vars.map(|var| gradients.get(var).unwrap().clone()))
            });
            // Sums of 19 f32 products.
            assert_close("output", &fused.0, &composed.0, Tolerance::relative(3e-6));
            for (name, (fused, composed)) in ["x", "A", "B", "magnitude"].iter().zip(fused.1.iter().zip(&composed.1)) {
                assert_close(name, fused, composed, Tolerance::relative(3e-6));
            }
        }
    }

    /// PEFT's formula written out in f64: `W·x + bias + (g − 1)∘W·d(x) + g∘s·B·A·d(x)`, with the norm of the whole sum.
    #[test]
    fn dora_is_what_peft_computes() {
        let bias = random(6, OUT, DType::F32);
        let (w, a, b) =
            (random(1, (OUT, IN), DType::F32), random(4, (2, IN), DType::F32), random(5, (OUT, 2), DType::F32));
        let projection = projection(&w, Some(bias.clone()));
        let x = random(3, (6, IN), DType::F32);
        // With rsLoRA alpha over the root of the rank.
        let (plain, root) = (3.0 / 2.0, 3.0 / 2f64.sqrt());
        let ways = [(false, plain, None), (false, plain, Some(dropout())), (true, root, None)];
        for (use_rslora, s, dropout) in ways {
            let config = LoRAConfig { alpha: 3.0, use_dora: true, use_rslora, ..Default::default() };
            let layer = self::layer(&projection, config, &a, &b);
            let mask = dropout.as_ref().map_or_else(|| x.ones_like(), |d| d.mask(&x)).unwrap();
            let y = layer.terms(&projection.weight).unwrap().project(&projection, &x, dropout).unwrap();
            let expected = || -> candle_core::Result<Tensor> {
                let wide = |t: &Tensor| t.to_dtype(DType::F64);
                let (w, x, magnitude) = (wide(&w)?, wide(&x)?, wide(layer.magnitude().unwrap())?);
                let delta = (wide(&b)?.matmul(&wide(&a)?)? * s)?;
                let g = (magnitude / (&w + &delta)?.sqr()?.sum(1)?.sqrt()?)?;
                let dropped = (&x * wide(&mask)?)?;
                let base = dropped.matmul(&w.t()?)?.broadcast_mul(&(&g - 1.0)?)?;
                let low = dropped.matmul(&delta.t()?)?.broadcast_mul(&g)?;
                x.matmul(&w.t()?)?.broadcast_add(&wide(&bias)?)? + base + low
            };
            assert_close("dora", &y, &expected().unwrap(), Tolerance::relative(3e-6));
        }
    }

    /// The norm from its three sums, also where `s·B·A` nearly undoes the weight and most digits cancel.
    #[test]
    fn row_scale_keeps_its_digits() {
        const WIDTH: usize = 2048;
        let (a, b) = (random(4, (4, WIDTH), DType::F32), random(5, (OUT, 4), DType::F32));
        let s = 3.0 / 4.0;
        let delta = (b.matmul(&a).unwrap() * s).unwrap();
        // W = t·sBA + noise: the condition of the sum grows as t nears −1.
        for (t, allowed) in [(0.0, 1e-6), (3.0, 1e-6), (-0.5, 1e-6), (-0.9, 2e-5), (-0.99, 2e-3)] {
            let noise = (random(1, (OUT, WIDTH), DType::F32) * if t == 0.0 { 1.0 } else { 1e-4 }).unwrap();
            let w = ((&delta * t).unwrap() + noise).unwrap();
            let projection = projection(&w, None);
            let layer = dora(&projection, &a, &b);
            let found = layer.terms(&projection.weight).unwrap().row_scale.unwrap();
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let delta = (wide(&b).matmul(&wide(&a)).unwrap() * s).unwrap();
            let norm = (wide(&w) + delta).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let expected = (wide(layer.magnitude().unwrap()) / norm).unwrap();
            let ratio = (wide(&found) / &expected).unwrap();
            assert_close(&format!("t = {t}"), &ratio, &ratio.ones_like().unwrap(), Tolerance::absolute(allowed));
        }
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let mut rows = random(1, (OUT, IN), DType::F32).to_vec2::<f32>().unwrap();
        rows[2].fill(0.0);
        let projection = projection(&Tensor::new(rows, &candle_core::Device::Cpu).unwrap(), None);
        let layer = LoRALayer::new(&projection, LoRAConfig { use_dora: true, ..Default::default() }, 1).unwrap();
        let x = random(3, (4, IN), DType::F32);
        let y = layer.terms(&projection.weight).unwrap().project(&projection, &x, None).unwrap();
        assert_close("plain", &y, &projection.forward(&x).unwrap(), Tolerance::relative(1e-6));
    }

    /// Gradients of a backward pass are those of the variables and the input: none of bias, norm, mask or weight.
    #[test]
    fn nothing_frozen_has_a_gradient() {
        for dtype in [DType::F32, DType::F64] {
            for (bias, dropout) in [(false, false), (true, false), (false, true), (true, true)] {
                let bias = bias.then(|| random(6, OUT, dtype));
                let dropout = dropout.then(self::dropout);
                let projection = projection(&random(1, (OUT, IN), DType::F32), bias);
                let layer = dora(&projection, &random(4, (2, IN), DType::F32), &random(5, (OUT, 2), DType::F32));
                let x = Var::from_tensor(&random(3, (2, 3, IN), dtype)).unwrap();
                let y = layer.terms(&projection.weight).unwrap().project(&projection, &x, dropout).unwrap();
                let gradients = y.sum_all().unwrap().backward().unwrap();
                let mut expected = [&x, layer.a(), layer.b(), layer.magnitude().unwrap()].map(|var| var.id());
                let mut found: Vec<_> = gradients.get_ids().copied().collect();
                let number = |id: &candle_core::TensorId| format!("{id:?}");
                expected.sort_by_key(number);
                found.sort_by_key(number);
                assert_eq!(found, expected, "{dtype:?}");
            }
        }
    }

    /// Half precision rounds what comes out, but not the row scale: then every row would be off by the same share.
    #[test]
    fn a_row_scale_near_1_is_not_rounded() {
        // In f16 it would be 1.00098 or 1.00195.
        const G: f64 = 1.001_5;
        let half = |t: Tensor| t.to_dtype(DType::F16).unwrap();
        let projection = projection(&half(random(1, (OUT, IN), DType::F32)), None);
        let (a, b) = (random(4, (2, IN), DType::F32), Tensor::zeros((OUT, 2), DType::F32, &candle_core::Device::Cpu));
        let layer = dora(&projection, &a, &b.unwrap());
        let magnitude = layer.magnitude().unwrap();
        magnitude.set(&(projection.weight.row_square_sums().unwrap().sqrt().unwrap() * G).unwrap()).unwrap();
        let x = half(random(3, (512, IN), DType::F32));
        let y = layer.terms(&projection.weight).unwrap().project(&projection, &x, None).unwrap();
        assert_eq!(y.dtype(), DType::F16);
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let w = projection.weight.to_tensor(DType::F64).unwrap();
        let expected = wide(&x).matmul(&w.t().unwrap()).unwrap();
        let sum = |t: Tensor| t.sum_all().unwrap().to_scalar::<f64>().unwrap();
        let found = sum((wide(&y) * &expected).unwrap()) / sum(expected.sqr().unwrap());
        assert!((found - G).abs() < 1e-4, "{found}");
    }

    #[test]
    fn rows_may_be_widened_in_chunks() {
        let weight = Weight::from_tensor(&random(1, (OUT, IN), DType::BF16)).unwrap();
        let a = random(4, (2, IN), DType::F32);
        let whole = weight_times(&weight, &a).unwrap();
        for rows in [1, 3, OUT, OUT + 1] {
            assert_close("chunks", &chunked(&weight, &a, rows).unwrap(), &whole, Tolerance::relative(1e-6));
        }
    }
}
