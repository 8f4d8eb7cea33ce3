//! What is wrong with texts, directories and requests: each has one meaning, and errors name the file and the field.

#![expect(clippy::result_large_err, reason = "an error is made once in a test")]

use mc_checkpoint::ModelDir;
use mc_embed::{CrossEncoder, EmbeddingModel, EncodeOptions, Error, Prompt};
use mc_models::ModelLoader;
use mc_testkit::{Tolerance, assert_close};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A copy of one of the golden models.
struct Copy(TempDir);

impl Copy {
    fn of(name: &str) -> Result<Self> {
        fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
            fs::create_dir_all(to)?;
            for entry in fs::read_dir(from)? {
                let path = entry?.path();
                let Some(name) = path.file_name() else { continue };
                if path.is_dir() {
                    copy(&path, &to.join(name))?;
                } else {
                    fs::copy(&path, to.join(name))?;
                }
            }
            Ok(())
        }
        let dir = tempfile::tempdir()?;
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), dir.path())?;
        Ok(Self(dir))
    }

    fn write(&self, file: &str, json: &Value) -> Result<()> {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
        Ok(fs::write(path, json.to_string())?)
    }

    /// Changes a field of a JSON file, or removes it.
    fn set(&self, file: &str, field: &str, value: &Value) -> Result<()> {
        let mut json: Value = serde_json::from_slice(&fs::read(self.0.path().join(file))?)?;
        json[field] = value.clone();
        self.write(file, &json)
    }

    fn load(&self) -> std::result::Result<EmbeddingModel, Error> {
        EmbeddingModel::from_dir(&ModelDir::open(self.0.path())?, &ModelLoader::new())
    }

    /// Fails to load with a message that ends so, and a hint that begins so.
    #[track_caller]
    fn check(&self, message: &str, hint: Option<&str>) {
        check_error(self.load(), message, hint);
    }
}

#[track_caller]
fn check_error<T: std::fmt::Debug>(result: std::result::Result<T, Error>, message: &str, hint: Option<&str>) {
    let Err(error) = result else { panic!("{message}: {result:?}") };
    let found = error.to_string();
    assert!(found.ends_with(message) && !found.contains('\n'), "{found}, expected {message}");
    let found = error.hint();
    assert!(found.is_some() || !matches!(error, Error::Directory { .. }), "no hint: {message}");
    if let Some(hint) = hint {
        assert!(found.as_ref().is_some_and(|found| found.starts_with(hint)), "{found:?}, expected {hint}");
    }
    assert!(found.is_none_or(|h| !h.ends_with('.') && h.starts_with(char::is_lowercase)));
}

#[test]
fn texts_of_every_length() -> Result<()> {
    let model = Copy::of("models/bert-mean")?.load()?;
    let none: [&str; 0] = [];
    assert_eq!(model.encode(&none)?.dims(), [0, 20]);
    assert_eq!(model.encode_query(&none)?.dims(), [0, 20]);
    // Nothing is two special tokens, and so a vector.
    let empty = model.encode(&["", ""])?.to_vec2::<f32>()?;
    assert!(empty[0] == empty[1] && empty[0].iter().any(|x| *x != 0.0));
    // 100,000 characters are what is left of them.
    let words = "river mountain ".repeat(6667);
    let options = EncodeOptions::default();
    // But one word of that length is one that the vocabulary does not know.
    for (long, cut) in [("x".repeat(100_000), 0), ("é ".repeat(50_000), 1), (words, 1)] {
        let embedded = model.encode_with(&[&long], &options, &mut |_| {})?;
        assert_eq!((embedded.truncated, embedded.vectors.dims()), (cut, &[1, 20][..]));
    }
    // Only what is read decides.
    let long = "river mountain ".repeat(300);
    let two = [long.clone(), long + "and something at the end"];
    let rows = model.encode(&two)?;
    assert_close("cut", &rows.narrow(0, 0, 1)?, &rows.narrow(0, 1, 1)?, Tolerance::absolute(0.0));
    Ok(())
}

/// A tokenizer without special tokens makes nothing of nothing.
#[test]
fn a_text_without_tokens_is_zeros() -> Result<()> {
    let copy = Copy::of("models/qwen3-last")?;
    copy.set("tokenizer.json", "post_processor", &Value::Null)?;
    let vectors = copy.load()?.encode(&["", "bread", ""])?.to_vec2::<f32>()?;
    assert!(vectors[0] == vec![0.0; 24] && vectors[2] == vectors[0] && vectors[1].iter().any(|x| *x != 0.0));
    Ok(())
}

#[test]
fn dimensions_and_prompts_that_there_are_not() -> Result<()> {
    let model = Copy::of("models/bert-mean")?.load()?;
    let with = |prompt, dimensions| {
        model.encode_with(&["x"], &EncodeOptions { prompt, dimensions, ..EncodeOptions::default() }, &mut |_| {})
    };
    check_error(with(Prompt::Default, Some(0)), "cannot cut vectors of 20 dimensions to 0", Some("ask for 1 to 20"));
    check_error(with(Prompt::Default, Some(21)), "cannot cut vectors of 20 dimensions to 21", Some("ask for 1 to 20"));
    assert_eq!(with(Prompt::Default, Some(20))?.vectors.dims(), [1, 20]);
    check_error(with(Prompt::Named("query"), None), "the model has no prompt `query`", Some("it has none"));
    Ok(())
}

