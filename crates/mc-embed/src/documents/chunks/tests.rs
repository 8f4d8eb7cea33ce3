//! What every chunk of any text has in common, and where borders fall in texts that people write.

use super::*;
use proptest::prelude::*;

fn words_of(text: &str) -> usize {
    text.split_whitespace().count()
}

/// The chunks of a text whose tokens are its words.
fn of_words(text: &str, markdown: bool, size: usize, overlap: usize) -> Result<Vec<Chunk<'_>>> {
    chunks(text, markdown, Chunking { size, overlap }, &|text| Ok(words_of(text)))
}

/// The chunks of a text as lines `first-last text`, blank space as one space.
fn cut(text: &str, size: usize, overlap: usize) -> Vec<String> {
    let chunks = of_words(text, true, size, overlap).unwrap();
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    chunks.iter().map(|c| format!("{}-{} {}", c.first_line, c.last_line, one_line(c.text))).collect()
}

#[test]
fn a_heading_starts_a_chunk() {
    let text = "# One\n\na b c.\n\n## Two\n\nd e f g.\n\nThree\n-----\n\nh i.\n";
    assert_eq!(cut(text, 12, 4), ["1-3 # One a b c.", "5-7 ## Two d e f g.", "9-12 Three ----- h i."]);
}

#[test]
fn what_looks_like_a_heading_in_code_is_none() {
    let text = "Run this:\n\n```sh\n# not a heading\nls\n```\n\nand no more of it than that, really.\n";
    assert_eq!(cut(text, 40, 0), ["1-8 Run this: ```sh # not a heading ls ``` and no more of it than that, really."]);
    // Where a heading would end the chunk: it is long enough, and behind the fence it does.
    let text = "a b c d e f g h i j:\n\n```sh\n# k l\n```\n\n# m n o\n";
    assert_eq!(cut(text, 40, 0), ["1-5 a b c d e f g h i j: ```sh # k l ```", "7-7 # m n o"]);
    // In other texts `#` is a character.
    let plain = of_words("a b c d\n\n# e\n", false, 8, 0).unwrap();
    assert_eq!(plain.len(), 1);
}

#[test]
fn paragraphs_are_kept_whole_where_they_fit_and_sentences_where_not() {
    let text = "a b c d e f.\n\ng h i j. k l m n.\n";
    assert_eq!(cut(text, 10, 0), ["1-1 a b c d e f.", "3-3 g h i j. k l m n."]);
    // No border but sentences, of four words each.
    let text = "a b c d. e f g h. i j k l. m n o p.";
    assert_eq!(cut(text, 10, 0), ["1-1 a b c d. e f g h.", "1-1 i j k l. m n o p."]);
    assert_eq!(cut(text, 10, 4), ["1-1 a b c d. e f g h.", "1-1 e f g h. i j k l.", "1-1 i j k l. m n o p."]);
}

#[test]
fn text_without_spaces_is_cut_too() {
    let letters = |text: &str| Ok(text.chars().count());
    let text = "海".repeat(50);
    let parts = chunks(&text, false, Chunking { size: 16, overlap: 4 }, &letters).unwrap();
    assert!(parts.len() >= 4 && parts.iter().all(|c| c.text.chars().count() <= 16), "{parts:?}");
    assert!(parts.iter().any(|c| c.text.chars().count() >= 14), "{parts:?}");
    // However different its letters are.
    let uneven = |text: &str| Ok(text.chars().map(|c| if c == 'x' { 1 } else { 7 }).sum());
    let text = format!("{}{}", "x".repeat(300), "海".repeat(20));
    let parts = chunks(&text, false, Chunking { size: 16, overlap: 0 }, &uneven).unwrap();
    assert!(parts.iter().all(|c| c.tokens <= 16), "{parts:?}");
    assert_eq!(parts.iter().map(|c| c.text).collect::<String>(), text);
    // One letter is never cut.
    let parts = chunks("海海", false, Chunking { size: 8, overlap: 0 }, &|text| Ok(9 * text.chars().count())).unwrap();
    assert_eq!(parts.iter().map(|c| (c.text, c.tokens)).collect::<Vec<_>>(), [("海", 9), ("海", 9)]);
}

