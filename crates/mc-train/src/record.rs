//! One record of JSON to one example. Knows the three kinds of records, no files.

use crate::{DatasetOptions, Error, Example, Result};
use mc_text::{ChatOptions, ChatTemplate, Message, Tokenizer};
use serde_json::{Map, Value};

/// What the records of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Completion,
    Messages,
}

impl Kind {
    /// What the first record, at `place`, says by its keys.
    pub(crate) fn of(place: &str, line: &str) -> Result<Self> {
        let record = parse(place, line)?;
        Self::of_record(&record).ok_or_else(|| {
            let one = ["prompt", "completion"].iter().find(|key| record.contains_key(**key));
            match one {
                Some(one) => {
                    let other = if *one == "prompt" { "completion" } else { "prompt" };
                    fault(place, format!("`{one}` without `{other}`"), "a record has both, or `text`, or `messages`")
                }
                None => fault(place, format!("a record with {}", keys(&record)), KEYS),
            }
        })
    }

    fn of_record(record: &Map<String, Value>) -> Option<Self> {
        let has = |key| record.contains_key(key);
        if has("prompt") && has("completion") {
            Some(Self::Completion)
        } else if has("messages") {
            Some(Self::Messages)
        } else {
            has("text").then_some(Self::Text)
        }
    }

    fn keys(self) -> &'static str {
        match self {
            Self::Text => "`text`",
            Self::Completion => "`prompt` and `completion`",
            Self::Messages => "`messages`",
        }
    }
}

const KEYS: &str = "a record has `text`, or `prompt` and `completion`, or `messages`";

/// Makes examples of records.
pub(crate) struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    chat_template: Option<&'a ChatTemplate>,
    mask_prompt: bool,
    eos: Option<u32>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, options: &'a DatasetOptions) -> Self {
        let eos = options.eos_token_id.or_else(|| tokenizer.eos_token_id());
        if eos.is_none() {
            tracing::warn!("neither the tokenizer nor the options name an EOS token: texts are trained without an end");
        }
        let (chat_template, mask_prompt) = (options.chat_template.as_ref(), options.mask_prompt);
        Self { tokenizer, chat_template, mask_prompt, eos }
    }

    /// The example of the record in `line`, which is at `place`.
    pub(crate) fn example(&self, place: &str, kind: Kind, line: &str) -> Result<Example> {
        let record = parse(place, line)?;
        let (mut ids, mut supervised) = match kind {
            Kind::Text => self.text(place, &record)?,
            Kind::Completion => self.completion(place, &record)?,
            Kind::Messages => return self.messages(place, &record),
        };
        if let Some(eos) = self.eos.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
            supervised.push(true);
        }
        Ok(Example::new(ids, supervised))
    }

    fn text(&self, place: &str, record: &Map<String, Value>) -> Result<(Vec<u32>, Vec<bool>)> {
        let text = string(place, record, "text", Kind::Text)?;
        if text.is_empty() {
            return Err(fault(place, "`text` is empty", "leave the record out"));
        }
        let ids = self.encode(place, text, true)?;
        let supervised = vec![true; ids.len()];
        Ok((ids, supervised))
    }

    fn completion(&self, place: &str, record: &Map<String, Value>) -> Result<(Vec<u32>, Vec<bool>)> {
        let prompt = string(place, record, "prompt", Kind::Completion)?;
        let completion = string(place, record, "completion", Kind::Completion)?;
        if prompt.is_empty() && completion.is_empty() {
            return Err(fault(place, "`prompt` and `completion` are empty", "leave the record out"));
        }
        // Generation goes on from exactly these.
        let before = self.tokenizer.encode_prompt(prompt).map_err(|e| cannot_encode(place, e))?;
        let joined = self.encode(place, &format!("{prompt}{completion}"), true)?;
        // A tokenizer may write the start of a text otherwise than the same letters inside one, so the completion is
        // tokenised where it stands; unless that would merge its start with the end of the prompt.
        let ids = if joined.starts_with(&before) {
            joined
        } else {
            let completion = self.encode(place, completion, false)?;
            [&before[..], &completion].concat()
        };
        let supervised = (0..ids.len()).map(|i| !self.mask_prompt || i >= before.len()).collect();
        Ok((ids, supervised))
    }

    fn messages(&self, place: &str, record: &Map<String, Value>) -> Result<Example> {
        let Some(template) = self.chat_template else {
            let hint = "give that of the model, if it has one; or use records of `prompt` and `completion`";
            return Err(fault(place, "`messages` need a chat template, and there is none", hint));
        };
        let messages = messages(place, field(place, record, "messages", Kind::Messages)?)?;
        let tools = match record.get("tools") {
            None | Some(Value::Null) => None,
            Some(Value::Array(tools)) => Some(tools.clone()),
            Some(other) => return Err(wrong(place, "tools", other, "a list of JSON schemas")),
        };
        let options = ChatOptions { tools, ..ChatOptions::default() };
        let text = |e| Error::Record { place: place.into(), source: Box::new(e) };
        if !self.mask_prompt {
            let ids = self.encode(place, &template.apply(&messages, &options).map_err(text)?, false)?;
            let supervised = vec![true; ids.len()];
            return Ok(Example::new(ids, supervised));
        }
        let (rendered, ranges) = template.render_with_assistant_ranges(&messages, &options).map_err(text)?;
        let (ids, supervised) = self.tokenizer.encode_with_mask(&rendered, &ranges).map_err(text)?;
        Ok(Example::new(ids, supervised))
    }

    fn encode(&self, place: &str, text: &str, special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, special).map_err(|e| cannot_encode(place, e))
    }
}

