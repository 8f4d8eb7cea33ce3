//! Adapters against PEFT: logits, losses and gradients of every tensor, for every golden adapter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Tensor};
use mc_backend::ops;
use mc_lora::LoRAAdapter;
use mc_models::{Adapter, Model, ModelLoader, Pass};
use mc_testkit::{Tolerance, assert_close, golden};

/// The golden README has the reasons: ten times what the reference itself is off.
const LOGITS: Tolerance = Tolerance::relative(1e-5);
const LOSS: Tolerance = Tolerance::relative(1e-5);
const GRADIENT: Tolerance = Tolerance::relative(3e-5);

struct Case {
    model: Model,
    adapter: LoRAAdapter,
    expected: std::collections::HashMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Self {
        let dir = golden::dir(&format!("adapters/{name}"));
        let base = golden::json(dir.join("expected.json"))["base"].as_str().unwrap().to_string();
        let model = ModelLoader::new().with_dtype(DType::F32).load(golden::dir(&format!("models/{base}"))).unwrap();
        let adapter = LoRAAdapter::load(&*model, &dir).unwrap();
        assert_eq!(adapter.base_model(), Some(base.as_str()));
        Self { model, adapter, expected: golden::tensors(dir.join("expected.safetensors")) }
    }

    fn hidden(&self, adapter: &dyn Adapter) -> Tensor {
        let ids = &self.expected["input_ids"];
        let shape = ids.dims2().unwrap();
        let ids = ids.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        self.model.hidden(&ids, shape, &mut Pass { adapter: Some(adapter), ..Default::default() }).unwrap()
    }

    /// The mean over supervised positions of the loss of the next token.
    fn loss(&self, hidden: &Tensor) -> Tensor {
        let labels = self.expected["labels"].to_vec2::<i64>().unwrap();
        let width = labels[0].len();
        let (mut positions, mut targets) = (vec![], vec![]);
        for (row, labels) in labels.iter().enumerate() {
            for (column, label) in labels.iter().enumerate().skip(1).filter(|(_, label)| **label >= 0) {
                positions.push((row * width + column - 1) as u32);
                targets.push(*label as u32);
            }
        }
        let sum = ops::linear_cross_entropy(hidden, self.model.head(), &positions, &targets).unwrap();
        (sum / positions.len() as f64).unwrap()
    }
}

fn check(name: &str) {
    let case = Case::open(name);
    let adapter = &case.adapter;
    let training = adapter.training_pass(0, 0);
    let frozen = adapter.freeze(&*case.model).unwrap();
    let ways: [(&str, &dyn Adapter); 3] = [("inference", adapter), ("frozen", &frozen), ("training", &training)];
    for (way, adapter) in ways {
        let logits = case.model.logits(&case.hidden(adapter)).unwrap();
        assert_eq!(logits.track_op(), way == "training", "{way}: graph");
        assert_close(&format!("{name}, {way}: logits"), &logits, &case.expected["logits"], LOGITS);
    }

    let loss = case.loss(&case.hidden(&training));
    assert_close(&format!("{name}: loss"), &loss, &case.expected["loss"].reshape(()).unwrap(), LOSS);
    let gradients = loss.backward().unwrap();
    for (key, var) in adapter.variables() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient for {key}"));
        assert_eq!(gradient.dtype(), DType::F32);
        assert_close(&format!("{name}: gradient of {key}"), gradient, &case.expected[&format!("grad.{key}")], GRADIENT);
    }
    let expected = case.expected.keys().filter(|key| key.starts_with("grad.")).count();
    assert_eq!(adapter.variables().len(), expected, "{name}: number of tensors");
}

#[test]
fn lora() {
    ["lora-qv", "lora-all", "lora-mistral", "lora-qwen3"].into_iter().for_each(check);
}

#[test]
fn rslora() {
    check("rslora");
}

#[test]
fn dora() {
    ["dora", "dora-llama", "dora-rslora"].into_iter().for_each(check);
}

#[test]
fn chosen_projections() {
    ["patterns", "regex", "layers"].into_iter().for_each(check);
}

#[test]
fn every_golden_adapter_is_checked() {
    assert_eq!(std::fs::read_dir(golden::dir("adapters")).unwrap().count(), 11);
}

/// To PEFT's format and back, in memory and through files: the same settings and the same bits.
#[test]
fn round_trip() {
    for name in ["patterns", "regex", "layers", "dora", "rslora"] {
        let Case { model, adapter, .. } = Case::open(name);
        let dir = tempfile::tempdir().unwrap();
        let adapter = adapter.with_base_model("base/model");
        adapter.save(dir.path()).unwrap();
        let peft = adapter.to_peft("base/model").unwrap();
        for back in [LoRAAdapter::from_peft(&*model, &peft).unwrap(), LoRAAdapter::load(&*model, &dir).unwrap()] {
            assert_eq!(back.config(), adapter.config());
            assert_eq!(back.base_model(), Some("base/model"));
            assert_eq!(back.num_parameters(), adapter.num_parameters());
            for ((key, var), (key_back, var_back)) in adapter.variables().iter().zip(back.variables()) {
                assert_eq!(key, key_back);
                let bits = |v: &Tensor| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(var), bits(var_back), "{key}");
            }
        }
    }
}
