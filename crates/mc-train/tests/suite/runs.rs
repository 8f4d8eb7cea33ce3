//! Whole runs: resumed ones equal uninterrupted ones byte for byte, observers hear everything, wrong settings are refused.

use crate::{adapter_config, config, model, random_data, trainer};
use candle_core::{DType, Device, safetensors};
use mc_lora::{LoRAAdapter, LoRAAdapterConfig, TargetModule};
use mc_models::{Model, ModelLoader};
use mc_train::{
    Dataset, EvalMetrics, Example, LRScheduler, Observer, RunFiles, RunStart, StepMetrics, Trainer, TrainingConfig,
    evaluate,
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
};

fn assert_same_files(a: &Path, b: &Path) {
    for file in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "run/state.safetensors",
        "run/best/adapter_model.safetensors",
    ] {
        assert!(fs::read(a.join(file)).unwrap() == fs::read(b.join(file)).unwrap(), "{file} differs");
    }
}

/// The losses in a run's metrics, by event.
fn losses(output: &Path, event: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(RunFiles::new(output).metrics()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of = |line: &serde_json::Value| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap());
    lines.filter(|line| line["event"] == event).map(|line| of(&line)).collect()
}

struct StopAfter(u64);

impl Observer for StopAfter {
    fn on_step(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
        if metrics.step == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// A run that dies in this step.
fn crash_in_step(step: u64, config: TrainingConfig, train: &Dataset, valid: &Dataset) {
    struct Crash(u64);
    impl Observer for Crash {
        fn on_step(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
            assert!(metrics.step < self.0, "crash");
            ControlFlow::Continue(())
        }
    }
    let mut crashing = trainer(config).with_observer(Box::new(Crash(step)));
    let crash = std::panic::AssertUnwindSafe(|| crashing.train_with_eval(train, Some(valid)).map(drop));
    assert!(std::panic::catch_unwind(crash).is_err());
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let (train, valid) = (random_data(1, 7), random_data(2, 3));
    let dir = tempfile::tempdir().unwrap();
    let to = |name: &str| TrainingConfig { output_dir: Some(dir.path().join(name)), ..config(10) };
    let whole = trainer(to("whole")).train_with_eval(&train, Some(&valid)).unwrap();
    assert_eq!((whole.steps, whole.stopped), (10, false));

    // In the middle of an epoch and at the end of one, and not where evaluations fall.
    for stops in [vec![5], vec![4], vec![1, 7]] {
        let name = format!("stopped at {stops:?}");
        for (i, stop) in stops.iter().enumerate() {
            let mut part = trainer(to(&name)).with_observer(Box::new(StopAfter(*stop)));
            if i > 0 {
                part.resume().unwrap();
            }
            let metrics = part.train_with_eval(&train, Some(&valid)).unwrap();
            assert_eq!((metrics.steps, metrics.stopped), (*stop, true));
        }
        let mut rest = trainer(to(&name));
        rest.resume().unwrap();
        let metrics = rest.train_with_eval(&train, Some(&valid)).unwrap();
        assert_eq!((metrics.steps, metrics.loss, metrics.eval, metrics.best), (10, whole.loss, whole.eval, whole.best));
        assert_same_files(&dir.path().join("whole"), &dir.path().join(&name));
        for event in ["step", "eval"] {
            assert_eq!(losses(&dir.path().join("whole"), event), losses(&dir.path().join(&name), event));
        }
    }
}

/// A run that dies between two saves goes on from the last one, and its metrics have each step once.
#[test]
fn a_crash_loses_no_more_than_the_steps_since_the_last_save() {
    let (train, valid) = (random_data(1, 7), random_data(2, 3));
    let dir = tempfile::tempdir().unwrap();
    let to = |name: &str| TrainingConfig { output_dir: Some(dir.path().join(name)), save_every: Some(4), ..config(9) };
    trainer(to("whole")).train_with_eval(&train, Some(&valid)).unwrap();

    crash_in_step(6, to("crashed"), &train, &valid);
    let mut rest = trainer(to("crashed"));
    rest.resume().unwrap();
    assert_eq!(rest.steps(), 4);
    rest.train_with_eval(&train, Some(&valid)).unwrap();
    let (whole, crashed) = (dir.path().join("whole"), dir.path().join("crashed"));
    assert_same_files(&whole, &crashed);
    assert_eq!(losses(&whole, "step"), losses(&crashed, "step"));
    // Evaluations, every second step and better each time, save the run and are no checkpoints.
    let saved = fs::read_dir(whole.join("run/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(saved.collect::<BTreeSet<_>>(), ["4", "8", "9"].map(OsString::from).into());
    for step in [4, 8, 9] {
        let file = |output: &Path| fs::read(RunFiles::new(output).checkpoint(step).join("adapter_model.safetensors"));
        assert_eq!(file(&whole).unwrap(), file(&crashed).unwrap());
    }
}

/// Without `save_every` the run is saved after some time, here none, and no checkpoint is kept.
#[test]
fn a_crash_loses_no_more_than_the_time_between_saves() {
    let (train, valid) = (random_data(1, 7), random_data(2, 3));
    let dir = tempfile::tempdir().unwrap();
    let autosave = std::time::Duration::ZERO;
    let to = |name: &str| TrainingConfig { output_dir: Some(dir.path().join(name)), autosave, ..config(9) };
    let files = RunFiles::new(dir.path().join("crashed"));
    assert!(!files.holds_results());
    trainer(to("whole")).train_with_eval(&train, Some(&valid)).unwrap();
    crash_in_step(6, to("crashed"), &train, &valid);
    assert!(files.holds_results());
    let mut rest = trainer(to("crashed"));
    rest.resume().unwrap();
    assert_eq!(rest.steps(), 5);
    rest.check(&train).unwrap();
    assert!(rest.check(&valid).unwrap_err().to_string().contains("`examples` is 3"));
    rest.train_with_eval(&train, Some(&valid)).unwrap();
    assert_same_files(&dir.path().join("whole"), &dir.path().join("crashed"));
    assert!(!files.output().join("run/checkpoints").exists());
}

/// The best adapter never lies there without the state that it is the best of.
#[test]
fn the_best_is_saved_with_what_the_run_goes_on_from() {
    struct BreakInEvaluation;
    impl Observer for BreakInEvaluation {
        fn on_eval(&mut self, step: u64, _: &EvalMetrics, best: bool) -> ControlFlow<()> {
            assert!(step == 2 && best, "no step and no evaluation after a break: {step}");
            ControlFlow::Break(())
        }
    }
    let (train, valid) = (random_data(1, 7), random_data(2, 3));
    let dir = tempfile::tempdir().unwrap();
    let to = |name: &str| TrainingConfig {
        output_dir: Some(dir.path().join(name)),
        eval_every: Some(2),
        autosave: std::time::Duration::MAX,
        ..config(9)
    };
    let mut broken = trainer(to("broken")).with_observer(Box::new(BreakInEvaluation));
    let metrics = broken.train_with_eval(&train, Some(&valid)).unwrap();
    assert_eq!((metrics.steps, metrics.stopped), (2, true));
    crash_in_step(3, to("crashed"), &train, &valid);
    assert_same_files(&dir.path().join("broken"), &dir.path().join("crashed"));
}

/// Whatever is left of a run counts, and what says nothing does not.
#[test]
fn results_are_seen_before_they_are_replaced() {
    for (file, holds) in [
        ("adapter_config.json", true),
        ("adapter_model.safetensors", true),
        ("run/state.safetensors", true),
        ("run/best/adapter_config.json", true),
        ("run/checkpoints/2/adapter_config.json", true),
        ("run/lock", false),
        ("run/metrics.jsonl", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        assert_eq!(RunFiles::new(dir.path()).holds_results(), holds, "{file}");
    }
}

/// A loss on other data says nothing about which adapter is the best.
#[test]
fn other_held_out_data_choose_the_best_anew() {
    let train = random_data(1, 7);
    let dir = tempfile::tempdir().unwrap();
    let to = |steps| TrainingConfig {
        output_dir: Some(dir.path().join("out")),
        lr_scheduler: LRScheduler::constant(2e-2),
        started: Some(7),
        ..config(steps)
    };
    let files = RunFiles::new(dir.path().join("out"));
    // Trained on them: a loss that data of another distribution never have.
    let first = trainer(to(40)).train_with_eval(&train, Some(&train)).unwrap().best.unwrap();
    assert_eq!(files.started().unwrap(), Some(7));
    let goes_on = |steps, valid: &Dataset| {
        let mut trainer = trainer(to(steps));
        trainer.resume().unwrap();
        trainer.train_with_eval(&train, Some(valid)).unwrap().best.unwrap()
    };
    let same = goes_on(41, &train);
    assert!(same.loss <= first.loss);
    let other = goes_on(42, &random_data(9, 5));
    assert!(other.step == 42 && other.loss > first.loss, "{first:?} {other:?}");
}

/// There is no step left to make up for an evaluation that is left out.
#[test]
fn a_run_that_is_stopped_in_its_last_step_is_evaluated() {
    let (train, valid) = (random_data(1, 7), random_data(2, 3));
    let run = |config: TrainingConfig| {
        let mut trainer = trainer(config).with_observer(Box::new(StopAfter(3)));
        trainer.train_with_eval(&train, Some(&valid)).unwrap()
    };
    let last = run(TrainingConfig { eval_every: Some(2), ..config(3) });
    let (before, best) = (run(TrainingConfig { eval_every: Some(2), ..config(4) }), last.best.unwrap());
    assert_eq!((last.stopped, before.stopped, best.step), (false, true, 3), "the loss falls");
    assert!(last.eval.unwrap().loss < before.eval.unwrap().loss);
}

#[test]
fn what_does_not_fit_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let start = || TrainingConfig { output_dir: Some(dir.path().into()), ..config(2) };
    let no_state = trainer(start()).resume().unwrap_err();
    assert!(no_state.to_string().contains("no training state"), "{no_state}");
    trainer(start()).train(&random_data(1, 7)).unwrap();

    let model = model("qwen2");
    let resumed = |adapter: LoRAAdapterConfig, config: TrainingConfig, data: &Dataset| {
        let mut trainer = Trainer::new(model.clone(), LoRAAdapter::new(&*model, adapter).unwrap(), config).unwrap();
        trainer.resume().and_then(|()| trainer.train(data).map(|metrics| metrics.steps))
    };
    let same = random_data(1, 7);
    let qv = vec![TargetModule::QProj, TargetModule::VProj];
    for (adapter, config, data, expected) in [
        (LoRAAdapterConfig { rank: 4, ..adapter_config() }, start(), &same, "`rank` is 4, the run was started with 3"),
        (LoRAAdapterConfig { alpha: 8.0, ..adapter_config() }, start(), &same, "`alpha` is 8.0"),
        (LoRAAdapterConfig { dropout: 0.0, ..adapter_config() }, start(), &same, "`dropout` is 0.0"),
        (
            LoRAAdapterConfig { target_modules: qv, ..adapter_config() },
            start(),
            &same,
            "`projections` has \"model.layers.0.self_attn.v_proj 3\" where",
        ),
        (adapter_config(), TrainingConfig { seed: 12, ..start() }, &same, "`seed` is 12, the run was started with 11"),
        (adapter_config(), TrainingConfig { batch_size: 3, ..start() }, &same, "`batch_size` is 3"),
        (adapter_config(), TrainingConfig { grad_accum: 1, ..start() }, &same, "`grad_accum` is 1"),
        (adapter_config(), start(), &random_data(1, 8), "`examples` is 8, the run was started with 7"),
        (adapter_config(), start(), &random_data(3, 7), "the training data are not those"),
    ] {
        let error = resumed(adapter, config, data).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("state.safetensors: ") && !error.to_string().contains('\n'), "{error}");
        assert!(error.hint().is_some());
    }
    // Another model, though its shapes are the same; by its name alone it is none.
    let on = |model: &Model, name: Option<&str>| {
        let adapter = LoRAAdapter::new(&**model, adapter_config()).unwrap();
        let adapter = name.into_iter().fold(adapter, LoRAAdapter::with_base_model);
        Trainer::new(model.clone(), adapter, start()).unwrap().resume()
    };
    on(&model, None).unwrap();
    on(&model, Some("moved/model")).unwrap();
    let golden = mc_testkit::golden::dir("models/qwen2");
    let load = |dtype, dir: &Path| ModelLoader::new().with_dtype(dtype).load(dir).unwrap();
    let half = load(DType::BF16, &golden);
    on(&half, None).unwrap();
    // One matrix of it, as after training it further.
    let changed = |matrix: &str| {
        let changed = dir.path().join(matrix);
        fs::create_dir(&changed).unwrap();
        fs::copy(golden.join("config.json"), changed.join("config.json")).unwrap();
        let mut tensors = safetensors::load(golden.join("model.safetensors"), &Device::Cpu).unwrap();
        let matrix = tensors.get_mut(matrix).unwrap();
        *matrix = (&*matrix * 1.01).unwrap();
        safetensors::save(&tensors, changed.join("model.safetensors")).unwrap();
        load(DType::F32, &changed)
    };
    let other_weights = "the model's weights are not those that the run was started with";
    for (model, expected) in [
        (
            self::model("qwen2-window"),
            "the model's configuration is not that of the model that the run was started with",
        ),
        (changed("model.layers.1.mlp.up_proj.weight"), other_weights),
        // The head is tied to it.
        (changed("model.embed_tokens.weight"), other_weights),
    ] {
        let error = on(&model, None).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // More steps at another rate are the same run.
    let longer = TrainingConfig { max_steps: Some(4), lr_scheduler: LRScheduler::constant(1e-3), ..start() };
    assert_eq!(resumed(adapter_config(), longer, &same).unwrap(), 4);
}

#[test]
fn a_new_run_leaves_nothing_of_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let files = RunFiles::new(&output);
    let config = TrainingConfig { output_dir: Some(output.clone()), save_every: Some(1), ..config(3) };
    trainer(config.clone()).train_with_eval(&random_data(1, 7), Some(&random_data(2, 3))).unwrap();
    assert!(files.checkpoint(3).is_dir() && files.best().is_dir() && files.can_resume());
    trainer(TrainingConfig { max_steps: Some(2), ..config }).train(&random_data(1, 7)).unwrap();
    assert!(files.checkpoint(2).is_dir() && !files.checkpoint(3).exists() && !files.best().exists());
    assert_eq!(losses(&output, "step").iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn training_learns_and_the_best_adapter_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let train = random_data(1, 7);
    let config = TrainingConfig {
        max_steps: Some(60),
        lr_scheduler: LRScheduler::constant(2e-2),
        output_dir: Some(dir.path().into()),
        ..config(60)
    };
    let mut trainer = trainer(config);
    let before = evaluate(&**trainer.model(), None, &train, 3).unwrap();
    // Held-out data with other answers: what is learnt harms there.
    let held_out = crate::answered(1, 7, 45);
    let metrics = trainer.train_with_eval(&train, Some(&held_out)).unwrap();
    let after = evaluate(&**trainer.model(), Some(trainer.lora_adapter()), &train, 3).unwrap();
    assert!(after.loss < 0.5 * before.loss, "{before:?} {after:?}");
    assert!((after.perplexity - after.loss.exp()).abs() < 1e-9 && after.tokens == train.report().supervised_tokens);
    let (best, last) = (metrics.best.unwrap(), metrics.eval.unwrap());
    assert!(best.loss + 0.3 < last.loss && best.step < 60, "{best:?} {last:?}");
    let kept = LoRAAdapter::load(&**trainer.model(), RunFiles::new(dir.path()).best()).unwrap();
    let kept = evaluate(&**trainer.model(), Some(&kept), &held_out, 2).unwrap();
    assert!((kept.loss - best.loss).abs() < 1e-12 * best.loss);
}

#[test]
fn observers_hear_everything_in_order() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);
    impl Log {
        fn add(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }
    }
    impl Observer for Log {
        fn on_start(&mut self, start: &RunStart) {
            self.add(format!("start {} of {}, {} examples", start.step, start.total_steps, start.examples));
        }
        fn on_step(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
            assert!(metrics.tokens > metrics.supervised_tokens && metrics.tokens_per_second > 0.0);
            assert!(metrics.peak_memory_bytes.is_none_or(|bytes| bytes > 1 << 20));
            self.add(format!("step {} in epoch {}", metrics.step, metrics.epoch));
            ControlFlow::Continue(())
        }
        fn on_eval(&mut self, step: u64, _: &EvalMetrics, best: bool) -> ControlFlow<()> {
            self.add(format!("eval {step} {}", if step == 2 { best } else { true }));
            ControlFlow::Continue(())
        }
        fn on_save(&mut self, step: u64, _: &Path) {
            self.add(format!("save {step}"));
        }
        fn on_end(&mut self, metrics: &mc_train::TrainingMetrics) {
            self.add(format!("end {}", metrics.steps));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Log::default();
    let config = TrainingConfig {
        num_epochs: 2,
        max_steps: None,
        eval_every: None,
        output_dir: Some(dir.path().into()),
        ..config(0)
    };
    let mut trainer = trainer(config).with_observer(Box::new(log.clone()));
    trainer.train_with_eval(&random_data(1, 7), Some(&random_data(2, 3))).unwrap();
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "start 0 of 4, 7 examples",
            "step 1 in epoch 1",
            "step 2 in epoch 1",
            "eval 2 true",
            "save 2",
            "step 3 in epoch 2",
            "step 4 in epoch 2",
            "eval 4 true",
            "save 4",
            "end 4"
        ]
    );
}

#[test]
fn impossible_settings_are_refused() {
    let model = model("qwen2");
    let adapter = || LoRAAdapter::new(&*model, adapter_config()).unwrap();
    let adamw = |beta1| mc_train::AdamWConfig { beta1, ..Default::default() };
    for (config, expected) in [
        (TrainingConfig { batch_size: 0, ..config(1) }, "`batch_size` is 0, expected at least 1"),
        (TrainingConfig { grad_accum: 0, ..config(1) }, "`grad_accum` is 0"),
        (TrainingConfig { num_epochs: 0, ..config(1) }, "`num_epochs` is 0"),
        (config(0), "`max_steps` is 0"),
        (TrainingConfig { save_every: Some(0), ..config(1) }, "`save_every` is 0"),
        (TrainingConfig { max_grad_norm: Some(0.0), ..config(1) }, "`max_grad_norm` is 0.0"),
        (TrainingConfig { lr_scheduler: LRScheduler::constant(-1.0), ..config(1) }, "`lr` is -1.0"),
        (TrainingConfig { adamw: adamw(1.0), ..config(1) }, "`beta1` is 1.0"),
    ] {
        let error = Trainer::new(model.clone(), adapter(), config).unwrap_err().to_string();
        assert!(error.starts_with("training configuration: ") && error.contains(expected), "{error}");
    }
    assert!(trainer(config(1)).train(&Dataset::default()).is_err());
    // A run that is over has no step left, until it is asked for more.
    let mut over = trainer(config(1));
    assert_eq!(over.train(&random_data(1, 3)).unwrap().steps, 1);
    let again = over.train(&random_data(1, 3)).unwrap();
    assert_eq!((again.steps, again.tokens), (1, 0));
    assert!(evaluate(&*model, None, &Dataset::default(), 1).is_err());
    assert!(evaluate(&*model, None, &random_data(1, 3), 0).is_err());
}

#[test]
fn a_token_that_the_model_lacks_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let mut trainer = trainer(TrainingConfig { output_dir: Some(output.clone()), ..config(1) });
    let vocab_size = trainer.model().config().vocab_size as u32;
    let data = |id| Dataset::from_examples([Example::new(vec![1, id, 2], vec![true; 3])]);
    let (known, unknown) = (data(vocab_size - 1), data(vocab_size));
    let expected = format!("it has token id {vocab_size}, expected ids below the model's vocabulary of {vocab_size}");
    let check = |error: mc_train::Error, place: &str| assert_eq!(error.to_string(), format!("{place}: {expected}"));
    check(trainer.train(&unknown).unwrap_err(), "the training data");
    check(trainer.train_with_eval(&known, Some(&unknown)).unwrap_err(), "the held-out data");
    check(evaluate(&**trainer.model(), None, &unknown, 1).unwrap_err(), "the data to evaluate on");
    assert!(!output.exists());
    trainer.train_with_eval(&known, Some(&known)).unwrap();
}
