//! Holds the ops whose weights ask for `bf16` against the composed paths in `f64`, forward and backward, and against
//! themselves on other numbers of threads and in other batches. Where the CPU has no such arithmetic, weights keep `f32`.

use candle_core::{DType, Device, Result, Tensor, Var};
use mc_backend::{
    Arithmetic, Purpose, Stream, Weight,
    ops::{self, Attention, Dropout, FeedForward, Linear, Lora, Rope, SelfAttention, composed},
};
use mc_testkit::{Tolerance, assert_close, random};
use std::sync::Arc;

/// Up to so many rows are read without rounding, as `kernels::few` has it.
const FEW: usize = 8;

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The value of an op at these inputs and the gradients of a random projection of it in each, by name.
fn passes(name: &str, inputs: &[Tensor], op: Op, dtype: DType) -> Result<Vec<(String, Tensor)>> {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?)).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tensors)?;
    assert_eq!(y.dtype(), dtype, "{name}");
    let cotangent = random(99, y.shape().clone(), DType::F32).to_dtype(dtype)?;
    let grads = (&y * cotangent)?.sum_all()?.backward()?;
    let mut all = vec![(format!("{name}: value"), y.detach())];
    for (i, t) in tensors.iter().enumerate() {
        let name = format!("{name}: gradient {i}");
        let Some(grad) = grads.get(t) else { panic!("{name} is missing") };
        all.push((name, grad.clone()));
    }
    Ok(all)
}

fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Values and gradients must agree to a few units of `bf16`: the largest error, and the root of the mean square of all,
/// which is what a term left out would show in.
fn check(name: &str, inputs: &[Tensor], fused: Op, composed: Op) -> Result<()> {
    /// Each product rounds both of its inputs to within one of themselves, with errors of both signs; some five products
    /// follow each other, and a softmax turns errors of scores into relative ones.
    const UNIT: f64 = 1.0 / 256.0;
    let (actual, expected) = (passes(name, inputs, fused, DType::F32)?, passes(name, inputs, composed, DType::F64)?);
    let mut rounded = false;
    for ((name, actual), (_, expected)) in actual.iter().zip(&expected) {
        assert_eq!(actual.dims(), expected.dims(), "{name}");
        let (actual, expected) = (numbers(actual)?, numbers(expected)?);
        assert!(actual.iter().all(|a| a.is_finite()), "{name} is not finite");
        let off: Vec<f64> = actual.iter().zip(&expected).map(|(a, e)| a - e).collect();
        let largest = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs()));
        let mean = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let (worst, usual) = (largest(&off) / largest(&expected) / UNIT, mean(&off) / mean(&expected) / UNIT);
        assert!(worst <= 6.0 && usual <= 4.0, "{name}: off by {worst:.2} units at worst, {usual:.2} in the mean");
        rounded |= worst > 0.01;
    }
    assert!(rounded, "{name}: nothing was rounded");
    Ok(())
}

fn x(seed: u64, shape: &[usize]) -> Tensor {
    random(seed, shape, DType::F32)
}

/// A weight whose outputs are as large as its inputs.
fn weight(seed: u64, (rows, cols): (usize, usize), dtype: DType, arithmetic: Arithmetic) -> Result<Weight> {
    let w = (x(seed, &[rows, cols]) / (cols as f64).sqrt())?.to_dtype(dtype)?;
    Ok(Weight::from_tensor(&w)?.with_arithmetic(arithmetic))
}

/// Whether this CPU multiplies `bf16`; else there is nothing to test here.
#[allow(clippy::print_stderr)]
fn has_bf16() -> Result<bool> {
    let has = weight(1, (1, 1), DType::BF16, Arithmetic::BF16)?.arithmetic() == Arithmetic::BF16;
    if !has {
        eprintln!("skipped: this CPU does not multiply bf16");
    }
    Ok(has)
}

/// A trained part: A `(rank, in)` scaled as inputs are, B `(out, rank)`.
fn trained(seed: u64, (outer, inner, rank): (usize, usize, usize)) -> Result<[Tensor; 2]> {
    Ok([(x(seed, &[rank, inner]) / (inner as f64).sqrt())?, (x(seed + 1, &[outer, rank]) / (rank as f64).sqrt())?])
}

