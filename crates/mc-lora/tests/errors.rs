//! Wrong configurations and files: one line that names what is wrong, and a hint.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Tensor};
use mc_checkpoint::{PeftAdapter, PeftConfig, TargetModules};
use mc_lora::{Error, LoRAAdapter, LoRAAdapterConfig, TargetModule, load_checkpoint};
use mc_models::{Model, ModelLoader};
use mc_testkit::{golden, random};
use std::str::FromStr;

fn model(name: &str) -> Model {
    ModelLoader::new().load(golden::dir(&format!("models/{name}"))).unwrap()
}

#[track_caller]
fn check(error: &Error, message: &str, hint: &str) {
    let (found, found_hint) = (error.to_string(), error.hint().unwrap_or_default());
    assert!(!found.contains('\n') && !found_hint.contains('\n'), "{found} / {found_hint}");
    assert!(found.contains(message), "{message:?} is not in {found:?}");
    assert!(found_hint.contains(hint) && found_hint.is_empty() == hint.is_empty(), "{hint:?}: {found_hint:?}");
}

const THERE: &str = "the model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";

#[test]
fn configurations() {
    let model = model("qwen2");
    let named = |names: &[&str]| names.iter().map(|n| TargetModule::from_str(n).unwrap()).collect::<Vec<_>>();
    let d = LoRAAdapterConfig::default;
    let q = || LoRAAdapterConfig { target_modules: named(&["q_proj"]), ..d() };
    let cases = [
        (LoRAAdapterConfig { rank: 0, ..d() }, "`rank` is 0, expected 1 to 65536", ""),
        (LoRAAdapterConfig { rank: 1_000_000_000, ..d() }, "`rank` is 1000000000", ""),
        (LoRAAdapterConfig { alpha: 0.0, ..d() }, "`alpha` is 0, expected a number above 0", ""),
        (LoRAAdapterConfig { alpha: f64::NAN, ..d() }, "`alpha` is NaN", ""),
        (LoRAAdapterConfig { alpha: f64::INFINITY, ..d() }, "`alpha` is inf", ""),
        (LoRAAdapterConfig { dropout: 1.0, ..d() }, "`dropout` is 1, expected at least 0 and below 1", ""),
        (LoRAAdapterConfig { dropout: -0.1, ..d() }, "`dropout` is -0.1", ""),
        (LoRAAdapterConfig { dropout: f64::NAN, ..d() }, "`dropout` is NaN", ""),
        (LoRAAdapterConfig { target_modules: vec![], ..d() }, "`target_modules` is empty", ""),
        (
            LoRAAdapterConfig { target_modules: named(&["q_proj", "all-linear"]), ..d() },
            "`target_modules` combines `all-linear` with others",
            "",
        ),
        (LoRAAdapterConfig { target_modules: named(&["q_proj", "x_proj"]), ..d() }, "`x_proj` matches none", THERE),
        (LoRAAdapterConfig { target_modules: named(&["proj"]), ..d() }, "`target_modules`: `proj` matches none", THERE),
        (LoRAAdapterConfig { target_modules: named(&[r".*\.wq"]), ..d() }, r"`.*\.wq` matches none", THERE),
        (
            LoRAAdapterConfig { target_modules: named(&["(q|v"]), ..d() },
            "`target_modules` is no regular expression",
            "",
        ),
        (LoRAAdapterConfig { target_modules: named(&["q)|(v"]), ..d() }, "is no regular expression", ""),
        (
            LoRAAdapterConfig { target_modules: named(&["q_proj", "lm_head"]), ..d() },
            "`target_modules`: `lm_head` cannot be adapted in this version",
            "choose among q_proj, k_proj",
        ),
        (
            LoRAAdapterConfig { target_modules: named(&["embed_tokens"]), ..d() },
            "`embed_tokens` cannot",
            "choose among",
        ),
        (LoRAAdapterConfig { target_modules: named(&[".*"]), ..d() }, "`lm_head` cannot be adapted", "choose among"),
        (LoRAAdapterConfig { exclude_modules: named(&["q_proj"]), ..q() }, "leaves no projection", ""),
        (LoRAAdapterConfig { exclude_modules: named(&["[a"]), ..q() }, "`exclude_modules` is no regular", ""),
        (LoRAAdapterConfig { exclude_modules: named(&["all-linear"]), ..q() }, "`exclude_modules` is all-linear", ""),
        (LoRAAdapterConfig { layers_to_transform: Some(vec![0]), ..d() }, "`layers_to_transform` goes with names", ""),
        (
            LoRAAdapterConfig { layers_to_transform: Some(vec![1, 9]), ..q() },
            "`layers_to_transform`: `9` matches none of the model's layers",
            "the model has 0, 1, 2",
        ),
        (
            LoRAAdapterConfig { layers_to_transform: Some(vec![1]), layers_pattern: vec!["blocks".into()], ..q() },
            "`layers_pattern` is not in the model's paths, such as `model.layers.0.",
            "",
        ),
        (
            LoRAAdapterConfig { rank_pattern: vec![("q_proj".into(), 0)], ..d() },
            "`rank_pattern` for `q_proj` is 0, expected 1 to 65536",
            "",
        ),
        (LoRAAdapterConfig { rank_pattern: vec![("wq".into(), 2)], ..d() }, "`rank_pattern`: `wq` matches none", THERE),
        (LoRAAdapterConfig { rank_pattern: vec![("*".into(), 2)], ..d() }, "`rank_pattern` is no regular", ""),
        (
            LoRAAdapterConfig { alpha_pattern: vec![("q_proj".into(), -1.0)], ..d() },
            "`alpha_pattern` for `q_proj` is -1, expected a number above 0",
            "",
        ),
        (LoRAAdapterConfig { alpha_pattern: vec![("wq".into(), 2.0)], ..d() }, "`alpha_pattern`: `wq`", THERE),
    ];
    for (config, message, hint) in cases {
        check(&LoRAAdapter::new(&*model, config).unwrap_err(), message, hint);
    }
    check(&TargetModule::from_str("").unwrap_err(), "empty name", "");
}

