//! The text files under a folder, and their contents. Knows nothing of chunks.

use crate::index::{Error, Result};
use ignore::WalkBuilder;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

/// Larger files are data, not something to read.
const MAX_READ: u64 = 64 << 20;
/// Bytes of a `.gitignore`.
const MAX_IGNORE: u64 = 1 << 20;

/// A file that may be indexed.
#[derive(Debug)]
pub(super) struct TextFile {
    /// From the folder, with `/` between names.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

/// What the system says of a file: where all of it is as before, so is the file, unless somebody set a clock back. Times are
/// nanoseconds since 1970; 0 is what the system does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) size: u64,
    modified: u64,
    /// When its content, name or rights were last changed, which no program can set.
    #[serde(default)]
    changed: u64,
    #[serde(default)]
    inode: u64,
}

impl Stamp {
    fn new(file: &fs::Metadata) -> Self {
        let modified = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified = modified.map_or(0, |time| time.as_nanos() as u64);
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt;
            (file.ctime().wrapping_mul(1_000_000_000).wrapping_add(file.ctime_nsec()) as u64, file.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = (0, 0);
        Self { size: file.len(), modified, changed, inode }
    }
}

/// A file or folder that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub reason: SkipReason,
}

/// Why a file was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A link, which is not followed.
    Link,
    /// Neither a file nor a folder, such as a pipe.
    NotAFile,
    /// It has a byte 0.
    Binary,
    /// Text in another encoding.
    NotUtf8,
    /// More than 64 MiB.
    TooLarge,
    /// What the system said when it was read.
    Unreadable(String),
    /// A folder whose `.gitignore` or `.ignore` cannot be read, so that nobody knows what in it is to be left out.
    IgnoreFile(String),
}

impl std::fmt::Display for SkipReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Link => f.write_str("a link, not followed"),
            Self::NotAFile => f.write_str("neither a file nor a folder"),
            Self::Binary => f.write_str("binary"),
            Self::NotUtf8 => f.write_str("not UTF-8"),
            Self::TooLarge => write!(f, "larger than {} MiB", MAX_READ >> 20),
            Self::Unreadable(why) => f.write_str(why),
            Self::IgnoreFile(what) => write!(f, "a folder whose {what}"),
        }
    }
}

/// The files with these extensions, sorted by name, and what was left out, such as a folder whose `.gitignore` cannot be read. Files with
/// other extensions, hidden ones, what `.gitignore` and `.ignore` name, and the directory `except` are not mentioned.
pub(super) fn walk(folder: &Path, extensions: &[String], except: &Path) -> Result<(Vec<TextFile>, Vec<Skipped>)> {
    let wanted = |path: &Path| {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        extension.is_some_and(|extension| extensions.contains(&extension))
    };
    // Of the folder itself the walk would go on without it.
    fs::read_dir(folder).map_err(Error::io(folder))?;
    let except = except.canonicalize().map_err(Error::io(except))?;
    if let Err(reason) = check_ignore_files(folder) {
        return Ok((vec![], vec![Skipped { path: folder.into(), reason }]));
    }
    let (mut files, mut skipped) = (vec![], vec![]);
    let odd_folders = Arc::new(Mutex::new(vec![]));
    // What the folder holds says what is read of it, not what lies above it or what its user ignores elsewhere.
    let mut builder = WalkBuilder::new(folder);
    builder.require_git(false).parents(false).git_global(false).git_exclude(false);
    let odd = odd_folders.clone();
    let enters = move |entry: &ignore::DirEntry| {
        let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
        if let (true, Err(reason)) = (is_folder && entry.path() != except, check_ignore_files(entry.path())) {
            odd.lock().unwrap_or_else(PoisonError::into_inner).push(Skipped { path: entry.path().into(), reason });
            return false;
        }
        entry.path() != except
    };
    for entry in builder.filter_entry(enters).build() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                let path = path_of(&e).unwrap_or(folder).to_path_buf();
                let why = e.io_error().map_or(e.to_string(), ToString::to_string);
                skipped.push(Skipped { path, reason: SkipReason::Unreadable(why) });
                continue;
            }
        };
        let Some(kind) = entry.file_type() else { continue };
        let mut skip = |reason| skipped.push(Skipped { path: entry.path().into(), reason });
        if kind.is_symlink() && (wanted(entry.path()) || entry.path().is_dir()) {
            skip(SkipReason::Link);
        } else if kind.is_file() && wanted(entry.path()) {
            match read_entry(folder, &entry) {
                Ok(file) => files.push(file),
                Err(reason) => skip(reason),
            }
        } else if !kind.is_file() && !kind.is_dir() && !kind.is_symlink() && wanted(entry.path()) {
            skip(SkipReason::NotAFile);
        }
    }
    skipped.append(&mut odd_folders.lock().unwrap_or_else(PoisonError::into_inner));
    files.sort_by(|a, b| a.name.cmp(&b.name));
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((files, skipped))
}

