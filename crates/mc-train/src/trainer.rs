//! The training loop: steps, epochs, evaluation. Knows no architecture and no terminal.

use crate::{
    AdamW, Batch, Best, Dataset, Differentiated, Error, EvalMetrics, Objective, Observer, Result, RunFiles, RunStart,
    StepMetrics, Supervised, TrainingConfig, TrainingMetrics,
    adamw::{self, clip_coefficient},
    backward, checkpointed_backward,
    evaluate::evaluate_with,
    fingerprint::Fingerprint,
    peak_memory_bytes,
    room::{check_step, check_tokens},
};
use candle_core::{DType, Tensor};
use mc_backend::{KeptBuffers, Purpose, Stream, available_memory_bytes};
use mc_lora::LoRAAdapter;
use mc_models::Model;
use serde::{Deserialize, Serialize};
use std::{ops::ControlFlow, time::Instant};

mod saving;

/// So many steps in a row without a finite loss and gradient end a run.
const MAX_SKIPPED_IN_A_ROW: u32 = 3;

/// Trains an adapter on a model.
///
/// A step whose loss or gradient is not finite changes nothing but the step's number, and observers hear of it. After
/// three in a row the run ends with an error, and the adapter is as it was the last time that its loss was finite.
///
/// A run with an output directory can be resumed, and is then byte for byte the run that was never stopped: the order
/// of examples and dropout follow from the seed and the step alone.
pub struct Trainer {
    model: Model,
    adapter: LoRAAdapter,
    config: TrainingConfig,
    objective: Box<dyn Objective>,
    observers: Vec<Box<dyn Observer>>,
    optimizer: AdamW,
    progress: Progress,
    /// Parameters whose loss was finite, and where they were.
    good: (adamw::State, Progress),
    skipped_in_a_row: u32,
    /// What the run that is resumed was started with.
    resumed: Option<Fingerprint>,
    /// The fingerprint of the data that the best adapter is the best on.
    held_out: Option<u64>,
    /// Whether there was memory for the first step when somebody looked.
    has_room: bool,
    /// What a step keeps for its backward pass is there for the next one.
    _buffers: KeptBuffers,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("config", &self.config)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    /// Optimizer steps done, skipped ones included.
    step: u64,
    /// Batches computed.
    micro_step: u64,
    /// Whole epochs done.
    epoch: u64,
    /// Batches done in the epoch under way.
    batch: u64,
    skipped: u64,
    /// The loss of the last step that was not skipped.
    loss: Option<f64>,
    best: Option<Best>,
}

