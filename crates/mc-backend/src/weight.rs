//! A frozen matrix: read by the ops, never an input of the graph.
//!
//! On the CPU its rows stay as they lie in the file, `bf16`, `f16` or `f32`, usually memory-mapped; the kernels widen
//! them as they go. On other devices it is a candle tensor. Knows nothing of names or files.

use crate::{
    computation::{Computation, Products},
    kernels::{
        self,
        compact::{self, Compact},
        cpu,
        tile::Arithmetic,
    },
    memory,
};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use std::{
    fmt,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The read for a few rows at which a matrix gets its compact form.
const PATIENCE: u32 = 4;
/// Numbers of a matrix below which it stays in the cache anyhow.
const SMALL: usize = 64 * 1024;

/// Who keeps a weight's bytes alive: a memory map, a vector, static data.
pub trait Bytes: Send + Sync {
    /// All of them, the same each time.
    fn bytes(&self) -> &[u8];

    /// All of them will be read soon.
    fn will_be_read(&self) {}

    /// Some of them were copied and will hardly be read again: whoever can get them back at any time may let their memory go.
    fn release(&self, _range: Range<usize>) {}
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Bytes for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Shared [`Bytes`].
pub type Owner = Arc<dyn Bytes>;

/// A frozen matrix of shape `(rows, cols)`, row-major: for a projection `(out, in)`, for an embedding `(vocabulary, hidden)`.
///
/// Cloning shares the data.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mc_backend::{Weight, ops};
/// let weight = Weight::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?)?;
/// let x = Tensor::new(&[[1f32, 1.]], &Device::Cpu)?;
/// assert_eq!(ops::linear(&x, &weight, None)?.to_vec2::<f32>()?, [[3., 7., 11.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Weight {
    rows: usize,
    cols: usize,
    dtype: DType,
    arithmetic: Arithmetic,
    kept: Arithmetic,
    data: Data,
    repeated: Arc<Repeated>,
}

/// What becomes of a matrix that is read again and again for a few rows.
#[derive(Default)]
struct Repeated {
    reads: AtomicU32,
    /// Empty until it is made, `None` if it should not be.
    compact: OnceLock<Option<Compact>>,
}

#[derive(Clone)]
enum Data {
    /// Aligned for `dtype`, exactly `rows * cols` elements.
    Bytes(Owner, Range<usize>),
    /// Of another dtype than the matrix, which gets its own when it is read.
    Converted(Arc<Converted>),
    Tensor(Tensor),
}

struct Converted {
    owner: Owner,
    range: Range<usize>,
    found: DType,
    made: OnceLock<(Owner, Range<usize>)>,
}

/// The elements of a weight on the CPU.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl<'a> Elements<'a> {
    /// Bytes whose alignment and length were checked when the weight was made, so that the casts cannot fail.
    fn new(bytes: &'a [u8], dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => bytemuck::try_cast_slice(bytes).ok().map(Elements::F32),
            DType::F16 => bytemuck::try_cast_slice(bytes).ok().map(Elements::F16),
            DType::BF16 => bytemuck::try_cast_slice(bytes).ok().map(Elements::BF16),
            _ => None,
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::BF16(x) => x.len(),
        }
    }

    /// Element `i`, widened.
    pub(crate) fn get(self, i: usize) -> f32 {
        match self {
            Self::F32(x) => x[i],
            Self::F16(x) => x[i].to_f32(),
            Self::BF16(x) => x[i].to_f32(),
        }
    }
}

