//! Training data: JSON lines to token ids and what of them is supervised. Knows no batches and no tensors.

use crate::{
    Error, Result,
    fingerprint::hash,
    record::{Kind, Reader},
};
use mc_text::{ChatTemplate, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

/// A line may have 64 MiB: no honest record is longer.
const MAX_LINE: u64 = 64 << 20;
/// Records that are tokenised at one time, in parallel.
const CHUNK: usize = 1024;

/// A tokenised record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// For each token, whether the model is trained to predict it from those before it. Never the first, which nothing
    /// comes before.
    pub supervised: Vec<bool>,
}

impl Example {
    /// An example of tokens of which `supervised` says which are targets: the first never is, nor are those that it has
    /// no mark for.
    pub fn new(ids: Vec<u32>, mut supervised: Vec<bool>) -> Self {
        supervised.resize(ids.len(), false);
        if let Some(first) = supervised.first_mut() {
            *first = false;
        }
        Self { ids, supervised }
    }

    /// How many of its tokens a model reads: those before the last supervised one, which is only predicted. Marks that have no token are none.
    pub(crate) fn tokens_read(&self) -> usize {
        self.supervised.iter().take(self.ids.len()).rposition(|s| *s).unwrap_or(0)
    }

    /// How many of its tokens are supervised.
    pub fn targets(&self) -> usize {
        self.supervised.iter().filter(|s| **s).count()
    }
}

/// How records become examples.
#[derive(Clone, Debug)]
pub struct DatasetOptions {
    /// Tokens that an example may have, at least 2; longer ones lose their end, which the report counts.
    pub max_seq_len: usize,
    /// Whether only completions and assistant turns are supervised, not prompts. A `text` has no prompt.
    pub mask_prompt: bool,
    /// What renders `messages`, as [`ChatTemplate::load`] finds it; without it such records are an error.
    pub chat_template: Option<ChatTemplate>,
    /// The token that ends a text or a completion; `None`: the tokenizer's.
    pub eos_token_id: Option<u32>,
}

impl Default for DatasetOptions {
    fn default() -> Self {
        Self { max_seq_len: 1024, mask_prompt: false, chat_template: None, eos_token_id: None }
    }
}

/// What became of the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// Records read.
    pub records: usize,
    /// Tokens of the examples.
    pub tokens: usize,
    /// Supervised tokens of the examples.
    pub supervised_tokens: usize,
    /// Records that were longer than `max_seq_len` and lost their end.
    pub truncated: usize,
    /// Records that are not in the data set because no token of them is supervised.
    pub dropped_without_supervision: usize,
}

/// Tokenised training data, in the order of its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    examples: Vec<Example>,
    report: DataReport,
}

