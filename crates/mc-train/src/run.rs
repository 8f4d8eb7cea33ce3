//! The files of a run. The output directory itself is the adapter; `run/` in it holds what a run needs to go on.
//! Knows no model.

use crate::{Error, JsonLines, Result};
use candle_core::Device;
use mc_checkpoint::{TrainingState, write_atomic};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// Where a run's files are.
///
/// ```
/// let files = mc_train::RunFiles::new("adapters/mine");
/// assert_eq!(files.checkpoint(100), std::path::Path::new("adapters/mine/run/checkpoints/100"));
/// assert!(!files.can_resume());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFiles {
    output: PathBuf,
}

impl RunFiles {
    /// The files of a run whose output directory this is.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self { output: output.into() }
    }

    /// The output directory, itself an adapter in PEFT's format.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// What the run goes on from: `run/state.safetensors`.
    pub fn state(&self) -> PathBuf {
        self.run().join("state.safetensors")
    }

    /// What happened, as [`JsonLines`]: `run/metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.run().join("metrics.jsonl")
    }

    /// The adapter after a step: `run/checkpoints/STEP`.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(step.to_string())
    }

    /// The adapter with the lowest loss on held-out data: `run/best`.
    pub fn best(&self) -> PathBuf {
        self.run().join("best")
    }

    /// Whether there is a state to go on from.
    pub fn can_resume(&self) -> bool {
        self.state().is_file()
    }

    /// Whether a run has left an adapter or a state, which a new one into the same directory would replace or remove.
    pub fn holds_results(&self) -> bool {
        let adapter = ["adapter_config.json", "adapter_model.safetensors"].map(|name| self.output.join(name));
        let run = [self.state(), self.checkpoints(), self.best()];
        adapter.iter().chain(&run).any(|path| path.symlink_metadata().is_ok())
    }

    /// When the run that is saved here began, if that is noted: [`crate::TrainingConfig::started`].
    ///
    /// # Errors
    /// If there is no state, or it cannot be read.
    pub fn started(&self) -> Result<Option<i64>> {
        Ok(self.load_state(&Device::Cpu)?.meta.get("started").and_then(serde_json::Value::as_i64))
    }

    fn run(&self) -> PathBuf {
        self.output.join("run")
    }

    fn checkpoints(&self) -> PathBuf {
        self.run().join("checkpoints")
    }

    pub(crate) fn load_state(&self, device: &Device) -> Result<TrainingState> {
        let path = self.state();
        if !self.can_resume() {
            let what = "there is no training state to go on from".into();
            return Err(Error::Resume { path, what });
        }
        Ok(TrainingState::load(path, device)?)
    }

    /// Makes the directory of a run and opens its metrics: those up to `step` stay. A run that starts with step 0
    /// removes what an earlier one left.
    pub(crate) fn open(&self, step: u64) -> Result<JsonLines<File>> {
        if step == 0 {
            remove(&self.state(), |path| fs::remove_file(path))?;
            remove(&self.checkpoints(), |path| fs::remove_dir_all(path))?;
            remove(&self.best(), |path| fs::remove_dir_all(path))?;
        }
        let path = self.metrics();
        fs::create_dir_all(self.run()).map_err(Error::io(self.run()))?;
        let old = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        // Steps after the state was saved are about to be done again.
        let kept = old.lines().filter(|line| step_of(line).is_some_and(|s| s <= step && step > 0));
        write_atomic(&path, |out| kept.into_iter().try_for_each(|line| writeln!(out, "{line}")))?;
        Ok(JsonLines::new(File::options().append(true).open(&path).map_err(Error::io(&path))?))
    }
}

fn remove(path: &Path, remove: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match remove(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

fn step_of(line: &str) -> Option<u64> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    event.get("step").or_else(|| event.get("steps"))?.as_u64()
}
