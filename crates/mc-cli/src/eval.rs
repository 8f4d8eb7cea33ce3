//! `metal-candle eval`: the loss of a model on held-out data.

use crate::{failure::wrong, global::Global, report, source};
use anyhow::Result;
use metal_candle::{
    models::Adapter,
    training::{Dataset, evaluate},
};
use std::path::PathBuf;

/// Measure loss and perplexity of a model on a file of records
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "The loss is the mean over supervised tokens, in nats; the perplexity is its exponential.\n\n\
    Example:\n  metal-candle eval --model models/qwen --data valid.jsonl \\\n    --adapter adapters/mine"
)]
pub(crate) struct Args {
    /// Directory or hub id of the model [default: the embedded one]
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// Records, one JSON object per line [default: the embedded held-out requests]
    #[arg(long, value_name = "FILE.jsonl")]
    data: Option<PathBuf>,
    /// Directory of a LoRA adapter (PEFT)
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Records at a time
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    /// Longer records are cut, and counted [default: 1024, or the model's context if that is less]
    #[arg(long, value_name = "TOKENS")]
    max_seq_len: Option<usize>,
    /// Measure only what follows the prompt, as finetune trains the embedded requests [embedded: true]
    #[arg(long)]
    mask_prompt: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<()> {
    if args.data.is_none() && !crate::embedded::is_meant(args.model.as_deref()) {
        return Err(wrong("no --data to evaluate on", "pass a file of JSON lines with --data"));
    }
    let source = source::Source::open(global, args.model.as_deref())?;
    let options = source.dataset_options(args.max_seq_len, args.mask_prompt || args.data.is_none())?;
    let data = match &args.data {
        Some(path) => Dataset::load(path, &source.tokenizer, &options)?,
        None => Dataset::read("embedded valid.jsonl", crate::embedded::VALID.as_bytes(), &source.tokenizer, &options)?,
    };
    if let Some(path) = &args.data {
        data.check_tokens(&path.display().to_string(), source.config.vocab_size)?;
    }
    report::dataset(global, "data", data.report());
    let model = source.load(global)?;
    let adapter = match &args.adapter {
        Some(dir) => Some(source::adapter(&*model, dir)?.freeze(&*model)?),
        None => None,
    };
    let adapter = adapter.as_ref().map(|a| a as &dyn Adapter);
    let metrics = evaluate(&*model, adapter, &data, args.batch_size.into())?;
    if global.json {
        report::json(&metrics)
    } else {
        report::line(&format!(
            "loss {:.4}  perplexity {:.2}  {} supervised tokens",
            metrics.loss, metrics.perplexity, metrics.tokens
        ))
    }
}
