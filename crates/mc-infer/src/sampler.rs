//! Logits to one token. Knows nothing of models, nor of the tokens before.
//!
//! The filters, their order and their ties are those of transformers: temperature, top-k, top-p, min-p. No filter sorts
//! the vocabulary; each finds its cut by partial selection, and tokens stay in the order of their ids, so that the
//! token drawn depends on nothing but logits, options and stream.

use crate::{Error, Result};
use mc_backend::Stream;
use std::cmp::Ordering;

/// How a token is chosen from logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum SamplingStrategy {
    /// The likeliest token; of equal ones the first.
    #[default]
    Greedy,
    /// A token drawn from the softmax of `logits / temperature`, cut by the filters that are set, in this order.
    Sample {
        /// Above 0; less than 1 favours likely tokens more.
        temperature: f64,
        /// Keeps the `k` likeliest tokens, and those as likely as the last of them; at least 1.
        top_k: Option<usize>,
        /// Keeps the likeliest tokens that together have this probability, in (0, 1]; never less than one token.
        top_p: Option<f64>,
        /// Keeps tokens at least this times as likely as the likeliest, in [0, 1].
        min_p: Option<f64>,
    },
}

/// Chooses a token from the `logits` of a vocabulary.
///
/// ```
/// use mc_backend::{Purpose, Stream};
/// use mc_infer::{SamplingStrategy, sample_token};
/// let logits = [0.1, 2.0, 1.9, -3.0];
/// let mut stream = Stream::new(7, Purpose::Sample, 0);
/// assert_eq!(sample_token(&logits, &SamplingStrategy::Greedy, &mut stream)?, 1);
/// let strategy = SamplingStrategy::Sample { temperature: 0.8, top_k: Some(2), top_p: None, min_p: None };
/// assert!([1, 2].contains(&sample_token(&logits, &strategy, &mut stream)?));
/// # Ok::<(), mc_infer::Error>(())
/// ```
///
/// # Errors
/// If an option of `strategy` is out of its range, or a logit is infinite or not a number.
pub fn sample_token(logits: &[f32], strategy: &SamplingStrategy, stream: &mut Stream) -> Result<u32> {
    Sampler::new(*strategy)?.sample(logits, stream)
}

impl SamplingStrategy {
    /// Checks that every option is in its range.
    pub(crate) fn check(&self) -> Result<()> {
        let Self::Sample { temperature, top_k, top_p, min_p } = *self else { return Ok(()) };
        let require = |holds: bool, option, found: String, expected| {
            if holds { Ok(()) } else { Err(Error::Option { option, found, expected }) }
        };
        let text = |number: Option<f64>| number.map(|n| n.to_string()).unwrap_or_default();
        let positive = temperature > 0.0 && temperature.is_finite();
        require(positive, "temperature", temperature.to_string(), "a number above 0, or 0 for the likeliest token")?;
        require(top_k != Some(0), "top_k", "0".into(), "at least 1, or none for no limit")?;
        require(top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "top_p", text(top_p), "a number above 0, at most 1")?;
        require(min_p.is_none_or(|p| (0.0..=1.0).contains(&p)), "min_p", text(min_p), "a number from 0 to 1")
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// Its probability relative to that of the likeliest token, which has 1.
    pub(crate) weight: f32,
}

/// Chooses tokens, one vocabulary of logits after the other, in memory that it keeps.
pub(crate) struct Sampler {
    strategy: SamplingStrategy,
    candidates: Vec<Candidate>,
    /// What a selection may put out of order.
    selection: Vec<f32>,
}

impl Sampler {
    pub(crate) fn new(strategy: SamplingStrategy) -> Result<Self> {
        strategy.check()?;
        Ok(Self { strategy, candidates: Vec::new(), selection: Vec::new() })
    }

    pub(crate) fn sample(&mut self, logits: &[f32], stream: &mut Stream) -> Result<u32> {
        let best = first_maximum(logits)?;
        if self.strategy == SamplingStrategy::Greedy {
            return Ok(best);
        }
        let candidates = self.keep(logits, best);
        let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = uniform(stream) * total;
        for candidate in candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        // Rounding may leave a last grain.
        Ok(best)
    }

