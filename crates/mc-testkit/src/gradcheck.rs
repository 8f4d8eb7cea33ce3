//! Holds candle's backward pass against central differences. Knows nothing of the function it checks.

use crate::close::{Tolerance, coordinates, values, worst_miss};
use crate::random;
use candle_core::{DType, Device, Result, Tensor, Var};

/// Rounding of f64 in a difference quotient: about 1e-16/1e-5 = 1e-11 of the sum, which has many times the size of one gradient.
const TOLERANCE: Tolerance = Tolerance { absolute: 1e-6, relative: 1e-6 };

/// Checks the gradient of `f` in every element of every input, to 1e-6 of the largest gradient of that input.
///
/// `inputs` are f64 tensors on the CPU, of any shape; `f` gets them contiguous (take strided views inside `f`) and
/// returns one f64 tensor of any shape. The output is weighted with a fixed random cotangent and summed; candle's
/// gradients of that sum are compared with central differences of step 1e-5·max(1, |x|).
///
/// ```
/// use candle_core::DType;
/// use mc_testkit::{gradcheck, random};
///
/// let (a, b) = (random(1, (3, 4), DType::F64), random(2, (3, 5), DType::F64));
/// gradcheck("aᵀb", &[a, b], |x| x[0].t()?.matmul(&x[1]));
/// ```
///
/// # Panics
/// When a gradient is wrong, missing, or not finite, and when all gradients of an input are zero, since then nothing was checked.
#[track_caller]
pub fn gradcheck(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    gradcheck_with(name, inputs, TOLERANCE, f);
}

/// [`gradcheck`] with a tolerance of one's own.
///
/// # Panics
/// As [`gradcheck`] does.
#[track_caller]
pub fn gradcheck_with(name: &str, inputs: &[Tensor], tolerance: Tolerance, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let analytic = backward(name, inputs, &f);
    for (i, analytic) in analytic.iter().enumerate() {
        let numeric = central_differences(name, inputs, i, &f);
        if let Some(miss) = worst_miss(analytic, &numeric, tolerance) {
            panic!(
                "{name}: input {i}, element {:?}: the backward pass gives {:e}, central differences give {:e}, allowed {:e} apart ({} of {} elements are wrong)",
                coordinates(miss.index, inputs[i].dims()),
                miss.actual,
                miss.expected,
                miss.allowed,
                miss.count,
                numeric.len(),
            );
        }
        assert!(
            analytic.iter().any(|&g| g != 0.0),
            "{name}: input {i}: all gradients are zero, so nothing was checked"
        );
    }
}

