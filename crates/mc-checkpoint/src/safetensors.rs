//! Safetensors files, read where they lie: one, or shards with an index. Knows bytes, no tensor by name.
//!
//! The format: 8 bytes with the header's length (little-endian), a JSON header, the tensors' bytes without gaps
//! (<https://github.com/huggingface/safetensors>).

mod header;
mod write;

#[cfg(feature = "hub")]
pub(crate) use header::shards;
pub use write::{save_safetensors, stream_safetensors};

use crate::{
    Error, Result,
    source::{WeightSource, check_shape, converts, is_plain_float},
};
use candle_core::{DType, Device, Tensor};
use header::{Entry, Header};
use mc_backend::{
    Weight,
    weight::{Bytes, Owner},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::Range,
    path::Path,
    sync::Arc,
};

/// The tensors of one safetensors file, or of the shards that an index lists.
///
/// Files are mapped into memory read-only, so only what is used is read, and it is read when it is used. Nobody may
/// shorten or rewrite a file in place while it is open; replacing it by a rename, as this crate does, is fine.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use mc_checkpoint::{SafeTensors, WeightSource, save_safetensors};
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("model.safetensors");
/// let embedding = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// save_safetensors(&path, &[("embed.weight".to_string(), embedding)].into(), None)?;
///
/// let source = SafeTensors::open(&path)?;
/// assert_eq!(source.names(), ["embed.weight"]);
/// let weight = source.weight("embed.weight", (2, 2), &Device::Cpu, None)?;
/// assert_eq!(weight.to_tensor(DType::F32)?.to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SafeTensors {
    /// What an error calls the whole: the file, or the index of the shards.
    name: String,
    files: Vec<Mapped>,
    tensors: HashMap<String, (usize, Entry)>,
    metadata: BTreeMap<String, String>,
}

struct Mapped {
    name: String,
    bytes: Owner,
}

impl SafeTensors {
    /// Opens one file and checks its header.
    ///
    /// # Errors
    /// If it cannot be opened, or its header does not describe exactly the bytes that follow it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_owner(path.display().to_string(), map(path)?)
    }

    /// Opens the shards that an index (`model.safetensors.index.json`) lists, in the index's directory.
    ///
    /// # Errors
    /// If the index is not valid, a shard is missing, not valid or outside the directory, or a tensor is not in the shard
    /// that the index gives.
    pub fn open_sharded(index: impl AsRef<Path>) -> Result<Self> {
        let index = index.as_ref();
        let text = crate::read_limited(index)?.ok_or_else(|| Error::Missing {
            path: index.display().to_string(),
            what: "no such file".into(),
            hint: None,
        })?;
        let dir = index.parent().unwrap_or(Path::new(""));
        Self::from_index(index.display().to_string(), &text, |shard| {
            let path = dir.join(shard);
            let file = path.display().to_string();
            path.try_exists().map_err(Error::io(&path))?.then(|| map(&path)).transpose().map(|bytes| (file, bytes))
        })
    }

    /// Reads a file that is in memory already; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: impl Bytes + 'static) -> Result<Self> {
        Self::from_owner(name.into(), Arc::new(bytes))
    }

    /// The strings in the file's `__metadata__`; of shards, those of the first.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The elements of a tensor where they lie, row-major and little-endian; `shape` and `dtype` are what it must have.
    ///
    /// # Errors
    /// If there is no such tensor, or it has another shape or dtype.
    pub fn bytes(&self, name: &str, shape: &[usize], dtype: DType) -> Result<&[u8]> {
        let (file, entry) = self.get(name, shape)?;
        if DType::try_from(entry.dtype).ok() != Some(dtype) {
            return Err(Error::dtype(&file.name, name, entry.dtype, dtype));
        }
        Ok(&file.bytes.bytes()[entry.range.clone()])
    }

    fn from_owner(name: String, bytes: Owner) -> Result<Self> {
        let Header { tensors, metadata } = Header::parse(&name, bytes.bytes())?;
        let tensors = tensors.into_iter().map(|(n, e)| (n, (0, e))).collect();
        Ok(Self { files: vec![Mapped { name: name.clone(), bytes }], name, tensors, metadata })
    }

    /// `open` gives a shard's full name and its bytes, or no bytes if there is no such file.
    pub(crate) fn from_index(
        name: String,
        text: &[u8],
        mut open: impl FnMut(&str) -> Result<(String, Option<Owner>)>,
    ) -> Result<Self> {
        let mut all = Self { name, files: vec![], tensors: HashMap::new(), metadata: BTreeMap::new() };
        for (shard, wanted) in header::shards(&all.name, text)? {
            let (file, bytes) = open(&shard)?;
            let bytes = bytes.ok_or_else(|| Error::Missing {
                path: all.name.clone(),
                what: format!("shard {shard} is listed but not there"),
                hint: Some("download the model again; it is incomplete".into()),
            })?;
            let mut header = Header::parse(&file, bytes.bytes())?;
            for tensor in wanted {
                let Some(entry) = header.tensors.remove(&tensor) else {
                    let what = format!("tensor `{tensor}` is listed in {shard} but not there");
                    return Err(Error::invalid(&all.name, what));
                };
                all.tensors.insert(tensor, (all.files.len(), entry));
            }
            if all.files.is_empty() {
                all.metadata = header.metadata;
            }
            all.files.push(Mapped { name: file, bytes });
        }
        Ok(all)
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<(&Mapped, &Entry)> {
        let (file, entry) = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::missing_tensor(&self.name, name, self.tensors.keys().map(String::as_str)))?;
        let file = &self.files[*file];
        check_shape(&file.name, name, &entry.shape, shape)?;
        Ok((file, entry))
    }
}

