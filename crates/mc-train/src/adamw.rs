//! AdamW (Loshchilov, Hutter: "Decoupled Weight Decay Regularization", 2019), equal to `torch.optim.AdamW`.
//! Knows variables and gradients, no model.

use crate::{Error, Result, config::at_least_0, parameters::Parameters};
use candle_core::{Device, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of [`AdamW`] beside its learning rate; the defaults are torch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// How much of the mean of gradients is kept at a step, in `0..1`.
    pub beta1: f64,
    /// How much of the mean of squared gradients is kept at a step, in `0..1`.
    pub beta2: f64,
    /// What is added to the root of the mean of squares, at least 0.
    pub eps: f64,
    /// The share of a parameter that decays at a step, per unit of learning rate; at least 0.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    pub(crate) fn check(&self) -> Result<()> {
        for (field, value) in [("eps", self.eps), ("weight_decay", self.weight_decay)] {
            at_least_0(field, value)?;
        }
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(field, value, "at least 0 and below 1"));
            }
        }
        Ok(())
    }
}

/// The optimizer, which owns the values of its variables: it sets them at each step.
///
/// ```
/// use candle_core::{Device, Var};
/// use mc_train::{AdamW, AdamWConfig};
/// let x = Var::new(&[4f32, -3.], &Device::Cpu)?;
/// let config = AdamWConfig { weight_decay: 0.0, ..Default::default() };
/// let mut optimizer = AdamW::new(&[("x".to_string(), x.clone())], 0.1, config)?;
/// for _ in 0..200 {
///     optimizer.backward_step(&x.sqr()?.sum_all()?)?;
/// }
/// assert!(x.sqr()?.sum_all()?.to_scalar::<f32>()? < 1e-2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdamW {
    lr: f64,
    config: AdamWConfig,
    parameters: Parameters,
    state: State,
}

/// Values of all variables and their moments, each a flat vector. Steps make new ones, so that an old state stays.
#[derive(Clone, Debug)]
pub(crate) struct State {
    values: Tensor,
    /// Mean of gradients.
    m: Tensor,
    /// Mean of squared gradients.
    v: Tensor,
    /// Steps done.
    t: u64,
}

const VALUES: &str = "parameter";
const M: &str = "exp_avg";
const V: &str = "exp_avg_sq";

impl AdamW {
    /// An optimizer of named `f32` variables that has done no step, with learning rate `lr`, at least 0.
    ///
    /// # Errors
    /// If a setting is out of range, or there is no variable.
    pub fn new(variables: &[(String, Var)], lr: f64, config: AdamWConfig) -> Result<Self> {
        at_least_0("lr", lr)?;
        config.check()?;
        let parameters = Parameters::new(variables)?;
        let values = parameters.gather()?;
        let (m, v) = (values.zeros_like()?, values.zeros_like()?);
        Ok(Self { lr, config, parameters, state: State { values, m, v, t: 0 } })
    }

