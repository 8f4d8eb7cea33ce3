//! `config.json`, in the style of transformers 5 and of the versions before it, checked before anything is allocated.

use crate::{Error, Result, RopeConfig, RopeScaling, fields::Fields, llama, mistral, qwen2, qwen3};
use mc_backend::ops::Gelu;
use mc_checkpoint::ModelDir;
use serde_json::Value;
use std::ops::RangeInclusive;

/// The architectures there is a file for, by their `model_type`.
pub const SUPPORTED: [&str; 4] = ["qwen2", "llama", "mistral", "qwen3"];

/// The architectures of encoders there is a file for, by their `model_type`.
pub const ENCODERS: [&str; 7] = ["bert", "mpnet", "xlm-roberta", "roberta", "camembert", "distilbert", "modernbert"];

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
        let (defaults, configure): (Defaults, Configure) = match model_type.as_str() {
            "qwen2" => (qwen2::DEFAULTS, qwen2::configure),
            "llama" => (llama::DEFAULTS, llama::configure),
            "mistral" => (mistral::DEFAULTS, mistral::configure),
            "qwen3" => (qwen3::DEFAULTS, qwen3::configure),
            _ => return Err(Error::Architecture { file: file.into(), found: model_type }),
        };
        let mut config = fields.decoder(model_type, &defaults)?;
        configure(&mut config, &fields)?;
        Ok(config)
    }
}

/// What an architecture makes of its own fields.
type Configure = fn(&mut ModelConfig, &Fields) -> Result<()>;

/// What a missing key means where architectures differ in it (transformers, `configuration_*.py`).
pub(crate) struct Defaults {
    /// `None`: as many as queries have, which null means everywhere.
    pub(crate) num_key_value_heads: Option<usize>,
    /// `None`: the heads share the width of the model.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
}

