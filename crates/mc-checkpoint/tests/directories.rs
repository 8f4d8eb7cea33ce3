//! Model and adapter directories that are as they should be: PEFT's own files, both kinds of EOS, embedded files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by a panic")]

use candle_core::{DType, Device};
use mc_checkpoint::{GenerationConfig, ModelDir, PeftAdapter, PeftConfig, TargetModules};
use mc_testkit::{golden, max_abs_diff, random};
use serde_json::{Value, json};
use std::fs;

const CPU: Device = Device::Cpu;

/// Adapters that PEFT wrote, read and written back: equal tensors, equal fields.
#[test]
fn adapters_of_peft_round_trip() {
    let mut count = 0;
    for case in fs::read_dir(golden::dir("adapters")).unwrap().map(|e| e.unwrap().path()) {
        if !case.join("adapter_config.json").is_file() {
            continue;
        }
        count += 1;
        let name = case.display();
        let adapter = PeftAdapter::read(&case, &CPU).unwrap_or_else(|e| panic!("{name}: {e}"));
        let out = tempfile::tempdir().unwrap();
        adapter.write(out.path()).unwrap();
        let (before, after) = (golden::tensors(case.join("adapter_model.safetensors")), out.path());
        let after_tensors = golden::tensors(after.join("adapter_model.safetensors"));
        assert_eq!(before.len(), after_tensors.len(), "{name}");
        for (key, tensor) in &before {
            assert_eq!(tensor.dtype(), after_tensors[key].dtype(), "{name}: {key}");
            assert!(max_abs_diff(tensor, &after_tensors[key]) == 0., "{name}: {key}");
        }
        let (before, after) =
            (golden::json(case.join("adapter_config.json")), golden::json(after.join("adapter_config.json")));
        for (field, value) in after.as_object().unwrap() {
            assert!(equal(value, &before[field]), "{name}: `{field}` is {value}, was {}", before[field]);
        }
        let again = PeftAdapter::read(out.path(), &CPU).unwrap();
        assert_eq!(again.config, adapter.config, "{name}");
    }
    assert!(count >= 5, "{count} adapters");
}

/// JSON values are equal if numbers are, and one value is as good as a list of it.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Object(a), Value::Object(b)) => a.keys().eq(b.keys()) && a.iter().all(|(k, v)| equal(v, &b[k])),
        (Value::Array(one), b) if !b.is_array() => one.len() == 1 && equal(&one[0], b),
        _ => a == b,
    }
}

#[test]
fn every_form_of_a_field_is_read() {
    let read = |more: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"]});
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        PeftConfig::from_json("c", config.to_string().as_bytes()).unwrap()
    };
    assert_eq!(read(json!({"target_modules": "all-linear"})).target_modules, TargetModules::AllLinear);
    let pattern = TargetModules::Pattern(r".*\.(q|v)_proj".into());
    assert_eq!(read(json!({"target_modules": r".*\.(q|v)_proj"})).target_modules, pattern);
    assert_eq!(read(json!({"exclude_modules": r".*\.(q|v)_proj"})).exclude_modules, Some(pattern));
    assert_eq!(read(json!({"layers_to_transform": 3})).layers_to_transform, Some(vec![3]));
    assert_eq!(read(json!({"layers_to_transform": [1, 2]})).layers_to_transform, Some(vec![1, 2]));
    assert_eq!(read(json!({"layers_pattern": "h"})).layers_pattern, Some(vec!["h".into()]));
    let config = read(json!({
        "rank_pattern": {"z": 3, "a": 1, "m": 2}, "alpha_pattern": {"y": 0.5, "b": 2}, "lora_alpha": 0.1,
        "unknown": {"field": 1}, "lora_bias": false, "target_parameters": [], "init_lora_weights": "gaussian",
    }));
    assert_eq!(config.rank_pattern.keys().collect::<Vec<_>>(), ["z", "a", "m"], "the order of patterns counts");
    assert_eq!(config.alpha_pattern.values().copied().collect::<Vec<_>>(), [0.5, 2.]);
    // Written: every field that PEFT needs, whole numbers as integers, the order kept.
    let text = serde_json::to_string(&PeftConfig { lora_alpha: 16., ..config }).unwrap();
    assert!(text.contains(r#""lora_alpha":16,"#) && text.contains(r#""rank_pattern":{"z":3,"a":1,"m":2}"#), "{text}");
    for field in ["task_type", "revision", "exclude_modules", "layers_pattern", "modules_to_save", "fan_in_fan_out"] {
        assert!(text.contains(&format!("\"{field}\":")), "{field}");
    }
}

#[test]
fn a_directory_with_a_configuration_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let mut adapter = PeftAdapter {
        config: PeftConfig { r: 2, ..PeftConfig::default() },
        tensors: [("a".to_string(), random(1, (2, 3), DType::F32))].into(),
        metadata: [("quote \"".to_string(), "\n{}".to_string())].into(),
    };
    adapter.write(dir.path()).unwrap();
    assert_eq!(PeftAdapter::read(dir.path(), &CPU).unwrap().metadata, adapter.metadata);
    // A tensor that cannot be written: of the old adapter, the configuration that no longer fits is gone.
    adapter.config.r = 3;
    adapter.tensors.insert("b".into(), random(1, 2, DType::F32).to_dtype(DType::F8E4M3).unwrap());
    assert!(adapter.write(dir.path()).is_err());
    assert!(PeftAdapter::read(dir.path(), &CPU).unwrap_err().to_string().contains("no adapter_config.json"));
    // A configuration that is not valid is not written at all.
    adapter.config.r = 0;
    let fresh = dir.path().join("fresh");
    assert!(adapter.write(&fresh).is_err());
    assert!(!fresh.exists());
}

