//! The lines of a file or of stdin, some at a time: texts to embed. Knows no model.

use crate::failure::wrong;
use anyhow::{Context, Result};
use metal_candle::{checkpoint, embeddings};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

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

    /// What errors call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The next lines, as many as are computed together, without what ends them; none at the end.
    pub(crate) fn next(&mut self) -> Result<Vec<String>> {
        self.up_to(AT_ONCE, AT_ONCE_BYTES)
    }

    /// All that are left.
    pub(crate) fn rest(&mut self) -> Result<Vec<String>> {
        self.up_to(usize::MAX, usize::MAX)
    }

    /// Up to so many. No more are read once they have this many bytes.
    fn up_to(&mut self, most: usize, bytes: usize) -> Result<Vec<String>> {
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

    /// What ends a line is no part of it, and so not of its length.
    #[test]
    fn a_line_may_be_as_long_as_the_longest() {
        for end in ["", "\n", "\r\n"] {
            let of =
                |length: u64| lines([vec![b'x'; length as usize], end.as_bytes().to_vec(), b"y".to_vec()].concat());
            let read = of(LONGEST - u64::from(end.is_empty())).rest().unwrap();
            let (first, rest) = read.split_first().unwrap();
            assert_eq!((first.len() as u64, rest.len()), (LONGEST, usize::from(!end.is_empty())), "{end:?}");
            let error = of(LONGEST + 1).rest().unwrap_err().to_string();
            assert_eq!(error, "stdin, line 1: longer than 4 MiB", "{end:?}");
        }
        // A carriage return that ends nothing counts.
        let error = lines([vec![b'x'; LONGEST as usize], b"\ry\n".to_vec()].concat()).rest().unwrap_err();
        assert_eq!(error.to_string(), "stdin, line 1: longer than 4 MiB");
    }

    /// So that memory has a bound.
    #[test]
    fn few_long_lines_are_held_at_once() {
        let long = [vec![b'x'; LONGEST as usize - 1], b"\n".to_vec()].concat();
        let mut lines = lines([long.repeat(7), b"a\nb\n".to_vec()].concat());
        // Four are four bytes less than 16 MiB.
        let counts: Vec<_> = (0..4).map(|_| lines.next().unwrap().len()).collect();
        assert_eq!(counts, [5, 4, 0, 0]);
        assert_eq!(lines.read, 9);
    }
}
