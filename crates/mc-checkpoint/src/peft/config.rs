//! `adapter_config.json`: its fields as PEFT writes them, and which of them we must refuse. Knows no tensors.

use crate::{Error, Result};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// What PEFT's `adapter_config.json` says of a LoRA adapter. Fields not listed here are ignored, except those that
/// change what the adapter computes: they are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "PEFT's fields, one by one")]
pub struct PeftConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// What the model is for, `CAUSAL_LM` for text generation.
    pub task_type: Option<String>,
    /// The model that the adapter was trained on: a path or an id on the hub.
    pub base_model_name_or_path: Option<String>,
    /// The revision of that model.
    pub revision: Option<String>,
    /// Whether PEFT loads it frozen.
    pub inference_mode: bool,
    /// The rank, at least 1.
    pub r: usize,
    /// The numerator of the scale `lora_alpha / r`, or `lora_alpha / √r` under rsLoRA.
    #[serde(serialize_with = "whole_as_integer")]
    pub lora_alpha: f64,
    /// The share of an adapter's inputs that training drops, 0 to 1.
    #[serde(serialize_with = "whole_as_integer")]
    pub lora_dropout: f64,
    /// The modules that are adapted.
    pub target_modules: TargetModules,
    /// Modules that are not adapted although they match.
    pub exclude_modules: Option<TargetModules>,
    /// Always `none`.
    pub bias: String,
    /// Whether the base's weights are stored (in, out).
    pub fan_in_fan_out: bool,
    /// Whether the scale is `lora_alpha / √r`.
    pub use_rslora: bool,
    /// Whether each output row is given a magnitude of its own (DoRA).
    pub use_dora: bool,
    /// Modules that are replaced as a whole.
    #[serde(deserialize_with = "none_one_or_many")]
    pub modules_to_save: Option<Vec<String>>,
    /// Other ranks for modules whose name matches; the first pattern that matches counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Other alphas for modules whose name matches; the first pattern that matches counts.
    pub alpha_pattern: IndexMap<String, f64>,
    /// The only layers that are adapted.
    #[serde(deserialize_with = "none_one_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// What the list of layers is called in module names, where it cannot be guessed.
    #[serde(deserialize_with = "none_one_or_many")]
    pub layers_pattern: Option<Vec<String>>,
    /// How training started: true or the name of a method.
    pub init_lora_weights: Value,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: None,
            revision: None,
            inference_mode: true,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            exclude_modules: None,
            bias: "none".into(),
            fan_in_fan_out: false,
            use_rslora: false,
            use_dora: false,
            modules_to_save: None,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            layers_to_transform: None,
            layers_pattern: None,
            init_lora_weights: Value::Bool(true),
        }
    }
}

/// Which modules an adapter is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Those whose name equals an entry or ends in `.` and an entry.
    Names(Vec<String>),
    /// Those whose whole name matches a regular expression.
    Pattern(String),
    /// Every linear layer but the output head.
    AllLinear,
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Names(vec![])
    }
}

/// Fields that change what an adapter computes in ways that are not implemented.
const REFUSED: [&str; 10] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
    "target_parameters",
];

/// Ways to start that leave the base model's weights as they are. The others (`pissa`, `olora`, `corda`, `loftq`, …)
/// change them, so that the adapter is wrong on the model as it is.
const PLAIN_INIT: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];

