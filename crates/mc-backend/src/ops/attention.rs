//! Grouped-query attention without a t×t matrix (after Dao et al., "FlashAttention", 2022).

use super::group::are_few;
use crate::{
    causal_mask::causal_mask,
    graft::{Value, graft},
    kernels::{
        self,
        attention::{self as kernel, Packed, RowSum},
        tile::Arithmetic,
    },
    weight::Elements,
};
use candle_core::{CpuStorage, D, DType, Device, Result, Storage, Tensor, bail};
use std::{ops::Range, sync::Arc};

/// Which keys a query sees, and how scores are scaled.
///
/// Queries are the last `tq` of the `tk` positions, so that one with a cache sees all keys before it.
#[derive(Clone, Debug, Default)]
pub struct Attention {
    /// What `q·k` is multiplied with, above 0; `None` is `1/√d`.
    pub scale: Option<f64>,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// A query sees keys less than so many positions away from it (sliding window); at least 1. With `causal` it sees so
    /// many keys at most, itself included, and without it almost as many again after it.
    pub window: Option<usize>,
    /// Per row of the batch, the positions that are not padding; `None` is all of them.
    pub valid: Option<Arc<[Range<usize>]>>,
    /// Texts that lie one after the other in the one row of the batch and fill it: a query sees keys of its own alone.
    /// None is empty, there are as many keys as queries, and no padding.
    pub segments: Option<Arc<[Range<usize>]>>,
    /// What is added to the scaled scores, frozen.
    pub bias: Option<Arc<RelativeBias>>,
}

/// Numbers added to scores by how far the key is behind or ahead of the query, one list per head (Raffel et al.,
/// "Exploring the Limits of Transfer Learning", 2020, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct RelativeBias {
    heads: usize,
    /// Farther away the number is that of this distance.
    span: usize,
    /// `(heads, 2·span + 1)`, from `span` before the query on.
    values: Vec<f32>,
}

impl RelativeBias {
    /// The bias of `heads` heads: `value(head, distance)` for distances of the key from the query of at most `span`,
    /// negative where the key is before it. Farther keys have the number of `span`.
    pub fn new(heads: usize, span: usize, value: impl Fn(usize, isize) -> f32) -> Arc<Self> {
        let distances = || -(span as isize)..=span as isize;
        let values =
            (0..heads).flat_map(|head| distances().map(move |d| (head, d))).map(|(h, d)| value(h, d)).collect();
        Arc::new(Self { heads, span, values })
    }

    /// Adds `factor` times the bias to a row of one head's scores; the first is of a key so far from the query.
    pub(crate) fn add_to(&self, scores: &mut [f32], head: usize, first: isize, factor: f32) {
        let (span, n) = (self.span as isize, scores.len() as isize);
        let values = &self.values[head * (2 * self.span + 1)..(head + 1) * (2 * self.span + 1)];
        let low = (-span - first).clamp(0, n);
        let high = (span + 1 - first).clamp(low, n);
        let (before, rest) = scores.split_at_mut(low as usize);
        let (near, after) = rest.split_at_mut((high - low) as usize);
        for x in before {
            *x += factor * values[0];
        }
        for x in after {
            *x += factor * values[2 * self.span];
        }
        if !near.is_empty() {
            near.iter_mut().zip(&values[(first + low + span) as usize..]).for_each(|(x, v)| *x += factor * v);
        }
    }
}

