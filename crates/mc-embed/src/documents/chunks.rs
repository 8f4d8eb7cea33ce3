//! Cuts a text into chunks with overlap, at headings and paragraphs where it can. Knows no files; what a token is, it is
//! told.

use crate::index::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// More bytes of a text than this are never tokenized at once: of a line of many MB that would take a GB of memory.
const AT_ONCE: usize = 16 << 10;

/// The most bytes of a chunk for each token that it may have, where that is more than [`AT_ONCE`].
const BYTES_PER_TOKEN: usize = 16;

/// How long chunks are, in tokens of the model. A chunk also ends before 16 KiB, or 16 bytes for each token of `size` if that
/// is more: to some models a word of any length is one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// The most tokens that the model reads of a chunk, with those that it adds to any text, such as its prompt; 8 more than
    /// those at least. The default, 200, is what the smallest common models read.
    pub size: usize,
    /// The most tokens that a chunk repeats of the one before it, at most half of `size`; across headings nothing is.
    pub overlap: usize,
}

impl Default for Chunking {
    fn default() -> Self {
        Self { size: 200, overlap: 40 }
    }
}

impl Chunking {
    /// Of a model that adds so many tokens to any text and reads `most`.
    pub(crate) fn check(self, added: usize, most: usize) -> Result<()> {
        let setting = |field, found, expected| Err(Error::Setting { field, found, expected });
        let Self { size, overlap } = self;
        if size < added + 8 {
            return setting("chunk_size", size, format!("{} or more", added + 8));
        }
        if size > most {
            return setting("chunk_size", size, format!("at most {most}, which is what the model reads"));
        }
        if overlap > size / 2 {
            return setting("chunk_overlap", overlap, format!("at most {}, half of a chunk", size / 2));
        }
        Ok(())
    }
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// What it says, without blank space at its ends.
    pub text: &'a str,
    /// The line it starts in, from 1.
    pub first_line: usize,
    /// The line it ends in.
    pub last_line: usize,
    /// How many tokens the model reads of it.
    pub tokens: usize,
}

/// What stands before a piece of text: the later, the better to cut there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Border {
    Word,
    Line,
    Sentence,
    Paragraph,
    Heading,
}

/// What is never cut: a line, a word of a longer line, a part of a word that is longer than a chunk.
struct Piece {
    range: Range<usize>,
    line: usize,
    /// Those of the blank space before it too; none of those that are added to any text.
    tokens: usize,
    before: Border,
}

/// The chunks of a text, in order. `markdown` says whether lines that start with `#` are headings; underlined ones are in
/// any text. `tokens` counts what the model reads of a text, with what it adds to any.
///
/// A heading always starts a chunk, unless what is before it is shorter than a quarter of one. Elsewhere a chunk ends at the
/// strongest border in its second half: of a paragraph, a sentence, a line, a word. Every letter is in a chunk.
///
/// # Errors
/// If the chunking is out of range, or `tokens` fails.
///
/// ```
/// use mc_embed::documents::{Chunking, chunks};
/// let text = "# Install\n\nDownload it. Unpack it.\n\n# Use\n\nStart it and wait.\n";
/// let words = |text: &str| Ok(text.split_whitespace().count());
/// let parts = chunks(text, true, Chunking { size: 8, overlap: 2 }, &words)?;
/// assert_eq!(parts.len(), 2);
/// assert_eq!((parts[1].text, parts[1].first_line, parts[1].last_line), ("# Use\n\nStart it and wait.", 5, 7));
/// # Ok::<(), mc_embed::index::Error>(())
/// ```
pub fn chunks<'a>(
    text: &'a str,
    markdown: bool,
    how: Chunking,
    tokens: &dyn Fn(&str) -> Result<usize>,
) -> Result<Vec<Chunk<'a>>> {
    let added = tokens("")?;
    how.check(added, usize::MAX)?;
    let room = how.size - added;
    let bytes = AT_ONCE.max(how.size.saturating_mul(BYTES_PER_TOKEN));
    let pieces = Pieces::of(text, markdown, room, &|text| Ok(tokens(text)?.saturating_sub(added).max(1)))?;
    let mut chunks = vec![];
    let (mut start, mut seen) = (0, 0); // the first piece of the chunk, and the first that was in no chunk yet
    while seen < pieces.len() {
        let mut fits = room;
        let (end, chunk) = loop {
            let mut end = furthest(&pieces, start, (fits, bytes), room / 4);
            if end <= seen {
                // The overlap leaves no room.
                start = seen;
                end = furthest(&pieces, start, (fits, bytes), room / 4);
            }
            let end = if end == pieces.len() { end } else { strongest(&pieces, start, seen + 1, end) };
            let (first, last) = (&pieces[start], &pieces[end - 1]);
            let text = text[first.range.start..last.range.end].trim();
            let chunk = Chunk { text, first_line: first.line, last_line: last.line, tokens: tokens(text)? };
            if chunk.tokens <= how.size || end == start + 1 {
                break (end, chunk);
            }
            // Together they have more tokens than one by one.
            fits = sum(&pieces[start..end]).saturating_sub(chunk.tokens - how.size);
        };
        chunks.push(chunk);
        seen = end;
        start = overlapping(&pieces, start, end, how.overlap);
    }
    Ok(chunks)
}