/// Of several prompts for documents the first of `document`, `passage` and `corpus`.
#[test]
fn the_prompt_of_documents() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let mut prompts = json!({"corpus": "c: ", "passage": "p: ", "document": "d: "});
    for expected in ["d: ", "p: ", "c: ", ""] {
        copy.write("config_sentence_transformers.json", &json!({"prompts": prompts}))?;
        assert_eq!(copy.load()?.prompt(Prompt::Document)?, expected);
        let gone = ["document", "passage", "corpus"].into_iter().find(|name| prompts.get(name).is_some());
        gone.map(|name| prompts.as_object_mut().map(|prompts| prompts.remove(name)));
    }
    Ok(())
}

/// E5's directories name no prompts, and what sentence-transformers writes then are empty ones.
#[test]
fn prompts_of_a_known_model() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let settings = "config_sentence_transformers.json";
    for prompts in [Value::Null, json!({"query": "", "document": ""}), json!({"query": null, "document": null})] {
        copy.write(settings, &json!({"prompts": prompts}))?;
        let dir = ModelDir::open(copy.0.path())?.with_name("intfloat/e5-small-v2");
        let model = EmbeddingModel::from_dir(&dir, &ModelLoader::new())?;
        let same = |found: candle_core::Tensor, text: &str| -> Result<()> {
            let expected = copy.load()?.encode(&[text])?;
            assert_close(text, &found, &expected, Tolerance::absolute(0.0));
            Ok(())
        };
        same(model.encode_query(&["bread"])?, "query: bread")?;
        same(model.encode_document(&["bread"])?, "passage: bread")?;
        same(model.encode(&["bread"])?, "bread")?;
        assert_eq!(model.prompt(Prompt::Query)?, "query: ");
        assert_eq!(copy.load()?.prompt(Prompt::Query)?, "", "another model has none");
    }
    // What a directory says of itself goes first.
    copy.write(settings, &json!({"prompts": {"query": "find: "}}))?;
    let dir = ModelDir::open(copy.0.path())?.with_name("intfloat/e5-small-v2");
    let model = EmbeddingModel::from_dir(&dir, &ModelLoader::new())?;
    assert_eq!((model.prompt(Prompt::Query)?, model.prompt(Prompt::Document)?), ("find: ", ""));
    Ok(())
}

/// As sentence-transformers has it, a file of settings belongs to `modules.json` and to one kind of model.
#[test]
fn settings_without_modules() -> Result<()> {
    let settings = "config_sentence_transformers.json";
    let copy = Copy::of("models/bert-bare")?;
    copy.write(settings, &json!({"prompts": {"query": "find: "}, "default_prompt_name": "query"}))?;
    assert_eq!(copy.load()?.prompts().count(), 0);
    let dir = ModelDir::open(copy.0.path())?.with_name("intfloat/e5-small-v2");
    let known = EmbeddingModel::from_dir(&dir, &ModelLoader::new())?;
    assert_eq!(known.prompt(Prompt::Query)?, "query: ", "a known model has its own");
    // A reranker: its activation and its prompt are those of the file, or a sigmoid and none.
    let of_logit = |logit: f32| 1.0 / (1.0 + (-logit).exp());
    for change in [
        &(|copy: &Copy| Ok(fs::remove_file(copy.0.path().join("modules.json"))?)) as &dyn Fn(&Copy) -> Result<()>,
        &|copy: &Copy| copy.set("config_sentence_transformers.json", "model_type", &Value::Null),
    ] {
        let copy = Copy::of("cross/bert-saved")?;
        let score = |query: &str| -> Result<_> {
            Ok(CrossEncoder::load(copy.0.path(), &ModelLoader::new())?.score(query, &["bread"])?[0])
        };
        let logit = score("river")?;
        copy.set(settings, "prompts", &json!({"query": "find: "}))?;
        copy.set(settings, "default_prompt_name", &json!("query"))?;
        assert_ne!(score("river")?, logit);
        change(&copy)?;
        assert!((score("river")? - of_logit(logit)).abs() < 1e-6);
    }
    Ok(())
}

/// A model that was saved to give fewer dimensions gives those, unless others are asked for.
#[test]
fn dimensions_that_a_model_was_saved_with() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let encode = |model: &EmbeddingModel, dimensions| -> Result<_> {
        let options = EncodeOptions { dimensions, ..EncodeOptions::default() };
        Ok(model.encode_with(&["bread and salt"], &options, &mut |_| {})?.vectors.to_vec2::<f32>()?)
    };
    let whole = copy.load()?;
    copy.write("config_sentence_transformers.json", &json!({"truncate_dim": 7}))?;
    let saved = copy.load()?;
    assert_eq!((whole.dimensions(), saved.dimensions()), (20, 7));
    assert!(saved.describe().contains("; 7 of 20 dimensions"), "{}", saved.describe());
    assert_eq!(encode(&saved, None)?, encode(&whole, Some(7))?);
    assert_eq!(encode(&saved, Some(20))?, encode(&whole, None)?);
    copy.write("config_sentence_transformers.json", &json!({"truncate_dim": 99}))?;
    assert_eq!(copy.load()?.dimensions(), 20);
    Ok(())
}

