//! What the ops mean, written out as loops in `f64`: masks and angles far from the start of a sequence; that frozen
//! tensors get no gradient on any path; that the composed paths hold in half precision.

use candle_core::{DType, Device, Result, Tensor, Var};
use mc_backend::{
    Purpose, Stream, Weight,
    ops::{self, Attention, Dropout, Lora, Rope, composed},
};
use mc_testkit::{Tolerance, assert_close, random};
use std::sync::Arc;

/// Elements of `(b, t, h, d)`.
struct Array {
    data: Vec<f64>,
    dims: [usize; 4],
}

impl Array {
    fn of(x: &Tensor) -> Result<Self> {
        let (b, t, h, d) = x.dims4()?;
        Ok(Self { data: x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?, dims: [b, t, h, d] })
    }
    fn row(&self, b: usize, t: usize, h: usize) -> &[f64] {
        let [_, ts, hs, d] = self.dims;
        &self.data[((b * ts + t) * hs + h) * d..][..d]
    }
}

/// Attention as its definition says, one query after the other.
fn defined(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention) -> Result<Tensor> {
    let (q, k, v) = (Array::of(q)?, Array::of(k)?, Array::of(v)?);
    let [batch, queries, heads, d] = q.dims;
    let [_, keys, kv_heads, _] = k.dims;
    let scale = how.scale.unwrap_or(1.0 / (d as f64).sqrt());
    let mut out = vec![];
    for b in 0..batch {
        for i in 0..queries {
            let position = i + keys - queries;
            for h in 0..heads {
                let group = h * kv_heads / heads;
                let seen = |j: usize| {
                    (!how.causal || j <= position)
                        && how.window.is_none_or(|w| j + w > position)
                        && how.valid.as_ref().is_none_or(|v| v[b].contains(&j))
                };
                let dot = |j: usize| q.row(b, i, h).iter().zip(k.row(b, j, group)).map(|(a, b)| a * b).sum::<f64>();
                let weights: Vec<f64> = (0..keys).map(|j| if seen(j) { (dot(j) * scale).exp() } else { 0.0 }).collect();
                let sum: f64 = weights.iter().sum();
                for e in 0..d {
                    let mean: f64 = (0..keys).map(|j| weights[j] * v.row(b, j, group)[e]).sum();
                    out.push(if sum > 0.0 { mean / sum } else { 0.0 });
                }
            }
        }
    }
    Tensor::from_vec(out, (batch, queries, heads, d), &Device::Cpu)
}

#[test]
fn attention_is_its_definition() -> Result<()> {
    for (tq, tk) in [(150, 150), (1, 150), (70, 150), (129, 129), (64, 64), (65, 65)] {
        let (q, k, v) = (
            random(1, (2, tq, 4, 6), DType::F32),
            random(2, (2, tk, 2, 6), DType::F32),
            random(3, (2, tk, 2, 6), DType::F32),
        );
        let padded: Arc<[_]> = vec![3..tk, 0..tk - 5].into();
        for (causal, window, valid) in [
            (false, None, None),
            (true, None, None),
            (true, Some(70), None),
            (true, Some(64), Some(padded.clone())),
            (false, None, Some(padded)),
        ] {
            let how = Attention { causal, window, valid, ..Attention::default() };
            let expected = defined(&q, &k, &v, &how)?;
            let name = format!("{tq} queries, {tk} keys, {how:?}");
            assert_close(&name, &ops::attention(&q, &k, &v, &how)?, &expected, Tolerance::absolute(2e-6));
            assert_close(&name, &composed::attention(&q, &k, &v, &how)?, &expected, Tolerance::absolute(2e-6));
        }
    }
    Ok(())
}

