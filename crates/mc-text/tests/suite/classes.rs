//! What a `tokenizer_class` says over tokenizer.json is as in transformers, and what is not known is said.

use mc_testkit::Warnings;
use mc_text::{CutSide, Error, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};
use tracing::subscriber::with_default;

use crate::{golden_json, golden_path};

/// A tokenizer of a file below `golden/classes`, beside other files.
fn tokenizer_of(file: &str, files: &Value) -> Result<Tokenizer, Error> {
    let other = |name: &str| files.get(name).map(|json| json.to_string().into_bytes().into());
    Tokenizer::from_files(&TokenizerFiles {
        tokenizer_json: std::fs::read(golden_path("classes").join(file)).unwrap().into(),
        tokenizer_config: other("tokenizer_config.json"),
        config: other("config.json"),
        ..TokenizerFiles::default()
    })
}

fn numbers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn classes_encode_as_in_transformers() {
    let expected = golden_json("classes/expected.json");
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let (texts, pairs) = (expected["texts"].as_array().unwrap(), expected["pairs"].as_array().unwrap());
    let (mut differ, mut types) = (0, 0);
    for case in expected["cases"].as_array().unwrap() {
        let what = format!("{} {}", case["tokenizer"], case["files"]);
        let tokenizer = tokenizer_of(case["tokenizer"].as_str().unwrap(), &case["files"]).unwrap();
        let mut all = vec![];
        for (text, ids) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let found = tokenizer.encode(text, true).unwrap();
            assert_eq!(found, numbers(ids), "{what}: {text:?}");
            all.extend(found);
        }
        assert_eq!(tokenizer.decode(&all, false).unwrap(), case["decoded"], "{what}");
        for (i, pair) in pairs.iter().enumerate().take(case["pairs"].as_array().unwrap().len()) {
            let found = tokenizer.encode_within(&text(&pair[0]), Some(&text(&pair[1])), 1000, CutSide::End).unwrap();
            let wanted = (numbers(&case["pairs"][i]), numbers(&case["pair_types"][i]));
            assert_eq!((found.ids, found.type_ids), wanted, "{what}: {pair}");
        }
        assert_eq!(tokenizer.gives_types(), case["gives_types"], "{what}");
        differ += usize::from(case["differs"] == true);
        types += usize::from(tokenizer.gives_types());
    }
    assert!(differ >= 15 && types >= 8, "{differ} differ from tokenizer.json alone, {types} give token types");
}

/// `golden/classes.py` has asked each class that transformers has.
#[test]
fn classes_give_token_types_as_in_transformers() {
    let expected = golden_json("classes/types.json");
    let mut given = 0;
    for (class, gives) in expected.as_object().unwrap() {
        for class in [class.clone(), format!("{class}Fast")] {
            let files = json!({"tokenizer_config.json": {"tokenizer_class": class}});
            assert_eq!(tokenizer_of("cased.json", &files).unwrap().gives_types(), *gives, "{class}");
        }
        given += usize::from(*gives == true);
    }
    assert!(given >= 15 && expected.as_object().unwrap().len() > 80);
    let named = |names: Value| {
        let config = json!({"tokenizer_class": "BertTokenizer", "model_input_names": names});
        tokenizer_of("cased.json", &json!({"tokenizer_config.json": config})).unwrap().gives_types()
    };
    assert!(!named(json!(["input_ids"])) && named(json!(["input_ids", "token_type_ids"])) && named(Value::Null));
}

#[test]
fn the_side_at_which_tokenizer_json_cuts() {
    let side = |truncation: Value| {
        let mut json = golden_json("classes/cased.json");
        json["truncation"] = truncation;
        let files = TokenizerFiles { tokenizer_json: json.to_string().into_bytes().into(), ..Default::default() };
        Tokenizer::from_files(&files).unwrap().lower_cased().unwrap().cut_side()
    };
    let of = |direction| json!({"direction": direction, "max_length": 5, "strategy": "LongestFirst", "stride": 0});
    assert_eq!(side(of("Left")), Some(CutSide::Start));
    assert_eq!(side(of("Right")), Some(CutSide::End));
    assert_eq!(side(Value::Null), None);
}

#[test]
fn wrong_options_are_named() {
    let check = |files: Value, expected: &str| {
        assert_eq!(tokenizer_of("cased.json", &files).unwrap_err().to_string(), expected);
    };
    for field in ["do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"] {
        let expected = format!("tokenizer_config.json: `{field}` is 1, expected true or false");
        check(json!({"tokenizer_config.json": {field: 1}}), &expected);
    }
    let expected = "tokenizer_config.json: `tokenizer_class` is a list, expected a string";
    check(json!({"tokenizer_config.json": {"tokenizer_class": []}}), expected);
}

#[test]
fn options_that_fit_no_file_are_said() {
    let said = |config: Value| {
        let said = Warnings::default();
        with_default(said.clone(), || tokenizer_of("roberta.json", &json!({"tokenizer_config.json": config}))).unwrap();
        said.take()
    };
    assert_eq!(said(json!({"tokenizer_class": "BertTokenizer"})), [""; 0]);
    let expected =
        "tokenizer_config.json: options of `BertTokenizer` are not used, as tokenizer.json has no BertNormalizer";
    assert_eq!(said(json!({"tokenizer_class": "BertTokenizerFast", "do_lower_case": true})), [expected]);
}

/// Transformers 5 makes this class anew and would leave the numbers whole; a model was trained with what its file says.
#[test]
fn what_else_the_file_says_counts() {
    let mut json = golden_json("classes/roberta.json");
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true}, json["pre_tokenizer"],
    ]});
    let (said, config) = (Warnings::default(), json!({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}));
    let files = TokenizerFiles {
        tokenizer_json: json.to_string().into_bytes().into(),
        tokenizer_config: Some(config.to_string().into_bytes().into()),
        ..Default::default()
    };
    let tokenizer = with_default(said.clone(), || Tokenizer::from_files(&files)).unwrap();
    let expected =
        "tokenizer_config.json: options of `GPT2Tokenizer` are not used, as tokenizer.json splits a text before";
    assert_eq!(said.take(), [expected]);
    let one_by_one: Vec<u32> = "4567".chars().map(|c| tokenizer.token_to_id(&c.to_string()).unwrap()).collect();
    assert_eq!(tokenizer.encode("4567", false).unwrap(), one_by_one);
}