/// What follows the encoder was made for its width, and the tokenizer for its vocabulary.
#[test]
fn the_encoder_of_another_model() -> Result<()> {
    let load = |name: &str| -> Result<_> { Ok(Copy::of(name)?.load()?) };
    let hint = Some("pass one of the same weights");
    for (other, message) in [
        ("models/mpnet-mean", "the encoder has hidden states of width 24, expected 20"),
        ("models/distilbert-max", "the encoder has a vocabulary of 150, expected 330"),
    ] {
        let other = load(other)?.encoder().clone();
        let of = if message.contains("width") { "models/bert-mean" } else { "models/modernbert-old" };
        check_error(load(of)?.with_encoder(other), message, hint);
    }
    // As many words and the same width, but fewer positions.
    let (long, short) = (load("models/distilbert-max")?, load("models/bert-mean")?.encoder().clone());
    check_error(long.with_encoder(short), "the encoder has a context of 64, expected 90", hint);
    // Of another model's weights nobody can tell.
    let (plain, other) = (load("models/bert-mean")?, load("models/bert-bare")?.encoder().clone());
    assert_eq!(plain.with_encoder(other)?.encode(&["bread"])?.dims(), [1, 20]);
    Ok(())
}

/// Weights that are no numbers make no vectors and no scores.
#[test]
fn what_is_not_finite() -> Result<()> {
    let spoil = |copy: &Copy, table: &str, row: usize| -> Result<()> {
        let path = copy.0.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)?;
        let mut rows = tensors[table].to_vec2::<f32>()?;
        rows[row].fill(f32::NAN);
        tensors.insert(table.into(), candle_core::Tensor::new(rows, &candle_core::Device::Cpu)?);
        Ok(candle_core::safetensors::save(&tensors, path)?)
    };
    // The row of the fifth special token, [MASK].
    let copy = Copy::of("models/bert-mean")?;
    spoil(&copy, "embeddings.word_embeddings.weight", 4)?;
    let (model, texts) = (copy.load()?, ["bread", "a longer text than the others", "[MASK]", "river"]);
    let message = "text 2: what the model makes of it is not finite";
    check_error(model.encode(&texts), message, Some("its weights may be damaged"));
    check_error(model.encode_query(&texts), message, None);
    assert_eq!(model.encode(&texts[..2])?.dims(), [2, 20]);
    let copy = Copy::of("cross/bert")?;
    spoil(&copy, "bert.embeddings.word_embeddings.weight", 4)?;
    let model = CrossEncoder::load(copy.0.path(), &ModelLoader::new())?;
    check_error(model.score("bread", &texts), message, Some("its weights may be damaged"));
    check_error(model.rank("bread", &texts, 1), message, None);
    assert_eq!(model.rank("bread", &texts[..2], 1)?.len(), 1);
    Ok(())
}

/// The first in order, however many threads look at them.
#[test]
fn of_several_bad_texts_the_first_is_named() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    // A tokenizer of another model, whose words lie beyond the rows of this one.
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/modernbert-weighted/tokenizer.json");
    fs::copy(words, copy.0.path().join("tokenizer.json"))?;
    let model = copy.load()?;
    let texts: Vec<&str> = (0..3000).map(|i| if i < 7 { "" } else { "mountain violin" }).collect();
    for _ in 0..8 {
        let error = model.encode(&texts).unwrap_err().to_string();
        assert!(error.starts_with("text 7: token id "), "{error}");
    }
    Ok(())
}

/// Whatever the last part of its name: what it does is not known.
#[test]
fn modules_of_other_programs() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let modules: Value = serde_json::from_slice(&fs::read(copy.0.path().join("modules.json"))?)?;
    for (at, kind) in [(0, "custom_st.Transformer"), (0, "Transformer"), (1, "my.models.Pooling"), (2, "x.Normalize")] {
        let mut modules = modules.clone();
        modules[at]["type"] = json!(kind);
        copy.write("modules.json", &modules)?;
        let hint = "supported are Transformer, Pooling, Dense, Normalize of sentence_transformers";
        copy.check(&format!("modules.json: module {at} is of type `{kind}`"), Some(hint));
    }
    Ok(())
}

#[test]
fn modules_that_make_no_sense() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let transformer = json!({"type": "sentence_transformers.models.Transformer", "path": ""});
    let pooling = json!({"type": "sentence_transformers.base.modules.pooling.Pooling", "path": "1_Pooling"});
    for (modules, message, hint) in [
        (json!({}), "modules.json: is not a list of modules", Some("it lists objects with `type` and `path`")),
        (
            json!([{"path": ""}]),
            "modules.json: module 0 has no `type`",
            Some("it lists objects with `type` and `path`"),
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.Pooling"}]),
            "modules.json: module 1 has no `path`",
            Some("it is the folder of the module"),
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.Pooling", "path": null}]),
            "modules.json: module 1 has no `path`",
            Some("it is the folder of the module"),
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.Pooling", "path": 5}]),
            "modules.json: module 1 has no `path`",
            Some("it is the folder of the module"),
        ),
        (
            json!([{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}, pooling]),
            "0_Transformer/: no such directory",
            None,
        ),
        (
            json!([{"type": "sentence_transformers.models.Transformer", "path": "../outside"}, pooling]),
            "is outside the directory",
            None,
        ),
        (
            json!([transformer]),
            "has no Pooling after a Transformer, so nothing makes one vector of a text",
            Some("a reranker has none"),
        ),
        (
            json!([]),
            "has no Pooling after a Transformer, so nothing makes one vector of a text",
            Some("it lists no modules"),
        ),
        (
            json!([pooling, transformer]),
            "`sentence_transformers.base.modules.pooling.Pooling` is module 0, where it has no meaning",
            Some("the order is Transformer, Pooling, and then"),
        ),
        (
            json!([transformer, pooling, pooling]),
            "`sentence_transformers.base.modules.pooling.Pooling` is module 2, where it has no meaning",
            Some("the order is Transformer, Pooling, and then"),
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.CLIPModel", "path": ""}]),
            "module 1 is of type `sentence_transformers.models.CLIPModel`",
            Some("supported are Transformer, Pooling"),
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.Pooling", "path": "../outside"}]),
            "is outside the directory",
            None,
        ),
        (
            json!([transformer, {"type": "sentence_transformers.models.Pooling", "path": "9_Pooling"}]),
            "9_Pooling/config.json: is missing",
            Some("a module's folder is part of the model"),
        ),
        (
            json!([transformer, pooling, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]),
            "2_Dense/config.json: is missing",
            Some("a module's folder is part of the model"),
        ),
    ] {
        copy.write("modules.json", &modules)?;
        copy.check(message, hint);
    }
    // A folder has more than one name.
    let expected = Copy::of("models/bert-mean")?.load()?.encode(&["bread"])?;
    let (here, below) = (
        json!({"type": "sentence_transformers.models.Transformer", "path": "."}),
        json!({"type": "sentence_transformers.models.Pooling", "path": "./1_Pooling/"}),
    );
    copy.write("modules.json", &json!([here, below, {"type": "sentence_transformers.models.Normalize", "path": "2"}]))?;
    assert_close("./", &copy.load()?.encode(&["bread"])?, &expected, Tolerance::absolute(0.0));
    // What needs no folder needs none, and what only trains does nothing.
    let dropout = json!({"type": "sentence_transformers.models.Dropout", "path": "3"});
    copy.write(
        "modules.json",
        &json!([transformer, pooling, dropout, {"type": "sentence_transformers.models.Normalize", "path": "7"}]),
    )?;
    copy.load()?.encode(&["bread"])?;
    fs::write(copy.0.path().join("modules.json"), "[")?;
    let Err(error) = copy.load() else { panic!("half a file was read") };
    assert!(error.to_string().contains("modules.json: is no JSON: "), "{error}");
    Ok(())
}

