//! Reads tokenizer.json. Knows the file's outline; its parts are the library's.
//!
//! The library reads the whole of it into a tree before it looks at a model's type, as its enum has no tag. With the type read
//! first, vocabulary and merges go where they belong at once (measured: docs/benchmarks.md, "tokenizer.json read in one pass").

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor, value::MapAccessDeserializer};
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
};

/// A tokenizer without truncation and padding, whatever the file says of them.
///
/// What cannot be read this way is read the library's own: it passes over fields of a model that it does not know.
pub(crate) fn read(json: &[u8]) -> tokenizers::Result<Tokenizer> {
    at_once(json).or_else(|_| {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    })
}

fn at_once(json: &[u8]) -> tokenizers::Result<Tokenizer> {
    let file: File = serde_json::from_slice(json)?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(format!("unknown version `{version}`, expected `1.0`").into());
    }
    let mut tokenizer = Tokenizer::new(file.model.0);
    tokenizer.with_normalizer(file.normalizer)?;
    tokenizer.with_pre_tokenizer(file.pre_tokenizer);
    tokenizer.with_post_processor(file.post_processor);
    tokenizer.with_decoder(file.decoder);
    tokenizer.add_tokens(file.added_tokens.into_iter().flatten())?;
    Ok(tokenizer)
}

#[derive(serde::Deserialize)]
struct File {
    version: Option<String>,
    added_tokens: Option<Vec<AddedToken>>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Model,
}

struct Model(ModelWrapper);

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ModelVisitor).map(Self)
    }
}

struct ModelVisitor;

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = ModelWrapper;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("the object of a tokenizer model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ModelWrapper, A::Error> {
        let Some((key, value)) = map.next_entry::<String, Value>()? else {
            return Err(A::Error::custom("a model without fields"));
        };
        let rest = MapAccessDeserializer::new(&mut map);
        match (key.as_str(), value.as_str()) {
            ("type", Some("BPE")) => Deserialize::deserialize(rest).map(ModelWrapper::BPE),
            ("type", Some("WordPiece")) => Deserialize::deserialize(rest).map(ModelWrapper::WordPiece),
            ("type", Some("WordLevel")) => Deserialize::deserialize(rest).map(ModelWrapper::WordLevel),
            ("type", Some("Unigram")) => Deserialize::deserialize(rest).map(ModelWrapper::Unigram),
            // Its type stands further on, or is to be told from its fields.
            _ => {
                let mut all = Map::deserialize(rest)?;
                all.insert(key, value);
                ModelWrapper::deserialize(Value::Object(all)).map_err(A::Error::custom)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every golden tokenizer, its model's type first and elsewhere.
    #[test]
    fn what_is_read_is_what_the_library_reads() {
        let mut seen = 0;
        for directory in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap() {
            let Ok(json) = std::fs::read(directory.unwrap().path().join("tokenizer.json")) else { continue };
            let mut value: Value = serde_json::from_slice(&json).unwrap();
            let (truncation, padding) = (value["truncation"].take(), value["padding"].take());
            let expected = Tokenizer::from_bytes(value.to_string()).unwrap().to_string(false).unwrap();
            let mut texts = vec![value.to_string()];
            value["truncation"] = truncation;
            value["padding"] = padding;
            texts.push(value.to_string());
            let mut turned = value.clone();
            turned["model"] = value["model"].as_object().unwrap().clone().into_iter().rev().collect();
            texts.push(turned.to_string());
            for text in texts.iter().map(String::as_bytes).chain([&json[..]]) {
                assert_eq!(at_once(text).unwrap().to_string(false).unwrap(), expected);
            }
            seen += 1;
        }
        assert!(seen >= 3, "{seen}");
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        let of = |model: &str| read(format!(r#"{{"version":"1.0","model":{model}}}"#).as_bytes());
        assert!(of(r#"{"type":"BPE","vocab":{},"merges":[]}"#).is_ok());
        for model in
            ["{}", "3", r#"{"type":"Alphabet","vocab":{}}"#, r#"{"type":3}"#, r#"{"type":"BPE"}"#, r#"{"merges":[]}"#]
        {
            assert!(of(model).is_err(), "{model}");
        }
        let error = read(br#"{"version":"2.0","model":{"type":"BPE","vocab":{},"merges":[]}}"#).unwrap_err();
        assert!(error.to_string().contains("2.0"), "{error}");
    }

    /// Each kind of model at once, and with a field that it does not know the other way.
    #[test]
    fn unknown_fields_do_no_harm() {
        for model in [
            r#"{"type":"BPE","vocab":{"a":0},"merges":[]"#,
            r#"{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"","max_input_chars_per_word":100,"vocab":{"[UNK]":0}"#,
            r#"{"type":"WordLevel","unk_token":"[UNK]","vocab":{"[UNK]":0}"#,
            r#"{"type":"Unigram","unk_id":0,"vocab":[["[UNK]",0.0]]"#,
        ] {
            let with =
                |more: &str| format!(r#"{{"version":"1.0","added_tokens":[],"model":{model}{more}}}}}"#).into_bytes();
            let plain = at_once(&with("")).unwrap().to_string(false).unwrap();
            assert!(at_once(&with(r#","of_tomorrow":3"#)).is_err());
            assert_eq!(read(&with(r#","of_tomorrow":3"#)).unwrap().to_string(false).unwrap(), plain);
        }
    }
}