/// `softmax(q·kᵀ·scale)·v`: q `(b, tq, heads, d)`, k and v `(b, tk, kv_heads, d)` → `(b, tq, heads, d)`.
///
/// Head h of q reads key-value head `h / (heads / kv_heads)`. A query that sees no key gives zeros. k and v may be
/// views into a cache: only their last dimension has to be dense. They have the dtype of q, or both `f16` or `bf16`.
///
/// # Errors
/// If the shapes or dtypes do not fit each other, or `heads` is no multiple of `kv_heads`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let shape = check(q, k, v, how)?;
    // Read as they are, without a gradient.
    let narrow = k.dtype() != q.dtype() && kernels::serve(q) && ![q, k, v].into_iter().any(Tensor::track_op);
    if !narrow && ![q, k, v].into_iter().all(kernels::serve) {
        return composed(q, k, v, how);
    }
    let arithmetic = Arithmetic::F32;
    let (q, k, v) = (dense(q)?, dense(k)?, dense(v)?);
    let mut out = vec![0f32; q.elem_count()];
    let mut sums = vec![RowSum::default(); shape.batch * shape.queries * shape.heads];
    with_views([&q, &k, &v], |[q, k, v]| {
        if are_few(shape.queries) {
            return kernel::decode(&shape, q, k, v, &mut out);
        }
        let packed = Packed::new(&shape, arithmetic, k, v, false);
        kernel::over_tiles(&shape, (&mut out, shape.heads * shape.dim), &mut sums, |b, tile, out, sums| {
            kernel::forward(&shape, &packed, (b, tile), q, out, sums);
        });
    })?;
    if narrow {
        return Tensor::from_vec(out, q.shape(), q.device());
    }
    let saved = [q.detach(), k.detach(), v.detach()];
    graft([&q, &k, &v], Value::cpu(out, q.shape()), move |g| {
        let [q, k, v] = &saved;
        let mut grads = [q, k, v].map(|t| vec![0f32; t.elem_count()]);
        with_views([q, k, v, g], |[q, k, v, g]| {
            // A few queries need no sums to give their output, only here.
            let sums = if are_few(shape.queries) { kernel::sums(&shape, q, k) } else { sums.clone() };
            let packed = Packed::new(&shape, arithmetic, k, v, true);
            let heads = kernel::Gradients::new(&shape, &packed, [q, g], &sums);
            let [dq, dk, dv] = grads.each_mut().map(Vec::as_mut_slice);
            heads.queries(&shape, dq);
            heads.keys(&shape, dk, dv);
        })?;
        let [dq, dk, dv] = grads;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
    })
}

/// Queries that the composed path scores at once.
const TILE: usize = 128;

/// [`attention`] of candle's ops, in tiles of 128 queries; the backward pass computes probabilities again.
pub fn composed(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let shape = check(q, k, v, how)?;
    let (k, v) = (&k.to_dtype(q.dtype())?, &v.to_dtype(q.dtype())?);
    let saved = [q.detach(), k.detach(), v.detach()];
    let out = {
        let (keys, values) = (by_head(&saved[1])?, by_head(&saved[2])?);
        let tile = |tile: Tile| {
            let p = tile.probabilities(&shape, &tile.split(&shape, &saved[0])?, &tile.seen(&keys)?)?;
            merge(&shape, &p.to_dtype(v.dtype())?.matmul(&tile.seen(&values)?)?)
        };
        Tensor::cat(&tiles(&shape).map(tile).collect::<Result<Vec<_>>>()?, 1)?
    };
    graft([q, k, v], Value::Tensor(out), move |g| {
        let [q, k, v] = &saved;
        let (keys, values) = (by_head(k)?, by_head(v)?);
        let mut dq = vec![];
        let (mut dk, mut dv) = (Sum::default(), Sum::default());
        // The last tile sees the last keys, each before it none after those.
        for tile in tiles(&shape).collect::<Vec<_>>().into_iter().rev() {
            let (rows, g, keys) = (tile.split(&shape, q)?, tile.split(&shape, g)?, tile.seen(&keys)?);
            let p = tile.probabilities(&shape, &rows, &keys)?;
            dv.add(tile.to_its_last_key(p.to_dtype(g.dtype())?.t()?.matmul(&g)?)?)?;
            let dp = g.matmul(&tile.seen(&values)?.t()?)?.to_dtype(p.dtype())?;
            let sum = (&p * &dp)?.sum_keepdim(D::Minus1)?;
            let ds = ((p * dp.broadcast_sub(&sum)?)? * f64::from(shape.scale))?.to_dtype(q.dtype())?;
            dk.add(tile.to_its_last_key(ds.t()?.matmul(&rows)?)?)?;
            dq.push(merge(&shape, &ds.matmul(&keys)?)?);
        }
        dq.reverse();
        Ok([Some(Tensor::cat(&dq, 1)?), Some(dk.by_key()?), Some(dv.by_key()?)])
    })
}

/// Queries that are scored at once, and the keys that they are scored against.
#[derive(Clone)]
struct Tile {
    from: usize,
    queries: usize,
    first_key: usize,
    keys: usize,
}

fn tiles(s: &kernel::Shape) -> impl Iterator<Item = Tile> + '_ {
    (0..s.queries).step_by(TILE).map(move |from| {
        let to = (from + TILE).min(s.queries);
        let keys = match &s.segments {
            // Every query sees itself, and both ends of what it sees go up with it.
            Some(_) => s.visible(0, from).start..s.visible(0, to - 1).end,
            None => 0..s.keys - s.queries + if s.causal { to } else { s.queries },
        };
        Tile { from, queries: to - from, first_key: keys.start, keys: keys.len() }
    })
}

