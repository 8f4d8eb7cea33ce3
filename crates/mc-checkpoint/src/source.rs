//! Where a model's tensors come from: the one trait that all formats implement. Knows no format.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use mc_backend::Weight;
use std::collections::HashMap;

/// Named tensors that a model is loaded from.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use mc_checkpoint::{MemorySource, WeightSource};
/// let norm = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
/// let source = MemorySource::new([("norm.weight".to_string(), norm)].into());
/// assert_eq!(source.shape("norm.weight"), Some(vec![2]));
/// let wrong = source.tensor("norm.weight", &[3], &Device::Cpu, DType::F32).unwrap_err();
/// assert_eq!(wrong.to_string(), "memory: tensor `norm.weight` is (2), expected (3)");
/// # Ok::<(), candle_core::Error>(())
/// ```
pub trait WeightSource: Send + Sync {
    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<String>;

    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// The shape of a tensor, outermost dimension first.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The dtype a tensor is stored in; `None` also if candle has no such dtype.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// The frozen matrix `name` of shape `(rows, cols)`, stored in `dtype`, or in the source's own where that is `None`.
    ///
    /// On the CPU and without a change of dtype, the rows stay where they lie.
    ///
    /// # Errors
    /// If there is no such tensor, its shape is another one, or it is not of floating-point numbers.
    fn weight(&self, name: &str, shape: (usize, usize), device: &Device, dtype: Option<DType>) -> Result<Weight>;

    /// The tensor `name` of the shape given, as a copy in `dtype`: for what is small, such as norms and biases.
    ///
    /// # Errors
    /// If there is no such tensor, its shape is another one, or its dtype is not `dtype` and one of the two is no float.
    fn tensor(&self, name: &str, shape: &[usize], device: &Device, dtype: DType) -> Result<Tensor>;

    /// Begins to read in the background what would otherwise be read when it is first used.
    ///
    /// It changes nothing but when; a source that has nothing to read does nothing.
    fn read_ahead(&self) {}

    /// As [`WeightSource::read_ahead`], but into the system's cache and not into this process's memory: for who reads each tensor
    /// once.
    fn read_into_cache(&self) {}
}

/// Tensors in memory, for tests and for models made at random.
#[derive(Clone, Debug, Default)]
pub struct MemorySource(HashMap<String, Tensor>);

impl MemorySource {
    /// A source of these tensors.
    pub fn new(tensors: HashMap<String, Tensor>) -> Self {
        Self(tensors)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor =
            self.0.get(name).ok_or_else(|| Error::missing_tensor(MEMORY, name, self.0.keys().map(String::as_str)))?;
        check_shape(MEMORY, name, tensor.dims(), shape)?;
        Ok(tensor)
    }
}

impl WeightSource for MemorySource {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).map(|t| t.dims().to_vec())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.0.get(name).map(Tensor::dtype)
    }

    fn weight(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        device: &Device,
        dtype: Option<DType>,
    ) -> Result<Weight> {
        let found = self.get(name, &[rows, cols])?.dtype();
        if !is_plain_float(found) {
            return Err(Error::dtype(MEMORY, name, found, DType::F32));
        }
        let dtype = dtype.unwrap_or(found);
        Ok(Weight::from_tensor(&self.tensor(name, &[rows, cols], device, dtype)?)?)
    }

    fn tensor(&self, name: &str, shape: &[usize], device: &Device, dtype: DType) -> Result<Tensor> {
        let tensor = self.get(name, shape)?;
        if !converts(tensor.dtype(), dtype) {
            return Err(Error::dtype(MEMORY, name, tensor.dtype(), dtype));
        }
        Ok(tensor.to_dtype(dtype)?.to_device(device)?.copy()?.detach())
    }
}

const MEMORY: &str = "memory";

pub(crate) fn check_shape(file: &str, name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_vec(), expected.to_vec());
    Err(Error::Shape { file: file.into(), tensor: name.into(), found, expected })
}

/// Floats convert to floats; whole numbers mean ids or packed bits, and are never converted.
pub(crate) fn converts(found: DType, expected: DType) -> bool {
    found == expected || is_plain_float(found) && is_plain_float(expected)
}

/// The dtypes of numbers that stand for themselves; those of 8 bits and less need scales from elsewhere.
pub(crate) fn is_plain_float(dtype: DType) -> bool {
    matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
}