    /// The tokens that pass all filters, by id. `best` is the likeliest one.
    pub(crate) fn keep(&mut self, logits: &[f32], best: u32) -> &[Candidate] {
        let max = logits[best as usize];
        self.candidates.clear();
        let SamplingStrategy::Sample { temperature, top_k, top_p, min_p } = self.strategy else {
            self.candidates.push(Candidate { id: best, weight: 1.0 });
            return &self.candidates;
        };
        let least = top_k.map_or(f32::NEG_INFINITY, |k| kth_largest(logits, k, &mut self.selection));
        // Weights in f32, as softmax is; sums of them in f64, where a large vocabulary loses nothing.
        let weight = |logit: f32| ((f64::from(logit - max) / temperature) as f32).exp();
        let kept = logits.iter().zip(0..).filter(|(logit, _)| **logit >= least);
        self.candidates.extend(kept.map(|(&logit, id)| Candidate { id, weight: weight(logit) }));
        if let Some(p) = top_p.filter(|p| *p < 1.0) {
            keep_nucleus(&mut self.candidates, p, &mut self.selection);
        }
        if let Some(p) = min_p {
            // The likeliest token has weight 1, whatever the others have together.
            self.candidates.retain(|c| f64::from(c.weight) >= p);
        }
        &self.candidates
    }
}

/// The index of the largest logit, of equal ones the first, as `torch.argmax`.
///
/// Both passes compare bits: comparing floats one by one, with their NaN, is several times slower.
fn first_maximum(logits: &[f32]) -> Result<u32> {
    const INFINITE: u32 = f32::INFINITY.to_bits();
    let magnitude = |logit: &f32| logit.to_bits() & !(1 << 31);
    if logits.iter().map(magnitude).fold(0, u32::max) >= INFINITE {
        let id = logits.iter().position(|logit| !logit.is_finite()).unwrap_or_default();
        return Err(Error::NotFinite { id, value: logits[id] });
    }
    let max = logits.iter().map(|logit| ascending_bits(*logit)).fold(i32::MIN, i32::max);
    // Zeros are equal, whatever their sign.
    let best = logits.iter().position(|logit| ascending_bits(*logit + 0.0) >= max);
    best.map(|id| id as u32).ok_or(Error::NoLogits)
}

/// Integers in the order of [`f32::total_cmp`].
fn ascending_bits(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The `k`-th largest value (from 1); negative infinity if there are no more than `k`.
fn kth_largest(values: &[f32], k: usize, selection: &mut Vec<f32>) -> f32 {
    if k >= values.len() {
        return f32::NEG_INFINITY;
    }
    // Only the largest seen so far are kept, so that all but a few values cost one comparison.
    selection.clear();
    let mut least = f32::NEG_INFINITY;
    for &value in values {
        if value > least {
            selection.push(value);
            if selection.len() == 4 * k {
                least = *selection.select_nth_unstable_by(k - 1, descending).1;
                selection.truncate(k);
            }
        }
    }
    *selection.select_nth_unstable_by(k - 1, descending).1
}

/// Keeps a candidate if those likelier than it have less than `p` of all probability; of equal ones the first go first.
///
/// The last weight to keep is found as in quickselect, but by the mass above it in place of the count.
fn keep_nucleus(candidates: &mut Vec<Candidate>, p: f64, selection: &mut Vec<f32>) {
    selection.clear();
    selection.extend(candidates.iter().map(|c| c.weight));
    let mass = |weights: &[f32]| weights.iter().map(|w| f64::from(*w)).sum::<f64>();
    let total = mass(selection);
    let wanted = p * total;
    // All that are as light as this have less than 1 − p together, so none is in the nucleus: usually most of them.
    let negligible = (1.0 - p) * total / selection.len() as f64;
    selection.retain(|w| f64::from(*w) >= negligible);
    // All weights before `rest` are kept and none after it; they have `above` together.
    let (mut rest, mut above, mut kept) = (selection.as_mut_slice(), 0.0, 0);
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, descending);
        let upper = mass(&rest[..middle]);
        if above + upper < wanted {
            above += upper;
            kept += middle;
            rest = &mut rest[middle..];
        } else {
            rest = &mut rest[..middle];
        }
    }
    let Some(&mut last) = rest.first_mut() else { return };
    let mut equal = kept + 1 - candidates.iter().filter(|c| c.weight > last).count();
    candidates.retain(|c| match c.weight.total_cmp(&last) {
        Ordering::Equal if equal > 0 => {
            equal -= 1;
            true
        }
        order => order == Ordering::Greater,
    });
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that selection wants")]
fn descending(a: &f32, b: &f32) -> Ordering {
    b.total_cmp(a)
}

/// Uniform in [0, 1) with 53 bits: the 24 of an `f32` would never draw the tokens of a large vocabulary's tail.
fn uniform(stream: &mut Stream) -> f64 {
    let bits = u64::from(stream.next_u32()) << 32 | u64::from(stream.next_u32());
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests;