const Q0: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const OTHER: &str = "this adapter was made for another model";

#[test]
fn files() {
    let model = model("qwen2");
    let good = PeftAdapter::read(golden::dir("adapters/lora-qv"), &Device::Cpu).unwrap();
    let dora = PeftAdapter::read(golden::dir("adapters/dora"), &Device::Cpu).unwrap();
    let changed = |change: &dyn Fn(&mut PeftAdapter)| {
        let mut peft = good.clone();
        change(&mut peft);
        LoRAAdapter::from_peft(&*model, &peft).unwrap_err()
    };
    let tensor = |t: Tensor| changed(&|p| _ = p.tensors.insert(Q0.into(), t.clone()));
    let config = |change: &dyn Fn(&mut PeftConfig)| changed(&|p| change(&mut p.config));
    let names = |names: &[&str]| TargetModules::Names(names.iter().map(ToString::to_string).collect());

    check(&changed(&|p| _ = p.tensors.remove(Q0)), &format!("no tensor `{Q0}`"), OTHER);
    check(&changed(&|p| p.tensors.clear()), "; and 9 more", OTHER);
    let extra = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight";
    let more = changed(&|p| _ = p.tensors.insert(extra.into(), random(1, (3, 40), DType::F32)));
    check(&more, &format!("unexpected tensor `{extra}`"), OTHER);
    check(&tensor(random(1, (3, 41), DType::F32)), &format!("`{Q0}` is (3, 41), expected (3, 40)"), OTHER);
    check(&tensor(random(1, 120, DType::F32)), "is (120), expected (3, 40)", OTHER);
    check(&tensor(Tensor::ones((3, 40), DType::U32, &Device::Cpu).unwrap()), "is of U32, expected a float", OTHER);
    check(&tensor(random(1, (3, 40), DType::F32).affine(f64::NAN, 0.0).unwrap()), "not finite", "went wrong");
    check(&config(&|c| c.r = 4), "is (3, 40), expected (4, 40); ", "another rank than adapter_config.json says");
    check(&config(&|c| c.use_dora = true), "no tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_m", OTHER);
    check(&config(&|c| c.target_modules = names(&["q_proj"])), "unexpected tensor", OTHER);
    check(&config(&|c| c.target_modules = names(&["wq"])), "`wq` matches none", "the model has q_proj");
    check(&config(&|c| c.target_modules = names(&["q_proj", "lm_head"])), "`lm_head` cannot", "choose among");
    let saved = config(&|c| c.modules_to_save = Some(vec!["embed_tokens".into()]));
    check(&saved, "`modules_to_save`: `embed_tokens` cannot be adapted", "choose among");
    check(&config(&|c| c.lora_alpha = -1.0), "adapter_config.json: `lora_alpha` is -1", "");
    check(&config(&|c| c.r = 70_000), "adapter_config.json: `r` is 70000, expected 1 to 65536", "");

    let mut magnitude = dora.clone();
    let key = magnitude.tensors.keys().find(|k| k.ends_with("magnitude_vector")).unwrap().clone();
    magnitude.tensors.insert(key.clone(), random(1, 7, DType::F32));
    check(&LoRAAdapter::from_peft(&*model, &magnitude).unwrap_err(), &format!("`{key}` is (7), expected ("), OTHER);
    check(&LoRAAdapter::from_peft(&*self::model("mistral"), &dora).unwrap_err(), "expected (3, ", OTHER);

    let error = LoRAAdapter::load(&*model, golden::dir("adapters/lora-mistral")).unwrap_err();
    check(&error, "lora-mistral/adapter_model.safetensors: ", OTHER);
    check(&LoRAAdapter::load(&*model, golden::dir("models/qwen2")).unwrap_err(), "no adapter_config.json", "--model");
}