/// A text of many MB is never tokenized at once, whatever is in it.
#[test]
fn long_lines_are_counted_in_parts() {
    const LENGTH: usize = 1 << 20;
    let (longest, all) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let letters = |text: &str| {
        longest.set(longest.get().max(text.len()));
        all.set(all.get() + text.len());
        Ok(text.trim().len().div_ceil(4))
    };
    for text in ["copper heat ".repeat(LENGTH / 12), "é".repeat(LENGTH / 2), format!("a{}b", "\n".repeat(LENGTH))] {
        longest.set(0);
        all.set(0);
        let parts = chunks(&text, true, Chunking { size: 64, overlap: 8 }, &letters).unwrap();
        assert!(parts.iter().all(|part| part.tokens <= 64) && parts.len() >= 2);
        assert!(longest.get() <= LENGTH / 32 && all.get() < 20 * LENGTH, "{} {}", longest.get(), all.get());
    }
}

/// To a model with a vocabulary of words one that it does not know is one token, however long.
#[test]
fn a_word_of_any_length_is_cut() {
    let spaced = format!("{} ", "x".repeat(3000)).repeat(40);
    for (text, size, most) in [
        ("x".repeat(2_000_000), 200, 16 << 10),
        ("é".repeat(30_000), 200, 16 << 10),
        (spaced.clone(), 200, 16 << 10),
        (spaced, 2000, 32_000),
    ] {
        let parts = of_words(&text, true, size, size / 5).unwrap();
        let lengths: Vec<_> = parts.iter().map(|part| part.text.len()).collect();
        assert!(parts.len() > 2 && lengths.iter().all(|length| *length <= most), "{lengths:?}");
        assert!(lengths[..lengths.len() - 1].iter().all(|length| *length > most / 2), "{lengths:?}");
        let mut covered = 0;
        for part in &parts {
            let start = part.text.as_ptr() as usize - text.as_ptr() as usize;
            assert!(text[covered.min(start)..start].trim().is_empty(), "lost before byte {start}");
            covered = start + part.text.len();
            // At white space where there is some.
            assert!(!text.contains(' ') || text[covered..].starts_with(' '));
        }
        assert!(text[covered..].trim().is_empty());
    }
}

/// Lines before which there is a heading.
fn headings(text: &str) -> Vec<usize> {
    let pieces = Pieces::of(text, true, 999, &|text| Ok(words_of(text))).unwrap();
    pieces.iter().filter(|piece| piece.before == Border::Heading).map(|piece| piece.line).collect()
}

#[test]
fn what_a_heading_is() {
    for (text, lines) in [
        ("# a\n## b\n###### c\n#\n#\td", &[1, 2, 3, 4, 5][..]),
        ("####### a\n#a\n\\# a", &[]),
        // Underlined by three of one character or more, after a blank line.
        ("a\n---\n\nb\n===\n\nc\n^^^^^^", &[1, 4, 7]),
        ("a\n-\n\nb\n--\n\nc\n-=-\n\nd\n---e", &[]),
        ("a\nb\n---", &[]),
        ("---\n\n***\n---\n\n\n===", &[]),
        // In code of either kind, which its own kind ends.
        ("```\n# a\n~~~\n# b\n```\n# c", &[6]),
        ("~~~\n# a\n```\n# b\n~~~\n# c", &[6]),
        ("```\na\n\nb\n---", &[]),
    ] {
        assert_eq!(headings(text), lines, "{text}");
    }
}

#[test]
fn a_section_of_a_few_words_is_no_chunk_of_its_own() {
    // A quarter of 16 is 4.
    for (text, expected) in [
        ("# A\n\n## B\n\nc d e f g\n", &["1-5 # A ## B c d e f g"][..]),
        ("# A\n\nb\n\n# C\n\nd\n", &["1-7 # A b # C d"]),
        ("# A\n\nb c\n\n# D\n\ne\n", &["1-3 # A b c", "5-7 # D e"]),
    ] {
        assert_eq!(cut(text, 16, 0), expected, "{text}");
    }
}

#[test]
fn a_chunk_is_not_cut_in_its_first_half() {
    for (text, expected) in [
        // The paragraph and the sentence end too early: words are left.
        ("a b.\n\nc. d e f g h i j k l m n o", &["1-3 a b. c. d e f g h i j", "3-3 k l m n o"][..]),
        // From half on, the strongest; of equal ones the last.
        ("a b c d e.\n\nf g h i j k l m n o", &["1-1 a b c d e.", "3-3 f g h i j k l m n o"]),
        ("a b c d e. f g. h i j k l m n o", &["1-1 a b c d e. f g.", "1-1 h i j k l m n o"]),
    ] {
        assert_eq!(cut(text, 10, 0), expected, "{text}");
    }
}

