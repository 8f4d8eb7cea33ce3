//! Learning rates by step. Knows no optimizer.

use crate::{Error, Result, config::at_least_0};
use serde::{Deserialize, Serialize};

/// The learning rate of each step: up in a line over the warm-up, then constant, or down to `min_lr`.
///
/// The curves are those of transformers' `get_…_schedule_with_warmup`. After its last step a rate stays where it is;
/// transformers' cosine would rise again.
///
/// ```
/// use mc_train::LRScheduler;
/// let schedule = LRScheduler::warmup_cosine(100, 1000, 1e-4, 1e-6);
/// assert_eq!(schedule.learning_rate(50), 0.5e-4);
/// assert_eq!(schedule.learning_rate(100), 1e-4);
/// assert!((schedule.learning_rate(1000) - 1e-6).abs() < 1e-12);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LRScheduler {
    shape: Shape,
    lr: f64,
    min_lr: f64,
    warmup: u64,
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Constant,
    Linear,
    Cosine,
}

impl LRScheduler {
    /// The same rate at every step.
    pub fn constant(lr: f64) -> Self {
        Self::warmup_constant(0, lr)
    }

    /// Up to `lr` over `warmup` steps, and so it stays.
    pub fn warmup_constant(warmup: u64, lr: f64) -> Self {
        Self { shape: Shape::Constant, lr, min_lr: lr, warmup, total: u64::MAX }
    }

    /// From `lr` down to `min_lr` in a line over `total` steps.
    pub fn linear(total: u64, lr: f64, min_lr: f64) -> Self {
        Self::warmup_linear(0, total, lr, min_lr)
    }

    /// Up to `lr` over `warmup` steps, then in a line down to `min_lr` at step `total`.
    pub fn warmup_linear(warmup: u64, total: u64, lr: f64, min_lr: f64) -> Self {
        Self { shape: Shape::Linear, lr, min_lr, warmup, total }
    }

    /// From `lr` down to `min_lr` over `total` steps along half a cosine.
    pub fn cosine(total: u64, lr: f64, min_lr: f64) -> Self {
        Self::warmup_cosine(0, total, lr, min_lr)
    }

    /// Up to `lr` over `warmup` steps, then down to `min_lr` at step `total` along half a cosine.
    pub fn warmup_cosine(warmup: u64, total: u64, lr: f64, min_lr: f64) -> Self {
        Self { shape: Shape::Cosine, lr, min_lr, warmup, total }
    }

    /// The rate of a step, the first being step 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * step as f64 / self.warmup as f64;
        }
        let falling = self.total.saturating_sub(self.warmup).max(1) as f64;
        let share = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => self.total.saturating_sub(step) as f64 / falling,
            Shape::Cosine => {
                let progress = ((step - self.warmup) as f64 / falling).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        self.min_lr + (self.lr - self.min_lr) * share
    }

    /// The highest rate.
    pub fn peak(&self) -> f64 {
        self.lr
    }

    pub(crate) fn check(&self) -> Result<()> {
        at_least_0("lr", self.lr)?;
        if !(0.0..=self.lr).contains(&self.min_lr) {
            return Err(Error::config("min_lr", self.min_lr, "between 0 and the learning rate"));
        }
        if self.total == 0 {
            return Err(Error::config("total steps of the schedule", self.total, "at least 1"));
        }
        if self.warmup > self.total {
            return Err(Error::config("warmup", self.warmup, "at most the total number of steps"));
        }
        Ok(())
    }
}

impl Default for LRScheduler {
    /// 1e-4 at every step.
    fn default() -> Self {
        Self::constant(1e-4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::golden;

    #[test]
    fn equals_transformers() {
        let cases = golden::json(golden::dir("models").with_file_name("schedules.json"));
        for case in cases.as_array().unwrap() {
            let (warmup, total) = (case["warmup"].as_u64().unwrap(), case["total"].as_u64().unwrap());
            let (lr, min_lr) = (case["lr"].as_f64().unwrap(), case["min_lr"].as_f64().unwrap_or(0.0));
            let schedule = match case["kind"].as_str().unwrap() {
                "constant" => LRScheduler::warmup_constant(warmup, lr),
                "linear" => LRScheduler::warmup_linear(warmup, total, lr, 0.0),
                _ => LRScheduler::warmup_cosine(warmup, total, lr, min_lr),
            };
            schedule.check().unwrap();
            let values = case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
            for (step, expected) in (0..=total).zip(values) {
                let rate = schedule.learning_rate(step);
                assert!((rate - expected).abs() <= 1e-12 * lr, "{case}: step {step} has {rate}, expected {expected}");
            }
            // One step past the end even where there was no step to fall in.
            let end = schedule.learning_rate(total + 1).to_bits();
            assert!((total + 1..total + 50).all(|step| schedule.learning_rate(step).to_bits() == end));
        }
    }

    #[test]
    fn impossible_schedules_are_refused() {
        for (schedule, field) in [
            (LRScheduler::constant(-1e-4), "`lr` is -0.0001"),
            (LRScheduler::constant(f64::NAN), "`lr` is NaN"),
            (LRScheduler::cosine(10, 1e-4, 1e-3), "`min_lr` is 0.001"),
            (LRScheduler::linear(0, 1e-4, 0.0), "is 0, expected at least 1"),
            (LRScheduler::warmup_linear(11, 10, 1e-4, 0.0), "`warmup` is 11"),
        ] {
            let error = schedule.check().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
