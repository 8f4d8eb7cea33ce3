//! `metal-candle generate`: text streams to stdout.

use crate::{failure::wrong, global::Global, memory, report, source};
use anyhow::{Context, Result};
use metal_candle::{
    inference::{Generator, GeneratorConfig, StreamToken},
    text::Message,
};
use std::{io::Read, path::PathBuf, sync::Arc};

/// Continue a text, or answer a question with --chat
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:\n  metal-candle generate --adapter adapters/shell \\\n    --prompt 'Show the last 20 lines of app.log =>'\n  \
    metal-candle generate --model Qwen/Qwen2.5-0.5B-Instruct --chat \\\n    --prompt 'Why is the sky blue?' --temp 0.7 --top-p 0.9\n  \
    git diff | metal-candle generate --model models/qwen --chat --prompt -"
)]
pub(crate) struct Args {
    /// Directory or hub id of the model [default: the embedded one]
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// Directory of a LoRA adapter (PEFT)
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue; - reads it from stdin
    #[arg(long, short, value_name = "TEXT|-", allow_hyphen_values = true)]
    prompt: String,
    /// Treat the prompt as a message of a user, through the model's chat template
    #[arg(long)]
    chat: bool,
    /// The most tokens to generate
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temp: f64,
    /// Sample among the likeliest tokens that together have this probability, in (0, 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample among the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among tokens at least P times as likely as the likeliest, in [0, 1]
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Above 1 discourages tokens that were there already
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f64,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End at this text, which is not printed; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not end at the end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<()> {
    let mut config = GeneratorConfig {
        max_tokens: args.max_tokens,
        temperature: args.temp,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
        stop: args.stop,
        eos_token_ids: vec![],
        ignore_eos: args.ignore_eos,
    };
    config.check()?;
    let filters = args.top_p.is_some() || args.top_k.is_some() || args.min_p.is_some();
    if filters && args.temp == 0.0 {
        return Err(wrong("--top-p, --top-k and --min-p do nothing at --temp 0", "add --temp 0.7, or leave them out"));
    }
    let prompt = read_prompt(&args.prompt)?;
    let (source, model) = source::Source::open_and_load(global, args.model.as_deref())?;
    config.eos_token_ids = source.eos_token_ids()?;
    let mut generator = Generator::new(model.clone(), source.tokenizer.clone(), config)?;
    if let Some(dir) = &args.adapter {
        generator = generator.with_adapter(Arc::new(source::adapter(&*model, dir)?.freeze(&*model)?));
    }
    generator = generator.with_chat_template(source.chat_template.clone());
    // With --json the text comes whole; a closed pipe ends the generation, as `head` expects.
    let mut written = Ok(true);
    let on_token = |token: StreamToken| {
        memory::large_pages();
        if !global.json {
            written = report::stream(&token.text);
        }
        matches!(written, Ok(true))
    };
    let generation = if args.chat {
        generator.chat_stream(&[Message::new("user", prompt)], on_token)?
    } else {
        generator.generate_stream(&prompt, on_token)?
    };
    if global.json {
        report::json(&generation)?;
    } else if written? {
        report::line("")?;
    }
    global.say(format!(
        "{} + {} tokens, prefill {:.0} tokens/s, decode {:.1} tokens/s on {}",
        generation.prompt_tokens,
        generation.tokens.len(),
        generation.prefill_tokens_per_second,
        generation.decode_tokens_per_second,
        source::computation(model.device(), model.computation())
    ));
    Ok(())
}

fn read_prompt(prompt: &str) -> Result<String> {
    /// More than any model reads; what comes from a pipe need not end.
    const LONGEST: u64 = 64 << 20;
    if prompt != "-" {
        return Ok(prompt.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(LONGEST + 1).read_to_end(&mut bytes).context("stdin")?;
    if bytes.len() as u64 > LONGEST {
        return Err(wrong("stdin: the prompt is longer than 64 MiB", "pipe a text that the model's context holds"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| wrong("stdin: the prompt is not UTF-8", "pipe text, not a binary file"))?;
    Ok(text.trim_end_matches('\n').into())
}
