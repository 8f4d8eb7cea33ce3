//! Files that are read: what is none is refused before it is opened, and those that are read whole have a limit.

use crate::{Error, Result};
use std::{
    fs::{File, Metadata},
    io::{ErrorKind, Read},
    path::Path,
};

/// JSON, templates and tokenizers; the largest tokenizers known have half of it.
const MAX_READ: u64 = 64 << 20;

/// The content of a file if it is there and not larger than 64 MiB; the limit holds even if the file grows meanwhile.
///
/// # Errors
/// If what is there is larger, or no file, or cannot be read.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("config.json");
/// assert!(mc_checkpoint::read_limited(&path)?.is_none());
/// std::fs::write(&path, "{}")?;
/// assert_eq!(mc_checkpoint::read_limited(&path)?.as_deref(), Some(&b"{}"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_limited(path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    let path = path.as_ref();
    if look(path)?.is_none() {
        return Ok(None);
    }
    let mut content = vec![];
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(MAX_READ + 1).read_to_end(&mut content).map_err(Error::io(path))?;
    if content.len() as u64 > MAX_READ {
        return Err(Error::invalid(&path.display().to_string(), format!("larger than {} MiB", MAX_READ >> 20)));
    }
    Ok(Some(content))
}

/// What the system says of a file that is about to be opened, if it is there. What is no file is refused: opening a pipe would wait for who
/// writes to it.
pub(crate) fn look(path: &Path) -> Result<Option<Metadata>> {
    match path.metadata() {
        Ok(found) if found.is_file() => Ok(Some(found)),
        Ok(_) => Err(Error::invalid(&path.display().to_string(), "not a file")),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}
