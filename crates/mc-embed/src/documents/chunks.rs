//! Cuts a text into chunks with overlap, at headings and paragraphs where it can. Knows no files; what a token is, it is
//! told.

use crate::index::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How long chunks are, in tokens of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunking {
    /// The most tokens in a chunk, 8 or more. The default, 200, is what the smallest common models read, with room.
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
    pub(crate) fn check(self) -> Result<()> {
        let setting = |field, found, expected| Err(Error::Setting { field, found, expected });
        let Self { size, overlap } = self;
        if size < 8 {
            return setting("chunk_size", size, "8 or more".into());
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
    tokens: usize,
    before: Border,
}

/// The chunks of a text, in order. `markdown` says whether lines that start with `#` are headings; underlined ones are in
/// any text. `tokens` counts those of a text; a chunk's are counted line by line.
///
/// A heading always starts a chunk, unless what is before it is shorter than a quarter of one. Elsewhere a chunk ends at the
/// strongest border in its second half: of a paragraph, a sentence, a line, a word.
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
    how.check()?;
    let pieces = pieces(text, markdown, how.size, tokens)?;
    let mut chunks = vec![];
    let (mut start, mut seen) = (0, 0); // the first piece of the chunk, and the first that was in no chunk yet
    while seen < pieces.len() {
        let mut end = furthest(&pieces, start, how.size);
        if end <= seen {
            // The overlap leaves no room.
            start = seen;
            end = furthest(&pieces, start, how.size);
        }
        let end = if end == pieces.len() { end } else { strongest(&pieces, start, seen + 1, end) };
        let (first, last) = (&pieces[start], &pieces[end - 1]);
        chunks.push(Chunk {
            text: text[first.range.start..last.range.end].trim(),
            first_line: first.line,
            last_line: last.line,
        });
        seen = end;
        start = overlapping(&pieces, start, end, how.overlap);
    }
    Ok(chunks)
}

/// Past the last piece that fits, or the heading that ends the section.
fn furthest(pieces: &[Piece], start: usize, size: usize) -> usize {
    let mut tokens = 0;
    for (i, piece) in pieces.iter().enumerate().skip(start) {
        let section_ends = piece.before == Border::Heading && tokens >= size / 4;
        if i > start && (section_ends || tokens + piece.tokens > size) {
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
    let whole: usize = pieces[start..most].iter().map(|p| p.tokens).sum();
    let mut tokens: usize = pieces[start..least].iter().map(|p| p.tokens).sum();
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

fn pieces(text: &str, markdown: bool, size: usize, tokens: &dyn Fn(&str) -> Result<usize>) -> Result<Vec<Piece>> {
    let lines = lines(text);
    let mut pieces: Vec<Piece> = vec![];
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
        let count = tokens(line)?;
        if count <= size / 4 {
            pieces.push(Piece { range: range.clone(), line: i + 1, tokens: count.max(1), before });
        } else {
            words(text, range.clone(), (i + 1, before), size, tokens, &mut pieces)?;
        }
        before = if ends_sentence(line) { Border::Sentence } else { Border::Line };
    }
    Ok(pieces)
}

/// The words of a long line, each with the space after it.
fn words(
    text: &str,
    range: Range<usize>,
    (line, first): (usize, Border),
    size: usize,
    tokens: &dyn Fn(&str) -> Result<usize>,
    pieces: &mut Vec<Piece>,
) -> Result<()> {
    let mut before = first;
    let mut at = range.start;
    for word in text[range].split_inclusive(char::is_whitespace) {
        let range = at..at + word.len();
        at = range.end;
        let word = word.trim();
        if word.is_empty() {
            continue;
        }
        let count = tokens(word)?.max(1);
        if count <= size {
            pieces.push(Piece { range, line, tokens: count, before });
        } else {
            // Text without spaces. Its letters are about equally long in tokens.
            let letters = word.chars().count();
            let each = (letters * (size / 8).max(1) / count).max(1);
            let mut from = range.start;
            let starts = text[range.clone()].char_indices().map(|(i, _)| range.start + i).skip(each).step_by(each);
            for to in starts.chain([range.end]) {
                let tokens = tokens(&text[from..to])?.max(1);
                pieces.push(Piece { range: from..to, line, tokens, before });
                (from, before) = (to, Border::Word);
            }
        }
        before = if ends_sentence(word) { Border::Sentence } else { Border::Word };
    }
    Ok(())
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
