//! BERT: MiniLM, E5, BGE, GTE and most other embedding models of English.

use crate::{
    Result,
    fields::Fields,
    post_norm::{Config, Names},
};

pub(crate) const NAMES: Names = Names {
    prefixes: &["bert.", ""],
    layers: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    o: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

pub(crate) fn configure(fields: &Fields, model_type: String) -> Result<Config> {
    Config::bert(fields, model_type)
}