impl Trainer {
    /// A trainer that has done no step.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(model: Model, adapter: LoRAAdapter, config: TrainingConfig) -> Result<Self> {
        config.check()?;
        let optimizer = AdamW::new(adapter.variables(), config.lr_scheduler.learning_rate(0), config.adamw.clone())?;
        let good = (optimizer.state().clone(), Progress::default());
        Ok(Self {
            model,
            adapter,
            config,
            objective: Box::new(Supervised),
            observers: vec![],
            optimizer,
            progress: Progress::default(),
            good,
            skipped_in_a_row: 0,
            resumed: None,
            held_out: None,
            has_room: false,
            _buffers: KeptBuffers::new(),
        })
    }

    /// Adds somebody who hears how it goes.
    pub fn with_observer(mut self, observer: Box<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Minimises something else than the negative log-likelihood of supervised tokens.
    pub fn with_objective(self, objective: Box<dyn Objective>) -> Self {
        Self { objective, ..self }
    }

    /// The adapter as it is now.
    pub fn lora_adapter(&self) -> &LoRAAdapter {
        &self.adapter
    }

    /// The model, which training does not change.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The settings.
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// Optimizer steps done.
    pub fn steps(&self) -> u64 {
        self.progress.step
    }

    /// The adapter, when training is over.
    pub fn into_adapter(self) -> LoRAAdapter {
        self.adapter
    }

    /// Trains on `data` for as many steps as the configuration says, those that it has done already included: a second call has none left to
    /// do. Unless it is resumed, it removes what an earlier
    /// run left in `run/` of the output directory ([`RunFiles::holds_results`] says whether there is something).
    ///
    /// # Errors
    /// If there is no data, no gradient reaches a parameter, the first batches need more memory than there is, three steps in a row
    /// are not finite, or a file cannot be written.
    pub fn train(&mut self, data: &Dataset) -> Result<TrainingMetrics> {
        self.train_with_eval(data, None)
    }

    /// Trains on `data`, with evaluations on held-out data `valid`.
    ///
    /// # Errors
    /// As [`Trainer::train`].
    pub fn train_with_eval(&mut self, data: &Dataset, valid: Option<&Dataset>) -> Result<TrainingMetrics> {
        if data.is_empty() {
            return Err(Error::config("examples to train on", 0, "at least 1"));
        }
        let vocab_size = self.model.config().vocab_size;
        data.check_tokens("the training data", vocab_size)?;
        valid.map_or(Ok(()), |valid| valid.check_tokens("the held-out data", vocab_size))?;
        let fingerprint = self.check_data(data)?;
        self.check_room_for(data)?;
        self.resumed = None;
        let held_out = valid.map(Dataset::fingerprint);
        if self.progress.best.is_some() && held_out.is_some() && held_out != self.held_out {
            tracing::warn!("other held-out data than before: which adapter is the best is found anew");
            self.progress.best = None;
        }
        self.held_out = held_out.or(self.held_out);
        let files = self.config.output_dir.clone().map(RunFiles::new);
        let mut run = Run {
            data,
            valid,
            total: self.config.total_steps(data.len()),
            batches: data.len().div_ceil(self.config.batch_size) as u64,
            metrics: files.as_ref().map(|files| files.open(self.progress.step)).transpose()?,
            files,
            fingerprint,
            eval: None,
            tokens: 0,
            training_seconds: 0.0,
        };
        let begin = Instant::now();
        let start = RunStart {
            step: self.progress.step,
            total_steps: run.total,
            examples: data.len(),
            trainable_parameters: self.adapter.num_parameters(),
        };
        self.tell(&mut run, |o| o.on_start(&start));
        let stopped = self.steps_of(&mut run)?;
        let metrics = TrainingMetrics {
            steps: self.progress.step,
            skipped: self.progress.skipped,
            stopped,
            loss: self.progress.loss,
            eval: run.eval,
            best: self.progress.best,
            tokens: run.tokens,
            seconds: begin.elapsed().as_secs_f64(),
            tokens_per_second: run.tokens as f64 / run.training_seconds.max(1e-9),
            peak_memory_bytes: peak_memory_bytes(),
        };
        self.tell(&mut run, |o| o.on_end(&metrics));
        Ok(metrics)
    }

    /// One optimizer step on the batches given, for training loops of your own. It knows no epochs and saves nothing.
    ///
    /// The loss is the mean over all batches together. Where it or the gradient's norm is not finite, the parameters are
    /// as they were before.
    ///
    /// # Errors
    /// If no gradient reaches a parameter, nothing is supervised, the first batches need more memory than there is, or it is the
    /// third step in a row that is not finite.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepMetrics> {
        if !self.has_room {
            self.check_first(batches)?;
            self.has_room = true;
        }
        let metrics = self.attempt(batches)?;
        if self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW { Ok(metrics) } else { Err(self.give_up(metrics.step)?) }
    }

    /// Whether a step of so many tokens, padding included, has room in memory: for who has yet to make its batch.
    ///
    /// # Errors
    /// If what the backward pass certainly needs is more than there is.
    ///
    /// ```
    /// use mc_train::{Trainer, TrainingConfig};
    /// # let model = mc_models::ModelLoader::new().load(concat!(env!("CARGO_MANIFEST_DIR"), "/../mc-testkit/golden/models/qwen2"))?;
    /// # let adapter = mc_lora::LoRAAdapter::new(&*model, mc_lora::LoRAAdapterConfig::default())?;
    /// let trainer = Trainer::new(model, adapter, TrainingConfig::default())?;
    /// assert!(trainer.check_room(512).is_ok() && trainer.check_room(usize::MAX).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check_room(&self, tokens: usize) -> Result<()> {
        check_tokens(&*self.model, &self.adapter, tokens, available_memory_bytes())
    }

    /// Whether there is memory for a step of these batches, before which this process has done none.
    fn check_first(&self, batches: &[Batch]) -> Result<()> {
        check_step(&*self.model, &self.adapter, batches, available_memory_bytes())
    }

    /// A step, or a skipped one.
    fn attempt(&mut self, batches: &[Batch]) -> Result<StepMetrics> {
        let begin = Instant::now();
        let before = self.progress.clone();
        let lr = self.config.lr_scheduler.learning_rate(self.progress.step);
        let (loss, gradient) = self.gradient(batches)?;
        let (loss, grad_norm) = read(&loss, &gradient)?;
        self.progress.step += 1;
        if loss.is_finite() && grad_norm.is_finite() {
            let scale = self.config.max_grad_norm.map_or(1.0, |max| clip_coefficient(grad_norm, max));
            // Not this step's result but what it starts from: that is known to have a finite loss.
            self.good = (self.optimizer.state().clone(), before);
            self.optimizer.set_learning_rate(lr);
            self.optimizer.step_flat(&gradient, scale)?;
            self.progress.loss = Some(loss);
            self.skipped_in_a_row = 0;
        } else {
            self.progress.skipped += 1;
            self.skipped_in_a_row += 1;
        }
        let tokens = batches.iter().map(|b| b.tokens).sum();
        Ok(StepMetrics {
            step: self.progress.step,
            epoch: self.progress.epoch + 1,
            loss,
            lr,
            tokens,
            supervised_tokens: batches.iter().map(|b| b.targets.len()).sum(),
            tokens_per_second: tokens as f64 / begin.elapsed().as_secs_f64().max(1e-9),
            grad_norm,
            peak_memory_bytes: peak_memory_bytes(),
        })
    }

    /// Goes back to the last good state; returns what to tell of it.
    fn give_up(&mut self, step: u64) -> Result<Error> {
        let (state, progress) = self.good.clone();
        self.optimizer.restore(state)?;
        self.progress = progress;
        let in_a_row = std::mem::take(&mut self.skipped_in_a_row);
        Ok(Error::NonFinite { step, in_a_row, kept: self.progress.step, saved: None })
    }

    /// The loss and the flat gradient of batches together.
    pub(crate) fn gradient(&mut self, batches: &[Batch]) -> Result<(Tensor, Tensor)> {
        let count: usize = batches.iter().map(|b| self.objective.count(b)).sum();
        let mut sum: Option<(Tensor, Tensor)> = None;
        for batch in batches.iter().filter(|b| self.objective.count(b) > 0) {
            let pass = self.adapter.training_pass(self.config.seed, self.progress.micro_step);
            let what = Differentiated {
                model: &*self.model,
                adapter: &pass,
                objective: &*self.objective,
                scale: 1.0 / count as f64,
            };
            let (loss, grads) = if self.config.grad_checkpoint {
                checkpointed_backward(&what, batch, self.adapter.variables())?
            } else {
                backward(&what, batch)?
            };
            let gradient = self.optimizer.parameters().gradient(&grads)?;
            sum = Some(match sum {
                None => (loss, gradient),
                Some((l, g)) => ((l + loss)?, (g + gradient)?),
            });
            self.progress.micro_step += 1;
        }
        sum.ok_or_else(|| Error::config("supervised tokens of the step", 0, "at least 1"))
    }

    /// All steps from where the run is; whether an observer ended it early.
    fn steps_of(&mut self, run: &mut Run) -> Result<bool> {
        let (mut order, mut saved) = (Order::default(), Instant::now());
        while self.progress.step < run.total {
            let begin = Instant::now();
            let batches = self.next_batches(run.data, &mut order);
            let metrics = self.attempt(&batches)?;
            run.training_seconds += begin.elapsed().as_secs_f64();
            run.tokens += metrics.tokens as u64;
            let skipped = self.skipped_in_a_row;
            let mut stop = false;
            self.tell(run, |o| {
                let flow = if skipped > 0 { o.on_skip(&metrics) } else { o.on_step(&metrics) };
                stop |= flow == ControlFlow::Break(());
            });
            if skipped == MAX_SKIPPED_IN_A_ROW {
                let mut error = self.give_up(metrics.step)?;
                if let Error::NonFinite { saved, .. } = &mut error {
                    self.save_checkpoint(run)?;
                    *saved = self.save_run(run)?;
                }
                return Err(error);
            }
            self.progress.batch += batches.len() as u64;
            let epoch_ends = self.progress.batch == run.batches;
            if epoch_ends {
                self.progress.epoch += 1;
                self.progress.batch = 0;
            }
            let last = metrics.step == run.total;
            let due = |every: Option<u64>| every.map_or(epoch_ends, |n| metrics.step.is_multiple_of(n));
            let mut best = false;
            if last || due(self.config.eval_every) {
                if stop {
                    // Who ends the run may not have the time for an evaluation.
                    self.save_run(run)?;
                }
                best = self.evaluate(run, &mut stop)?;
            }
            let save = match self.config.save_every {
                None => saved.elapsed() >= self.config.autosave,
                every => due(every),
            };
            if last || stop || save {
                self.save_checkpoint(run)?;
            }
            // The best adapter is on disk, and so is what it is the best of.
            if last || stop || best || save {
                self.save_run(run)?;
                saved = Instant::now();
            }
            if stop {
                return Ok(metrics.step < run.total);
            }
        }
        Ok(false)
    }

    /// The batches of the next step; the last step of an epoch may have fewer.
    fn next_batches(&self, data: &Dataset, order: &mut Order) -> Vec<Batch> {
        let TrainingConfig { batch_size, grad_accum, shuffle, seed, .. } = self.config;
        let order = order.of(self.progress.epoch, data.len(), shuffle.then_some(seed));
        let batches = order.chunks(batch_size).skip(self.progress.batch as usize).take(grad_accum);
        batches.map(|rows| Batch::new(rows.iter().map(|i| &data.examples()[*i]))).collect()
    }

    /// Whether it is the best so far.
    fn evaluate(&mut self, run: &mut Run, stop: &mut bool) -> Result<bool> {
        let Some(valid) = run.valid else { return Ok(false) };
        // Frozen, DoRA's norms are computed once and not for every batch.
        let adapter = self.adapter.freeze(&*self.model)?;
        let (objective, batch_size) = (&*self.objective, self.config.batch_size);
        // What training has taken counts as taken, and is there for this.
        let metrics = evaluate_with(objective, &*self.model, Some(&adapter), valid, batch_size, None)?;
        let step = self.progress.step;
        let best = metrics.loss.is_finite() && self.progress.best.is_none_or(|best| metrics.loss < best.loss);
        if best {
            self.progress.best = Some(Best { step, loss: metrics.loss });
            if let Some(files) = &run.files {
                self.save(files.best())?;
            }
        }
        run.eval = Some(metrics);
        self.tell(run, |o| *stop |= o.on_eval(step, &metrics, best).is_break());
        Ok(best)
    }

    fn tell(&mut self, run: &mut Run, mut event: impl FnMut(&mut dyn Observer)) {
        if let Some(metrics) = &mut run.metrics {
            event(metrics);
        }
        self.observers.iter_mut().for_each(|o| event(&mut **o));
    }
}