fn sum(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.tokens).sum()
}

/// Past the last piece that fits, or the heading that ends the section, if that is not a very short one.
fn furthest(pieces: &[Piece], start: usize, (room, bytes): (usize, usize), short: usize) -> usize {
    let mut tokens = 0;
    let first = pieces[start].range.start;
    for (i, piece) in pieces.iter().enumerate().skip(start) {
        let section_ends = piece.before == Border::Heading && tokens >= short;
        let full = tokens + piece.tokens > room || piece.range.end - first > bytes;
        if i > start && (section_ends || full) {
            return i;
        }
        tokens += piece.tokens;
    }
    pieces.len()
}

/// The best place to cut from `least` to `most`, in the second half of what fits: the last one of the strongest.
fn strongest(pieces: &[Piece], start: usize, least: usize, most: usize) -> usize {
    if pieces[most].before == Border::Heading {
        return most;
    }
    let (whole, mut tokens) = (sum(&pieces[start..most]), sum(&pieces[start..least]));
    let past_half = |cut: &usize| {
        let past = 2 * tokens >= whole;
        tokens += pieces[*cut].tokens;
        past
    };
    // Of equal ones the last.
    (least..=most).filter(past_half).max_by_key(|cut| pieces[*cut].before).unwrap_or(most)
}

/// Where the chunk after `start..end` begins: as far back as the overlap goes, within the section.
fn overlapping(pieces: &[Piece], start: usize, end: usize, overlap: usize) -> usize {
    let (mut first, mut tokens) = (end, 0);
    while first > start + 1 && first < pieces.len() && pieces[first].before != Border::Heading {
        tokens += pieces[first - 1].tokens;
        if tokens > overlap {
            break;
        }
        first -= 1;
    }
    first
}

/// A text as it is taken apart.
struct Pieces<'a> {
    text: &'a str,
    room: usize,
    tokens: &'a dyn Fn(&str) -> Result<usize>,
    found: Vec<Piece>,
}

