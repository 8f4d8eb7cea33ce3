//! The text side of a model directory, as bytes. Knows which files there are, not what is in them.

use std::borrow::Cow;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The largest known tokenizer.json is some 35 MB; this leaves room and still fits in memory.
const TOKENIZER_LIMIT: u64 = 512 << 20;
/// Configurations and templates are a few KB.
const SMALL_LIMIT: u64 = 32 << 20;

/// The files that make a tokenizer and its chat template, read from a directory or compiled in.
///
/// ```no_run
/// use mc_text::{Tokenizer, TokenizerFiles};
///
/// let files = TokenizerFiles::read("models/qwen2.5-0.5b")?;
/// let tokenizer = Tokenizer::from_files(&files)?;
/// # Ok::<(), mc_text::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles<'a> {
    /// Where the files come from: only named in errors.
    pub directory: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer_json: Cow<'a, [u8]>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Cow<'a, [u8]>>,
    /// `config.json`, the model's: it stands for a `tokenizer_class` that `tokenizer_config.json` does not name.
    pub config: Option<Cow<'a, [u8]>>,
    /// `special_tokens_map.json`: goes before the names in a `tokenizer_config.json` from before 2024, without `added_tokens_decoder`.
    pub special_tokens_map: Option<Cow<'a, [u8]>>,
    /// `chat_template.jinja`: overrides the template in `tokenizer_config.json`.
    pub chat_template: Option<Cow<'a, str>>,
    /// `additional_chat_templates/<name>.jinja` as (name, template).
    pub additional_chat_templates: Vec<(String, Cow<'a, str>)>,
}

impl TokenizerFiles<'static> {
    /// Reads them from a model directory; all but `tokenizer.json` may be missing.
    pub fn read(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let tokenizer_json = read(&directory.join("tokenizer.json"), TOKENIZER_LIMIT)?;
        Ok(Self { tokenizer_json: Cow::Owned(tokenizer_json), ..Self::read_templates(directory)? })
    }

    /// Reads all but `tokenizer.json`, which is large and of no use to a chat template.
    pub(crate) fn read_templates(directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: directory.to_path_buf(),
            tokenizer_json: Cow::Borrowed(&[]),
            tokenizer_config: if_there(read(&directory.join("tokenizer_config.json"), SMALL_LIMIT))?.map(Cow::Owned),
            config: if_there(read(&directory.join("config.json"), SMALL_LIMIT))?.map(Cow::Owned),
            special_tokens_map: if_there(read(&directory.join("special_tokens_map.json"), SMALL_LIMIT))?
                .map(Cow::Owned),
            chat_template: if_there(read_text(&directory.join("chat_template.jinja")))?.map(Cow::Owned),
            additional_chat_templates: read_additional(&directory.join("additional_chat_templates"))?,
        })
    }
}

fn read_additional(directory: &Path) -> Result<Vec<(String, Cow<'static, str>)>> {
    let in_directory = |source| Error::Read { file: directory.to_path_buf(), source };
    let Some(entries) = if_there(fs::read_dir(directory).map_err(in_directory))? else {
        return Ok(Vec::new());
    };
    let mut templates = Vec::new();
    for entry in entries {
        let path = entry.map_err(in_directory)?.path();
        if path.extension().is_some_and(|extension| extension == "jinja")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            templates.push((name.to_string(), Cow::Owned(read_text(&path)?)));
        }
    }
    // A directory has no order of its own.
    templates.sort();
    Ok(templates)
}

fn read_text(file: &Path) -> Result<String> {
    String::from_utf8(read(file, SMALL_LIMIT)?).map_err(|error| Error::Malformed {
        file: file.to_path_buf(),
        reason: format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
    })
}

fn read(file: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |source| Error::Read { file: file.to_path_buf(), source };
    // Before it is opened: of a pipe that would wait for who writes to it.
    let found = fs::metadata(file).map_err(failed)?;
    if !found.is_file() && !found.is_dir() {
        return Err(Error::Malformed { file: file.to_path_buf(), reason: "not a file".into() });
    }
    let open = fs::File::open(file).map_err(failed)?;
    let bytes = open.metadata().map_err(failed)?.len();
    if bytes > limit {
        return Err(Error::TooLarge { file: file.to_path_buf(), bytes, limit });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // `take`: what is no plain file may claim no length and yet never end.
    open.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(Error::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
