//! Text in, text out: tokenizer, engine, detokenizer and stop strings in a row. Knows nothing of logits.

use crate::{Error, FinishReason, Result, SamplingStrategy, TokenOptions, generate_tokens};
use candle_core::Device;
use mc_checkpoint::GenerationConfig;
use mc_models::{Adapter, KVCache, KVCacheConfig, Model, ModelLoader, open_model};
use mc_text::{ChatOptions, ChatTemplate, Message, StopStrings, Tokenizer, TokenizerFiles};
use serde::Serialize;
use std::{path::Path, sync::Arc, time::Duration};

/// How a [`Generator`] chooses tokens, and when it stops. The default takes the likeliest token, 256 times.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorConfig {
    /// The most tokens to generate, at least 1; the model's context may allow fewer.
    pub max_tokens: usize,
    /// What logits are divided by before a token is drawn; 0 takes the likeliest token, and no filter matters.
    pub temperature: f64,
    /// Keeps the `k` likeliest tokens; at least 1.
    pub top_k: Option<usize>,
    /// Keeps the likeliest tokens that together have this probability, in (0, 1].
    pub top_p: Option<f64>,
    /// Keeps tokens at least this times as likely as the likeliest, in [0, 1].
    pub min_p: Option<f64>,
    /// What the logits of tokens that were there already, in the prompt too, are divided by; above 0, 1 is no penalty.
    pub repetition_penalty: f64,
    /// Names the random choices: the same seed, prompt and options give the same text.
    pub seed: u64,
    /// Texts that end the generation; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the generation, as [`mc_checkpoint::ModelDir::generation_config`] finds them; if there are
    /// none, the tokenizer's.
    pub eos_token_ids: Vec<u32>,
    /// Goes on after such a token, up to `max_tokens`.
    pub ignore_eos: bool,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            eos_token_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl GeneratorConfig {
    /// What the model's makers recommend; what they leave open is as in the default, but for a temperature of 1 where
    /// they want sampling.
    ///
    /// ```
    /// use mc_checkpoint::GenerationConfig;
    /// use mc_infer::GeneratorConfig;
    /// let recommended = GenerationConfig { do_sample: true, top_k: Some(20), ..GenerationConfig::default() };
    /// let config = GeneratorConfig { max_tokens: 32, ..GeneratorConfig::from_generation_config(&recommended) };
    /// assert_eq!((config.temperature, config.top_k), (1.0, Some(20)));
    /// ```
    pub fn from_generation_config(recommended: &GenerationConfig) -> Self {
        Self {
            temperature: if recommended.do_sample { recommended.temperature.unwrap_or(1.0) } else { 0.0 },
            // In that file 0 means no limit.
            top_k: recommended.top_k.filter(|k| *k > 0),
            top_p: recommended.top_p,
            min_p: recommended.min_p,
            repetition_penalty: recommended.repetition_penalty.unwrap_or(1.0),
            eos_token_ids: recommended.eos_token_ids.clone(),
            ..Self::default()
        }
    }

    /// Checks every setting, which needs no model.
    ///
    /// # Errors
    /// If one is out of its range.
    pub fn check(&self) -> Result<()> {
        self.token_options(None).map(|_| ())
    }

    fn token_options(&self, tokenizer: Option<&Tokenizer>) -> Result<TokenOptions> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Option {
                option: "stop",
                found: "an empty text".into(),
                expected: "a text to look for",
            });
        }
        let sample = |temperature| SamplingStrategy::Sample {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
        };
        // A filter out of its range is a mistake even where no filter matters.
        sample(1.0).check()?;
        let eos_token_ids = match self.eos_token_ids.as_slice() {
            _ if self.ignore_eos => Vec::new(),
            [] => tokenizer.and_then(Tokenizer::eos_token_id).into_iter().collect(),
            ids => ids.to_vec(),
        };
        let options = TokenOptions {
            max_tokens: self.max_tokens,
            strategy: if self.temperature == 0.0 { SamplingStrategy::Greedy } else { sample(self.temperature) },
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            eos_token_ids,
            ..TokenOptions::default()
        };
        options.check()?;
        Ok(options)
    }
}