impl<'a> Pieces<'a> {
    fn of(text: &'a str, markdown: bool, room: usize, tokens: &'a dyn Fn(&str) -> Result<usize>) -> Result<Vec<Piece>> {
        let mut this = Self { text, room, tokens, found: vec![] };
        let lines = lines(text);
        let mut before = Border::Paragraph;
        let mut fence: Option<&str> = None;
        for (i, range) in lines.iter().enumerate() {
            let line = text[range.clone()].trim();
            if line.is_empty() {
                before = Border::Paragraph;
                continue;
            }
            let ticks = ["```", "~~~"].into_iter().find(|ticks| markdown && line.starts_with(ticks));
            if fence.is_none() && is_heading(text, &lines, i, markdown) {
                before = Border::Heading;
            }
            match (fence, ticks) {
                (None, Some(ticks)) => fence = Some(ticks),
                (Some(open), Some(ticks)) if open == ticks => fence = None,
                _ => {}
            }
            if !this.add(range.clone(), (i + 1, before), room / 4)? {
                this.words(range.clone(), (i + 1, before))?;
            }
            before = if ends_sentence(line) { Border::Sentence } else { Border::Line };
        }
        Ok(this.found)
    }

    /// Adds a piece, if it has so many tokens at most.
    fn add(&mut self, range: Range<usize>, (line, before): (usize, Border), most: usize) -> Result<bool> {
        let end = self.found.last().map_or(0, |piece| piece.range.end);
        let tokens = match (range.len(), range.start - end) {
            (AT_ONCE.., _) => return Ok(false),
            // So much blank space is in no chunk.
            (_, AT_ONCE..) => self.room,
            _ => (self.tokens)(&self.text[end..range.end])?,
        };
        if tokens <= most {
            self.found.push(Piece { range, line, tokens, before });
        }
        Ok(tokens <= most)
    }

    /// The words of a long line.
    fn words(&mut self, range: Range<usize>, (line, mut before): (usize, Border)) -> Result<()> {
        let mut at = range.start;
        for word in self.text[range].split_inclusive(char::is_whitespace) {
            let start = at;
            at += word.len();
            let word = word.trim();
            if word.is_empty() {
                continue;
            }
            let range = start..start + word.len();
            if !self.add(range.clone(), (line, before), self.room)? {
                self.halves(range, (line, before))?;
            }
            before = if ends_sentence(word) { Border::Sentence } else { Border::Word };
        }
        Ok(())
    }

    /// Text without spaces, in halves until they are short.
    fn halves(&mut self, range: Range<usize>, (line, before): (usize, Border)) -> Result<()> {
        let text = &self.text[range.clone()];
        let letters = text.chars().count();
        let most = if letters == 1 { usize::MAX } else { (self.room / 8).max(1) };
        if self.add(range.clone(), (line, before), most)? {
            return Ok(());
        }
        let middle = range.start + text.char_indices().nth(letters / 2).map_or(0, |(at, _)| at);
        self.halves(range.start..middle, (line, before))?;
        self.halves(middle..range.end, (line, Border::Word))
    }
}

/// The places of lines, without their ends.
fn lines(text: &str) -> Vec<Range<usize>> {
    let mut at = 0;
    let range = |line: &str| {
        let start = at;
        at += line.len();
        start..start + line.trim_end_matches(['\n', '\r']).len()
    };
    text.split_inclusive('\n').map(range).collect()
}

fn ends_sentence(line: &str) -> bool {
    line.trim_end_matches(['"', '\'', ')', ']', '*', '_', '”', '’', '»'])
        .ends_with(['.', '!', '?', ':', '。', '！', '？'])
}

/// `# Heading`, or a line after a blank one that is underlined.
fn is_heading(text: &str, lines: &[Range<usize>], i: usize, markdown: bool) -> bool {
    let line = |i: usize| lines.get(i).map_or("", |range| text[range.clone()].trim_end());
    let this = line(i);
    let marks = this.trim_start_matches('#');
    let level = this.len() - marks.len();
    let marked = markdown && (1..=6).contains(&level) && (marks.is_empty() || marks.starts_with([' ', '\t']));
    let alone = i == 0 || line(i - 1).trim().is_empty();
    let next = line(i + 1);
    let under = next.chars().next().is_some_and(|c| "=-~^+*".contains(c) && next.chars().all(|other| other == c));
    marked || alone && under && next.len() >= 3 && this.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests;
