//! Texts per second of an embedding model over files of lines, and the time that the first line of the first file takes
//! alone, as a line of JSON.
//!
//! Run with: `cargo run --release -p mc-benches --example embed -- MODEL_DIR f32|bf16 FILE...`

#![expect(clippy::print_stdout, reason = "a program says what it found")]

use metal_candle::{
    candle_core::{DType, Device},
    embeddings::EmbeddingModel,
    models::ModelLoader,
};
use std::{error::Error, io::Write, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [name, dtype, files @ ..] = args.as_slice() else { return Err("expected MODEL_DIR f32|bf16 FILE...".into()) };
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let loader = ModelLoader::new().with_device(Device::Cpu).with_dtype(dtype);
    let model = EmbeddingModel::load(name, &loader)?;
    let median = |runs: usize, texts: &[String]| -> Result<f64, Box<dyn Error>> {
        model.encode(texts)?;
        let mut seconds = vec![];
        for _ in 0..runs {
            let start = Instant::now();
            model.encode(texts)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[runs / 2])
    };
    let mut found = serde_json::Map::new();
    let mut first = None;
    for file in files {
        let texts: Vec<String> = std::fs::read_to_string(file)?.lines().map(str::to_string).collect();
        found.insert(format!("{file}: texts_per_second"), (texts.len() as f64 / median(5, &texts)?).into());
        first = first.or_else(|| texts.into_iter().next());
    }
    if let Some(text) = first {
        found.insert("one_text_milliseconds".into(), (median(300, &[text])? * 1e3).into());
    }
    found.insert("peak_memory_bytes".into(), metal_candle::backend::peak_memory_bytes().into());
    writeln!(std::io::stdout(), "{}", serde_json::Value::Object(found))?;
    Ok(())
}
