//! Random tiny models: a `config.json` of either style, and weights under a checkpoint's names.
//!
//! Knows what a checkpoint of each architecture holds, in its own words: were it asked of the crate under test, a
//! missing bias would be missing on both sides.

use candle_core::{DType, Device, Result, Tensor};
use mc_backend::{Purpose, Stream};
use mc_checkpoint::MemorySource;
use mc_models::{CausalLM, Decoder, Model, ModelConfig, Pass, SUPPORTED};
use mc_testkit::random;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};

/// Random models per architecture.
const EACH: u64 = 16;

pub(crate) struct Tiny {
    pub(crate) name: String,
    pub(crate) json: Value,
    pub(crate) config: ModelConfig,
    pub(crate) tensors: HashMap<String, Tensor>,
}

/// The random models of all architectures; the same on every run.
pub(crate) fn models() -> impl Iterator<Item = Tiny> {
    SUPPORTED.iter().flat_map(|architecture| (0..EACH).map(|seed| Tiny::random(architecture, seed)))
}

impl Tiny {
    fn random(architecture: &str, seed: u64) -> Self {
        let name = format!("{architecture} {seed}");
        let mut dice = Dice(Stream::new(seed, Purpose::Init, architecture.bytes().map(u64::from).sum()));
        let json = random_config(architecture, &mut dice);
        let config = ModelConfig::from_json(&name, &json).unwrap_or_else(|e| panic!("{e}\n{json}"));
        // Where the file is silent about the head, the weights say it.
        let tied = json.get("tie_word_embeddings").map_or_else(|| dice.coin(), |v| v == true);
        let tensors = random_tensors(&json, &config, tied, seed);
        Self { name, json, config, tensors }
    }

    pub(crate) fn load(&self) -> Model {
        self.load_as(None)
    }

    pub(crate) fn load_as(&self, dtype: Option<DType>) -> Model {
        let source = MemorySource::new(self.tensors.clone());
        match Decoder::load(self.config.clone(), &source, &Device::Cpu, dtype) {
            Ok(model) => Arc::new(model),
            Err(error) => panic!("{}: {error}\n{}", self.name, self.json),
        }
    }

    /// Random tokens.
    pub(crate) fn ids(&self, seed: u64, count: usize) -> Vec<u32> {
        let mut stream = Stream::new(seed, Purpose::Sample, 0);
        (0..count).map(|_| stream.below(self.config.vocab_size as u32)).collect()
    }
}

/// All logits of a pass, `(b, t, vocabulary)`.
pub(crate) fn logits(model: &dyn CausalLM, ids: &[u32], rows: usize, pass: &mut Pass) -> Result<Tensor> {
    model.logits(&model.hidden(ids, (rows, ids.len() / rows), pass)?)
}

/// Random choices.
pub(crate) struct Dice(pub(crate) Stream);

impl Dice {
    /// One of `low..=high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.0.below((high - low + 1) as u32) as usize
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.between(0, 1) == 1
    }
}