#[test]
fn rope_is_its_definition() -> Result<()> {
    let frequencies = Rope::frequencies(8, 1000.0);
    let table = Rope::new(frequencies.clone(), &Device::Cpu);
    let x = random(1, (1, 200, 3, 8), DType::F32);
    let from = Array::of(&x)?;
    // A short sequence first: the table has to grow on the way.
    for (t, start) in [(5, 0), (200, 0), (200, 1000)] {
        let positions: Arc<[u32]> = (start..start + t as u32).collect();
        let mut expected = vec![];
        for (i, p) in positions.iter().enumerate() {
            for h in 0..3 {
                let row = from.row(0, i, h);
                let turned = |e: usize| {
                    let pair = e % 4;
                    let angle = f64::from(*p as f32 * frequencies[pair]);
                    let (a, b) = (row[pair], row[pair + 4]);
                    if e < 4 { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
                };
                expected.extend((0..8).map(turned));
            }
        }
        let expected = Tensor::from_vec(expected, (1, t, 3, 8), &Device::Cpu)?;
        let x = x.narrow(1, 0, t)?;
        assert_close("fused", &ops::rope(&x, &table, &positions)?, &expected, Tolerance::absolute(1e-6));
        assert_close("composed", &composed::rope(&x, &table, &positions)?, &expected, Tolerance::absolute(1e-6));
    }
    Ok(())
}

type Op<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;

/// Every op by name, on its fused and its composed path, with the shapes of its differentiable arguments.
fn every_op(f: &Frozen) -> Vec<(&'static str, Vec<Vec<usize>>, Op<'_>)> {
    let x = || vec![2, 3, 6];
    let heads = || vec![2, 3, 2, 6];
    let lora = |v: &[Tensor]| (v[1].clone(), v[2].clone());
    let lora_shapes = vec![x(), vec![2, 6], vec![5, 2]];
    vec![
        ("linear", vec![x()], Box::new(|v| ops::linear(&v[0], &f.weight, Some(&f.bias)))),
        ("composed linear", vec![x()], Box::new(|v| composed::linear(&v[0], &f.weight, Some(&f.bias)))),
        ("lora", lora_shapes.clone(), {
            Box::new(move |v| {
                let (a, b) = lora(v);
                let lora = Lora { a: &a, b: &b, scale: 0.5, dropout: Some(f.dropout.clone()) };
                ops::lora_linear(&v[0], &f.weight, Some(&f.bias), &lora)
            })
        }),
        ("composed lora", lora_shapes, {
            Box::new(move |v| {
                let (a, b) = lora(v);
                let lora = Lora { a: &a, b: &b, scale: 0.5, dropout: Some(f.dropout.clone()) };
                composed::lora_linear(&v[0], &f.weight, Some(&f.bias), &lora)
            })
        }),
        ("rms_norm", vec![x()], Box::new(|v| ops::rms_norm(&v[0], &f.norm, 1e-5))),
        ("composed rms_norm", vec![x()], Box::new(|v| composed::rms_norm(&v[0], &f.norm, 1e-5))),
        ("layer_norm", vec![x()], Box::new(|v| ops::layer_norm(&v[0], &f.norm, Some(&f.norm), 1e-5))),
        ("composed layer_norm", vec![x()], Box::new(|v| composed::layer_norm(&v[0], &f.norm, Some(&f.norm), 1e-5))),
        ("rope", vec![heads()], Box::new(|v| ops::rope(&v[0], &f.rope, &f.positions))),
        ("composed rope", vec![heads()], Box::new(|v| composed::rope(&v[0], &f.rope, &f.positions))),
        ("swiglu", vec![x(), x()], Box::new(|v| ops::swiglu(&v[0], &v[1]))),
        ("composed swiglu", vec![x(), x()], Box::new(|v| composed::swiglu(&v[0], &v[1]))),
        ("gelu", vec![x()], Box::new(|v| ops::gelu(&v[0], ops::Gelu::Exact))),
        ("composed gelu", vec![x()], Box::new(|v| composed::gelu(&v[0], ops::Gelu::Exact))),
        ("attention", vec![heads(); 3], Box::new(|v| ops::attention(&v[0], &v[1], &v[2], &f.causal))),
        ("composed attention", vec![heads(); 3], Box::new(|v| composed::attention(&v[0], &v[1], &v[2], &f.causal))),
        ("cross-entropy", vec![x()], Box::new(|v| ops::linear_cross_entropy(&v[0], &f.weight, &[0, 4], &[2, 1]))),
        ("composed cross-entropy", vec![x()], {
            Box::new(|v| composed::linear_cross_entropy(&v[0], &f.weight, &[0, 4], &[2, 1]))
        }),
    ]
}

struct Frozen {
    weight: Weight,
    bias: Tensor,
    norm: Tensor,
    rope: Arc<Rope>,
    positions: Arc<[u32]>,
    causal: Attention,
    dropout: Dropout,
}

impl Frozen {
    fn new(dtype: DType) -> Result<Self> {
        Ok(Self {
            weight: Weight::from_tensor(&random(11, (5, 6), dtype))?,
            bias: random(12, 5, dtype),
            norm: random(13, 6, dtype),
            rope: Rope::new(Rope::frequencies(6, 100.0), &Device::Cpu),
            positions: (4..7).collect(),
            causal: Attention { causal: true, ..Attention::default() },
            dropout: Dropout { probability: 0.3, stream: Stream::new(1, Purpose::Dropout, 1) },
        })
    }
}

/// The value, and the gradient in each argument; there must be no others.
fn differentiate(name: &str, op: &Op, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tensors)?;
    let grads = y.backward()?;
    let known = |id: &candle_core::TensorId| tensors.iter().any(|t| t.id() == *id);
    // Intermediate nodes of an op that is made of candle's own are consumed on the way; what is left and is not an
    // argument is the gradient of something frozen.
    let others = grads.get_ids().filter(|id| !known(id)).count();
    assert_eq!(others, 0, "{name}: gradients of what is frozen");
    let missing = || candle_core::Error::msg(format!("{name}: no gradient"));
    let of_inputs = tensors.iter().map(|t| grads.get(t).cloned().ok_or_else(missing));
    [Ok(y.detach())].into_iter().chain(of_inputs).collect()
}

