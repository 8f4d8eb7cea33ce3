//! Frozen projections of one input that are kept as the kernels read them.
//!
//! An encoder reads short texts, each once, so packing its matrices for every call would cost more than the products. They
//! are packed at their first use and stay so; the pages of the file that they came from are the system's to take back.
//! A projection by itself has its gradient in [`super::linear`].

use super::{
    Linear,
    group::{Group, Stage},
};
use crate::Weight;
use candle_core::{DType, Result, Tensor};
use std::sync::OnceLock;

/// Frozen projections that read the same input, each `x·Wᵀ + bias`.
#[derive(Debug)]
pub struct Projections {
    members: Vec<(Weight, Option<Tensor>)>,
    packed: OnceLock<Option<Packed>>,
}

/// Projections as the kernels read them.
pub(super) struct Packed {
    pub(super) group: Group,
    pub(super) stage: Stage,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").finish_non_exhaustive()
    }
}

impl Projections {
    /// Projections by these matrices `(out, in)` and biases `(out)`.
    pub fn new(members: Vec<(Weight, Option<Tensor>)>) -> Self {
        Self { members, packed: OnceLock::new() }
    }

    /// The same as another device would hold them: plain tensors of `dtype`.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn plain(&self, dtype: DType) -> Result<Self> {
        let plain = |(weight, bias): &(Weight, Option<Tensor>)| {
            Ok((weight.plain(dtype)?, bias.as_ref().map(|b| b.to_dtype(dtype)).transpose()?))
        };
        Ok(Self::new(self.members.iter().map(plain).collect::<Result<_>>()?))
    }

    /// Each projection's width of input and of output.
    pub(super) fn widths(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.members.iter().map(|(weight, _)| (weight.cols(), weight.rows()))
    }

    pub(super) fn linears(&self) -> Vec<Linear<'_>> {
        let linear = |(weight, bias)| Linear { weight, bias, lora: None };
        self.members.iter().map(|(weight, bias)| linear((weight, bias.as_ref()))).collect()
    }

    /// As the kernels read them; `None` where they cannot.
    pub(super) fn packed(&self) -> Result<Option<&Packed>> {
        if self.packed.get().is_none() {
            let linears = self.linears();
            let group = Group::new(&linears.iter().collect::<Vec<_>>())?;
            let packed = group.map(|group| group.forward().map(|stage| Packed { group, stage })).transpose()?;
            // Of two threads that pack at the same time, one has worked in vain.
            let _ = self.packed.set(packed);
        }
        Ok(self.packed.get().and_then(Option::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() -> Result<()> {
        let members = vec![(Weight::from_tensor(&random(1, (5, 3), DType::F64))?, Some(random(2, 5, DType::F64)))];
        let projections = Projections::new(members).plain(DType::F64)?;
        assert_eq!(projections.widths().collect::<Vec<_>>(), [(3, 5)]);
        assert!(projections.packed()?.is_none());
        let linear = &projections.linears()[0];
        gradcheck("projections", &[random(3, (2, 3), DType::F64)], |x| ops::linear(&x[0], linear.weight, linear.bias));
        Ok(())
    }
}