fn lora<'a>(a: &'a Tensor, b: &'a Tensor) -> Lora<'a> {
    Lora { a, b, scale: 0.5, dropout: None }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn linear() -> Result<()> {
    if !has_bf16()? {
        return Ok(());
    }
    for (n, inner, outer) in [(5, 1, 3), (7, 33, 17), (40, 64, 131), (61, 131, 258)] {
        for dtype in DTYPES {
            let (w, bias) = (weight(1, (outer, inner), dtype, Arithmetic::BF16)?, x(2, &[outer]));
            for bias in [None, Some(&bias)] {
                let name = format!("linear {n} {inner} → {outer}, {dtype:?}, bias {}", bias.is_some());
                let composed: Op = &|t| composed::linear(&t[0], &w, bias);
                check(&name, &[x(3, &[n, inner])], &|t| ops::linear(&t[0], &w, bias), composed)?;
            }
        }
    }
    Ok(())
}

#[test]
fn lora_linear() -> Result<()> {
    if !has_bf16()? {
        return Ok(());
    }
    let dropout = || Dropout { probability: 0.3, stream: Stream::new(1, Purpose::Dropout, 5) };
    for (n, inner, outer, rank) in [(5, 3, 5, 1), (7, 33, 17, 3), (40, 64, 131, 8), (61, 131, 258, 5)] {
        for (dtype, dropout) in DTYPES.into_iter().flat_map(|d| [(d, None), (d, Some(dropout()))]) {
            let (w, bias) = (weight(1, (outer, inner), dtype, Arithmetic::BF16)?, x(2, &[outer]));
            let [a, b] = trained(3, (outer, inner, rank))?;
            let lora = |t: &[Tensor], op: fn(&Tensor, &Weight, Option<&Tensor>, &Lora) -> Result<Tensor>| {
                op(&t[0], &w, Some(&bias), &Lora { a: &t[1], b: &t[2], scale: 1.5, dropout: dropout.clone() })
            };
            let name = format!("lora_linear {n} {inner} → {outer}, rank {rank}, {dtype:?}, {dropout:?}");
            let inputs = [x(5, &[n, inner]), a, b];
            check(&name, &inputs, &|t| lora(t, ops::lora_linear), &|t| lora(t, composed::lora_linear))?;
        }
    }
    Ok(())
}

/// The weights of a feed-forward half.
struct Forward {
    norm: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
    biases: Option<[Tensor; 3]>,
}

impl Forward {
    fn new((d, inner): (usize, usize), dtype: DType, arithmetic: Arithmetic, biases: bool) -> Result<Self> {
        let w = |seed, size| weight(seed, size, dtype, arithmetic);
        Ok(Self {
            norm: (x(1, &[d]) * 0.2)?.affine(1.0, 1.0)?,
            gate: w(2, (inner, d))?,
            up: w(3, (inner, d))?,
            down: w(4, (d, inner))?,
            biases: biases.then(|| [x(5, &[inner]), x(6, &[inner]), x(7, &[d])]),
        })
    }

    /// x, then A and B of gate and of down.
    fn inputs(&self, leading: &[usize], rank: usize) -> Result<Vec<Tensor>> {
        let (d, inner) = (self.gate.cols(), self.gate.rows());
        let of = [trained(11, (inner, d, rank))?, trained(13, (d, inner, rank + 1))?].concat();
        Ok([vec![x(10, &[leading, &[d]].concat())], of].concat())
    }

    fn run(&self, t: &[Tensor], op: fn(&Tensor, &FeedForward) -> Result<Tensor>) -> Result<Tensor> {
        let bias = |i: usize| self.biases.as_ref().map(|b| &b[i]);
        let lora = |i: usize| t.get(i).map(|a| lora(a, &t[i + 1]));
        let half = FeedForward {
            norm: &self.norm,
            eps: 1e-5,
            gate: Linear { weight: &self.gate, bias: bias(0), lora: lora(1) },
            up: Linear { weight: &self.up, bias: bias(1), lora: None },
            down: Linear { weight: &self.down, bias: bias(2), lora: lora(3) },
            project: None,
        };
        op(&t[0], &half)
    }
}

#[test]
fn feed_forward() -> Result<()> {
    if !has_bf16()? {
        return Ok(());
    }
    for (leading, d, inner, rank) in [(&[5][..], 16, 24, 1), (&[2, 7], 33, 51, 3), (&[3, 41], 64, 130, 8)] {
        for (dtype, biases) in DTYPES.into_iter().flat_map(|d| [(d, false), (d, true)]) {
            let half = Forward::new((d, inner), dtype, Arithmetic::BF16, biases)?;
            let name = format!("feed_forward {leading:?} {d} {inner}, rank {rank}, {dtype:?}, biases {biases}");
            let (inputs, composed) = (half.inputs(leading, rank)?, composed::feed_forward);
            check(&name, &inputs, &|t| half.run(t, ops::feed_forward), &|t| half.run(t, composed))?;
        }
    }
    Ok(())
}

/// The weights of an attention half.
struct Attending {
    norm: Tensor,
    head_norms: Option<[Tensor; 2]>,
    qkvo: [Weight; 4],
    biases: Option<[Tensor; 4]>,
    rope: Arc<Rope>,
    d: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
}

impl Attending {
    fn new(s: Sizes, arithmetic: Arithmetic, head_norms: bool, biases: bool) -> Result<Self> {
        let near_one = |seed, n| x(seed, &[n]).affine(0.2, 1.0);
        let (q, kv) = (s.heads * s.d, s.kv_heads * s.d);
        let shapes = [(q, s.hidden), (kv, s.hidden), (kv, s.hidden), (s.hidden, q)];
        let [q, k, v, o] = std::array::from_fn(|i| weight(20 + i as u64, shapes[i], DTYPES[i % 3], arithmetic));
        Ok(Self {
            norm: near_one(1, s.hidden)?,
            head_norms: if head_norms { Some([near_one(2, s.d)?, near_one(3, s.d)?]) } else { None },
            qkvo: [q?, k?, v?, o?],
            biases: biases.then(|| std::array::from_fn(|i| x(30 + i as u64, &[shapes[i].0]))),
            rope: Rope::new(Rope::frequencies(s.d, 10_000.0), &Device::Cpu),
            d: s.d,
        })
    }

    /// x, then A and B of q, of v and of o.
    fn inputs(&self, (b, t): (usize, usize), rank: usize) -> Result<Vec<Tensor>> {
        let mut inputs = vec![x(10, &[b, t, self.norm.dim(0)?])];
        for (i, of) in [0, 2, 3].into_iter().enumerate() {
            let w = &self.qkvo[of];
            inputs.extend(trained(40 + 2 * i as u64, (w.rows(), w.cols(), rank + i))?);
        }
        Ok(inputs)
    }

    fn run(&self, t: &[Tensor], how: &Attention, fused: bool) -> Result<Tensor> {
        let run = |half: &SelfAttention| {
            if fused { ops::self_attention(&t[0], half, None) } else { composed::self_attention(&t[0], half, None) }
        };
        self.with(t, how, run)
    }

    /// Positions count from where a row's padding ends.
    fn with<R>(&self, t: &[Tensor], how: &Attention, run: impl FnOnce(&SelfAttention) -> Result<R>) -> Result<R> {
        let (rows, time) = (t[0].dim(0)?, t[0].dim(1)?);
        let positions = match &how.valid {
            None => (0..time as u32).collect(),
            Some(valid) => (0..rows * time).map(|i| (i % time).saturating_sub(valid[i / time].start) as u32).collect(),
        };
        let [q, k, v, o] = &self.qkvo;
        let linear = |i: usize, weight, lora| Linear { weight, bias: self.biases.as_ref().map(|b| &b[i]), lora };
        let low = |i: usize| t.get(i).map(|a| lora(a, &t[i + 1]));
        let half = SelfAttention {
            norm: &self.norm,
            eps: 1e-5,
            q: linear(0, q, low(1)),
            k: linear(1, k, None),
            v: linear(2, v, low(3)),
            o: linear(3, o, low(5)),
            head_norms: self.head_norms.as_ref().map(|[q, k]| [q, k]),
            head_dim: self.d,
            rope: &self.rope,
            positions: &positions,
            how: how.clone(),
            project: None,
        };
        run(&half)
    }
}

/// Causal attention, whole, in a window, and with padding at either end.
fn hows(b: usize, t: usize) -> Vec<Attention> {
    let causal = Attention { causal: true, ..Attention::default() };
    let valid: Arc<[_]> = (0..b).map(|r| if r % 2 == 0 { 0..t - r } else { 3.min(t - 1)..t }).collect();
    vec![
        causal.clone(),
        Attention { causal: false, ..causal.clone() },
        Attention { window: Some(5), ..causal.clone() },
        Attention { valid: Some(valid.clone()), ..causal.clone() },
        Attention { valid: Some(valid), window: Some(20), ..causal },
    ]
}

const SIZES: [((usize, usize), Sizes); 3] = [
    ((1, 6), Sizes { hidden: 16, heads: 2, kv_heads: 2, d: 8 }),
    ((2, 19), Sizes { hidden: 33, heads: 6, kv_heads: 2, d: 10 }),
    ((3, 70), Sizes { hidden: 48, heads: 3, kv_heads: 1, d: 32 }),
];

#[test]
fn self_attention() -> Result<()> {
    if !has_bf16()? {
        return Ok(());
    }
    for ((b, t), sizes) in SIZES {
        for (head_norms, biases) in [(false, false), (true, false), (false, true), (true, true)] {
            let half = Attending::new(sizes, Arithmetic::BF16, head_norms, biases)?;
            let inputs = half.inputs((b, t), 3)?;
            for how in hows(b, t) {
                let name = format!("self_attention {b} {t} {sizes:?}, {head_norms}, {biases}, {how:?}");
                check(&name, &inputs, &|t| half.run(t, &how, true), &|t| half.run(t, &how, false))?;
            }
        }
    }
    Ok(())
}

/// All bits of values and gradients of every op.
fn everything(arithmetic: Arithmetic) -> Result<Vec<(String, Vec<f32>)>> {
    let flat = |all: Vec<(String, Tensor)>| -> Result<Vec<_>> {
        all.into_iter().map(|(name, t)| Ok((name, t.flatten_all()?.to_vec1()?))).collect()
    };
    let mut all = vec![];
    for n in [2, FEW, FEW + 1, 77, 301] {
        let w = weight(1, (258, 131), DType::BF16, arithmetic)?;
        let [a, b] = trained(3, (258, 131, 5))?;
        all.extend(flat(passes("linear", &[x(3, &[n, 131])], &|t| ops::linear(&t[0], &w, None), DType::F32)?)?);
        let projected: Op = &|t| ops::lora_linear(&t[0], &w, None, &lora(&t[1], &t[2]));
        all.extend(flat(passes("lora_linear", &[x(3, &[n, 131]), a, b], projected, DType::F32)?)?);
        let half = Forward::new((64, 130), DType::BF16, arithmetic, true)?;
        let run: Op = &|t| half.run(t, ops::feed_forward);
        all.extend(flat(passes("feed_forward", &half.inputs(&[n], 3)?, run, DType::F32)?)?);
        all.push((
            "feed_forward alone".into(),
            half.run(&half.inputs(&[n], 3)?, ops::feed_forward)?.flatten_all()?.to_vec1()?,
        ));
    }
    for ((b, t), sizes) in SIZES {
        let half = Attending::new(sizes, arithmetic, true, true)?;
        let inputs = half.inputs((b, t), 3)?;
        for how in hows(b, t) {
            let name = format!("self_attention {b} {t} {how:?}");
            all.extend(flat(passes(&name, &inputs, &|t| half.run(t, &how, true), DType::F32)?)?);
            all.push((name, half.run(&inputs, &how, true)?.flatten_all()?.to_vec1()?));
        }
    }
    Ok(all)
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() -> Result<()> {
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| everything(arithmetic))
        };
        let one = run(1)?;
        for threads in [2, 5] {
            for ((name, one), (_, many)) in one.iter().zip(run(threads)?) {
                assert!(*one == many, "{arithmetic:?}: {name} differs on {threads} threads");
            }
        }
    }
    Ok(())
}