#[test]
fn a_wrong_pooling() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let all = "one or several of cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken";
    for mode in [json!("first"), json!([]), json!(["mean", "median"]), json!(3), json!({"mean": true})] {
        copy.write("1_Pooling/config.json", &json!({"pooling_mode": mode}))?;
        let message = format!("1_Pooling/config.json: `pooling_mode` is {mode}, expected {all}");
        copy.check(&message, Some("other poolings are not supported"));
    }
    copy.write("1_Pooling/config.json", &json!({"pooling_mode_cls_token": "yes"}))?;
    copy.check("`pooling_mode_cls_token` is \"yes\", expected true or false", Some("correct it there, or get"));
    copy.write("1_Pooling/config.json", &json!({"pooling_mode_median_tokens": true}))?;
    let hint = "supported are pooling_mode_cls_token, pooling_mode_max_tokens, pooling_mode_mean_tokens, ";
    copy.check("`pooling_mode_median_tokens` is no pooling that there is", Some(hint));
    copy.write("1_Pooling/config.json", &json!({"pooling_mode": "mean", "include_prompt": 1}))?;
    copy.check("`include_prompt` is 1, expected true or false", Some("correct it there, or get"));
    // Of no modes the mean, as sentence-transformers has it.
    let mean = Copy::of("models/bert-mean")?.load()?.encode(&["bread and paper"])?;
    copy.write("1_Pooling/config.json", &json!({"word_embedding_dimension": 20}))?;
    assert_close("no mode", &copy.load()?.encode(&["bread and paper"])?, &mean, Tolerance::absolute(0.0));
    Ok(())
}

#[test]
fn two_modules_of_one_name() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let module = |name: &str, kind: &str, path: &str| json!({"name": name, "type": format!("sentence_transformers.models.{kind}"), "path": path});
    for (name, message) in [("2", None), ("1", Some("two modules have the name `1`"))] {
        let pooling = module("1", "Pooling", "1_Pooling");
        let modules = [module("0", "Transformer", ""), pooling, module(name, "Normalize", "2_Normalize")];
        copy.write("modules.json", &json!(modules))?;
        match message {
            Some(message) => copy.check(message, Some("which of them counts is not said")),
            None => drop(copy.load()?),
        }
    }
    Ok(())
}

/// Nobody waits for who writes to a pipe.
#[test]
#[cfg(unix)]
fn a_pipe_is_no_file_of_a_model() {
    for name in ["config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"] {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let copy = Copy::of("models/bert-mean").expect("a copy");
            let path = copy.0.path().join(name);
            let _ = fs::remove_file(&path);
            assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
            send.send(copy.load().map_or_else(|e| e.to_string(), |_| "it was read".into())).expect("sent");
        });
        let said = receive.recv_timeout(std::time::Duration::from_mins(1)).expect("an answer");
        assert!(said.contains(name) && said.contains("not a file"), "{name}: {said}");
    }
}