/// What the chunk before ends with and the next word are too much together: nothing is repeated.
#[test]
fn an_overlap_that_leaves_no_room_is_left_out() {
    let letters = |text: &str| Ok(text.chars().filter(|c| !c.is_whitespace()).count());
    let of = |text| {
        let parts = chunks(text, false, Chunking { size: 16, overlap: 8 }, &letters).unwrap();
        parts.iter().map(|part| part.text.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(of("aaaaaaaa bbbbbbbb cccccccccc"), ["aaaaaaaa bbbbbbbb", "cccccccccc"]);
    assert_eq!(of("aaaaaaaa bbbbbbbb cccccccc"), ["aaaaaaaa bbbbbbbb", "bbbbbbbb cccccccc"]);
}

#[test]
fn nothing_has_no_chunks_and_ends_of_lines_are_not_text() {
    assert!(cut("", 8, 0).is_empty());
    assert!(cut(" \n\r\n\t\n", 8, 0).is_empty());
    assert_eq!(cut("\r\n\r\na b\r\nc\r\n\r\n", 8, 0), ["3-4 a b c"]);
}

#[test]
fn settings_out_of_range_are_errors() {
    let error = |size, overlap| of_words("a", false, size, overlap).unwrap_err().to_string();
    assert_eq!(error(7, 0), "`chunk_size` is 7, expected 8 or more");
    let error_of_prompt = chunks("a", false, Chunking { size: 19, overlap: 0 }, &|text| Ok(12 + words_of(text)));
    assert_eq!(error_of_prompt.unwrap_err().to_string(), "`chunk_size` is 19, expected 20 or more");
    assert_eq!(error(20, 11), "`chunk_overlap` is 11, expected at most 10, half of a chunk");
}

/// Texts of words, short and long lines, blank lines and headings.
fn texts() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        4 => "[a-z.]{1,6}( [a-zé.]{1,6}){0,12}",
        1 => "[a-z.]{1,6}( [a-z.]{1,6}){12,90}",
        2 => Just(String::new()),
        1 => "#{1,3} [A-Z]{3,9}",
        1 => Just("```".to_string()),
    ];
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every word is in a chunk, in order; no chunk is too long; lines are where the text is; chunks repeat no more than
    /// the overlap.
    #[test]
    fn chunks_cover_the_text(text in texts(), size in 8usize..60, share in 0usize..=50) {
        let overlap = size * share / 100;
        let parts = of_words(&text, true, size, overlap).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        let mut covered = 0; // bytes of the text
        for part in &parts {
            let start = part.text.as_ptr() as usize - text.as_ptr() as usize;
            let end = start + part.text.len();
            prop_assert!(words_of(part.text) <= size, "{:?}", part);
            prop_assert!(end > covered, "nothing new in {:?}", part);
            prop_assert!(text[covered.min(start)..start].trim().is_empty(), "lost before {:?}", part);
            if start < covered {
                prop_assert!(words_of(&text[start..covered]) <= overlap, "{:?}", part);
            }
            covered = end;
            let line_of = |at: usize| 1 + text[..at].matches('\n').count();
            prop_assert_eq!((part.first_line, part.last_line), (line_of(start), line_of(end)));
            prop_assert!(part.last_line <= lines.len());
        }
        prop_assert!(text[covered..].trim().is_empty(), "lost at the end");
    }

    /// So it is with tokenizers for which a text has more tokens than its parts, and which add some to any.
    #[test]
    fn no_chunk_is_too_long(text in texts(), size in 16usize..60, share in 0usize..=50) {
        let tokens = |text: &str| 5 + words_of(text) + words_of(text) / 3 + text.matches('\n').count();
        let how = Chunking { size, overlap: size * share / 100 };
        let mut covered = 0;
        for part in chunks(&text, true, how, &|text| Ok(tokens(text))).unwrap() {
            prop_assert_eq!(part.tokens, tokens(part.text));
            prop_assert!(part.tokens <= size, "{:?}", part);
            let start = part.text.as_ptr() as usize - text.as_ptr() as usize;
            prop_assert!(text[covered.min(start)..start].trim().is_empty(), "lost before {:?}", part);
            covered = start + part.text.len();
        }
        prop_assert!(text[covered..].trim().is_empty(), "lost at the end");
    }
}