/// Rows above the few that are read without rounding are the same bit for bit, whatever stands beside them.
#[test]
fn a_row_of_a_batch_equals_the_row_alone() -> Result<()> {
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let half = Forward::new((64, 130), DType::BF16, arithmetic, true)?;
        let inputs = half.inputs(&[3, 41], 3)?;
        let each = |run: Op, name: &str| -> Result<()> {
            for inputs in [&inputs[..], &inputs[..1]] {
                let all = run(inputs)?;
                for b in 0..inputs[0].dim(0)? {
                    let mut alone = inputs.to_vec();
                    alone[0] = inputs[0].narrow(0, b, 1)?;
                    let (all, alone) = (numbers(&all.narrow(0, b, 1)?)?, numbers(&run(&alone)?)?);
                    assert!(all == alone, "{arithmetic:?}: row {b} of {name}");
                }
            }
            Ok(())
        };
        each(&|t| half.run(t, ops::feed_forward), "feed_forward")?;
    }
    for (arithmetic, ((batch, t), sizes)) in
        [Arithmetic::F32, Arithmetic::BF16].into_iter().flat_map(|a| SIZES.map(|s| (a, s)))
    {
        let half = Attending::new(sizes, arithmetic, true, true)?;
        let inputs = half.inputs((batch, t), 3)?;
        for how in hows(batch, t) {
            let all = half.run(&inputs, &how, true)?;
            for b in 0..batch {
                // Alone a row has no padding.
                let valid = how.valid.as_ref().map_or(0..t, |v| v[b].clone());
                if valid.len() <= FEW {
                    continue;
                }
                let of_row = |x: &Tensor| x.narrow(0, b, 1)?.narrow(1, valid.start, valid.len());
                let mut alone = inputs.clone();
                alone[0] = of_row(&inputs[0])?;
                let one = half.run(&alone, &Attention { valid: None, ..how.clone() }, true)?;
                let same = numbers(&of_row(&all)?)? == numbers(&one)?;
                assert!(same, "{arithmetic:?}: row {b} of self_attention {sizes:?}, {how:?}");
            }
        }
    }
    Ok(())
}

