//! Qwen2, Qwen2.5, Qwen2.5-Coder: biases on q, k and v; the upper layers may slide.

use crate::{ModelConfig, Result, config::Defaults, fields::Fields};

pub(crate) const DEFAULTS: Defaults =
    Defaults { num_key_value_heads: Some(32), head_dim: None, max_position_embeddings: 32_768 };

pub(crate) fn configure(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    config.qkv_bias = true;
    if fields.flag("use_sliding_window", false)? {
        // Off by default in every released model; then `sliding_window` stands in the file and means nothing.
        let first = fields.size("max_window_layers", 0..=1_024)?.unwrap_or(28);
        config.sliding_windows = fields.sliding_windows(config.num_hidden_layers, |i| i >= first)?;
    }
    Ok(())
}
