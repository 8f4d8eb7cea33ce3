//! The attention half of an encoder's layer as one op: projections, attention, output, residual, with a layer norm
//! before or after.
//!
//! Fused, the rows are walked twice: in blocks up to queries, keys and values; then in tiles of queries through attention,
//! output projection, residual and norm. Where a gradient is wanted, it is the ops that it is made of, each with its own.

use super::{
    Attention, Gelu, Rope, attention,
    block::{FINER, Ops, PLAIN, Side},
    group::rows_at_once,
    projections::{Packed, Projections},
    rope,
};
use crate::kernels::{
    self,
    attention::{self as kernel, View},
    operand::Matrix,
    rows,
    scratch::Scratch,
    tile::Start,
};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// A layer norm's frozen weights; see [`super::layer_norm`].
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `(d)`
    pub weight: &'a Tensor,
    /// `(d)`
    pub bias: Option<&'a Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

/// `after(x + o(attention(qkv(before(x)))))`: all but x.
#[derive(Clone, Debug)]
pub struct EncoderAttention<'a> {
    /// The norm of what is projected.
    pub before: Option<LayerNorm<'a>>,
    /// Queries, keys and values, `hidden → heads·d` each: three projections, or one to all of them side by side.
    pub qkv: &'a Projections,
    /// `heads·d → hidden`
    pub o: &'a Projections,
    /// The norm of the sum.
    pub after: Option<LayerNorm<'a>>,
    /// Width of a head.
    pub head_dim: usize,
    /// How queries and keys turn, and the position of each token: `t` numbers for all rows, or `b·t`.
    pub rope: Option<(&'a Rope, &'a Arc<[u32]>)>,
    /// Which keys a query sees.
    pub how: &'a Attention,
}

/// `after(x + o(attention(qkv(before(x)))))`: x `(b, t, hidden)` → `(b, t, hidden)` (Vaswani et al., "Attention Is All You
/// Need", 2017, section 3.1). The gradient goes to `x` alone.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn encoder_attention(x: &Tensor, s: &EncoderAttention) -> Result<Tensor> {
    check(x, s)?;
    match packed(x, [s.before, s.after], [s.qkv, s.o])? {
        Some([qkv, o]) => fused(x, s, qkv, o),
        None => unfused(x, s, &FINER),
    }
}

/// [`encoder_attention`] of plain candle ops.
pub fn composed(x: &Tensor, s: &EncoderAttention) -> Result<Tensor> {
    check(x, s)?;
    unfused(x, s, &PLAIN)
}

fn unfused(x: &Tensor, s: &EncoderAttention, ops: &Ops) -> Result<Tensor> {
    let (b, t, _) = x.dims3()?;
    let h = normed(x, s.before, ops)?;
    let out = s.qkv.unfused(ops, Side::In, &h)?;
    let heads = |x: &Tensor| x.reshape((b, t, (), s.head_dim));
    let (q, k, v) = match out.as_slice() {
        [q, k, v] => (heads(q)?, heads(k)?, heads(v)?),
        [all] => {
            let width = all.dim(D::Minus1)? / 3;
            let part = |i: usize| heads(&all.narrow(D::Minus1, i * width, width)?.contiguous()?);
            (part(0)?, part(1)?, part(2)?)
        }
        other => bail!("{} projections for q, k and v", other.len()),
    };
    let turned = |x: Tensor| s.rope.map_or(Ok(x.clone()), |(rope, positions)| (ops.rope)(&x, rope, positions));
    let out = (ops.attention)(&turned(q)?, &turned(k)?, &v, s.how)?.reshape((b, t, ()))?;
    let out = s.o.unfused(ops, Side::Out, &out)?;
    let [out] = out.as_slice() else { bail!("{} projections for o", out.len()) };
    normed(&(x + out)?, s.after, ops)
}

/// The projections of a half as the kernels read them; `None` where they do not serve, or a gradient is wanted.
pub(super) fn packed<'a>(
    x: &Tensor,
    norms: [Option<LayerNorm>; 2],
    [first, second]: [&'a Projections; 2],
) -> Result<Option<[&'a Packed; 2]>> {
    if x.track_op() || !kernels::serve(x) || !tensors(&norms).all(kernels::serve) {
        return Ok(None);
    }
    Ok(first.packed()?.zip(second.packed()?).map(|(first, second)| [first, second]))
}

