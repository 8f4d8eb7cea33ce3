//! Llama 2 and 3, SmolLM2 and the many others of this shape: biases only where the file says so.

use crate::{ModelConfig, Result, config::Defaults, fields::Fields};

pub(crate) const DEFAULTS: Defaults =
    Defaults { num_key_value_heads: None, head_dim: None, max_position_embeddings: 2_048 };

pub(crate) fn configure(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    let bias = fields.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = fields.flag("mlp_bias", false)?;
    Ok(())
}