#[test]
fn generation_defaults_come_from_both_files() {
    let config = |config: &str, generation: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        if let Some(text) = generation {
            fs::write(dir.path().join("generation_config.json"), text).unwrap();
        }
        ModelDir::open(dir.path()).unwrap().generation_config().unwrap()
    };
    let eos = |ids: &[u32]| GenerationConfig { eos_token_ids: ids.to_vec(), ..GenerationConfig::default() };
    assert_eq!(config("{}", None), eos(&[]));
    assert_eq!(config(r#"{"eos_token_id": 7}"#, None), eos(&[7]));
    assert_eq!(config(r#"{"eos_token_id": [7, 8]}"#, Some("{}")), eos(&[7, 8]));
    assert_eq!(config(r#"{"eos_token_id": 7}"#, Some(r#"{"eos_token_id": [1, 2]}"#)), eos(&[1, 2]));
    let all = r#"{"eos_token_id": 0, "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": null,
        "repetition_penalty": 1.1, "transformers_version": "5.0"}"#;
    let expected = GenerationConfig {
        eos_token_ids: vec![0],
        do_sample: true,
        temperature: Some(0.7),
        top_k: Some(20),
        top_p: Some(0.8),
        min_p: None,
        repetition_penalty: Some(1.1),
    };
    assert_eq!(config("{}", Some(all)), expected);
}

#[test]
fn embedded_directories_are_like_those_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut files: Vec<(&'static str, &'static [u8])> = vec![("config.json", br#"{"model_type": "llama"}"#)];
    for (i, name) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let tensor = random(i as u64, (2, 3), DType::BF16);
        mc_checkpoint::save_safetensors(dir.path().join(name), &[(name.to_string(), tensor)].into(), None).unwrap();
        files.push((name, Vec::leak(fs::read(dir.path().join(name)).unwrap())));
    }
    let map = json!({"weight_map": {"a.safetensors": "a.safetensors", "b.safetensors": "b.safetensors"}}).to_string();
    files.push(("model.safetensors.index.json", String::leak(map).as_bytes()));
    for (name, content) in &files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let single = ModelDir::embedded("one", Vec::leak(vec![files[0], ("model.safetensors", files[1].1)]));
    assert_eq!(single.weights().unwrap().names(), ["a.safetensors"]);
    assert_eq!((single.name(), single.path()), ("one", None));
    let embedded = ModelDir::embedded("two", Vec::leak(files));
    let on_disk = ModelDir::open(dir.path()).unwrap();
    assert_eq!(on_disk.path(), Some(dir.path()));
    for source in [embedded, on_disk].map(|d| d.weights().unwrap()) {
        assert_eq!(source.names(), ["a.safetensors", "b.safetensors"]);
        let weight = source.weight("b.safetensors", (2, 3), &CPU, None).unwrap();
        assert!(max_abs_diff(&weight.to_tensor(DType::F32).unwrap(), &random(1, (2, 3), DType::BF16)) == 0.);
    }
}
