//! The repetition penalty: tokens that were there before become less likely. Knows no order, only who was there.

use crate::{Error, Result};

/// Divides positive logits of the tokens seen so far by a penalty, and multiplies negative ones, each token once.
///
/// From Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation" (2019), section
/// 4.1, with the rule for negative logits that transformers has.
///
/// ```
/// use mc_infer::RepetitionPenalty;
/// let mut penalty = RepetitionPenalty::new(2.0)?;
/// penalty.see(&[0, 1, 1]);
/// let mut logits = [4.0, -3.0, 4.0];
/// penalty.apply(&mut logits);
/// assert_eq!(logits, [2.0, -6.0, 4.0]);
/// # Ok::<(), mc_infer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RepetitionPenalty {
    penalty: f32,
    /// Each token once.
    seen: Vec<u32>,
    /// Whether a token is in `seen`, by id.
    is_seen: Vec<bool>,
}

impl RepetitionPenalty {
    /// A penalty above 0; 1 changes nothing, less than 1 makes repetition likelier.
    pub fn new(penalty: f64) -> Result<Self> {
        let single = penalty as f32;
        if !(single > 0.0 && single.is_finite()) {
            let expected = "a number above 0; 1 is no penalty";
            // Not as `Display`, which writes all 301 digits of 1e300.
            let found = format!("{penalty:?}").trim_end_matches(".0").to_string();
            return Err(Error::Option { option: "repetition_penalty", found, expected });
        }
        Ok(Self { penalty: single, seen: Vec::new(), is_seen: Vec::new() })
    }

    /// Takes note of tokens.
    pub fn see(&mut self, ids: &[u32]) {
        for &id in ids {
            let index = id as usize;
            if index >= self.is_seen.len() {
                self.is_seen.resize(index + 1, false);
            }
            if !std::mem::replace(&mut self.is_seen[index], true) {
                self.seen.push(id);
            }
        }
    }

    /// Penalises the tokens seen, in `logits` by token id.
    pub fn apply(&self, logits: &mut [f32]) {
        for &id in &self.seen {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * self.penalty } else { *logit / self.penalty };
            }
        }
    }
}
