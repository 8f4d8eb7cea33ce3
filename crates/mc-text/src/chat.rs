//! Conversations to text through a model's chat template. Knows nothing about tokens but their spelling.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use minijinja::Environment;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::TokenizerConfig;
use crate::error::one_line;
use crate::{Error, Result, TokenizerFiles, assistant_ranges, jinja};

/// One message of a conversation; fields of any other name are kept and given to the template.
///
/// ```
/// let message: mc_text::Message =
///     serde_json::from_str(r#"{"role": "assistant", "content": null, "tool_calls": []}"#).unwrap();
/// assert_eq!(message.role, "assistant");
/// assert!(message.extra.contains_key("tool_calls"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// A text, or a list of parts; null is the same as absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Everything else: `tool_calls`, `name`, `reasoning_content`, ….
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Value::String(content.into())), extra: Map::new() }
    }

    /// The content, if it is plain text.
    pub fn text(&self) -> Option<&str> {
        self.content.as_ref()?.as_str()
    }
}

/// What a template is given besides the messages.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    /// Whether the text ends with the start of an assistant's turn, for the model to go on.
    pub add_generation_prompt: bool,
    /// Tools the model may call, each a JSON schema.
    pub tools: Option<Vec<Value>>,
    /// The template's name where a model has several; none: `tool_use` if there are tools and it exists, else `default`.
    pub template: Option<String>,
    /// More variables for the template, such as `enable_thinking`.
    pub extra: Map<String, Value>,
}

/// A model's chat template.
///
/// It renders what transformers' `apply_chat_template` renders. Encode the text without adding special tokens: they are
/// in it.
///
/// ```
/// use mc_text::{ChatOptions, ChatTemplate, Message};
///
/// let template = ChatTemplate::from_source(
///     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
///      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
///     [],
/// )?;
/// let options = ChatOptions { add_generation_prompt: true, ..Default::default() };
/// let text = template.apply(&[Message::new("user", "Hi")], &options)?;
/// assert_eq!(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
/// # Ok::<(), mc_text::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    templates: BTreeMap<String, Origin>,
    special_tokens: Map<String, Value>,
}

/// Where a template comes from, and what it can do.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) generation_blocks: bool,
}

impl ChatTemplate {
    /// Loads the chat template of a model directory; a base model has none.
    pub fn load(directory: impl AsRef<Path>) -> Result<Option<Self>> {
        Self::from_files(&TokenizerFiles::read_templates(directory.as_ref())?)
    }

    /// Makes a chat template of files in memory; template files override `chat_template` in tokenizer_config.json.
    pub fn from_files(files: &TokenizerFiles) -> Result<Option<Self>> {
        let config = TokenizerConfig::parse(files)?;
        let special_tokens = config.named_tokens.into_iter().map(|(name, token)| (name, token.content));
        let origin = |file: &str| files.directory.join(file).display().to_string();

        let default = files
            .chat_template
            .iter()
            .map(|source| ("default".to_string(), origin("chat_template.jinja"), source.to_string()));
        let additional = files.additional_chat_templates.iter().map(|(name, source)| {
            let file = format!("additional_chat_templates/{name}.jinja");
            (name.clone(), origin(&file), source.to_string())
        });
        let mut sources: Vec<_> = default.chain(additional).collect();
        if sources.is_empty() {
            let in_config =
                |(name, field, source)| (name, format!("{}: `{field}`", origin("tokenizer_config.json")), source);
            sources = config.chat_templates.into_iter().map(in_config).collect();
        }
        if sources.is_empty() {
            return Ok(None);
        }
        Self::compile(sources, special_tokens.collect()).map(Some)
    }

