//! Text in, text out: with tiny tokenizers of mc-text, and with the golden models behind a vocabulary of words.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scripted;

use candle_core::{DType, Device};
use mc_checkpoint::{GenerationConfig, ModelDir};
use mc_infer::{Error, FinishReason, Generation, Generator, GeneratorConfig, StreamToken};
use mc_models::{Adapter, Model, ModelLoader, Projection};
use mc_testkit::golden;
use mc_text::{ChatTemplate, Message, Tokenizer, TokenizerFiles};
use scripted::Scripted;
use std::{path::PathBuf, sync::Arc};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const TEXT: &str = "The quick fox doesn't care: naïve, 你好, 🦊!\n\nThe end, then more.";

fn tokenizer_dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../mc-text/tests/golden").join(name)
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::load(tokenizer_dir(name)).unwrap()
}

fn config() -> GeneratorConfig {
    GeneratorConfig { max_tokens: 300, ..GeneratorConfig::default() }
}

/// A generator whose model says `text` and then the tokens `end`.
fn saying(text: &str, end: &[u32], name: &str, config: GeneratorConfig) -> Generator {
    let tokenizer = tokenizer(name);
    let script = [tokenizer.encode(text, false).unwrap(), end.to_vec()].concat();
    let model = Arc::new(Scripted::new(tokenizer.vocab_size() + 3, &script));
    Generator::new(model, tokenizer, config).unwrap()
}

/// The generation and its stream, after checking that they say the same.
fn stream(generator: &Generator) -> (Generation, Vec<StreamToken>) {
    let mut pieces = vec![];
    let generation = generator
        .generate_stream("Tell me", |token| {
            pieces.push(token);
            true
        })
        .unwrap();
    assert_eq!(pieces.iter().map(|p| p.text.as_str()).collect::<String>(), generation.text);
    assert_eq!(pieces.iter().map(|p| p.id).collect::<Vec<_>>(), generation.tokens);
    let (last, others) = pieces.split_last().unwrap();
    assert_eq!(last.finish, Some(generation.finish));
    assert!(others.iter().all(|p| p.finish.is_none()));
    (generation, pieces)
}

#[test]
fn the_text_is_what_the_model_says_up_to_its_end() {
    for name in ["qwen", "byte_level"] {
        let tokenizer = tokenizer(name);
        let eos = tokenizer.eos_token_id().unwrap();
        let (generation, pieces) = stream(&saying(TEXT, &[eos, 5], name, config()));
        assert_eq!((generation.text.as_str(), generation.finish), (TEXT, FinishReason::Stop));
        assert_eq!(generation.tokens.last(), Some(&eos));
        assert_eq!(generation.prompt_tokens, tokenizer.encode("Tell me", true).unwrap().len());
        // Characters of several tokens come whole.
        assert!(pieces.iter().filter(|p| p.text.is_empty()).count() > 3);
        assert!(pieces.iter().all(|p| !p.text.contains('\u{fffd}')));
        assert!(generation.prefill_tokens_per_second > 0.0 && generation.decode_tokens_per_second > 0.0);
    }
}

#[test]
fn any_stop_string_cuts_the_text_wherever_tokens_begin() {
    for name in ["qwen", "byte_level"] {
        let tokenizer = tokenizer(name);
        let starts: Vec<usize> = TEXT.char_indices().map(|(at, _)| at).collect();
        for (i, &start) in starts.iter().enumerate() {
            for length in [1, 2, 5, 9] {
                let end = starts.get(i + length).copied().unwrap_or(TEXT.len());
                let stop = TEXT[start..end].to_string();
                let expected = &TEXT[..TEXT.find(&stop).unwrap()];
                let config = GeneratorConfig { stop: vec!["not in it".into(), stop.clone()], ..config() };
                let (generation, _) = stream(&saying(TEXT, &[tokenizer.eos_token_id().unwrap()], name, config));
                assert_eq!((generation.text.as_str(), generation.finish), (expected, FinishReason::Stop), "{stop:?}");
                assert!(tokenizer.decode(&generation.tokens, true).unwrap().contains(&stop));
            }
        }
    }
}