/// Keys are read where they lie for a few queries of each row, of however many rows.
#[test]
fn a_few_queries_of_many_rows_are_as_exact_as_one() -> Result<()> {
    for (rows, t) in [(1, 3), (5, 3), (9, 1), (4, FEW)] {
        let half = Attending::new(SIZES[1].1, Arithmetic::F32, true, true)?;
        let inputs = half.inputs((rows, t), 3)?;
        let wide: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
        for valid in [None, Some((0..rows).map(|r| r % t..t).collect())] {
            let how = Attention { causal: true, valid, ..Attention::default() };
            let (y, expected) = (half.run(&inputs, &how, true)?, half.run(&wide, &how, false)?);
            let tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };
            assert_close(&format!("{rows} rows of {t} queries, {how:?}"), &y, &expected, tolerance);
        }
    }
    Ok(())
}

/// Keys and values of a cache that are not as many, as wide, or of as many rows as they should be.
#[test]
fn a_cache_of_another_shape_is_refused() -> Result<()> {
    let half = Attending::new(SIZES[1].1, Arithmetic::F32, false, false)?;
    let causal = Attention { causal: true, ..Attention::default() };
    for t in [3, 20] {
        let inputs = half.inputs((2, t), 3)?;
        let good = vec![2, 25, 2, 10];
        let append = |k: &[usize], v: &[usize]| {
            let mut cache = |_: &Tensor, _: &Tensor| Ok((x(1, k), x(2, v)));
            half.with(&inputs, &causal, |half| ops::self_attention(&inputs[0], half, Some(&mut cache)))
        };
        append(&good, &good)?;
        for bad in [&[2, 24, 2, 10][..], &[1, 25, 2, 10], &[2, 25, 1, 10], &[2, 25, 2, 8], &[2, 25, 20]] {
            let [k, v] = [append(bad, &good), append(&good, bad)].map(|y| y.unwrap_err().to_string());
            assert!(k.contains("expected") && v.contains("expected"), "{bad:?}: {k}; {v}");
        }
        assert!(append(&[2, 1, 2, 10], &[2, 1, 2, 10]).is_err(), "fewer keys than queries");
    }
    Ok(())
}