    /// Makes a chat template of its text and the special tokens it may name, such as `("eos_token", "</s>")`.
    pub fn from_source<'a>(source: &str, special_tokens: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let special_tokens = special_tokens.into_iter().map(|(name, token)| (name.to_string(), token.to_string()));
        let source = ("default".to_string(), "chat template".to_string(), source.to_string());
        Self::compile(vec![source], special_tokens.collect())
    }

    /// The same template at a time, in seconds since 1970: what `strftime_now` tells, in local time. Without it that is the time of each call.
    pub fn at(mut self, seconds: i64) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| jinja::strftime(seconds, format));
        self
    }

    /// The conversation as text.
    pub fn apply(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let (name, origin) = self.select(options)?;
        render(&self.environment, name, origin, &self.context(messages, options))
    }

    /// The conversation as text, and the byte ranges of it that the assistant wrote: what training should supervise.
    ///
    /// With `{% generation %}` blocks in the template the ranges are theirs. Else each is what a turn adds to the prompt
    /// for it, its end-of-turn token included. Every assistant turn has its range; they ascend and do not overlap.
    ///
    /// ```
    /// use mc_text::{ChatOptions, ChatTemplate, Message};
    ///
    /// let template = ChatTemplate::from_source(
    ///     "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
    ///      {% if add_generation_prompt %}<|assistant|>{% endif %}",
    ///     [],
    /// )?;
    /// let messages = [Message::new("user", "2+2?"), Message::new("assistant", "4")];
    /// let (text, ranges) = template.render_with_assistant_ranges(&messages, &ChatOptions::default())?;
    /// assert_eq!(&text[ranges[0].clone()], "4<|end|>");
    /// # Ok::<(), mc_text::Error>(())
    /// ```
    pub fn render_with_assistant_ranges(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let (name, origin) = self.select(options)?;
        if !origin.generation_blocks {
            let render = |messages: &[Message], add_generation_prompt| {
                let mut context = self.context(messages, options);
                context.insert("add_generation_prompt".into(), Value::Bool(add_generation_prompt));
                render(&self.environment, name, origin, &context)
            };
            return assistant_ranges::by_comparison(messages, options.add_generation_prompt, &origin.name, render);
        }
        let context = self.context(messages, options);
        let (open, close) = assistant_ranges::markers(&Value::Object(context.clone()).to_string());
        let mut environment = self.environment.clone();
        environment.add_filter(jinja::GENERATION, move |body: String| format!("{open}{body}{close}"));
        let marked = render(&environment, name, origin, &context)?;
        Ok(assistant_ranges::by_markers(&marked, open, close))
    }

    fn compile(sources: Vec<(String, String, String)>, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let syntax = |origin: &str, error: &minijinja::Error| Error::TemplateSyntax {
            template: origin.to_string(),
            line: error.line().unwrap_or(1),
            reason: reason(error),
        };
        let mut environment = jinja::environment().map_err(|error| syntax("chat template", &error))?;
        let mut templates = BTreeMap::new();
        for (name, origin, source) in sources {
            // As jinja does, in texts of the template too.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let rewritten = jinja::without_generation_tags(&source);
            let generation_blocks = rewritten.is_some();
            environment
                .add_template_owned(name.clone(), rewritten.unwrap_or(source))
                .map_err(|error| syntax(&origin, &error))?;
            templates.insert(name, Origin { name: origin, generation_blocks });
        }
        let special_tokens = special_tokens.into_iter().map(|(name, token)| (name, Value::String(token))).collect();
        Ok(Self { environment, templates, special_tokens })
    }

    fn select(&self, options: &ChatOptions) -> Result<(&str, &Origin)> {
        let wanted = match &options.template {
            Some(name) => name,
            None if self.templates.len() == 1 => self.templates.keys().next().map_or("default", String::as_str),
            None if options.tools.is_some() && self.templates.contains_key("tool_use") => "tool_use",
            None => "default",
        };
        match self.templates.get_key_value(wanted) {
            Some((name, origin)) => Ok((name, origin)),
            None => Err(Error::UnknownTemplate {
                name: wanted.to_string(),
                known: self.templates.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The variables of a template: special tokens, the caller's own, and the fixed ones, which always exist.
    fn context(&self, messages: &[Message], options: &ChatOptions) -> Map<String, Value> {
        let mut context = self.special_tokens.clone();
        context.insert("documents".into(), Value::Null);
        context.extend(options.extra.clone());
        context.insert("messages".into(), messages.iter().map(message_value).collect());
        context.insert("tools".into(), options.tools.clone().map_or(Value::Null, Value::Array));
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        context
    }
}

fn render(environment: &Environment, name: &str, origin: &Origin, context: &Map<String, Value>) -> Result<String> {
    let rendered =
        environment.get_template(name).and_then(|template| template.render(minijinja::value::Serde(context)));
    rendered.map_err(|error| match jinja::raised(&error) {
        Some(message) => Error::TemplateRaised { template: origin.name.clone(), message: one_line(message) },
        None => Error::TemplateRender {
            template: origin.name.clone(),
            line: error.line().unwrap_or(1),
            reason: reason(&error),
        },
    })
}

/// A message as templates see it in transformers: without null fields, and with reasoning, which goes by three names,
/// under `reasoning_content` and `thinking` whichever was used.
fn message_value(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    let content = message.content.iter().map(|content| ("content".to_string(), content.clone()));
    let extra = message.extra.iter().map(|(name, value)| (name.clone(), value.clone()));
    fields.extend(content.chain(extra).filter(|(_, value)| !value.is_null()));
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| fields.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    Value::Object(fields)
}

/// What the template engine says, in one line and without the source listing.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => one_line(detail),
        None => one_line(error.kind()),
    }
}