#[test]
fn what_was_held_back_comes_with_the_last_token() {
    // `The end, then more.` may become `more. And on`, until there is no more.
    let stop = vec!["more. And on".to_string()];
    let eos = tokenizer("qwen").eos_token_id().unwrap();
    let (generation, pieces) =
        stream(&saying(TEXT, &[eos], "qwen", GeneratorConfig { stop: stop.clone(), ..config() }));
    assert_eq!((generation.text.as_str(), generation.finish), (TEXT, FinishReason::Stop));
    assert!(pieces.last().unwrap().text.ends_with("more."));

    let max_tokens = generation.tokens.len() - 1;
    let (generation, _) = stream(&saying(TEXT, &[eos], "qwen", GeneratorConfig { stop, max_tokens, ..config() }));
    assert_eq!((generation.text.as_str(), generation.finish), (TEXT, FinishReason::Length));
    assert_eq!(generation.tokens.len(), max_tokens);
}

#[test]
fn a_text_ends_by_the_tokens_named_or_else_by_the_tokenizers() {
    let eos = tokenizer("qwen").eos_token_id().unwrap();
    let other = tokenizer("qwen").token_to_id("<|endoftext|>").unwrap();
    assert_ne!(eos, other);
    let tail = |config| stream(&saying("ab", &[other, 70, eos, 71], "qwen", config)).0;
    let named = |ids: &[u32]| tail(GeneratorConfig { eos_token_ids: ids.to_vec(), ..config() });
    assert_eq!(tail(config()).tokens.last(), Some(&eos));
    assert_eq!(named(&[other]).tokens.last(), Some(&other));
    assert_eq!(named(&[eos, other]).tokens.last(), Some(&other));
    // A token with a text of its own, since it ends the text, is not in it.
    let spelled = named(&[70]);
    assert_eq!((spelled.tokens.last(), spelled.text.as_str()), (Some(&70), "ab"));

    // A stop string that is a special token has no text to be found in.
    let special = GeneratorConfig { stop: vec!["<|endoftext|>".into()], ignore_eos: true, ..config() };
    let special = tail(special);
    assert_eq!(
        (special.tokens.last(), special.text.as_str(), special.finish),
        (Some(&other), "ab", FinishReason::Stop)
    );

    let ignoring = GeneratorConfig { ignore_eos: true, eos_token_ids: vec![eos], max_tokens: 12, ..config() };
    let ignoring = tail(ignoring);
    assert_eq!((ignoring.tokens.len(), ignoring.finish), (12, FinishReason::Length));
    assert!(ignoring.tokens.contains(&eos) && !ignoring.text.contains("<|"));
}

#[test]
fn a_callback_that_returns_false_ends_the_text() -> Result<()> {
    let generator = saying(TEXT, &[], "qwen", config());
    let mut text = String::new();
    let generation = generator.generate_stream("Tell me", |token| {
        text += &token.text;
        !text.contains("fox")
    })?;
    assert_eq!((&generation.text, generation.finish), (&text, FinishReason::Cancelled));
    assert!(text.len() < 20 && TEXT.starts_with(&text));
    Ok(())
}

#[test]
fn an_empty_prompt_is_the_token_that_begins_a_text() -> Result<()> {
    let generation = saying("ab", &[], "metaspace", GeneratorConfig { max_tokens: 2, ..config() }).generate("")?;
    assert_eq!(generation.prompt_tokens, 1);
    // This tokenizer has none.
    let error = saying("ab", &[], "qwen", config()).generate("").unwrap_err();
    assert!(matches!(error, Error::EmptyPrompt), "{error}");
    assert!(error.hint().is_some());
    Ok(())
}