impl PeftConfig {
    /// Reads the JSON text of `adapter_config.json`; `file` is what errors call it.
    ///
    /// # Errors
    /// If it is not JSON of that form, not of a LoRA adapter in PEFT's format, or of a kind that is not supported.
    ///
    /// ```
    /// use mc_checkpoint::{PeftConfig, TargetModules};
    /// let text = br#"{"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}"#;
    /// let config = PeftConfig::from_json("adapter_config.json", text)?;
    /// assert_eq!((config.r, config.target_modules), (4, TargetModules::AllLinear));
    /// # Ok::<(), mc_checkpoint::Error>(())
    /// ```
    pub fn from_json(file: &str, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text).map_err(Error::json(file))?;
        let Value::Object(fields) = &value else { return Err(Error::invalid(file, "not a JSON object")) };
        if fields.contains_key("fine_tune_type") {
            return Err(mlx(file));
        }
        for field in ["peft_type", "r", "lora_alpha", "target_modules"] {
            if fields.get(field).is_none_or(Value::is_null) {
                return Err(Error::invalid(file, format!("`{field}` is missing")));
            }
        }
        for field in REFUSED {
            if let Some(value) = fields.get(field).filter(|v| truthy(v)) {
                return Err(unsupported(file, format!("`{field}` is {value}, which is not supported"), MERGE));
            }
        }
        // From the text, not the value: so an error has its line and column.
        let config: Self = serde_json::from_slice(text).map_err(Error::json(file))?;
        config.check(file)?;
        Ok(config)
    }

    /// Checks what the types do not; `file` is what errors call the configuration.
    ///
    /// # Errors
    /// If a value is out of its range or not supported.
    pub fn check(&self, file: &str) -> Result<()> {
        let invalid = |what: String| Err(Error::invalid(file, what));
        if self.peft_type != "LORA" {
            let what = format!("`peft_type` is \"{}\", only \"LORA\" is supported", self.peft_type);
            return Err(unsupported(file, what, MERGE));
        }
        if self.bias != "none" {
            let what = format!("`bias` is \"{}\", only \"none\" is supported", self.bias);
            return Err(unsupported(file, what, MERGE));
        }
        match &self.init_lora_weights {
            Value::Bool(_) => {}
            Value::String(s) if PLAIN_INIT.contains(&s.to_lowercase().as_str()) => {}
            other => {
                let what = format!("`init_lora_weights` is {other}, which changes the base model's weights");
                let hint = "save it in PEFT with path_initial_model_for_weight_conversion, which makes it plain LoRA";
                return Err(unsupported(file, what, hint));
            }
        }
        if self.r == 0 {
            return invalid("`r` is 0, expected at least 1".into());
        }
        if !self.lora_alpha.is_finite() {
            return invalid(format!("`lora_alpha` is {}, expected a finite number", self.lora_alpha));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return invalid(format!("`lora_dropout` is {}, expected at least 0 and below 1", self.lora_dropout));
        }
        if let Some((pattern, _)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return invalid(format!("`rank_pattern` gives \"{pattern}\" the rank 0, expected at least 1"));
        }
        if let Some((pattern, alpha)) = self.alpha_pattern.iter().find(|(_, a)| !a.is_finite()) {
            return invalid(format!("`alpha_pattern` gives \"{pattern}\" {alpha}, expected a finite number"));
        }
        Ok(())
    }
}

const MERGE: &str = "merge the adapter into its model with PEFT and use the merged model";

pub(super) fn mlx(file: &str) -> Error {
    let hint = "train it again here, or convert it to PEFT's format";
    unsupported(file, "this is an mlx-lm adapter, which this command does not support yet".into(), hint)
}

fn unsupported(file: &str, what: String, hint: &str) -> Error {
    Error::Unsupported { file: file.into(), what, hint: hint.into() }
}

/// As in Python.
fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Names(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
            Self::AllLinear => serializer.serialize_str("all-linear"),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of module names or a string")]
        enum Raw {
            Names(Vec<String>),
            Text(String),
        }
        Ok(match Raw::deserialize(deserializer)? {
            Raw::Names(names) => Self::Names(names),
            Raw::Text(text) if text.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            Raw::Text(text) => Self::Pattern(text),
        })
    }
}

fn none_one_or_many<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one value or a list")]
    enum Raw<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(Option::<Raw<T>>::deserialize(d)?.map(|raw| match raw {
        Raw::Many(all) => all,
        Raw::One(one) => vec![one],
    }))
}

/// PEFT declares alpha an integer: `16`, not `16.0`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn whole_as_integer<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    // Up to 2^53, each whole number has its own f64.
    if value.fract() == 0.0 && value.abs() < 9e15 && *value != 0.0 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}