fn cannot_encode(place: &str, error: mc_text::Error) -> Error {
    Error::Record { place: place.into(), source: Box::new(error) }
}

fn messages(place: &str, value: &Value) -> Result<Vec<Message>> {
    let list = value.as_array().ok_or_else(|| wrong(place, "messages", value, "a list of messages"))?;
    if list.is_empty() {
        return Err(fault(place, "`messages` is empty", "leave the record out"));
    }
    let message = |(at, value): (usize, &Value)| {
        let name = format!("messages[{at}]");
        let Some(fields) = value.as_object() else { return Err(wrong(place, &name, value, "an object")) };
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => return Err(wrong(place, &format!("{name}.role"), other, "a string")),
            None => return Err(fault(place, format!("`{name}` has no `role`"), "a message has a role and a content")),
        }
        if let Some(other) = fields.get("content").filter(|c| !(c.is_string() || c.is_array() || c.is_null())) {
            return Err(wrong(place, &format!("{name}.content"), other, "a string or a list of parts"));
        }
        serde_json::from_value(value.clone()).map_err(|e| fault(place, format!("`{name}`: {e}"), KEYS))
    };
    list.iter().enumerate().map(message).collect()
}

fn parse(place: &str, line: &str) -> Result<Map<String, Value>> {
    let hint = "each line is one JSON object";
    match serde_json::from_str(line) {
        Ok(Value::Object(record)) => Ok(record),
        Ok(other) => Err(fault(place, format!("found {}, expected an object", kind_of(&other)), hint)),
        Err(e) => {
            // The line in serde's message would be that within this line.
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            Err(fault(place, format!("not JSON at column {}: {what}", e.column()), hint))
        }
    }
}

fn string<'a>(place: &str, record: &'a Map<String, Value>, name: &str, kind: Kind) -> Result<&'a str> {
    let value = field(place, record, name, kind)?;
    value.as_str().ok_or_else(|| wrong(place, name, value, "a string"))
}

fn field<'a>(place: &str, record: &'a Map<String, Value>, name: &str, kind: Kind) -> Result<&'a Value> {
    record.get(name).ok_or_else(|| match Kind::of_record(record) {
        Some(other) if other != kind => fault(
            place,
            format!("a record with {} among records with {}", other.keys(), kind.keys()),
            "keep records of different kinds in different files",
        ),
        _ => fault(
            place,
            format!("no `{name}` in a record with {}", keys(record)),
            "the first record decides which keys all have",
        ),
    })
}

fn wrong(place: &str, name: &str, found: &Value, expected: &str) -> Error {
    fault(place, format!("`{name}` is {}, expected {expected}", kind_of(found)), "mend the record or leave it out")
}

fn fault(place: &str, what: impl Into<String>, hint: &str) -> Error {
    Error::Data { place: place.into(), what: what.into(), hint: hint.into() }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The first few keys of a record, for a message of one line.
fn keys(record: &Map<String, Value>) -> String {
    if record.is_empty() {
        return "no keys".into();
    }
    let shown = |key: &String| format!("`{}`", key.chars().take(40).collect::<String>().escape_debug());
    let more = if record.len() > 5 { ", …" } else { "" };
    format!("the keys {}{more}", record.keys().take(5).map(shown).collect::<Vec<_>>().join(", "))
}
