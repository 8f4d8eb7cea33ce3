//! Gives a computed value a gradient: the one door through which our ops enter candle's graph.
//!
//! Candle records an op of ours only as a `CustomOp1/2/3`, and such an op must produce its storage in `*_fwd`. So an
//! op here computes its value first, by whatever means, and is then grafted: a custom op that hands out the value it
//! was given, and whose backward is a closure. What the closure needs of the forward pass, it captures.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, backprop::GradStore, bail,
};
use std::{
    cell::RefCell,
    sync::{Arc, Mutex},
};

type Backward = Box<dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

/// What an op computed: a fresh buffer of a CPU kernel, or a tensor of any device.
pub(crate) enum Value {
    Cpu(Vec<f32>, Shape),
    Tensor(Tensor),
}

impl Value {
    pub(crate) fn cpu(data: Vec<f32>, shape: impl Into<Shape>) -> Self {
        Self::Cpu(data, shape.into())
    }
}

/// `value` as a tensor that depends on `args` through `backward`: gradient of the value → gradient of each argument,
/// in order, `None` where an argument has none.
pub(crate) fn graft<const N: usize>(
    args: [&Tensor; N],
    value: Value,
    backward: impl Fn(&Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !args.iter().any(|a| a.track_op()) {
        return match value {
            Value::Cpu(data, shape) => Tensor::from_vec(data, shape, args[0].device()),
            Value::Tensor(t) => Ok(t.detach()),
        };
    }
    let (storage, shape) = match value {
        Value::Cpu(data, shape) => (Storage::Cpu(CpuStorage::F32(data)), shape),
        Value::Tensor(t) => {
            let whole = t.is_contiguous() && t.layout().start_offset() == 0;
            let t = if whole { t } else { t.force_contiguous()? };
            let (storage, layout) = t.storage_and_layout();
            (storage.try_clone(layout)?, layout.shape().clone())
        }
    };
    let op = Graft {
        value: Mutex::new(Some(storage)),
        shape,
        backward: Box::new(move |g| Ok(Vec::from(backward(&g.contiguous()?)?))),
    };
    match args.as_slice() {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => bail!("an op has one to three differentiable arguments, this one has {N}"),
    }
}

/// As [`graft`] for one argument and any number of trained tensors, whose gradients come as a list.
///
/// Candle's custom ops have at most three arguments. So the trained tensors hang on a chain of scalar nodes, the end of
/// which is the op's second argument; the op's backward leaves their gradients where the chain's nodes fetch them, and
/// candle calls those later, because it goes through the graph in order.
pub(crate) fn graft_with(
    x: &Tensor,
    trained: &[&Tensor],
    value: Value,
    backward: impl Fn(&Tensor) -> Result<(Option<Tensor>, Vec<Tensor>)> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !trained.iter().any(|t| t.track_op()) {
        return graft([x], value, move |g| Ok([backward(g)?.0]));
    }
    let left = Arc::new(Mutex::new(Vec::<Option<Tensor>>::new()));
    let scalar = Tensor::zeros((), DType::F32, x.device())?;
    let mut chain: Option<Tensor> = None;
    for (i, tensor) in trained.iter().enumerate() {
        let (left, scalar) = (left.clone(), scalar.clone());
        let fetch = move || -> Result<Option<Tensor>> {
            let mut left = left.lock().map_err(|_| candle_core::Error::msg("a graft was poisoned"))?;
            Ok(left.get_mut(i).and_then(Option::take))
        };
        let value = Value::Tensor(scalar.clone());
        chain = Some(match &chain {
            None => graft([tensor], value, move |_| Ok([fetch()?]))?,
            Some(chain) => graft([chain, tensor], value, move |_| Ok([Some(scalar.clone()), fetch()?]))?,
        });
    }
    let chain = chain.unwrap_or_else(|| scalar.clone());
    graft([x, &chain], value, move |g| {
        let (dx, gradients) = backward(g)?;
        let mut left = left.lock().map_err(|_| candle_core::Error::msg("a graft was poisoned"))?;
        *left = gradients.into_iter().map(Some).collect();
        Ok([dx, Some(scalar.clone())])
    })
}

thread_local! {
    /// Gradients of variables, while [`backward`] runs.
    static OF_VARIABLES: RefCell<Option<GradStore>> = const { RefCell::new(None) };
}

/// What `loss.backward()` gives, in less work: candle adds every gradient to zeros that it makes first. Those that our
/// ops have for variables are kept as they are here, and added up only where there are several.
///
/// A plain `loss.backward()` must not run on the same thread meanwhile, as a job of rayon's that this one's thread takes
/// up while it waits: its gradients of variables would be found here.
///
/// # Errors
/// If a gradient cannot be computed.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    /// Puts back what was there before, also if a panic passes through.
    struct Outer(Option<GradStore>);
    impl Drop for Outer {
        fn drop(&mut self) {
            OF_VARIABLES.set(self.0.take());
        }
    }
    let outer = Outer(OF_VARIABLES.replace(Some(GradStore::default())));
    let mut grads = loss.backward()?;
    let of_variables = OF_VARIABLES.take();
    drop(outer);
    grads.extend(of_variables.unwrap_or_default())?;
    Ok(grads)
}

