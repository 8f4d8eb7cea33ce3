//! Records to examples: tokens, marks, what is said of bad ones.

use mc_text::{ChatTemplate, Tokenizer, TokenizerFiles};
use mc_train::{Batch, DataFiles, DataReport, Dataset, DatasetOptions, Error, Example};
use std::{fs, path::PathBuf};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../mc-text/tests/golden").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(golden(name)).unwrap()
}

/// The tokenizer `metaspace`, which puts BOS before a text, changed to put EOS after it too.
fn ends_every_text() -> Tokenizer {
    let mut files = TokenizerFiles::read(golden("metaspace")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&files.tokenizer_json).unwrap();
    let processor = &mut json["post_processor"];
    processor["single"].as_array_mut().unwrap().push(serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
    processor["special_tokens"]["</s>"] = serde_json::json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    files.tokenizer_json = serde_json::to_vec(&json).unwrap().into();
    Tokenizer::from_files(&files).unwrap()
}

fn chat() -> DatasetOptions {
    let template = fs::read_to_string(golden("qwen/chatml.jinja")).unwrap();
    let chat_template = Some(ChatTemplate::from_source(&template, []).unwrap());
    DatasetOptions { mask_prompt: true, chat_template, ..Default::default() }
}

fn read(lines: &str, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Dataset, Error> {
    Dataset::read("train.jsonl", lines.as_bytes(), tokenizer, options)
}

/// The text of the whole example, and that of what is supervised.
fn shown(data: &Dataset, index: usize, tokenizer: &Tokenizer) -> (String, String) {
    let example = &data.examples()[index];
    let supervised: Vec<_> =
        example.ids.iter().zip(&example.supervised).filter(|(_, s)| **s).map(|(id, _)| *id).collect();
    (tokenizer.decode(&example.ids, false).unwrap(), tokenizer.decode(&supervised, false).unwrap())
}

#[test]
fn texts_end_in_one_eos() {
    let tokenizer = tokenizer("qwen");
    let lines = "{\"text\": \"list files\"}\n\n{\"text\": \"done<|im_end|>\", \"id\": 7}\n";
    let data = read(lines, &tokenizer, &DatasetOptions { mask_prompt: true, ..Default::default() }).unwrap();
    assert_eq!(shown(&data, 0, &tokenizer).0, "list files<|im_end|>");
    assert_eq!(shown(&data, 1, &tokenizer).0, "done<|im_end|>");
    // Of a text, everything but the first token is supervised.
    assert!(data.examples().iter().all(|e| !e.supervised[0] && e.targets() == e.ids.len() - 1));
    for other in [self::tokenizer("metaspace"), ends_every_text()] {
        let data = read(lines, &other, &DatasetOptions::default()).unwrap();
        let (bos, eos) = (other.bos_token_id().unwrap(), other.eos_token_id().unwrap());
        let expected = [&[bos][..], &other.encode("list files", false).unwrap(), &[eos]].concat();
        assert_eq!(data.examples()[0].ids, expected);
    }
}

#[test]
fn a_completion_follows_the_prompt_as_generation_sees_it() {
    let record =
        |prompt: &str, completion: &str| serde_json::json!({"prompt": prompt, "completion": completion}).to_string();
    for (name, prompt, completion) in [
        ("qwen", "List files: ", "ls -la"),
        ("qwen", "Q: hi\nA:", " hello"),
        // The letters on both sides would be one token.
        ("qwen", "hel", "lo world"),
        ("byte_level", "the qu", "ick fox"),
        ("metaspace", "List files:", " ls -la"),
        ("metaspace", "List files: ", "ls"),
        ("metaspace", "", "ls"),
        ("ends every text", "List files:", " ls -la"),
        ("ends every text", "List files: ", "ls"),
        ("byte_level", "prompt", ""),
    ] {
        let tokenizer = if name == "ends every text" { ends_every_text() } else { tokenizer(name) };
        let masked = DatasetOptions { mask_prompt: true, ..Default::default() };
        let data = read(&record(prompt, completion), &tokenizer, &masked).unwrap();
        let example = &data.examples()[0];
        let mut before = tokenizer.encode(prompt, true).unwrap();
        let eos = tokenizer.eos_token_id();
        if name == "ends every text" {
            // The end that it puts after every text does not come after a prompt.
            assert_eq!(before.pop(), eos);
        }
        assert_eq!(tokenizer.encode_prompt(prompt).unwrap(), before);
        // One that is written in the prompt is the prompt's.
        let ended = [&before[..], eos.as_slice()].concat();
        assert_eq!(
            tokenizer.encode_prompt(&format!("{prompt}{}", tokenizer.eos_token().unwrap())).unwrap(),
            ended,
            "{name}"
        );
        assert_eq!(example.ids[..before.len()], before, "{name}: {prompt:?} + {completion:?}");
        let marks: Vec<_> = (0..example.ids.len()).map(|i| i >= before.len() && i > 0).collect();
        assert_eq!(example.supervised, marks, "{name}: {prompt:?} + {completion:?}");
        assert_eq!(example.ids.last().copied(), eos);
        let body = &example.ids[..example.ids.len() - 1];
        assert!(body.last().copied() != eos);
        assert_eq!(tokenizer.decode(body, true).unwrap(), format!("{prompt}{completion}"), "{name}");
        // Without the mask the prompt is supervised too.
        let data = read(&record(prompt, completion), &tokenizer, &DatasetOptions::default()).unwrap();
        assert_eq!(data.examples()[0].ids, example.ids);
        assert_eq!(data.examples()[0].targets(), example.ids.len() - 1);
    }
}

#[test]
fn every_assistant_turn_is_supervised() {
    let tokenizer = tokenizer("qwen");
    let line = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"}, {"role": "user", "content": "3+3?"},
        {"role": "assistant", "content": "6"}]}"#
        .replace('\n', " ");
    let data = read(&line, &tokenizer, &chat()).unwrap();
    let (whole, supervised) = shown(&data, 0, &tokenizer);
    assert!(whole.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?"), "{whole}");
    assert_eq!(supervised, "4<|im_end|>\n6<|im_end|>\n");
    let data = read(&line, &tokenizer, &DatasetOptions { mask_prompt: false, ..chat() }).unwrap();
    assert_eq!(data.examples()[0].targets(), data.examples()[0].ids.len() - 1);
    assert_eq!(shown(&data, 0, &tokenizer).0, whole);
}

#[test]
fn what_is_cut_or_left_out_is_reported() {
    let tokenizer = tokenizer("qwen");
    let user = r#"{"messages": [{"role": "user", "content": "nobody answers"}]}"#;
    let both = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there, how are you?"}]}"#;
    let whole = read(&format!("{both}\n{user}"), &tokenizer, &chat()).unwrap();
    let length = whole.examples()[0].ids.len();
    let report = |truncated| DataReport {
        records: 2,
        tokens: length - truncated,
        supervised_tokens: whole.examples()[0].targets() - truncated,
        truncated: usize::from(truncated > 0),
        dropped_without_supervision: 1,
    };
    assert_eq!(*whole.report(), report(0));
    // The user's record is shorter than the cut, and is dropped either way.
    let cut =
        read(&format!("{both}\n{user}"), &tokenizer, &DatasetOptions { max_seq_len: length - 2, ..chat() }).unwrap();
    assert_eq!(cut.report().truncated, report(2).truncated);
    assert_eq!((cut.report().tokens, cut.report().supervised_tokens), (report(2).tokens, report(2).supervised_tokens));
    assert_eq!(cut.examples()[0].ids, whole.examples()[0].ids[..length - 2]);
    let error = read(both, &tokenizer, &DatasetOptions { max_seq_len: 5, ..chat() }).unwrap_err();
    assert_eq!(error.to_string(), "train.jsonl: no token in it is supervised");
}

#[test]
fn the_order_is_that_of_the_file() {
    let tokenizer = tokenizer("qwen");
    // More than are tokenised at one time; with a byte order mark, and lines of Windows.
    let lines = (0..2500).map(|i| format!("{{\"text\": \"number {i}\"}}\r\n")).collect::<Vec<_>>().concat();
    let data = read(&format!("\u{feff}{lines}"), &tokenizer, &DatasetOptions::default()).unwrap();
    assert_eq!(data.len(), 2500);
    assert!((0..2500).all(|i| shown(&data, i, &tokenizer).0 == format!("number {i}<|im_end|>")));
    let bad = lines.replace("\"number 2000\"", "5").replace("\"number 2100\"", "6");
    let error = read(&bad, &tokenizer, &DatasetOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "train.jsonl:2001: `text` is a number, expected a string");
}

#[test]
fn bad_records_are_named() {
    let tokenizer = tokenizer("qwen");
    let one = |role: &str| format!("{{\"messages\": [{{\"role\": {role}, \"content\": \"x\"}}]}}");
    for (lines, expected) in [
        ("", "train.jsonl: there is no record in it"),
        ("\n \n", "train.jsonl: there is no record in it"),
        ("{\"text\": \"a b\"}\n{\"text\": ", "train.jsonl:2: not JSON at column 9: EOF while parsing a value"),
        ("nonsense", "train.jsonl:1: not JSON at column 2: expected ident"),
        ("[1]", "train.jsonl:1: found a list, expected an object"),
        ("{}", "train.jsonl:1: a record with no keys"),
        ("{\"txt\": \"a\"}", "train.jsonl:1: a record with the keys `txt`"),
        ("{\"prompt\": \"a\"}", "train.jsonl:1: `prompt` without `completion`"),
        ("{\"completion\": \"a\"}", "train.jsonl:1: `completion` without `prompt`"),
        ("{\"text\": 5}", "train.jsonl:1: `text` is a number, expected a string"),
        ("{\"text\": null}", "train.jsonl:1: `text` is null, expected a string"),
        ("{\"text\": \"\"}", "train.jsonl:1: `text` is empty"),
        ("{\"prompt\": \"a\", \"completion\": [\"b\"]}", "train.jsonl:1: `completion` is a list, expected a string"),
        ("{\"prompt\": \"\", \"completion\": \"\"}", "train.jsonl:1: `prompt` and `completion` are empty"),
        (
            "{\"text\": \"a b\"}\n\n{\"prompt\": \"a\", \"completion\": \"b\"}",
            "train.jsonl:3: a record with `prompt` and `completion` among records with `text`",
        ),
        (
            "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}",
            "train.jsonl:2: no `completion` in a record with the keys `prompt`",
        ),
        ("{\"messages\": \"hi\"}", "train.jsonl:1: `messages` is a string, expected a list of messages"),
        ("{\"messages\": []}", "train.jsonl:1: `messages` is empty"),
        ("{\"messages\": [5]}", "train.jsonl:1: `messages[0]` is a number, expected an object"),
        ("{\"messages\": [{\"content\": \"x\"}]}", "train.jsonl:1: `messages[0]` has no `role`"),
        (&one("5"), "train.jsonl:1: `messages[0].role` is a number, expected a string"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": 5}]}",
            "train.jsonl:1: `messages[0].content` is a number, expected a string or a list of parts",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": 1}",
            "train.jsonl:1: `tools` is a number",
        ),
        // The template puts it behind a string.
        ("{\"messages\": [{\"role\": \"user\", \"content\": null}]}", "train.jsonl:1: chat template: line 5: "),
    ] {
        let error = read(lines, &tokenizer, &chat()).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(expected) && !message.contains('\n'), "{lines}: {message}");
        let hint = error.hint().unwrap();
        assert!(!hint.ends_with('.') && !hint.contains('\n'), "{hint}");
    }
    let no_template = DatasetOptions { chat_template: None, ..chat() };
    let error = read(&one("\"user\""), &tokenizer, &no_template).unwrap_err();
    assert!(error.to_string().contains("need a chat template, and there is none") && error.hint().is_some());
    // Marks without tokens, and one of a first token, which a caller can write into the fields.
    let odd = Example { ids: vec![1, 2], supervised: vec![true, true, true] };
    assert_eq!(Dataset::from_examples([odd.clone()]).examples(), [Example::new(vec![1, 2], vec![true; 2])]);
    assert_eq!(Batch::new([&odd]).targets, [2]);
    let not_utf8 = Dataset::read("train.jsonl", &b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}"[..], &tokenizer, &chat());
    assert_eq!(not_utf8.unwrap_err().to_string(), "train.jsonl:2: not UTF-8 at byte 11 of the line");
    let short = read("{\"text\": \"a\"}", &tokenizer, &DatasetOptions { max_seq_len: 1, ..chat() }).unwrap_err();
    assert!(short.to_string().contains("`max_seq_len` is 1, expected at least 2"), "{short}");
}

#[test]
fn a_directory_names_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let train = dir.path().join("train.jsonl");
    let error = DataFiles::find(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with(": no train.jsonl") && error.hint().is_some(), "{error}");
    assert!(DataFiles::find(dir.path().join("nothing")).is_err());
    fs::write(&train, "{\"text\": \"a b c\"}").unwrap();
    fs::write(dir.path().join("valid.jsonl"), "").unwrap();
    let files = DataFiles::find(dir.path()).unwrap();
    assert_eq!(files, DataFiles { train: train.clone(), valid: Some(dir.path().join("valid.jsonl")) });
    assert_eq!(DataFiles::find(&train).unwrap(), DataFiles { valid: None, ..files });
    let tokenizer = tokenizer("byte_level");
    assert_eq!(Dataset::load(&train, &tokenizer, &DatasetOptions::default()).unwrap().len(), 1);
    for wrong in [dir.path().join("test.jsonl"), dir.path().to_path_buf()] {
        let error = Dataset::load(&wrong, &tokenizer, &DatasetOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with(&wrong.display().to_string()), "{error}");
    }
}
