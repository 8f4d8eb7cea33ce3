//! Sizes and inputs that the benches share.

use metal_candle::{
    backend::Weight,
    candle_core::{DType, Device, Result, Tensor},
};

/// Widths of SmolLM2-135M.
pub struct SmolLM2;

impl SmolLM2 {
    /// The residual stream.
    pub const HIDDEN: usize = 576;
    /// Inside the feed-forward block.
    pub const INTERMEDIATE: usize = 1536;
    /// Query heads, key-value heads and their width.
    pub const HEADS: (usize, usize, usize) = (9, 3, 64);
    /// Rows of the embedding.
    pub const VOCABULARY: usize = 49_152;
}

/// Normal noise of standard deviation 0.1.
///
/// # Errors
/// If there is no memory for it.
pub fn noise(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 0.1, shape, &Device::Cpu)
}

/// A frozen bf16 matrix of noise.
///
/// # Errors
/// If there is no memory for it.
pub fn weight(rows: usize, cols: usize) -> Result<Weight> {
    Weight::from_tensor(&noise(&[rows, cols])?.to_dtype(DType::BF16)?)
}
