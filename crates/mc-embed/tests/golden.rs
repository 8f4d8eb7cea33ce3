//! Every architecture and every pooling against sentence-transformers, on tiny random models (`golden/make.py`).
//!
//! The reference is f32 itself, hence an absolute tolerance of 1e-4 on numbers of size 1.

use candle_core::{DType, Device, Tensor};
use mc_checkpoint::ModelDir;
use mc_embed::{CrossEncoder, EmbeddingModel, EncodeOptions, Progress, Prompt};
use mc_models::ModelLoader;
use mc_testkit::{Tolerance, assert_close, golden};
use std::{collections::HashMap, path::PathBuf};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MODELS: [&str; 27] = [
    "bert-mean",
    "bert-cls-dense",
    "bert-concat",
    "bert-list",
    "bert-sqrt",
    "bert-bare",
    "bert-old",
    "bert-dense",
    "bert-class",
    "bert-sides",
    "bert-sides-asked",
    "mpnet-mean",
    "xlm-roberta-mean",
    "xlm-roberta-cls",
    "xlm-roberta-spaces",
    "roberta-cls",
    "camembert-mean",
    "distilbert-max",
    "distilbert-folder",
    "modernbert-weighted",
    "modernbert-bias",
    "modernbert-old",
    "qwen3-last",
    "llama-bare",
    "mistral-last",
    "qwen2-mean",
    "qwen2-list",
];

fn dir(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

fn load(name: &str, dtype: DType) -> Result<EmbeddingModel> {
    Ok(EmbeddingModel::from_dir(&ModelDir::open(dir(name))?, &ModelLoader::new().with_dtype(dtype))?)
}

fn expected(name: &str) -> HashMap<String, Tensor> {
    golden::tensors(dir(name).join("expected.safetensors"))
}

fn texts() -> Vec<String> {
    let json = golden::json(dir("texts.json"));
    strings(&json["texts"])
}

fn strings(json: &serde_json::Value) -> Vec<String> {
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}"))
}

/// The least cosine between rows of the same place.
fn least_cosine(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let length = |x: &Tensor| x.sqr()?.sum(1)?.sqrt();
    let cosines = ((&a * &b)?.sum(1)? / (length(&a)? * length(&b)?)?)?;
    Ok(cosines.min(0)?.to_scalar()?)
}

#[track_caller]
fn check(name: &str, found: &Tensor, expected: &Tensor) -> Result<()> {
    assert_close(name, found, expected, Tolerance::absolute(1e-4));
    let cosine = least_cosine(found, expected)?;
    assert!(cosine >= 0.99999, "{name}: {cosine}");
    Ok(())
}

fn with(prompt: Prompt, dimensions: Option<usize>) -> EncodeOptions {
    EncodeOptions { prompt, dimensions, ..EncodeOptions::default() }
}

#[test]
fn vectors() -> Result<()> {
    let texts = texts();
    for name in MODELS {
        let (model, expected) = (load(&format!("models/{name}"), DType::F32)?, expected(&format!("models/{name}")));
        check(name, &model.encode(&texts)?, &expected["encode"])?;
        let fewer = model.encode_with(&texts, &with(Prompt::Default, Some(7)), &mut |_| {})?;
        check(&format!("{name}, 7 dimensions"), &fewer.vectors, &expected["dimensions"])?;
        let scalar = |key: &str| expected[key].to_dtype(DType::F64).and_then(|t| t.to_scalar::<f64>());
        assert_eq!(model.max_tokens() as f64, scalar("max_seq_length")?, "{name}");
        if model.prompts().next().is_none() {
            assert_eq!(fewer.truncated as f64, scalar("truncated")?, "{name}");
        }
    }
    Ok(())
}

#[test]
fn prompts() -> Result<()> {
    let texts = texts();
    let mut seen = 0;
    for name in MODELS {
        let (model, expected) = (load(&format!("models/{name}"), DType::F32)?, expected(&format!("models/{name}")));
        let Some(query) = expected.get("query") else { continue };
        check(&format!("{name}: query"), &model.encode_query(&texts)?, query)?;
        check(&format!("{name}: document"), &model.encode_document(&texts)?, &expected["document"])?;
        let named = model.encode_with(&texts, &with(Prompt::Named("query"), None), &mut |_| {})?;
        check(&format!("{name}: by name"), &named.vectors, query)?;
        let other = model.encode_with(&texts, &with(Prompt::Text("yellow "), None), &mut |_| {})?;
        check(&format!("{name}: another"), &other.vectors, &expected["other"])?;
        seen += 1;
    }
    assert_eq!(seen, 6);
    Ok(())
}

/// What another device runs.
#[test]
fn vectors_by_composed_ops() -> Result<()> {
    let texts = texts();
    for name in MODELS {
        let model = load(&format!("models/{name}"), DType::F32)?;
        let plain = model.encoder().plain(DType::F32)?;
        let model = model.with_encoder(plain)?;
        check(name, &model.encode(&texts)?, &expected(&format!("models/{name}"))["encode"])?;
    }
    Ok(())
}

