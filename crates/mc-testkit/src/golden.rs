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
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    assert!(dir.is_dir(), "no golden folder {name}");
    dir
}

/// The golden cases of a part, `models`, `adapters` or `training`, by name and sorted. `count` is how many there are, so
/// that a test over all of them notices if some are gone, and its author that some are new.
///
/// # Panics
/// When there are more or fewer.
#[track_caller]
pub fn cases(part: &str, count: usize) -> Vec<String> {
    let entries = std::fs::read_dir(dir(part)).unwrap_or_else(|error| panic!("{part}: {error}"));
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), count, "golden {part}: {names:?}");
    names
}

/// All tensors of a safetensors file, on the CPU.
///
/// # Panics
/// When the file cannot be read.
#[track_caller]
pub fn tensors(path: impl AsRef<Path>) -> HashMap<String, Tensor> {
    let path = path.as_ref();
    candle_core::safetensors::load(path, &Device::Cpu).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A JSON file.
///
/// # Panics
/// When the file cannot be read or is not JSON.
#[track_caller]
pub fn json(path: impl AsRef<Path>) -> serde_json::Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tolerance, assert_close};
    use candle_core::{D, DType, Result};

    /// The files hold together: each loss follows from the logits and labels beside it.
    #[test]
    fn losses_follow_from_logits() -> Result<()> {
        for name in ["models/qwen2", "models/mistral", "adapters/lora-all", "adapters/dora"] {
            let expected = tensors(dir(name).join("expected.safetensors"));
            let labels = expected.get("labels").unwrap_or(&expected["input_ids"]).to_dtype(DType::I64)?;
            let (rows, length) = labels.dims2()?;
            let labels = labels.narrow(1, 1, length - 1)?;
            let supervised = labels.ge(0i64)?.to_dtype(DType::F64)?;
            let logits = expected["logits"].narrow(1, 0, length - 1)?.to_dtype(DType::F64)?;
            let target = logits.gather(&labels.clamp(0i64, i64::MAX)?.unsqueeze(2)?, 2)?.squeeze(2)?;
            let losses = ((logits.log_sum_exp(D::Minus1)? - target)? * &supervised)?;
            let loss = (losses.sum_all()? / supervised.sum_all()?.to_scalar::<f64>()?)?;
            assert_eq!(losses.dims(), [rows, length - 1]);
            // Sums of 44 f32 terms of size 10.
            assert_close(name, &loss, &expected["loss"], Tolerance::relative(1e-6));
        }
        Ok(())
    }

    #[test]
    fn every_case_is_complete() {
        for (part, count) in [("models", 15), ("adapters", 11), ("training", 7)] {
            for case in cases(part, count) {
                let case = dir(part).join(case);
                assert!(!tensors(case.join("expected.safetensors")).is_empty());
                let (file, key) = match part {
                    "models" => ("config.json", "model_type"),
                    "adapters" => ("expected.json", "base"),
                    _ => ("training.json", "base"),
                };
                assert!(json(case.join(file))[key].is_string(), "{}", case.display());
            }
        }
    }
}