impl Tile {
    /// Its part of `(b, tq, heads, d)` as `(b, kv_heads, group·queries, d)`.
    fn split(&self, s: &kernel::Shape, x: &Tensor) -> Result<Tensor> {
        let x = x.narrow(1, self.from, self.queries)?.transpose(1, 2)?.contiguous()?;
        x.reshape((s.batch, s.kv_heads, (), s.dim))
    }

    /// Its part of keys or values `(b, kv_heads, tk, d)`.
    fn seen(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(2, self.first_key, self.keys)
    }

    /// Gradients of its keys or values `(b, kv_heads, keys, d)` as those of all keys up to its last.
    fn to_its_last_key(&self, x: Tensor) -> Result<Tensor> {
        if self.first_key == 0 { Ok(x) } else { x.pad_with_zeros(2, self.first_key, 0) }
    }

    /// Probabilities `(b, kv_heads, group·queries, keys)` in at least `f32`.
    fn probabilities(&self, s: &kernel::Shape, rows: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let scores = rows.matmul(&keys.t()?)?;
        let wide = if scores.dtype().size_in_bytes() < 4 { scores.to_dtype(DType::F32)? } else { scores };
        let scores = (wide * f64::from(s.scale))?;
        let by_query = (s.batch, s.heads, self.queries, self.keys);
        let scores = match &s.bias {
            Some(bias) => {
                let bias = self.bias(s, bias, scores.device())?.to_dtype(scores.dtype())?;
                scores.reshape(by_query)?.broadcast_add(&bias)?.reshape(scores.shape())?
            }
            None => scores,
        };
        let Some(mask) = self.mask(s, scores.device())? else { return candle_nn::ops::softmax_last_dim(&scores) };
        let mask = mask.to_dtype(scores.dtype())?;
        let p = candle_nn::ops::softmax_last_dim(&scores.reshape(by_query)?.broadcast_add(&mask)?)?;
        // Only padding leaves a query without a key; all of its scores were equal.
        let p = if s.valid.is_some() { p.broadcast_mul(&mask.max_keepdim(D::Minus1)?.exp()?)? } else { p };
        p.reshape(scores.shape())
    }

    /// What is added to scores, `(queries, keys)`, with padding `(b, 1, queries, keys)`: 0 where a query sees a key, else
    /// so much that its probability is 0. `None` where every query sees every key.
    fn mask(&self, s: &kernel::Shape, device: &Device) -> Result<Option<Tensor>> {
        let batches = if s.valid.is_some() { s.batch } else { 1 };
        let rows = || (0..batches).flat_map(|b| (self.from..self.from + self.queries).map(move |i| s.visible(b, i)));
        let keys = self.first_key..self.first_key + self.keys;
        if rows().all(|visible| visible == keys) {
            return Ok(None);
        }
        if s.causal && s.valid.is_none() && s.segments.is_none() {
            return causal_mask((self.queries, self.keys), s.window, device).map(Some);
        }
        let row = |visible: Range<usize>| keys.clone().map(move |j| if visible.contains(&j) { 0f32 } else { -1e30 });
        let mask = Tensor::from_iter(rows().flat_map(row), device)?;
        mask.reshape((batches, 1, self.queries, self.keys)).map(Some)
    }

    /// The relative bias of its scores, `(heads, queries, keys)`.
    fn bias(&self, s: &kernel::Shape, bias: &RelativeBias, device: &Device) -> Result<Tensor> {
        let mut values = vec![0f32; s.heads * self.queries * self.keys];
        for (row, values) in values.chunks_exact_mut(self.keys.max(1)).enumerate() {
            let (head, query) = (row / self.queries, self.from + row % self.queries);
            bias.add_to(values, head, self.first_key as isize - s.position(query) as isize, 1.0);
        }
        Tensor::from_vec(values, (s.heads, self.queries, self.keys), device)
    }
}

/// A sum of tensors `(b, kv_heads, keys, d)` of which none has more keys than the one before: each is added to the
/// first keys.
#[derive(Default)]
struct Sum {
    first: Option<Tensor>,
    /// The keys after those of `first`, the last ones in front.
    rest: Vec<Tensor>,
}

