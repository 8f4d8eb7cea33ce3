//! `metal-candle embed`: lines in, vectors out.

use crate::{failure::wrong, global::Global, report, source};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use metal_candle::{
    checkpoint::{self, write_atomic},
    embeddings::{self, EmbeddingModel, EncodeOptions, Prompt},
};
use same_file::Handle;
use serde_json::json;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
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
        return Err(wrong(format!("{} is the input", lines.name), "name another file with --output"));
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
            let texts = lines.next(AT_ONCE, AT_ONCE_BYTES)?;
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
            file.write_all(&npy_header(0, width))?;
            let result = self.each(lines, &mut |row| {
                row.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()))?;
                Ok(true)
            });
            if let Err(error) = result {
                failure = Some(error);
                return Err(io::Error::other("the vectors were not computed"));
            }
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&npy_header(self.lines, width))
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }
}

/// What a .npy file of version 1 begins with: 128 bytes, whatever the numbers.
fn npy_header(rows: u64, width: usize) -> Vec<u8> {
    const LENGTH: usize = 128;
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((LENGTH - 10) as u16).to_le_bytes());
    header.extend(dict.bytes());
    header.resize(LENGTH - 1, b' ');
    header.push(b'\n');
    header
}

/// Lines that are read before any is computed: enough to find some of similar length.
const AT_ONCE: usize = 4096;
/// Bytes of them, beyond which no other line is read.
const AT_ONCE_BYTES: usize = 16 << 20;
/// Bytes of a line, without what ends it. All of it is tokenized, which takes about 100 times as much memory.
const LONGEST: u64 = 4 << 20;
/// Bytes of what ends a line, at most.
const ENDS: u64 = 2;

/// The lines of a file or of stdin.
pub(crate) struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    read: usize,
}

impl Lines {
    pub(crate) fn open(input: &str) -> Result<Self> {
        if input == "-" {
            return Ok(Self { name: "stdin".into(), reader: Box::new(io::stdin().lock()), read: 0 });
        }
        if Path::new(input).is_dir() {
            return Err(wrong(format!("{input} is a directory"), "name a file of lines"));
        }
        let file = File::open(input).map_err(|source| checkpoint::Error::Io { path: input.into(), source })?;
        Ok(Self { name: input.into(), reader: Box::new(BufReader::new(file)), read: 0 })
    }

    /// Up to so many lines without what ends them, and none at the end. No more are read once they have this many bytes.
    pub(crate) fn next(&mut self, most: usize, bytes: usize) -> Result<Vec<String>> {
        let (mut lines, mut held) = (vec![], 0);
        while lines.len() < most && held < bytes {
            let mut line = vec![];
            let mut reader = self.reader.by_ref().take(LONGEST + ENDS);
            if reader.read_until(b'\n', &mut line).with_context(|| self.name.clone())? == 0 {
                break;
            }
            self.read += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            if line.len() as u64 > LONGEST {
                let what = format!("{}, line {}: longer than {} MiB", self.name, self.read, LONGEST >> 20);
                return Err(wrong(what, "cut it into parts first; a model reads the beginning alone"));
            }
            held += line.len();
            lines.push(String::from_utf8(line).map_err(|error| {
                let at = error.utf8_error().valid_up_to() + 1;
                let what = format!("{}, line {}: not UTF-8 at byte {at}", self.name, self.read);
                wrong(what, "convert the text first, for example with iconv -f latin1 -t utf-8")
            })?);
        }
        Ok(lines)
    }

    /// An error of the texts after the first `before` lines; where it names a text, that becomes a line.
    pub(crate) fn named(&self, error: embeddings::Error, before: u64) -> anyhow::Error {
        use embeddings::Error::{NotFinite, TokenId};
        let (NotFinite { text } | TokenId { text, .. }) = error else { return error.into() };
        let line = format!("{}, line {}", self.name, before + text as u64 + 1);
        wrong(error.to_string().replacen(&format!("text {text}"), &line, 1), error.hint().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: Vec<u8>) -> Lines {
        Lines { name: "stdin".into(), reader: Box::new(io::Cursor::new(text)), read: 0 }
    }

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

    /// What ends a line is no part of it, and so not of its length.
    #[test]
    fn a_line_may_be_as_long_as_the_longest() {
        for end in ["", "\n", "\r\n"] {
            let of =
                |length: u64| lines([vec![b'x'; length as usize], end.as_bytes().to_vec(), b"y".to_vec()].concat());
            let read = of(LONGEST - u64::from(end.is_empty())).next(9, usize::MAX).unwrap();
            let (first, rest) = read.split_first().unwrap();
            assert_eq!((first.len() as u64, rest.len()), (LONGEST, usize::from(!end.is_empty())), "{end:?}");
            let error = of(LONGEST + 1).next(9, usize::MAX).unwrap_err().to_string();
            assert_eq!(error, "stdin, line 1: longer than 4 MiB", "{end:?}");
        }
        // A carriage return that ends nothing counts.
        let error = lines([vec![b'x'; LONGEST as usize], b"\ry\n".to_vec()].concat()).next(9, usize::MAX).unwrap_err();
        assert_eq!(error.to_string(), "stdin, line 1: longer than 4 MiB");
    }

    /// So that memory has a bound.
    #[test]
    fn few_long_lines_are_held_at_once() {
        let long = [vec![b'x'; LONGEST as usize - 1], b"\n".to_vec()].concat();
        let mut lines = lines([long.repeat(7), b"a\nb\n".to_vec()].concat());
        // Four are four bytes less than 16 MiB.
        let counts: Vec<_> = (0..4).map(|_| lines.next(AT_ONCE, AT_ONCE_BYTES).unwrap().len()).collect();
        assert_eq!(counts, [5, 4, 0, 0]);
        assert_eq!(lines.read, 9);
    }

    #[test]
    fn a_header_has_one_size_and_says_the_shape() {
        for rows in [0, 7, u64::MAX] {
            let header = npy_header(rows, 1024);
            assert_eq!((header.len(), header[127]), (128, b'\n'));
            assert!(String::from_utf8_lossy(&header).contains(&format!("'shape': ({rows}, 1024), }}")));
        }
    }
}
