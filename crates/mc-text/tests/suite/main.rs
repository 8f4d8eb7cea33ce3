//! Tests of mc-text against transformers' golden files, and of what it does with bad input.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod assistant_ranges;
mod bad_input;
mod classes;
mod detokenizer;
mod golden;
mod within;

use std::path::PathBuf;

use mc_text::{ChatTemplate, Tokenizer, TokenizerFiles};
use serde_json::Value;

/// The directories that `golden/make.py` writes.
const TOKENIZERS: [&str; 3] = ["byte_level", "qwen", "metaspace"];

fn golden_path(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn golden_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden_path(path)).unwrap()).unwrap()
}

fn golden_tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(golden_path(name)).unwrap()
}

/// A golden tokenizer's special tokens with one of the golden templates.
fn golden_template(tokenizer: &str, template: &str) -> ChatTemplate {
    let mut files = TokenizerFiles::read(golden_path(tokenizer)).unwrap();
    let source = std::fs::read_to_string(golden_path(&format!("{tokenizer}/{template}.jinja"))).unwrap();
    files.chat_template = Some(source.into());
    ChatTemplate::from_files(&files).unwrap().unwrap()
}
