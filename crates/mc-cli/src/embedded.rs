//! The model and the data inside this binary: what `finetune` uses when nothing else is named.
//!
//! How they were made is in `assets/README.md`.

use metal_candle::checkpoint::ModelDir;

/// What `--model` calls it, and adapters name as their base.
pub(crate) const NAME: &str = "embedded";

const MODEL: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../assets/model/config.json")),
    ("generation_config.json", include_bytes!("../assets/model/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/model/tokenizer_config.json")),
];

/// Requests and the shell commands that answer them.
pub(crate) const TRAIN: &str = include_str!("../assets/data/train.jsonl");
/// The same commands, asked for in other words.
pub(crate) const VALID: &str = include_str!("../assets/data/valid.jsonl");

/// Whether `--model` means this model.
pub(crate) fn is_meant(model: Option<&str>) -> bool {
    model.is_none_or(|name| name == NAME && !std::path::Path::new(NAME).exists())
}

/// A model directory in memory.
pub(crate) fn model() -> ModelDir {
    ModelDir::embedded(NAME, MODEL)
}