/// A token as it comes, and the text that is certain with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StreamToken {
    /// Its id.
    pub id: u32,
    /// The text to append: empty while a character is incomplete or a stop string may be beginning.
    pub text: String,
    /// Why it is the last one, if it is.
    pub finish: Option<FinishReason>,
}

/// A generated text. It serialises to what `metal-candle generate --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// The text after the prompt, without the token or stop string that ended it.
    pub text: String,
    /// The ids of all tokens that were generated, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// How many tokens the prompt has.
    pub prompt_tokens: usize,
    /// Why the text ended.
    pub finish: FinishReason,
    /// Tokens of the prompt per second.
    pub prefill_tokens_per_second: f64,
    /// Tokens after the first per second; 0 if there are none.
    pub decode_tokens_per_second: f64,
}

/// Generates text with a model, and an adapter if it has one. A clone shares the model and everything else.
///
/// ```no_run
/// use candle_core::Device;
/// use mc_infer::{Generator, GeneratorConfig};
/// let generator = Generator::from_pretrained("models/qwen2.5-coder-0.5b", Device::Cpu)?;
/// let config = GeneratorConfig { max_tokens: 128, temperature: 0.7, ..generator.config().clone() };
/// let generation = generator.with_config(config)?.generate_stream("fn main() {", |token| {
///     print!("{}", token.text);
///     true
/// })?;
/// println!("\n{} tokens/s", generation.decode_tokens_per_second);
/// # Ok::<(), mc_infer::Error>(())
/// ```
#[derive(Clone)]
pub struct Generator {
    model: Model,
    tokenizer: Tokenizer,
    chat_template: Option<Arc<ChatTemplate>>,
    adapter: Option<Arc<dyn Adapter>>,
    config: GeneratorConfig,
    options: TokenOptions,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator")
            .field("model", &self.model)
            .field("tokenizer", &self.tokenizer)
            .field("adapter", &self.adapter.is_some())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// The generator of a model's directory, or of an id on the hub with the feature `hub` of mc-checkpoint.
    ///
    /// Its weights have the dtype of their files, its settings are those that its makers recommend
    /// ([`GeneratorConfig::from_generation_config`]), and it has its chat template, if there is one.
    ///
    /// # Errors
    /// If there is no such model, its files are not what they should be, or it recommends what is out of its range.
    pub fn from_pretrained(name: impl AsRef<Path>, device: Device) -> Result<Self> {
        let dir = open_model(&name, &mut |_| {})?;
        let files = TokenizerFiles::read(dir.path().unwrap_or(name.as_ref()))?;
        let recommended = dir.generation_config().map_err(mc_models::Error::from)?;
        let config = GeneratorConfig::from_generation_config(&recommended);
        let file = || dir.file_name("generation_config.json");
        config.check().map_err(|problem| Error::Recommended { file: file(), problem: Box::new(problem) })?;
        let model = ModelLoader::new().with_device(device).load_dir(&dir)?;
        let generator = Self::new(model, Tokenizer::from_files(&files)?, config)?;
        Ok(generator.with_chat_template(ChatTemplate::from_files(&files)?))
    }

    /// A generator without chat template and adapter.
    ///
    /// # Errors
    /// If a field of `config` is out of its range.
    pub fn new(model: Model, tokenizer: Tokenizer, config: GeneratorConfig) -> Result<Self> {
        let mut options = config.token_options(Some(&tokenizer))?;
        if options.eos_token_ids.is_empty() && !config.ignore_eos {
            tracing::warn!("no token is known that ends a text: generation goes on to max_tokens");
        }
        // A special token has no text in what is generated.
        options.eos_token_ids.extend(config.stop.iter().filter_map(|stop| tokenizer.special_text_id(stop)));
        Ok(Self { model, tokenizer, chat_template: None, adapter: None, config, options })
    }

    /// The settings.
    pub fn config(&self) -> &GeneratorConfig {
        &self.config
    }

