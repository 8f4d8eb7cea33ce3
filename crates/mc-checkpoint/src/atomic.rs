//! Writes a file whole or not at all. Knows nothing of what is in it.

use crate::{Error, Result};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

/// Writes a file so that at every moment, a crash included, `path` holds either its old content or all of the new one.
///
/// The content goes to a temporary file in the same directory, reaches the disk, and takes the name by a rename. If
/// `write` fails, the old file is as it was and the temporary one is gone. Its mode bits stay as they
/// were. A link stays, and what it leads to is written.
/// What is no file, such as a pipe or a device, stays as well: it is given the content once that is whole. So is what
/// `/dev/stdout` leads to, which somebody has open.
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
    let result = match fs::metadata(path) {
        Ok(found) if !found.is_file() || is_open_somewhere(path) => hand_over(path, write),
        Ok(_) => path.canonicalize().and_then(|path| replace(&path, write)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => replace(&end_of_links(path), write),
        Err(e) => Err(e),
    };
    result.map_err(Error::io(path))
}

/// Whether a path names what a process has open, as `/dev/stdout` does, and no file of its own.
fn is_open_somewhere(path: &Path) -> bool {
    ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|place| path.starts_with(place))
}

/// Where a path leads to where nothing is yet.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    while let Ok(target) = fs::read_link(&path) {
        path = directory(&path).join(target);
    }
    path
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn replace(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let dir = directory(path);
    // Opened by ourselves: an ordinary file, as far as the umask lets it be, and errors do not speak of its name.
    let open = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
    let file = tempfile::Builder::new().prefix(".tmp-").make_in(dir, open)?;
    if let Ok(old) = fs::metadata(path) {
        file.as_file().set_permissions(old.permissions())?;
    }
    fill(file.as_file(), write)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The rename is in the directory: without this it may be lost in a crash.
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    Ok(())
}

/// Gives the content to what cannot be replaced and may not seek.
fn hand_over(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let mut to = File::options().append(true).open(path)?;
    let mut content = tempfile::tempfile()?;
    fill(&content, write)?;
    content.rewind()?;
    io::copy(&mut content, &mut to).map(drop)
}

fn fill(file: &File, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    write(&mut buffered)?;
    buffered.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_what_a_process_has_open() {
        let open = |path: &str| is_open_somewhere(Path::new(path));
        let names = ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/3", "/proc/self/fd/1"];
        assert!(names.into_iter().all(open) && !["/dev/shm/x", "/dev/stdoutx", "dev/stdout"].into_iter().any(open));
    }
}
