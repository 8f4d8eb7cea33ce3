//! candle-transformers as a second witness, beside the recorded files: logits of the last position on golden models.
//!
//! Its models are written apart from both transformers and ours. Left out is what it does otherwise: linear rope and
//! biases in llama, and windows, which are one token wider there.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use mc_models::{ModelConfig, ModelLoader, Pass, RopeScaling};
use mc_testkit::{Tolerance, assert_close, golden, max_abs_diff};

/// Checks the logits that `oracle` makes of tokens `(b, t)` against ours.
fn check(name: &str, oracle: impl Fn(&ModelConfig, VarBuilder, &Tensor) -> Result<Tensor>) -> Result<()> {
    let dir = golden::dir(&format!("models/{name}"));
    let model = ModelLoader::new().with_dtype(DType::F32).load(&dir).unwrap();
    let config = model.config();
    assert!(config.sliding_windows.iter().all(Option::is_none), "{name} has a window");
    let (b, t) = (2, 23);
    let ids = mc_testkit::random_range(17, 0.0, config.vocab_size as f64, (b, t), DType::U32);
    let expected = oracle(config, VarBuilder::from_tensors(weights(&dir), DType::F32, &Device::Cpu), &ids)?;
    let expected = expected.reshape((b, config.vocab_size))?;
    let hidden = model.hidden(&ids.flatten_all()?.to_vec1::<u32>()?, (b, t), &mut Pass::default())?;
    assert_close(name, &model.logits(&hidden.i((.., t - 1))?)?, &expected, Tolerance::absolute(1e-4));
    assert!(max_abs_diff(&expected.i(0)?, &expected.i(1)?) > 0.1, "{name}: every row has the same logits");
    Ok(())
}

fn weights(dir: &std::path::Path) -> std::collections::HashMap<String, Tensor> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_model = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    files.filter(is_model).flat_map(golden::tensors).collect()
}

fn tied(c: &ModelConfig) -> bool {
    c.tie_word_embeddings.unwrap()
}

#[test]
fn qwen2() -> Result<()> {
    for name in ["qwen2", "qwen2-old", "qwen2-bf16"] {
        check(name, |c, weights, ids| {
            let config = qwen2::Config {
                vocab_size: c.vocab_size,
                hidden_size: c.hidden_size,
                intermediate_size: c.intermediate_size,
                num_hidden_layers: c.num_hidden_layers,
                num_attention_heads: c.num_attention_heads,
                num_key_value_heads: c.num_key_value_heads,
                max_position_embeddings: c.max_position_embeddings,
                sliding_window: c.max_position_embeddings,
                max_window_layers: 0,
                tie_word_embeddings: tied(c),
                rope_theta: c.rope.theta,
                rms_norm_eps: c.rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            qwen2::ModelForCausalLM::new(&config, weights)?.forward(ids, 0)
        })?;
    }
    Ok(())
}

#[test]
fn llama() -> Result<()> {
    for name in ["llama", "llama-sharded", "llama3"] {
        check(name, |c, weights, ids| {
            let rope_scaling = match c.rope.scaling {
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    Some(llama::Llama3RopeConfig {
                        factor: factor as f32,
                        low_freq_factor: low_freq_factor as f32,
                        high_freq_factor: high_freq_factor as f32,
                        original_max_position_embeddings: original_max_position_embeddings as usize,
                        rope_type: llama::Llama3RopeType::Llama3,
                    })
                }
                RopeScaling::Default => None,
                RopeScaling::Linear { .. } => unreachable!("not in the oracle"),
            };
            let config = llama::Config {
                hidden_size: c.hidden_size,
                intermediate_size: c.intermediate_size,
                vocab_size: c.vocab_size,
                num_hidden_layers: c.num_hidden_layers,
                num_attention_heads: c.num_attention_heads,
                num_key_value_heads: c.num_key_value_heads,
                use_flash_attn: false,
                rms_norm_eps: c.rms_norm_eps,
                rope_theta: c.rope.theta as f32,
                bos_token_id: None,
                eos_token_id: None,
                rope_scaling,
                max_position_embeddings: c.max_position_embeddings,
                tie_word_embeddings: tied(c),
            };
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
            llama::Llama::load(weights, &config)?.forward(ids, 0, &mut cache)
        })?;
    }
    Ok(())
}

#[test]
fn mistral() -> Result<()> {
    check("mistral-full", |c, weights, ids| {
        let config = mistral::Config {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            head_dim: Some(c.head_dim),
            num_key_value_heads: c.num_key_value_heads,
            hidden_act: Activation::Silu,
            max_position_embeddings: c.max_position_embeddings,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope.theta,
            sliding_window: None,
            use_flash_attn: false,
        };
        mistral::Model::new(&config, weights)?.forward(ids, 0)
    })
}

#[test]
fn qwen3() -> Result<()> {
    for name in ["qwen3", "qwen3-untied"] {
        check(name, |c, weights, ids| {
            let config = qwen3::Config {
                vocab_size: c.vocab_size,
                hidden_size: c.hidden_size,
                intermediate_size: c.intermediate_size,
                num_hidden_layers: c.num_hidden_layers,
                num_attention_heads: c.num_attention_heads,
                head_dim: c.head_dim,
                attention_bias: c.o_bias,
                num_key_value_heads: c.num_key_value_heads,
                max_position_embeddings: c.max_position_embeddings,
                sliding_window: None,
                max_window_layers: 0,
                tie_word_embeddings: tied(c),
                rope_theta: c.rope.theta,
                rms_norm_eps: c.rms_norm_eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            qwen3::ModelForCausalLM::new(&config, weights)?.forward(ids, 0)
        })?;
    }
    Ok(())
}
