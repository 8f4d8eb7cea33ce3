//! In what matrices are multiplied, in words: a result's digits depend on it.

use crate::kernels::tile::Arithmetic;
use candle_core::DType;
use std::fmt;

/// The dtype of matrices, and in what products with them are computed. It displays as a line says it.
///
/// ```
/// use mc_backend::{Computation, computation::Products};
/// use candle_core::DType;
/// let say = |products| Computation { weights: DType::BF16, products }.to_string();
/// assert_eq!(say(Products::F32), "bf16 weights, products in f32");
/// assert_eq!(say(Products::BF16), "bf16 weights, products in bf16 with f32 sums");
/// assert_eq!(say(Products::F16), "bf16 weights, products in f16, f32 sums of every 64");
/// assert_eq!(say(Products::I16), "bf16 weights, products in 13-bit integers, f32 sums of every 128");
/// assert_eq!(say(Products::OfDevice), "bf16 weights and activations");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computation {
    /// What the matrices are stored in.
    pub weights: DType,
    /// What becomes of them and their inputs in a product.
    pub products: Products,
}

/// In what a product of many rows is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Both sides and sums in `f32`.
    F32,
    /// Both sides rounded to `bf16`, sums in `f32`.
    BF16,
    /// Both sides scaled and rounded to `f16`, in which up to 64 products are summed, and these sums in `f32`.
    F16,
    /// Both sides scaled, in blocks of 128, and rounded to integers of 13 bits; sums of a block are exact, and added up in `f32`.
    I16,
    /// As candle does it on a device that is not the CPU.
    OfDevice,
}

impl From<Arithmetic> for Products {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::F32 => Self::F32,
            Arithmetic::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for Computation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = format!("{:?}", self.weights).to_lowercase();
        match self.products {
            Products::F32 => write!(f, "{weights} weights, products in f32"),
            Products::BF16 => write!(f, "{weights} weights, products in bf16 with f32 sums"),
            Products::F16 => write!(f, "{weights} weights, products in f16, f32 sums of every 64"),
            Products::I16 => write!(f, "{weights} weights, products in 13-bit integers, f32 sums of every 128"),
            Products::OfDevice => write!(f, "{weights} weights and activations"),
        }
    }
}
