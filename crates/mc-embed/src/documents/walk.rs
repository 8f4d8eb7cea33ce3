//! The text files under a folder, and their contents. Knows nothing of chunks.

use crate::index::{Error, Result};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};
use walkdir::{DirEntry, WalkDir};

/// Larger files are data, not something to read.
const MAX_READ: u64 = 64 << 20;

/// A file that may be indexed.
#[derive(Debug)]
pub(super) struct TextFile {
    /// From the folder, with `/` between names.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// Nanoseconds since 1970; 0 where the system does not say.
    pub(super) modified: u64,
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
    /// Its name starts with a dot.
    Hidden,
    /// A link, which is not followed.
    Link,
    /// It has a byte 0.
    Binary,
    /// Text in another encoding.
    NotUtf8,
    /// More than 64 MiB.
    TooLarge,
    /// What the system said when it was read.
    Unreadable(String),
}

impl std::fmt::Display for SkipReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hidden => f.write_str("hidden"),
            Self::Link => f.write_str("a link, not followed"),
            Self::Binary => f.write_str("binary"),
            Self::NotUtf8 => f.write_str("not UTF-8"),
            Self::TooLarge => write!(f, "larger than {} MiB", MAX_READ >> 20),
            Self::Unreadable(why) => f.write_str(why),
        }
    }
}

/// The files with these extensions, sorted by name, and what was left out. Files with other extensions are not mentioned.
pub(super) fn walk(folder: &Path, extensions: &[String]) -> Result<(Vec<TextFile>, Vec<Skipped>)> {
    let wanted = |path: &Path| {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        extension.is_some_and(|extension| extensions.contains(&extension))
    };
    let hidden = |entry: &DirEntry| entry.depth() > 0 && entry.file_name().to_string_lossy().starts_with('.');
    let (mut files, mut skipped) = (vec![], vec![]);
    let mut entries = WalkDir::new(folder).follow_links(false).sort_by_file_name().into_iter();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.depth() == 0 => return Err(Error::io(folder)(e.into())),
            Err(e) => {
                let path = e.path().unwrap_or(folder).to_path_buf();
                skipped.push(Skipped { path, reason: SkipReason::Unreadable(io::Error::from(e).to_string()) });
                continue;
            }
        };
        let kind = entry.file_type();
        let mut skip = |reason| skipped.push(Skipped { path: entry.path().into(), reason });
        if hidden(&entry) {
            if kind.is_dir() {
                entries.skip_current_dir();
            }
            if kind.is_dir() || wanted(entry.path()) {
                skip(SkipReason::Hidden);
            }
        } else if kind.is_symlink() && (wanted(entry.path()) || entry.path().is_dir()) {
            skip(SkipReason::Link);
        } else if kind.is_file() && wanted(entry.path()) {
            match read_entry(folder, &entry) {
                Ok(file) => files.push(file),
                Err(reason) => skip(reason),
            }
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((files, skipped))
}

fn read_entry(folder: &Path, entry: &DirEntry) -> Result<TextFile, SkipReason> {
    let unreadable = |e: io::Error| SkipReason::Unreadable(e.to_string());
    let metadata = entry.metadata().map_err(|e| unreadable(e.into()))?;
    let name = entry.path().strip_prefix(folder).unwrap_or(entry.path());
    let names: Option<Vec<_>> = name.iter().map(|part| part.to_str()).collect();
    let name = names.ok_or_else(|| SkipReason::Unreadable("a name that is not UTF-8".into()))?.join("/");
    if metadata.len() > MAX_READ {
        return Err(SkipReason::TooLarge);
    }
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = modified.map_or(0, |time| time.as_nanos() as u64);
    Ok(TextFile { name, path: entry.path().into(), size: metadata.len(), modified })
}

impl TextFile {
    /// What is in it, if that is text.
    pub(super) fn read(&self) -> Result<Vec<u8>, SkipReason> {
        let mut bytes = Vec::with_capacity(self.size as usize);
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