/// The gradients by candle's backward pass, per input in row-major order.
#[track_caller]
fn backward(name: &str, inputs: &[Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f64>> {
    let run = || -> Result<_> {
        let vars = inputs.iter().map(|x| Var::from_tensor(&x.contiguous()?)).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let grads = weighted_sum(name, &f(&tensors)?)?.backward()?;
        Ok((tensors, grads))
    };
    let (tensors, grads) = run().unwrap_or_else(|error| panic!("{name}: {error}"));
    tensors
        .iter()
        .enumerate()
        .map(|(i, x)| {
            let grad = grads.get(x).unwrap_or_else(|| panic!("{name}: input {i} got no gradient"));
            assert_eq!(
                grad.dims(),
                x.dims(),
                "{name}: input {i}: shape of the gradient (left) and of the input (right)"
            );
            values(name, grad)
        })
        .collect()
}

/// The gradients of input `i` by central differences, in row-major order.
#[track_caller]
fn central_differences(name: &str, inputs: &[Tensor], i: usize, f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<f64> {
    let x = values(name, &inputs[i]);
    let at = |element: usize, value: f64| -> f64 {
        let run = || -> Result<f64> {
            let mut moved = x.clone();
            moved[element] = value;
            let mut tensors = inputs.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
            tensors[i] = Tensor::from_vec(moved, inputs[i].shape(), &Device::Cpu)?;
            weighted_sum(name, &f(&tensors)?)?.to_scalar()
        };
        run().unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    (0..x.len())
        .map(|element| {
            let step = 1e-5 * x[element].abs().max(1.0);
            let (above, below) = (x[element] + step, x[element] - step);
            (at(element, above) - at(element, below)) / (above - below)
        })
        .collect()
}

/// The output as one number: summed under a fixed random cotangent, so that errors of opposite sign do not cancel.
fn weighted_sum(name: &str, output: &Tensor) -> Result<Tensor> {
    assert_eq!(output.dtype(), DType::F64, "{name}: dtype of the output: differences need f64 throughout");
    (output * random(0x00c0_7a46, output.shape(), DType::F64))?.sum_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{CpuStorage, CustomOp1, Layout, Shape};

    /// x², with a backward pass to choose.
    struct Square(fn(&Tensor, &Tensor) -> Result<Option<Tensor>>);

    impl CustomOp1 for Square {
        fn name(&self) -> &'static str {
            "square"
        }

        fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            let (start, end) = layout.contiguous_offsets().expect("contiguous");
            let x = &storage.as_slice::<f64>()?[start..end];
            Ok((CpuStorage::F64(x.iter().map(|x| x * x).collect()), layout.shape().clone()))
        }

        fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            (self.0)(x, grad)
        }
    }

    fn check(backward: fn(&Tensor, &Tensor) -> Result<Option<Tensor>>) {
        gradcheck("square", &[random(1, (3, 5), DType::F64)], |x| x[0].apply_op1(Square(backward)));
    }

    #[test]
    fn a_right_gradient_passes() {
        check(|x, grad| Ok(Some(((x * grad)? * 2.0)?)));
    }

    #[test]
    #[should_panic(expected = "square: input 0, element [")]
    fn a_wrong_gradient_fails() {
        check(|x, grad| Ok(Some(((x * grad)? * 2.0001)?)));
    }

    #[test]
    #[should_panic(expected = "input 0, element [2, 4]")]
    fn one_wrong_element_fails() {
        check(|x, grad| {
            let wrong =
                (Tensor::arange(0.0, 15.0, &Device::Cpu)?.reshape((3, 5))?.ge(14.0)?.to_dtype(DType::F64)? * 1e-3)?;
            Ok(Some(((x * grad)? * 2.0)?.add(&wrong)?))
        });
    }

    #[test]
    #[should_panic(expected = "input 0 got no gradient")]
    fn a_missing_gradient_fails() {
        check(|_, _| Ok(None));
    }

    #[test]
    #[should_panic(expected = "input 0 got no gradient")]
    fn a_cut_graph_fails() {
        gradcheck("detached", &[random(1, 4, DType::F64)], |x| x[0].detach().sqr());
    }

    #[test]
    #[should_panic(expected = "input 1 got no gradient")]
    fn a_second_input_without_a_gradient_fails() {
        let inputs = [random(1, 4, DType::F64), random(2, 4, DType::F64)];
        gradcheck("half cut", &inputs, |x| &x[0] * x[1].detach());
    }

    #[test]
    #[should_panic(expected = "square: input 0, element [")]
    fn a_zero_gradient_fails() {
        check(|x, _| Ok(Some(x.zeros_like()?)));
    }

    #[test]
    #[should_panic(expected = "all gradients are zero")]
    fn a_function_that_ignores_its_input_fails() {
        gradcheck("times zero", &[random(1, 4, DType::F64)], |x| &x[0] * x[0].zeros_like()?.detach());
    }

    #[test]
    #[should_panic(expected = "NaN")]
    fn a_nan_gradient_fails() {
        check(|x, _| Ok(Some((x * f64::NAN)?)));
    }

    #[test]
    #[should_panic(expected = "dtype of the output")]
    fn a_narrow_output_fails() {
        gradcheck("f32", &[random(1, 4, DType::F64)], |x| x[0].to_dtype(DType::F32));
    }

    #[test]
    fn views_scalars_and_large_values_pass() {
        let (x, y) = (random(3, (2, 3, 4), DType::F64), (random(4, (), DType::F64) * 1e4).unwrap());
        gradcheck("views", &[x.transpose(0, 2).unwrap(), y], |x| {
            x[0].transpose(0, 1)?.narrow(2, 1, 1)?.squeeze(2)?.t()?.exp()?.broadcast_mul(&x[1])
        });
    }
}
