//! Single steps and evaluations: how they are cut into batches, padded or computed changes nothing.

use crate::{adapter_config, config, model, random_data, trainer, values};
use candle_core::Tensor;
use mc_backend::{Weight, ops};
use mc_lora::{LoRAAdapter, LoRAAdapterConfig};
use mc_testkit::{Tolerance, assert_close, max_abs_diff};
use mc_train::{
    Batch, Dataset, Differentiated, Example, LRScheduler, Objective, Supervised, Trainer, TrainingConfig, backward,
    checkpointed_backward, evaluate,
};
use std::sync::{Arc, Mutex};

/// The same examples as one batch of four or two batches of two give the same step.
#[test]
fn accumulation_equals_one_batch() {
    let train = random_data(4, 4);
    let steps = || TrainingConfig { lr_scheduler: LRScheduler::constant(1e-2), max_grad_norm: Some(0.1), ..config(4) };
    let no_dropout = || {
        let model = model("llama");
        let config = LoRAAdapterConfig { dropout: 0.0, ..adapter_config() };
        Trainer::new(model.clone(), LoRAAdapter::new(&*model, config).unwrap(), steps()).unwrap()
    };
    let (mut one, mut two, mut four) = (no_dropout(), no_dropout(), no_dropout());
    for _ in 0..4 {
        let batches = |rows| train.examples().chunks(rows).map(Batch::new).collect::<Vec<_>>();
        let expected = one.step(&batches(4)).unwrap();
        for actual in [two.step(&batches(2)).unwrap(), four.step(&batches(1)).unwrap()] {
            assert!((actual.loss - expected.loss).abs() < 1e-6 * expected.loss, "{actual:?} {expected:?}");
            assert!((actual.grad_norm - expected.grad_norm).abs() < 1e-5 * expected.grad_norm);
            assert_eq!(actual.tokens, expected.tokens);
        }
    }
    for (name, trainer) in [("two", &two), ("four", &four)] {
        for (actual, expected) in values(trainer).iter().zip(values(&one)) {
            // Four steps of 1e-2.
            assert_close(name, actual, &expected, Tolerance::absolute(1e-5));
        }
    }
}

#[test]
fn batches_and_padding_do_not_change_a_loss() {
    let model = model("qwen3");
    let adapter = LoRAAdapter::new(&*model, adapter_config()).unwrap();
    let all = random_data(6, 9);
    let whole = evaluate(&*model, Some(&adapter), &all, 9).unwrap();
    for batch_size in [1, 2, 4] {
        let split = evaluate(&*model, Some(&adapter), &all, batch_size).unwrap();
        assert_eq!(split.tokens, whole.tokens);
        assert!((split.loss - whole.loss).abs() < 1e-6 * whole.loss, "{split:?} {whole:?}");
    }
    let row_alone = |example: &Example| {
        let alone = Dataset::from_examples([example.clone()]);
        let metrics = evaluate(&*model, Some(&adapter), &alone, 1).unwrap();
        metrics.loss * metrics.tokens as f64
    };
    let sum: f64 = all.examples().iter().map(row_alone).sum();
    assert!((sum / whole.tokens as f64 - whole.loss).abs() < 1e-6 * whole.loss);
}

#[test]
fn blocks_computed_twice_give_the_same_gradients() {
    for name in ["qwen2", "mistral"] {
        let model = model(name);
        // With B at zero A would have no gradient to compare; with dropout the second computation must drop the same.
        let adapter = LoRAAdapter::new(&*model, adapter_config()).unwrap();
        for (i, (_, var)) in adapter.variables().iter().enumerate() {
            var.set(&(mc_testkit::random(i as u64, var.shape(), var.dtype()) * 0.1).unwrap()).unwrap();
        }
        let pass = adapter.training_pass(3, 4);
        let what = Differentiated { model: &*model, adapter: &pass, objective: &Supervised, scale: 0.25 };
        let batch = Batch::new(random_data(7, 3).examples());
        let (loss, grads) = backward(&what, &batch).unwrap();
        let (loss_again, grads_again) = checkpointed_backward(&what, &batch, adapter.variables()).unwrap();
        assert_close(name, &loss_again, &loss, Tolerance::relative(1e-6));
        for (key, var) in adapter.variables() {
            let (expected, actual) = (grads.get(var).unwrap(), grads_again.get(var).unwrap());
            assert!(max_abs_diff(expected, &expected.zeros_like().unwrap()) > 0.0, "{key} has no gradient");
            assert_close(key, actual, expected, Tolerance::relative(1e-6));
        }
    }
}

/// Remembers the loss of each batch.
#[derive(Clone, Default)]
struct Recording(Arc<Mutex<Vec<f32>>>);

impl Objective for Recording {
    fn loss(&self, hidden: &Tensor, head: &Weight, batch: &Batch) -> candle_core::Result<Tensor> {
        let loss = Supervised.loss(hidden, head, batch)?;
        self.0.lock().unwrap().push(loss.to_scalar()?);
        Ok(loss)
    }
}