/// Whether the files of a folder that name what is to be left out can be read: they are opened by whoever walks through it, who waits for a
/// pipe, reads a device to its end, and passes over what it cannot read.
fn check_ignore_files(folder: &Path) -> Result<(), SkipReason> {
    for name in [".gitignore", ".ignore"] {
        let wrong = |what: &dyn std::fmt::Display| Err(SkipReason::IgnoreFile(format!("{name} {what}")));
        let path = folder.join(name);
        match fs::metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return wrong(&format_args!("cannot be read: {e}")),
            Ok(found) if !found.is_file() => return wrong(&"is not a file"),
            Ok(found) if found.len() > MAX_IGNORE => {
                return wrong(&format_args!("is larger than {} MiB", MAX_IGNORE >> 20));
            }
            Ok(_) => {}
        }
        let mut bytes = vec![];
        let read = File::open(&path).and_then(|file| file.take(MAX_IGNORE).read_to_end(&mut bytes));
        if let Err(e) = read {
            return wrong(&format_args!("cannot be read: {e}"));
        }
        if std::str::from_utf8(&bytes).is_err() {
            return wrong(&"is not UTF-8");
        }
    }
    Ok(())
}

fn path_of(error: &ignore::Error) -> Option<&Path> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => path_of(err),
        _ => None,
    }
}

fn read_entry(folder: &Path, entry: &ignore::DirEntry) -> Result<TextFile, SkipReason> {
    let metadata = fs::symlink_metadata(entry.path()).map_err(|e| SkipReason::Unreadable(e.to_string()))?;
    let name = entry.path().strip_prefix(folder).unwrap_or(entry.path());
    let names: Option<Vec<_>> = name.iter().map(|part| part.to_str()).collect();
    let name = names.ok_or_else(|| SkipReason::Unreadable("a name that is not UTF-8".into()))?.join("/");
    if metadata.len() > MAX_READ {
        return Err(SkipReason::TooLarge);
    }
    Ok(TextFile { name, path: entry.path().into(), stamp: Stamp::new(&metadata) })
}

impl TextFile {
    /// What is in it, if that is text.
    pub(super) fn read(&self) -> Result<Vec<u8>, SkipReason> {
        let mut bytes = Vec::with_capacity(self.stamp.size as usize);
        let file = File::open(&self.path).map_err(|e| SkipReason::Unreadable(e.to_string()))?;
        file.take(MAX_READ + 1).read_to_end(&mut bytes).map_err(|e| SkipReason::Unreadable(e.to_string()))?;
        match bytes.len() as u64 {
            // It has grown since it was listed.
            n if n > MAX_READ => Err(SkipReason::TooLarge),
            _ => Ok(bytes),
        }
    }
}

/// The text of a file, without its byte order mark.
pub(super) fn text(bytes: &[u8]) -> Result<&str, SkipReason> {
    if bytes.contains(&0) {
        return Err(SkipReason::Binary);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SkipReason::NotUtf8)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}