/// The weights and biases of norms.
fn tensors<'a>(norms: &'a [Option<LayerNorm>]) -> impl Iterator<Item = &'a Tensor> {
    norms.iter().flatten().flat_map(|n| [Some(n.weight), n.bias]).flatten()
}

/// The norm of x, if there is one.
pub(super) fn normed(x: &Tensor, norm: Option<LayerNorm>, ops: &Ops) -> Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |n| (ops.layer_norm)(x, n.weight, n.bias, n.eps))
}

fn check(x: &Tensor, s: &EncoderAttention) -> Result<()> {
    let (b, t, hidden) = x.dims3()?;
    let (qkv, o): (Vec<_>, Vec<_>) = (s.qkv.widths().collect(), s.o.widths().collect());
    let width = match (qkv.as_slice(), o.as_slice()) {
        ([q, k, v], [(width, to)]) if q == k && q == v && *q == (hidden, *width) && *to == hidden => *width,
        ([all], [(width, to)]) if *all == (hidden, 3 * width) && *to == hidden => *width,
        _ => bail!("an attention half of {qkv:?} and {o:?} cannot read {:?}", x.shape()),
    };
    if hidden == 0 || width == 0 {
        bail!("an attention half of widths {hidden} and {width} computes nothing")
    }
    if s.head_dim == 0 || !width.is_multiple_of(s.head_dim) {
        bail!("heads of {} do not fill {width}", s.head_dim)
    }
    check_norms(hidden, &[s.before, s.after])?;
    s.rope.map_or(Ok(()), |(rope, positions)| rope::check((b, t, s.head_dim), rope, positions).map(|_| ()))
}

pub(super) fn check_norms(width: usize, norms: &[Option<LayerNorm>]) -> Result<()> {
    match tensors(norms).find(|t| t.dims() != [width]) {
        Some(norm) => bail!("a norm of {:?} for a width of {width}", norm.shape()),
        None => Ok(()),
    }
}

/// A layer norm's numbers.
pub(super) struct Norm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    pub(super) fn new(norm: Option<LayerNorm>) -> Result<Option<Self>> {
        let numbers = |t: &Tensor| t.detach().to_vec1::<f32>();
        let new = |n: LayerNorm| {
            Ok(Self { weight: numbers(n.weight)?, bias: n.bias.map(numbers).transpose()?, eps: n.eps as f32 })
        };
        norm.map(new).transpose()
    }

    /// Rows become normal.
    pub(super) fn run(&self, rows: &mut [f32]) {
        rows::layer_norm_rows(&self.weight, self.bias.as_deref(), self.eps, rows);
    }
}

/// The projections of a block of rows through the norm before it and the gelu after it, if there are any: `(n, outer)`.
pub(super) fn project(
    norm: Option<&Norm>,
    (packed, gelu): (&Packed, Option<Gelu>),
    x: &[f32],
    rows: usize,
    y: &mut [f32],
) {
    let mut run = |x: &[f32]| packed.run(x, rows, packed.start(), gelu, (y, packed.outer));
    match norm {
        None => run(x),
        Some(norm) => {
            let mut h = Scratch::new(x.len());
            let h = h.f32();
            h.copy_from_slice(x);
            norm.run(h);
            run(h);
        }
    }
}

/// Rows of a block: all where they share columns.
pub(super) fn block_rows(n: usize) -> usize {
    if Packed::share_columns(n) { n.max(1) } else { rows_at_once(n) }
}