impl Weight {
    /// A matrix over bytes that somebody else owns, such as a memory map: little-endian, row-major, `f32`, `f16` or `bf16`.
    ///
    /// The bytes are used where they lie; only if they are not aligned for `dtype` are they copied.
    ///
    /// # Errors
    /// If the dtype is another one, or the range is out of bounds or not `rows * cols` elements long.
    pub fn from_bytes(owner: Owner, range: Range<usize>, dtype: DType, (rows, cols): (usize, usize)) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            bail!("a weight over bytes is f32, f16 or bf16, not {dtype:?}")
        }
        let size = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size_in_bytes()));
        let Some(bytes) = owner.bytes().get(range.clone()) else {
            bail!("bytes {range:?} of a weight are out of bounds")
        };
        if size != Some(bytes.len()) {
            bail!("a ({rows}, {cols}) {dtype:?} matrix needs {size:?} bytes, got {}", bytes.len())
        }
        let data = if bytes.as_ptr().align_offset(dtype.size_in_bytes()) == 0 {
            Data::Bytes(owner, range)
        } else {
            Data::aligned(bytes)
        };
        Ok(Self {
            rows,
            cols,
            dtype,
            arithmetic: Arithmetic::F32,
            kept: Arithmetic::F32,
            data,
            repeated: Arc::default(),
        })
    }

    /// A matrix from a tensor of shape `(rows, cols)`: copied on the CPU, shared on other devices.
    ///
    /// # Errors
    /// If the tensor is not a matrix of a floating-point dtype.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        let dtype = tensor.dtype();
        if !dtype.is_float() {
            bail!("a weight is a floating-point matrix, not {dtype:?}")
        }
        let tensor = tensor.detach().contiguous()?;
        let data = {
            let (storage, layout) = tensor.storage_and_layout();
            let (start, end) = (layout.start_offset(), layout.start_offset() + rows * cols);
            match &*storage {
                Storage::Cpu(CpuStorage::F32(v)) => Some(Data::aligned(bytemuck::cast_slice(&v[start..end]))),
                Storage::Cpu(CpuStorage::F16(v)) => Some(Data::aligned(bytemuck::cast_slice(&v[start..end]))),
                Storage::Cpu(CpuStorage::BF16(v)) => Some(Data::aligned(bytemuck::cast_slice(&v[start..end]))),
                _ => None,
            }
        };
        let data = data.unwrap_or(Data::Tensor(tensor));
        Ok(Self {
            rows,
            cols,
            dtype,
            arithmetic: Arithmetic::F32,
            kept: Arithmetic::F32,
            data,
            repeated: Arc::default(),
        })
    }

    /// The same matrix as a plain tensor of `dtype`, which is how other devices hold it: on the CPU no kernel reads it,
    /// and the composed ops read it without a copy.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn plain(&self, dtype: DType) -> Result<Self> {
        let (data, arithmetic) = (Data::Tensor(self.to_tensor(dtype)?), Arithmetic::F32);
        Ok(Self { dtype, data, arithmetic, repeated: Arc::default(), ..self.clone() })
    }

    /// The same matrix in another dtype. On the CPU it is converted when somebody reads it, and until then takes no memory:
    /// who packs it reads it once, a part at a time.
    ///
    /// # Errors
    /// If the dtype is not `f32`, `f16` or `bf16`, or the device has no memory for it.
    pub fn with_dtype(self, dtype: DType) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            bail!("a weight is converted to f32, f16 or bf16, not {dtype:?}")
        }
        if dtype == self.dtype {
            return Ok(self);
        }
        let data = match &self.data {
            Data::Tensor(t) if t.device().is_cpu() => return Self::from_tensor(&t.to_dtype(dtype)?),
            Data::Tensor(t) => Data::Tensor(t.to_dtype(dtype)?),
            Data::Bytes(owner, range) => {
                let (owner, range) = (owner.clone(), range.clone());
                Data::Converted(Arc::new(Converted { owner, range, found: self.dtype, made: OnceLock::new() }))
            }
            // Twice would round twice.
            Data::Converted(_) => return Self::from_tensor(&self.to_tensor(dtype)?),
        };
        Ok(Self { dtype, data, repeated: Arc::default(), ..self })
    }

    /// The same matrix for who reads it once: where it has to be converted, that does not stay.
    pub(crate) fn to_read_once(&self) -> Self {
        match &self.data {
            Data::Converted(converted) if converted.made.get().is_none() => {
                let (owner, range) = converted.convert(self.dtype);
                Self { data: Data::Bytes(owner, range), repeated: Arc::default(), ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// Lets memory go that the matrix can be read into again.
    pub(crate) fn release(&self) {
        match &self.data {
            Data::Bytes(owner, range) => owner.release(range.clone()),
            Data::Converted(converted) => converted.owner.release(converted.range.clone()),
            Data::Tensor(_) => {}
        }
    }

    /// Whether two matrices on the CPU are the same, byte for byte.
    pub fn has_numbers_of(&self, other: &Self) -> bool {
        let same = (self.rows, self.cols, self.dtype) == (other.rows, other.cols, other.dtype);
        same && self.bytes().is_some() && self.bytes() == other.bytes()
    }

    /// Where its bytes lie, if they do.
    fn bytes(&self) -> Option<&[u8]> {
        let (owner, range) = match &self.data {
            Data::Bytes(owner, range) => (owner, range),
            Data::Converted(converted) => {
                let (owner, range) = converted.made.get_or_init(|| converted.convert(self.dtype));
                (owner, range)
            }
            Data::Tensor(_) => return None,
        };
        Some(&owner.bytes()[range.clone()])
    }

    /// Number of rows: of a projection the width of its output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: of a projection the width of its input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The dtype the matrix is stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same matrix, whose products round their inputs to what `arithmetic` says; a new one computes in `f32`.
    ///
    /// Only the kernels of the CPU heed it, and only where the CPU multiplies `bf16` in hardware: elsewhere, and for a
    /// few rows at a time, where reading the matrix is what costs, inputs are taken as they are.
    #[must_use]
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        let arithmetic = if cpu::has_bf16() { arithmetic } else { Arithmetic::F32 };
        Self { arithmetic, ..self }
    }

    /// The same matrix; what a feed-forward half keeps of gate and up until the backward pass is rounded to what `kept` says, if both
    /// say so: most of what training keeps. A new one keeps `f32`.
    ///
    /// Only the kernels of the CPU heed it, on any CPU.
    #[must_use]
    pub fn with_kept(self, kept: Arithmetic) -> Self {
        Self { kept, ..self }
    }

    /// What is kept of the matrix's outputs is rounded to this.
    pub(crate) fn kept(&self) -> Arithmetic {
        self.kept
    }

    /// What products with the matrix round their inputs to.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// In what products of many rows with the matrix are computed.
    pub fn computation(&self) -> Computation {
        let products = if self.device().is_cpu() { self.arithmetic.into() } else { Products::OfDevice };
        Computation { weights: self.dtype, products }
    }

    /// The device the matrix is on.
    pub fn device(&self) -> Device {
        match &self.data {
            Data::Bytes(..) | Data::Converted(_) => Device::Cpu,
            Data::Tensor(t) => t.device().clone(),
        }
    }

    /// The whole matrix as a tensor `(rows, cols)` of `dtype`; widened or copied where it has to be.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor> {
        match (&self.data, self.to_read_once().bytes()) {
            (Data::Tensor(t), _) => t.to_dtype(dtype),
            (_, Some(bytes)) => {
                Tensor::from_raw_buffer(bytes, self.dtype, &[self.rows, self.cols], &Device::Cpu)?.to_dtype(dtype)
            }
            (_, None) => bail!("{self:?} has no bytes"),
        }
    }

    /// Up to `count` numbers, evenly spaced on the diagonal from the first on, in `f32`: enough to tell one trained matrix from another.
    ///
    /// A matrix of another dtype than its file's stays unconverted.
    ///
    /// # Errors
    /// If the device fails.
    pub fn sample(&self, count: usize) -> Result<Vec<f32>> {
        let count = count.min(self.rows.max(self.cols));
        let places = (0..count).map(|i| (i * self.rows / count, i * self.cols / count));
        let numbers = match &self.data {
            Data::Bytes(owner, range) => Elements::new(&owner.bytes()[range.clone()], self.dtype),
            Data::Converted(from) => Elements::new(&from.owner.bytes()[from.range.clone()], from.found),
            Data::Tensor(t) => {
                let rows = Tensor::from_iter(places.clone().map(|(row, _)| row as u32), t.device())?;
                let rows = t.index_select(&rows, 0)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                return Ok(rows.iter().zip(places).map(|(row, (_, col))| row[col]).collect());
            }
        };
        let Some(numbers) = numbers else { bail!("{self:?} has no numbers that the kernels read") };
        let rounded = |x: f32| match self.dtype {
            DType::BF16 => bf16::from_f32(x).to_f32(),
            DType::F16 => f16::from_f32(x).to_f32(),
            _ => x,
        };
        Ok(places.map(|(row, col)| rounded(numbers.get(row * self.cols + col))).collect())
    }

    /// The sum of squares of each row, in `f32`, shape `(rows)`.
    pub fn row_square_sums(&self) -> Result<Tensor> {
        match self.elements() {
            Some(elements) => {
                let mut sums = vec![0f32; self.rows];
                kernels::rows::square_sums(elements, self.cols, &mut sums);
                Tensor::from_vec(sums, self.rows, &Device::Cpu)
            }
            None => self.to_tensor(DType::F32)?.sqr()?.sum(1),
        }
    }

    /// The compact form of a `bf16` matrix, for a product with a few rows.
    ///
    /// It is made when the matrix is read for the [`PATIENCE`]th time: making it costs reading the matrix twice, and new pages,
    /// and a program that asks for one token should not wait for it. And only while half of the machine's memory stays free.
    pub(crate) fn compact(&self) -> Option<&Compact> {
        let Some(Elements::BF16(elements)) = self.elements() else { return None };
        if let Some(form) = self.repeated.compact.get() {
            return form.as_ref();
        }
        // Only one thread sees this number. The others go on as before: both forms give the same.
        if self.repeated.reads.fetch_add(1, Ordering::Relaxed) + 1 != PATIENCE {
            return None;
        }
        let worth = elements.len() >= SMALL && memory::is_memory_plentiful(compact::bytes(self.rows, self.cols));
        let form = if worth { Compact::new(elements, self.cols) } else { None };
        tracing::trace!(rows = self.rows, cols = self.cols, made = form.is_some(), "compact form of a matrix");
        self.repeated.compact.get_or_init(|| form).as_ref()
    }

    /// The elements where they lie, if the matrix is on the CPU in a dtype the kernels read.
    pub(crate) fn elements(&self) -> Option<Elements<'_>> {
        let bytes = self.bytes()?;
        Elements::new(bytes, self.dtype)
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({}, {}; {:?}, {:?})", self.rows, self.cols, self.dtype, self.device().location())
    }
}

