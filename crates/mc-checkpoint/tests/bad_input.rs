//! Files that are missing, cut, too large or lying: each is one line that names the file and the field, and no panic.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::{DType, Device};
use mc_checkpoint::{Error, ModelDir, PeftAdapter, SafeTensors, WeightSource};
use std::{fs, path::Path};

const CPU: Device = Device::Cpu;

/// A safetensors file with this header and so many bytes after it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn good() -> Vec<u8> {
    file(r#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16)
}

#[track_caller]
fn check(case: &str, error: &Error, message: &str, hint: &str) {
    let text = error.to_string();
    assert!(text.contains(message), "{case}: got `{text}`, expected `{message}`");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{case}: {text}");
    let found = error.hint().unwrap_or_default();
    assert!(found.contains(hint), "{case}: got hint `{found}`, expected `{hint}`");
    assert!(!found.contains('\n') && !found.ends_with('.'), "{case}: {found}");
}

#[test]
fn safetensors() {
    let cut = |at: usize| good()[..at].to_vec();
    let length = |n: u64| [&n.to_le_bytes()[..], &good()[8..]].concat();
    let one = |info: &str, data: usize| file(&format!(r#"{{"w":{info}}}"#), data);
    let two = |a: &str, b: &str, data| file(&format!(r#"{{"a":{a},"b":{b}}}"#), data);
    // Together these end where 8 bytes more would wrap around to the file's real length.
    let huge = |n: usize| {
        let step = 1u64 << 60;
        let entry = |i: u64, end: u64| {
            let (start, size) = (i * step, end - i * step);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        };
        let entries: Vec<_> =
            (0..16).map(|i| entry(i, if i == 15 { u64::MAX - n as u64 } else { (i + 1) * step })).collect();
        file(&format!("{{{}}}", entries.join(",")), 8)
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "0 bytes are too few"),
        ("seven bytes", cut(7), "7 bytes are too few"),
        ("header cut", cut(20), "does not fit into 12"),
        ("data cut", cut(good().len() - 1), "15 bytes of tensors, the header describes 16"),
        ("data added", [good(), vec![0]].concat(), "17 bytes of tensors, the header describes 16"),
        ("header length over the file", length(10_000), "a header of 10000 bytes does not fit into"),
        ("header length over the limit", length(100_000_001), "over the limit of 100000000"),
        ("header length 2^64 - 1", length(u64::MAX), "over the limit"),
        ("header length too short", length(5), "header: EOF while parsing"),
        ("header length 0", length(0), "header: EOF while parsing"),
        ("not JSON", file("hello {}", 0), "header: expected value at line 1 column 1"),
        ("not UTF-8", file("{\"\u{1}\": 1}", 0), "header: "),
        ("an array", file("[1, 2]", 0), "header: "),
        ("a tensor that is a number", one("3", 0), "header: "),
        ("no offsets", one(r#"{"dtype":"F32","shape":[1]}"#, 4), "header: missing field `data_offsets`"),
        ("unknown dtype", one(r#"{"dtype":"F7","shape":[1],"data_offsets":[0,4]}"#, 4), "unknown variant `F7`"),
        ("negative shape", one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), "header: invalid value"),
        (
            "shape over offsets",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            "invalid shape, data type, or offset",
        ),
        (
            "shape under offsets",
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,8]}"#, 8),
            "invalid shape, data type, or offset",
        ),
        (
            "offsets backwards",
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4),
            "invalid offset for tensor `w`",
        ),
        (
            "a hole at the start",
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8),
            "invalid offset for tensor `w`",
        ),
        (
            "overlap",
            two(
                r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#,
                r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#,
                12,
            ),
            "invalid offset for tensor `b`",
        ),
        (
            "shape overflows",
            one(r#"{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,16]}"#, 16),
            "overflow computing buffer size",
        ),
        ("lengths that wrap around", huge(600), "8 bytes of tensors, the header describes"),
        (
            "one name twice",
            file(
                r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"U32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            ),
            "a tensor's name is there twice",
        ),
        ("deep JSON", file(&format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000)), 0), "header: "),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (case, bytes, message) in cases {
        check(case, &SafeTensors::from_bytes("model.safetensors", bytes.clone()).unwrap_err(), message, "");
        fs::write(&path, bytes).unwrap();
        let error = SafeTensors::open(&path).unwrap_err();
        check(case, &error, if case == "empty" { "empty file" } else { message }, "");
        assert!(error.to_string().contains("model.safetensors: "), "{case}: {error}");
    }
    check("directory", &SafeTensors::open(dir.path()).unwrap_err(), "not a file", "");
    check("missing", &SafeTensors::open(dir.path().join("no")).unwrap_err(), "/no: ", "check the path");
}

#[test]
fn tensors() {
    let source = SafeTensors::from_bytes("model.safetensors", good()).unwrap();
    let shape = "model.safetensors: tensor `w` is (2, 2), expected (2, 3)";
    check("shape", &source.weight("w", (2, 3), &CPU, None).unwrap_err(), shape, "another model");
    check("rank", &source.tensor("w", &[4], &CPU, DType::F32).unwrap_err(), "is (2, 2), expected (4)", "another model");
    check("missing", &source.weight("x", (2, 2), &CPU, None).unwrap_err(), "no tensor `x`", "another model");
    let names = r#"{"model.layers.0.self_attn.q_proj.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let source = SafeTensors::from_bytes("m", file(names, 4)).unwrap();
    let error = source.tensor("layers.0.self_attn.q_proj.weight", &[1], &CPU, DType::F32).unwrap_err();
    check("close", &error, "m: no tensor `layers.0", "it has model.layers.0.self_attn.q_proj.weight");
}

/// Writes files into a directory of its own.
fn dir(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[test]
fn shards() {
    const INDEX: &str = "model.safetensors.index.json";
    let index = |shard: &str| format!(r#"{{"weight_map": {{"w": {}}}}}"#, serde_json::json!(shard));
    let cases = [
        ("not JSON", "{".to_string(), "EOF while parsing", ""),
        ("no map", "{}".into(), "missing field `weight_map`", ""),
        ("empty map", r#"{"weight_map": {}}"#.into(), "`weight_map` is empty", ""),
        ("a number", r#"{"weight_map": {"w": 1}}"#.into(), "invalid type: integer", ""),
        ("parent", index("../good"), "shard `../good` of tensor `w` is outside the directory", ""),
        ("hidden parent", index("a/../../good"), "outside the directory", ""),
        ("absolute", index("/etc/passwd"), "outside the directory", ""),
        ("windows", index("..\\good"), "outside the directory", ""),
        ("drive", index("C:good"), "outside the directory", ""),
        ("itself", index("."), "outside the directory", ""),
        ("nothing", index(""), "outside the directory", ""),
        ("not there", index("none"), "shard none is listed but not there", "download the model again"),
        ("another shard", index("other"), "tensor `w` is listed in other but not there", ""),
        ("a cut shard", index("cut"), "15 bytes of tensors, the header describes 16", ""),
    ];
    for (case, index, message, hint) in cases {
        let other = String::from_utf8(good()).unwrap().replace("\"w\"", "\"v\"");
        let dir = dir(&[
            ("config.json", b"{}"),
            (INDEX, index.as_bytes()),
            ("good", &good()),
            ("other", other.as_bytes()),
            ("cut", &good()[..good().len() - 1]),
        ]);
        let error = ModelDir::open(dir.path()).unwrap().weights().err().expect(case);
        check(case, &error, message, hint);
    }
}

#[test]
fn model_directories() {
    let open = |dir: &Path| ModelDir::open(dir).unwrap_err();
    check("not there", &open(Path::new("no/such/dir")), "no/such/dir: no such directory", "owner/name");
    check("empty", &open(dir(&[]).path()), "no config.json", "");
    check("adapter", &open(dir(&[("adapter_config.json", b"{}")]).path()), "no config.json", "pass it with --adapter");
    check("mlx adapter", &open(dir(&[("adapters.safetensors", b"")]).path()), "no config.json", "--adapter");
    let holder = dir(&[("model.safetensors", b"")]);
    check("a file", &open(&holder.path().join("model.safetensors")), "not a directory", "config.json");

    let config = |text: &[u8]| {
        let dir = dir(&[("config.json", text)]);
        ModelDir::open(dir.path()).unwrap().model_type().unwrap_err()
    };
    check("cut", &config(b"{\n \"a\": 1,"), "config.json: EOF while parsing a value at line 2 column 8", "");
    check("not an object", &config(b"[]"), "config.json: not a JSON object", "");
    check("not UTF-8", &config(b"{\"a\": \"\xff\"}"), "config.json: invalid unicode code point at line 1 column", "");
    check("no type", &config(b"{}"), "config.json: `model_type` is missing, expected a string", "");
    check("type 3", &config(br#"{"model_type": 3}"#), "`model_type` is 3, expected a string", "");
    check("deep", &config("[".repeat(100_000).as_bytes()), "recursion limit exceeded", "");
    let big = vec![b' '; (64 << 20) + 1];
    check("too large", &config(&big), "config.json: larger than 64 MiB", "");

    let bare = dir(&[("config.json", b"{}"), ("pytorch_model.bin", b"")]);
    let bare = ModelDir::open(bare.path()).unwrap();
    check("weights", &bare.weights().err().unwrap(), "no model.safetensors", "convert them to safetensors");
    check("outside", &bare.read("../x").unwrap_err(), "file `../x` is outside the directory", "");

    let generation = |text: &'static [u8]| {
        let files: &'static [_] = Box::leak(Box::new([("config.json", &b"{}"[..]), ("generation_config.json", text)]));
        ModelDir::embedded("tiny", files).generation_config().unwrap_err()
    };
    let ids = "tiny/generation_config.json: `eos_token_id` is -1, expected a token id or a list of them";
    check("eos -1", &generation(br#"{"eos_token_id": -1}"#), ids, "");
    check("eos list", &generation(br#"{"eos_token_id": [1, "x"]}"#), "`eos_token_id` is [1,\"x\"], expected", "");
    check("eos 2^40", &generation(br#"{"eos_token_id": 1099511627776}"#), "`eos_token_id` is 1099511627776", "");
    check("top_k", &generation(br#"{"top_k": 1.5}"#), "`top_k` is 1.5, expected a whole number", "");
    check("top_p", &generation(br#"{"top_p": "x"}"#), "`top_p` is \"x\", expected a number", "");
}

#[test]
fn adapters() {
    let good_config = r#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"]}"#;
    let with = |field: &str| good_config.replace("{\"peft", &format!("{{{field},\"peft"));
    let cases: Vec<(&str, String, &str, &str)> = vec![
        ("not JSON", "{".into(), "adapter_config.json: EOF while parsing", ""),
        ("not an object", "3".into(), "not a JSON object", ""),
        ("no type", "{}".into(), "`peft_type` is missing", ""),
        ("no rank", good_config.replace("\"r\":2,", ""), "`r` is missing", ""),
        ("no targets", good_config.replace("[\"q_proj\"]", "null"), "`target_modules` is missing", ""),
        (
            "another method",
            good_config.replace("LORA", "IA3"),
            "`peft_type` is \"IA3\", only \"LORA\" is supported",
            "merge",
        ),
        ("rank 0", good_config.replace("\"r\":2", "\"r\":0"), "`r` is 0, expected at least 1", ""),
        ("rank -1", good_config.replace("\"r\":2", "\"r\":-1"), "invalid value: integer `-1`", ""),
        ("rank 1.5", good_config.replace("\"r\":2", "\"r\":1.5"), "invalid type: floating point `1.5`", ""),
        ("alpha 1e999", good_config.replace(":4", ":1e999"), "number out of range", ""),
        ("alpha text", good_config.replace(":4", ":\"x\""), "invalid type: string \"x\"", ""),
        ("dropout 1", with("\"lora_dropout\":1"), "`lora_dropout` is 1, expected at least 0 and below 1", ""),
        ("rank pattern", with("\"rank_pattern\":{\"q\":0}"), "`rank_pattern` gives \"q\" the rank 0", ""),
        ("bias", with("\"bias\":\"all\""), "`bias` is \"all\", only \"none\" is supported", "merge"),
        ("lora_bias", with("\"lora_bias\":true"), "`lora_bias` is true, which is not supported", "merge"),
        ("aLoRA", with("\"alora_invocation_tokens\":[1]"), "`alora_invocation_tokens` is [1]", "merge"),
        ("QALoRA", with("\"use_qalora\":true"), "`use_qalora` is true", "merge"),
        ("BD-LoRA", with("\"use_bdlora\":{\"n\":1}"), "`use_bdlora` is {\"n\":1}", "merge"),
        ("replication", with("\"layer_replication\":[[0,4],[2,5]]"), "`layer_replication` is [[0,4],[2,5]]", "merge"),
        ("tokens", with("\"trainable_token_indices\":[5]"), "`trainable_token_indices` is [5]", "merge"),
        ("parameters", with("\"target_parameters\":[\"x\"]"), "`target_parameters` is [\"x\"]", "merge"),
        (
            "PiSSA",
            with("\"init_lora_weights\":\"pissa_niter_4\""),
            "\"pissa_niter_4\", which changes the base",
            "plain LoRA",
        ),
        ("targets 3", good_config.replace("[\"q_proj\"]", "3"), "a list of module names or a string at line 1", ""),
        ("mlx", with("\"fine_tune_type\":\"lora\""), "this is an mlx-lm adapter", "PEFT"),
    ];
    for (case, config, message, hint) in cases {
        let dir = dir(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &good())]);
        let error = PeftAdapter::read(dir.path(), &CPU).unwrap_err();
        check(case, &error, message, hint);
        assert!(error.to_string().contains("adapter_config.json: "), "{case}: {error}");
    }
    let read = |files: &[(&str, &[u8])]| PeftAdapter::read(dir(files).path(), &CPU).unwrap_err();
    let config = ("adapter_config.json", good_config.as_bytes());
    check("no weights", &read(&[config]), "no adapter_model.safetensors", "");
    check("pickled", &read(&[config, ("adapter_model.bin", b"")]), "no adapter_model.safetensors", "as safetensors");
    check("cut", &read(&[config, ("adapter_model.safetensors", &good()[..60])]), "adapter_model.safetensors: ", "");
    check("mlx", &read(&[("adapters.safetensors", b"")]), "this is an mlx-lm adapter", "PEFT");
    check("empty", &read(&[]), "no adapter_config.json", "");
    check("model", &read(&[("config.json", b"{}")]), "no adapter_config.json", "pass it with --model");
    check("no dir", &PeftAdapter::read("no/such", &CPU).unwrap_err(), "no/such: no such directory", "");
    let good = dir(&[config, ("adapter_model.safetensors", &good())]);
    assert!(PeftAdapter::read(good.path(), &CPU).is_ok(), "only what is wrong is refused");
    let file = good.path().join("adapter_model.safetensors");
    check(
        "file",
        &PeftAdapter::read(file, &CPU).unwrap_err(),
        "adapter_model.safetensors: not a directory",
        "adapter_config.json",
    );
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_the_hub_says_so() {
    let config = mc_checkpoint::hub::HubConfig::from_vars(|_| None);
    let error = mc_checkpoint::hub::fetch(&config, "a/b", None, &mut |_| {}).unwrap_err();
    check(
        "disabled",
        &error,
        "a/b: no directory here, and this build cannot download from the hub",
        "build with the feature `hub`",
    );
}