#[test]
fn only_arguments_get_gradients() -> Result<()> {
    let frozen = Frozen::new(DType::F32)?;
    for (name, shapes, op) in every_op(&frozen) {
        let inputs: Vec<_> = shapes.iter().zip(1..).map(|(s, seed)| random(seed, s.clone(), DType::F32)).collect();
        differentiate(name, &op, &inputs)?;
    }
    Ok(())
}

#[test]
fn lower_precision_is_near_double() -> Result<()> {
    let exact = Frozen::new(DType::F64)?;
    for (dtype, tolerance) in [
        // bf16 has 8 bits of mantissa, and a handful of roundings stand behind each number.
        (DType::BF16, Tolerance { absolute: 1e-3, relative: 0.03 }),
        (DType::F16, Tolerance { absolute: 1e-3, relative: 0.004 }),
        (DType::F32, Tolerance { absolute: 1e-6, relative: 3e-6 }),
    ] {
        let low = Frozen::new(dtype)?;
        for ((name, shapes, op), (.., witness)) in every_op(&low).into_iter().zip(every_op(&exact)) {
            // Parameters of an adapter stay f32 on devices whose activations are not.
            let adapter = |i: usize| name.contains("lora") && i > 0;
            let inputs: Vec<_> = shapes.iter().zip(1..).map(|(s, seed)| random(seed, s.clone(), DType::F32)).collect();
            let narrow =
                inputs.iter().enumerate().map(|(i, x)| if adapter(i) { Ok(x.clone()) } else { x.to_dtype(dtype) });
            let narrow: Vec<_> = narrow.collect::<Result<_>>()?;
            let wide: Vec<_> = narrow.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
            let (found, expected) = (differentiate(name, &op, &narrow)?, differentiate(name, &witness, &wide)?);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_close(&format!("{name} in {dtype:?}, {i}"), found, expected, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_is_no_panic() -> Result<()> {
    let frozen = Frozen::new(DType::F32)?;
    let none = random(1, (0, 3, 6), DType::F32);
    assert_eq!(ops::linear(&none, &frozen.weight, Some(&frozen.bias))?.dims(), [0, 3, 5]);
    let wide = Weight::from_tensor(&random(2, (300, 6), DType::BF16))?;
    let vars = [random(3, (4, 6), DType::F32), random(4, (300, 4), DType::F32)].map(|t| Var::from_tensor(&t));
    let [a, b] = vars;
    let (a, b) = (a?, b?);
    let lora = Lora { a: &a, b: &b, scale: 1.0, dropout: None };
    let grads = ops::lora_linear(&none, &wide, None, &lora)?.backward()?;
    for var in [&a, &b] {
        let Some(grad) = grads.get(var) else { candle_core::bail!("no gradient") };
        assert_eq!(grad.sqr()?.sum_all()?.to_scalar::<f32>()?, 0.0);
    }
    Ok(())
}
