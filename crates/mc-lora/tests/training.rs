//! How an adapter behaves before, in and beside training.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{DType, Tensor};
use mc_lora::{CheckpointMetadata, LoRAAdapter, LoRAAdapterConfig, TargetModule, load_checkpoint, save_checkpoint};
use mc_models::{Adapter, Model, ModelLoader, Pass};
use mc_testkit::{Tolerance, assert_close, golden, max_abs_diff, random};

fn model(name: &str) -> Model {
    ModelLoader::new().with_dtype(DType::F32).load(golden::dir(&format!("models/{name}"))).unwrap()
}

fn hidden(model: &Model, adapter: Option<&dyn Adapter>) -> Tensor {
    let ids: Vec<u32> = (0..18).map(|i| (i * 7 + 3) % 50).collect();
    model.hidden(&ids, (2, 9), &mut Pass { adapter, ..Default::default() }).unwrap()
}

/// An adapter whose every parameter is random.
fn trained(model: &Model, config: LoRAAdapterConfig, seed: u64) -> LoRAAdapter {
    let adapter = LoRAAdapter::new(&**model, config).unwrap();
    for (i, (_, var)) in adapter.variables().iter().enumerate() {
        let noise = (random(seed + i as u64, var.shape(), DType::F32) * 0.1).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    adapter
}

#[test]
fn a_fresh_adapter_changes_nothing_and_can_learn_everywhere() {
    for name in ["qwen2", "llama-bias", "qwen2-bf16", "qwen3-untied", "mistral"] {
        let model = model(name);
        for use_dora in [false, true] {
            let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig { use_dora, ..Default::default() }).unwrap();
            assert_eq!(adapter.layers().count(), model.sites().len());
            let plain = hidden(&model, None);
            let pass = adapter.training_pass(0, 0);
            let with = hidden(&model, Some(&pass));
            // DoRA divides each row's norm by itself.
            let tolerance = Tolerance::relative(if use_dora { 1e-6 } else { 0.0 });
            assert_close(name, &with, &plain, tolerance);

            let weights = random(1, with.shape(), DType::F32);
            let gradients = (with * weights).unwrap().sum_all().unwrap().backward().unwrap();
            for (key, var) in adapter.variables() {
                let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient for {key}"));
                let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                // Behind a B of zero, A has none yet.
                assert_eq!(largest > 0.0, !key.ends_with("lora_A.weight"), "{name}: {key}: {largest}");
            }
        }
    }
}

#[test]
fn first_values_are_kaiming_uniform_and_follow_the_seed() {
    let model = model("qwen2");
    let adapter = |seed| LoRAAdapter::new(&*model, LoRAAdapterConfig { rank: 64, seed, ..Default::default() }).unwrap();
    let first = adapter(5);
    for (layer, site) in first.layers().zip(model.sites()) {
        assert_eq!((layer.path(), layer.a().dims()), (site.path.as_str(), [64, site.in_features].as_slice()));
        assert_eq!(layer.b().dims(), [site.out_features, 64]);
        let a = layer.a().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bound = 1.0 / (site.in_features as f32).sqrt();
        assert!(a.iter().all(|v| v.abs() <= bound));
        // Uniform: the variance is bound²/3. Of n values it has a relative error of about 1/√n, here below 2%.
        let variance = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{}: {variance}", site.path);
    }
    let difference = |x: &LoRAAdapter, y: &LoRAAdapter, i: usize, j: usize| {
        max_abs_diff(x.layers().nth(i).unwrap().a(), y.layers().nth(j).unwrap().a())
    };
    assert!(difference(&first, &adapter(5), 3, 3) == 0.0);
    assert!(difference(&first, &adapter(6), 3, 3) > 0.01);
    assert!(difference(&first, &first, 1, 2) > 0.01, "sites have streams of their own");
}

