//! Writes a file whole or not at all. Knows nothing of what is in it.

use crate::{Error, Result};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// Writes a file so that at every moment, a crash included, `path` holds either its old content or all of the new one.
///
/// The content goes to a temporary file in the same directory, reaches the disk, and takes the name by a rename. If
/// `write` fails, the old file is as it was and the temporary one is gone.
///
/// # Errors
/// What `write` returned, or what the system said of `path`.
///
/// ```
/// use std::io::Write;
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("metrics.json");
/// mc_checkpoint::write_atomic(&path, |file| file.write_all(b"{}"))?;
/// assert_eq!(std::fs::read(&path)?, b"{}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, write).map_err(Error::io(path))
}

fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tmp-");
    // Temporary files are private by default; this one becomes an ordinary file, as far as the umask lets it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(dir)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The rename is in the directory: without this it may be lost in a crash.
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    Ok(())
}
