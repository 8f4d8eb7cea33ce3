//! Qwen3: no biases, queries and keys normalised per head, head width on its own.

use crate::{ModelConfig, Result, config::Defaults, fields::Fields};

pub(crate) const DEFAULTS: Defaults =
    Defaults { num_key_value_heads: Some(32), head_dim: Some(128), max_position_embeddings: 32_768 };

pub(crate) fn configure(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    config.qk_norm = true;
    let bias = fields.flag("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    if fields.flag("use_sliding_window", false)? {
        let first = fields.size("max_window_layers", 0..=1_024)?.unwrap_or(28);
        config.sliding_windows = fields.sliding_windows(config.num_hidden_layers, |i| i >= first)?;
    }
    Ok(())
}