/// A cache may keep keys and values in 16 bits: what comes out is that of the same numbers in f32, bit for bit, whatever a query sees.
#[test]
fn a_cache_may_be_of_narrower_numbers() -> Result<()> {
    let causal = || Attention { causal: true, ..Attention::default() };
    let ways = [
        causal(),
        Attention { window: Some(7), ..causal() },
        Attention { valid: Some(Arc::new([9..150, 40..149])), ..causal() },
    ];
    for (arithmetic, t, (way, how)) in [Arithmetic::F32, Arithmetic::BF16]
        .into_iter()
        .flat_map(|arithmetic| [1, 3, 20].map(|t| (arithmetic, t)))
        .flat_map(|(arithmetic, t)| ways.iter().enumerate().map(move |way| (arithmetic, t, way)))
    {
        let half = Attending::new(SIZES[1].1, arithmetic, false, false)?;
        let inputs = half.inputs((2, t), 3)?;
        // Views that begin further on.
        let narrow = |seed, dtype| x(seed, &[2, 155, 2, 10]).to_dtype(dtype)?.narrow(1, 5, 150);
        let with = |k: DType, v: DType, wide: bool, composed: bool| {
            let of_cache =
                |seed, dtype| if wide { narrow(seed, dtype)?.to_dtype(DType::F32) } else { narrow(seed, dtype) };
            let mut cache = |_: &Tensor, _: &Tensor| Ok((of_cache(1, k)?, of_cache(2, v)?));
            let run = if composed { ops::composed::self_attention } else { ops::self_attention };
            half.with(&inputs, how, |half| run(&inputs[0], half, Some(&mut cache)))
        };
        let whole = with(DType::F32, DType::F32, false, false)?;
        for dtype in [DType::F16, DType::BF16] {
            let found = with(dtype, dtype, false, false)?;
            let same = |other: &Tensor| Ok::<_, candle_core::Error>(numbers(&found)? == numbers(other)?);
            assert!(same(&with(dtype, dtype, true, false)?)?, "{arithmetic:?} {dtype:?} {t} {way}");
            // Products of many queries round to bf16 themselves.
            let as_good = arithmetic == Arithmetic::BF16 && dtype == DType::BF16 && t > FEW && has_bf16()?;
            assert!(same(&whole)? == as_good, "{arithmetic:?} {dtype:?} {t} {way}");
            let most = if arithmetic == Arithmetic::F32 { 1e-5 } else { 0.05 };
            let plain = with(dtype, dtype, false, true)?;
            assert_close(&format!("{dtype:?} {t} {way}"), &found, &plain, Tolerance::absolute(most));
        }
        for (k, v) in
            [(DType::F16, DType::F32), (DType::F16, DType::BF16), (DType::U32, DType::U32), (DType::F64, DType::F64)]
        {
            for composed in [false, true] {
                let error = with(k, v, false, composed).unwrap_err().to_string();
                assert!(error.contains(&format!("keys in {k:?} and values in {v:?}")), "{error}");
            }
        }
    }
    Ok(())
}

