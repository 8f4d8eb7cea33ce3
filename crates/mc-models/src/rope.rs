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

#[cfg(test)]
mod tests {
    use super::*;

    /// Frequencies `theta^(−2i/dim)` in `f64`.
    fn plain(dim: u32, theta: f64) -> Vec<f64> {
        (0..dim / 2).map(|i| theta.powf(-2.0 * f64::from(i) / f64::from(dim))).collect()
    }

    #[track_caller]
    fn check(config: &RopeConfig, expected: &[f64]) {
        let found = config.inverse_frequencies(2 * expected.len());
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*f) / e - 1.0).abs() < 2e-6, "pair {i}: {f:e}, expected {e:e}");
        }
    }

    #[test]
    fn plain_and_linear() {
        for (dim, theta) in [(2, 1e4), (10, 500.0), (64, 1e6), (128, 1e12)] {
            let expected = plain(dim, theta);
            check(&RopeConfig { theta, scaling: RopeScaling::Default }, &expected);
            let slower: Vec<_> = expected.iter().map(|f| f / 2.5).collect();
            check(&RopeConfig { theta, scaling: RopeScaling::Linear { factor: 2.5 } }, &slower);
        }
    }

    /// Llama 3.1: context 8192, so waves over 8192 positions are long, those under 2048 short.
    #[test]
    fn llama3_keeps_short_waves_stretches_long_ones_and_blends_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let (mut short, mut between, mut long) = (0, 0, 0);
        let expected: Vec<_> = plain(128, 500_000.0)
            .into_iter()
            .map(|f| {
                let wave = std::f64::consts::TAU / f;
                if wave < 2048.0 {
                    short += 1;
                    f
                } else if wave > 8192.0 {
                    long += 1;
                    f / 8.0
                } else {
                    between += 1;
                    // From 1/8 of the frequency at a wave of 8192 to all of it at 2048, linear in 1/wave.
                    let share = (8192.0 / wave - 1.0) / 3.0;
                    f * (share + (1.0 - share) / 8.0)
                }
            })
            .collect();
        assert_eq!((short, between, long), (29, 6, 29));
        check(&RopeConfig { theta: 500_000.0, scaling }, &expected);
    }
}