impl Fields<'_> {
    /// How many heads share the width of an encoder.
    pub(crate) fn heads(&self, field: &str, hidden_size: usize) -> Result<usize> {
        self.not_quantized()?;
        let heads = self.required_size(field, 1..=1_024)?;
        if !hidden_size.is_multiple_of(heads) {
            return Err(self.error(field, format!("is {heads}, which does not divide a width of {hidden_size}")));
        }
        Ok(heads)
    }

    /// The activation of an encoder.
    pub(crate) fn gelu(&self, field: &str) -> Result<Gelu> {
        match self.get(field).map(|v| (v, v.as_str())) {
            None | Some((_, Some("gelu"))) => Ok(Gelu::Exact),
            Some((_, Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast"))) => Ok(Gelu::Tanh),
            Some((found, _)) => Err(self.error(
                field,
                format!("is {found}, expected \"gelu\", \"gelu_new\", \"gelu_fast\" or \"gelu_pytorch_tanh\""),
            )),
        }
    }

    /// The rotation of one kind of layers: in `rope_parameters` under its name, or `old` at the top.
    pub(crate) fn rope_of(&self, kind: &str, old: &str, default: f64) -> Result<RopeConfig> {
        const BASES: RangeInclusive<f64> = 1.0..=1e12;
        let parameters = match self.object("rope_parameters")? {
            Some(all) => all.object(kind)?,
            None => None,
        };
        let theta = match &parameters {
            Some(parameters) => parameters.number("rope_theta", BASES)?,
            None => self.number(old, BASES)?,
        };
        let scaling = match (parameters, self.object("rope_scaling")?) {
            (Some(_), Some(scaling)) if !scaling.map.is_empty() => {
                return Err(self.error("rope_scaling", "stands beside `rope_parameters`, which is not supported"));
            }
            (Some(fields), _) | (None, Some(fields)) => fields.rope_scaling(self)?,
            (None, None) => RopeScaling::Default,
        };
        Ok(RopeConfig { theta: theta.unwrap_or(default), scaling })
    }

    fn not_quantized(&self) -> Result<()> {
        let Some(quantization) = self.get("quantization_config") else { return Ok(()) };
        // Read as they stand, such weights are wrong numbers: their scales lie in other tensors.
        let method = quantization.get("quant_method").unwrap_or(quantization);
        Err(self.error("quantization_config", format!("is {method}: quantized weights are not supported")))
    }

    /// What all decoders have in common. The limits are generous, and keep a damaged file from asking for all memory.
    fn decoder(&self, model_type: String, defaults: &Defaults) -> Result<ModelConfig> {
        self.not_quantized()?;
        if !self.flag("is_causal", true)? {
            return Err(self.error("is_causal", "is false: a decoder that sees what follows is not supported"));
        }
        let hidden_size = self.required_size("hidden_size", 1..=131_072)?;
        let num_hidden_layers = self.required_size("num_hidden_layers", 1..=1_024)?;
        let num_attention_heads = self.required_size("num_attention_heads", 1..=1_024)?;
        let missing = !self.map.contains_key("num_key_value_heads");
        let num_key_value_heads = self
            .size("num_key_value_heads", 1..=1_024)?
            .or(defaults.num_key_value_heads.filter(|_| missing))
            .unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let problem =
                format!("is {num_key_value_heads}, which does not divide {num_attention_heads} attention heads");
            return Err(self.error("num_key_value_heads", problem));
        }
        let head_dim = match self.size("head_dim", 2..=2_048)?.or(defaults.head_dim) {
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
            model_type,
            vocab_size: self.required_size("vocab_size", 1..=10_000_000)?,
            hidden_size,
            intermediate_size: self.required_size("intermediate_size", 1..=1_048_576)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: self.number("rms_norm_eps", 0.0..=0.1)?.unwrap_or(1e-6),
            max_position_embeddings: self
                .size("max_position_embeddings", 1..=1 << 30)?
                .unwrap_or(defaults.max_position_embeddings),
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

    /// `rope_scaling` where it says something, as people add it by hand, or else `rope_parameters` of transformers 5; with a base of its
    /// own or that at the top, and the length before scaling at the top or its own, as transformers 5.23 reads them.
    fn rope(&self) -> Result<RopeConfig> {
        const BASES: RangeInclusive<f64> = 1.0..=1e12;
        let old = self.object("rope_scaling")?.filter(|fields| !fields.map.is_empty());
        let scaling = match old {
            None => self.object("rope_parameters")?,
            old => old,
        };
        let own = scaling.as_ref().map(|fields| fields.number("rope_theta", BASES)).transpose()?.flatten();
        let theta = own.or(self.number("rope_theta", BASES)?);
        for fields in [Some(self), scaling.as_ref()].into_iter().flatten() {
            if fields.number("partial_rotary_factor", 0.0..=1.0)?.is_some_and(|f| f < 1.0) {
                return Err(self.error("partial_rotary_factor", "is below 1: partial rotation is not supported"));
            }
        }
        let scaling = scaling.map_or(Ok(RopeScaling::Default), |s| s.rope_scaling(self))?;
        Ok(RopeConfig { theta: theta.unwrap_or(10_000.0), scaling })
    }

    /// The scaling that these fields describe, in a configuration of these others.
    fn rope_scaling(&self, all: &Self) -> Result<RopeScaling> {
        const LENGTH: &str = "original_max_position_embeddings";
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
                let lengths = [(all, LENGTH), (self, LENGTH), (all, "max_position_embeddings")];
                let lengths = lengths.map(|(fields, name)| fields.number(name, 1.0..=1e9));
                let length = lengths.into_iter().find_map(Result::transpose);
                Ok(RopeScaling::Llama3 {
                    factor: required("factor", 1.0..=1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: length
                        .unwrap_or_else(|| Err(self.error(LENGTH, "is missing")))?,
                })
            }
            other => Err(self.error("rope_type", format!("is \"{other}\", supported are default, linear, llama3"))),
        }
    }

    /// The window of each block: `layer_types` decides where it is there, else `sliding` by index.
    pub(crate) fn sliding_windows(&self, layers: usize, sliding: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        // A missing key is transformers' default of these architectures; null is no window.
        let window = if self.map.contains_key("sliding_window") {
            self.size("sliding_window", 1..=1 << 30)?
        } else {
            Some(4096)
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::golden;
    use serde_json::json;

    /// A configuration that is right in every field.
    fn right(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "vocab_size": 97, "hidden_size": 36, "intermediate_size": 47,
            "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
            "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": false,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
        })
    }

    /// `right`, with these fields instead.
    fn with(model_type: &str, fields: &Value) -> Value {
        let mut json = right(model_type);
        for (field, value) in fields.as_object().unwrap() {
            json[field] = value.clone();
        }
        json
    }

    fn read(json: &Value) -> Result<ModelConfig> {
        ModelConfig::from_json("dir/config.json", json)
    }

    /// A bad field is one line that names the file, the field, what it is and what it should be.
    #[track_caller]
    fn check_error(json: &Value, expected: &str) {
        let error = read(json).expect_err(expected);
        assert_eq!(error.to_string(), format!("dir/config.json: {expected}"));
        let hint = error.hint().unwrap();
        assert!(!hint.ends_with('.') && hint.starts_with(char::is_lowercase), "{hint}");
    }

    #[test]
    fn sizes_out_of_range() {
        for (field, least, most) in [
            ("vocab_size", 1, 10_000_000),
            ("hidden_size", 1, 131_072),
            ("intermediate_size", 1, 1_048_576),
            ("num_hidden_layers", 1, 1_024),
            ("num_attention_heads", 1, 1_024),
            ("num_key_value_heads", 1, 1_024),
            ("head_dim", 2, 2_048),
            ("max_position_embeddings", 1, 1 << 30),
        ] {
            for bad in [json!(0), json!(-1), json!(2e9 as u64), json!(1e300), json!(1.5), json!("36"), json!([36])] {
                let expected = format!("`{field}` is {bad}, expected a whole number from {least} to {most}");
                check_error(&with("llama", &json!({field: bad})), &expected);
            }
        }
    }

    #[test]
    fn numbers_out_of_range() {
        for bad in [json!(-1e-6), json!(1), json!("1e-6"), json!(true)] {
            let expected = format!("`rms_norm_eps` is {bad}, expected a number from 0e0 to 1e-1");
            check_error(&with("mistral", &json!({"rms_norm_eps": bad})), &expected);
        }
        for bad in [json!(0), json!(-10000), json!(1e13), json!("10000")] {
            let expected = format!("`rope_theta` is {bad}, expected a number from 1e0 to 1e12");
            check_error(&with("qwen2", &json!({"rope_parameters": {"rope_theta": bad}})), &expected);
            check_error(&with("qwen2", &json!({"rope_parameters": null, "rope_theta": bad})), &expected);
        }
    }

    #[test]
    fn missing_fields() {
        let needed = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
        for model_type in SUPPORTED {
            for field in needed {
                check_error(&with(model_type, &json!({field: null})), &format!("`{field}` is missing"));
                let mut json = right(model_type);
                json.as_object_mut().unwrap().shift_remove(field);
                check_error(&json, &format!("`{field}` is missing"));
            }
        }
        check_error(&json!({}), "`model_type` is missing");
        check_error(&json!([1]), "`model_type` is missing: the file is not a JSON object");
        check_error(&json!({"model_type": 7}), "`model_type` is 7, expected a string");
        let supported = "supported are qwen2, llama, mistral, qwen3";
        check_error(&json!({"model_type": "gpt2"}), &format!("`model_type` is `gpt2`, {supported}"));
    }

    #[test]
    fn fields_at_odds() {
        for (fields, expected) in [
            (json!({"num_key_value_heads": 4}), "`num_key_value_heads` is 4, which does not divide 6 attention heads"),
            (
                json!({"num_key_value_heads": 12}),
                "`num_key_value_heads` is 12, which does not divide 6 attention heads",
            ),
            (json!({"head_dim": 7}), "`head_dim` is 7, expected an even number: rotation works on pairs"),
            (
                json!({"head_dim": null, "hidden_size": 30}),
                "`head_dim` is 5, expected an even number: rotation works on pairs",
            ),
            (
                json!({"head_dim": null, "hidden_size": 40}),
                "`hidden_size` is 40, which 6 heads do not divide, and there is no `head_dim`",
            ),
            (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\", expected \"silu\""),
            (json!({"hidden_act": 1}), "`hidden_act` is 1, expected \"silu\""),
            (json!({"tie_word_embeddings": "no"}), "`tie_word_embeddings` is \"no\", expected true or false"),
            (json!({"attention_bias": 1}), "`attention_bias` is 1, expected true or false"),
            (json!({"mlp_bias": {}}), "`mlp_bias` is {}, expected true or false"),
        ] {
            check_error(&with("llama", &fields), expected);
        }
    }

    #[test]
    fn bad_rope() {
        let llama3 = |field: &str, value: Value| {
            let mut rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
            rope[field] = value;
            rope
        };
        for (rope, expected) in [
            (
                json!({"rope_type": "yarn", "factor": 4.0}),
                "`rope_type` is \"yarn\", supported are default, linear, llama3",
            ),
            (
                json!({"type": "dynamic", "factor": 4.0}),
                "`rope_type` is \"dynamic\", supported are default, linear, llama3",
            ),
            (json!({"rope_type": 3}), "`rope_type` is 3, expected a string"),
            (json!({"type": ["linear"]}), "`type` is [\"linear\"], expected a string"),
            (json!({"rope_type": "linear"}), "`factor` is missing"),
            (json!({"rope_type": "linear", "factor": 0}), "`factor` is 0, expected a number from 1e0 to 1e6"),
            (llama3("factor", json!(-8)), "`factor` is -8, expected a number from 1e0 to 1e6"),
            (llama3("low_freq_factor", Value::Null), "`low_freq_factor` is missing"),
            (llama3("low_freq_factor", json!(4.0)), "`high_freq_factor` is 4, expected more than `low_freq_factor` 4"),
            (llama3("high_freq_factor", json!(0)), "`high_freq_factor` is 0, expected a number from 1e-6 to 1e6"),
            (
                llama3("original_max_position_embeddings", json!(0)),
                "`original_max_position_embeddings` is 0, expected a number from 1e0 to 1e9",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "`partial_rotary_factor` is below 1: partial rotation is not supported",
            ),
        ] {
            check_error(&with("llama", &json!({"rope_parameters": rope})), expected);
            check_error(&with("llama", &json!({"rope_parameters": null, "rope_scaling": rope})), expected);
        }
        check_error(
            &with("llama", &json!({"rope_parameters": "default"})),
            "`rope_parameters` is \"default\", expected an object",
        );
    }

    #[test]
    fn bad_windows() {
        let qwen = |fields: &Value| {
            let mut json = with("qwen3", fields);
            json["use_sliding_window"] = true.into();
            json
        };
        for bad in [json!(0), json!(-4), json!("6")] {
            let expected = format!("`sliding_window` is {bad}, expected a whole number from 1 to 1073741824");
            check_error(&with("mistral", &json!({"sliding_window": bad})), &expected);
        }
        for (types, expected) in [
            (json!(["full_attention"]), "`layer_types` is [\"full_attention\"], expected a list of 2"),
            (json!("full_attention"), "`layer_types` is \"full_attention\", expected a list of 2"),
            (
                json!(["full_attention", "linear_attention"]),
                "`layer_types` has \"linear_attention\", expected full_attention or sliding_attention",
            ),
            (json!([1, 2]), "`layer_types` has 1, expected full_attention or sliding_attention"),
            (
                json!(["full_attention", "sliding_attention"]),
                "`sliding_window` is missing, but `layer_types` has sliding layers",
            ),
        ] {
            check_error(&qwen(&json!({"layer_types": types, "sliding_window": null})), expected);
        }
        let expected = "`max_window_layers` is 9999, expected a whole number from 0 to 1024";
        check_error(&qwen(&json!({"sliding_window": 6, "max_window_layers": 9999})), expected);
    }

    /// As transformers 5.23 chooses between them.
    #[test]
    fn both_styles_at_once() {
        let linear = json!({"rope_type": "linear", "factor": 2.0});
        let rope = |fields: &Value| read(&with("llama", fields)).unwrap().rope;
        let new = json!({"rope_type": "default", "rope_theta": 500.0});
        let both = rope(&json!({"rope_parameters": new, "rope_scaling": linear, "rope_theta": 700.0}));
        assert_eq!(both, RopeConfig { theta: 700.0, scaling: RopeScaling::Linear { factor: 2.0 } });
        let nothing = rope(&json!({"rope_parameters": new, "rope_scaling": {}}));
        assert_eq!(nothing, RopeConfig { theta: 500.0, scaling: RopeScaling::Default });
        let inside = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 600.0});
        let inside = rope(&json!({"rope_parameters": null, "rope_scaling": inside, "rope_theta": 700.0}));
        assert!((inside.theta - 600.0).abs() < f64::EPSILON);
        let yarn = json!({"rope_parameters": new, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
        check_error(&with("llama", &yarn), "`rope_type` is \"yarn\", supported are default, linear, llama3");
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32});
        let length = |fields: &Value| match rope(fields).scaling {
            RopeScaling::Llama3 { original_max_position_embeddings: length, .. } => length,
            other => panic!("{other:?}"),
        };
        let mut open = llama3.clone();
        open["original_max_position_embeddings"] = Value::Null;
        assert_eq!(length(&json!({"rope_parameters": open, "original_max_position_embeddings": 64})), 64.0);
        assert_eq!(length(&json!({"rope_parameters": open, "max_position_embeddings": 96})), 96.0);
        let nowhere = json!({"rope_parameters": open, "max_position_embeddings": null});
        check_error(&with("llama", &nowhere), "`original_max_position_embeddings` is missing");
        let top = rope(&json!({"rope_parameters": llama3, "original_max_position_embeddings": 64}));
        assert!(
            matches!(top.scaling, RopeScaling::Llama3 { original_max_position_embeddings: length, .. } if length == 64.0)
        );
        check_error(
            &with("llama", &json!({"is_causal": false})),
            "`is_causal` is false: a decoder that sees what follows is not supported",
        );
    }

    #[test]
    fn both_styles_are_read_alike() {
        let scalings = [
            json!({"rope_type": "default"}),
            json!({"rope_type": "linear", "factor": 2.0}),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32}),
        ];
        for model_type in SUPPORTED {
            for rope in &scalings {
                let old = json!({"rope_parameters": null, "rope_theta": 500.0, "rope_scaling": rope});
                let old = read(&with(model_type, &old)).unwrap();
                let mut rope = rope.clone();
                rope["rope_theta"] = 500.0.into();
                let new = read(&with(model_type, &json!({"rope_parameters": rope}))).unwrap();
                assert_eq!(new, old);
                assert!((new.rope.theta - 500.0).abs() < f64::EPSILON);
                let top = json!({"rope_parameters": {"rope_type": rope["rope_type"]}, "rope_theta": 500.0});
                if rope["rope_type"] == "default" {
                    assert_eq!(read(&with(model_type, &top)).unwrap(), old, "the base may stand outside");
                }
            }
            let linear = json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2.0}});
            let scaling = read(&with(model_type, &linear)).unwrap().rope.scaling;
            assert_eq!(scaling, RopeScaling::Linear { factor: 2.0 }, "the name before 4.45 was `type`");
        }
    }

    /// The file as the version before wrote it, and what transformers 5 would write for the same model.
    #[test]
    fn a_golden_file_in_the_other_style() {
        for name in ["qwen2-old", "qwen2", "llama3", "llama-linear", "mistral-full", "qwen2-window"] {
            let json = golden::json(golden::dir(&format!("models/{name}")).join("config.json"));
            let config = read(&json).unwrap();
            let mut other = json.clone();
            let fields = other.as_object_mut().unwrap();
            fields.shift_remove("layer_types");
            if let Some(mut rope) = fields.shift_remove("rope_parameters") {
                fields.insert("rope_theta".into(), rope.as_object_mut().unwrap().shift_remove("rope_theta").unwrap());
                fields.insert("rope_scaling".into(), rope);
            } else {
                let mut rope = fields.shift_remove("rope_scaling").unwrap_or(json!({"rope_type": "default"}));
                rope["rope_theta"] = fields.shift_remove("rope_theta").unwrap();
                fields.insert("rope_parameters".into(), rope);
            }
            assert_ne!(json, other, "{name}");
            assert_eq!(read(&other).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn what_a_file_leaves_open() {
        let read = |model_type: &str, fields: &Value| {
            let mut json = json!({"model_type": model_type, "vocab_size": 97, "hidden_size": 36,
                "intermediate_size": 47, "num_hidden_layers": 2, "num_attention_heads": 6});
            json.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            read(&json).unwrap()
        };
        let heads = json!({"num_key_value_heads": null});
        for model_type in SUPPORTED {
            let c = read(model_type, &heads);
            assert_eq!((c.num_key_value_heads, c.tie_word_embeddings), (6, None), "{model_type}");
        }
        // The width of Qwen3's heads never follows from that of the model, which they need not divide.
        assert_eq!(read("qwen3", &json!({"num_key_value_heads": 2, "hidden_size": 37})).head_dim, 128);
        assert_eq!(read("llama", &json!({"sliding_window": 4})).sliding_windows, [None, None]);
    }

    #[test]
    fn quantized_weights_are_refused() {
        for model_type in SUPPORTED {
            read(&with(model_type, &json!({"quantization_config": null}))).unwrap();
            let fp8 = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
            let expected = "`quantization_config` is \"fp8\": quantized weights are not supported";
            check_error(&with(model_type, &json!({"quantization_config": fp8})), expected);
            let expected = "`quantization_config` is {\"bits\":4}: quantized weights are not supported";
            check_error(&with(model_type, &json!({"quantization_config": {"bits": 4}})), expected);
        }
    }
}
