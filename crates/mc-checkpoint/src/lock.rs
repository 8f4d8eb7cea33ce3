//! The right to write into a directory, which one at a time has. Knows nothing of what is written.

use crate::{Error, Result, read::look};
use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

/// A locked file: nobody else gets it until this is dropped. The system takes it back from a process that dies.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Locks the file at `path`, which is made if it is not there; `None` if somebody else has it locked.
    ///
    /// # Errors
    /// If it is no file, or cannot be made or opened, or, of the kind [`io::ErrorKind::Unsupported`], its file system has no locks.
    ///
    /// ```
    /// let dir = tempfile::tempdir()?;
    /// let held = mc_checkpoint::Lock::take(dir.path().join("lock"))?;
    /// assert!(held.is_some() && mc_checkpoint::Lock::take(dir.path().join("lock"))?.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref();
        look(path)?;
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(Error::io(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => {
                let what = format!("it cannot be locked: {e}");
                Err(Error::io(path)(io::Error::new(io::ErrorKind::Unsupported, what)))
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a program that is being started meanwhile has the same file open for a moment, and the lock with it.
        if let Err(error) = self.0.unlock() {
            tracing::debug!("a lock ends when its file is closed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a program has it that another thread is about to start.
    #[test]
    fn a_lock_ends_though_its_file_is_open_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take(&path).unwrap().unwrap();
        let inherited = held.0.try_clone().unwrap();
        assert!(Lock::take(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::take(&path).unwrap().is_some());
        drop(inherited);
    }
}