/// Bytes that are aligned for every dtype, and how many there are.
struct Words(Vec<u64>, usize);

impl Words {
    fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(8)], len)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..self.1]
    }
}

impl Bytes for Words {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0)[..self.1]
    }
}

impl Data {
    /// A copy that is aligned for every dtype.
    fn aligned(bytes: &[u8]) -> Self {
        let mut words = Words::new(bytes.len());
        words.bytes_mut().copy_from_slice(bytes);
        Self::Bytes(Arc::new(words), 0..bytes.len())
    }
}

impl Converted {
    fn convert(&self, dtype: DType) -> (Owner, Range<usize>) {
        fn each<T: Copy>(from: Elements, to: &mut [T], of: impl Fn(f32) -> T) {
            to.iter_mut().enumerate().for_each(|(i, to)| *to = of(from.get(i)));
        }
        let bytes = &self.owner.bytes()[self.range.clone()];
        let mut words = Words::new(bytes.len() / self.found.size_in_bytes() * dtype.size_in_bytes());
        if let Some(from) = Elements::new(bytes, self.found) {
            match dtype {
                DType::F32 => each(from, bytemuck::cast_slice_mut(words.bytes_mut()), |x| x),
                DType::F16 => each(from, bytemuck::cast_slice_mut(words.bytes_mut()), f16::from_f32),
                _ => each(from, bytemuck::cast_slice_mut(words.bytes_mut()), bf16::from_f32),
            }
        }
        let all = 0..words.1;
        (Arc::new(words), all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_bytes_read_as_aligned_ones() -> Result<()> {
        let values = [1.5f32, -2., 0.25, 8.];
        let mut bytes = vec![7u8];
        bytes.extend_from_slice(bytemuck::cast_slice(&values));
        let weight = Weight::from_bytes(Arc::new(bytes), 1..17, DType::F32, (2, 2))?;
        assert_eq!(weight.to_tensor(DType::F64)?.to_vec2::<f64>()?, [[1.5, -2.], [0.25, 8.]]);
        assert!(weight.elements().is_some());
        Ok(())
    }

    /// The product before and after the matrix gets its compact form, from a clone that shares it, on any number of threads.
    #[test]
    fn what_is_read_again_and_again_gives_the_same() -> Result<()> {
        let (rows, cols) = (4000, 256);
        let numbers = |n: usize, by: usize| (0..n).map(move |i| ((i * by % 2003) as f32 - 1001.0) / 1001.0);
        let w = Tensor::from_iter(numbers(rows * cols, 7919), &Device::Cpu)?.reshape((rows, cols))?;
        let w = w.to_dtype(DType::BF16)?;
        let x = Tensor::from_iter(numbers(cols, 31), &Device::Cpu)?.reshape((1, cols))?;
        let product = |w: &Weight| crate::ops::linear(&x, w, None)?.flatten_all()?.to_vec1::<f32>();
        let first = product(&Weight::from_tensor(&w)?)?;
        let serves = compact::Code::of_this_cpu().is_some() && compact::serves(cols);
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let weight = Weight::from_tensor(&w)?;
            for _ in 0..PATIENCE + 2 {
                assert!(pool.install(|| product(&weight.clone()))? == first, "{threads} threads");
            }
            let made = weight.repeated.compact.get().is_some_and(Option::is_some);
            assert_eq!(made, serves && memory::is_memory_plentiful(compact::bytes(rows, cols)));
        }
        Ok(())
    }

    /// Up to so many rows read the matrix for each product as it lies; more are worth packing it.
    #[test]
    fn a_product_of_up_to_eight_rows_is_a_read_for_a_few_rows() -> Result<()> {
        let w = mc_testkit::random(1, (6, 10), DType::F32).to_dtype(DType::BF16)?;
        for (n, reads) in [(1, 1), (8, 1), (9, 0)] {
            let weight = Weight::from_tensor(&w)?;
            crate::ops::linear(&mc_testkit::random(2, (n, 10), DType::F32), &weight, None)?;
            assert_eq!(weight.repeated.reads.load(Ordering::Relaxed), reads, "{n} rows");
        }
        Ok(())
    }

    /// Until somebody reads it and after.
    #[test]
    fn another_dtype_is_that_of_the_whole_rounded() -> Result<()> {
        let (rows, cols) = (41, 3301);
        let x = mc_testkit::random(5, (rows, cols), DType::F32);
        for (from, to) in [(DType::F32, DType::BF16), (DType::F32, DType::F16), (DType::BF16, DType::F32)] {
            let x = x.to_dtype(from)?;
            let expected = x.to_dtype(to)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let weight = Weight::from_tensor(&x)?.with_dtype(to)?;
            assert_eq!(weight.dtype(), to);
            assert_eq!(weight.to_tensor(DType::F32)?.to_vec2::<f32>()?, expected);
            let Data::Converted(data) = &weight.data else { panic!("not converted") };
            assert!(data.made.get().is_none());
            let once = weight.to_read_once();
            let wide = |w: &Weight| w.elements().map(|e| (0..rows * cols).map(|i| e.get(i)).collect::<Vec<_>>());
            assert_eq!(wide(&once), Some(expected.concat()));
            assert!(data.made.get().is_none());
            assert_eq!(wide(&weight), Some(expected.concat()));
            assert!(data.made.get().is_some());
            // Rounded twice, as it was asked for.
            let twice = x.to_dtype(to)?.to_dtype(DType::F16)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            for made in [weight.clone(), Weight::from_tensor(&x)?.with_dtype(to)?] {
                let made = made.with_dtype(DType::F16)?;
                assert_eq!((made.dtype(), wide(&made)), (DType::F16, Some(twice.concat())));
            }
        }
        // Of a dtype that no kernel reads.
        let double = Weight::from_tensor(&x.to_dtype(DType::F64)?)?;
        assert!(double.elements().is_none() && double.with_dtype(DType::BF16)?.elements().is_some());
        Ok(())
    }

    /// However the matrix is kept, and whatever its dtype was in the file.
    #[test]
    fn a_sample_is_of_the_numbers_that_the_matrix_has() -> Result<()> {
        let x = mc_testkit::random(5, (3, 7), DType::F32);
        let sample = |w: &Weight, n| w.sample(n);
        let weight = Weight::from_tensor(&x)?;
        let rows = x.to_vec2::<f32>()?;
        let diagonal: Vec<f32> = (0..7).map(|i| rows[i * 3 / 7][i]).collect();
        assert_eq!(sample(&weight, 100)?, diagonal);
        assert_eq!(sample(&weight, 2)?, [rows[0][0], rows[1][3]]);
        let half = Weight::from_tensor(&x.to_dtype(DType::BF16)?)?;
        let expected = sample(&half, 100)?;
        assert!(expected != diagonal);
        let converted = weight.clone().with_dtype(DType::BF16)?;
        assert_eq!(sample(&converted, 100)?, expected);
        let Data::Converted(data) = &converted.data else { panic!("not converted") };
        assert!(data.made.get().is_none());
        assert_eq!(sample(&half.plain(DType::BF16)?, 100)?, expected);
        assert_eq!(sample(&half.with_dtype(DType::F32)?, 100)?, expected);
        Ok(())
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let bytes: Owner = Arc::new(vec![0u8; 16]);
        assert!(Weight::from_bytes(bytes.clone(), 0..16, DType::F32, (2, 3)).is_err());
        assert!(Weight::from_bytes(bytes.clone(), 0..32, DType::F32, (2, 4)).is_err());
        assert!(Weight::from_bytes(bytes.clone(), 0..16, DType::F32, (usize::MAX, 4)).is_err());
        assert!(Weight::from_bytes(bytes, 0..16, DType::U8, (4, 4)).is_err());
    }
}
