//! Mistral: no biases; all layers slide where the file has a window.

use crate::{ModelConfig, Result, config::Defaults, fields::Fields};

pub(crate) const DEFAULTS: Defaults =
    Defaults { num_key_value_heads: Some(8), head_dim: None, max_position_embeddings: 131_072 };

pub(crate) fn configure(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    config.sliding_windows = fields.sliding_windows(config.num_hidden_layers, |_| true)?;
    Ok(())
}