/// A tokenizer that puts EOS after every text does not put it after a prompt, with which training knows no EOS either.
#[test]
fn a_prompt_does_not_end_in_eos() -> Result<()> {
    let mut files = TokenizerFiles::read(tokenizer_dir("metaspace"))?;
    let mut json: serde_json::Value = serde_json::from_slice(&files.tokenizer_json)?;
    let processor = &mut json["post_processor"];
    let end = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    processor["single"].as_array_mut().unwrap().push(end);
    processor["special_tokens"]["</s>"] = serde_json::json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    files.tokenizer_json = serde_json::to_vec(&json)?.into();
    let tokenizer = Tokenizer::from_files(&files)?;
    let ids = tokenizer.encode("Tell me", true)?;
    assert_eq!(ids.last().copied(), tokenizer.eos_token_id());
    for ignore_eos in [false, true] {
        let model = Arc::new(Scripted::new(tokenizer.vocab_size(), &[5, 6]));
        let config = GeneratorConfig { max_tokens: 2, ignore_eos, ..config() };
        let generation = Generator::new(model, tokenizer.clone(), config)?.generate("Tell me")?;
        assert_eq!(generation.prompt_tokens, ids.len() - 1);
    }
    // Nor where nobody says what the token is called.
    files.tokenizer_config = None;
    let nameless = Tokenizer::from_files(&files)?;
    assert_eq!((nameless.eos_token_id(), nameless.encode("Tell me", true)?), (None, ids.clone()));
    assert_eq!(nameless.encode_prompt("Tell me")?, ids[..ids.len() - 1]);
    Ok(())
}

#[test]
fn a_conversation_is_written_down_by_its_template() -> Result<()> {
    let messages = [Message::new("system", "Be brief."), Message::new("user", "2+2?")];
    let generator = saying("4", &[tokenizer("qwen").eos_token_id().unwrap()], "qwen", config());
    let error = generator.chat(&messages).unwrap_err();
    assert_eq!(error.to_string(), "the model has no chat template, and this prompt is a conversation");
    assert!(error.hint().unwrap().contains("instruct"));

    let source = std::fs::read_to_string(tokenizer_dir("qwen").join("chatml.jinja"))?;
    let generator = generator.with_chat_template(ChatTemplate::from_source(&source, [])?);
    let rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n";
    let generation = generator.chat(&messages)?;
    assert_eq!(generation.prompt_tokens, tokenizer("qwen").encode(rendered, false)?.len());
    assert_eq!((generation.text.as_str(), generation.finish), ("4", FinishReason::Stop));
    // Other settings share the template.
    let one = generator.with_config(GeneratorConfig { max_tokens: 1, ..config() })?.chat(&messages)?;
    assert_eq!((one.prompt_tokens, one.tokens.len()), (generation.prompt_tokens, 1));
    Ok(())
}

