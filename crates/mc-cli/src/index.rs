//! `metal-candle index`: the text files of a folder become an index that `search` looks into.

use crate::{
    failure::wrong,
    global::Global,
    indexed::{from_here, functions, model_name, model_of, open},
    report,
};
use anyhow::Result;
use indicatif::ProgressBar;
use metal_candle::embeddings::{
    EmbeddingModel, EmbeddingModelType,
    documents::{Chunking, DocumentIndex, DocumentsConfig, Progress, Update},
    index,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Index the text and Markdown files of a folder, for search; the second time only what has changed
#[derive(clap::Args)]
#[command(
    after_help = "Files that end in .md, .txt, .rst, .adoc, .org and the like are cut into chunks at headings and paragraphs; \
    hidden files and those that .gitignore names are skipped. Folder, extensions, chunks, vectors and model are fixed once \
    the index has a chunk, so later runs may leave them out. If the model has moved, name its new place with --model.\n\n\
    Examples:\n  metal-candle index notes --output notes.index\n  \
    metal-candle index src --output src.index --extensions rs,toml \\\n    --model models/minilm --vectors int8"
)]
pub(crate) struct Args {
    /// The folder; files in folders below are found too
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Directory of the index: made, or brought up to date
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Directory or hub id of an embedding model [default: sentence-transformers/all-MiniLM-L6-v2]
    #[arg(long, value_name = "ID|DIR")]
    model: Option<String>,
    /// How vectors are kept: f32 exact; f16 half of it; int8 searched fastest, rescored in f16 [default: f16]
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "f16", "int8"])]
    vectors: Option<String>,
    /// Keep the first N dimensions of each vector, if the model was trained for that [default: as the model was saved, or all]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// The most tokens in a chunk, prompt and special ones included [default: 200, or what the model reads if less]
    #[arg(long, value_name = "TOKENS")]
    chunk_size: Option<usize>,
    /// The most tokens that a chunk repeats of the one before it [default: a fifth of a chunk]
    #[arg(long, value_name = "TOKENS")]
    chunk_overlap: Option<usize>,
    /// Ends of the names of files [default: adoc,asciidoc,markdown,md,mdx,org,rst,text,txt]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    extensions: Vec<String>,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<()> {
    let start = Instant::now();
    let documents = documents(args)?;
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = args.output.ancestors().take_while(is_missing).collect();
    let vectors = args.vectors.as_deref().map(str::parse).transpose()?;
    let known = match DocumentIndex::open(&args.output) {
        Err(index::Error::NoIndex { .. }) => None,
        known => Some(known?),
    };
    let (name, model, documents, vectors) = if let Some(index) = &known {
        let documents = settings(args, documents, index.documents());
        let vectors = vectors.unwrap_or(index.vectors().config().vectors);
        if !index.vectors().is_empty() {
            // Before a model is read.
            index.check_settings(
                &documents,
                vectors,
                args.dimensions.unwrap_or(index.vectors().config().dimensions),
            )?;
        }
        let (name, model) = model_of(global, index, args.model.as_deref())?;
        (name, model, documents, vectors)
    } else {
        let name = model_name(args.model.as_deref().unwrap_or(EmbeddingModelType::AllMiniLmL6V2.id()));
        let model = open(global, &name)?;
        let size = Chunking::default().size.min(model.max_tokens());
        let default = DocumentsConfig { chunking: Chunking { size, overlap: size / 5 }, ..documents.clone() };
        (name, model, settings(args, documents, &default), vectors.unwrap_or_default())
    };
    let functions = functions(&name, &model, known.as_ref(), args.dimensions)?;
    let is_new = known.is_none();
    let mut index = match known {
        Some(index) if !index.vectors().is_empty() => index,
        _ => DocumentIndex::open_or_create(&args.output, documents, vectors, &functions)?,
    };
    let mut watch = Watch::new(global);
    let update = index.update(&functions, &mut |progress| watch.see(progress));
    watch.end();
    if is_new && index.vectors().is_empty() {
        // Nothing is in it that anybody could miss.
        if index.delete().is_ok() {
            // Those that something else has come into stay.
            let _ = missing.into_iter().try_for_each(fs::remove_dir);
        }
        for line in of_skipped(&update?) {
            global.say(line);
        }
        let what = format!("{}: no text to index", args.folder.display());
        return Err(wrong(what, "name a folder with text files, or the ends of their names with --extensions"));
    }
    report(global, &index, &update?, &model, start)
}

