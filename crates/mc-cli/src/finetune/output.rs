//! Where a run's adapter goes: a directory that holds none, and that no other run is writing to. Knows no training.

use crate::{embedded, failure::wrong};
use anyhow::Result;
use metal_candle::{
    checkpoint::{self, Lock},
    training::RunFiles,
};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// The directory asked for, or the first that is free under `adapters/`.
pub(crate) struct Output {
    named: Option<PathBuf>,
    /// What the model is called where no directory is.
    model: String,
    resume: bool,
}

impl Output {
    /// Checks what can be checked without writing. A directory that holds an adapter already is not overwritten.
    pub(crate) fn new(named: Option<PathBuf>, model: &str, resume: bool) -> Result<Self> {
        if let Some(dir) = &named {
            // By the link itself: one that leads nowhere is there, and is no directory.
            let there = dir.ancestors().find(|place| place.symlink_metadata().is_ok());
            if let Some(file) = there.filter(|place| !place.is_dir()) {
                return Err(wrong(
                    format!("{} is not a directory", file.display()),
                    "name a new directory with --output",
                ));
            }
            if resume && !RunFiles::new(dir).can_resume() {
                let what = format!("{}: no such file", RunFiles::new(dir).state().display());
                return Err(wrong(what, "there is no run to go on with in --output; leave out --resume to start one"));
            }
            if !resume && is_taken(dir) {
                return Err(holds_adapter(dir));
            }
        }
        let model = match model {
            embedded::NAME => "shell".to_string(),
            name => Path::new(name).file_name().map_or("adapter".into(), |n| n.to_string_lossy().to_lowercase()),
        };
        Ok(Self { named, model, resume })
    }

    /// Where the run would go now.
    pub(crate) fn dir(&self) -> PathBuf {
        self.named.clone().or_else(|| self.numbered().find(|dir| !is_taken(dir))).unwrap_or_default()
    }

    /// Makes the directory, and keeps other runs out of it as long as the lock is held.
    pub(crate) fn claim(&self) -> Result<(PathBuf, Option<Lock>)> {
        if let Some(dir) = &self.named {
            let Writer::Us(lock) = lock(dir)? else {
                return Err(wrong(
                    format!("{}: another run is writing there", dir.display()),
                    "wait for its end, or name another directory",
                ));
            };
            // That run may have ended since this one looked.
            return if !self.resume && is_taken(dir) { Err(holds_adapter(dir)) } else { Ok((dir.clone(), lock)) };
        }
        for dir in self.numbered().filter(|dir| !is_taken(dir)) {
            if let Writer::Us(lock) = lock(&dir)?
                && !is_taken(&dir)
            {
                return Ok((dir, lock));
            }
        }
        Err(wrong("every directory under adapters/ is taken", "name one with --output"))
    }

    fn numbered(&self) -> impl Iterator<Item = PathBuf> {
        let name = |n| if n == 1 { self.model.clone() } else { format!("{}-{n}", self.model) };
        (1..=u32::MAX).map(move |n| Path::new("adapters").join(name(n)))
    }
}

fn is_taken(dir: &Path) -> bool {
    RunFiles::new(dir).holds_results()
}

fn holds_adapter(dir: &Path) -> anyhow::Error {
    let hint = if RunFiles::new(dir).can_resume() {
        "name another directory, or go on with its run by --resume"
    } else {
        "name another directory, or move what is there; its run cannot be resumed"
    };
    let what = if dir.join("adapter_config.json").exists() { "an adapter already" } else { "what a run has left" };
    wrong(format!("{} holds {what}", dir.display()), hint)
}

/// Who writes to a run's directory.
enum Writer {
    /// This run. Some network file systems have no locks.
    Us(Option<Lock>),
    Others,
}

fn is_unsupported(error: &checkpoint::Error) -> bool {
    matches!(error, checkpoint::Error::Io { source, .. } if source.kind() == ErrorKind::Unsupported)
}

fn lock(dir: &Path) -> Result<Writer> {
    let run = dir.join("run");
    fs::create_dir_all(&run).map_err(|source| checkpoint::Error::Io { path: dir.into(), source })?;
    match Lock::take(run.join("lock")) {
        Ok(Some(lock)) => Ok(Writer::Us(Some(lock))),
        Ok(None) => Ok(Writer::Others),
        Err(error) if is_unsupported(&error) => {
            tracing::warn!("{error}; another run into this directory would not be noticed");
            Ok(Writer::Us(None))
        }
        Err(error) => Err(error.into()),
    }
}
