//! A Rust file as the invariants see it: its code without comments and literals, and which items are tests. Reads tokens by
//! hand, as far as comments, literals and brackets go, so that it needs no parser and keeps the comments.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Violation;

/// A Rust file. `code` and `text` have the same bytes at the same places.
pub(crate) struct Rust {
    pub(super) path: String,
    pub(super) text: String,
    /// The text with comments and the insides of literals blanked.
    pub(super) code: String,
    is_test_file: bool,
    /// The byte ranges of items that only tests see.
    tests: Vec<Range<usize>>,
}

/// The Rust files among `files`.
pub(super) fn read(files: &[(String, String)]) -> Vec<Rust> {
    let sources = files.iter().filter(|(path, _)| path.ends_with(".rs"));
    let mut rust: Vec<Rust> = sources.map(|(path, text)| Rust::parse(path, text)).collect();
    let test_modules: BTreeSet<String> = rust.iter().flat_map(Rust::test_modules).collect();
    for file in &mut rust {
        if test_modules.contains(&file.path) {
            file.is_test_file = true;
        }
    }
    rust
}

impl Rust {
    pub(super) fn parse(path: &str, text: &str) -> Self {
        let code = blank(text);
        let is_test_file = ["/tests/", "/benches/"].iter().any(|folder| path.contains(folder))
            || path.ends_with("/tests.rs")
            || path.starts_with("benches/")
            || path.starts_with("crates/mc-testkit/");
        let tests = test_items(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, is_test_file, tests }
    }

    pub(super) fn is_test(&self, at: usize) -> bool {
        self.is_test_file || self.tests.iter().any(|range| range.contains(&at))
    }

    /// The paths of the modules `name` that stand here as `#[cfg(test)] mod name;`.
    fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder,
            _ => self.path.trim_end_matches(".rs"),
        };
        let declared = self.tests.iter().filter_map(|range| {
            let words: Vec<&str> = self.code[range.clone()].split_whitespace().collect();
            words.windows(2).next_back().filter(|pair| pair[0] == "mod")?[1].strip_suffix(';')
        });
        declared.flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]).collect()
    }

    pub(super) fn lines_outside_tests(&self) -> usize {
        let starts = std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1));
        starts.filter(|at| *at < self.text.len() && !self.is_test(*at)).count()
    }

    /// Where `word` stands in the code, not as the end or the start of a longer name.
    pub(super) fn words(&self, word: &str) -> Vec<usize> {
        let name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let bounded = |at: usize| {
            let before = self.code[..at].chars().next_back();
            let after = self.code[at + word.len()..].chars().next();
            let longer_before = name(word.chars().next()) && name(before);
            let longer_after = name(word.chars().next_back()) && name(after);
            !longer_before && !longer_after
        };
        self.code.match_indices(word).map(|(at, _)| at).filter(|at| bounded(*at)).collect()
    }

    pub(super) fn find(&self, words: &[&str], wanted: impl Fn(usize) -> bool) -> Vec<Violation> {
        let at = words.iter().flat_map(|word| self.words(word).into_iter().map(move |at| (at, word)));
        at.filter(|(at, _)| wanted(*at)).map(|(at, word)| self.violation(at, &format!("`{word}`"))).collect()
    }

    /// Whether the statement or item at `at`, or a comment right above it, says why it is safe.
    pub(super) fn has_safety_comment(&self, at: usize) -> bool {
        let end = self.text[at..].find('\n').map_or(self.text.len(), |length| at + length);
        let lines = self.text[..end].lines().rev().zip(self.code[..end].lines().rev());
        for (number, (text, code)) in lines.enumerate() {
            let ended = code.trim_end().ends_with([';', '{', '}']) || text.trim().is_empty();
            if number > 0 && ended {
                return false;
            }
            if text.contains("// SAFETY:") || text.contains("/// # Safety") {
                return true;
            }
        }
        false
    }

    pub(super) fn violation(&self, at: usize, found: &str) -> Violation {
        let line = self.text[..at].matches('\n').count() + 1;
        Violation { place: format!("{}:{line}", self.path), found: found.to_owned() }
    }
}