/// Which documents, before options and what the index says are looked at.
fn documents(args: &Args) -> Result<DocumentsConfig> {
    let mut documents = DocumentsConfig::new(&args.folder)?;
    if !args.extensions.is_empty() {
        let name = |e: &String| e.trim().trim_start_matches('.').to_lowercase();
        documents.extensions = args.extensions.iter().map(name).filter(|e| !e.is_empty()).collect();
        documents.extensions.sort();
        documents.extensions.dedup();
        if documents.extensions.is_empty() {
            return Err(wrong("`--extensions` names none", "pass ends of names, as in --extensions md,txt"));
        }
    }
    Ok(documents)
}

/// What is asked for; what is not is as in `default`.
fn settings(args: &Args, documents: DocumentsConfig, default: &DocumentsConfig) -> DocumentsConfig {
    let size = args.chunk_size.unwrap_or(default.chunking.size);
    let usual =
        if args.chunk_size.is_some() && size != default.chunking.size { size / 5 } else { default.chunking.overlap };
    let chunking = Chunking { size, overlap: args.chunk_overlap.unwrap_or(usual) };
    let extensions = if args.extensions.is_empty() { default.extensions.clone() } else { documents.extensions };
    DocumentsConfig { folder: documents.folder, extensions, chunking }
}

/// Shows how far an update is: a bar for a person, a line now and then in a pipe.
struct Watch {
    bar: Option<ProgressBar>,
    lines: bool,
    said: Instant,
}

impl Watch {
    fn new(global: &Global) -> Self {
        let bar = global.bars().then(|| {
            let style = report::bar_style("{bar:20} {human_pos}/{human_len} chunks  {msg}  {eta} left");
            ProgressBar::new(0).with_style(style)
        });
        Self { lines: bar.is_none() && !global.quiet, bar, said: Instant::now() }
    }

    fn see(&mut self, p: Progress) {
        /// Between two lines.
        const PAUSE: Duration = Duration::from_secs(5);
        let files = format!("{} of {}", report::count(p.files), report::counted(p.of_files as u64, "file"));
        if let Some(bar) = &self.bar {
            bar.set_length(p.of_chunks as u64);
            bar.set_position(p.chunks as u64);
            bar.set_message(files);
        } else if self.lines && self.said.elapsed() > PAUSE {
            self.said = Instant::now();
            let (done, all) = (report::count(p.chunks), report::counted(p.of_chunks as u64, "chunk"));
            report::to_stderr(&format!("read {files}, embedded {done} of {all}"));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What became of the folder.
fn report(
    global: &Global,
    index: &DocumentIndex,
    update: &Update,
    model: &EmbeddingModel,
    start: Instant,
) -> Result<()> {
    let files = update.added + update.changed + update.unchanged;
    let (chunks, seconds) = (index.vectors().len(), start.elapsed().as_secs_f64());
    let output = index.vectors().dir().display().to_string();
    if global.json {
        let skipped = update
            .skipped
            .iter()
            .map(|s| json!({"path": s.path.display().to_string(), "reason": s.reason.to_string()}));
        return report::json(&json!({
            "event": "done", "index": output, "files": files, "added": update.added, "changed": update.changed,
            "removed": update.removed, "unchanged": update.unchanged, "moved": update.moved, "chunks": chunks, "embedded": update.embedded,
            "truncated": update.truncated, "skipped": skipped.collect::<Vec<_>>(), "seconds": seconds,
        }));
    }
    for line in of_skipped(update) {
        global.say(line);
    }
    let moved = match update.moved {
        0 => String::new(),
        moved => format!(", {} moved or copied", report::count(moved)),
    };
    let cut = match update.truncated {
        0 => String::new(),
        cut => format!(", {} cut at {} tokens", report::count(cut), model.max_tokens()),
    };
    report::line(&format!(
        "{}: {} ({} added, {} changed, {} unchanged, {} removed{moved}), {}, {} of them embedded in {seconds:.1} s{cut}",
        report::escaped(&output),
        report::counted(files as u64, "file"),
        report::count(update.added),
        report::count(update.changed),
        report::count(update.unchanged),
        report::count(update.removed),
        report::counted(chunks as u64, "chunk"),
        report::count(update.embedded),
    ))
}

/// What was left out: a line each.
fn of_skipped(update: &Update) -> Vec<String> {
    /// Lines about files; what is more is counted.
    const LINES: usize = 20;
    let mut by_reason: BTreeMap<String, Vec<&Path>> = BTreeMap::new();
    for skipped in &update.skipped {
        by_reason.entry(skipped.reason.to_string()).or_default().push(&skipped.path);
    }
    let mut lines: Vec<_> = by_reason
        .iter()
        .flat_map(|(reason, paths)| paths.iter().map(move |path| format!("left out {}: {reason}", from_here(path))))
        .collect();
    let more = lines.len().saturating_sub(LINES) as u64;
    lines.truncate(LINES);
    if more > 0 {
        lines.push(format!("left out {} more", report::counted(more, "file")));
    }
    lines
}
