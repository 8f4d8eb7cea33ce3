//! Losses and gradients that are not finite or not there.

use crate::{config, random_data, trainer, values};
use candle_core::{Result, Tensor};
use mc_backend::Weight;
use mc_lora::LoRAAdapter;
use mc_testkit::max_abs_diff;
use mc_train::{Batch, Objective, Observer, StepMetrics, Supervised, Trainer, TrainingConfig};
use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// The loss is not a number while `when` says so of the number of losses asked for.
struct Broken<F>(AtomicU64, F);

impl<F: Fn(u64) -> bool + Send + Sync> Objective for Broken<F> {
    fn loss(&self, hidden: &Tensor, head: &Weight, batch: &Batch) -> Result<Tensor> {
        let loss = Supervised.loss(hidden, head, batch)?;
        if self.1(self.0.fetch_add(1, Ordering::Relaxed)) { loss * f64::NAN } else { Ok(loss) }
    }
}

fn broken(config: TrainingConfig, when: impl Fn(u64) -> bool + Send + Sync + 'static) -> Trainer {
    trainer(TrainingConfig { grad_accum: 1, ..config }).with_objective(Box::new(Broken(AtomicU64::new(0), when)))
}

/// The steps that were skipped.
struct Skips(Arc<Mutex<Vec<u64>>>);
impl Observer for Skips {
    fn on_skip(&mut self, metrics: &StepMetrics) -> ControlFlow<()> {
        assert!(metrics.loss.is_nan() || metrics.grad_norm.is_infinite());
        self.0.lock().unwrap().push(metrics.step);
        ControlFlow::Continue(())
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let skips = Arc::default();
    let mut trainer =
        broken(config(8), |i| [1, 2, 4, 5].contains(&i)).with_observer(Box::new(Skips(Arc::clone(&skips))));
    let metrics = trainer.train(&random_data(1, 7)).unwrap();
    assert_eq!((metrics.steps, metrics.skipped), (8, 4));
    assert!(metrics.loss.unwrap().is_finite());
    assert_eq!(*skips.lock().unwrap(), [2, 3, 5, 6]);

    let (train, mut trainer) = (random_data(1, 2), broken(config(1), |i| i == 1));
    let batch = Batch::new(train.examples());
    trainer.step(std::slice::from_ref(&batch)).unwrap();
    let before = values(&trainer);
    assert!(trainer.step(std::slice::from_ref(&batch)).unwrap().loss.is_nan());
    for (before, now) in before.iter().zip(values(&trainer)) {
        assert!(max_abs_diff(&now, before) == 0.0);
    }
}

#[test]
fn three_in_a_row_end_the_run_with_the_last_good_state() {
    let dir = tempfile::tempdir().unwrap();
    let train = random_data(1, 7);
    let config = TrainingConfig { output_dir: Some(dir.path().into()), ..config(8) };
    let skips = Arc::default();
    let mut trainer = broken(config.clone(), |i| i >= 4).with_observer(Box::new(Skips(Arc::clone(&skips))));
    let error = trainer.train(&train).unwrap_err();
    assert_eq!(*skips.lock().unwrap(), [5, 6, 7]);
    assert!(
        error.to_string().starts_with("step 7: the loss or its gradient was not finite for 3 steps in a row"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("lower learning rate"));

    // Step 4 was the last whose loss was finite: kept is what it started from, the result of three steps.
    let mut three = broken(TrainingConfig { max_steps: Some(3), output_dir: None, ..config.clone() }, |_| false);
    three.train(&train).unwrap();
    let kept = LoRAAdapter::load(&**trainer.model(), dir.path()).unwrap();
    let all = values(&three).into_iter().zip(values(&trainer)).zip(kept.variables());
    for ((expected, now), (_, saved)) in all {
        assert!(max_abs_diff(&now, &expected) == 0.0 && max_abs_diff(saved, &expected) == 0.0);
    }
    let mut resumed = broken(config, |_| false);
    resumed.resume().unwrap();
    assert_eq!(resumed.steps(), 3);
    assert_eq!(resumed.train(&train).unwrap().steps, 8);
}

/// A gradient that overflows is as bad as a loss that does.
#[test]
fn an_infinite_gradient_is_skipped() {
    struct Steep;
    impl Objective for Steep {
        fn loss(&self, hidden: &Tensor, head: &Weight, batch: &Batch) -> Result<Tensor> {
            // The value is small, the gradient is not.
            let loss = Supervised.loss(hidden, head, batch)?;
            (&loss - loss.detach())? * 1e25
        }
    }
    for max_grad_norm in [Some(1.0), None] {
        let skips = Arc::default();
        let mut trainer = trainer(TrainingConfig { grad_accum: 1, max_grad_norm, ..config(2) })
            .with_objective(Box::new(Steep))
            .with_observer(Box::new(Skips(Arc::clone(&skips))));
        let before = values(&trainer);
        let metrics = trainer.step(&[Batch::new(random_data(1, 4).examples())]).unwrap();
        assert!(metrics.loss == 0.0 && metrics.grad_norm.is_infinite(), "{metrics:?}");
        let metrics = trainer.train(&random_data(1, 7)).unwrap();
        assert_eq!((metrics.steps, metrics.skipped, metrics.loss), (2, 2, None));
        // The first one was no part of the run, whose observers did not hear of it.
        assert_eq!(*skips.lock().unwrap(), [2]);
        assert!(values(&trainer).iter().zip(&before).all(|(now, before)| max_abs_diff(now, before) == 0.0));
    }
}

#[test]
fn a_parameter_without_a_gradient_is_named() {
    struct Nothing;
    impl Objective for Nothing {
        fn loss(&self, hidden: &Tensor, _: &Weight, _: &Batch) -> Result<Tensor> {
            hidden.detach().sum_all()
        }
    }
    let mut trainer = trainer(config(1)).with_objective(Box::new(Nothing));
    let error = trainer.train(&random_data(1, 3)).unwrap_err().to_string();
    assert!(
        error.starts_with("no gradient reaches `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`"),
        "{error}"
    );
    assert!(error.contains("more"), "{error}");
}
