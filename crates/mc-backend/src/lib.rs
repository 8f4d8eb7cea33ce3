//! Devices, frozen weights and differentiable fused ops: what every model of this workspace is made of.
//!
//! The ops of [`ops`] differ from candle's in three ways. Frozen matrices ([`Weight`]) are fields of an op and never
//! inputs of the graph, so no gradient is computed for them. Every op has a gradient: where candle's fused ones cut
//! the graph silently, these do not. And each has two implementations, a fused one for `f32` on the CPU and a composed
//! one of plain candle ops for every device and dtype, which the tests hold together.
//!
//! Knows nothing of architectures, files or text. Functions return candle's own [`candle_core::Result`], so that
//! they mix with candle code.

// `#[inline(always)]` is how the kernels come to be compiled for each instruction set: see `kernels::simd`.
#![allow(clippy::inline_always)]

mod causal_mask;
pub mod computation;
pub mod device;
mod graft;
mod kernels;
mod memory;
pub mod ops;
mod pool;
pub mod random;
pub mod tensor;
pub mod weight;

pub use computation::Computation;
pub use device::DeviceExt;
pub use graft::backward;
pub use kernels::{scratch::KeptBuffers, search, tile::Arithmetic};
pub use memory::{available_memory_bytes, is_memory_plentiful, peak_memory_bytes, shortage};
pub use pool::{in_pool, let_candle_wait_asleep};
pub use random::{Purpose, Stream};
pub use tensor::TensorExt;
pub use weight::Weight;
