//! AdamW (Loshchilov, Hutter: "Decoupled Weight Decay Regularization", 2019), equal to `torch.optim.AdamW`.
//! Knows variables and gradients, no model.

use crate::{Error, Result, parameters::Parameters};
use candle_core::{Tensor, Var, backprop::GradStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Settings of [`AdamW`]; the defaults are torch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// The learning rate, at least 0. A trainer sets it before each step, by its schedule.
    pub lr: f64,
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
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamWConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let at_least_0 = "a finite number of at least 0";
        for (field, value) in [("lr", self.lr), ("eps", self.eps), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::config(field, value, at_least_0));
            }
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
/// let config = AdamWConfig { lr: 0.1, weight_decay: 0.0, ..Default::default() };
/// let mut optimizer = AdamW::new(&[("x".to_string(), x.clone())], config)?;
/// for _ in 0..200 {
///     optimizer.backward_step(&x.sqr()?.sum_all()?)?;
/// }
/// assert!(x.sqr()?.sum_all()?.to_scalar::<f32>()? < 1e-2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdamW {
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
    /// An optimizer of named `f32` variables that has done no step.
    ///
    /// # Errors
    /// If a setting is out of range, or there is no variable.
    pub fn new(variables: &[(String, Var)], config: AdamWConfig) -> Result<Self> {
        config.check()?;
        let parameters = Parameters::new(variables)?;
        let values = parameters.gather()?;
        let (m, v) = (values.zeros_like()?, values.zeros_like()?);
        Ok(Self { config, parameters, state: State { values, m, v, t: 0 } })
    }

    /// One step with the gradients of a backward pass.
    ///
    /// # Errors
    /// If a variable has no gradient.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        let gradient = self.parameters.gradient(grads)?;
        self.step_flat(&gradient)
    }

    /// The backward pass of `loss`, and a step.
    ///
    /// # Errors
    /// If a variable has no gradient.
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.step(&loss.backward()?)
    }

    /// Sets the learning rate of the steps to come.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.config.lr = lr;
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    /// How many steps it has done.
    pub fn steps(&self) -> u64 {
        self.state.t
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// In the order of operations that torch has, so that results are the same to the last bits.
    pub(crate) fn step_flat(&mut self, gradient: &Tensor) -> Result<()> {
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = self.config;
        let State { values, m, v, t } = &self.state;
        let t = t + 1;
        let correction1 = 1.0 - beta1.powf(t as f64);
        let correction2 = 1.0 - beta2.powf(t as f64);
        let m = (m + ((gradient - m)? * (1.0 - beta1))?)?;
        let v = ((v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = v.sqrt()?.affine(1.0 / correction2.sqrt(), eps)?;
        let values = if weight_decay == 0.0 { values.clone() } else { (values * (1.0 - lr * weight_decay))? };
        let values = (values - ((&m / denominator)? * (lr / correction1))?)?;
        self.restore(State { values, m, v, t })
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

/// What gradients of norm `norm` are multiplied with so that they have at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does it.
pub(crate) fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}