impl Dataset {
    /// Reads a file of JSON lines. Its first record decides what all of them are:
    ///
    /// - `{"text"}`: encoded as the tokenizer does, with the special tokens that it adds, and an EOS appended where it
    ///   does not end in one.
    /// - `{"prompt", "completion"}`: the prompt encoded as generation encodes it; then the completion, tokenised as it
    ///   stands after that prompt where this leaves the prompt's tokens alone, and by itself where it would merge with
    ///   them; then an EOS.
    /// - `{"messages": […], "tools"?}`: rendered by the chat template, which writes all special tokens itself. With
    ///   `mask_prompt` every assistant turn is supervised, not only the last.
    ///
    /// Empty lines are skipped.
    ///
    /// # Errors
    /// If the file cannot be read, or a record is not what it should be; the message names file, line and field.
    pub fn load(path: impl AsRef<Path>, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io(path))?;
        if path.is_dir() {
            return Err(Error::Io { path: path.into(), source: std::io::ErrorKind::IsADirectory.into() });
        }
        Self::read(&path.display().to_string(), BufReader::with_capacity(1 << 20, file), tokenizer, options)
    }

    /// Reads JSON lines from memory or any other place; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn read(name: &str, mut lines: impl BufRead, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Self> {
        if options.max_seq_len < 2 {
            return Err(Error::config("max_seq_len", options.max_seq_len, "at least 2: a token and one to predict"));
        }
        let reader = Reader::new(tokenizer, options);
        let mut kind: Option<Kind> = None;
        let mut dataset = Self::default();
        let mut number = 0;
        loop {
            let chunk = read_lines(name, &mut lines, &mut number)?;
            let Some((first, text)) = chunk.first() else { break };
            let kind = match kind {
                Some(kind) => kind,
                None => *kind.insert(Kind::of(&at(name, *first), text)?),
            };
            let examples: Vec<_> =
                chunk.par_iter().map(|(line, text)| reader.example(&at(name, *line), kind, text)).collect();
            // One after the other, so that of several faults the first is told.
            for example in examples {
                dataset.push(example?, options.max_seq_len);
            }
        }
        if dataset.report.records == 0 {
            return Err(Error::Data {
                place: name.into(),
                what: "there is no record in it".into(),
                hint: "write one JSON object per line, such as {\"text\": \"…\"}".into(),
            });
        }
        if dataset.examples.is_empty() {
            return Err(Error::Data {
                place: name.into(),
                what: "no token in it is supervised".into(),
                hint:
                    "are the prompts longer than `max_seq_len`, or is there no assistant turn while prompts are masked?"
                        .into(),
            });
        }
        Ok(dataset)
    }

    /// A data set of examples that are tokens already; those with nothing supervised are dropped.
    ///
    /// ```
    /// use mc_train::{Dataset, Example};
    /// let data = Dataset::from_examples([Example::new(vec![1, 5, 9, 2], vec![true; 4]), Example::new(vec![1], vec![true])]);
    /// assert_eq!((data.len(), data.report().supervised_tokens), (1, 3)); // nothing predicts a first token
    /// assert_eq!(data.report().dropped_without_supervision, 1);
    /// ```
    pub fn from_examples(examples: impl IntoIterator<Item = Example>) -> Self {
        let mut dataset = Self::default();
        examples.into_iter().for_each(|example| dataset.push(example, usize::MAX));
        dataset
    }

    /// The examples, in the order of the file.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// What became of the records.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    /// Checks that a model of `vocab_size` tokens has all of these; `name` is what the error calls the data.
    ///
    /// # Errors
    /// If a token's id is beyond the vocabulary.
    pub fn check_tokens(&self, name: &str, vocab_size: usize) -> Result<()> {
        match self.examples.iter().flat_map(|example| &example.ids).find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(Error::Data {
                place: name.into(),
                what: format!("it has token id {id}, expected ids below the model's vocabulary of {vocab_size}"),
                hint: "weights and tokenizer must be of the same model; was a token added to one of them?".into(),
            }),
            None => Ok(()),
        }
    }

    /// A number that differs between data sets: of all tokens and marks.
    pub(crate) fn fingerprint(&self) -> u64 {
        let marked = |(id, supervised): (&u32, &bool)| u64::from(*id) << 1 | u64::from(*supervised);
        let length = |e: &Example| std::iter::once(e.ids.len() as u64);
        hash(self.examples.iter().flat_map(|e| length(e).chain(e.ids.iter().zip(&e.supervised).map(marked))))
    }

    fn push(&mut self, example: Example, max_seq_len: usize) {
        // Its fields are anybody's.
        let mut example = Example::new(example.ids, example.supervised);
        let report = &mut self.report;
        report.records += 1;
        if example.ids.len() > max_seq_len {
            example.ids.truncate(max_seq_len);
            example.supervised.truncate(max_seq_len);
            report.truncated += 1;
        }
        let targets = example.targets();
        if targets == 0 {
            report.dropped_without_supervision += 1;
            return;
        }
        report.tokens += example.ids.len();
        report.supervised_tokens += targets;
        self.examples.push(example);
    }
}

/// The files of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    /// `train.jsonl`.
    pub train: PathBuf,
    /// `valid.jsonl`, if it is there.
    pub valid: Option<PathBuf>,
}

impl DataFiles {
    /// The files of a directory, or one file to train on.
    ///
    /// # Errors
    /// If there is nothing at `path`, or a directory without `train.jsonl`.
    pub fn find(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let there = |name: &str| Some(path.join(name)).filter(|p| p.is_file());
        if !path.metadata().map_err(Error::io(path))?.is_dir() {
            return Ok(Self { train: path.into(), valid: None });
        }
        let train = there("train.jsonl").ok_or_else(|| Error::Data {
            place: path.display().to_string(),
            what: "no train.jsonl".into(),
            hint: "a data directory holds train.jsonl, and valid.jsonl if there is held-out data".into(),
        })?;
        Ok(Self { train, valid: there("valid.jsonl") })
    }
}

fn at(name: &str, line: usize) -> String {
    format!("{name}:{line}")
}

/// The next lines that are not empty, with their numbers from 1.
fn read_lines(name: &str, lines: &mut impl BufRead, number: &mut usize) -> Result<Vec<(usize, String)>> {
    let mut chunk = vec![];
    while chunk.len() < CHUNK {
        let mut line = vec![];
        let read = lines.take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(Error::io(name))?;
        if read == 0 {
            break;
        }
        *number += 1;
        let fault = |what: String, hint: &str| Error::Data { place: at(name, *number), what, hint: hint.into() };
        if read as u64 > MAX_LINE {
            return Err(fault(
                format!("a line of more than {} MiB", MAX_LINE >> 20),
                "is each record on a line of its own?",
            ));
        }
        // A byte order mark is no part of the first record.
        let line = match *number {
            1 => line.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(line),
            _ => line,
        };
        let line = String::from_utf8(line).map_err(|e| {
            let what = format!("not UTF-8 at byte {} of the line", e.utf8_error().valid_up_to() + 1);
            fault(what, "save the file as UTF-8")
        })?;
        if !line.trim().is_empty() {
            chunk.push((*number, line));
        }
    }
    Ok(chunk)
}