/// The gradient of an argument for candle; none if [`backward`] keeps it.
fn unless_kept(arg: &Tensor, grad: Option<Tensor>) -> Result<Option<Tensor>> {
    let Some(grad) = grad else { return Ok(None) };
    if !arg.is_variable() {
        return Ok(Some(grad));
    }
    OF_VARIABLES.with_borrow_mut(|kept| match kept {
        None => Ok(Some(grad)),
        Some(kept) => {
            let sum = match kept.remove(arg) {
                None => grad,
                Some(sum) => (sum + grad)?,
            };
            kept.insert(arg, sum);
            Ok(None)
        }
    })
}

struct Graft {
    value: Mutex<Option<Storage>>,
    shape: Shape,
    backward: Backward,
}

impl Graft {
    fn take(&self) -> Result<Storage> {
        let mut value = self.value.lock().map_err(|_| candle_core::Error::msg("a graft was poisoned"))?;
        value.take().ok_or_else(|| candle_core::Error::msg("a graft was run twice"))
    }
    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(s) => Ok((s, self.shape.clone())),
            _ => bail!("arguments on the CPU, value elsewhere"),
        }
    }
    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(s) => Ok((s, self.shape.clone())),
            _ => bail!("arguments on CUDA, value elsewhere"),
        }
    }
    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            Storage::Metal(s) => Ok((s, self.shape.clone())),
            _ => bail!("arguments on Metal, value elsewhere"),
        }
    }
    fn grads<const N: usize>(&self, args: [&Tensor; N], grad: &Tensor) -> Result<[Option<Tensor>; N]> {
        let grads = args.into_iter().zip((self.backward)(grad)?).map(|(arg, grad)| unless_kept(arg, grad));
        let grads = grads.collect::<Result<Vec<_>>>()?;
        grads.try_into().map_err(|_| candle_core::Error::msg("a graft returned the wrong number of gradients"))
    }
}

impl CustomOp1 for Graft {
    fn name(&self) -> &'static str {
        "graft1"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }
    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }
    fn bwd(&self, a: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.grads([a], grad)?;
        Ok(a)
    }
}

impl CustomOp2 for Graft {
    fn name(&self) -> &'static str {
        "graft2"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }
    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }
    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.grads([a, b], grad)?;
        Ok((a, b))
    }
}

type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl CustomOp3 for Graft {
    fn name(&self) -> &'static str {
        "graft3"
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }
    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }
    fn bwd(&self, a: &Tensor, b: &Tensor, c: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Three> {
        let [a, b, c] = self.grads([a, b, c], grad)?;
        Ok((a, b, c))
    }
}

#[cfg(test)]
mod tests {
    use crate::{Weight, backward, ops};
    use candle_core::{DType, Result, Var};
    use mc_testkit::{Tolerance, assert_close, random};

    /// Of a variable that is read by two of our ops and by one of candle's, and of one that is read once.
    #[test]
    fn a_backward_pass_is_candles() -> Result<()> {
        let weight = Weight::from_tensor(&random(1, (6, 6), DType::F64))?;
        let [a, b] =
            [Var::from_tensor(&random(2, (4, 6), DType::F64))?, Var::from_tensor(&random(3, (4, 6), DType::F64))?];
        let y = ops::swiglu(&ops::linear(&a, &weight, None)?, &ops::swiglu(&a, &b)?)?;
        let loss = (y * a.as_tensor())?.sum_all()?;
        for _ in 0..2 {
            let (ours, candles) = (backward(&loss)?, loss.backward()?);
            for var in [&a, &b] {
                let (Some(ours), Some(candles)) = (ours.get(var), candles.get(var)) else { panic!("no gradient") };
                assert_close("gradient", ours, candles, Tolerance::relative(1e-12));
            }
            assert_eq!(ours.get_ids().count(), 2);
        }
        Ok(())
    }
}
