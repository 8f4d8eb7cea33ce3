//! A model's directory as the Hugging Face libraries lay it out, on disk or in memory. Knows file names, no architecture.

use crate::{
    Error, Result, SafeTensors, WeightSource,
    peft::{ADAPTER_CONFIG, MLX_WEIGHTS},
    read_limited,
};
use serde_json::Value;
use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

const CONFIG: &str = "config.json";
/// What sentence-transformers writes; the model itself may then be in a folder of the directory.
pub(crate) const MODULES: &str = "modules.json";
const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Files in memory: names and contents.
type Files = &'static [(&'static str, &'static [u8])];

/// A directory that holds a model: configuration, tokenizer, weights.
///
/// ```no_run
/// use mc_checkpoint::{ModelDir, WeightSource};
/// let dir = ModelDir::open("models/SmolLM2-135M")?;
/// println!("{} is a {} with {} tensors", dir.name(), dir.model_type()?, dir.weights()?.names().len());
/// # Ok::<(), mc_checkpoint::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelDir {
    name: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(PathBuf),
    Memory(Files),
}

/// How a model's makers want it to generate, from `generation_config.json`; what they leave open is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a text, from `config.json` where `generation_config.json` has none.
    pub eos_token_ids: Vec<u32>,
    /// Whether to draw tokens at random.
    pub do_sample: bool,
    /// What logits are divided by.
    pub temperature: Option<f64>,
    /// How many of the likeliest tokens are kept.
    pub top_k: Option<usize>,
    /// The share of probability that the kept tokens have together, 0 to 1.
    pub top_p: Option<f64>,
    /// The least probability of a kept token, relative to the likeliest, 0 to 1.
    pub min_p: Option<f64>,
    /// What the logits of tokens that were there already are divided by; 1 changes nothing.
    pub repetition_penalty: Option<f64>,
}