#[test]
fn bf16_is_near() -> Result<()> {
    let texts = texts();
    for name in MODELS {
        let model = load(&format!("models/{name}"), DType::BF16)?;
        let cosine = least_cosine(&model.encode(&texts)?, &expected(&format!("models/{name}"))["encode"])?;
        assert!(cosine >= 0.999, "{name}: {cosine}");
    }
    Ok(())
}

#[test]
fn a_text_of_a_batch_equals_the_text_alone_in_any_order() -> Result<()> {
    let texts = texts();
    for (name, dtype) in MODELS.into_iter().flat_map(|name| [(name, DType::F32), (name, DType::BF16)]) {
        let decodes = ["qwen", "llama", "mistral"].iter().any(|kind| name.starts_with(kind));
        // Decoders read a few tokens without rounding, and like Dense modules add up few rows in another order than many.
        let same = match (decodes || name.contains("dense"), dtype) {
            (true, DType::BF16) => continue,
            (true, _) => Tolerance::absolute(2e-6),
            (false, _) => Tolerance::absolute(0.0),
        };
        let model = load(&format!("models/{name}"), dtype)?;
        let name = format!("{name} in {dtype:?}");
        let together = model.encode(&texts)?;
        let backwards: Vec<_> = texts.iter().rev().collect();
        let reversed = model.encode(&backwards)?;
        let small = model.encode_with(
            &texts,
            &EncodeOptions { batch_tokens: Some(40), ..with(Prompt::Default, None) },
            &mut |_| {},
        )?;
        assert_close(&format!("{name}: small batches"), &small.vectors, &together, same);
        for (i, text) in texts.iter().enumerate() {
            let alone = model.encode(&[text])?;
            assert_close(&format!("{name}: text {i}"), &together.narrow(0, i, 1)?, &alone, same);
            assert_close(&format!("{name}: text {i}"), &reversed.narrow(0, texts.len() - 1 - i, 1)?, &alone, same);
        }
    }
    Ok(())
}

#[test]
fn the_observer_hears_of_every_batch() -> Result<()> {
    let (model, texts) = (load("models/bert-mean", DType::F32)?, texts());
    let mut heard = vec![];
    let options = EncodeOptions { batch_tokens: Some(60), ..EncodeOptions::default() };
    let embedded = model.encode_with(&texts, &options, &mut |progress: Progress| heard.push(progress))?;
    assert!(heard.len() > 3 && heard.windows(2).all(|two| two[0].texts < two[1].texts));
    assert_eq!(heard.last(), Some(&Progress { texts: texts.len(), of: texts.len() }));
    assert!(embedded.tokens > texts.len());
    Ok(())
}

#[test]
fn what_a_model_says_of_itself() -> Result<()> {
    let describe = |name: &str| load(name, DType::F32).map(|model| model.describe());
    let bare = describe("models/bert-bare")?;
    assert!(
        bare.ends_with(": bert, mean pooling (its directory names none); 20 dimensions, at most 64 tokens"),
        "{bare}"
    );
    let decoder = describe("models/llama-bare")?;
    assert!(decoder.contains(": llama, lasttoken pooling (its directory names none); 16 dimensions"), "{decoder}");
    let dense = describe("models/bert-cls-dense")?;
    assert!(dense.ends_with(": bert, cls pooling, dense, normalize; 13 dimensions, at most 50 tokens"), "{dense}");
    Ok(())
}

#[test]
fn reranking() -> Result<()> {
    let json = golden::json(dir("texts.json"));
    for name in [
        "cross/bert",
        "cross/xlm-roberta",
        "cross/camembert",
        "cross/bert-identity",
        "cross/bert-class",
        "cross/bert-without",
        "cross/bert-saved",
        "cross/bert-prompt",
    ] {
        let model = CrossEncoder::load(dir(name), &ModelLoader::new().with_dtype(DType::F32))?;
        let expected = expected(name);
        for i in 0..2 {
            let pair = &json["pairs"][i];
            let (query, documents) = (pair[0].as_str().unwrap_or_default(), strings(&pair[1]));
            let scores = model.score(query, &documents)?;
            let found = Tensor::new(scores.as_slice(), &Device::Cpu)?;
            let wanted = &expected[&format!("scores.{i}")];
            assert_close(&format!("{name}, {i}"), &found, wanted, Tolerance::absolute(1e-5));
            let ranked = model.rank(query, &documents, 2)?;
            assert_eq!(ranked.len(), 2);
            let best = wanted.argmax(0)?.to_scalar::<u32>()?;
            assert_eq!((ranked[0].index, ranked[0].score), (best as usize, scores[best as usize]));
            assert!(ranked[0].score >= ranked[1].score);
        }
        assert!(model.score::<&str>("nothing to rank", &[])?.is_empty());
    }
    Ok(())
}
