//! `metal-candle bench --texts`: how many texts a second an embedding model reads. It times what `embed` runs.

use super::{Args, measured::Spread};
use crate::{failure::wrong, global::Global, lines::Lines, report, source};
use anyhow::Result;
use metal_candle::{
    backend::DeviceExt,
    embeddings::{EmbeddingModel, EncodeOptions},
    training::peak_memory_bytes,
};
use serde_json::json;
use std::time::Instant;

/// Measures over the lines of a file; the shortest line is timed by itself too.
pub(super) fn run(global: &Global, args: &Args, file: &str) -> Result<()> {
    /// Times that one text is read for each run over all: it takes a millisecond.
    const ALONE: usize = 20;
    let Some(name) = args.model.as_deref() else {
        return Err(wrong("--texts without --model", "name a model that embeds; the embedded one generates"));
    };
    let mut lines = Lines::open(file)?;
    let texts = lines.rest()?;
    let Some(shortest) = texts.iter().filter(|line| !line.is_empty()).min_by_key(|line| line.len()) else {
        return Err(wrong(format!("{file} has no texts"), "each line is one"));
    };
    let shortest = std::slice::from_ref(shortest);
    let dir = source::open_dir(global, Some(name))?;
    let model = EmbeddingModel::from_dir(&dir, &global.loader()?)?;
    let encode = |texts: &[String]| {
        let embedded = model.encode_with(texts, &EncodeOptions::default(), &mut |_| {});
        embedded.map_err(|error| lines.named(error, 0))
    };
    let seconds = |texts: &[String]| {
        let start = Instant::now();
        encode(texts)?;
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    };
    global.say("warming up");
    let cut = encode(&texts)?.truncated;
    if cut > 0 {
        global.say(format!("{} cut at {} tokens", report::counted(cut as u64, "line"), model.max_tokens()));
    }
    seconds(shortest)?;
    let (mut speeds, mut alone) = (vec![], vec![]);
    for run in 1..=args.repeat {
        speeds.push(texts.len() as f64 / seconds(&texts)?);
        for _ in 0..ALONE {
            alone.push(1e3 * seconds(shortest)?);
        }
        global.say(format!("run {run}/{}: {:.1} texts/s", args.repeat, speeds[speeds.len() - 1]));
    }
    let (Some(speed), Some(alone)) = (Spread::of(speeds), Spread::of(alone)) else { return Ok(()) };
    let (encoder, memory) = (model.encoder(), peak_memory_bytes());
    let (device, computation) = (encoder.device(), encoder.computation());
    if global.json {
        return report::json(&json!({
            "mode": "texts", "model": dir.name(), "device": device.info().description,
            "dtype": format!("{:?}", computation.weights).to_lowercase(), "computation": computation.to_string(), "texts": texts.len(),
            "texts_per_second": speed.median, "texts_range": [speed.lowest, speed.highest],
            "one_text_milliseconds": alone.median, "one_text_range": [alone.lowest, alone.highest],
            "peak_memory_bytes": memory,
        }));
    }
    report::line(&format!("{}, on {}", model.describe(), source::computation(device, computation)))?;
    let row = |what: &str, s: &Spread, digits: usize| {
        report::line(&format!("{what:<34} {:>10.digits$}   {:.digits$} to {:.digits$}", s.median, s.lowest, s.highest))
    };
    report::line(&format!("{:<34} {:>10}   lowest to highest", "", "median"))?;
    row(&format!("texts per second, {} texts", texts.len()), &speed, 1)?;
    row("milliseconds of the shortest alone", &alone, 2)?;
    memory.map_or(Ok(()), |n| report::line(&format!("{:<34} {:>10}", "peak memory", report::bytes(n))))
}
