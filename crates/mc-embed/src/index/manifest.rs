//! `index.json`: what an index is, and which file holds its rows. Replacing it is what makes a change true.

use super::{Error, IndexConfig, Result};
use mc_checkpoint::{Lock, read_limited, write_atomic};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

const NAME: &str = "index.json";
const LOCK: &str = "lock";
pub(super) const FORMAT: &str = "metal-candle index";
/// Readers refuse any other.
pub(super) const VERSION: u32 = 2;

/// What `index.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: String,
    version: u32,
    /// Counts changes; part of the name of the file with the rows.
    pub(super) generation: u64,
    pub(super) rows: usize,
    /// CRC-32 of the rows.
    pub(super) checksum: u32,
    #[serde(flatten)]
    pub(super) config: IndexConfig,
}

/// What every version begins with.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

impl Manifest {
    pub(super) fn new(config: IndexConfig) -> Self {
        Self { format: FORMAT.into(), version: VERSION, generation: 0, rows: 0, checksum: 0, config }
    }

    /// That of the next change, with so many rows.
    pub(super) fn next(&self, rows: usize) -> Self {
        Self { generation: self.generation.wrapping_add(1), rows, ..self.clone() }
    }

    pub(super) fn read(dir: &Path) -> Result<Self> {
        let no_index = |what| Err(Error::NoIndex { dir: dir.into(), what });
        let path = dir.join(NAME);
        let Some(text) = read_limited(&path)? else {
            return match dir.metadata() {
                Ok(found) if found.is_dir() => no_index("no index.json"),
                Ok(_) => no_index("a file, not a directory"),
                Err(_) => no_index("no such directory"),
            };
        };
        let json = |source| mc_checkpoint::Error::Json { file: path.display().to_string(), source };
        let head: Head = serde_json::from_slice(&text).map_err(json)?;
        if head.format != FORMAT || head.version != VERSION {
            return Err(Error::Version { file: path, found: format!("`{}` {}", head.format, head.version) });
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(json)?;
        manifest.config.check(|what| Error::invalid(&path, what))?;
        Ok(manifest)
    }

    /// Makes this the index: the rest of it is on disk already.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let text =
            serde_json::to_string(self).map_err(|source| mc_checkpoint::Error::Json { file: NAME.into(), source })?;
        Ok(write_atomic(dir.join(NAME), |file| writeln!(file, "{text}"))?)
    }

    /// The file with the rows of this generation.
    pub(super) fn rows_file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("rows-{}.safetensors", self.generation))
    }

    /// Removes what other generations and interrupted writers left. Whatever resists is left for the next time.
    pub(super) fn sweep(&self, dir: &Path) {
        sweep(dir, &self.rows_file(dir));
    }
}

fn sweep(dir: &Path, except: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if is_left_over(&name.to_string_lossy()) && path != except {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes the files of an index, and no others.
pub(super) fn delete(dir: &Path, _: Lock) -> Result<()> {
    let path = dir.join(NAME);
    fs::remove_file(&path).map_err(Error::io(&path))?;
    sweep(dir, Path::new(""));
    let path = dir.join(LOCK);
    fs::remove_file(&path).map_err(Error::io(&path))
}

/// Whether this is the name of a file of rows, or what [`write_atomic`] calls an unfinished file.
fn is_left_over(name: &str) -> bool {
    let rows = name.strip_prefix("rows-").and_then(|name| name.strip_suffix(".safetensors"));
    let unfinished = name.strip_prefix(".tmp-");
    rows.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        || unfinished.is_some_and(|n| n.len() == 6 && n.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Makes the directory and locks it, or refuses one with an index or anything else in it. What an interrupted creation left
/// is nothing.
pub(super) fn make_directory(dir: &Path) -> Result<Lock> {
    if dir.is_file() {
        return Err(Error::Occupied { dir: dir.into(), what: "is a file" });
    }
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A lock is empty.
        let locks = name == LOCK && entry.metadata().is_ok_and(|file| file.len() == 0);
        if name != NAME && !locks && !is_left_over(&name) {
            return Err(Error::Occupied { dir: dir.into(), what: "is not empty, and no index" });
        }
    }
    let lock = lock(dir)?;
    if dir.join(NAME).exists() {
        return Err(Error::Occupied { dir: dir.into(), what: "holds an index already" });
    }
    Ok(lock)
}

/// The right to write into the directory of an index.
pub(super) fn lock(dir: &Path) -> Result<Lock> {
    let path = dir.join(LOCK);
    Lock::take(&path)?.ok_or_else(|| Error::Busy { dir: dir.into(), what: "another run is writing this index" })
}