fn random_config(architecture: &str, dice: &mut Dice) -> Value {
    let new_style = dice.coin();
    let (kv_heads, group) = (dice.between(1, 3), dice.between(1, 4));
    let heads = kv_heads * group;
    let head_dim = 2 * dice.between(1, 6);
    let explicit = architecture == "qwen3" || dice.coin();
    let layers = dice.between(1, 3);
    let mut config = json!({
        "model_type": architecture,
        "hidden_act": "silu",
        "vocab_size": 2 * dice.between(15, 40) + 1,
        "hidden_size": if explicit { dice.between(7, 33) } else { heads * head_dim },
        "intermediate_size": 2 * dice.between(4, 20) + 1,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "rms_norm_eps": if dice.coin() { 1e-5 } else { 1e-6 },
    });
    let mut set = |field: &str, value: Value| config[field] = value;
    if explicit {
        set("head_dim", head_dim.into());
    } else if architecture == "mistral" {
        set("head_dim", Value::Null);
    }
    match dice.between(0, 2) {
        0 => {}
        tied => set("tie_word_embeddings", (tied == 1).into()),
    }

    let theta = [100.0, 10_000.0, 1e6][dice.between(0, 2)];
    let mut rope = match dice.between(0, 2) {
        0 => json!({"rope_type": "default"}),
        1 => json!({"rope_type": "linear", "factor": 2.5}),
        _ => json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16}),
    };
    if new_style {
        rope["rope_theta"] = theta.into();
        set("rope_parameters", rope);
    } else {
        set("rope_theta", theta.into());
        if rope["rope_type"] == "linear" {
            rope = json!({"type": "linear", "factor": 2.5});
        }
        set("rope_scaling", if rope["rope_type"] == "default" { Value::Null } else { rope });
    }

    let window = dice.between(2, 5);
    match architecture {
        "mistral" => set("sliding_window", if dice.coin() { window.into() } else { Value::Null }),
        "qwen2" | "qwen3" => {
            let (sliding, first) = (dice.coin(), dice.between(0, layers - 1));
            set("use_sliding_window", sliding.into());
            set("sliding_window", if sliding || !new_style { window.into() } else { Value::Null });
            set("max_window_layers", first.into());
            if new_style {
                let kind = |layer| if sliding && layer >= first { "sliding_attention" } else { "full_attention" };
                set("layer_types", (0..layers).map(kind).collect());
            }
        }
        _ => set("mlp_bias", dice.coin().into()),
    }
    if matches!(architecture, "llama" | "qwen3") {
        set("attention_bias", dice.coin().into());
    }
    config
}

/// Matrices that keep the size of what passes through, norms around 1, biases that matter.
fn random_tensors(json: &Value, c: &ModelConfig, tied: bool, seed: u64) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut seed = 1000 * seed;
    let mut add = |name: String, shape: &[usize], scale: f64, mean: f64| {
        seed += 1;
        let tensor = (random(seed, shape, DType::F32) * scale).and_then(|t| t + mean).unwrap();
        assert!(tensors.insert(name.clone(), tensor).is_none(), "{name} twice");
    };
    let (hidden, head_dim) = (c.hidden_size, c.head_dim);
    let (q, kv) = (c.num_attention_heads * head_dim, c.num_key_value_heads * head_dim);
    let attention_bias = json["attention_bias"] == true;
    let qkv_bias = attention_bias || json["model_type"] == "qwen2";
    let mlp_bias = json["mlp_bias"] == true;
    add("model.embed_tokens.weight".into(), &[c.vocab_size, hidden], 1.0, 0.0);
    for layer in 0..c.num_hidden_layers {
        for (name, out, inner, bias) in [
            ("self_attn.q_proj", q, hidden, qkv_bias),
            ("self_attn.k_proj", kv, hidden, qkv_bias),
            ("self_attn.v_proj", kv, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, q, attention_bias),
            ("mlp.gate_proj", c.intermediate_size, hidden, mlp_bias),
            ("mlp.up_proj", c.intermediate_size, hidden, mlp_bias),
            ("mlp.down_proj", hidden, c.intermediate_size, mlp_bias),
        ] {
            add(format!("model.layers.{layer}.{name}.weight"), &[out, inner], 1.0 / (inner as f64).sqrt(), 0.0);
            if bias {
                add(format!("model.layers.{layer}.{name}.bias"), &[out], 0.3, 0.0);
            }
        }
        for (name, width) in [("input_layernorm", hidden), ("post_attention_layernorm", hidden)] {
            add(format!("model.layers.{layer}.{name}.weight"), &[width], 0.2, 1.0);
        }
        if json["model_type"] == "qwen3" {
            for name in ["q_norm", "k_norm"] {
                add(format!("model.layers.{layer}.self_attn.{name}.weight"), &[head_dim], 0.2, 1.0);
            }
        }
    }
    add("model.norm.weight".into(), &[hidden], 0.2, 1.0);
    if !tied {
        add("lm_head.weight".into(), &[c.vocab_size, hidden], 1.0 / (hidden as f64).sqrt(), 0.0);
    }
    tensors
}