#[test]
fn a_wrong_projection() -> Result<()> {
    let file = "2_Dense/config.json";
    let changed = |field: &str, value: Value| -> Result<Copy> {
        let copy = Copy::of("models/bert-cls-dense")?;
        copy.set(file, field, &value)?;
        Ok(copy)
    };
    for activation in ["torch.nn.modules.activation.SiLU", "torch.nn.functional.relu", "my.code.GELU", "GELU"] {
        let expected = "expected Identity, Tanh, ReLU, GELU or Sigmoid of torch.nn";
        changed("activation_function", json!(activation))?.check(
            &format!("`activation_function` is \"{activation}\", {expected}"),
            Some("take a model with one of these"),
        );
    }
    changed("use_residual", json!(true))?
        .check("expected false: a sum with its input is not supported", Some("take a model without it"));
    changed("module_input_name", json!("token_embeddings"))?.check(
        "`module_input_name` is \"token_embeddings\", expected \"sentence_embedding\"",
        Some("a module that reads"),
    );
    changed("in_features", json!(null))?
        .check("2_Dense/config.json: `in_features` is missing", Some("it may be incomplete"));
    changed("out_features", json!(12))?.check("tensor `linear.weight` is (13, 28), expected (12, 28)", None);
    for none in [json!(false), json!(null)] {
        let copy = changed("bias", none)?;
        copy.check(
            "it has `linear.bias`, but its config.json says that there is no bias",
            Some("the two are of different"),
        );
        let weights = copy.0.path().join("2_Dense/model.safetensors");
        let mut tensors = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu)?;
        tensors.remove("linear.bias").ok_or("no bias")?;
        candle_core::safetensors::save(&tensors, &weights)?;
        copy.load()?;
        copy.set(file, "bias", &json!(true))?;
        assert!(copy.load().is_err_and(|e| e.to_string().contains("no tensor `linear.bias`")));
    }
    let copy = changed("bias", json!(true))?;
    fs::remove_file(copy.0.path().join("2_Dense/model.safetensors"))?;
    copy.check("2_Dense/model.safetensors: is missing", Some("weights are read from safetensors"));
    // Three times as wide as what the projection reads.
    let copy = Copy::of("models/bert-cls-dense")?;
    copy.write("1_Pooling/config.json", &json!({"pooling_mode": ["cls", "mean", "max"]}))?;
    copy.check("2_Dense/config.json: `in_features` is 28, but vectors have 84", Some("a Dense reads what"));
    Ok(())
}

#[test]
fn wrong_settings() -> Result<()> {
    let copy = Copy::of("models/bert-cls-dense")?;
    let dense = fs::read_to_string(copy.0.path().join("2_Dense/config.json"))?;
    copy.set("2_Dense/config.json", "activation_function", &json!(["torch.nn.ReLU"]))?;
    copy.check("`activation_function` is [\"torch.nn.ReLU\"], expected a string", Some("correct it there, or get"));
    fs::write(copy.0.path().join("2_Dense/config.json"), dense)?;
    let settings = "config_sentence_transformers.json";
    for (json, message, hint) in [
        (json!({"prompts": ["a"]}), "`prompts` is [\"a\"], expected an object", "correct it"),
        (json!({"prompts": {"query": 3}}), "`prompts.query` is 3, expected a string", "correct it"),
        (
            json!({"default_prompt_name": "passage"}),
            "`default_prompt_name` is `passage`, which is no prompt of it",
            "it has none",
        ),
        (
            json!({"model_type": "SparseEncoder"}),
            "`model_type` is \"SparseEncoder\", expected SentenceTransformer",
            "a CrossEncoder reranks and embeds nothing",
        ),
        (json!({"similarity_fn_name": 1}), "`similarity_fn_name` is 1, expected a string", "correct it"),
        (json!({"truncate_dim": 0}), "`truncate_dim` is 0, expected a whole number of at least 1", "correct it"),
        (
            json!({"default_prompt_name": ["query"]}),
            "`default_prompt_name` is [\"query\"], expected a string",
            "correct it",
        ),
        (json!([]), "config_sentence_transformers.json: is not a JSON object", "it may be incomplete"),
    ] {
        copy.write(settings, &json)?;
        copy.check(message, Some(hint));
    }
    // A prompt that is null is an empty one.
    let null = json!({"prompts": {"document": null, "passage": "paper "}, "default_prompt_name": "document"});
    copy.write(settings, &null)?;
    let model = copy.load()?;
    assert_eq!(model.prompts().collect::<Vec<_>>(), [("document", ""), ("passage", "paper ")]);
    assert_eq!((model.prompt(Prompt::Named("document"))?, model.prompt(Prompt::Document)?), ("", ""));
    // Each model has these two, as in sentence-transformers, which writes no kind in older ones.
    for name in ["query", "document"] {
        copy.write(settings, &json!({"default_prompt_name": name, "model_type": "SentenceTransformer"}))?;
        assert_eq!(copy.load()?.prompt(Prompt::Default)?, "");
    }
    copy.write(settings, &json!({}))?;
    copy.write("sentence_bert_config.json", &json!({"max_seq_length": 0}))?;
    copy.check("`max_seq_length` is 0, expected a whole number of at least 1", Some("correct it there, or get"));
    let supported = Some("supported are max_seq_length, do_lower_case");
    // Arguments of a tokenizer go over its file; those that change texts in other ways are refused.
    let arguments = json!({"processor_kwargs": {"model_max_length": 9}, "max_seq_length": 30});
    copy.write("sentence_bert_config.json", &arguments)?;
    assert_eq!(copy.load()?.max_tokens(), 9);
    copy.write("sentence_bert_config.json", &json!({"tokenizer_args": {"do_lower_case": true}}))?;
    copy.check("`tokenizer_args.do_lower_case` is true, expected nothing: it is not supported", supported);
    copy.write("sentence_bert_config.json", &json!({"processing_kwargs": {"text": {}}}))?;
    copy.check("`processing_kwargs.text` is {}, expected nothing: it is not supported", supported);
    copy.write("sentence_bert_config.json", &json!({"model_kwargs": {"subfolder": "onnx"}}))?;
    copy.check("`model_kwargs.subfolder` is \"onnx\", expected nothing: it is not supported", supported);
    copy.write("sentence_bert_config.json", &json!({"tokenizer_args": {"truncation_side": "middle"}}))?;
    copy.check("`truncation_side` is \"middle\", expected left or right", Some("correct it there, or get"));
    copy.write("sentence_bert_config.json", &json!({"tokenizer_args": 3}))?;
    copy.check("`tokenizer_args` is 3, expected an object", Some("correct it there, or get"));
    // Where there is no limit, the model's own holds: that of tokenizer_config.json is replaced, and so is the file's.
    for none in [json!(1e30), json!(10e29), Value::Null] {
        copy.write(
            "sentence_bert_config.json",
            &json!({"processor_kwargs": {"model_max_length": none}, "max_seq_length": 9}),
        )?;
        assert_eq!(copy.load()?.max_tokens(), 64, "{none}");
    }
    copy.write("sentence_bert_config.json", &json!({"max_seq_length": 1e30}))?;
    assert_eq!(copy.load()?.max_tokens(), 64);
    // The older name goes first, with all that it says and no more.
    let both = json!({"processor_kwargs": {"model_max_length": 30}, "tokenizer_args": {}, "max_seq_length": 9});
    copy.write("sentence_bert_config.json", &both)?;
    assert_eq!(copy.load()?.max_tokens(), 9);
    // Nothing is left of a text beside two special tokens.
    for limit in [1, 2] {
        copy.write("sentence_bert_config.json", &json!({"max_seq_length": limit}))?;
        let message = format!("texts may have {limit} tokens, which leaves none beside the special ones");
        copy.check(&message, Some("see `model_max_length` there, and `max_seq_length`"));
    }
    copy.write("sentence_bert_config.json", &json!({"max_seq_length": 3}))?;
    assert_eq!(copy.load()?.max_tokens(), 3);
    copy.write("sentence_bert_config.json", &json!({}))?;
    for limit in [json!(-3), json!(0), json!(2.5), json!("9")] {
        copy.set("tokenizer_config.json", "model_max_length", &limit)?;
        copy.check(&format!("`model_max_length` is {limit}, expected a whole number of at least 1"), None);
    }
    copy.set("tokenizer_config.json", "model_max_length", &json!(1))?;
    copy.check("texts may have 1 tokens, which leaves none beside the special ones", None);
    copy.set("tokenizer_config.json", "model_max_length", &json!(1e30))?;
    // More than there are positions is as many as there are.
    copy.write("sentence_bert_config.json", &json!({"max_seq_length": 5000}))?;
    assert_eq!(copy.load()?.max_tokens(), 64);
    fs::remove_file(copy.0.path().join("tokenizer.json"))?;
    let Err(error) = copy.load() else { panic!("there is no tokenizer") };
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    Ok(())
}

