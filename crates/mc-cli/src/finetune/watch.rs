//! How a run looks while it runs: a bar for a person, lines in a pipe, JSON lines for a script. Ctrl-C and SIGTERM end it
//! after the step it is in, with its state saved.

use crate::{global::Global, report};
use indicatif::ProgressBar;
use metal_candle::training::{EvalMetrics, JsonLines, Observer, RunStart, StepMetrics};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Whether the run is to end after its step.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether it has ended: what comes after it need not be waited for.
static OVER: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether there was a Ctrl-C.
static PRESSED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C and SIGTERM end the process at once again.
pub(crate) fn over() {
    OVER.store(true, Ordering::SeqCst);
}

/// The observers that suit the options.
pub(crate) fn observers(global: &Global) -> Vec<Box<dyn Observer>> {
    let (bars, quiet) = (global.bars(), global.quiet);
    let interrupt = move || {
        // The second time the person does not want to wait.
        if PRESSED.swap(true, Ordering::SeqCst) || OVER.load(Ordering::SeqCst) {
            std::process::exit(130);
        }
        INTERRUPTED.store(true, Ordering::SeqCst);
        if !quiet {
            // On a terminal the bar is on this line.
            let start = if bars { "\r\x1b[2K" } else { "" };
            report::to_stderr(&format!("{start}stopping after this step; Ctrl-C again stops at once, without saving"));
        }
    };
    if let Err(error) = ctrlc::set_handler(interrupt) {
        tracing::warn!("Ctrl-C will end the run at once: {error}");
    }
    if let Err(error) = heed_termination() {
        tracing::warn!("SIGTERM will end the run at once: {error}");
    }
    let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Interrupt)];
    if global.json {
        observers.push(Box::new(JsonLines::new(report::Stdout)));
    }
    if global.bars() {
        observers.push(Box::new(Bar(ProgressBar::hidden())));
    } else if !global.quiet {
        observers.push(Box::new(Lines { every: 1, total: 0, said: Instant::now() }));
    }
    observers
}

/// What ends services, containers and jobs in a queue is heeded like Ctrl-C, however often it comes: `timeout` sends it twice, and who
/// cannot wait has SIGKILL. SIGHUP is left as it is, for `nohup`.
#[cfg(unix)]
fn heed_termination() -> std::io::Result<()> {
    use signal_hook::{consts::SIGTERM, flag};
    flag::register_conditional_default(SIGTERM, OVER.clone())?;
    flag::register(SIGTERM, INTERRUPTED.clone()).map(drop)
}

#[cfg(not(unix))]
fn heed_termination() -> std::io::Result<()> {
    Ok(())
}

struct Interrupt;

impl Observer for Interrupt {
    fn on_step(&mut self, _: &StepMetrics) -> ControlFlow<()> {
        go_on()
    }
    fn on_skip(&mut self, _: &StepMetrics) -> ControlFlow<()> {
        go_on()
    }
    fn on_eval(&mut self, _: u64, _: &EvalMetrics, _: bool) -> ControlFlow<()> {
        go_on()
    }
}

fn go_on() -> ControlFlow<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn evaluated(step: u64, metrics: &EvalMetrics, best: bool) -> String {
    let best = if best { ", the best so far" } else { "" };
    format!("step {step}: held-out loss {:.4}, perplexity {:.2}{best}", metrics.loss, metrics.perplexity)
}

fn skipped(metrics: &StepMetrics) -> String {
    format!(
        "step {}: skipped, loss {} and gradient norm {} are not both finite",
        metrics.step, metrics.loss, metrics.grad_norm
    )
}

struct Bar(ProgressBar);

impl Observer for Bar {
    fn on_start(&mut self, start: &RunStart) {
        let style = "{bar:20} step {human_pos}/{human_len}  {msg}  {eta} left";
        self.0 = ProgressBar::new(start.total_steps).with_position(start.step);
        self.0.set_style(report::bar_style(style));
        self.0.reset_eta();
        self.0.enable_steady_tick(Duration::from_millis(200));
    }
    fn on_step(&mut self, m: &StepMetrics) -> ControlFlow<()> {
        self.0.set_position(m.step);
        self.0.set_message(format!("loss {:.3}  {} tokens/s", m.loss, report::count(m.tokens_per_second as u64)));
        ControlFlow::Continue(())
    }
    fn on_skip(&mut self, m: &StepMetrics) -> ControlFlow<()> {
        self.0.println(skipped(m));
        ControlFlow::Continue(())
    }
    fn on_eval(&mut self, step: u64, metrics: &EvalMetrics, best: bool) -> ControlFlow<()> {
        self.0.println(evaluated(step, metrics, best));
        ControlFlow::Continue(())
    }
    fn on_end(&mut self, _: &metal_candle::training::TrainingMetrics) {
        self.0.finish_and_clear();
    }
}

/// One line per twentieth of the run, or every ten seconds.
struct Lines {
    every: u64,
    total: u64,
    said: Instant,
}

impl Observer for Lines {
    fn on_start(&mut self, start: &RunStart) {
        (self.total, self.every) = (start.total_steps, (start.total_steps / 20).max(1));
    }
    fn on_step(&mut self, m: &StepMetrics) -> ControlFlow<()> {
        if m.step == 1
            || m.step == self.total
            || m.step.is_multiple_of(self.every)
            || self.said.elapsed().as_secs() >= 10
        {
            self.said = Instant::now();
            let speed = report::count(m.tokens_per_second as u64);
            report::to_stderr(&format!("step {}/{}: loss {:.4}, {speed} tokens/s", m.step, self.total, m.loss));
        }
        ControlFlow::Continue(())
    }
    fn on_skip(&mut self, m: &StepMetrics) -> ControlFlow<()> {
        report::to_stderr(&skipped(m));
        ControlFlow::Continue(())
    }
    fn on_eval(&mut self, step: u64, metrics: &EvalMetrics, best: bool) -> ControlFlow<()> {
        report::to_stderr(&evaluated(step, metrics, best));
        ControlFlow::Continue(())
    }
    fn on_save(&mut self, step: u64, path: &Path) {
        tracing::info!("step {step}: saved {}", path.display());
    }
}