#[test]
fn metadata() {
    let model = model("qwen2");
    let mut peft = PeftAdapter::read(golden::dir("adapters/lora-qv"), &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (text, message) in [("{\"step\":", "EOF"), ("{\"step\":-1}", "-1"), ("3", "invalid type")] {
        peft.metadata.insert("metal_candle_checkpoint".into(), text.into());
        peft.write(&dir).unwrap();
        let error = load_checkpoint(&*model, &dir).unwrap_err();
        check(&error, "adapter_model.safetensors: metadata `metal_candle_checkpoint`: ", "another version");
        assert!(error.to_string().contains(message), "{error}");
        assert!(LoRAAdapter::load(&*model, &dir).is_ok());
    }
}

/// PEFT asks for one match only, and so do we where the tensors say the rest.
#[test]
fn a_loaded_list_may_name_what_the_model_lacks() {
    let model = model("qwen2");
    let mut peft = PeftAdapter::read(golden::dir("adapters/lora-qv"), &Device::Cpu).unwrap();
    let names = ["q_proj", "v_proj", "query_key_value"].map(Into::into).to_vec();
    peft.config.target_modules = TargetModules::Names(names);
    assert_eq!(LoRAAdapter::from_peft(&*model, &peft).unwrap().variables().len(), peft.tensors.len());
}

#[test]
fn half_precision_adapters_are_widened() {
    let model = model("qwen2");
    let mut peft = PeftAdapter::read(golden::dir("adapters/lora-qv"), &Device::Cpu).unwrap();
    peft.tensors.values_mut().for_each(|t| *t = t.to_dtype(DType::BF16).unwrap());
    let adapter = LoRAAdapter::from_peft(&*model, &peft).unwrap();
    assert!(adapter.variables().iter().all(|(_, v)| v.dtype() == DType::F32));
}
