//! DistilBERT: BERT without token types, under names of its own.

use crate::{
    Result,
    fields::Fields,
    post_norm::{Config, Names},
};

pub(crate) const NAMES: Names = Names {
    prefixes: &["distilbert.", ""],
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    o: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
};

pub(crate) fn configure(fields: &Fields, model_type: String) -> Result<Config> {
    let hidden_size = fields.required_size("dim", 1..=131_072)?;
    Ok(Config {
        model_type,
        vocab_size: fields.required_size("vocab_size", 1..=10_000_000)?,
        hidden_size,
        intermediate_size: fields.required_size("hidden_dim", 1..=1_048_576)?,
        layers: fields.required_size("n_layers", 1..=1_024)?,
        heads: fields.heads("n_heads", hidden_size)?,
        positions: fields.required_size("max_position_embeddings", 1..=1 << 24)?,
        padding: None,
        types: 0,
        eps: 1e-12,
        gelu: fields.gelu("activation")?,
        buckets: None,
    })
}