/// Whatever keeps keys and values: no gradient reaches them, the first pass included, and what is neither as it came nor of 16 bits is refused.
#[test]
fn a_cache_lets_no_gradient_through() -> Result<()> {
    let causal = Attention { causal: true, ..Attention::default() };
    let half = Attending::new(SIZES[1].1, Arithmetic::F32, false, false)?;
    for t in [1, 4, 20] {
        let inputs = half.inputs((2, t), 3)?;
        let gradient = |kept: (DType, DType)| {
            let x = Var::from_tensor(&inputs[0])?;
            let mut cache = |k: &Tensor, v: &Tensor| Ok((k.detach().to_dtype(kept.0)?, v.detach().to_dtype(kept.1)?));
            let y = half.with(&inputs, &causal, |half| ops::self_attention(&x, half, Some(&mut cache)))?;
            let gradients = y.sqr()?.sum_all()?.backward()?;
            Ok::<_, candle_core::Error>(gradients.get(&x).expect("a gradient").clone())
        };
        let expected = gradient((DType::F32, DType::F32))?;
        for kept in [DType::F16, DType::BF16] {
            let what = format!("{kept:?} {t}");
            assert_close(&what, &gradient((kept, kept))?, &expected, Tolerance { absolute: 1e-5, relative: 1e-5 });
        }
        for kept in [(DType::F16, DType::F32), (DType::BF16, DType::F16), (DType::F64, DType::F64)] {
            let error = gradient(kept).unwrap_err().to_string();
            assert!(
                error.contains(&format!("a cache gave keys in {:?} and values in {:?}", kept.0, kept.1)),
                "{error}"
            );
        }
    }
    // Of its own dtype, what it gives is what is attended to.
    let inputs = half.inputs((2, 12), 3)?;
    let mut zeros = |k: &Tensor, v: &Tensor| Ok((k.zeros_like()?, v.zeros_like()?));
    let y = half.with(&inputs, &causal, |half| ops::self_attention(&inputs[0], half, Some(&mut zeros)))?;
    assert_eq!(numbers(&y)?, numbers(&inputs[0])?);
    Ok(())
}

