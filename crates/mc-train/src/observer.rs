//! What a run tells whoever watches it. Knows no terminal and no files.

use crate::EvalMetrics;
use serde::Serialize;
use std::{io::Write, ops::ControlFlow, path::Path};

/// A run that begins or goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RunStart {
    /// Steps done before: 0, or those of the run that is resumed.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Examples to train on.
    pub examples: usize,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
}

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepMetrics {
    /// Which step, from 1.
    pub step: u64,
    /// Which epoch, from 1.
    pub epoch: u64,
    /// The loss before the step: the mean over all supervised tokens of its batches.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// Tokens of its batches, supervised or not, without padding.
    pub tokens: usize,
    /// Those of them that are supervised.
    pub supervised_tokens: usize,
    /// `tokens` per second of the step.
    pub tokens_per_second: f64,
    /// The norm of the gradient of all parameters together, before clipping.
    pub grad_norm: f64,
    /// The most memory that the process has held so far.
    pub peak_memory_bytes: Option<u64>,
}

/// The lowest loss on held-out data so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Best {
    /// After which step.
    pub step: u64,
    /// The loss.
    pub loss: f64,
}

/// A run at its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainingMetrics {
    /// Optimizer steps done, those of earlier parts of a resumed run and skipped ones included.
    pub steps: u64,
    /// Steps of them that were skipped.
    pub skipped: u64,
    /// Whether an observer ended it before its last step.
    pub stopped: bool,
    /// The loss of the last step that was not skipped, if there was one.
    pub loss: Option<f64>,
    /// The last evaluation, if there was held-out data.
    pub eval: Option<EvalMetrics>,
    /// The best evaluation; its adapter is in `run/best` of the output directory.
    pub best: Option<Best>,
    /// Tokens trained on since it was started or resumed, without padding.
    pub tokens: u64,
    /// Seconds since then.
    pub seconds: f64,
    /// `tokens` per second of training, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// The most memory that the process has held.
    pub peak_memory_bytes: Option<u64>,
}

/// Who watches a run. Each method does nothing unless it is written.
pub trait Observer: Send {
    /// It begins.
    fn on_start(&mut self, _start: &RunStart) {}
    /// A step is done. `Break` ends the run after it, with its state saved.
    fn on_step(&mut self, _metrics: &StepMetrics) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// A step was skipped because `loss` or `grad_norm` is not a finite number; the parameters are as before it.
    fn on_skip(&mut self, _metrics: &StepMetrics) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// The adapter was evaluated after `step`; `best` says whether all before were worse. `Break` ends the run, with its state saved.
    fn on_eval(&mut self, _step: u64, _metrics: &EvalMetrics, _best: bool) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    /// The run after `step` was saved in `path`.
    fn on_save(&mut self, _step: u64, _path: &Path) {}
    /// It is over.
    fn on_end(&mut self, _metrics: &TrainingMetrics) {}
}

/// Writes what happens as JSON, one object per line: `{"event":"step","step":1,"loss":…}`, and `eval`, `skip`, `saved`,
/// `done`. Numbers that are not finite are `null`.
#[derive(Debug)]
pub struct JsonLines<W> {
    out: W,
    failed: bool,
}

impl<W: Write> JsonLines<W> {
    /// Lines to `out`, each written with one call and flushed.
    pub fn new(out: W) -> Self {
        Self { out, failed: false }
    }

    fn write(&mut self, event: &Event) {
        let result = serde_json::to_vec(event).map_err(std::io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            self.out.write_all(&line)?;
            self.out.flush()
        });
        // A full disk or a closed pipe must not end a run, nor be told at every step.
        if let Err(error) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!("metrics cannot be written: {error}");
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'a> {
    Start(&'a RunStart),
    Step(&'a StepMetrics),
    Skip(&'a StepMetrics),
    Eval {
        step: u64,
        #[serde(flatten)]
        metrics: &'a EvalMetrics,
        best: bool,
    },
    Saved {
        step: u64,
        path: &'a Path,
    },
    Done(&'a TrainingMetrics),
}

impl<W: Write + Send> Observer for JsonLines<W> {
    fn on_start(&mut self, start: &RunStart) {
        self.write(&Event::Start(start));
    }
    fn on_step(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
        self.write(&Event::Step(metrics));
        ControlFlow::Continue(())
    }
    fn on_skip(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
        self.write(&Event::Skip(metrics));
        ControlFlow::Continue(())
    }
    fn on_eval(&mut self, step: u64, metrics: &EvalMetrics, best: bool) -> ControlFlow<()> {
        self.write(&Event::Eval { step, metrics, best });
        ControlFlow::Continue(())
    }
    fn on_save(&mut self, step: u64, path: &Path) {
        self.write(&Event::Saved { step, path });
    }
    fn on_end(&mut self, metrics: &TrainingMetrics) {
        self.write(&Event::Done(metrics));
    }
}