fn fused(x: &Tensor, s: &EncoderAttention, qkv: &Packed, o: &Packed) -> Result<Tensor> {
    let (b, t, hidden) = x.dims3()?;
    let (n, d, outer) = (b * t, s.head_dim, qkv.outer);
    let width = o.inner;
    let columns: Vec<Range<usize>> = match &qkv.outputs {
        all if all.len() == 3 => all.clone(),
        _ => (0..3).map(|i| i * width..(i + 1) * width).collect(),
    };
    let size = (b, t, width / d, d);
    let shape = attention::shape(size, size, s.how)?;
    let (before, after) = (Norm::new(s.before)?, Norm::new(s.after)?);
    let x = x.contiguous()?;
    let x_slice = kernels::slice(&x)?;

    let mut scratch = Scratch::new(n * outer);
    let at_once = block_rows(n);
    let blocks = scratch.f32().par_chunks_mut((at_once * outer).max(1)).zip(x_slice.par_chunks(at_once * hidden));
    blocks.for_each(|(out, x)| project(before.as_ref(), (qkv, None), x, n, out));
    if let Some((rope, positions)) = s.rope {
        let table = rope::check((b, t, d), rope, positions)?;
        let (cos, sin) = (kernels::slice(&table.cos)?, kernels::slice(&table.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        scratch.f32().par_chunks_mut(outer.max(1)).enumerate().for_each(|(i, row)| {
            let position = positions[i % positions.len()] as usize;
            let at = position * d / 2..(position + 1) * d / 2;
            for columns in &columns[..2] {
                rows::rope_row((&cos[at.clone()], &sin[at.clone()]), 1.0, &mut row[columns.clone()]);
            }
        });
    }

    let m = Matrix::f32(scratch.f32(), outer);
    let [q, k, v] = [0, 1, 2].map(|i| View::columns(m, columns[i].start, t, d));
    // Output projection, residual and norm of rows from `from` on.
    let finish = |from: usize, attended: &[f32], y: &mut [f32]| {
        let x = &x_slice[from * hidden..from * hidden + y.len()];
        o.run(attended, n, Start::Matrix(x, hidden), None, (y, hidden));
        o.add_bias(y);
        if let Some(norm) = &after {
            norm.run(y);
        }
    };
    let mut y = vec![0f32; n * hidden];
    if Packed::share_columns(n) {
        let mut attended = Scratch::new(n * width);
        kernel::over_heads(&shape, qkv.arithmetic, [q, k, v], attended.f32());
        finish(0, attended.f32(), &mut y);
    } else {
        let packed = kernel::Packed::new(&shape, qkv.arithmetic, k, v, false);
        kernel::over_tiles(&shape, (&mut y, hidden), &mut [], |b, tile, y, _| {
            let mut out = Scratch::new(tile.len() * width);
            kernel::forward(&shape, &packed, (b, tile.clone()), q, out.f32(), &mut []);
            finish(b * t + tile.start, out.f32(), y);
        });
    }
    Tensor::from_vec(y, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weight;
    use candle_core::DType;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() -> Result<()> {
        let weight = |seed, shape| Weight::from_tensor(&random(seed, shape, DType::F64));
        let (norm, bias) = (random(4, 6, DType::F64), random(5, 6, DType::F64));
        let qkv = [1, 2, 3].map(|seed| Ok((weight(seed, (4, 6))?, Some(random(9 + seed, 4, DType::F64)))));
        let three = Projections::new(qkv.into_iter().collect::<Result<_>>()?);
        let one = Projections::new(vec![(weight(1, (12, 6))?, None)]);
        let o = Projections::new(vec![(weight(6, (6, 4))?, Some(bias.clone()))]);
        let norm = Some(LayerNorm { weight: &norm, bias: Some(&bias), eps: 1e-3 });
        let how = Attention { segments: Some([0..2, 2..5].into()), ..Attention::default() };
        let (rope, positions) = (Rope::new(Rope::frequencies(2, 50.0), x_device()), vec![0, 1, 0, 1, 2].into());
        let after =
            EncoderAttention { before: None, qkv: &three, o: &o, after: norm, head_dim: 2, rope: None, how: &how };
        let rope = Some((&*rope, &positions));
        let before = EncoderAttention { before: norm, qkv: &one, after: None, rope, ..after.clone() };
        for half in [after, before] {
            gradcheck("encoder_attention", &[random(7, (1, 5, 6), DType::F64)], |x| encoder_attention(&x[0], &half));
        }
        Ok(())
    }

    #[test]
    fn a_width_of_zero_is_said() -> Result<()> {
        let how = Attention::default();
        for (hidden, width) in [(0, 4), (6, 0), (0, 0)] {
            let weight = |shape| Weight::from_tensor(&random(1, shape, DType::F32));
            let qkv = [(); 3].map(|()| Ok((weight((width, hidden))?, None))).into_iter().collect::<Result<_>>()?;
            let (qkv, o) = (Projections::new(qkv), Projections::new(vec![(weight((hidden, width))?, None)]));
            let half =
                EncoderAttention { before: None, qkv: &qkv, o: &o, after: None, head_dim: 2, rope: None, how: &how };
            let error = encoder_attention(&random(2, (1, 3, hidden), DType::F32), &half)
                .map_or_else(|error| error.to_string(), |_| String::new());
            assert!(error.contains("computes nothing"), "{hidden} {width}: {error}");
        }
        Ok(())
    }

    fn x_device() -> &'static candle_core::Device {
        &candle_core::Device::Cpu
    }
}
