//! Mistral: no biases; all layers slide where the file has a window.

use crate::{ModelConfig, Result, config::Fields};

pub(crate) fn configure(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    config.sliding_windows = fields.sliding_windows(config.num_hidden_layers, |_| true)?;
    Ok(())
}
