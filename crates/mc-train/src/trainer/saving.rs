//! What a run leaves on disk, and how it goes on from there.

use super::{Order, Progress, Run, Trainer};
use crate::{Dataset, Error, Result, RunFiles, fingerprint::Fingerprint};
use mc_checkpoint::TrainingState;
use mc_lora::{CheckpointMetadata, save_checkpoint};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is in the state's file beside tensors and counters.
#[derive(Serialize, Deserialize)]
struct Meta {
    fingerprint: Fingerprint,
    progress: Progress,
    optimizer_steps: u64,
    started: Option<i64>,
    /// Of the held-out data.
    held_out: Option<u64>,
}

impl Trainer {
    /// Goes on with the run that is saved in the output directory of the configuration. More steps, another learning
    /// rate and the like are welcome; the model, the adapter, the seed, the batches and the data must be those of the start,
    /// which is checked when training begins.
    ///
    /// # Errors
    /// If there is no output directory or no state in it, or the state is of another adapter.
    pub fn resume(&mut self) -> Result<()> {
        let Some(output) = &self.config.output_dir else {
            return Err(Error::config("output_dir", "none", "the directory of the run to resume"));
        };
        let files = RunFiles::new(output);
        let state = files.load_state(self.model.device())?;
        let fail = |what: String| Error::Resume { path: files.state(), what };
        let meta: Meta =
            serde_json::from_value(state.meta).map_err(|e| fail(format!("not a state of this trainer: {e}")))?;
        let now = Fingerprint::new(&*self.model, &self.adapter, &self.config, None)?;
        meta.fingerprint.check(&now).map_err(fail)?;
        self.optimizer.restore_named(&state.tensors, meta.optimizer_steps).map_err(|e| fail(e.to_string()))?;
        self.progress = meta.progress;
        self.good = (self.optimizer.state().clone(), self.progress.clone());
        self.resumed = Some(meta.fingerprint);
        self.held_out = meta.held_out;
        Ok(())
    }

    /// Checks what training on these data checks before it writes anything; for who has something to do or to write before.
    ///
    /// # Errors
    /// If a resumed run was started with others, or the first step needs more memory than there is.
    pub fn check(&mut self, data: &Dataset) -> Result<()> {
        self.check_data(data)?;
        self.check_room_for(data)
    }

    /// Once: what this process has used and freed since may count as taken, and is there again.
    pub(super) fn check_room_for(&mut self, data: &Dataset) -> Result<()> {
        if !self.has_room && self.progress.step < self.config.total_steps(data.len()) {
            self.check_first(&self.next_batches(data, &mut Order::default()))?;
            self.has_room = true;
        }
        Ok(())
    }

    pub(super) fn check_data(&self, data: &Dataset) -> Result<Fingerprint> {
        let fingerprint = Fingerprint::new(&*self.model, &self.adapter, &self.config, Some(data))?;
        if let (Some(resumed), Some(output)) = (&self.resumed, &self.config.output_dir) {
            let path = RunFiles::new(output).state();
            resumed.check(&fingerprint).map_err(|what| Error::Resume { path, what })?;
        }
        Ok(fingerprint)
    }

    /// Writes the adapter into a directory, in PEFT's format.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let metadata = CheckpointMetadata {
            step: self.progress.step,
            epoch: self.progress.epoch,
            loss: self.progress.loss,
            learning_rate: self.progress.step.checked_sub(1).map(|step| self.config.lr_scheduler.learning_rate(step)),
        };
        Ok(save_checkpoint(&self.adapter, dir, Some(metadata))?)
    }

    /// Saves the adapter as one of the checkpoints, if there are to be any.
    pub(super) fn save_checkpoint(&self, run: &Run) -> Result<()> {
        match &run.files {
            Some(files) if self.config.save_every.is_some() => self.save(files.checkpoint(self.progress.step)),
            _ => Ok(()),
        }
    }

    /// Saves adapter and state, the state last: until it is there, the run goes on from the one before.
    pub(super) fn save_run(&mut self, run: &mut Run) -> Result<Option<std::path::PathBuf>> {
        let Some(files) = run.files.clone() else { return Ok(None) };
        let step = self.progress.step;
        self.save(files.output())?;
        let meta = Meta {
            fingerprint: run.fingerprint.clone(),
            progress: self.progress.clone(),
            optimizer_steps: self.optimizer.steps(),
            started: self.config.started,
            held_out: self.held_out,
        };
        let state = TrainingState {
            step,
            epoch: self.progress.epoch,
            batch: self.progress.batch,
            seed: self.config.seed,
            meta: serde_json::to_value(meta).map_err(|e| Error::Io { path: files.state(), source: e.into() })?,
            tensors: self.optimizer.named_state()?,
        };
        state.save(files.state())?;
        self.tell(run, |o| o.on_save(step, files.output()));
        Ok(Some(files.output().into()))
    }
}
