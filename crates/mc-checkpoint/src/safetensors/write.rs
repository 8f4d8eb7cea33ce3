//! Writes a safetensors file, one tensor at a time. Knows no names.

use crate::{Error, Result, write_atomic};
use bytemuck::cast_slice;
use candle_core::{DType, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

/// Writes named tensors atomically as one safetensors file, with what `metadata` says of them.
///
/// Equal tensors give equal bytes: tensors are ordered by the size of their elements, largest first, so that each is
/// aligned, then by name; metadata by key. Tensors may be on any device, and strided.
///
/// # Errors
/// If a dtype cannot be written, a tensor cannot be read back from its device, or the file cannot be written.
pub fn save_safetensors<'a>(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let infos = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.dims().to_vec())).collect();
    stream_safetensors(path, infos, metadata, |name, out| {
        write_tensor(out, &tensors[name]).map_err(io::Error::other)?
    })
}

/// As [`save_safetensors`], for tensors that are nowhere in memory as a whole: `write` is called once for each of
/// `tensors`, in the order in which they lie in the file, and writes its elements, little-endian and row-major.
///
/// # Errors
/// If a dtype cannot be written, the file cannot be, or `write` fails.
pub fn stream_safetensors<'a>(
    path: impl AsRef<Path>,
    mut tensors: Vec<(&str, DType, Vec<usize>)>,
    metadata: impl IntoIterator<Item = (&'a str, &'a str)>,
    mut write: impl FnMut(&str, &mut BufWriter<&File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let file = path.display().to_string();
    // A stable sort: of one size, the order stays that of the names.
    tensors.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.size_in_bytes()));
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, dtype, shape) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size_in_bytes();
        let info = TensorInfo { dtype: (*dtype).into(), shape: shape.clone(), data_offsets: (start, end) };
        infos.push(((*name).to_string(), info));
    }
    let header = Metadata::new(None, infos).map_err(|e| Error::invalid(&file, e.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(Error::json(&file))?;
    let metadata: BTreeMap<&str, &str> = metadata.into_iter().collect();
    if !metadata.is_empty() {
        // `Metadata` keeps its strings in a hash map and would write them in random order.
        let metadata = serde_json::to_string(&metadata).map_err(Error::json(&file))?;
        let comma = if tensors.is_empty() { "" } else { "," };
        header.splice(1..1, format!("\"__metadata__\":{metadata}{comma}").into_bytes());
    }
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(name, ..)| write(name, out))
    })
}

fn write_tensor(out: &mut impl Write, tensor: &Tensor) -> candle_core::Result<io::Result<()>> {
    let t = tensor.flatten_all()?;
    Ok(match t.dtype() {
        DType::U8 => out.write_all(&t.to_vec1::<u8>()?),
        DType::U32 => out.write_all(cast_slice(&t.to_vec1::<u32>()?)),
        DType::I16 => out.write_all(cast_slice(&t.to_vec1::<i16>()?)),
        DType::I32 => out.write_all(cast_slice(&t.to_vec1::<i32>()?)),
        DType::I64 => out.write_all(cast_slice(&t.to_vec1::<i64>()?)),
        DType::BF16 => out.write_all(cast_slice(&t.to_vec1::<half::bf16>()?)),
        DType::F16 => out.write_all(cast_slice(&t.to_vec1::<half::f16>()?)),
        DType::F32 => out.write_all(cast_slice(&t.to_vec1::<f32>()?)),
        DType::F64 => out.write_all(cast_slice(&t.to_vec1::<f64>()?)),
        other => candle_core::bail!("dtype {other:?} cannot be written"),
    })
}