    /// One step with the gradients of a backward pass.
    ///
    /// # Errors
    /// If a variable has no gradient.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        let gradient = self.parameters.gradient(grads)?;
        self.step_flat(&gradient, 1.0)
    }

    /// The backward pass of `loss`, and a step.
    ///
    /// # Errors
    /// If a variable has no gradient.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&mc_backend::backward(loss)?)
    }

    /// Sets the learning rate of the steps to come.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.lr
    }

    /// How many steps it has done.
    pub fn steps(&self) -> u64 {
        self.state.t
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// A step with a flat gradient that is first multiplied with `scale`.
    pub(crate) fn step_flat(&mut self, gradient: &Tensor, scale: f64) -> Result<()> {
        let t = self.state.t + 1;
        let update = Update::new(self.lr, &self.config, t, scale);
        let next = if gradient.device().is_cpu() {
            update.fused(&self.state, gradient)
        } else {
            update.composed(&self.state, gradient)
        };
        self.restore(next?)
    }

    /// A step as on other devices, also on the CPU.
    #[cfg(test)]
    pub(crate) fn step_composed(&mut self, gradient: &Tensor, scale: f64) -> Result<()> {
        let update = Update::new(self.lr, &self.config, self.state.t + 1, scale);
        self.restore(update.composed(&self.state, gradient)?)
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn restore(&mut self, state: State) -> Result<()> {
        self.parameters.scatter(&state.values)?;
        self.state = state;
        Ok(())
    }

    /// The state under the names of the variables.
    pub(crate) fn named_state(&self) -> Result<BTreeMap<String, Tensor>> {
        let named = |prefix, flat| self.parameters.named(prefix, flat);
        let state = &self.state;
        Ok(named(VALUES, &state.values)?.chain(named(M, &state.m)?).chain(named(V, &state.v)?).collect())
    }

    /// Goes on from a state that [`AdamW::named_state`] gave names, after `t` steps.
    pub(crate) fn restore_named(&mut self, tensors: &BTreeMap<String, Tensor>, t: u64) -> Result<()> {
        let flat = |prefix| self.parameters.join_named(prefix, tensors);
        self.restore(State { values: flat(VALUES)?, m: flat(M)?, v: flat(V)?, t })
    }
}

/// The numbers of one step. Both ways to compute it have the order of operations that torch has, so that results are
/// the same to the last bits.
struct Update {
    t: u64,
    scale: f64,
    /// `1 − lr·weight_decay`
    kept: f64,
    /// `1 − β₁`
    new1: f64,
    beta2: f64,
    /// `1 / √(1 − β₂ᵗ)`
    correction2: f64,
    eps: f64,
    /// `lr / (1 − β₁ᵗ)`
    step_size: f64,
}

impl Update {
    fn new(lr: f64, config: &AdamWConfig, t: u64, scale: f64) -> Self {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = *config;
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        let (correction2, step_size) = (1.0 / correction(beta2).sqrt(), lr / correction(beta1));
        Self { t, scale, kept: 1.0 - lr * weight_decay, new1: 1.0 - beta1, beta2, correction2, eps, step_size }
    }

    /// Any device.
    fn composed(&self, State { values, m, v, .. }: &State, gradient: &Tensor) -> Result<State> {
        let gradient = (gradient * self.scale)?;
        let m = (m + ((&gradient - m)? * self.new1)?)?;
        let v = ((v * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = v.sqrt()?.affine(self.correction2, self.eps)?;
        let values = ((values * self.kept)? - ((&m / denominator)? * self.step_size)?)?;
        Ok(State { values, m, v, t: self.t })
    }

    /// The CPU, in one pass over memory.
    fn fused(&self, State { values, m, v, .. }: &State, gradient: &Tensor) -> Result<State> {
        let [scale, kept, new1] = [self.scale, self.kept, self.new1].map(|x| x as f32);
        let [beta2, new2, correction2] = [self.beta2, 1.0 - self.beta2, self.correction2].map(|x| x as f32);
        let [eps, step_size] = [self.eps, self.step_size].map(|x| x as f32);
        let gradient = gradient.to_vec1::<f32>()?;
        let (mut values, mut m, mut v) = (values.to_vec1::<f32>()?, m.to_vec1::<f32>()?, v.to_vec1::<f32>()?);
        let chunks = (values.par_chunks_mut(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK));
        let (chunks, gradients) = (chunks.into_par_iter(), gradient.par_chunks(CHUNK));
        chunks.zip(gradients).for_each(|((values, m, v), gradients)| {
            for (((value, m), v), g) in values.iter_mut().zip(m).zip(v).zip(gradients) {
                let g = g * scale;
                *m += (g - *m) * new1;
                *v = *v * beta2 + g * g * new2;
                *value = *value * kept - *m / (v.sqrt() * correction2 + eps) * step_size;
            }
        });
        let tensor = |x: Vec<f32>| Tensor::from_vec(x, gradient.len(), &Device::Cpu);
        Ok(State { values: tensor(values)?, m: tensor(m)?, v: tensor(v)?, t: self.t })
    }
}

/// Elements that one thread updates at a time.
const CHUNK: usize = 16_384;

/// What gradients of norm `norm` are multiplied with so that they have at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does it.
pub(crate) fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use mc_testkit::{Tolerance, assert_close, random};

    #[test]
    fn both_ways_are_one() -> Result<()> {
        let n = 2 * CHUNK + 77;
        let x = |seed| random(seed, n, DType::F32);
        let mut state = State { values: x(1), m: (x(2) * 0.1)?, v: x(3).sqr()?, t: 3 };
        let config = AdamWConfig { weight_decay: 0.1, ..Default::default() };
        for t in 4..9 {
            let update = Update::new(0.01, &config, t, 0.7);
            let gradient = x(t);
            let composed = update.composed(&state, &gradient)?;
            let fused = update.fused(&state, &gradient)?;
            for (name, a, b) in [
                ("values", &fused.values, &composed.values),
                ("m", &fused.m, &composed.m),
                ("v", &fused.v, &composed.v),
            ] {
                assert_close(name, a, b, Tolerance::relative(1e-7));
            }
            assert_eq!((fused.t, composed.t), (t, t));
            state = fused;
        }
        Ok(())
    }

    /// The first steps of torch.optim.AdamW by hand: with one gradient the corrected moments are `g` and `g²`, so that
    /// a step is `lr·g/(|g| + eps)` after the decay.
    #[test]
    fn the_first_step_has_the_size_of_the_rate() -> Result<()> {
        let x = Var::new(&[2f32, -3., 0.5], &Device::Cpu)?;
        let config = AdamWConfig { weight_decay: 0.5, ..Default::default() };
        let mut optimizer = AdamW::new(&[("x".into(), x.clone())], 0.1, config)?;
        optimizer.backward_step(&(x.as_tensor() * Tensor::new(&[4f32, -1e-3, 0.], &Device::Cpu)?)?.sum_all()?)?;
        let expected =
            Tensor::new(&[2.0 * 0.95 - 0.1, -3.0 * 0.95 + 0.1 * 1e-3 / (1e-3 + 1e-8), 0.5 * 0.95], &Device::Cpu)?;
        assert_close("x", &x, &expected, Tolerance::relative(1e-6));
        assert_eq!(optimizer.steps(), 1);
        Ok(())
    }

    #[test]
    fn what_is_no_learning_rate_is_refused() -> Result<()> {
        let x = [("x".to_string(), Var::new(&[2f32], &Device::Cpu)?)];
        for (lr, said) in [(-1.0, "`lr` is -1.0"), (f64::NAN, "`lr` is NaN"), (f64::INFINITY, "`lr` is inf")] {
            let error = AdamW::new(&x, lr, AdamWConfig::default()).map(drop).map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.contains(said)), "{lr}");
        }
        // It is beside the settings, and no setting that nobody reads.
        let settings = r#"{"lr":1.0,"beta1":0.9,"beta2":0.999,"eps":1e-8,"weight_decay":0.0}"#;
        assert!(serde_json::from_str::<AdamWConfig>(settings).is_err());
        Ok(())
    }

    #[test]
    fn clipping_is_torchs() {
        assert!((clip_coefficient(4.0, 1.0) - 1.0 / 4.000_001).abs() < 1e-15);
        assert!((clip_coefficient(0.5, 1.0) - 1.0).abs() < f64::EPSILON);
    }
}
