//! Texts and pairs cut to a number of tokens.

use crate::golden_tokenizer;
use mc_text::{CutSide, Tokenizer};

/// A tokenizer that puts a token on each side of a text and between two.
fn bert() -> Tokenizer {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../mc-embed/tests/golden/cross/bert");
    Tokenizer::load(directory).unwrap()
}

#[test]
fn what_fits_is_what_encode_gives() {
    for name in crate::TOKENIZERS {
        let tokenizer = golden_tokenizer(name);
        let text = "The quick brown fox";
        let ids = tokenizer.encode(text, true).unwrap();
        let encoded = tokenizer.encode_within(text, None, ids.len(), CutSide::End).unwrap();
        assert_eq!((encoded.ids, encoded.cut), (ids, false));
    }
}

#[test]
fn special_tokens_are_never_cut_off() {
    let tokenizer = bert();
    let text = "river mountain cloud stone bread window letter garden";
    let whole = tokenizer.encode(text, true).unwrap();
    let n = whole.len();
    for limit in 3..n {
        let encoded = tokenizer.encode_within(text, None, limit, CutSide::End).unwrap();
        assert_eq!((encoded.ids.len(), encoded.cut), (limit, true));
        assert_eq!(
            (encoded.ids[..limit - 1].to_vec(), encoded.ids[limit - 1]),
            (whole[..limit - 1].to_vec(), whole[n - 1])
        );
        let start = tokenizer.encode_within(text, None, limit, CutSide::Start).unwrap().ids;
        assert_eq!((start[0], &start[1..]), (whole[0], &whole[n - limit + 1..]));
    }
    // Where there is no room but for them, there is nothing else.
    for limit in 0..=2 {
        assert_eq!(tokenizer.encode_within(text, None, limit, CutSide::End).unwrap().ids, [whole[0], whole[n - 1]]);
    }
}

#[test]
fn the_longer_of_a_pair_is_cut_first_and_types_tell_them_apart() {
    let tokenizer = bert();
    let (short, long) = ("river", "cloud stone bread window letter garden winter summer");
    let first = tokenizer.encode(short, false).unwrap();
    let encoded = tokenizer.encode_within(short, Some(long), 12, CutSide::End).unwrap();
    assert_eq!((encoded.ids.len(), encoded.type_ids.len(), encoded.cut), (12, 12, true));
    assert_eq!(encoded.ids[1..=first.len()], first, "the short one is whole");
    let boundary = encoded.type_ids.partition_point(|t| *t == 0);
    assert_eq!(boundary, first.len() + 2);
    assert!(encoded.type_ids[boundary..].iter().all(|t| *t == 1));
    let swapped = tokenizer.encode_within(long, Some(short), 12, CutSide::End).unwrap();
    assert_eq!(swapped.ids[12 - 1 - first.len()..11], first);
}

#[test]
fn lower_case_comes_before_what_the_tokenizer_does() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../mc-embed/tests/golden/models/bert-concat");
    let cased = Tokenizer::load(directory).unwrap();
    let lower = cased.lower_cased().unwrap();
    let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, true).unwrap();
    assert_ne!(encode(&cased, "River"), encode(&cased, "river"));
    assert_eq!(encode(&lower, "RIVER Mountain"), encode(&cased, "river mountain"));
}