#[test]
fn dropout_follows_seed_and_step_and_stays_out_of_inference() {
    let model = model("qwen2");
    for use_dora in [false, true] {
        let config = |dropout| LoRAAdapterConfig { dropout, use_dora, rank: 3, ..Default::default() };
        let adapter = trained(&model, config(0.3), 10);
        let run = |seed, step| hidden(&model, Some(&adapter.training_pass(seed, step)));
        let base = run(1, 4);
        assert!(max_abs_diff(&base, &run(1, 4)) == 0.0);
        assert!(max_abs_diff(&base, &run(1, 5)) > 1e-3);
        assert!(max_abs_diff(&base, &run(2, 4)) > 1e-3);
        let without = trained(&model, config(0.0), 10);
        let inference = hidden(&model, Some(&adapter));
        assert!(max_abs_diff(&inference, &hidden(&model, Some(&without))) == 0.0);
        assert_close(
            "no dropout",
            &hidden(&model, Some(&without.training_pass(1, 4))),
            &inference,
            Tolerance::relative(1e-6),
        );
        assert!(max_abs_diff(&inference, &base) > 1e-3);
    }
}

#[test]
fn sites_drop_different_inputs() {
    // q and v read the same input; with equal parameters and masks they would add the same.
    let model = model("llama");
    let config = LoRAAdapterConfig { dropout: 0.5, rank: 2, ..Default::default() };
    let adapter = trained(&model, config, 3);
    let pass = adapter.training_pass(0, 0);
    let (gate, up) = (model.projection(4).unwrap(), model.projection(5).unwrap());
    for (_, var) in adapter.variables() {
        var.set(&var.ones_like().unwrap()).unwrap();
    }
    let x = random(2, (1, 5, gate.site.in_features), DType::F32);
    let y = pass.project(&[gate.clone(), up.clone()], &x).unwrap();
    let added = |i: usize, p: &mc_models::Projection| (&y[i] - p.forward(&x).unwrap()).unwrap();
    assert!(max_abs_diff(&added(0, gate), &added(1, up)) > 0.1);
}

