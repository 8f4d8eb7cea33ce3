//! How to train. Knows no data and no model.

use crate::{AdamWConfig, Error, LRScheduler, Result};
use std::{path::PathBuf, time::Duration};

/// Settings of a [`Trainer`](crate::Trainer).
///
/// ```
/// use mc_train::{LRScheduler, TrainingConfig};
/// let config = TrainingConfig {
///     num_epochs: 3,
///     batch_size: 8,
///     lr_scheduler: LRScheduler::warmup_cosine(10, 38, 1e-4, 0.0),
///     ..Default::default()
/// };
/// assert_eq!(config.total_steps(100), 39); // 13 batches of 100 examples, the last of them smaller, three times
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingConfig {
    /// How often each example is trained on, at least 1; `max_steps` goes before it.
    pub num_epochs: u64,
    /// Optimizer steps, at least 1, whatever part of an epoch or how many epochs they are.
    pub max_steps: Option<u64>,
    /// Examples that are computed at one time, at least 1.
    pub batch_size: usize,
    /// Batches of one optimizer step, at least 1; a step's loss is the mean over the tokens of all of them.
    pub grad_accum: usize,
    /// The learning rate by step.
    pub lr_scheduler: LRScheduler,
    /// The optimizer's settings; without weight decay by default, which [`AdamWConfig`] alone has.
    pub adamw: AdamWConfig,
    /// The norm that the gradient of all parameters together is clipped to, above 0; `None`: it is not clipped.
    pub max_grad_norm: Option<f64>,
    /// What the order of examples and dropout follow from.
    pub seed: u64,
    /// Whether each epoch has an order of its own; else that of the data.
    pub shuffle: bool,
    /// Steps from one evaluation to the next, at least 1; `None`: after each epoch. There is one after the last step.
    pub eval_every: Option<u64>,
    /// Steps from one checkpoint to the next, at least 1; `None`: no checkpoints. What a run goes on from is saved with each of them, or
    /// as `autosave` says, with each best evaluation so far, and after the last step.
    pub save_every: Option<u64>,
    /// Without `save_every`, the time from one save of what a run goes on from to the next, so that a crash costs no more than that; 2
    /// minutes by default.
    pub autosave: Duration,
    /// Whether blocks are computed forward twice, again in the backward pass, which takes less memory.
    pub grad_checkpoint: bool,
    /// Where the adapter and the run's files go; `None`: nothing is written.
    pub output_dir: Option<PathBuf>,
    /// When the run began, in seconds since 1970. It is kept with the run ([`crate::RunFiles::started`]), for chat templates that
    /// write the date: a resumed run must have the same texts.
    pub started: Option<i64>,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            num_epochs: 1,
            max_steps: None,
            batch_size: 4,
            grad_accum: 1,
            lr_scheduler: LRScheduler::default(),
            adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
            max_grad_norm: Some(1.0),
            seed: 0,
            shuffle: true,
            eval_every: None,
            save_every: None,
            autosave: Duration::from_mins(2),
            grad_checkpoint: false,
            output_dir: None,
            started: None,
        }
    }
}

impl TrainingConfig {
    /// Optimizer steps of a whole run over so many examples.
    pub fn total_steps(&self, examples: usize) -> u64 {
        let batches = examples.div_ceil(self.batch_size.max(1));
        let per_epoch = batches.div_ceil(self.grad_accum.max(1)) as u64;
        self.max_steps.unwrap_or_else(|| self.num_epochs.saturating_mul(per_epoch))
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// If one is out of its range.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("num_epochs", Some(self.num_epochs)),
            ("max_steps", self.max_steps),
            ("batch_size", Some(self.batch_size as u64)),
            ("grad_accum", Some(self.grad_accum as u64)),
            ("eval_every", self.eval_every),
            ("save_every", self.save_every),
        ];
        if let Some((field, _)) = counts.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::config(field, 0, "at least 1"));
        }
        if let Some(norm) = self.max_grad_norm.filter(|n| !(n.is_finite() && *n > 0.0)) {
            return Err(Error::config("max_grad_norm", norm, "a finite number above 0"));
        }
        self.lr_scheduler.check()?;
        self.adamw.check()
    }
}

/// Refuses what is no learning rate or decay.
pub(crate) fn at_least_0(field: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::config(field, value, "a finite number of at least 0"))
}
