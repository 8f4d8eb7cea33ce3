//! Bad files and conversations: one line that names the file and the field, and no panic.

use std::fs;

use mc_text::{ChatOptions, ChatTemplate, Error, Message, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};

use crate::golden_path;

/// A model directory with the given files over those of a good one.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden_path("qwen").join(name), directory.path().join(name)).unwrap();
    }
    for (name, content) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory
}

/// Loads tokenizer and template of a directory and compares the message, less the directory's name.
fn check(files: &[(&str, &[u8])], expected: &str) -> Error {
    let directory = directory(files);
    let error = Tokenizer::load(directory.path())
        .map(|_| ())
        .and_then(|()| ChatTemplate::load(directory.path()).map(|_| ()))
        .unwrap_err();
    let message = error.to_string().replace(&format!("{}/", directory.path().display()), "");
    assert_eq!(message, expected);
    assert!(!message.contains('\n'));
    if let Some(hint) = error.hint() {
        assert!(!hint.contains('\n') && !hint.ends_with('.') && hint.starts_with(char::is_lowercase), "{hint}");
    }
    error
}

#[test]
fn broken_tokenizer_json() {
    let good = fs::read(golden_path("qwen/tokenizer.json")).unwrap();
    check(&[("tokenizer.json", b"")], "tokenizer.json: not valid JSON: EOF while parsing a value at line 1 column 0");
    check(
        &[("tokenizer.json", &good[..1000])],
        "tokenizer.json: not valid JSON: EOF while parsing a string at line 1 column 1000",
    );
    check(&[("tokenizer.json", b"\x7fELF\xff")], "tokenizer.json: not valid JSON: expected value at line 1 column 1");
    check(
        &[("tokenizer.json", b"{}")],
        "tokenizer.json: `model` is missing or no object, expected the object of a tokenizer model",
    );
    let error = check(
        &[("tokenizer.json", br#"{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":5}}"#)],
        "tokenizer.json: data did not match any variant of untagged enum MergeType at line 1 column 62",
    );
    assert_eq!(error.hint().unwrap(), "the file may be truncated, download it again");
}

#[test]
fn no_directory_at_all() {
    let error = Tokenizer::load("no/such/model").unwrap_err();
    assert_eq!(error.to_string(), "no/such/model/tokenizer.json: No such file or directory (os error 2)");
    assert!(error.hint().unwrap().contains("tokenizer.json"));
    assert!(ChatTemplate::load("no/such/model").unwrap().is_none());
}

#[test]
fn an_oversized_file_is_not_read() {
    let directory = directory(&[]);
    let file = fs::File::create(directory.path().join("chat_template.jinja")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = ChatTemplate::load(directory.path()).unwrap_err().to_string();
    assert!(error.ends_with("chat_template.jinja: 1099511627776 bytes, expected at most 33554432"), "{error}");
}

#[test]
fn wrong_types_in_tokenizer_config() {
    let config = |json: Value, expected: &str| {
        let bytes = json.to_string();
        check(&[("tokenizer_config.json", bytes.as_bytes())], &format!("tokenizer_config.json: {expected}"));
    };
    let token = "expected a string or an object with `content`";
    config(json!([]), "`(the whole file)` is a list, expected an object");
    config(json!({"eos_token": 5}), &format!("`eos_token` is 5, {token}"));
    config(json!({"eos_token": ["a"]}), &format!("`eos_token` is a list, {token}"));
    config(json!({"pad_token": true}), &format!("`pad_token` is true, {token}"));
    config(json!({"bos_token": {"lstrip": false}}), "`bos_token.content` is missing or null, expected a string");
    config(
        json!({"additional_special_tokens": "x"}),
        "`additional_special_tokens` is \"x\", expected a list of tokens",
    );
    config(json!({"extra_special_tokens": ["a", 1]}), &format!("`extra_special_tokens[1]` is 1, {token}"));
    config(json!({"extra_special_tokens": {"image": 1}}), &format!("`extra_special_tokens.image` is 1, {token}"));
    config(json!({"added_tokens_decoder": []}), "`added_tokens_decoder` is a list, expected an object of tokens by id");
    config(
        json!({"added_tokens_decoder": {"-1": "a"}}),
        "`added_tokens_decoder.-1` is under `-1`, expected a token id as its key",
    );
    config(
        json!({"added_tokens_decoder": {"7": null}}),
        &format!("`added_tokens_decoder.7` is missing or null, {token}"),
    );
    config(json!({"chat_template": 3}), "`chat_template` is 3, expected a string or a list of {name, template}");
    config(
        json!({"chat_template": [{"name": "default"}]}),
        "`chat_template[0].template` is missing or null, expected a string",
    );
    check(
        &[("tokenizer_config.json", b"{\"eos_token\": ")],
        "tokenizer_config.json: not valid JSON: EOF while parsing a value at line 1 column 14",
    );
}

#[test]
fn broken_templates() {
    let unclosed: &[u8] = b"line\n{% for m in messages %}";
    let line_2 = "line 2: unexpected end of input, expected end of block";
    check(&[("chat_template.jinja", unclosed)], &format!("chat_template.jinja: {line_2}"));
    check(
        &[("additional_chat_templates/rag.jinja", unclosed)],
        &format!("additional_chat_templates/rag.jinja: {line_2}"),
    );
    let config = json!({"chat_template": "{{ a b }}"}).to_string();
    check(
        &[("tokenizer_config.json", config.as_bytes())],
        "tokenizer_config.json: `chat_template`: line 1: unexpected identifier, expected end of variable block",
    );
    let config = json!({"chat_template": [{"name": "default", "template": "ok"}, {"name": "x", "template": "{{"}]});
    check(
        &[("tokenizer_config.json", config.to_string().as_bytes())],
        "tokenizer_config.json: `chat_template[1].template`: line 1: unexpected end of input, expected expression",
    );
    check(&[("chat_template.jinja", b"caf\xe9")], "chat_template.jinja: not UTF-8 at byte 3");
}

#[test]
fn conversations_that_a_template_cannot_take() {
    let check = |source: &str, expected: &str| {
        let chat = ChatTemplate::from_source(source, []).unwrap();
        let error = chat.apply(&[Message::new("user", "hi")], &ChatOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().unwrap().contains("roles"));
    };
    check(
        "{{ raise_exception('Roles must\n alternate: ' ~ messages[0].role) }}",
        "chat template: the chat template refuses this conversation: Roles must alternate: user",
    );
    check(
        "\n{{ messages[1].content }}",
        "chat template: line 2: cannot render this conversation: `messages[1]` is undefined",
    );
    check(
        "{{ messages[0].tool_calls[0] }}",
        "chat template: line 1: cannot render this conversation: `messages[0].tool_calls` is undefined",
    );
    check(
        "{{ messages[0].content.explode() }}",
        "chat template: line 1: cannot render this conversation: string has no method named explode",
    );
    check(
        "{{ nothing | tojson }}",
        "chat template: line 1: cannot render this conversation: tojson: the value is undefined",
    );
    check(
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "chat template: line 1: cannot render this conversation: recursion limit exceeded",
    );
}

#[test]
fn messages_need_a_role() {
    let error = serde_json::from_value::<Message>(json!({"content": "x"})).unwrap_err();
    assert_eq!(error.to_string(), "missing field `role`");
}

#[test]
fn templates_are_chosen_by_name() {
    let text = |files: &[(&str, &[u8])], options: ChatOptions| {
        let directory = directory(files);
        let chat = ChatTemplate::load(directory.path()).unwrap().unwrap();
        chat.apply(&[], &options).map_err(|error| error.to_string())
    };
    let config = json!({"eos_token": "E", "chat_template": [
        {"name": "default", "template": "default{{ eos_token }}"}, {"name": "tool_use", "template": "tools"}]});
    let config = config.to_string();
    let config: (&str, &[u8]) = ("tokenizer_config.json", config.as_bytes());
    let tools = ChatOptions { tools: Some(vec![]), ..Default::default() };
    let named = |name: &str| ChatOptions { template: Some(name.into()), ..Default::default() };
    assert_eq!(text(&[config], ChatOptions::default()).unwrap(), "defaultE");
    assert_eq!(text(&[config], tools.clone()).unwrap(), "tools");
    assert_eq!(text(&[config], named("tool_use")).unwrap(), "tools");
    assert_eq!(text(&[config], named("rag")).unwrap_err(), "no chat template `rag`; there are: default, tool_use");
    // Files come before the field, all of it.
    let file: (&str, &[u8]) = ("chat_template.jinja", b"file{{ eos_token }}");
    assert_eq!(text(&[config, file], tools).unwrap(), "fileE");
    let rag: (&str, &[u8]) = ("additional_chat_templates/rag.jinja", b"rag");
    assert_eq!(text(&[config, file, rag], named("rag")).unwrap(), "rag");
    assert_eq!(text(&[config, file, rag], ChatOptions::default()).unwrap(), "fileE");
}

#[test]
fn files_in_memory_are_enough() {
    let bytes = fs::read(golden_path("qwen/tokenizer.json")).unwrap();
    let files = TokenizerFiles { tokenizer_json: bytes.into(), ..Default::default() };
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!(tokenizer.eos_token_id(), None);
    assert_eq!(tokenizer.decode(&tokenizer.encode("hello", true).unwrap(), true).unwrap(), "hello");
    assert!(ChatTemplate::from_files(&files).unwrap().is_none());
    let error = Tokenizer::from_files(&TokenizerFiles::default()).unwrap_err();
    assert_eq!(error.to_string(), "tokenizer.json: not valid JSON: EOF while parsing a value at line 1 column 0");
}

/// Every value of a good tokenizer.json replaced by each of a few bad ones: an error or a tokenizer, never a panic.
#[test]
fn a_mangled_tokenizer_never_panics() {
    let mut good: Value = serde_json::from_slice(&fs::read(golden_path("metaspace/tokenizer.json")).unwrap()).unwrap();
    // A few entries of the large tables say as much as all of them.
    let model = &mut good["model"];
    model["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 300);
    model["merges"].as_array_mut().unwrap().truncate(2);
    let mut paths = Vec::new();
    collect_paths(&good, &mut String::new(), &mut paths);
    let bad = [json!(null), json!(-1), json!(4_294_967_295_u64), json!("x"), json!([]), json!({}), json!(true)];
    for path in paths.iter().filter(|path| !path.contains("/vocab/") || path.contains("<s>") || path.ends_with("/a")) {
        for value in &bad {
            let mut json = good.clone();
            *json.pointer_mut(path).unwrap() = value.clone();
            let files = TokenizerFiles { tokenizer_json: json.to_string().into_bytes().into(), ..Default::default() };
            match Tokenizer::from_files(&files) {
                Ok(tokenizer) => {
                    let ids = tokenizer.encode("Hello, 世界 <s>", true).unwrap_or_default();
                    let _ = tokenizer.decode(&ids, false);
                    let mut detokenizer = tokenizer.detokenizer(true);
                    for id in ids {
                        let _ = detokenizer.push(id);
                    }
                }
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.starts_with("tokenizer.json: ") && !message.contains('\n'), "{path}: {message}");
                }
            }
        }
    }
}

/// Parts that the library accepts and panics over when it uses them.
#[test]
fn a_tokenizer_that_cannot_work_is_an_error_when_it_is_used() {
    let good: Value = serde_json::from_slice(&fs::read(golden_path("metaspace/tokenizer.json")).unwrap()).unwrap();
    let with = |field: &str, value: Value| {
        let mut json = good.clone();
        json[field] = value;
        let files = TokenizerFiles { tokenizer_json: json.to_string().into_bytes().into(), ..Default::default() };
        Tokenizer::from_files(&files).unwrap()
    };
    let check = |result: Result<(), mc_text::Error>, what: &str| {
        let message = result.unwrap_err().to_string();
        let start = format!("tokenizer.json: cannot {what}: the tokenizer cannot work as it is written: ");
        assert!(message.starts_with(&start) && !message.contains('\n'), "{message}");
    };
    for (field, value) in [
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        // A trie of one unit, which leads out of it.
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="})),
    ] {
        let tokenizer = with(field, value);
        check(tokenizer.encode("Hello", true).map(drop), "encode");
        check(tokenizer.encode_prompt("Hello").map(drop), "encode");
        check(tokenizer.encode_with_mask("Hello", &[]).map(drop), "encode");
        check(tokenizer.encode_within("Hello", Some("you"), 9, mc_text::CutSide::End).map(drop), "encode");
    }
    // Letters in upper case stay in the trie, others leave it; an added token is normalized anew.
    let charsmap = format!("gAEA{}==", "A".repeat(514));
    let mut json = good.clone();
    json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": charsmap});
    let token = json!({"id": 9999, "content": "HELLO", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false});
    json["added_tokens"].as_array_mut().unwrap().push(token);
    let files = TokenizerFiles { tokenizer_json: json.to_string().into_bytes().into(), ..Default::default() };
    let error = Tokenizer::from_files(&files).unwrap().lower_cased().unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json: the tokenizer cannot work as it is written: "), "{error}");
    let tokenizer = with("decoder", json!({"type": "Strip", "content": "a", "start": 0, "stop": 9}));
    let id = tokenizer.token_to_id("a").unwrap();
    check(tokenizer.decode(&[id], true).map(drop), "decode");
    check(tokenizer.detokenizer(true).push(id).map(drop), "decode");
}

fn collect_paths(value: &Value, path: &mut String, paths: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let length = path.len();
        *path += "/";
        *path += &key;
        paths.push(path.clone());
        collect_paths(child, path, paths);
        path.truncate(length);
    }
}

/// Directories from before 2024 name their special tokens in a file of their own.
#[test]
fn names_of_special_tokens_in_a_file_of_their_own() {
    let map = br#"{"bos_token": {"content": "<|im_start|>", "lstrip": false}, "eos_token": "<|endoftext|>", "unk_token": null}"#;
    let old = (
        "tokenizer_config.json",
        &br#"{"eos_token": "<|im_end|>", "chat_template": "{{ bos_token }}{{ eos_token }}"}"#[..],
    );
    let directory = directory(&[old, ("special_tokens_map.json", map)]);
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token()), (Some("<|im_start|>"), Some("<|endoftext|>")));
    let template = ChatTemplate::load(directory.path()).unwrap().unwrap();
    assert_eq!(template.apply(&[], &ChatOptions::default()).unwrap(), "<|im_start|><|endoftext|>");
    // Where the configuration says what its tokens are, it says how they are called, too.
    let newer = ("tokenizer_config.json", &br#"{"eos_token": "<|im_end|>", "added_tokens_decoder": {}}"#[..]);
    let newer = self::directory(&[newer, ("special_tokens_map.json", map)]);
    assert_eq!(Tokenizer::load(newer.path()).unwrap().eos_token(), Some("<|im_end|>"));
    check(
        &[old, ("special_tokens_map.json", b"[]")],
        "special_tokens_map.json: `(the whole file)` is a list, expected an object",
    );
    check(
        &[old, ("special_tokens_map.json", br#"{"eos_token": 3}"#)],
        "special_tokens_map.json: `eos_token` is 3, expected a string or an object with `content`",
    );
}