impl Sum {
    fn add(&mut self, term: Tensor) -> Result<()> {
        self.first = Some(match self.first.take() {
            None => term,
            Some(sum) => {
                let (had, keys) = (sum.dim(2)?, term.dim(2)?);
                if keys < had {
                    self.rest.push(sum.narrow(2, keys, had - keys)?);
                }
                (sum.narrow(2, 0, keys)? + term)?
            }
        });
        Ok(())
    }

    /// As `(b, keys, kv_heads, d)`.
    fn by_key(self) -> Result<Tensor> {
        let parts: Vec<_> = self.first.into_iter().chain(self.rest.into_iter().rev()).collect();
        Tensor::cat(&parts, 2)?.transpose(1, 2)?.contiguous()
    }
}

/// The inverse of [`Tile::split`]: `(b, kv_heads, group·queries, d)` → `(b, queries, heads, d)`.
fn merge(s: &kernel::Shape, x: &Tensor) -> Result<Tensor> {
    x.reshape((s.batch, s.heads, (), s.dim))?.transpose(1, 2)?.contiguous()
}

/// `(b, tk, kv_heads, d)` → `(b, kv_heads, tk, d)`, copied only where a product could not read it: a cache lies so already.
fn by_head(x: &Tensor) -> Result<Tensor> {
    let x = x.transpose(1, 2)?;
    let ((b, heads, _, d), stride) = (x.dims4()?, x.stride());
    if stride[2..] == [d, 1] && (b == 1 || stride[0] == stride[1] * heads) {
        return Ok(x);
    }
    // The shape again, for the strides: of a dimension of size 1 any counts as contiguous, but Metal's product reads it.
    x.contiguous()?.reshape(x.shape())
}

/// `x`, copied only if its last dimension is not dense.
pub(super) fn dense(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

pub(super) fn with_views<const N: usize, R>(
    tensors: [&Tensor; N],
    run: impl FnOnce([kernel::View; N]) -> R,
) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut views = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        let elements = match &**storage {
            Storage::Cpu(CpuStorage::F32(x)) => Elements::F32(x),
            Storage::Cpu(CpuStorage::F16(x)) => Elements::F16(x),
            Storage::Cpu(CpuStorage::BF16(x)) => Elements::BF16(x),
            _ => bail!("attention kernel of what is not f32, f16 or bf16 on the CPU"),
        };
        let Some(view) = kernel::View::new(elements, layout) else { bail!("attention argument is not dense") };
        views.push(view);
    }
    match views.try_into() {
        Ok(views) => Ok(run(views)),
        Err(_) => bail!("as many views as tensors"),
    }
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<kernel::Shape> {
    if k.dims() != v.dims() {
        bail!("attention of keys {:?} and values {:?}", k.shape(), v.shape())
    }
    if k.dtype() != v.dtype() || k.dtype() != q.dtype() && !matches!(k.dtype(), DType::F16 | DType::BF16) {
        bail!("attention of queries in {:?}, keys in {:?} and values in {:?}", q.dtype(), k.dtype(), v.dtype())
    }
    shape(q.dims4()?, k.dims4()?, how)
}

