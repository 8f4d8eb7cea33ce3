//! Writes the logits of a text's tokens into a file, for comparison with a reference. Ids come on stdin, separated by
//! spaces; the file has one tensor `logits`, `(tokens, vocabulary)` in f32. Knows no reference.
//!
//! Run with: `echo 504 3575 | cargo run --release -p mc-benches --example logits -- MODEL_DIR OUT.safetensors`

use metal_candle::{
    candle_core::{DType, safetensors},
    models::{ModelLoader, Pass},
};
use std::{collections::HashMap, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [model, out] = args.as_slice() else { return Err("expected MODEL_DIR OUT.safetensors".into()) };
    let text = std::io::read_to_string(std::io::stdin())?;
    let ids = text.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let model = ModelLoader::new().load(model)?;
    let hidden = model.hidden(&ids, (1, ids.len()), &mut Pass::default())?;
    let logits = model.logits(&hidden)?.to_dtype(DType::F32)?.squeeze(0)?;
    safetensors::save(&HashMap::from([("logits", logits)]), out)?;
    Ok(())
}
