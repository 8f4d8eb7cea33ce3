//! The composed path of every op: the witness that tests hold the fused kernels against, and what other devices run.

pub use super::{
    activation::{geglu_composed as geglu, gelu_composed as gelu, swiglu_composed as swiglu},
    attention::composed as attention,
    cross_entropy::composed as linear_cross_entropy,
    encoder_attention::composed as encoder_attention,
    encoder_feed_forward::composed as encoder_feed_forward,
    feed_forward::composed as feed_forward,
    linear::composed as linear,
    lora::composed as lora_linear,
    norm::{layer_norm_composed as layer_norm, rms_norm_composed as rms_norm},
    rope::composed as rope,
    self_attention::composed as self_attention,
};
