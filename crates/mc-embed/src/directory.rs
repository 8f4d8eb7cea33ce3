//! Files of a model's directory, read with errors that name them. Knows no architecture and no tensors.

use crate::{Error, Result};
use mc_checkpoint::ModelDir;
use serde_json::{Map, Value};
use std::path::Path;

/// What helps where a file does not say what it must.
const DAMAGED: &str = "it may be incomplete, damaged or edited; get the file again";

/// A model's directory, or one of its folders.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    dir: ModelDir,
    /// Empty, or ends in a slash.
    folder: String,
}

impl Directory {
    pub(crate) fn new(dir: ModelDir) -> Self {
        Self { dir, folder: String::new() }
    }

    /// A folder of it, which need not be there; the empty name is the directory itself.
    pub(crate) fn folder(&self, name: &str) -> Self {
        let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
        let folder = parts.fold(self.folder.clone(), |folder, part| folder + part + "/");
        Self { dir: self.dir.clone(), folder }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> Result<&Path> {
        let hint = Some("an embedding model is read from a directory");
        self.dir.path().ok_or_else(|| self.error("tokenizer.json", "is not on disk", hint))
    }

    /// It as a model's directory of its own.
    pub(crate) fn dir(&self) -> Result<ModelDir> {
        match self.folder.as_str() {
            "" => Ok(self.dir.clone()),
            folder => Ok(ModelDir::open(self.path()?.join(folder))?),
        }
    }

    /// A JSON object, `None` if there is no such file.
    pub(crate) fn json(&self, file: &str) -> Result<Option<Object>> {
        let read = |value| match value {
            Value::Object(map) => Ok(Object { file: self.name(file), map }),
            _ => Err(self.error(file, "is not a JSON object", Some(DAMAGED))),
        };
        self.value(file)?.map(read).transpose()
    }

    /// A JSON object, empty if there is no such file.
    pub(crate) fn object(&self, file: &str) -> Result<Object> {
        Ok(self.json(file)?.unwrap_or_else(|| Object { file: self.name(file), map: Map::new() }))
    }

    /// Any JSON, `None` if there is no such file.
    pub(crate) fn value(&self, file: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.dir.read(&format!("{}{file}", self.folder))? else { return Ok(None) };
        let problem = |e: serde_json::Error| self.error(file, &format!("is no JSON: {e}"), Some(DAMAGED));
        serde_json::from_slice(&bytes).map(Some).map_err(problem)
    }

    /// What errors call a file.
    pub(crate) fn name(&self, file: &str) -> String {
        self.dir.file_name(&format!("{}{file}", self.folder))
    }

    pub(crate) fn error(&self, file: &str, problem: &str, hint: Option<&str>) -> Error {
        Error::Directory { file: self.name(file), problem: problem.into(), hint: hint.map(Into::into) }
    }
}

/// A JSON object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    file: String,
    pub(crate) map: Map<String, Value>,
}

impl Object {
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// A string, if the field is there.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>> {
        self.get(field).map(|found| found.as_str().ok_or_else(|| self.wrong(field, found, "a string"))).transpose()
    }

    pub(crate) fn number(&self, field: &str) -> Option<f64> {
        self.get(field).and_then(Value::as_f64)
    }

    /// True or false; `default` where the field is missing.
    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(found) => Err(self.wrong(field, found, "true or false")),
        }
    }

    /// A whole number of at least 1, if the field is there.
    pub(crate) fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some(found) = self.get(field) else { return Ok(None) };
        let size = found.as_u64().filter(|n| (1..=1 << 30).contains(n)).map(|n| n as usize);
        size.map(Some).ok_or_else(|| self.wrong(field, found, "a whole number of at least 1"))
    }

    /// A number of tokens of at least 1, if the field is there. Where there is no limit, transformers writes 10^30.
    pub(crate) fn limit(&self, field: &str) -> Result<Option<usize>> {
        match self.number(field) {
            Some(n) if n > f64::from(1 << 30) => Ok(Some(usize::MAX)),
            _ => self.size(field),
        }
    }

    /// The object of a field; an empty one where the field is missing.
    pub(crate) fn object(&self, field: &str) -> Result<Self> {
        match self.get(field) {
            None => Ok(Self { file: self.file.clone(), map: Map::new() }),
            Some(Value::Object(map)) => Ok(Self { file: self.file.clone(), map: map.clone() }),
            Some(found) => Err(self.wrong(field, found, "an object")),
        }
    }

    pub(crate) fn error(&self, problem: &str, hint: Option<&str>) -> Error {
        Error::Directory { file: self.file.clone(), problem: problem.into(), hint: hint.map(Into::into) }
    }

    pub(crate) fn wrong(&self, field: &str, found: &Value, expected: &str) -> Error {
        self.unsupported(field, found, expected, "correct it there, or get the file again")
    }

    /// Of what may be meant, and means something elsewhere, with a hint at what is supported.
    pub(crate) fn unsupported(&self, field: &str, found: &Value, expected: &str, hint: &str) -> Error {
        self.error(&format!("`{field}` is {found}, expected {expected}"), Some(hint))
    }

    pub(crate) fn missing(&self, field: &str) -> Error {
        self.error(&format!("`{field}` is missing"), Some(DAMAGED))
    }
}
