//! The adapter of one projection: its parameters, and what it makes of the projection's input. Knows no model.

use crate::{LoRAConfig, Result};
use candle_core::{DType, Tensor, Var};
use mc_backend::{
    Purpose, Stream, Weight,
    ops::{self, Dropout, Lora},
};
use mc_models::Projection;

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
        let cross = (&b * ops::linear(&a, weight, None)?.t()?)?.sum(1)?;
        let own = (b.matmul(&a.matmul(&a.t()?)?)? * &b)?.sum(1)?;
        let square = ((&self.weight_square_sums + (cross * (2.0 * s))?)? + (own * (s * s))?)?;
        // Rounding may take a square below zero; and a row of zeros stays one instead of becoming 0/0.
        let norm = square.maximum(0f32)?.sqrt()?.maximum(f32::MIN_POSITIVE)?;
        self.magnitude.as_tensor() / norm
    }
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

    /// The same values without a graph, in memory of their own.
    pub(crate) fn copied(&self) -> candle_core::Result<Self> {
        let row_scale = self.row_scale.as_ref().map(|t| t.detach().copy()).transpose()?;
        Ok(Self { a: self.a.detach().copy()?, b: self.b.detach().copy()?, scale: self.scale, row_scale })
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
        let row_scale = row_scale.to_dtype(x.dtype())?;
        let (kept, lora) = match lora.dropout {
            None => (None, lora),
            Some(dropout) => (Some((x * dropout.mask(x)?)?), Lora { dropout: None, ..lora }),
        };
        let scaled = |x: &Tensor| ops::lora_linear(x, weight, None, &lora)?.broadcast_mul(&row_scale);
        match (kept, bias) {
            // The two terms without `g` are one projection of `x − d(x)`.
            (Some(kept), _) => ops::linear(&(x - &kept)?, weight, bias.as_ref())? + scaled(&kept)?,
            (None, Some(bias)) => scaled(x)?.broadcast_add(bias),
            (None, None) => scaled(x),
        }
    }
}