/// Sizes of one call with queries `(b, tq, heads, d)` and keys `(b, tk, kv_heads, d)`.
pub(super) fn shape(
    (batch, queries, heads, dim): (usize, usize, usize, usize),
    (kb, keys, kv_heads, kd): (usize, usize, usize, usize),
    how: &Attention,
) -> Result<kernel::Shape> {
    if kb != batch || kd != dim || kv_heads == 0 || heads % kv_heads != 0 || queries > keys {
        let (q, k) = ((batch, queries, heads, dim), (kb, keys, kv_heads, kd));
        bail!("attention of queries {q:?} and keys {k:?}")
    }
    if let Some(valid) = &how.valid
        && (valid.len() != batch || valid.iter().any(|r| r.start > r.end || r.end > keys))
    {
        bail!("attention to {valid:?} in {batch} rows of {keys} keys")
    }
    if dim == 0 || heads == 0 || how.window == Some(0) {
        bail!("attention of {heads} heads of width {dim} with {how:?}: each is at least 1, and so is a window")
    }
    if let Some(segments) = &how.segments {
        let ends = std::iter::once(0).chain(segments.iter().map(|s| s.end));
        let in_turn = ends.zip(segments.iter()).all(|(end, s)| s.start == end && s.start < s.end);
        let fill = segments.last().map_or(0, |s| s.end) == queries;
        if batch != 1 || keys != queries || how.valid.is_some() || !in_turn || !fill {
            bail!("attention within {segments:?} of {batch} rows of {queries} queries and {keys} keys")
        }
    }
    if let Some(bias) = how.bias.as_ref().filter(|b| b.heads != heads) {
        bail!("a bias of {} heads for attention of {heads}", bias.heads)
    }
    let scale = how.scale.unwrap_or(1.0 / (dim as f64).sqrt()) as f32;
    // What is added to scores is divided by it.
    if !(scale.is_finite() && scale > 0.0 && (1.0 / scale).is_finite()) {
        bail!("attention scores are scaled by {scale}, expected a finite number above 0 whose inverse is finite")
    }
    let (causal, window) = (how.causal, how.window);
    let (valid, segments, bias) = (how.valid.clone(), how.segments.clone(), how.bias.clone());
    Ok(kernel::Shape { batch, queries, keys, heads, kv_heads, dim, scale, causal, window, valid, segments, bias })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_testkit::{gradcheck, random};

    #[test]
    fn gradient() {
        let inputs = [
            random(1, (2, 3, 4, 2), DType::F64),
            random(2, (2, 5, 2, 2), DType::F64),
            random(3, (2, 5, 2, 2), DType::F64),
        ];
        let padded: Attention =
            Attention { causal: true, valid: Some(vec![2..5, 0..4].into()), ..Attention::default() };
        for how in [
            Attention::default(),
            Attention { causal: true, ..Attention::default() },
            Attention { causal: true, window: Some(2), scale: Some(0.3), ..Attention::default() },
            padded,
        ] {
            gradcheck("attention", &inputs, |x| attention(&x[0], &x[1], &x[2], &how));
        }
        let inputs = [1, 2, 3].map(|seed| random(seed, (1, 7, 2, 2), DType::F64));
        let segments: Option<Arc<[Range<usize>]>> = Some([0..3, 3..4, 4..7].into());
        let bias = Some(RelativeBias::new(2, 1, |head, distance| 0.3 * distance as f32 - head as f32));
        for how in [
            Attention { window: Some(2), bias: bias.clone(), ..Attention::default() },
            Attention { segments: segments.clone(), bias, ..Attention::default() },
            Attention { segments, causal: true, ..Attention::default() },
        ] {
            gradcheck("attention", &inputs, |x| attention(&x[0], &x[1], &x[2], &how));
        }
    }

    #[test]
    fn keys_beyond_the_span_have_the_bias_of_the_span() {
        let value = |head: usize, distance: isize| head as f32 * 10.0 + distance as f32;
        let bias = RelativeBias::new(2, 3, value);
        for (head, first, n) in (0..2).flat_map(|h| (-12..8).flat_map(move |f| [0, 1, 9].map(|n| (h, f, n)))) {
            let mut scores = vec![1.0; n];
            bias.add_to(&mut scores, head, first, 2.0);
            let distances = (first..).take(n);
            let expected: Vec<f32> = distances.map(|d| 1.0 + 2.0 * value(head, d.clamp(-3, 3))).collect();
            assert_eq!(scores, expected, "{n} keys from {first} on, head {head}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        let x = random(1, (1, 3, 1, 2), DType::F32);
        let refused = |how: Attention| assert!(attention(&x, &x, &x, &how).is_err(), "{how:?}");
        for scale in [0.0, -1.0, 1e-40, f64::NAN, f64::INFINITY] {
            refused(Attention { scale: Some(scale), ..Attention::default() });
        }
        refused(Attention { causal: true, window: Some(0), ..Attention::default() });
        for segments in [&[0..2, 1..3][..], &[0..3, 3..3], &[0..3, 3..4], &[1..2, 2..3], &[0..1, 1..2], &[]] {
            refused(Attention { segments: Some(segments.into()), ..Attention::default() });
        }
        refused(Attention { bias: Some(RelativeBias::new(2, 1, |_, _| 0.0)), ..Attention::default() });
        refused(Attention { valid: Some(std::iter::once(0..4).collect()), ..Attention::default() });
        refused(Attention { valid: Some([0..3, 0..3].into()), ..Attention::default() });
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zeros() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let x = random(1, (1, 3, 1, 2), dtype);
            let how = Attention { causal: true, valid: Some(std::iter::once(2..3).collect()), ..Attention::default() };
            let out = attention(&x, &x, &x, &how)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            assert_eq!(out[..4], [0.0; 4]);
            assert_ne!(out[4], 0.0);
        }
        Ok(())
    }
}