/// One call of [`Trainer::train`].
struct Run<'a> {
    data: &'a Dataset,
    valid: Option<&'a Dataset>,
    /// Steps of the whole run.
    total: u64,
    /// Batches of an epoch.
    batches: u64,
    files: Option<RunFiles>,
    metrics: Option<crate::JsonLines<std::fs::File>>,
    fingerprint: Fingerprint,
    eval: Option<EvalMetrics>,
    tokens: u64,
    training_seconds: f64,
}

/// The order of examples in an epoch.
#[derive(Default)]
struct Order {
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Order {
    /// The order of `n` examples in `epoch`; without a seed it is that of the data.
    fn of(&mut self, epoch: u64, n: usize, seed: Option<u64>) -> &[usize] {
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.order = (0..n).collect();
            if let Some(seed) = seed {
                Stream::new(seed, Purpose::Shuffle, epoch).shuffle(&mut self.order);
            }
        }
        &self.order
    }
}

/// The loss and the norm of the gradient.
fn read(loss: &Tensor, gradient: &Tensor) -> candle_core::Result<(f64, f64)> {
    if !gradient.device().is_cpu() {
        return read_at_once(loss, gradient);
    }
    // Candle's sum on the CPU adds in f32, one after the other.
    let square = |g: &f32| f64::from(*g) * f64::from(*g);
    let sum = gradient.to_vec1::<f32>()?.iter().map(square).sum::<f64>();
    // As on other devices: squares that f32 cannot hold would stay in the optimizer's moments for ever.
    let norm = if sum > f64::from(f32::MAX) { f64::INFINITY } else { sum.sqrt() };
    Ok((loss.to_dtype(DType::F32)?.to_scalar::<f32>()?.into(), norm))
}

/// [`read`] with one wait for the device.
pub(crate) fn read_at_once(loss: &Tensor, gradient: &Tensor) -> candle_core::Result<(f64, f64)> {
    let loss = loss.to_dtype(DType::F32)?;
    let both = Tensor::stack(&[loss, gradient.sqr()?.sum_all()?], 0)?.to_vec1::<f32>()?;
    Ok((both[0].into(), f64::from(both[1]).sqrt()))
}
