//! Reads tokenizer.json. Knows the file's outline; its parts are the library's.
//!
//! The library reads the whole of it into a tree before it looks at a model's type, as its enum has no tag. With the type read
//! first, vocabulary and merges go where they belong at once (measured: docs/benchmarks.md, "tokenizer.json read in one pass").

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor, value::MapAccessDeserializer};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TruncationDirection, TruncationParams,
};

use crate::CutSide;

/// A tokenizer without truncation and padding, whatever the file says of them, and the side at which it would truncate.
///
/// What cannot be read this way is read the library's own, which has the last word on what is a tokenizer.
pub(crate) fn read(json: &[u8]) -> tokenizers::Result<(Tokenizer, Option<CutSide>)> {
    at_once(json).or_else(|_| {
        let mut tokenizer = Tokenizer::from_bytes(json)?;
        let side = tokenizer.get_truncation().map(cut_side);
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok((tokenizer, side))
    })
}

fn cut_side(truncation: &TruncationParams) -> CutSide {
    match truncation.direction {
        TruncationDirection::Left => CutSide::Start,
        TruncationDirection::Right => CutSide::End,
    }
}

/// Reads less than the library, and nothing that it refuses, save a model whose type stands twice.
fn at_once(json: &[u8]) -> tokenizers::Result<(Tokenizer, Option<CutSide>)> {
    // Of a list serde would take the fields in their order.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err("not an object".into());
    }
    let file: File = serde_json::from_slice(json)?;
    if file.version.is_some_and(|version| version != "1.0") {
        return Err("another version".into());
    }
    let mut tokenizer = Tokenizer::new(file.model.0);
    tokenizer.with_normalizer(file.normalizer)?;
    tokenizer.with_pre_tokenizer(file.pre_tokenizer);
    tokenizer.with_post_processor(file.post_processor);
    tokenizer.with_decoder(file.decoder);
    tokenizer.add_tokens(file.added_tokens.iter().map(|added| added.token.clone()))?;
    for Added { id, token: AddedToken { content, .. } } in file.added_tokens {
        // It is what the model's vocabulary says, or the next one that is free.
        match tokenizer.token_to_id(&content) {
            Some(given) if given != id => tracing::warn!("tokenizer.json: token `{content}` has id {given}, not {id}"),
            _ => {}
        }
    }
    Ok((tokenizer, file.truncation.as_ref().map(cut_side)))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, deserialize_with = "present")]
    version: Option<String>,
    truncation: Option<TruncationParams>,
    #[serde(rename = "padding")]
    _padding: Option<PaddingParams>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Model,
}