/// Bytes of a page of memory, or of a part of one.
const PAGE: usize = 4096;

impl SafeTensors {
    /// Does it to each file on a thread of its own, if they fit well into memory.
    fn ahead(&self, what: impl Fn(&dyn Bytes) + Send + 'static) {
        let files: Vec<_> = self.files.iter().map(|file| file.bytes.clone()).collect();
        let size = files.iter().map(|file| file.bytes().len() as u64).sum();
        if !mc_backend::is_memory_plentiful(size) {
            return;
        }
        let all = move || files.iter().for_each(|file| what(&**file));
        if let Err(error) = std::thread::Builder::new().name("read-ahead".into()).spawn(all) {
            tracing::debug!("weights are read when they are used: {error}");
        }
    }
}

impl WeightSource for SafeTensors {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tensors.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(_, e)| e.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).and_then(|(_, e)| e.dtype.try_into().ok())
    }

    fn weight(&self, name: &str, shape: (usize, usize), device: &Device, dtype: Option<DType>) -> Result<Weight> {
        let (file, entry) = self.get(name, &[shape.0, shape.1])?;
        let found = self.dtype(name).filter(|d| is_plain_float(*d));
        let found = found.ok_or_else(|| Error::dtype(&file.name, name, entry.dtype, DType::F32))?;
        let lies = matches!(found, DType::F32 | DType::F16 | DType::BF16);
        if lies && device.is_cpu() && dtype.is_none_or(|d| d == found) {
            return Ok(Weight::from_bytes(file.bytes.clone(), entry.range.clone(), found, shape)?);
        }
        let tensor = self.tensor(name, &[shape.0, shape.1], device, dtype.unwrap_or(found))?;
        Ok(Weight::from_tensor(&tensor)?)
    }

    fn tensor(&self, name: &str, shape: &[usize], device: &Device, dtype: DType) -> Result<Tensor> {
        let (file, entry) = self.get(name, shape)?;
        let found = DType::try_from(entry.dtype).ok().filter(|found| converts(*found, dtype));
        let found = found.ok_or_else(|| Error::dtype(&file.name, name, entry.dtype, dtype))?;
        let bytes = &file.bytes.bytes()[entry.range.clone()];
        // Metal has no f64: such a file is converted before it goes there.
        let first = if found == DType::F64 { &Device::Cpu } else { device };
        Ok(Tensor::from_raw_buffer(bytes, found, shape, first)?.to_dtype(dtype)?.to_device(device)?)
    }

    /// Touches every page, on a thread of its own, if the files fit well into memory: otherwise what is read first
    /// would be gone again before it is used. Only on Linux, which says how much memory there is.
    fn read_ahead(&self) {
        self.ahead(|bytes| {
            for page in bytes.bytes().chunks(PAGE) {
                std::hint::black_box(page[0]);
            }
        });
    }

    fn read_into_cache(&self) {
        self.ahead(|bytes| bytes.will_be_read());
    }
}

impl std::fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SafeTensors({}, {} tensors)", self.name, self.tensors.len())
    }
}

fn map(path: &Path) -> Result<Owner> {
    if crate::read::look(path)?.is_some_and(|found| found.len() == 0) {
        return Err(Error::invalid(&path.display().to_string(), "empty file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only and private to this process. That nobody shortens the file while it is open is the
    // condition that the type's documentation states; there is no way to map a file without it.
    #[expect(unsafe_code, reason = "mapping a file has no safe form")]
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Arc::new(MappedFile(map)))
}

struct MappedFile(memmap2::Mmap);

impl Bytes for MappedFile {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn will_be_read(&self) {
        #[cfg(unix)]
        if let Err(error) = self.0.advise(memmap2::Advice::WillNeed) {
            tracing::debug!("weights are read when they are used: {error}");
        }
    }

    /// The pages of the range: they stay in the system's cache, but no longer count as this process's.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if self.0.get(range.clone()).is_some() {
            // SAFETY: the range is inside the map. The map is of a file and nobody writes to it, so what is dropped, neighbours
            // on the same pages too, is read from the file again.
            #[expect(unsafe_code, reason = "memory of another kind would lose what was written to it")]
            let done =
                unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
            tracing::trace!(?range, ?done, "released");
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of the file's map is in this process's memory, in KiB, where the system says so.
    fn resident(path: &Path) -> Option<u64> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut lines = smaps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        Some(rss.trim().trim_end_matches(" kB").parse().unwrap())
    }

    #[test]
    fn what_is_released_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let numbers: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &numbers).unwrap();
        let owner = map(&path).unwrap();
        owner.will_be_read();
        for range in [5000..900_001, 0..0, 0..numbers.len()] {
            assert!(owner.bytes() == numbers);
            owner.release(range.clone());
            if let Some(resident) = resident(&path) {
                assert!(resident <= (numbers.len() - range.len()) as u64 / 1024 + 1, "{range:?}");
            }
        }
        assert!(owner.bytes() == numbers);
        // Outside there is nothing to let go.
        owner.release(numbers.len() - 5..numbers.len() + 5000);
        owner.release(usize::MAX - 9..usize::MAX);
    }
}