#[test]
fn adapters_on_one_model_do_not_disturb_each_other() {
    let model = model("qwen2");
    let adapters = [(false, 20), (true, 40)]
        .map(|(use_dora, seed)| trained(&model, LoRAAdapterConfig { use_dora, ..Default::default() }, seed));
    let alone = adapters.each_ref().map(|adapter| hidden(&model, Some(adapter)));
    assert!(max_abs_diff(&alone[0], &alone[1]) > 1e-2);
    let together = std::thread::scope(|scope| {
        let run = |adapter| {
            let model = &model;
            scope.spawn(move || (0..8).map(|_| hidden(model, Some(adapter as &LoRAAdapter))).collect::<Vec<_>>())
        };
        adapters.each_ref().map(run).map(|thread| thread.join().unwrap())
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert!(together.iter().all(|t| max_abs_diff(alone, t) == 0.0));
    }
}

#[test]
fn a_frozen_adapter_and_a_copy_stay_as_they_were() {
    let model = model("qwen2");
    for use_dora in [false, true] {
        let adapter = trained(&model, LoRAAdapterConfig { use_dora, ..Default::default() }, 5);
        let (frozen, peft) = (adapter.freeze(&*model).unwrap(), adapter.to_peft("").unwrap());
        let before = hidden(&model, Some(&adapter));
        assert!(max_abs_diff(&before, &hidden(&model, Some(&frozen))) == 0.0);
        for (_, var) in adapter.variables() {
            var.set(&(var.as_tensor() * 1.5).unwrap()).unwrap();
        }
        assert!(max_abs_diff(&before, &hidden(&model, Some(&adapter))) > 1e-2, "the adapter follows its variables");
        assert!(max_abs_diff(&before, &hidden(&model, Some(&frozen))) == 0.0);
        let copy = LoRAAdapter::from_peft(&*model, &peft).unwrap();
        assert!(max_abs_diff(&before, &hidden(&model, Some(&copy))) == 0.0);
    }
}

#[test]
fn an_adapter_for_another_model_says_so() {
    let qwen = model("qwen2");
    let config = LoRAAdapterConfig { target_modules: vec![TargetModule::VProj], ..Default::default() };
    let adapter = LoRAAdapter::new(&*qwen, config).unwrap();
    let (first, mut other) = (qwen.projection(2).unwrap(), qwen.projection(2).unwrap().clone());
    let x = random(2, (1, 5, first.site.in_features), DType::F32);
    assert!(adapter.project(std::slice::from_ref(first), &x).is_ok());
    other.site.path = "model.blocks.0.v".into();
    let message = adapter.project(&[other], &x).unwrap_err().to_string();
    assert!(message.contains("another model") && message.contains("model.blocks.0.v"), "{message}");
}

/// Layers of the same shapes and paths, one more or one less: nothing may silently stay as it was.
#[test]
fn an_adapter_for_a_model_of_another_depth_says_so() {
    let deep = model("qwen2");
    let dir = tempfile::tempdir().unwrap();
    let golden = golden::dir("models/qwen2");
    std::fs::copy(golden.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config = golden::json(golden.join("config.json"));
    let depth = config["num_hidden_layers"].as_u64().unwrap();
    config["num_hidden_layers"] = (depth - 1).into();
    if let Some(types) = config["layer_types"].as_array_mut() {
        types.pop();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let shallow = ModelLoader::new().with_dtype(DType::F32).load(dir.path()).unwrap();
    assert_eq!(deep.sites().len(), shallow.sites().len() + 7);

    let adapter = trained(&shallow, LoRAAdapterConfig::default(), 5);
    let (training, frozen) = (adapter.training_pass(0, 0), adapter.freeze(&*shallow).unwrap());
    let ids = [1, 2, 3];
    for way in [&adapter as &dyn Adapter, &training, &frozen] {
        assert!(shallow.hidden(&ids, (1, 3), &mut Pass { adapter: Some(way), ..Default::default() }).is_ok());
        let error = deep.hidden(&ids, (1, 3), &mut Pass { adapter: Some(way), ..Default::default() }).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("another model: that had 14 projections"), "{error}");
        assert!(error.contains("this model also has `model.layers.2.self_attn.q_proj`"), "{error}");
    }
    let error = adapter.freeze(&*deep).unwrap_err().to_string();
    assert!(error.contains("that had 14 projections, this model has 21"), "{error}");
    let error = trained(&deep, LoRAAdapterConfig::default(), 5).freeze(&*shallow).unwrap_err().to_string();
    assert!(error.contains("that had 21 projections, this model has 14"), "{error}");
}

#[test]
fn checkpoints_keep_their_metadata() {
    let model = model("qwen2");
    let adapter = trained(&model, LoRAAdapterConfig::default(), 5).with_base_model("base/model");
    let dir = tempfile::tempdir().unwrap();
    let metadata = CheckpointMetadata { step: 1 << 40, epoch: 3, loss: Some(0.1 + 0.2), learning_rate: Some(1e-4) };
    save_checkpoint(&adapter, &dir, Some(metadata.clone())).unwrap();
    let (back, found) = load_checkpoint(&*model, &dir).unwrap();
    assert_eq!((found, back.base_model()), (Some(metadata), Some("base/model")));
    assert!(max_abs_diff(&hidden(&model, Some(&adapter)), &hidden(&model, Some(&back))) == 0.0);
    let config = golden::json(dir.path().join("adapter_config.json"));
    // `all-linear` is written as the names it stood for, as PEFT does.
    let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!((&config["target_modules"], &config["r"]), (&names.to_vec().into(), &8.into()));

    save_checkpoint(&adapter, &dir, None).unwrap();
    assert_eq!(load_checkpoint(&*model, &dir).unwrap().1, None);
}
