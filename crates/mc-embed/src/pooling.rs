//! From the hidden states of a text's tokens to one vector (sentence-transformers, `modules/pooling.py`).

use rayon::prelude::*;

/// How the vector of a text is made of those of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolingMode {
    /// That of the first token.
    Cls,
    /// The largest number of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum divided by the root of the number of tokens.
    MeanSqrtLen,
    /// The mean in which a token weighs as much as its position, from 1.
    WeightedMean,
    /// That of the last token.
    LastToken,
}

impl PoolingMode {
    /// All modes, in the order in which several are put side by side.
    pub(crate) const ALL: [Self; 6] =
        [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLen, Self::WeightedMean, Self::LastToken];

    /// Its name in `pooling_mode`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
        }
    }

    /// The flag that stood for it before there was `pooling_mode`.
    pub(crate) fn old_name(self) -> &'static str {
        match self {
            Self::Cls => "pooling_mode_cls_token",
            Self::Max => "pooling_mode_max_tokens",
            Self::Mean => "pooling_mode_mean_tokens",
            Self::MeanSqrtLen => "pooling_mode_mean_sqrt_len_tokens",
            Self::WeightedMean => "pooling_mode_weightedmean_tokens",
            Self::LastToken => "pooling_mode_lasttoken",
        }
    }

    /// The vector of a text whose tokens are rows of `hidden`, the first `skip` of them left out.
    fn pool(self, hidden: &[f32], skip: usize, out: &mut [f32]) {
        let width = out.len();
        let rows = || hidden.chunks_exact(width).enumerate().skip(skip);
        let n = rows().len();
        let mut sum = |weight: fn(usize) -> f32, divisor: f32| {
            out.fill(0.0);
            for (i, row) in rows() {
                out.iter_mut().zip(row).for_each(|(o, x)| *o += weight(i) * x);
            }
            // What has no tokens left is zero, not a division by zero.
            for o in out.iter_mut() {
                *o /= divisor.max(1e-9);
            }
        };
        match self {
            Self::Mean => sum(|_| 1.0, n as f32),
            Self::MeanSqrtLen => sum(|_| 1.0, (n as f32).sqrt()),
            Self::WeightedMean => sum(|i| (i + 1) as f32, rows().map(|(i, _)| (i + 1) as f32).sum()),
            Self::Max => {
                out.fill(if n == 0 { 0.0 } else { f32::NEG_INFINITY });
                for (_, row) in rows() {
                    out.iter_mut().zip(row).for_each(|(o, x)| *o = o.max(*x));
                }
            }
            Self::Cls => out.copy_from_slice(rows().next().map_or(&hidden[..width], |(_, row)| row)),
            Self::LastToken => match rows().last() {
                Some((_, row)) => out.copy_from_slice(row),
                None => out.fill(0.0),
            },
        }
    }
}

/// Several modes side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pooling {
    pub(crate) modes: Vec<PoolingMode>,
    /// Whether the tokens of a prompt count.
    pub(crate) include_prompt: bool,
}

impl Pooling {
    /// `(texts, modes·width)` of the hidden states `(tokens, width)` of texts of these lengths, one after the other.
    pub(crate) fn pool(&self, hidden: &[f32], width: usize, lengths: &[usize], prompt: usize) -> Vec<f32> {
        let skip = if self.include_prompt { 0 } else { prompt };
        let mut out = vec![0f32; lengths.len() * self.modes.len() * width];
        let mut rest = hidden;
        let mut texts = Vec::with_capacity(lengths.len());
        for (length, out) in lengths.iter().zip(out.chunks_exact_mut((self.modes.len() * width).max(1))) {
            let (text, after) = rest.split_at(length * width);
            rest = after;
            texts.push((text, out));
        }
        texts.into_par_iter().for_each(|(text, out)| {
            for (mode, out) in self.modes.iter().zip(out.chunks_exact_mut(width)) {
                mode.pool(text, skip, out);
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_their_definitions() {
        let hidden = [1.0, -4.0, 3.0, 2.0, 5.0, -6.0];
        let pool = |mode: PoolingMode, skip| {
            let mut out = [0.0; 2];
            mode.pool(&hidden, skip, &mut out);
            out
        };
        assert_eq!(pool(PoolingMode::Cls, 0), [1.0, -4.0]);
        assert_eq!(pool(PoolingMode::Max, 0), [5.0, 2.0]);
        assert_eq!(pool(PoolingMode::Mean, 1), [4.0, -2.0]);
        assert_eq!(pool(PoolingMode::MeanSqrtLen, 0), [9.0 / 3f32.sqrt(), -8.0 / 3f32.sqrt()]);
        assert_eq!(pool(PoolingMode::WeightedMean, 1), [(6.0 + 15.0) / 5.0, (4.0 - 18.0) / 5.0]);
        assert_eq!(pool(PoolingMode::LastToken, 0), [5.0, -6.0]);
        for mode in PoolingMode::ALL {
            let expected = if mode == PoolingMode::Cls { [1.0, -4.0] } else { [0.0, 0.0] };
            assert_eq!(pool(mode, 3), expected, "nothing but a prompt: {mode:?}");
        }
    }
}
