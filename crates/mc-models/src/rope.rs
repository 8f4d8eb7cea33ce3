//! Frequencies of the rotary embedding, with the scalings that configurations name
//! (transformers, `modeling_rope_utils.py`; computed in `f32` as there).

use mc_backend::ops::Rope;

/// Rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How the frequencies of a longer context are derived.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Long waves divided by `factor`, short ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context the model was first trained with.
        original_max_position_embeddings: f64,
    },
}

impl RopeConfig {
    /// Angle per position of each of the `dim / 2` pairs of a head.
    pub fn inverse_frequencies(&self, dim: usize) -> Vec<f32> {
        let mut frequencies = Rope::frequencies(dim, self.theta);
        match self.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => frequencies.iter_mut().for_each(|f| *f /= factor as f32),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let (factor, context) = (factor as f32, original_max_position_embeddings as f32);
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                for f in &mut frequencies {
                    let wave = 2.0 * std::f32::consts::PI / *f;
                    if wave > context / low {
                        *f /= factor;
                    } else if wave >= context / high {
                        let smooth = (context / wave - low) / (high - low);
                        *f = (1.0 - smooth) * *f / factor + smooth * *f;
                    }
                }
            }
        }
        frequencies
    }
}
