//! Reads the golden files that `golden/make.py` writes. Knows where they lie, not what they hold.

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The folder of one golden case, such as `models/qwen2`.
///
/// # Panics
/// When there is no such folder.
#[track_caller]
pub fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    assert!(dir.is_dir(), "no golden folder {name}");
    dir
}

/// All tensors of a safetensors file, on the CPU.
///
/// # Panics
/// When the file cannot be read.
#[track_caller]
pub fn tensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    let path = path.as_ref();
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A JSON file.
///
/// # Panics
/// When the file cannot be read or is not JSON.
#[track_caller]
pub fn json(path: impl AsRef<Path>) -> serde_json::Value {
    let path = path.as_ref();
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
