//! Trained variables as one flat vector: an optimizer step is a few large operations instead of many small ones.
//! Knows no optimizer.

use crate::{Error, Result};
use candle_core::{DType, Tensor, Var, backprop::GradStore, bail};
use std::collections::BTreeMap;

/// Named `f32` variables, and how they lie in a flat vector: one after the other, in the order given.
#[derive(Clone, Debug)]
pub(crate) struct Parameters(Vec<(String, Var)>);

impl Parameters {
    pub(crate) fn new(variables: &[(String, Var)]) -> Result<Self> {
        if variables.is_empty() {
            return Err(Error::config("variables", 0, "at least one to train"));
        }
        if let Some((name, var)) = variables.iter().find(|(_, var)| var.dtype() != DType::F32) {
            return Err(
                candle_core::Error::msg(format!("`{name}` is {:?}, trained variables are f32", var.dtype())).into()
            );
        }
        Ok(Self(variables.to_vec()))
    }

    /// The variables' values, a copy.
    pub(crate) fn gather(&self) -> candle_core::Result<Tensor> {
        concatenate(self.0.iter().map(|(_, var)| var.as_detached_tensor()))
    }

    /// Sets the variables.
    pub(crate) fn scatter(&self, flat: &Tensor) -> candle_core::Result<()> {
        self.0.iter().zip(self.split(flat)?).try_for_each(|((_, var), value)| var.set(&value))
    }

    /// The gradients of all variables; that of every one must be there.
    pub(crate) fn gradient(&self, grads: &GradStore) -> Result<Tensor> {
        let missing: Vec<_> =
            self.0.iter().filter(|(_, var)| grads.get(var).is_none()).map(|(name, _)| name.clone()).collect();
        if !missing.is_empty() {
            return Err(Error::NoGradient { names: missing });
        }
        Ok(concatenate(self.0.iter().filter_map(|(_, var)| grads.get(var)).cloned())?)
    }

    /// The parts of a flat vector, under the variables' names after a prefix.
    pub(crate) fn named<'a>(
        &'a self,
        prefix: &'a str,
        flat: &Tensor,
    ) -> candle_core::Result<impl Iterator<Item = (String, Tensor)> + 'a> {
        let parts = self.split(flat)?;
        Ok(self.0.iter().zip(parts).map(move |((name, _), value)| (format!("{prefix}.{name}"), value)))
    }

    /// The flat vector of what [`Parameters::named`] gave names.
    pub(crate) fn join_named(&self, prefix: &str, tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<Tensor> {
        let part = |(name, var): &(String, Var)| {
            let name = format!("{prefix}.{name}");
            match tensors.get(&name) {
                Some(t) if t.dims() == var.dims() && t.dtype() == DType::F32 => t.to_device(var.device()),
                Some(t) => bail!("`{name}` is {:?}, the adapter's is {:?}", t.dims(), var.dims()),
                None => bail!("no `{name}`"),
            }
        };
        concatenate(self.0.iter().map(part).collect::<candle_core::Result<Vec<_>>>()?.into_iter())
    }

    fn split(&self, flat: &Tensor) -> candle_core::Result<Vec<Tensor>> {
        let mut start = 0;
        let part = |(_, var): &(String, Var)| {
            let len = var.elem_count();
            start += len;
            flat.narrow(0, start - len, len)?.reshape(var.shape())
        };
        self.0.iter().map(part).collect()
    }
}

fn concatenate(parts: impl Iterator<Item = Tensor>) -> candle_core::Result<Tensor> {
    let parts = parts.map(|part| part.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
    match parts.as_slice() {
        // Of a single tensor, candle's `cat` is that tensor, which may be a variable that changes.
        [one] => one.copy(),
        parts => Tensor::cat(parts, 0),
    }
}
