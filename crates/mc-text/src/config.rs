//! tokenizer_config.json, as far as it concerns text: class, special tokens and chat templates; and special_tokens_map.json.

use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::class::{self, Class};
use crate::error::one_line;
use crate::{Error, Result, TokenizerFiles};

const FILE: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const TOKEN: &str = "a string or an object with `content`";
const TEMPLATE: &str = "a string or a list of {name, template}";

/// What tokenizer_config.json says. `add_bos_token` and `add_eos_token` are left out on purpose: beside a
/// tokenizer.json transformers drops them too, and the post-processor in that file decides.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    /// `bos_token`, `eos_token` and whatever else is called `…_token`, by that name.
    pub(crate) named_tokens: Vec<(String, AddedToken)>,
    /// `extra_special_tokens`, or `additional_special_tokens` as it was called before.
    pub(crate) extra_tokens: Vec<AddedToken>,
    /// `added_tokens_decoder`, by id.
    pub(crate) added_tokens: Vec<AddedToken>,
    /// `tokenizer_class` with its options, or what stands for it.
    pub(crate) class: Class,
    /// Whether a model is told of which part of a pair a token is.
    pub(crate) gives_types: bool,
    /// `chat_template` as (name, field, template); a lone template is called `default`.
    pub(crate) chat_templates: Vec<(String, String, String)>,
}

impl TokenizerConfig {
    pub(crate) fn parse(files: &TokenizerFiles) -> Result<Self> {
        let reader = Reader { file: files.directory.join(FILE) };
        let config = reader.object(files.tokenizer_config.as_deref())?;
        let mut parsed = Self {
            named_tokens: reader.named_tokens(&config)?,
            extra_tokens: reader.extra_tokens(&config)?,
            added_tokens: reader.added_tokens(&config)?,
            chat_templates: reader.chat_templates(&config)?,
            class: reader.class(&config, files)?,
            ..Self::default()
        };
        parsed.gives_types = match config.get("model_input_names") {
            Some(Value::Array(names)) => names.iter().any(|name| name == "token_type_ids"),
            _ => parsed.class.gives_types(),
        };
        if !config.contains_key("added_tokens_decoder") {
            let reader = Reader { file: files.directory.join(MAP) };
            let map = reader.object(files.special_tokens_map.as_deref())?;
            for (name, token) in reader.named_tokens(&map)? {
                // There, all are special.
                let token = token.special(true);
                parsed.named_tokens.retain(|(known, _)| *known != name);
                parsed.named_tokens.push((name, token));
            }
            let extra = reader.extra_tokens(&map)?;
            if !extra.is_empty() {
                parsed.extra_tokens = extra.into_iter().map(|token| token.special(true)).collect();
            }
        }
        Ok(parsed)
    }
}

struct Reader {
    file: PathBuf,
}

