//! Rotary position embedding (Su et al., "RoFormer", 2021) in the layout of Hugging Face: element i of a head turns
//! together with element `i + d/2`.

use crate::{
    graft::{Value, graft},
    kernels::{self, rows},
};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::{Arc, Mutex};

/// Cosines and sines by position, made as far as they are asked for.
#[derive(Debug)]
pub struct Rope {
    /// Angle per position of each pair, `d/2` numbers.
    inverse_frequencies: Vec<f32>,
    device: Device,
    table: Mutex<Option<Table>>,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    positions: usize,
    /// All `(positions, d/2)`, `f32`.
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// To turn back.
    minus_sin: Tensor,
}

impl Table {
    /// One of its tensors at these positions: `(t, d/2)`, or `(b, t, d/2)` where each row of the batch has its own.
    fn at(tensor: &Tensor, positions: &[u32], t: usize) -> Result<Tensor> {
        let (first, consecutive) = (positions.first(), positions.windows(2).all(|two| two[0] + 1 == two[1]));
        if let (Some(first), true, true) = (first, consecutive, positions.len() == t) {
            return tensor.narrow(0, *first as usize, t);
        }
        let turned = tensor.index_select(&Tensor::from_slice(positions, positions.len(), tensor.device())?, 0)?;
        if positions.len() == t { Ok(turned) } else { turned.reshape(((), t, tensor.dim(1)?)) }
    }
}

impl Rope {
    /// A rotation with these frequencies, `d/2` of them for heads of width `d`.
    pub fn new(inverse_frequencies: Vec<f32>, device: &Device) -> Arc<Self> {
        Arc::new(Self { inverse_frequencies, device: device.clone(), table: Mutex::new(None) })
    }

    /// The frequencies of the paper: `base^(−2i/d)`, computed in `f32` as transformers does.
    pub fn frequencies(dim: usize, base: f64) -> Vec<f32> {
        (0..dim / 2).map(|i| 1.0 / (base as f32).powf((2 * i) as f32 / dim as f32)).collect()
    }

    fn table(&self, positions: usize) -> Result<Table> {
        let mut table =
            self.table.lock().map_err(|_| candle_core::Error::msg("the table of rotations was poisoned"))?;
        if let Some(table) = table.as_ref().filter(|t| t.positions >= positions) {
            return Ok(table.clone());
        }
        let positions = positions.next_power_of_two().max(64);
        let half = self.inverse_frequencies.len();
        // The angle is rounded to f32 as in transformers; its cosine is then exact to f32.
        let mut angles = Vec::with_capacity(positions * half);
        for p in 0..positions {
            angles.extend(self.inverse_frequencies.iter().map(|f| f64::from(p as f32 * f)));
        }
        let tensor = |f: fn(f64) -> f64| {
            Tensor::from_iter(angles.iter().map(|a| f(*a) as f32), &self.device)?.reshape((positions, half))
        };
        let made =
            Table { positions, cos: tensor(f64::cos)?, sin: tensor(f64::sin)?, minus_sin: tensor(|a| -a.sin())? };
        *table = Some(made.clone());
        Ok(made)
    }
}

/// Rotates every head of x `(b, t, heads, d)` by its position; `positions` holds `t` numbers for all rows, or `b·t`.
///
/// # Errors
/// If the width of the heads or the number of positions does not fit.
pub fn rope(x: &Tensor, rope: &Rope, positions: &Arc<[u32]>) -> Result<Tensor> {
    let table = check_tensor(x, rope, positions)?;
    if !kernels::serve(x) {
        return composed(x, rope, positions);
    }
    let x = x.contiguous()?;
    let value = Value::cpu(rotated(&x, &table, positions, 1.0)?, x.shape());
    let positions = positions.clone();
    graft([&x], value, move |g| {
        let dx = rotated(g, &table, &positions, -1.0)?;
        Ok([Some(Tensor::from_vec(dx, g.shape(), g.device())?)])
    })
}

fn rotated(x: &Tensor, table: &Table, positions: &[u32], sign: f32) -> Result<Vec<f32>> {
    let (_, _, heads, d) = x.dims4()?;
    let mut y = vec![0f32; x.elem_count()];
    let (cos, sin) = (kernels::slice(&table.cos)?, kernels::slice(&table.sin)?);
    let position = |row: usize| positions[row % positions.len()] as usize;
    rows::rope(&kernels::slice(x)?, (heads, d / 2), (&cos, &sin), position, sign, &mut y);
    Ok(y)
}

/// [`rope`] of candle's ops; half-precision heads turn in `f32`.
pub fn composed(x: &Tensor, rope: &Rope, positions: &Arc<[u32]>) -> Result<Tensor> {
    let table = check_tensor(x, rope, positions)?;
    let (t, wide) = (x.dim(1)?, widened(x.dtype()));
    let at = |tensor: &Tensor| Table::at(tensor, positions, t)?.to_dtype(wide);
    let cos = at(&table.cos)?;
    let y = turned(&x.detach(), &cos, &at(&table.sin)?)?;
    let back = if x.track_op() { Some(at(&table.minus_sin)?) } else { None };
    graft([x], Value::Tensor(y), move |g| Ok([back.as_ref().map(|sin| turned(g, &cos, sin)).transpose()?]))
}

fn turned(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(cos.dtype())?.contiguous()?;
    candle_nn::rotary_emb::rope_thd(&wide, cos, sin)?.to_dtype(x.dtype())
}

fn widened(dtype: DType) -> DType {
    if dtype.size_in_bytes() < 4 { DType::F32 } else { dtype }
}

fn check_tensor(x: &Tensor, rope: &Rope, positions: &[u32]) -> Result<Table> {
    let (b, t, _, d) = x.dims4()?;
    check((b, t, d), rope, positions)
}

/// The rotations for so many positions of heads of width `d`, if they fit.
pub(super) fn check((b, t, d): (usize, usize, usize), rope: &Rope, positions: &[u32]) -> Result<Table> {
    if d != 2 * rope.inverse_frequencies.len() {
        bail!("heads of width {d} cannot turn by {} frequencies", rope.inverse_frequencies.len())
    }
    if positions.len() != t && positions.len() != b * t {
        bail!("{} positions for {b} rows of {t} tokens", positions.len())
    }
    rope.table(positions.iter().max().map_or(0, |p| *p as usize + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let table = Rope::new(Rope::frequencies(6, 100.0), &Device::Cpu);
        let inputs = [random(1, (2, 3, 2, 6), DType::F64)];
        gradcheck("rope", &inputs, |x| rope(&x[0], &table, &vec![4, 5, 6].into()));
        gradcheck("rope, positions per row", &inputs, |x| rope(&x[0], &table, &vec![0, 0, 1, 7, 8, 9].into()));
    }

    #[test]
    fn a_quarter_turn() -> Result<()> {
        let table = Rope::new(vec![std::f32::consts::FRAC_PI_2], &Device::Cpu);
        let x = Tensor::new(&[3f32, 5.], &Device::Cpu)?.reshape((1, 1, 1, 2))?;
        let y = rope(&x, &table, &vec![1].into())?.flatten_all()?.to_vec1::<f32>()?;
        assert!((y[0] + 5.0).abs() < 1e-5 && (y[1] - 3.0).abs() < 1e-5, "{y:?}");
        Ok(())
    }
}