/// Whatever else sentence_bert_config.json says: what changes a vector is refused, and what does not is passed over.
#[test]
fn settings_of_a_transformer() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let expected = copy.load()?.encode_query(&["bread and paper"])?;
    let file = "sentence_bert_config.json";
    let unsupported = "expected nothing: it is not supported";
    let text = |output: Value| json!({"text": {"method": "forward", "method_output_name": output}});
    for (settings, message) in [
        (json!({"query_length": 6}), format!("{file}: `query_length` is 6, {unsupported}")),
        (json!({"document_length": 6}), format!("`document_length` is 6, {unsupported}")),
        (json!({"query_expansion": {"strategy": "min"}}), format!("`query_expansion` is {{\"strategy\":\"min\"}}, {unsupported}")),
        (json!({"tokenizer_name_or_path": "other"}), format!("`tokenizer_name_or_path` is \"other\", {unsupported}")),
        (json!({"model_args": {"ignore_mismatched_sizes": true}}), format!("`model_args.ignore_mismatched_sizes` is true, {unsupported}")),
        (json!({"config_kwargs": {"hidden_act": "relu"}}), format!("`config_kwargs.hidden_act` is \"relu\", {unsupported}")),
        (json!({"processing_kwargs": {"revision": {}}}), format!("`processing_kwargs.revision` is {{}}, {unsupported}")),
        (json!({"transformer_task": "fill-mask"}), "`transformer_task` is \"fill-mask\", expected \"feature-extraction\"".into()),
        (
            json!({"modality_config": text(json!("pooler_output")), "module_output_name": "token_embeddings"}),
            "expected {\"method\":\"forward\",\"method_output_name\":\"last_hidden_state\"}".into(),
        ),
        (json!({"modality_config": {"image": {}}}), "`modality_config.text` is null, expected {\"method\":\"forward\",\"method_output_name\":\"last_hidden_state\"}".into()),
        (json!({"modality_config": {"message": {}}}), format!("`modality_config.message` is {{}}, {unsupported}")),
        (
            json!({"modality_config": text(json!("last_hidden_state")), "module_output_name": "sentence_embedding"}),
            "`module_output_name` is \"sentence_embedding\", expected \"token_embeddings\"".into(),
        ),
    ] {
        copy.write(file, &settings)?;
        let hint =
            if message.ends_with(unsupported) { "supported are max_seq_length" } else { "a model of another task or" };
        copy.check(&message, Some(hint));
    }
    let harmless = json!({
        "transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "unpad_inputs": true,
        "modality_config": text(json!("last_hidden_state")), "query_length": null, "tokenizer_name_or_path": null,
        "model_args": {"attn_implementation": "eager", "revision": "main", "torch_dtype": "bfloat16"},
        "config_args": {"trust_remote_code": true}, "processor_kwargs": {"local_files_only": true, "token": "x"},
        "processing_kwargs": {}, "max_seq_length": 48,
    });
    copy.write(file, &harmless)?;
    assert_close("harmless", &copy.load()?.encode_query(&["bread and paper"])?, &expected, Tolerance::absolute(0.0));
    // A module of another name's vectors would leave these as they are.
    copy.write("2_Normalize/config.json", &json!({"module_input_name": "token_embeddings"}))?;
    copy.check(
        "`module_input_name` is \"token_embeddings\", expected \"sentence_embedding\"",
        Some("a module that reads"),
    );
    Ok(())
}

