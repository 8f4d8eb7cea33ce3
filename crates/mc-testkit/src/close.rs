//! Comparing two tensors within a written tolerance. Knows nothing about what the numbers mean.

use candle_core::{DType, Device, Result, Tensor};

/// How far a value may lie from the expected one: `absolute + relative · max|expected|`.
///
/// The maximum runs over the whole expected tensor, since the rounding error of a sum follows its largest terms and
/// not its result: an element that cancels to almost zero is as inexact as its neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed on any value, in the unit of the values.
    pub absolute: f64,
    /// Allowed per unit of the largest expected magnitude.
    pub relative: f64,
}

impl Tolerance {
    /// A tolerance relative to the largest expected magnitude only.
    pub const fn relative(relative: f64) -> Self {
        Self { absolute: 0.0, relative }
    }

    /// A tolerance in the unit of the values only.
    pub const fn absolute(absolute: f64) -> Self {
        Self { absolute, relative: 0.0 }
    }
}

/// Panics unless both tensors have one shape and every element of `actual` is within `tolerance` of `expected`.
///
/// Any dtype and device: values are compared in f64 on the CPU. Equal infinities pass; NaN never does.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_testkit::{Tolerance, assert_close};
///
/// let expected = Tensor::new(&[1.0f32, -200.0], &Device::Cpu)?;
/// let actual = Tensor::new(&[1.0f32, -200.001], &Device::Cpu)?;
/// assert_close("scores", &actual, &expected, Tolerance::relative(1e-5));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Panics
/// When shapes differ or an element is too far off; the message names the worst element and both its values.
#[track_caller]
pub fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: Tolerance) {
    assert_eq!(actual.dims(), expected.dims(), "{what}: shape (left: actual, right: expected)");
    let (a, e) = (values(what, actual), values(what, expected));
    if let Some(miss) = worst_miss(&a, &e, tolerance) {
        let index = coordinates(miss.index, expected.dims());
        panic!(
            "{what}: element {index:?} is {:e}, expected {:e}: off by {:e}, allowed {:e} ({} of {} elements are too far off)",
            miss.actual,
            miss.expected,
            (miss.actual - miss.expected).abs(),
            miss.allowed,
            miss.count,
            e.len(),
        );
    }
}

/// The largest absolute difference of two tensors of one shape, in f64; NaN when any difference is.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn max_abs_diff(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims(), "shape (left: actual, right: expected)");
    let (a, e) = (values("actual", actual), values("expected", expected));
    // `total_cmp` ranks NaN above every number.
    a.iter().zip(&e).map(|(&a, &e)| difference(a, e)).max_by(f64::total_cmp).unwrap_or(0.0)
}

/// The cosine of the angle between two tensors of one shape, taken as flat vectors: −1 to 1.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn cosine(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims(), "shape (left: actual, right: expected)");
    let (a, e) = (values("actual", actual), values("expected", expected));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &e) / (dot(&a, &a) * dot(&e, &e)).sqrt()
}

/// The element furthest outside a tolerance.
pub(crate) struct Miss {
    pub(crate) index: usize,
    pub(crate) actual: f64,
    pub(crate) expected: f64,
    pub(crate) allowed: f64,
    pub(crate) count: usize,
}

pub(crate) fn worst_miss(actual: &[f64], expected: &[f64], tolerance: Tolerance) -> Option<Miss> {
    let scale = expected.iter().filter(|e| e.is_finite()).fold(0.0, |most: f64, e| most.max(e.abs()));
    let allowed = tolerance.absolute + tolerance.relative * scale;
    let off = |i: usize| difference(actual[i], expected[i]);
    let misses = || (0..expected.len()).filter(|&i| off(i).is_nan() || off(i) > allowed);
    let index = misses().max_by(|&i, &j| off(i).total_cmp(&off(j)))?;
    Some(Miss { index, actual: actual[index], expected: expected[index], allowed, count: misses().count() })
}

/// The absolute difference: 0 for equal infinities, NaN if either is.
#[expect(clippy::float_cmp, reason = "infinities are equal or they are not")]
fn difference(a: f64, e: f64) -> f64 {
    if a == e { 0.0 } else { (a - e).abs() }
}

/// The elements in row-major order, widened to f64.
#[track_caller]
pub(crate) fn values(what: &str, tensor: &Tensor) -> Vec<f64> {
    // To the CPU first: Metal has no f64.
    let read = || -> Result<Vec<f64>> {
        tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()
    };
    read().unwrap_or_else(|error| panic!("{what}: cannot be read: {error}"))
}

/// The coordinates of the element at `index` in row-major order.
pub(crate) fn coordinates(mut index: usize, dims: &[usize]) -> Vec<usize> {
    let mut coordinates: Vec<usize> = dims
        .iter()
        .rev()
        .map(|&d| {
            let c = index % d;
            index /= d;
            c
        })
        .collect();
    coordinates.reverse();
    coordinates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn dtypes_are_compared_in_f64() {
        let x = random(1, (3, 5), DType::F32);
        assert_close("f64", &x.to_dtype(DType::F64).unwrap(), &x, Tolerance::absolute(0.0));
        // bf16 keeps 8 bits: half a unit in the last place is at most 2⁻⁸ of the value.
        assert_close("bf16", &x.to_dtype(DType::BF16).unwrap(), &x, Tolerance::relative(1.0 / 256.0));
        assert_close("strided", &x.t().unwrap(), &x.t().unwrap().contiguous().unwrap(), Tolerance::absolute(0.0));
    }

    #[test]
    fn the_scale_is_that_of_the_whole_tensor() {
        assert_close("small beside large", &tensor(&[1e-4, 100.0]), &tensor(&[0.0, 100.0]), Tolerance::relative(1e-5));
    }

    #[test]
    #[should_panic(expected = "y: element [1, 0] is 4e0, expected 3e0")]
    fn the_worst_element_is_named() {
        let a = tensor(&[1.1, 2.0, 4.0, 4.0]).reshape((2, 2)).unwrap();
        let e = tensor(&[1.0, 2.0, 3.0, 4.0]).reshape((2, 2)).unwrap();
        assert_close("y", &a, &e, Tolerance::relative(1e-3));
    }

    #[test]
    #[should_panic(expected = "shape")]
    fn shapes_must_be_equal() {
        assert_close("y", &tensor(&[1.0]), &tensor(&[1.0, 1.0]), Tolerance::absolute(9.0));
    }

    #[test]
    #[should_panic(expected = "element [1] is NaN")]
    fn nan_fails() {
        assert_close("y", &tensor(&[1.0, f64::NAN]), &tensor(&[1.0, f64::NAN]), Tolerance::absolute(1e9));
    }

    #[test]
    #[should_panic(expected = "element [0] is inf")]
    fn an_infinity_does_not_widen_the_tolerance() {
        let e = tensor(&[1.0, f64::INFINITY]);
        assert_close("y", &tensor(&[f64::INFINITY, f64::INFINITY]), &e, Tolerance::relative(0.5));
    }

    #[test]
    fn distances() {
        let (a, b) = (tensor(&[3.0, 4.0]), tensor(&[4.0, 3.0]));
        assert!((max_abs_diff(&a, &b) - 1.0).abs() < 1e-15);
        assert!((cosine(&a, &b) - 24.0 / 25.0).abs() < 1e-15);
        assert!(max_abs_diff(&tensor(&[f64::NAN, 1.0]), &b).is_nan());
    }
}
