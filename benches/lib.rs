//! Sizes and inputs that the benches share.

use metal_candle::{
    backend::{Purpose, Stream, Weight},
    candle_core::{DType, Device, Result, Tensor},
    checkpoint::MemorySource,
    models::{self, Decoder, Model, ModelConfig},
};
use serde_json::json;
use std::{collections::HashMap, sync::Arc};

/// Widths of SmolLM2-135M.
pub struct SmolLM2;

impl SmolLM2 {
    /// The residual stream.
    pub const HIDDEN: usize = 576;
    /// Inside the feed-forward block.
    pub const INTERMEDIATE: usize = 1536;
    /// Query heads, key-value heads and their width.
    pub const HEADS: (usize, usize, usize) = (9, 3, 64);
    /// Rows of the embedding.
    pub const VOCABULARY: usize = 49_152;
}

/// Normal noise of standard deviation 0.1.
///
/// # Errors
/// If there is no memory for it.
pub fn noise(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 0.1, shape, &Device::Cpu)
}

/// A frozen bf16 matrix of noise.
///
/// # Errors
/// If there is no memory for it.
pub fn weight(rows: usize, cols: usize) -> Result<Weight> {
    Weight::from_tensor(&noise(&[rows, cols])?.to_dtype(DType::BF16)?)
}

/// Two blocks of SmolLM2-135M with its embedding, in bf16 noise.
///
/// # Errors
/// If there is no memory for it.
pub fn model() -> models::Result<Model> {
    let (hidden, intermediate, (heads, kv_heads, d)) = (SmolLM2::HIDDEN, SmolLM2::INTERMEDIATE, SmolLM2::HEADS);
    let (vocabulary, kv) = (SmolLM2::VOCABULARY, kv_heads * d);
    let config = ModelConfig::from_json(
        "config.json",
        &json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": true,
        }),
    )?;
    let mut tensors = HashMap::new();
    let mut put = |name: String, shape: &[usize]| -> Result<()> {
        tensors.insert(name, noise(shape)?.to_dtype(DType::BF16)?);
        Ok(())
    };
    put("model.embed_tokens.weight".into(), &[vocabulary, hidden])?;
    put("model.norm.weight".into(), &[hidden])?;
    for block in 0..2 {
        for (name, rows, cols) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", intermediate, hidden),
            ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ] {
            put(format!("model.layers.{block}.{name}.weight"), &[rows, cols])?;
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(format!("model.layers.{block}.{norm}.weight"), &[hidden])?;
        }
    }
    Ok(Arc::new(Decoder::load(config, &MemorySource::new(tensors), &Device::Cpu, None)?))
}

/// Random tokens of that model; each row has its own.
pub fn tokens(row: u64, count: usize) -> Vec<u32> {
    let mut stream = Stream::new(0, Purpose::Sample, row);
    (0..count).map(|_| stream.below(SmolLM2::VOCABULARY as u32)).collect()
}