/// As sentence-transformers counts the tokens of a prompt that leaves no room for a text: the one that closes it is not one.
#[test]
fn a_prompt_that_fills_the_text() -> Result<()> {
    let long = "river mountain ".repeat(20);
    let vector = |mode: &str, include_prompt: bool| -> Result<_> {
        let copy = Copy::of("models/bert-mean")?;
        copy.write("sentence_bert_config.json", &json!({"max_seq_length": 12}))?;
        copy.write("1_Pooling/config.json", &json!({"pooling_mode": mode, "include_prompt": include_prompt}))?;
        let options = EncodeOptions { prompt: Prompt::Text(&long), ..EncodeOptions::default() };
        Ok(copy.load()?.encode_with(&["bread"], &options, &mut |_| {})?.vectors)
    };
    assert_close("the last", &vector("mean", false)?, &vector("lasttoken", true)?, Tolerance::absolute(1e-6));
    Ok(())
}

/// The tokenizer of one model with the weights of another, which has fewer words.
#[test]
fn ids_beyond_the_vocabulary() -> Result<()> {
    let copy = Copy::of("models/bert-mean")?;
    let from = Copy::of("models/modernbert-weighted")?;
    fs::copy(from.0.path().join("tokenizer.json"), copy.0.path().join("tokenizer.json"))?;
    let text = "mountain violin thunder yellow zebra";
    let Err(error) = copy.load()?.encode(&["", text]) else { panic!("an id was read beyond the table") };
    let said = error.to_string();
    assert!(said.starts_with("text 1: token id ") && said.ends_with("is not below the model's vocabulary of 150"));
    assert_eq!(error.hint().as_deref(), Some("the tokenizer is of another model, or one of the two was changed"));
    Ok(())
}

/// The file of lengths is called after several architectures.
#[test]
fn names_of_the_file_of_lengths() -> Result<()> {
    for name in ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"] {
        let copy = Copy::of("models/bert-mean")?;
        fs::remove_file(copy.0.path().join("sentence_bert_config.json"))?;
        copy.write(&format!("sentence_{name}_config.json"), &json!({"max_seq_length": 33}))?;
        assert_eq!(copy.load()?.max_tokens(), 33, "{name}");
    }
    Ok(())
}

/// A bare decoder that sees what follows is another model than the one that is here.
#[test]
fn a_decoder_that_sees_what_follows() -> Result<()> {
    let copy = Copy::of("models/llama-bare")?;
    copy.set("config.json", "is_causal", &json!(false))?;
    copy.check("`is_causal` is false: a decoder that sees what follows is not supported", None);
    // Saved without what generates, its tokens are averaged, as sentence-transformers does it.
    copy.set("config.json", "is_causal", &Value::Null)?;
    copy.set("config.json", "architectures", &json!(["LlamaModel"]))?;
    assert!(copy.load()?.describe().contains("llama, mean pooling (its directory names none)"));
    // An encoder that was made to generate, and sees what follows for all that.
    let copy = Copy::of("models/bert-bare")?;
    copy.set("config.json", "architectures", &json!(["BertForCausalLM"]))?;
    assert!(copy.load()?.describe().contains("bert, lasttoken pooling (its directory names none)"));
    copy.set("config.json", "is_causal", &json!(false))?;
    assert!(copy.load()?.describe().contains("bert, mean pooling (its directory names none)"));
    Ok(())
}

/// What sentence-transformers writes beside a reranker is read as it reads it.
#[test]
fn settings_of_a_reranker() -> Result<()> {
    let copy = Copy::of("cross/bert-saved")?;
    let load = || CrossEncoder::load(copy.0.path(), &ModelLoader::new());
    let long = "a long text of many words ".repeat(9);
    let score = |first: &str| -> Result<_> { Ok(load()?.score("bread", &[format!("{first}{long}")])?[0]) };
    let far = "river mountain ".repeat(6);
    assert_ne!(score("")?, score(&far)?);
    copy.set("sentence_bert_config.json", "max_seq_length", &json!(8))?;
    assert_eq!(score(&far)?, score(&format!("{far}violin "))?, "what is cut makes no difference");
    copy.set("sentence_bert_config.json", "transformer_task", &json!("text-generation"))?;
    check_error(
        load(),
        "`transformer_task` is \"text-generation\", expected \"sequence-classification\"",
        Some("a model of another"),
    );
    Ok(())
}