    /// The model, to load an adapter for.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A generator with other settings that shares model, tokenizer, template and adapter: for one request, say.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn with_config(&self, config: GeneratorConfig) -> Result<Self> {
        let new = Self::new(self.model.clone(), self.tokenizer.clone(), config)?;
        Ok(Self { chat_template: self.chat_template.clone(), adapter: self.adapter.clone(), ..new })
    }

    /// Generates with this adapter; another generator of the same model may have another one.
    pub fn with_adapter(self, adapter: Arc<dyn Adapter>) -> Self {
        Self { adapter: Some(adapter), ..self }
    }

    /// Writes conversations down with this template, as [`ChatTemplate::load`] finds it.
    pub fn with_chat_template(self, template: impl Into<Option<ChatTemplate>>) -> Self {
        Self { chat_template: template.into().map(Arc::new), ..self }
    }

    /// The text after `prompt`.
    ///
    /// An empty prompt stands for the token that begins a text, if the tokenizer has one.
    ///
    /// # Errors
    /// If the prompt is empty without such a token or too long for the model's context, or the model or the tokenizer
    /// fails.
    pub fn generate(&self, prompt: &str) -> Result<Generation> {
        self.generate_stream(prompt, |_| true)
    }

    /// The text after `prompt`, each token handed to `on_token` as it comes; it returns false to stop.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_stream(&self, prompt: &str, on_token: impl FnMut(StreamToken) -> bool) -> Result<Generation> {
        let mut ids = self.tokenizer.encode_prompt(prompt)?;
        if ids.is_empty() {
            ids.extend(self.tokenizer.bos_token_id());
        }
        self.generate_ids(&ids, on_token)
    }

    /// The assistant's next turn in a conversation.
    ///
    /// # Errors
    /// If there is no chat template or it refuses the conversation; else as [`Generator::generate`].
    pub fn chat(&self, messages: &[Message]) -> Result<Generation> {
        self.chat_stream(messages, |_| true)
    }

    /// The assistant's next turn, each token handed to `on_token` as it comes; it returns false to stop.
    ///
    /// # Errors
    /// As [`Generator::chat`].
    pub fn chat_stream(&self, messages: &[Message], on_token: impl FnMut(StreamToken) -> bool) -> Result<Generation> {
        let template = self.chat_template.as_ref().ok_or(Error::NoChatTemplate)?;
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let text = template.apply(messages, &options)?;
        self.generate_ids(&self.tokenizer.encode(&text, false)?, on_token)
    }

    /// The text after a prompt of token ids, each token handed to `on_token` as it comes; it returns false to stop.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_ids(&self, prompt: &[u32], mut on_token: impl FnMut(StreamToken) -> bool) -> Result<Generation> {
        let config = KVCacheConfig::for_answer(&*self.model, prompt.len(), self.options.max_tokens);
        let mut cache = KVCache::new(&*self.model, config)?;
        let mut detokenizer = self.tokenizer.detokenizer(true);
        let mut stop = StopStrings::new(self.config.stop.clone());
        let mut text = String::new();
        let (mut stopped, mut failed) = (false, None);
        let on_id = |id, mut finish| {
            // The token that ends a text is no part of it, special or not.
            let piece = if finish == Some(FinishReason::Stop) { Ok(None) } else { detokenizer.push(id) };
            let piece = match piece {
                Ok(piece) => piece.unwrap_or_default(),
                Err(error) => {
                    failed = Some(error);
                    return false;
                }
            };
            let scan = stop.push(&piece);
            let mut emit = scan.emit;
            if scan.stopped {
                stopped = true;
                finish = Some(FinishReason::Stop);
            } else if finish.is_some() {
                emit += &stop.finish();
            }
            text += &emit;
            on_token(StreamToken { id, text: emit, finish }) && !stopped
        };
        let run = generate_tokens(&*self.model, prompt, &mut cache, self.adapter.as_deref(), &self.options, on_id)?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        Ok(Generation {
            text,
            prompt_tokens: prompt.len(),
            finish: if stopped { FinishReason::Stop } else { run.finish },
            prefill_tokens_per_second: per_second(prompt.len(), run.prefill_time),
            decode_tokens_per_second: per_second(run.tokens.len() - 1, run.decode_time),
            tokens: run.tokens,
        })
    }
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 { 0.0 } else { tokens as f64 / time.as_secs_f64().max(1e-9) }
}
