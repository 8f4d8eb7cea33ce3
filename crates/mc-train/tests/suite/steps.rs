//! Single steps and evaluations: how they are cut into batches, padded or computed changes nothing.

use crate::{adapter_config, config, model, random_data, trainer, values};
use mc_backend::ops;
use mc_lora::{LoRAAdapter, LoRAAdapterConfig};
use mc_testkit::{Tolerance, assert_close, max_abs_diff};
use mc_train::{
    Batch, Dataset, Differentiated, Example, LRScheduler, Supervised, Trainer, TrainingConfig, backward,
    checkpointed_backward, evaluate,
};

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
