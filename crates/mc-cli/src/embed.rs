//! `metal-candle embed`: lines in, vectors out.

use crate::{failure::wrong, global::Global, lines::Lines, npy, report, source};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use metal_candle::{
    checkpoint::write_atomic,
    embeddings::{EmbeddingModel, EncodeOptions, Prompt},
};
use same_file::Handle;
use serde_json::json;
use std::{
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Turn each line of a text into a vector
#[derive(clap::Args)]
#[command(
    after_help = "Every line of the input, an empty one too, is a line of the output: a JSON array of numbers. With --output \
    it is a row of a .npy file, and with --json as well stdout has one object that says what was done.\n\n\
    Examples:\n  metal-candle embed --model sentence-transformers/all-MiniLM-L6-v2 notes.txt\n  \
    echo 'which metal is warm?' | metal-candle embed --model intfloat/e5-small-v2 --query\n  \
    metal-candle embed --model models/minilm notes.txt --output notes.npy"
)]
pub(crate) struct Args {
    /// Directory or hub id of the model: one of sentence-transformers, or a bare encoder
    #[arg(long, value_name = "ID|DIR")]
    model: String,
    /// The lines; - reads them from stdin
    #[arg(value_name = "FILE|-", default_value = "-")]
    input: String,
    /// Write a matrix of f32 in numpy's format instead of lines of JSON
    #[arg(long, value_name = "FILE.npy")]
    output: Option<PathBuf>,
    /// The lines are queries: the model's prompt for those stands before each
    #[arg(long, conflicts_with_all = ["document", "prompt"])]
    query: bool,
    /// The lines are documents or passages: the model's prompt for those stands before each
    #[arg(long, conflicts_with = "prompt")]
    document: bool,
    /// The model's prompt of this name stands before each line
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// Keep the first N dimensions [default: as the model was saved, or all]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Tokens that are computed at once [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<()> {
    let mut lines = Lines::open(&args.input)?;
    if args.output.as_deref().is_some_and(|output| is_input(&args.input, output)) {
        return Err(wrong(format!("{} is the input", lines.name()), "name another file with --output"));
    }
    let dir = source::open_dir(global, Some(&args.model))?;
    let model = EmbeddingModel::from_dir(&dir, &global.loader()?)?;
    let (encoder, line) = (model.encoder(), model.describe());
    global.say(format!("{line}, on {}", source::computation(encoder.device(), encoder.computation())));
    let options = options(args);
    for (asked, what) in [(args.query, "queries"), (args.document, "documents")] {
        if asked && model.prompt(options.prompt)?.is_empty() {
            global.say(format!("the model has no prompt for {what}: lines are read as they are"));
        }
    }
    let bar = if global.bars() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(report::bar_style("{spinner} {human_pos} lines, {per_sec}"));
    let mut work = Work { model: &model, options, bar, tokens: 0, truncated: 0, lines: 0 };
    match &args.output {
        Some(path) => work.write_npy(&mut lines, path)?,
        None => {
            work.each(&mut lines, &mut |row| report::stream(&format!("{}\n", serde_json::to_string(row)?)))?;
        }
    }
    work.bar.finish_and_clear();
    let (counted, limit) = (report::counted, model.max_tokens());
    global.say(format!("{}, {}", counted(work.lines, "line"), counted(work.tokens, "token")));
    if work.truncated > 0 {
        global.say(format!("{} cut at {limit} tokens", counted(work.truncated, "line")));
    }
    match &args.output {
        Some(output) if global.json => report::json(&json!({
            "event": "done", "output": output.display().to_string(), "lines": work.lines, "dimensions": work.width(),
            "tokens": work.tokens, "truncated": work.truncated,
        })),
        _ => Ok(()),
    }
}

/// Whether the output is the file that the lines come from.
fn is_input(input: &str, output: &Path) -> bool {
    let input = if input == "-" { Handle::stdin() } else { Handle::from_path(input) };
    output.is_file() && input.is_ok_and(|input| Handle::from_path(output).is_ok_and(|output| input == output))
}

fn options(args: &Args) -> EncodeOptions<'_> {
    let prompt = match (&args.prompt, args.query, args.document) {
        (Some(name), ..) => Prompt::Named(name),
        (None, true, _) => Prompt::Query,
        (None, _, true) => Prompt::Document,
        (None, false, false) => Prompt::Default,
    };
    EncodeOptions { prompt, dimensions: args.dimensions, batch_tokens: args.batch_tokens.map(|n| n as usize) }
}

struct Work<'a> {
    model: &'a EmbeddingModel,
    options: EncodeOptions<'a>,
    bar: ProgressBar,
    lines: u64,
    tokens: u64,
    truncated: u64,
}

impl Work<'_> {
    /// Hands over the vectors of all lines in order; ends early when `take` says that it has enough.
    fn each(&mut self, lines: &mut Lines, take: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        let mut first = true;
        loop {
            let texts = lines.next()?;
            if texts.is_empty() && !first {
                return Ok(());
            }
            first = false;
            let done = self.lines;
            let bar = self.bar.clone();
            let embedded = self.model.encode_with(&texts, &self.options, &mut |progress| {
                bar.set_position(done + progress.texts as u64);
            });
            let embedded = embedded.map_err(|error| lines.named(error, done))?;
            for row in embedded.vectors.to_vec2::<f32>()? {
                self.lines += 1;
                if !take(&row)? {
                    return Ok(());
                }
            }
            self.tokens += embedded.tokens as u64;
            self.truncated += embedded.truncated as u64;
        }
    }

    /// Numbers of a row.
    fn width(&self) -> usize {
        self.options.dimensions.unwrap_or(self.model.dimensions())
    }

    fn write_npy(&mut self, lines: &mut Lines, path: &Path) -> Result<()> {
        let width = self.width();
        let mut failure = None;
        let written = write_atomic(path, |file| {
            // How many rows there are is known at the end.
            file.write_all(&npy::header(0, width))?;
            let result = self.each(lines, &mut |row| {
                let all = row.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()));
                all.with_context(|| path.display().to_string())?;
                Ok(true)
            });
            if let Err(error) = result {
                failure = Some(error);
                return Err(io::Error::other("the vectors were not computed"));
            }
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&npy::header(self.lines, width))
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Call {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_asked_for_is_what_the_model_hears() {
        let check = |words: &str, expected: EncodeOptions| {
            let call = <Call as clap::Parser>::parse_from(format!("embed --model m {words}").split_whitespace());
            assert_eq!(options(&call.args), expected, "{words}");
        };
        check("", EncodeOptions::default());
        let prompt = |prompt| EncodeOptions { prompt, ..EncodeOptions::default() };
        check("--query", prompt(Prompt::Query));
        check("--document", prompt(Prompt::Document));
        check("--prompt query", prompt(Prompt::Named("query")));
        check("--dimensions 5", EncodeOptions { dimensions: Some(5), ..EncodeOptions::default() });
        check("--batch-tokens 7", EncodeOptions { batch_tokens: Some(7), ..EncodeOptions::default() });
    }
}