/// A directory is enough: weights, tokenizer, chat template, and what the model's makers recommend.
#[test]
fn a_directory_makes_a_generator() -> Result<()> {
    let embedded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../mc-cli/assets/model");
    let dir = tempfile::tempdir()?;
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(embedded.join(file), dir.path().join(file))?;
    }
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text);
    write("generation_config.json", r#"{"do_sample": true, "temperature": 0.3, "top_k": 7, "eos_token_id": [0, 2]}"#)?;
    let plain = Generator::from_pretrained(dir.path(), Device::Cpu)?;
    let expected =
        GeneratorConfig { temperature: 0.3, top_k: Some(7), eos_token_ids: vec![0, 2], ..Default::default() };
    assert_eq!(plain.config(), &expected);
    // Its template is in tokenizer_config.json, and has more to it than that of a file of its own.
    let message = [Message::new("user", "Show the last 20 lines of app.log")];
    let templated = plain.with_config(GeneratorConfig { max_tokens: 1, ..expected.clone() })?.chat(&message)?;

    // The same text as from the parts.
    write("chat_template.jinja", "{{ messages[0].content }} =>")?;
    let greedy = GeneratorConfig { temperature: 0.0, max_tokens: 12, ..expected };
    let generator = Generator::from_pretrained(dir.path(), Device::Cpu)?.with_config(greedy.clone())?;
    let parts = Generator::new(ModelLoader::new().load(&embedded)?, Tokenizer::load(&embedded)?, greedy)?;
    let text = parts.generate("Show the last 20 lines of app.log =>")?.text;
    assert!(!text.is_empty());
    let chat = generator.chat(&message)?;
    assert_eq!(chat.text, text);
    assert!(chat.prompt_tokens < templated.prompt_tokens);
    assert_eq!(generator.tokenizer().vocab_size(), generator.model().config().vocab_size);

    write("generation_config.json", r#"{"do_sample": true, "top_p": 3}"#)?;
    let error = Generator::from_pretrained(dir.path(), Device::Cpu).err().unwrap();
    let file = dir.path().join("generation_config.json");
    assert_eq!(error.to_string(), format!("{}: `top_p` is 3, expected a number above 0, at most 1", file.display()));
    assert!(error.hint().is_some());
    let error = Generator::from_pretrained(dir.path().join("nothing"), Device::Cpu).err().unwrap();
    assert!(error.hint().is_some() && error.to_string().contains("nothing"), "{error}");
    Ok(())
}

#[test]
fn options_out_of_range_are_refused_at_once() {
    let check = |config: GeneratorConfig, message: &str| {
        let error = Generator::new(Arc::new(Scripted::new(50, &[])), tokenizer("qwen"), config).err().unwrap();
        assert_eq!(error.to_string(), message);
    };
    for (temperature, shown) in [(-0.1, "-0.1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        check(
            GeneratorConfig { temperature, ..config() },
            &format!("`temperature` is {shown}, expected a number above 0, or 0 for the likeliest token"),
        );
    }
    // Filters also where the likeliest token is taken anyway.
    check(GeneratorConfig { top_k: Some(0), ..config() }, "`top_k` is 0, expected at least 1, or none for no limit");
    check(GeneratorConfig { top_p: Some(0.0), ..config() }, "`top_p` is 0, expected a number above 0, at most 1");
    check(GeneratorConfig { min_p: Some(1.5), ..config() }, "`min_p` is 1.5, expected a number from 0 to 1");
    check(
        GeneratorConfig { repetition_penalty: 0.0, ..config() },
        "`repetition_penalty` is 0, expected a number above 0; 1 is no penalty",
    );
    check(GeneratorConfig { max_tokens: 0, ..config() }, "`max_tokens` is 0, expected at least 1");
    check(
        GeneratorConfig { stop: vec![String::new()], ..config() },
        "`stop` is an empty text, expected a text to look for",
    );
}

#[test]
fn a_generation_is_the_json_of_the_command_line() -> Result<()> {
    let eos = tokenizer("qwen").eos_token_id().unwrap();
    let generation = saying("ab", &[eos], "qwen", config()).generate("x")?;
    let json = serde_json::to_value(&generation)?;
    let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["text", "tokens", "prompt_tokens", "finish", "prefill_tokens_per_second", "decode_tokens_per_second"]
    );
    assert_eq!((&json["text"], &json["finish"]), (&"ab".into(), &"stop".into()));
    let many = saying("ab", &[], "qwen", config());
    let one = many.with_config(GeneratorConfig { max_tokens: 1, ..config() })?.generate("x")?;
    assert_eq!(serde_json::to_value(&one)?["finish"], "length");
    assert_eq!(serde_json::to_value(&one)?["decode_tokens_per_second"], 0.0);
    Ok(())
}

#[test]
fn what_the_makers_recommend() -> Result<()> {
    let dir = ModelDir::open(golden::dir("models/qwen2"))?;
    let config = GeneratorConfig::from_generation_config(&dir.generation_config()?);
    let expected = GeneratorConfig {
        temperature: 0.7,
        top_k: Some(20),
        top_p: Some(0.8),
        repetition_penalty: 1.05,
        eos_token_ids: vec![2, 7],
        ..GeneratorConfig::default()
    };
    assert_eq!(config, expected);
    let nothing = GeneratorConfig::from_generation_config(&GenerationConfig { top_k: Some(0), ..Default::default() });
    assert_eq!(nothing, GeneratorConfig::default());
    Ok(())
}