/// What is done to a score is what the first of three places says; equal scores stay in the order of their documents.
#[test]
fn the_activation_of_a_reranker() -> Result<()> {
    let copy = Copy::of("cross/bert-saved")?;
    let scores = |documents: &[&str]| -> Result<_> {
        Ok(CrossEncoder::load(copy.0.path(), &ModelLoader::new())?.score("bread", documents)?)
    };
    let (sigmoid, identity) = ("torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity");
    let set = |saved: &Value, nested: &Value, old: &Value| -> Result<_> {
        copy.set("config_sentence_transformers.json", "activation_fn", saved)?;
        copy.set("config.json", "sentence_transformers", &json!({"activation_fn": nested}))?;
        copy.set("config.json", "sbert_ce_default_activation_function", old)?;
        Ok(scores(&["river"])?[0])
    };
    let logit = set(&json!(identity), &json!(sigmoid), &json!(sigmoid))?;
    let score = 1.0 / (1.0 + (-logit).exp());
    assert_eq!(set(&json!(sigmoid), &json!(identity), &json!(identity))?, score);
    assert_eq!(set(&Value::Null, &json!(identity), &json!(sigmoid))?, logit);
    assert_eq!(set(&Value::Null, &json!(sigmoid), &json!(identity))?, score);
    assert_eq!(set(&Value::Null, &Value::Null, &json!(identity))?, logit);
    assert_eq!(set(&Value::Null, &Value::Null, &Value::Null)?, score);

    let model = CrossEncoder::load(copy.0.path(), &ModelLoader::new())?;
    let documents = ["river", "bread", "river", "bread", "river"];
    let order: Vec<usize> = model.rank("bread", &documents, 5)?.iter().map(|ranked| ranked.index).collect();
    assert!(order == [0, 2, 4, 1, 3] || order == [1, 3, 0, 2, 4], "{order:?}");
    Ok(())
}

/// A reranker has no other prompt than its default one, and that stands before the query alone.
#[test]
fn the_prompt_of_a_reranker() -> Result<()> {
    let copy = Copy::of("cross/bert-prompt")?;
    let score = |query: &str| -> Result<_> {
        Ok(CrossEncoder::load(copy.0.path(), &ModelLoader::new())?.score(query, &["bread"])?[0])
    };
    let settings = "config_sentence_transformers.json";
    let prompted = score("copper")?;
    copy.set(settings, "default_prompt_name", &Value::Null)?;
    assert_eq!(score("which metal: copper")?, prompted);
    assert_ne!(score("copper")?, prompted);
    copy.set(settings, "default_prompt_name", &json!("passage"))?;
    let load = CrossEncoder::load(copy.0.path(), &ModelLoader::new());
    check_error(load, "`default_prompt_name` is `passage`, which is no prompt of it", Some("it has other, query"));
    Ok(())
}

/// A pair has token types 0 and 1; a model whose table has one row has no second.
#[test]
fn a_token_type_that_the_model_has_not() -> Result<()> {
    let copy = Copy::of("cross/bert")?;
    let path = copy.0.path().join("model.safetensors");
    let device = candle_core::Device::Cpu;
    let mut tensors = candle_core::safetensors::load(&path, &device)?;
    let name = "bert.embeddings.token_type_embeddings.weight".to_string();
    let first = tensors[&name].narrow(0, 0, 1)?.contiguous()?;
    tensors.insert(name, first);
    candle_core::safetensors::save(&tensors, &path)?;
    copy.set("config.json", "type_vocab_size", &json!(1))?;
    let model = CrossEncoder::load(copy.0.path(), &ModelLoader::new())?;
    let message = "text 0: token type 1 is not below the 1 of the model";
    check_error(model.score("a", &["b", "c"]), message, Some("the tokenizer is of another model, or should say that"));
    // As the hint has it.
    copy.set("tokenizer_config.json", "model_input_names", &json!(["input_ids", "attention_mask"]))?;
    assert_eq!(CrossEncoder::load(copy.0.path(), &ModelLoader::new())?.score("a", &["b", "c"])?.len(), 2);
    Ok(())
}

#[test]
fn what_is_no_reranker() -> Result<()> {
    let load = |name: &str, change: &dyn Fn(&Copy) -> Result<()>| -> Result<_> {
        let copy = Copy::of(name)?;
        change(&copy)?;
        Ok(CrossEncoder::load(copy.0.path(), &ModelLoader::new()))
    };
    // In each place that may name an activation; those of other programs are refused, whatever their last word is.
    for (name, file, field, nested) in [
        ("cross/bert", "config.json", "sbert_ce_default_activation_function", false),
        ("cross/bert", "config.json", "sentence_transformers.activation_fn", true),
        ("cross/bert-saved", "config_sentence_transformers.json", "activation_fn", false),
    ] {
        for path in [json!("torch.nn.Softmax"), json!("my.code.Identity"), json!("Sigmoid")] {
            let (outer, value) =
                if nested { ("sentence_transformers", json!({"activation_fn": path})) } else { (field, path.clone()) };
            let activation = |copy: &Copy| copy.set(file, outer, &value);
            let message = format!("{file}: `{field}` is {path}, expected Sigmoid or Identity of torch.nn");
            check_error(load(name, &activation)?, &message, Some("take a model with one of these"));
        }
    }
    let number = |copy: &Copy| copy.set("config.json", "sbert_ce_default_activation_function", &json!(3));
    let message = "`sbert_ce_default_activation_function` is 3, expected a string";
    check_error(load("cross/bert", &number)?, message, None);
    let two = |copy: &Copy| -> Result<()> {
        let path = copy.0.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)?;
        for name in ["classifier.weight", "classifier.bias"] {
            let one = &tensors[name];
            let both = candle_core::Tensor::cat(&[one, one], 0)?;
            tensors.insert(name.into(), both);
        }
        Ok(candle_core::safetensors::save(&tensors, path)?)
    };
    check_error(load("cross/bert", &two)?, "the model gives 2 scores, expected one", Some("a reranker has one label"));
    let Err(error) = load("models/mpnet-mean", &|_| Ok(()))? else { panic!("an mpnet was read as a reranker") };
    assert!(error.to_string().ends_with("`model_type` is \"mpnet\", whose head is not supported"), "{error}");
    let Err(error) = load("models/bert-bare", &|_| Ok(()))? else { panic!("an encoder was read as a reranker") };
    assert!(error.to_string().contains("classifier.weight"), "{error}");
    Ok(())
}