/// What a pass reads into an empty cache it sees as it was computed.
#[test]
fn the_first_pass_sees_what_it_computed() -> Result<()> {
    let causal = Attention { causal: true, ..Attention::default() };
    for arithmetic in [Arithmetic::F32, Arithmetic::BF16] {
        let half = Attending::new(SIZES[1].1, arithmetic, false, false)?;
        for t in [1, 3, 20] {
            let inputs = half.inputs((2, t), 3)?;
            for run in [ops::self_attention, ops::composed::self_attention] {
                let mut cache = |k: &Tensor, v: &Tensor| Ok((k.to_dtype(DType::F16)?, v.to_dtype(DType::F16)?));
                let cached = half.with(&inputs, &causal, |half| run(&inputs[0], half, Some(&mut cache)))?;
                let whole = half.with(&inputs, &causal, |half| run(&inputs[0], half, None))?;
                if t > FEW {
                    assert!(numbers(&cached)? == numbers(&whole)?, "{arithmetic:?} {t}");
                }
                assert_close("cached", &cached, &whole, Tolerance::absolute(1e-5));
            }
        }
    }
    Ok(())
}

#[test]
fn a_few_rows_are_not_rounded() -> Result<()> {
    let (both, has_bf16) = ([Arithmetic::F32, Arithmetic::BF16], has_bf16()?);
    for n in 1..=FEW + 1 {
        let [plain, rounding] = both.map(|arithmetic| -> Result<_> {
            let half = Forward::new((64, 130), DType::BF16, arithmetic, true)?;
            let attending = Attending::new(SIZES[1].1, arithmetic, true, true)?;
            let causal = Attention { causal: true, ..Attention::default() };
            let forward = half.run(&half.inputs(&[n], 3)?, ops::feed_forward)?;
            Ok((numbers(&forward)?, numbers(&attending.run(&attending.inputs((1, n), 3)?, &causal, true)?)?))
        });
        let ((forward, attended), (rounded_forward, rounded_attended)) = (plain?, rounding?);
        let same = n <= FEW || !has_bf16;
        assert!((forward == rounded_forward) == same && (attended == rounded_attended) == same, "{n} rows");
    }
    Ok(())
}

/// Gate and up may be rounded where the backward pass reads them, on any CPU: values stay as they are, and gradients are near.
#[test]
fn what_is_kept_may_be_rounded() -> Result<()> {
    for (leading, d, inner) in [(&[5][..], 16, 24), (&[2, 7], 33, 51), (&[3, 41], 64, 130)] {
        let exact = Forward::new((d, inner), DType::BF16, Arithmetic::F32, true)?;
        let keep = |gate, up| -> Result<Forward> {
            let half = Forward::new((d, inner), DType::BF16, Arithmetic::F32, true)?;
            Ok(Forward { gate: half.gate.with_kept(gate), up: half.up.with_kept(up), ..half })
        };
        let (name, inputs) = (format!("feed_forward {leading:?}"), &exact.inputs(leading, 3)?[..3]);
        let all = |half: &Forward| passes(&name, inputs, &|t| half.run(t, ops::feed_forward), DType::F32);
        let both = keep(Arithmetic::BF16, Arithmetic::BF16)?;
        check(&name, inputs, &|t| both.run(t, ops::feed_forward), &|t| both.run(t, composed::feed_forward))?;
        let (exact, both, one) = (all(&exact)?, all(&both)?, all(&keep(Arithmetic::BF16, Arithmetic::F32)?)?);
        for ((name, exact), ((_, both), (_, one))) in exact.iter().zip(both.iter().zip(&one)) {
            assert_eq!(numbers(exact)? == numbers(both)?, name.ends_with("value"), "{name}");
            assert!(numbers(exact)? == numbers(one)?, "{name}, of one alone");
        }
    }
    Ok(())
}