impl Reader {
    /// The object that a file is; one that is not there is empty.
    fn object(&self, bytes: Option<&[u8]>) -> Result<Map<String, Value>> {
        let Some(bytes) = bytes else { return Ok(Map::new()) };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(self.wrong("(the whole file)", &other, "an object")),
            Err(error) => {
                let reason = format!("not valid JSON: {}", one_line(error));
                Err(Error::Malformed { file: self.file.clone(), reason })
            }
        }
    }

    fn class(&self, config: &Map<String, Value>, files: &TokenizerFiles) -> Result<Class> {
        // Whoever reads the model says what is wrong with its file.
        let bytes = files.config.as_deref().unwrap_or_default();
        let model: Value =
            serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)).unwrap_or_default();
        let of_model = |field: &str| model.get(field).and_then(Value::as_str);
        let written = self.text(config, "tokenizer_class")?.or_else(|| of_model("tokenizer_class"));
        let flag = |field: &str| match config.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(field, other, "true or false")),
        };
        Ok(Class {
            name: class::name(written, of_model("model_type")),
            do_lower_case: flag("do_lower_case")?,
            strip_accents: flag("strip_accents")?,
            tokenize_chinese_chars: flag("tokenize_chinese_chars")?,
            add_prefix_space: flag("add_prefix_space")?,
        })
    }

    fn text<'v>(&self, object: &'v Map<String, Value>, field: &str) -> Result<Option<&'v str>> {
        match object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, other, "a string")),
        }
    }

    fn named_tokens(&self, config: &Map<String, Value>) -> Result<Vec<(String, AddedToken)>> {
        let mut tokens = Vec::new();
        for (name, value) in config.iter().filter(|(name, _)| name.ends_with("_token")) {
            match value {
                Value::Null => {}
                // `add_bos_token` and its like are switches.
                Value::Bool(_) if name.starts_with("add_") => {}
                value => tokens.push((name.clone(), self.token(name, value)?)),
            }
        }
        // Since transformers 5 a map gives more names.
        if let Some(Value::Object(extra)) = config.get("extra_special_tokens") {
            for (name, value) in extra {
                tokens.push((name.clone(), self.token(&format!("extra_special_tokens.{name}"), value)?));
            }
        }
        Ok(tokens)
    }

    fn extra_tokens(&self, config: &Map<String, Value>) -> Result<Vec<AddedToken>> {
        for field in ["extra_special_tokens", "additional_special_tokens"] {
            match config.get(field) {
                None | Some(Value::Null | Value::Object(_)) => {}
                Some(Value::Array(tokens)) if tokens.is_empty() => {}
                Some(Value::Array(tokens)) => {
                    let token = |(at, value)| self.token(&format!("{field}[{at}]"), value);
                    return tokens.iter().enumerate().map(token).collect();
                }
                Some(other) => return Err(self.wrong(field, other, "a list of tokens")),
            }
        }
        Ok(Vec::new())
    }

    fn added_tokens(&self, config: &Map<String, Value>) -> Result<Vec<AddedToken>> {
        let field = "added_tokens_decoder";
        let tokens = match config.get(field) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(tokens)) => tokens,
            Some(other) => return Err(self.wrong(field, other, "an object of tokens by id")),
        };
        let mut by_id = Vec::with_capacity(tokens.len());
        for (id, value) in tokens {
            let field = format!("{field}.{id}");
            let number: u32 = id.parse().map_err(|_| Error::Field {
                file: self.file.clone(),
                field: field.clone(),
                found: format!("under `{}`", short(id)),
                expected: "a token id as its key",
            })?;
            by_id.push((number, self.token(&field, value)?));
        }
        by_id.sort_by_key(|(id, _)| *id);
        Ok(by_id.into_iter().map(|(_, token)| token).collect())
    }

    fn chat_templates(&self, config: &Map<String, Value>) -> Result<Vec<(String, String, String)>> {
        let field = "chat_template";
        match config.get(field) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(source)) => Ok(vec![("default".into(), field.into(), source.clone())]),
            Some(Value::Array(templates)) => {
                let mut named = Vec::with_capacity(templates.len());
                for (at, template) in templates.iter().enumerate() {
                    let text = |key: &str| match template.get(key) {
                        Some(Value::String(text)) => Ok(text.clone()),
                        found => {
                            let found = found.unwrap_or(&Value::Null);
                            Err(self.wrong(&format!("{field}[{at}].{key}"), found, "a string"))
                        }
                    };
                    named.push((text("name")?, format!("{field}[{at}].template"), text("template")?));
                }
                Ok(named)
            }
            Some(other) => Err(self.wrong(field, other, TEMPLATE)),
        }
    }

    fn token(&self, field: &str, value: &Value) -> Result<AddedToken> {
        let (content, flags) = match value {
            Value::String(content) => (content, None),
            Value::Object(token) => match token.get("content") {
                Some(Value::String(content)) => (content, Some(token)),
                other => {
                    let field = format!("{field}.content");
                    return Err(self.wrong(&field, other.unwrap_or(&Value::Null), "a string"));
                }
            },
            other => return Err(self.wrong(field, other, TOKEN)),
        };
        let flag = |name: &str| flags.and_then(|flags| flags.get(name)).and_then(Value::as_bool);
        // A token given as a bare string is special; an object says so itself.
        let special = flags.is_none() || flag("special").unwrap_or(false);
        Ok(AddedToken {
            content: content.clone(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: flag("normalized").unwrap_or(!special),
            special,
        })
    }

    fn wrong(&self, field: &str, found: &Value, expected: &'static str) -> Error {
        let found = match found {
            Value::Null => "missing or null".to_string(),
            Value::Object(_) => "an object".to_string(),
            Value::Array(_) => "a list".to_string(),
            other => short(&other.to_string()),
        };
        Error::Field { file: self.file.clone(), field: short(field), found, expected }
    }
}

/// Enough of a text to know it by.
fn short(text: &str) -> String {
    let mut short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
