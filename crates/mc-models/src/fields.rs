//! The fields of a `config.json`, read one by one with the limits they have to keep. Knows no architecture.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a configuration, read one by one with the limits they have to keep.
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a str, json: &'a Value) -> Result<Self> {
        match json {
            Value::Object(map) => Ok(Self { file, map }),
            _ => Err(Error::Config {
                file: file.into(),
                field: "model_type".into(),
                problem: "is missing: the file is not a JSON object".into(),
            }),
        }
    }

    pub(crate) fn error(&self, field: &str, problem: impl Into<String>) -> Error {
        Error::Config { file: self.file.into(), field: field.into(), problem: problem.into() }
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn text(&self, field: &str) -> Result<String> {
        match self.get(field) {
            Some(Value::String(s)) => Ok(s.clone()),
            Some(v) => Err(self.error(field, format!("is {v}, expected a string"))),
            None => Err(self.error(field, "is missing")),
        }
    }

    pub(crate) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(self.error(field, format!("is {v}, expected true or false"))),
        }
    }

    pub(crate) fn size(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        let problem = || format!("is {value}, expected a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| self.error(field, problem()))
    }

    pub(crate) fn required_size(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.size(field, range)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(crate) fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let problem = || format!("is {value}, expected a number from {:e} to {:e}", range.start(), range.end());
        let number = value.as_f64().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| self.error(field, problem()))
    }

    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, map })),
            Some(v) => Err(self.error(field, format!("is {v}, expected an object"))),
        }
    }

    /// A list of so many, if the field is there.
    pub(crate) fn list(&self, field: &str, length: usize) -> Result<Option<&'a [Value]>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() == length => Ok(Some(list)),
            Some(v) => Err(self.error(field, format!("is {v}, expected a list of {length}"))),
        }
    }

    /// Fails if the field is there and says something else.
    pub(crate) fn expect_text(&self, field: &str, expected: &str) -> Result<()> {
        match self.get(field) {
            Some(found) if found.as_str() != Some(expected) => {
                Err(self.error(field, format!("is {found}, expected \"{expected}\"")))
            }
            _ => Ok(()),
        }
    }
}
