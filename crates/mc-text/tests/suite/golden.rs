//! Ids, texts and rendered conversations equal transformers', to the byte.

use mc_text::{ChatOptions, Error, Message};
use serde_json::Value;

use crate::{TOKENIZERS, golden_json, golden_path, golden_template, golden_tokenizer};

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn texts_encode_and_decode_as_in_transformers() {
    for name in TOKENIZERS {
        let tokenizer = golden_tokenizer(name);
        let expected = golden_json(&format!("{name}/expected.json"));
        let texts = expected["texts"].as_array().unwrap();
        assert!(texts.len() >= 60);
        for case in texts {
            let text = case["text"].as_str().unwrap();
            let plain = tokenizer.encode(text, false).unwrap();
            assert_eq!(plain, ids(&case["ids"]), "{name}: {text:?}");
            let around = tokenizer.encode(text, true).unwrap();
            assert_eq!(around, ids(&case["with_special"]), "{name}: {text:?} with special tokens");
            assert_eq!(tokenizer.decode(&plain, false).unwrap(), case["decoded"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&around, true).unwrap(), case["decoded_skip"], "{name}: {text:?}");
            assert_eq!(tokenizer.encode_with_mask(text, &[]).unwrap(), (plain.clone(), vec![false; plain.len()]));
        }
        for case in expected["random_ids"].as_array().unwrap() {
            let ids = ids(&case["ids"]);
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"], "{name}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["decoded_skip"], "{name}: {ids:?}");
        }
    }
}

#[test]
fn special_tokens_are_as_in_transformers() {
    for name in TOKENIZERS {
        let tokenizer = golden_tokenizer(name);
        let expected = golden_json(&format!("{name}/expected.json"));
        assert_eq!(tokenizer.vocab_size(), expected["vocab_size"].as_u64().unwrap() as usize, "{name}");
        for (token, content) in expected["special_tokens"].as_object().unwrap() {
            assert_eq!(tokenizer.special_token(token), content.as_str(), "{name}: {token}");
            let id = tokenizer.special_token_id(token).unwrap();
            assert_eq!(tokenizer.id_to_token(id).as_deref(), content.as_str(), "{name}: {token}");
        }
        let special: Vec<u32> = (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_special(id)).collect();
        assert_eq!(special, ids(&expected["special_ids"]), "{name}");
    }
    let qwen = golden_tokenizer("qwen");
    assert_eq!((qwen.bos_token(), qwen.eos_token()), (None, Some("<|im_end|>")));
    assert_eq!(qwen.pad_token_id(), qwen.token_to_id("<|endoftext|>"));
    assert_eq!(qwen.id_to_token(1_000_000), None);
    let metaspace = golden_tokenizer("metaspace");
    assert_eq!((metaspace.bos_token_id(), metaspace.eos_token_id()), (Some(1), Some(2)));
    assert_eq!((metaspace.unk_token_id(), metaspace.pad_token()), (Some(0), None));
}

#[test]
fn conversations_render_as_in_transformers() {
    let conversations = golden_json("conversations.json");
    let mut compared = 0;
    for name in TOKENIZERS {
        let expected = golden_json(&format!("{name}/expected.json"));
        for (template, cases) in expected["chats"].as_object().unwrap() {
            let chat = golden_template(name, template);
            for case in cases.as_array().unwrap() {
                let messages = &conversations["messages"][case["messages"].as_str().unwrap()];
                let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
                let options = options(&conversations["options"][case["options"].as_str().unwrap()]);
                let what = format!("{name}/{template}.jinja: {}, {}", case["messages"], case["options"]);
                compared += 1;
                match (chat.apply(&messages, &options), case.get("text"), case.get("error")) {
                    (Ok(text), Some(expected), _) => assert_eq!(text, expected.as_str().unwrap(), "{what}"),
                    (Err(Error::TemplateRaised { message, .. }), _, Some(Value::String(expected))) => {
                        assert_eq!(&message, expected, "{what}");
                    }
                    (_, _, Some(Value::Null)) => {}
                    (got, _, _) => panic!("{what}: {got:?} instead of {case}"),
                }
            }
        }
    }
    assert!(compared > 150, "{compared}");
}

fn options(value: &Value) -> ChatOptions {
    let mut extra = value.as_object().unwrap().clone();
    ChatOptions {
        add_generation_prompt: extra.remove("add_generation_prompt").is_some_and(|value| value == true),
        tools: extra.remove("tools").map(|tools| tools.as_array().unwrap().clone()),
        template: None,
        extra,
    }
}

#[test]
fn generation_blocks_are_as_in_transformers() {
    let chat = golden_template("qwen", "generation");
    let conversations = golden_json("conversations.json");
    for (name, spans) in golden_json("qwen/generation.json").as_object().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(conversations["messages"][name].clone()).unwrap();
        let (text, ranges) = chat.render_with_assistant_ranges(&messages, &ChatOptions::default()).unwrap();
        assert_eq!(text, chat.apply(&messages, &ChatOptions::default()).unwrap());
        let found: Vec<&str> = ranges.iter().map(|range| &text[range.clone()]).collect();
        assert_eq!(&serde_json::to_value(found).unwrap(), spans, "{name}");
    }
}

#[test]
fn golden_files_stay_small() {
    fn size(path: &std::path::Path) -> u64 {
        if path.is_file() {
            return path.metadata().unwrap().len();
        }
        std::fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
    }
    assert!(size(&golden_path("")) < 320_000);
}
