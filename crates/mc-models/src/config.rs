//! `config.json`, in the style of transformers 5 and of the versions before it, checked before anything is allocated.

use crate::{Error, Result, RopeConfig, RopeScaling, llama, mistral, qwen2, qwen3};
use mc_checkpoint::ModelDir;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The architectures there is a file for, by their `model_type`.
pub const SUPPORTED: [&str; 4] = ["qwen2", "llama", "mistral", "qwen3"];

/// Sizes and settings of a decoder; field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the file, each independent of the others")]
pub struct ModelConfig {
    /// The architecture.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides the number of query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding; `None` if the file does not say: then the weights do.
    pub tie_word_embeddings: Option<bool>,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Per block, how many tokens its attention sees; `None` is all.
    pub sliding_windows: Vec<Option<usize>>,
}

impl ModelConfig {
    /// Reads the configuration of a model directory.
    ///
    /// # Errors
    /// If the architecture is unknown, or a field is missing, out of range or at odds with another; the error names it.
    pub fn read(dir: &ModelDir) -> Result<Self> {
        Self::from_json(&dir.file_name("config.json"), &dir.config_json()?)
    }

    /// Reads a configuration; `file` is named in errors.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn from_json(file: &str, json: &Value) -> Result<Self> {
        let fields = Fields::new(file, json)?;
        let model_type = fields.text("model_type")?;
        let mut config = fields.decoder(&model_type)?;
        match model_type.as_str() {
            "qwen2" => qwen2::configure(&mut config, &fields)?,
            "llama" => llama::configure(&mut config, &fields)?,
            "mistral" => mistral::configure(&mut config, &fields)?,
            "qwen3" => qwen3::configure(&mut config, &fields)?,
            _ => return Err(Error::Architecture { file: file.into(), found: model_type }),
        }
        Ok(config)
    }
}

/// The fields of a configuration, read one by one with the limits they have to keep.
pub(crate) struct Fields<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(file: &'a str, json: &'a Value) -> Result<Self> {
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

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn text(&self, field: &str) -> Result<String> {
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

    fn required_size(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.size(field, range)?.ok_or_else(|| self.error(field, "is missing"))
    }

    pub(crate) fn number(&self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let problem = || format!("is {value}, expected a number from {:e} to {:e}", range.start(), range.end());
        let number = value.as_f64().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| self.error(field, problem()))
    }

    fn object(&self, field: &str) -> Result<Option<Fields<'a>>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, map })),
            Some(v) => Err(self.error(field, format!("is {v}, expected an object"))),
        }
    }

    /// What all decoders have in common. The limits are generous, and keep a damaged file from asking for all memory.
    fn decoder(&self, model_type: &str) -> Result<ModelConfig> {
        if !SUPPORTED.contains(&model_type) {
            return Err(Error::Architecture { file: self.file.into(), found: model_type.into() });
        }
        let hidden_size = self.required_size("hidden_size", 1..=131_072)?;
        let num_hidden_layers = self.required_size("num_hidden_layers", 1..=1_024)?;
        let num_attention_heads = self.required_size("num_attention_heads", 1..=1_024)?;
        let num_key_value_heads = self.size("num_key_value_heads", 1..=1_024)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let problem =
                format!("is {num_key_value_heads}, which does not divide {num_attention_heads} attention heads");
            return Err(self.error("num_key_value_heads", problem));
        }
        let head_dim = match self.size("head_dim", 2..=2_048)? {
            Some(d) => d,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let problem = format!(
                    "is {hidden_size}, which {num_attention_heads} heads do not divide, and there is no `head_dim`"
                );
                return Err(self.error("hidden_size", problem));
            }
        };
        if head_dim % 2 != 0 {
            return Err(
                self.error("head_dim", format!("is {head_dim}, expected an even number: rotation works on pairs"))
            );
        }
        if let Some(act) = self.get("hidden_act")
            && !matches!(act.as_str(), Some("silu" | "swish"))
        {
            return Err(self.error("hidden_act", format!("is {act}, expected \"silu\"")));
        }
        Ok(ModelConfig {
            model_type: model_type.into(),
            vocab_size: self.required_size("vocab_size", 1..=10_000_000)?,
            hidden_size,
            intermediate_size: self.required_size("intermediate_size", 1..=1_048_576)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: self.number("rms_norm_eps", 0.0..=0.1)?.unwrap_or(1e-6),
            max_position_embeddings: self.size("max_position_embeddings", 1..=1 << 30)?.unwrap_or(2048),
            tie_word_embeddings: self
                .get("tie_word_embeddings")
                .map(|_| self.flag("tie_word_embeddings", false))
                .transpose()?,
            rope: self.rope()?,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sliding_windows: vec![None; num_hidden_layers],
        })
    }

    /// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` at the top.
    fn rope(&self) -> Result<RopeConfig> {
        const BASES: RangeInclusive<f64> = 1.0..=1e12;
        let (theta, scaling) = match self.object("rope_parameters")? {
            Some(rope) => (rope.number("rope_theta", BASES)?.or(self.number("rope_theta", BASES)?), Some(rope)),
            None => (self.number("rope_theta", BASES)?, self.object("rope_scaling")?),
        };
        let scaling = scaling.map_or(Ok(RopeScaling::Default), |s| s.rope_scaling())?;
        for fields in [Some(self), self.object("rope_parameters")?.as_ref()].into_iter().flatten() {
            if fields.number("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|f| f < 1.0) {
                return Err(self.error("partial_rotary_factor", "is below 1: partial rotation is not supported"));
            }
        }
        Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), scaling })
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let kind = match (self.get("rope_type"), self.get("type")) {
            (None, None) => return Ok(RopeScaling::Default),
            (Some(_), _) => self.text("rope_type")?,
            (None, Some(_)) => self.text("type")?,
        };
        let required = |field: &str, range| self.number(field, range)?.ok_or_else(|| self.error(field, "is missing"));
        match kind.as_str() {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: required("factor", 1.0..=1e6)? }),
            "llama3" => {
                let low_freq_factor = required("low_freq_factor", 1e-6..=1e6)?;
                let high_freq_factor = required("high_freq_factor", 1e-6..=1e6)?;
                if low_freq_factor >= high_freq_factor {
                    let problem =
                        format!("is {high_freq_factor}, expected more than `low_freq_factor` {low_freq_factor}");
                    return Err(self.error("high_freq_factor", problem));
                }
                Ok(RopeScaling::Llama3 {
                    factor: required("factor", 1.0..=1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: required("original_max_position_embeddings", 1.0..=1e9)?,
                })
            }
            other => Err(self.error("rope_type", format!("is \"{other}\", supported are default, linear, llama3"))),
        }
    }

    /// The window of each block: `layer_types` decides where it is there, else `sliding` by index.
    pub(crate) fn sliding_windows(&self, layers: usize, sliding: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        let window = self.size("sliding_window", 1..=1 << 30)?;
        let types = match self.get("layer_types") {
            None => return Ok((0..layers).map(|i| window.filter(|_| sliding(i))).collect()),
            Some(Value::Array(types)) if types.len() == layers => types,
            Some(v) => return Err(self.error("layer_types", format!("is {v}, expected a list of {layers}"))),
        };
        let one = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            Some("sliding_attention") => {
                Err(self.error("sliding_window", "is missing, but `layer_types` has sliding layers"))
            }
            _ => Err(self.error("layer_types", format!("has {kind}, expected full_attention or sliding_attention"))),
        };
        types.iter().map(one).collect()
    }
}
