//! Rows of a frozen table by token id. Nothing here has a gradient: the table is frozen and ids are integers.

use crate::{Weight, kernels::simd, weight::Elements};
use candle_core::{DType, Result, Tensor, bail};

/// The rows of `table` `(vocabulary, d)` that `ids` name, as `(shape…, d)` in `dtype`; ids are read row-major.
///
/// # Errors
/// If an id is not below the number of rows, or `shape` does not have as many elements as there are ids.
pub fn embedding(ids: &[u32], shape: &[usize], table: &Weight, dtype: DType) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= table.rows()) {
        bail!("token id {id} is not below the vocabulary of {}", table.rows())
    }
    if shape.iter().product::<usize>() != ids.len() {
        bail!("{} token ids do not fill {shape:?}", ids.len())
    }
    let mut full = shape.to_vec();
    full.push(table.cols());
    let Some(elements) = table.elements() else {
        let index = Tensor::from_slice(ids, ids.len(), &table.device())?;
        return table.to_tensor(table.dtype())?.index_select(&index, 0)?.reshape(full)?.to_dtype(dtype);
    };
    let d = table.cols();
    let mut out = vec![0f32; ids.len() * d];
    for (id, row) in ids.iter().zip(out.chunks_exact_mut(d.max(1))) {
        let range = *id as usize * d..(*id as usize + 1) * d;
        match elements {
            Elements::F32(w) => row.copy_from_slice(&w[range]),
            Elements::F16(w) => simd::widen(&w[range], row),
            Elements::BF16(w) => simd::widen(&w[range], row),
        }
    }
    Tensor::from_vec(out, full, &table.device())?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::random;

    #[test]
    fn rows_of_every_dtype() -> Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let table = random(1, (7, 3), DType::F32).to_dtype(dtype)?;
            let rows = embedding(&[6, 0, 6, 2], &[2, 2], &Weight::from_tensor(&table)?, DType::F64)?;
            let table = table.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            assert_eq!(rows.reshape((4, 3))?.to_vec2::<f64>()?, [6, 0, 6, 2].map(|i: usize| table[i].clone()));
        }
        let table = Weight::from_tensor(&random(1, (7, 3), DType::F32))?;
        assert!(embedding(&[7], &[1], &table, DType::F32).is_err());
        assert!(embedding(&[1, 2], &[3], &table, DType::F32).is_err());
        Ok(())
    }
}
