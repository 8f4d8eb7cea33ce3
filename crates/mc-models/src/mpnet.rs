//! MPNet: BERT without token types, with positions that begin after that of padding, and a bias on attention scores by
//! distance.

use crate::{
    Result,
    fields::Fields,
    post_norm::{Config, Names},
};

pub(crate) const NAMES: Names = Names {
    prefixes: &["mpnet.", ""],
    layers: "encoder.layer",
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    o: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

pub(crate) fn configure(fields: &Fields, model_type: String) -> Result<Config> {
    let config = Config { types: 0, buckets: Some(32), ..Config::bert(fields, model_type)? };
    // The number of buckets is written into the model itself, as is the id of padding (transformers, `modeling_mpnet.py`).
    if let Some(other) = fields.size("relative_attention_num_buckets", 0..=1_024)?.filter(|n| *n != 32) {
        return Err(fields.error("relative_attention_num_buckets", format!("is {other}, expected 32")));
    }
    match fields.size("pad_token_id", 0..=10_000_000)? {
        None | Some(1) => config.after_padding(fields),
        Some(other) => Err(fields.error("pad_token_id", format!("is {other}, expected 1"))),
    }
}
