//! The differentiable ops of a transformer.
//!
//! Each file holds one op, or a few that belong together: the public function, which takes the fused CPU kernel where that serves (`f32` on the CPU)
//! and the composed path elsewhere, and its composed path of plain candle ops, which [`composed`] shows to tests.
//! Frozen matrices are [`crate::Weight`]s and get no gradient; tensors that are named weights of a norm or biases are frozen too.

mod activation;
mod attention;
mod block;
mod cache;
pub mod composed;
mod cross_entropy;
mod embedding;
mod encoder_attention;
mod encoder_feed_forward;
mod feed_forward;
mod frozen;
mod group;
mod linear;
mod lora;
mod norm;
mod projections;
mod rope;
mod self_attention;

pub use activation::{Gelu, geglu, gelu, swiglu};
pub use attention::{Attention, RelativeBias, attention};
pub use block::{Project, Side};
pub use cache::{cache_dtype, to_f16};
pub use cross_entropy::linear_cross_entropy;
pub use embedding::embedding;
pub use encoder_attention::{EncoderAttention, LayerNorm, encoder_attention};
pub use encoder_feed_forward::{Activation, EncoderFeedForward, encoder_feed_forward};
pub use feed_forward::{FeedForward, feed_forward};
pub use frozen::{add_frozen, mul_frozen};
pub use group::Linear;
pub use linear::linear;
pub use lora::{Dropout, Lora, lora_linear};
pub use norm::{layer_norm, rms_norm};
pub use projections::Projections;
pub use rope::{Rope, rope};
pub use self_attention::{Append, SelfAttention, self_attention};