/// The words `t0`, `t1`, …: a text spells its ids.
fn words(vocab_size: usize) -> Tokenizer {
    let vocab: serde_json::Map<_, _> = (0..vocab_size).map(|id| (format!("t{id}"), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    let tokenizer_json = serde_json::to_vec(&json).unwrap().into();
    Tokenizer::from_files(&TokenizerFiles { tokenizer_json, ..TokenizerFiles::default() }).unwrap()
}

fn spell(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ")
}

fn golden_model(name: &str) -> Result<(Model, Vec<u32>, Vec<u32>)> {
    let dir = golden::dir(&format!("models/{name}"));
    let expected = golden::tensors(dir.join("expected.safetensors"));
    let ids = |key: &str| expected[key].flatten_all().and_then(|t| t.to_vec1::<u32>());
    Ok((ModelLoader::new().with_dtype(DType::F32).load_dir(&ModelDir::open(dir)?)?, ids("prompt")?, ids("greedy")?))
}

#[test]
fn greedy_text_is_that_of_transformers() -> Result<()> {
    for name in ["qwen2", "llama3", "mistral", "qwen3"] {
        let (model, prompt, greedy) = golden_model(name)?;
        let config = GeneratorConfig { max_tokens: greedy.len(), ignore_eos: true, ..config() };
        let words = words(model.config().vocab_size);
        let generator = Generator::new(model.clone(), words.clone(), config.clone())?;
        let generation = generator.generate(&spell(&prompt))?;
        assert_eq!(generation.tokens, greedy, "{name}");
        assert_eq!(generation.text, spell(&greedy));

        // Stopped by a word of its own.
        let stop = format!(" t{}", greedy[9]);
        let at = generation.text.find(&stop).unwrap();
        let generator = Generator::new(model, words, GeneratorConfig { stop: vec![stop], ..config })?;
        assert_eq!(generator.generate(&spell(&prompt))?.text, generation.text[..at]);
    }
    Ok(())
}

#[test]
fn a_seed_names_its_text_in_any_thread() -> Result<()> {
    let (model, prompt, _) = golden_model("qwen2")?;
    let with_seed = |seed| {
        let config = GeneratorConfig { max_tokens: 20, temperature: 1.5, top_p: Some(0.9), seed, ..config() };
        Generator::new(model.clone(), words(101), GeneratorConfig { ignore_eos: true, ..config })
    };
    let (one, two) = (with_seed(1)?, with_seed(2)?);
    let text = one.generate(&spell(&prompt))?.text;
    assert_ne!(two.generate(&spell(&prompt))?.text, text);
    std::thread::scope(|scope| {
        let run = || one.generate(&spell(&prompt)).map(|g| g.text);
        let threads = [scope.spawn(run), scope.spawn(run), scope.spawn(run)];
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), text);
        }
    });
    Ok(())
}

/// Scales every projection.
struct Louder(f64);

impl Adapter for Louder {
    fn project(&self, group: &[Projection], x: &candle_core::Tensor) -> candle_core::Result<Vec<candle_core::Tensor>> {
        group.iter().map(|projection| projection.forward(x)? * self.0).collect()
    }
}

#[test]
fn adapters_are_swapped_by_passing_another() -> Result<()> {
    let (model, prompt, greedy) = golden_model("llama")?;
    let config = GeneratorConfig { max_tokens: greedy.len(), ignore_eos: true, ..config() };
    let base = Generator::new(model.clone(), words(model.config().vocab_size), config)?;
    let text = |generator: &Generator| generator.generate(&spell(&prompt)).map(|g| g.text);
    let (louder, same) =
        (base.clone().with_adapter(Arc::new(Louder(2.0))), base.clone().with_adapter(Arc::new(Louder(1.0))));
    assert_ne!(text(&louder)?, text(&base)?);
    assert_eq!(text(&same)?, spell(&greedy));
    // Other settings share the adapter.
    let shorter = louder.with_config(GeneratorConfig { max_tokens: 2, ..louder.config().clone() })?;
    assert!(text(&louder)?.starts_with(&text(&shorter)?));
    assert_ne!(text(&shorter)?, spell(&greedy[..2]));
    assert_eq!(text(&louder.with_adapter(Arc::new(Louder(1.0))))?, spell(&greedy));
    Ok(())
}

#[test]
fn a_tokenizer_of_another_model_is_noticed() -> Result<()> {
    let (model, ..) = golden_model("qwen2")?;
    let generator = Generator::new(model, words(500), config())?;
    let error = generator.generate("t3 t300").unwrap_err();
    assert_eq!(error.to_string(), "the prompt has token id 300, expected ids below the model's vocabulary of 101");
    let error = generator.generate(&spell(&[1; 65])).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 65 tokens, expected at most 64");
    Ok(())
}
