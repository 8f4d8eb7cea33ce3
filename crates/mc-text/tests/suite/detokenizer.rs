//! Streamed text equals decoded text, whatever the ids.

use mc_text::Tokenizer;
use proptest::prelude::*;

use crate::{TOKENIZERS, golden_json, golden_tokenizer};

fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer(skip_special);
    ids.iter().filter_map(|&id| detokenizer.push(id).unwrap()).collect()
}

/// The pieces of `ids` hold together with their decoded text.
fn check(name: &str, tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) {
    let whole = tokenizer.decode(ids, skip_special).unwrap();
    let pieces = stream(tokenizer, ids, skip_special);
    let streamed = pieces.concat();
    assert!(pieces.iter().all(|piece| !piece.is_empty()), "{name}: {ids:?}");
    let replacements = |text: &str| text.matches('\u{fffd}').count();
    assert!(replacements(&streamed) <= replacements(&whole), "{name}: {ids:?}: {streamed:?} for {whole:?}");
    // A vocabulary that has the replacement character itself may decode to it honestly.
    if replacements(&whole) == 0 {
        assert_eq!(streamed, whole, "{name}: {ids:?}");
    }
    if name != "metaspace" {
        // Byte-level: invalid bytes in the middle are replaced alike; only an unfinished character is left out.
        let unfinished = whole.strip_suffix('\u{fffd}').unwrap_or(&whole);
        assert!(streamed == whole || streamed == unfinished, "{name}: {ids:?}: {streamed:?} for {whole:?}");
    }
}

#[test]
fn every_golden_text_streams() {
    for name in TOKENIZERS {
        let tokenizer = golden_tokenizer(name);
        let expected = golden_json(&format!("{name}/expected.json"));
        for case in expected["texts"].as_array().unwrap() {
            let ids = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
            for skip_special in [false, true] {
                // What was U+FFFD in the text itself is text, not damage.
                let whole = tokenizer.decode(&ids, skip_special).unwrap();
                assert_eq!(stream(&tokenizer, &ids, skip_special).concat(), whole, "{name}: {case}");
            }
        }
    }
}

#[test]
fn a_character_comes_whole_and_at_once() {
    for name in TOKENIZERS {
        let tokenizer = golden_tokenizer(name);
        let ids = tokenizer.encode("a😀b", false).unwrap();
        let pieces = stream(&tokenizer, &ids, true);
        assert_eq!(pieces.concat(), "a😀b", "{name}");
        assert!(pieces.contains(&"😀".to_string()), "{name}: {pieces:?}");

        // Cut inside the emoji: nothing stands for its first bytes.
        let mut detokenizer = tokenizer.detokenizer(true);
        let cut: String = ids[..ids.len() - 2].iter().filter_map(|&id| detokenizer.push(id).unwrap()).collect();
        assert_eq!(cut, "a", "{name}");
        assert!(detokenizer.is_incomplete(), "{name}");

        // A new text knows nothing of it.
        detokenizer.reset();
        let again: String = ids.iter().filter_map(|&id| detokenizer.push(id).unwrap()).collect();
        assert_eq!(again, "a😀b", "{name}");
    }
}

#[test]
fn the_leading_space_is_stripped_once() {
    let tokenizer = golden_tokenizer("metaspace");
    let ids = tokenizer.encode("the fox  the", false).unwrap();
    assert_eq!(stream(&tokenizer, &ids, true).concat(), "the fox  the");
    // A space spelled as a byte is stripped like any other, but only at the start.
    let space = tokenizer.token_to_id("<0x20>").unwrap();
    let letter = tokenizer.token_to_id("<0x61>").unwrap();
    for ids in [vec![space, space, letter], vec![letter, space, ids[0]], vec![1, space, letter]] {
        assert_eq!(stream(&tokenizer, &ids, true).concat(), tokenizer.decode(&ids, true).unwrap(), "{ids:?}");
    }
}

#[test]
fn special_tokens_are_skipped_or_spelled() {
    let tokenizer = golden_tokenizer("qwen");
    let ids = tokenizer.encode("<|im_start|>hi<tool_call><|im_end|>", false).unwrap();
    assert_eq!(stream(&tokenizer, &ids, true).concat(), "hi<tool_call>");
    assert_eq!(stream(&tokenizer, &ids, false).concat(), "<|im_start|>hi<tool_call><|im_end|>");
    // Rows of the embedding that no token belongs to.
    assert_eq!(stream(&tokenizer, &[4_000_000_000], false), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn random_ids_stream_as_they_decode(
        seed in prop::collection::vec(0u32..1000, 0..40),
        which in 0usize..3,
        skip_special in any::<bool>(),
    ) {
        let name = TOKENIZERS[which];
        let tokenizer = cached(which);
        let ids: Vec<u32> = seed.iter().map(|id| id % (tokenizer.vocab_size() as u32 + 3)).collect();
        check(name, tokenizer, &ids, skip_special);
    }

    #[test]
    fn any_text_streams_whole(text in "(\\PC|[ \n😀é你]){0,24}", which in 0usize..3) {
        let tokenizer = cached(which);
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(stream(tokenizer, &ids, false).concat(), tokenizer.decode(&ids, false).unwrap());
    }
}

fn cached(which: usize) -> &'static Tokenizer {
    static ALL: std::sync::OnceLock<Vec<Tokenizer>> = std::sync::OnceLock::new();
    &ALL.get_or_init(|| TOKENIZERS.iter().map(|name| golden_tokenizer(name)).collect())[which]
}