impl ModelDir {
    /// A directory on disk, named by its path as given.
    ///
    /// # Errors
    /// If there is no such directory, or it holds neither `config.json` nor `modules.json`; the hint says what it seems to be instead.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let missing = |what: &str, hint: &str| {
            let hint = (!hint.is_empty()).then(|| hint.to_string());
            Err(Error::Missing { path: path.display().to_string(), what: what.into(), hint })
        };
        if !path.try_exists().map_err(Error::io(path))? {
            return missing(
                "no such directory",
                "pass a directory, or the id of a model on the hub such as owner/name",
            );
        }
        if !path.is_dir() {
            return missing("not a directory", "pass the directory that holds config.json and model.safetensors");
        }
        if ![CONFIG, MODULES].iter().any(|file| path.join(file).is_file()) {
            let adapter = path.join(ADAPTER_CONFIG).is_file() || path.join(MLX_WEIGHTS).is_file();
            let hint = if adapter { "this is an adapter; pass it with --adapter" } else { "" };
            return missing("no config.json", hint);
        }
        Ok(Self { name: path.display().to_string(), place: Place::Disk(path.into()) })
    }

    /// A directory in memory, such as files of the program itself.
    ///
    /// ```
    /// use mc_checkpoint::ModelDir;
    /// let dir = ModelDir::embedded("tiny", &[("config.json", br#"{"model_type": "qwen2"}"#)]);
    /// assert_eq!(dir.model_type()?, "qwen2");
    /// assert!(dir.read("tokenizer.json")?.is_none());
    /// # Ok::<(), mc_checkpoint::Error>(())
    /// ```
    pub fn embedded(name: &'static str, files: Files) -> Self {
        Self { name: name.into(), place: Place::Memory(files) }
    }

    /// The same directory under another name, such as the id on the hub that it came from.
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// What a person calls this model: a path, an id on the hub, or the name given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the directory is, if it is on disk.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            Place::Memory(_) => None,
        }
    }

    /// What errors call a file of this directory.
    pub fn file_name(&self, name: &str) -> String {
        match &self.place {
            Place::Disk(path) => path.join(name).display().to_string(),
            Place::Memory(_) => format!("{}/{name}", self.name),
        }
    }

    /// The content of a file, `None` if it is not there; at most 64 MiB.
    ///
    /// # Errors
    /// If the name leaves the directory, or the file is too large or cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>> {
        if !stays_inside(name) {
            return Err(Error::invalid(&self.name, format!("file `{name}` is outside the directory")));
        }
        match &self.place {
            Place::Disk(path) => Ok(read_limited(path.join(name))?.map(Cow::Owned)),
            Place::Memory(_) => Ok(self.embedded_file(name).map(Cow::Borrowed)),
        }
    }

    /// `config.json`, an object.
    ///
    /// # Errors
    /// If it is missing or not a JSON object.
    pub fn config_json(&self) -> Result<Value> {
        self.json(CONFIG)?.ok_or_else(|| self.missing("no config.json", None))
    }

    /// The architecture's name as `config.json` gives it, such as `qwen2`.
    ///
    /// # Errors
    /// If `config.json` cannot be read or has no such string.
    pub fn model_type(&self) -> Result<String> {
        let config = self.config_json()?;
        match config.get("model_type").and_then(Value::as_str) {
            Some(name) => Ok(name.into()),
            None => Err(self.field(CONFIG, "model_type", config.get("model_type"), "a string")),
        }
    }

    /// How the model's makers want it to generate; all defaults if they do not say.
    ///
    /// # Errors
    /// If `generation_config.json` or `config.json` cannot be read, or a field is of another kind than it must.
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        let config = self.json(GENERATION_CONFIG)?.unwrap_or_default();
        let set = |field| config.get(field).filter(|v: &&Value| !v.is_null());
        let number = |field| match set(field).map(|v| (v, v.as_f64())) {
            Some((v, None)) => Err(self.field(GENERATION_CONFIG, field, Some(v), "a number")),
            other => Ok(other.and_then(|(_, n)| n)),
        };
        let mut eos_token_ids = self.token_ids(GENERATION_CONFIG, &config)?;
        if eos_token_ids.is_empty() {
            eos_token_ids = self.token_ids(CONFIG, &self.config_json()?)?;
        }
        let top_k = match set("top_k").map(|v| (v, v.as_u64())) {
            Some((v, None)) => return Err(self.field(GENERATION_CONFIG, "top_k", Some(v), "a whole number")),
            other => other.and_then(|(_, n)| n).map(|n| n as usize),
        };
        Ok(GenerationConfig {
            eos_token_ids,
            do_sample: set("do_sample").and_then(Value::as_bool).unwrap_or(false),
            temperature: number("temperature")?,
            top_k,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }

    /// The weights: `model.safetensors`, else the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// If neither is there, or what is there is not valid.
    pub fn weights(&self) -> Result<Arc<dyn WeightSource>> {
        let hint = match &self.place {
            Place::Disk(path) => {
                let there = |name: &str| path.join(name).try_exists().map_err(Error::io(path.join(name)));
                if there(WEIGHTS)? {
                    return Ok(Arc::new(SafeTensors::open(path.join(WEIGHTS))?));
                }
                if there(INDEX)? {
                    return Ok(Arc::new(SafeTensors::open_sharded(path.join(INDEX))?));
                }
                (there("pytorch_model.bin")? || there("pytorch_model.bin.index.json")?)
                    .then(|| "its weights are in pytorch's own format; convert them to safetensors".to_string())
            }
            Place::Memory(_) => {
                if let Some(bytes) = self.embedded_file(WEIGHTS) {
                    return Ok(Arc::new(SafeTensors::from_bytes(self.file_name(WEIGHTS), bytes)?));
                }
                if let Some(text) = self.embedded_file(INDEX) {
                    let open = |shard: &str| {
                        let bytes = self.embedded_file(shard).map(|b| Arc::new(b) as mc_backend::weight::Owner);
                        Ok((self.file_name(shard), bytes))
                    };
                    return Ok(Arc::new(SafeTensors::from_index(self.file_name(INDEX), text, open)?));
                }
                None
            }
        };
        Err(self.missing("no model.safetensors and no model.safetensors.index.json", hint))
    }

    fn embedded_file(&self, name: &str) -> Option<&'static [u8]> {
        let Place::Memory(files) = &self.place else { return None };
        files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
    }

    fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        let file = self.file_name(name);
        // Some editors write a byte order mark, which JSON does not have.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
        let value: Value = serde_json::from_slice(text).map_err(Error::json(&file))?;
        if value.is_object() { Ok(Some(value)) } else { Err(Error::invalid(&file, "not a JSON object")) }
    }

    fn token_ids(&self, file: &str, config: &Value) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match config.get("eos_token_id") {
            None | Some(Value::Null) => Some(vec![]),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(one) => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.field(file, "eos_token_id", config.get("eos_token_id"), "a token id or a list of them"))
    }

    fn field(&self, file: &str, field: &str, found: Option<&Value>, expected: &str) -> Error {
        let found = found.map_or("missing".to_string(), Value::to_string);
        Error::invalid(&self.file_name(file), format!("`{field}` is {found}, expected {expected}"))
    }

    fn missing(&self, what: &str, hint: Option<String>) -> Error {
        Error::Missing { path: self.name.clone(), what: what.into(), hint }
    }
}

/// Whether a name that a file gives is a relative path which cannot leave the directory it is in, on any system.
pub(crate) fn stays_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !name.contains(['\\', ':', '\0'])
}
