//! From a batch to gradients, plainly or block by block. Knows no optimizer.

use crate::{Batch, Objective};
use candle_core::{Result, Tensor, Var, backprop::GradStore};
use mc_backend::in_pool;
use mc_models::{Adapter, CausalLM, Pass};

/// What a backward pass needs.
#[derive(Clone, Copy)]
pub struct Differentiated<'a> {
    /// The frozen model.
    pub model: &'a dyn CausalLM,
    /// What adds the variables to it. For [`checkpointed_backward`] it must compute the same each time it is asked.
    pub adapter: &'a dyn Adapter,
    /// What the gradients are of.
    pub objective: &'a dyn Objective,
    /// What the summed loss is multiplied with, such as one divided by the number of tokens.
    pub scale: f64,
}

impl Differentiated<'_> {
    fn pass(&self) -> Pass<'_> {
        Pass { adapter: Some(self.adapter), ..Pass::default() }
    }

    fn loss(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        self.objective.loss(&self.model.norm(x)?, self.model.head(), batch)? * self.scale
    }
}

/// The loss of a batch and its gradients. Everything that the backward pass needs is kept from the forward pass.
pub fn backward(what: &Differentiated, batch: &Batch) -> Result<(Tensor, GradStore)> {
    in_pool(|| plain(what, batch))
}

fn plain(what: &Differentiated, batch: &Batch) -> Result<(Tensor, GradStore)> {
    let mut x = what.model.embed(&batch.ids, batch.shape)?;
    for index in 0..what.model.num_blocks() {
        x = what.model.block(index, &x, &mut what.pass())?;
    }
    let loss = what.loss(&x, batch)?;
    drop(x);
    let grads = mc_backend::backward(&loss)?;
    Ok((loss.detach(), grads))
}

/// What [`backward`] gives for these variables, in less memory: only the inputs of the blocks are kept, and each block
/// but the last is computed a second time when its turn comes (Chen et al., "Training Deep Nets with Sublinear Memory
/// Cost", 2016).
pub fn checkpointed_backward(
    what: &Differentiated,
    batch: &Batch,
    variables: &[(String, Var)],
) -> Result<(Tensor, GradStore)> {
    in_pool(|| checkpointed(what, batch, variables))
}

fn checkpointed(what: &Differentiated, batch: &Batch, variables: &[(String, Var)]) -> Result<(Tensor, GradStore)> {
    let last = what.model.num_blocks().saturating_sub(1);
    let mut inputs = Vec::with_capacity(last + 1);
    let mut x = what.model.embed(&batch.ids, batch.shape)?;
    for index in 0..last {
        // Detached, a block's graph goes as soon as its output is there.
        let y = what.model.block(index, &x, &mut what.pass())?.detach();
        inputs.push(std::mem::replace(&mut x, y));
    }
    inputs.push(x);

    let mut grads = GradStore::default();
    let mut loss = None;
    // The gradient that flows into the block above.
    let mut gradient: Option<Tensor> = None;
    while let Some(input) = inputs.pop() {
        let index = inputs.len();
        // Nothing before the first block is trained.
        let x = if index == 0 { input } else { Var::from_tensor(&input)?.into_inner() };
        let y = what.model.block(index, &x, &mut what.pass())?;
        let seed = if let Some(gradient) = gradient.take() {
            // The gradient of this sum to `y` is exactly the gradient that came from above.
            (y * gradient)?.sum_all()?
        } else {
            let value = what.loss(&y, batch)?;
            loss = Some(value.detach());
            value
        };
        let mut found = mc_backend::backward(&seed)?;
        gradient = found.remove(&x);
        for (_, var) in variables {
            if let Some(g) = found.remove(var) {
                grads.insert(var, g);
            }
        }
        if gradient.is_none() {
            break;
        }
    }
    match loss {
        Some(loss) => Ok((loss, grads)),
        None => candle_core::bail!("a model without blocks has nothing to train"),
    }
}