/// A field that may be left out, and not be null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(serde::Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
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
        let first: Option<(String, String)> = map.next_entry()?;
        let first = first.as_ref().map(|(key, value)| (key.as_str(), value.as_str()));
        let rest = MapAccessDeserializer::new(map);
        match first {
            Some(("type", "BPE")) => Deserialize::deserialize(rest).map(ModelWrapper::BPE),
            Some(("type", "WordPiece")) => Deserialize::deserialize(rest).map(ModelWrapper::WordPiece),
            Some(("type", "WordLevel")) => Deserialize::deserialize(rest).map(ModelWrapper::WordLevel),
            Some(("type", "Unigram")) => Deserialize::deserialize(rest).map(ModelWrapper::Unigram),
            // Its type stands further on, or is to be told from its fields.
            _ => Err(A::Error::custom("a model that does not begin with its type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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
                assert_eq!(read(text).unwrap().0.to_string(false).unwrap(), expected);
            }
            at_once(&json).unwrap();
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
            let plain = at_once(&with("")).unwrap().0.to_string(false).unwrap();
            assert!(at_once(&with(r#","of_tomorrow":3"#)).is_err());
            assert_eq!(read(&with(r#","of_tomorrow":3"#)).unwrap().0.to_string(false).unwrap(), plain);
        }
    }

    /// What the library makes of a file; nothing where it refuses it.
    fn of_library(json: &str) -> Option<String> {
        let mut tokenizer = Tokenizer::from_bytes(json).ok()?;
        tokenizer.with_truncation(None).unwrap();
        tokenizer.with_padding(None);
        tokenizer.to_string(false).ok()
    }

    /// What stands twice, is null, of another kind, unknown or left out, in each place of a file: at once it gives what the
    /// library gives or nothing, and in the end always what the library gives.
    #[test]
    fn odd_files_are_read_as_the_library_reads_them() {
        let model = r#"{"type":"WordLevel","unk_token":"[UNK]","vocab":{"[UNK]":0,"a":1,"b":2}}"#;
        let token = |id: Value, content: &str| {
            let flags = r#""single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true"#;
            format!(r#"{{"id":{id},"content":"{content}",{flags}}}"#)
        };
        let (lower, strip) = (r#"{"type":"Lowercase"}"#, r#"{"type":"Strip","strip_left":true,"strip_right":true}"#);
        let truncation = r#"{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0}"#;
        let outer = [
            ("version", vec![r#""1.0""#, r#""2.0""#, "null", "1"]),
            ("truncation", vec!["null", truncation, "3", "{}"]),
            ("padding", vec!["null", "3"]),
            ("normalizer", vec!["null", lower, strip, r#"{"type":"Capitals"}"#]),
            ("pre_tokenizer", vec!["null", r#"{"type":"Whitespace"}"#, "[]"]),
            ("decoder", vec!["null", r#"{"type":"Fuse"}"#]),
            ("of_tomorrow", vec!["null", "{}"]),
            ("model", vec!["null", r#"{"type":"WordLevel","unk_token":"a","vocab":{"a":0}}"#]),
        ];
        let added: Vec<String> = [
            "null".into(),
            "[]".into(),
            "{}".into(),
            "[null]".into(),
            r#"[{"content":"x"}]"#.into(),
            // In the vocabulary by that id, by another, and not at all; ids that are next, taken, far beyond, and none.
            format!("[{}]", token(json!(1), "a")),
            format!("[{}]", token(json!(2), "a")),
            format!("[{}]", token(json!(3), "x")),
            format!("[{},{}]", token(json!(1), "x"), token(json!(1), "y")),
            format!("[{},{}]", token(json!(70_000), "x"), token(json!(4), "a")),
            format!("[{},{}]", token(json!(3), "x"), token(json!(4), "x")),
            format!("[{}]", token(json!(-1), "x")),
            format!("[{}]", token(json!(1u64 << 32), "x")),
            format!("[{}]", token(json!("3"), "x")),
            format!("[{}]", token(Value::Null, "x")),
            format!("[{}]", token(json!(3), "")),
            format!("[{}]", token(json!(3), "x").replace(r#""id":3,"#, "")),
        ]
        .into();
        let mut files: Vec<String> = vec![
            String::new(),
            "null".into(),
            "{}".into(),
            format!(r#"["1.0",null,null,[],null,null,null,null,{model}]"#),
            format!(r#"{{"model":{model}}}"#),
            format!(r#"{{"model":{model}}} 3"#),
            format!(" \n{{\"model\":{model}}}\n"),
        ];
        for value in outer.iter().flat_map(|(field, values)| values.iter().map(move |value| (field, value))) {
            let (field, value) = value;
            files.push(format!(r#"{{"{field}":{value},"model":{model}}}"#));
            files.push(format!(r#"{{"model":{model},"{field}":{value}}}"#));
            for other in outer.iter().find(|(name, _)| name == field).into_iter().flat_map(|(_, values)| values) {
                files.push(format!(r#"{{"{field}":{value},"{field}":{other},"model":{model}}}"#));
            }
        }
        for tokens in &added {
            files.push(format!(r#"{{"version":"1.0","added_tokens":{tokens},"model":{model}}}"#));
            files.push(format!(r#"{{"added_tokens":[],"added_tokens":{tokens},"model":{model}}}"#));
        }
        // Fields of the model twice, before its type and behind it.
        let (few, more) = (r#""vocab":{"a":0}"#, r#""vocab":{"a":0,"b":1}"#);
        for fields in [
            format!(r#""type":"WordLevel",{few},{more},"unk_token":"a""#),
            format!(r#"{few},"type":"WordLevel",{more},"unk_token":"a""#),
            format!(r#"{more},{few},"unk_token":"a","type":"WordLevel""#),
            format!(r#""type":"WordLevel",{few},"unk_token":"a","type":"BPE""#),
            format!(r#""type":"BPE","type":"WordLevel",{few},"unk_token":"a""#),
            format!(r#""type":null,{few},"unk_token":"a""#),
            format!(r#"{few},"unk_token":"a""#),
        ] {
            files.push(format!(r#"{{"model":{{{fields}}}}}"#));
        }
        let mut read_by_both = 0;
        for file in &files {
            let expected = of_library(file);
            let found = read(file.as_bytes()).ok().map(|(tokenizer, _)| tokenizer.to_string(false).unwrap());
            assert_eq!(found, expected, "{file}");
            if let Ok((found, _)) = at_once(file.as_bytes()) {
                assert_eq!(Some(found.to_string(false).unwrap()), expected, "at once: {file}");
                read_by_both += 1;
            }
        }
        assert!(read_by_both > 20 && files.len() > read_by_both + 40, "{read_by_both} of {}", files.len());
    }
}
