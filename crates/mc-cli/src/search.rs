//! `metal-candle search`: the chunks of an index that are nearest to a question.

use crate::{
    failure::wrong,
    global::Global,
    indexed::{from_here, functions, model_of},
    report,
};
use anyhow::Result;
use metal_candle::embeddings::{
    EncodeOptions, Prompt,
    documents::{DocumentIndex, Found},
    index::Error,
};
use serde::Serialize;
use std::{fmt::Write, path::PathBuf};

/// Find what indexed documents say about something
#[derive(clap::Args)]
#[command(
    after_help = "The index knows its model. A score is the cosine of the question's vector and the chunk's, 1 at most.\n\n\
    Examples:\n  metal-candle search --index notes.index 'how do I renew the certificate?'\n  \
    metal-candle search --index notes.index 'boats' --top-k 1 --json | jq -r .path"
)]
pub(crate) struct Args {
    /// What to look for: a question or a few words
    #[arg(value_name = "QUERY", allow_hyphen_values = true)]
    query: String,
    /// Directory that `metal-candle index` made
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// The model of the index, where that has moved: a directory or hub id [default: where it was]
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// How many chunks to show
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    top_k: u16,
}

/// What a script reads of a chunk that was found.
#[derive(Serialize)]
struct Passage {
    score: f32,
    path: String,
    first_line: usize,
    last_line: usize,
    text: String,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<()> {
    if args.query.trim().is_empty() {
        return Err(wrong("the query is empty", "say what to look for: a question or a few words, in quotes"));
    }
    let index = DocumentIndex::open(&args.index).map_err(|e| match e {
        Error::NoIndex { .. } => wrong(e.to_string(), "make one with metal-candle index FOLDER --output DIR"),
        e => e.into(),
    })?;
    if index.vectors().is_empty() {
        let folder = from_here(&index.documents().folder);
        let hint = format!("fill it with metal-candle index {folder} --output {}", args.index.display());
        return Err(wrong(format!("{}: the index is empty", args.index.display()), hint));
    }
    let (name, model) = model_of(global, &index, args.model.as_deref())?;
    index.check_model(&functions(&name, &model, Some(&index), None)?)?;
    let dimensions = Some(index.vectors().config().dimensions);
    let options = EncodeOptions { prompt: Prompt::Query, dimensions, ..EncodeOptions::default() };
    let query = model.encode_with(&[&args.query], &options, &mut |_| {})?;
    if query.truncated > 0 {
        global.say(format!("the query is cut at {} tokens", model.max_tokens()));
    }
    let query = query.vectors.flatten_all()?.to_vec1()?;
    for found in index.search(&query, args.top_k.into())? {
        let Found { score, path, first_line, last_line, text } = found;
        if global.json {
            report::json(&Passage { score, path: from_here(&path), first_line, last_line, text })?;
        } else {
            let path = report::escaped(&from_here(&path));
            report::line(&format!("{score:.3}  {path}:{first_line}\n{}", beginning(&text)))?;
        }
    }
    Ok(())
}

/// The first lines of a text, indented, as a terminal may show them, each cut to the width of a page.
fn beginning(text: &str) -> String {
    const LINES: usize = 3;
    const WIDTH: usize = 96;
    let mut beginning = String::new();
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()).take(LINES) {
        let line = report::escaped(line);
        let cut: String = line.chars().take(WIDTH).collect();
        let dots = if cut.len() < line.len() { "…" } else { "" };
        // Writing into a string cannot fail.
        let _ = writeln!(beginning, "       {cut}{dots}");
    }
    beginning
}
