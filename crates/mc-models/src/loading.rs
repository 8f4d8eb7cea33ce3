//! Tensors of a checkpoint in the dtypes that a model wants on a device. Knows no architecture.

use crate::{Projection, Result, model::Site};
use candle_core::{DType, Device, Tensor};
use mc_backend::{Arithmetic, DeviceExt, Weight, ops};
use mc_checkpoint::WeightSource;

/// A source of weights, and in which dtypes a model wants them.
pub(crate) struct Loading<'a> {
    source: &'a dyn WeightSource,
    device: &'a Device,
    /// The dtype of activations and biases.
    pub(crate) activations: DType,
    weights: Option<DType>,
    /// What products with `bf16` matrices round their inputs to, and their outputs where these are kept.
    arithmetic: Arithmetic,
    kept: Arithmetic,
    /// How many projections were loaded: the index of the next site.
    sites: usize,
}

impl<'a> Loading<'a> {
    pub(crate) fn new(source: &'a dyn WeightSource, device: &'a Device, dtype: Option<DType>) -> Self {
        let activations = if device.is_cpu() { DType::F32 } else { dtype.unwrap_or_else(|| device.default_dtype()) };
        let weights = if device.is_cpu() { dtype.filter(|d| *d != DType::F32) } else { Some(activations) };
        let (arithmetic, kept) = match dtype {
            Some(DType::F32) => (Arithmetic::F32, Arithmetic::F32),
            _ => (Arithmetic::fastest_for_bf16(), Arithmetic::BF16),
        };
        Self { source, device, activations, weights, arithmetic, kept, sites: 0 }
    }

    pub(crate) fn weight(&self, name: &str, shape: (usize, usize)) -> Result<Weight> {
        Ok(self.computing(self.source.weight(name, shape, self.device, self.weights)?))
    }

    /// The same, with the arithmetic of its dtype.
    fn computing(&self, weight: Weight) -> Weight {
        match weight.dtype() {
            DType::BF16 => weight.with_arithmetic(self.arithmetic).with_kept(self.kept),
            _ => weight,
        }
    }

    /// A matrix whose rows are looked up: on the CPU as it is in the file, since nothing is multiplied with it.
    pub(crate) fn table(&self, name: &str, shape: (usize, usize)) -> Result<Weight> {
        let dtype = self.weights.filter(|_| !self.device.is_cpu());
        Ok(self.source.weight(name, shape, self.device, dtype)?)
    }

    /// Projections of one input, by their paths, that are kept packed, so that the file's matrices are read once.
    pub(crate) fn projections(&self, paths: &[String], shape: (usize, usize), bias: bool) -> Result<ops::Projections> {
        let one = |path: &String| {
            let name = format!("{path}.weight");
            let weight = match self.weights.filter(|_| self.device.is_cpu()) {
                Some(dtype) => self.source.weight(&name, shape, self.device, None)?.with_dtype(dtype)?,
                None => self.source.weight(&name, shape, self.device, self.weights)?,
            };
            let bias = bias.then(|| self.bias(&format!("{path}.bias"), shape.0)).transpose()?;
            Ok((self.computing(weight), bias))
        };
        let members = paths.iter().map(one).collect::<Result<_>>()?;
        // What is kept in bf16 may be rounded.
        Ok(ops::Projections::new(members).with_sixteen_bits(self.kept == Arithmetic::BF16))
    }

    pub(crate) fn bias(&self, name: &str, width: usize) -> Result<Tensor> {
        Ok(self.source.tensor(name, &[width], self.device, self.activations)?)
    }

    /// In `f32`, in which norms are computed.
    pub(crate) fn norm(&self, name: &str, width: usize) -> Result<Tensor> {
        Ok(self.source.tensor(name, &[width], self.device, DType::F32)?)
    }

    /// Scale and, where there is one, shift of a layer norm, in `f32`.
    pub(crate) fn layer_norm(&self, path: &str, width: usize, bias: bool, eps: f64) -> Result<Norm> {
        let bias = bias.then(|| self.norm(&format!("{path}.bias"), width)).transpose()?;
        Ok(Norm { weight: self.norm(&format!("{path}.weight"), width)?, bias, eps })
    }

    pub(crate) fn projection(&mut self, path: String, (out, inner): (usize, usize), bias: bool) -> Result<Projection> {
        let weight = self.weight(&format!("{path}.weight"), (out, inner))?;
        let bias = bias.then(|| self.bias(&format!("{path}.bias"), out)).transpose()?;
        let site = Site { index: self.sites, path, in_features: inner, out_features: out };
        self.sites += 1;
        Ok(Projection { site, weight, bias })
    }
}

/// A layer norm.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    pub(crate) fn op(&self) -> ops::LayerNorm<'_> {
        ops::LayerNorm { weight: &self.weight, bias: self.bias.as_ref(), eps: self.eps }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        ops::layer_norm(x, &self.weight, self.bias.as_ref(), self.eps)
    }
}
