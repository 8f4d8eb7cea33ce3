//! What stands before texts: the prompts that a model was saved with.

use crate::{Result, directory::Object};
use serde_json::Value;

/// The prompts of `config_sentence_transformers.json`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prompts {
    /// By name, in the order of the file.
    pub(crate) named: Vec<(String, String)>,
    /// The name of the one that is used where none is asked for.
    default: Option<String>,
}

impl Prompts {
    /// Prompts of these other names are there and empty if the file has none.
    pub(crate) fn read(config: &Object, empty: &[&str]) -> Result<Self> {
        let mut named = vec![];
        for (name, prompt) in config.object("prompts")?.map {
            match prompt {
                Value::String(text) => named.push((name, text)),
                // As sentence-transformers has it.
                Value::Null => named.push((name, String::new())),
                other => return Err(config.wrong(&format!("prompts.{name}"), &other, "a string")),
            }
        }
        let default = config.text("default_prompt_name")?.map(str::to_string);
        let prompts = Self { named, default };
        match &prompts.default {
            Some(name) if prompts.get(name).is_none() && !empty.contains(&name.as_str()) => {
                let known: Vec<_> = prompts.named.iter().map(|(name, _)| name.as_str()).collect();
                let hint = match known.as_slice() {
                    [] => "it has none; name null there".into(),
                    known => format!("it has {}; name one of these, or null", known.join(", ")),
                };
                Err(config.error(&format!("`default_prompt_name` is `{name}`, which is no prompt of it"), Some(&hint)))
            }
            _ => Ok(prompts),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, prompt)| prompt.as_str())
    }

    /// What is used where none is asked for; empty if that is nothing.
    pub(crate) fn unasked(&self) -> &str {
        self.default.as_deref().and_then(|name| self.get(name)).unwrap_or_default()
    }
}
