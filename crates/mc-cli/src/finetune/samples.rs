//! What the model says before and after: one sample for the eye, and exact answers counted where the data has them.

use crate::{global::Global, source::Source};
use anyhow::Result;
use metal_candle::{
    inference::{self, Generator, GeneratorConfig},
    models::{Adapter, Model},
    text::Message,
};
use serde_json::Value;
use std::sync::Arc;

/// A request and, if the data has one, its answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    prompt: Prompt,
    answer: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Prompt {
    Text(String),
    Chat(Vec<Message>),
}

impl Request {
    /// The request of a training record; `None` if it has no beginning to continue.
    pub(crate) fn of_record(line: &str) -> Option<Self> {
        let record: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        if let (Some(prompt), Some(completion)) = (text("prompt"), text("completion")) {
            return Some(Self { prompt: Prompt::Text(prompt.into()), answer: Some(completion.into()) });
        }
        if let Some(messages) = record.get("messages") {
            let messages: Vec<Message> = serde_json::from_value(messages.clone()).ok()?;
            let before = messages.iter().take_while(|m| m.role != "assistant").cloned().collect::<Vec<_>>();
            return (!before.is_empty()).then_some(Self { prompt: Prompt::Chat(before), answer: None });
        }
        // The first words of a text, at most half of it.
        let words: Vec<&str> = text("text")?.split_inclusive(' ').collect();
        let start = words[..(words.len() / 2).min(12)].concat();
        (!start.trim().is_empty()).then(|| Self { prompt: Prompt::Text(start.trim_end().into()), answer: None })
    }

    /// The request as a person would type it.
    pub(crate) fn text(&self) -> &str {
        match &self.prompt {
            Prompt::Text(text) => text,
            Prompt::Chat(messages) => messages.last().and_then(Message::text).unwrap_or_default(),
        }
    }

    pub(crate) fn is_chat(&self) -> bool {
        matches!(self.prompt, Prompt::Chat(_))
    }
}

/// Asks a model, with or without an adapter.
pub(crate) struct Asker(Generator);

impl Asker {
    pub(crate) fn new(
        source: &Source,
        model: &Model,
        adapter: Option<Arc<dyn Adapter>>,
        max_tokens: usize,
    ) -> Result<Self> {
        let eos_token_ids = source.eos_token_ids()?;
        let config = GeneratorConfig { max_tokens, eos_token_ids, ..GeneratorConfig::default() };
        let generator = Generator::new(model.clone(), source.tokenizer.clone(), config)?;
        let generator = generator.with_chat_template(source.chat_template.clone());
        Ok(Self(match adapter {
            Some(adapter) => generator.with_adapter(adapter),
            None => generator,
        }))
    }

    /// What the model answers, by the likeliest tokens.
    pub(crate) fn ask(&self, request: &Request) -> Result<String> {
        Ok(match &request.prompt {
            Prompt::Text(prompt) => self.0.generate(prompt)?.text,
            Prompt::Chat(messages) => self.0.chat(messages)?.text,
        })
    }

    /// What the model answers for the eye; `None`, with a reason for the person, if the request cannot be asked.
    pub(crate) fn sample(&self, global: &Global, request: &Request) -> Result<Option<String>> {
        match self.ask(request) {
            Err(error) if is_no_prompt(&error) => {
                global.say(format!("no sample is shown: {error:#}"));
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    /// How many requests are answered exactly, but for spaces around.
    pub(crate) fn exact(&self, requests: &[Request]) -> Result<usize> {
        let mut exact = 0;
        for request in requests {
            let answer = request.answer.as_deref().map(str::trim);
            exact += usize::from(Some(self.ask(request)?.trim()) == answer);
        }
        Ok(exact)
    }
}

/// Whether a request cannot be asked, though its record may be good to train on: it has no first token, is longer than the context, or the
/// template refuses a conversation that ends there.
fn is_no_prompt(error: &anyhow::Error) -> bool {
    use inference::Error::{EmptyPrompt, NoChatTemplate, PromptTooLong, Text};
    matches!(error.downcast_ref(), Some(EmptyPrompt | NoChatTemplate | PromptTooLong { .. } | Text(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_has_a_request() {
        let request = |line| Request::of_record(line).map(|r| (r.text().to_string(), r.answer.clone(), r.is_chat()));
        assert_eq!(request(r#"{"prompt":"a","completion":" b"}"#), Some(("a".into(), Some(" b".into()), false)));
        assert_eq!(request(r#"{"text":"one two three four"}"#), Some(("one two".into(), None, false)));
        let chat = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"x"}]}"#;
        assert_eq!(request(chat), Some(("u".into(), None, true)));
        assert_eq!(request(r#"{"text":"one"}"#), None);
        assert_eq!(request("nonsense"), None);
    }
}