/// The items under `#[test]` and `#[cfg(test)]`, attribute and body, whole lines of them.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for (at, _) in code.match_indices("#[") {
        let attribute_end = close(code, at + 1);
        let attribute = code[at..attribute_end].replace(char::is_whitespace, "");
        let is_test = attribute == "#[test]" || attribute == "#[cfg(test)]" || attribute.starts_with("#[cfg(all(test,");
        if !is_test || items.last().is_some_and(|item| item.contains(&at)) {
            continue;
        }
        let line = code[..at].rfind('\n').map_or(0, |newline| newline + 1);
        items.push(line..item_end(code, attribute_end));
    }
    items
}

/// The end of the item that starts at `from`: its closing brace, or its semicolon.
fn item_end(code: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(found) = code[at..].find(['(', '[', '{', ';']) {
        at += found;
        match &code[at..=at] {
            ";" => return at + 1,
            "{" => return close(code, at),
            _ => at = close(code, at),
        }
    }
    code.len()
}

/// One past the bracket that closes the one at `open`.
pub(super) fn close(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth <= 1 => return open + at + 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// `text` with comments and the insides of string and character literals blanked; every byte keeps its place.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    // Only whole comments and literals were blanked, so the rest is the UTF-8 it was.
    String::from_utf8_lossy(&code).into_owned()
}

/// The end of the comment or literal that starts at `at`; `at` itself where none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let in_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let until = |from: usize, end: &[u8]| {
        let found = bytes[from..].windows(end.len()).position(|window| window == end);
        found.map_or(bytes.len(), |found| from + found + end.len())
    };
    if rest.starts_with(b"//") {
        return rest.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length);
    }
    if rest.starts_with(b"/*") {
        return block_comment_end(bytes, at);
    }
    if rest[0] == b'r' && (!in_name || matches!(bytes[at - 1], b'b' | b'c')) {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            return until(at + 2 + hashes, format!("\"{}", "#".repeat(hashes)).as_bytes());
        }
    }
    match rest[0] {
        b'"' => quoted_end(bytes, at, b'"'),
        b'\'' if rest.get(1) == Some(&b'\\') => quoted_end(bytes, at, b'\''),
        // `'a'` is a character, `'a` a lifetime. A character has continuation bytes, 10xxxxxx, after its first.
        b'\'' => {
            let continued = rest.iter().skip(2).take_while(|byte| **byte & 0xc0 == 0x80).count();
            if rest.get(2 + continued) == Some(&b'\'') { at + 3 + continued } else { at }
        }
        _ => at,
    }
}

/// One past the `quote` that ends the literal at `open`; a backslash hides the byte after it.
fn quoted_end(bytes: &[u8], open: usize, quote: u8) -> usize {
    let mut at = open + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    bytes.len().min(at + 1)
}

/// One past the block comment at `open`; they nest.
fn block_comment_end(bytes: &[u8], open: usize) -> usize {
    let (mut at, mut depth) = (open + 2, 1_usize);
    while at < bytes.len() && depth > 0 {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (at, depth) = (at + 2, depth + 1),
            b"*/" => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    //! What is code, and what is a test.
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        // A `_` in the expectation is a blank.
        let check = |text: &str, code: &str| assert_eq!(blank(text), code.replace('_', " "), "{text}");
        check("a // x\nb", "a ____\nb");
        check("a /* x /* y */ z */ b", "a _________________ b");
        check(r#"f("a\"b", c)"#, "f(______, c)");
        check("f(r#\"a\"b\"#, br\"\\\", c)", "f(________, b____, c)");
        check(r"['x', '\'', '{'] <'a>", "[___, ____, ___] <'a>");
        check("['é', c]", "[____, c]");
        check("for r in x \"r\"", "for r in x ___");
    }

    #[test]
    fn test_items_end_with_their_brace_or_semicolon() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { \"}\"; }\n}\nfn c() {}\n#[cfg(test)]\nuse x;\nfn d() {}\n";
        let file = Rust::parse("crates/mc-models/src/rope.rs", text);
        let outside = ["a", "b", "c", "d"].map(|name| !file.is_test(text.find(&format!("fn {name}")).unwrap()));
        assert_eq!(outside, [true, false, true, true]);
        assert_eq!(file.lines_outside_tests(), 3);
    }
}