/// At a rate of 0 only the dropout differs, from batch to batch and from step to step: that of the seed and the number
/// of batches before.
#[test]
fn every_batch_of_a_run_drops_anew() {
    let losses = |dropout| {
        let model = model("qwen2");
        let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig { dropout, ..adapter_config() }).unwrap();
        for (i, (_, var)) in adapter.variables().iter().enumerate() {
            var.set(&(mc_testkit::random(i as u64, var.shape(), var.dtype()) * 0.1).unwrap()).unwrap();
        }
        let batch = Batch::new(random_data(7, 3).examples());
        let alone = |micro_step| {
            let pass = adapter.training_pass(11, micro_step);
            let what = Differentiated { model: &*model, adapter: &pass, objective: &Supervised, scale: 1.0 };
            backward(&what, &batch).unwrap().0.to_scalar::<f32>().unwrap()
        };
        let expected: Vec<_> = (0..6).map(alone).collect();
        let recording = Recording::default();
        let steps = TrainingConfig { lr_scheduler: LRScheduler::constant(0.0), ..config(3) };
        let mut trainer = Trainer::new(model, adapter, steps).unwrap().with_objective(Box::new(recording.clone()));
        for _ in 0..3 {
            trainer.step(&[batch.clone(), batch.clone()]).unwrap();
        }
        let found = recording.0.lock().unwrap().clone();
        assert_eq!(found, expected);
        found
    };
    let (with, without) = (losses(0.3), losses(0.0));
    assert!((0..6).all(|i| (0..i).all(|j| (with[i] - with[j]).abs() > 1e-3)), "{with:?}");
    assert!(without.iter().all(|loss| *loss == without[0]), "{without:?}");
}

/// A gradient below the limit stays as it is to the last bit, one above it does not.
#[test]
fn only_long_gradients_are_clipped() {
    let data = random_data(4, 6);
    let mut batches: Vec<_> = data.examples().chunks(2).map(Batch::new).collect();
    let run = |batches: &[Batch], max_grad_norm| {
        let steps = TrainingConfig { max_grad_norm, lr_scheduler: LRScheduler::constant(1e-2), ..config(3) };
        let mut trainer = trainer(steps);
        let step = |batch: &Batch| {
            let norm = trainer.step(std::slice::from_ref(batch)).unwrap().grad_norm;
            (norm, values(&trainer))
        };
        batches.iter().map(step).collect::<Vec<_>>()
    };
    let same = |a: &[Tensor], b: &[Tensor]| a.iter().zip(b).all(|(a, b)| max_abs_diff(a, b) == 0.0);
    // The longest last, so that a limit comes between.
    batches.sort_by_key(|batch| (run(std::slice::from_ref(batch), None)[0].0 * 1e6) as u64);
    let free = run(&batches, None);
    let norms: Vec<_> = free.iter().map(|(norm, _)| *norm).collect();
    assert!(norms[0].max(norms[1]) < 0.9 * norms[2], "{norms:?}");

    let wide = run(&batches, Some(norms.iter().fold(0.0, |a: f64, b| a.max(*b)) * 1.01));
    assert!(free.iter().zip(&wide).all(|((_, a), (_, b))| same(a, b)));
    let straddled = run(&batches, Some((norms[1] * norms[2]).sqrt()));
    assert!(same(&free[0].1, &straddled[0].1) && same(&free[1].1, &straddled[1].1));
    assert!(!same(&free[2].1, &straddled[2].1));
    assert!(straddled[2].0.total_cmp(&norms[2]).is_eq(), "what is told is the norm before");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut trainer = trainer(config(5));
            let metrics = trainer.train_with_eval(&random_data(1, 7), Some(&random_data(2, 3))).unwrap();
            (metrics.loss, metrics.eval, values(&trainer))
        })
    };
    let ((loss, eval, values), one) = (run(2), run(1));
    assert_eq!((loss, eval), (one.0, one.1));
    assert!(values.iter().zip(&one.2).all(|(a, b)| max_abs_diff(a, b) == 0.0));
}

/// Everything that the trainer says of a step follows from the plain formulas.
#[test]
fn a_step_is_what_its_metrics_say() {
    let model = model("qwen2");
    let adapter = LoRAAdapter::new(&*model, LoRAAdapterConfig { dropout: 0.0, ..adapter_config() }).unwrap();
    let example = random_data(8, 1).examples()[0].clone();
    let hidden = model.hidden(&example.ids, (1, example.ids.len()), &mut mc_models::Pass::default()).unwrap();
    let (positions, targets): (Vec<u32>, Vec<u32>) =
        (1..example.ids.len()).filter(|i| example.supervised[*i]).map(|i| (i as u32 - 1, example.ids[i])).unzip();
    let sum = ops::linear_cross_entropy(&hidden, model.head(), &positions, &targets).unwrap();
    let mean = f64::from(sum.to_scalar::<f32>().unwrap()) / targets.len() as f64;
    let mut trainer = Trainer::new(model, adapter, config(1)).unwrap();
    let metrics = trainer.step(&[Batch::new([&example])]).unwrap();
    assert!((metrics.loss - mean).abs() < 1e-6 * mean);
    assert_eq!((metrics.tokens, metrics.supervised_tokens), (example.ids.len(), targets.len()));
    assert_eq!((metrics.step, metrics.epoch), (1, 1));
}

/// Before anything is taken for it, where the system says what there is.
#[test]
fn a_first_step_that_memory_cannot_hold_is_refused() {
    if mc_backend::available_memory_bytes().is_none() {
        return;
    }
    let mut trainer = trainer(config(1));
    let batch = Batch { shape: (1 << 31, 1 << 31), ..Batch::new(&random_data(8, 1).examples()[..1]) };
    let error = trainer.step(&[batch]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("a batch of {} tokens takes at least ", 1u64 << 62)), "{error}");
    assert!(error.ends_with(" GB that are free") && trainer.steps() == 0, "{error}");
}
