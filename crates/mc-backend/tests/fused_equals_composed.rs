//! Holds the fused CPU kernels (`f32`) against the composed paths in `f64`, forward and backward: odd sizes, batch 1,
//! length 1, views with strides and offsets. The composed paths are what other devices run; their gradients are held
//! against central differences beside each op.

use candle_core::{DType, IndexOp, Result, Tensor, Var};
use mc_backend::{
    Purpose, Stream, Weight,
    computation::Products,
    ops::{self, Attention, Dropout, Gelu, Lora, Projections, RelativeBias, Rope, composed},
};
use mc_testkit::{Tolerance, assert_close, random};

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Runs both on the same inputs; values and all gradients of a random projection of the output must agree.
fn check(name: &str, inputs: &[Tensor], fused: Op, composed: Op) -> Result<()> {
    let run = |op: Op, dtype| -> Result<(Tensor, Vec<Tensor>)> {
        let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype)?)).collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = op(&tensors)?;
        let cotangent = random(99, y.shape().clone(), DType::F32).to_dtype(dtype)?;
        let grads = (&y * cotangent)?.sum_all()?.backward()?;
        let missing = || candle_core::Error::msg(format!("{name}: an input has no gradient"));
        let grads = tensors.iter().map(|t| grads.get(t).cloned().ok_or_else(missing)).collect::<Result<_>>()?;
        Ok((y.detach(), grads))
    };
    let (y, grads) = run(fused, DType::F32)?;
    let (expected, expected_grads) = run(composed, DType::F64)?;
    assert_eq!(y.dtype(), DType::F32, "{name}: the fused path was not taken");
    // f32 sums over at most some hundred terms of size 1.
    let tolerance = Tolerance { absolute: 1e-6, relative: 3e-6 };
    assert_close(name, &y, &expected, tolerance);
    for (i, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
        assert_close(&format!("{name}: gradient {i}"), grad, expected, tolerance);
    }
    Ok(())
}

fn x(seed: u64, shape: &[usize]) -> Tensor {
    random(seed, shape, DType::F32)
}

/// The weight in every dtype that it can have on the CPU, as both paths see the same numbers.
fn weights(rows: usize, cols: usize) -> Result<Vec<Weight>> {
    let w = x(7, &[rows, cols]);
    [DType::F32, DType::BF16, DType::F16].into_iter().map(|d| Weight::from_tensor(&w.to_dtype(d)?)).collect()
}

/// Shapes before the last dimension: few rows, many rows, batch 1, length 1.
const LEADING: [&[usize]; 5] = [&[1, 1], &[3, 1], &[1, 7], &[2, 5], &[3, 47]];

#[test]
fn linear() -> Result<()> {
    for leading in LEADING {
        for (inner, outer) in [(1, 3), (33, 17), (64, 131), (130, 257)] {
            let shape = [leading, &[inner]].concat();
            for w in weights(outer, inner)? {
                let bias = x(3, &[outer]);
                for bias in [None, Some(&bias)] {
                    let name = format!("linear {shape:?} → {outer}, {:?}", w.dtype());
                    check(&name, &[x(1, &shape)], &|t| ops::linear(&t[0], &w, bias), &|t| {
                        composed::linear(&t[0], &w, bias)
                    })?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn linear_of_a_view() -> Result<()> {
    let w = &weights(19, 21)?[1];
    let view = |t: &Tensor| t.transpose(0, 1)?.narrow(2, 2, 21);
    let inputs = [x(1, &[9, 4, 30])];
    check("a view", &inputs, &|t| ops::linear(&view(&t[0])?, w, None), &|t| composed::linear(&view(&t[0])?, w, None))
}

#[test]
fn lora() -> Result<()> {
    for leading in LEADING {
        for (inner, outer, rank) in [(5, 3, 1), (33, 17, 3), (64, 131, 8)] {
            let shape = [leading, &[inner]].concat();
            let inputs = [x(1, &shape), x(2, &[rank, inner]), x(3, &[outer, rank])];
            for w in weights(outer, inner)? {
                let bias = x(4, &[outer]);
                for dropout in [None, Some(Dropout { probability: 0.3, stream: Stream::new(1, Purpose::Dropout, 5) })] {
                    let lora = |t: &[Tensor]| (t[1].clone(), t[2].clone(), dropout.clone());
                    let fused: Op = &|t| {
                        let (a, b, dropout) = lora(t);
                        ops::lora_linear(&t[0], &w, Some(&bias), &Lora { a: &a, b: &b, scale: 1.5, dropout })
                    };
                    let plain: Op = &|t| {
                        let (a, b, dropout) = lora(t);
                        composed::lora_linear(&t[0], &w, Some(&bias), &Lora { a: &a, b: &b, scale: 1.5, dropout })
                    };
                    check(&format!("lora {shape:?} → {outer}, {:?}", w.dtype()), &inputs, fused, plain)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn norms() -> Result<()> {
    for leading in LEADING {
        for d in [1, 15, 16, 64, 257] {
            let shape = [leading, &[d]].concat();
            let (w, b) = (x(5, &[d]), x(6, &[d]));
            let inputs = [x(1, &shape)];
            check(&format!("rms_norm {shape:?}"), &inputs, &|t| ops::rms_norm(&t[0], &w, 1e-5), &|t| {
                composed::rms_norm(&t[0], &w, 1e-5)
            })?;
            // With a width of 1 the normalised value is 0 and its gradient is rounding error.
            if d > 1 {
                check(
                    &format!("layer_norm {shape:?}"),
                    &inputs,
                    &|t| ops::layer_norm(&t[0], &w, Some(&b), 1e-3),
                    &|t| composed::layer_norm(&t[0], &w, Some(&b), 1e-3),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn activations() -> Result<()> {
    for shape in [&[1, 1, 1][..], &[2, 3, 17], &[1, 40, 433]] {
        let inputs = [(x(1, shape) * 4.0)?, x(2, shape)];
        check(&format!("swiglu {shape:?}"), &inputs, &|t| ops::swiglu(&t[0], &t[1]), &|t| {
            composed::swiglu(&t[0], &t[1])
        })?;
        check(&format!("geglu {shape:?}"), &inputs, &|t| ops::geglu(&t[0], &t[1]), &|t| composed::geglu(&t[0], &t[1]))?;
        for form in [Gelu::Exact, Gelu::Tanh] {
            let name = format!("gelu {form:?} {shape:?}");
            check(&name, &inputs[..1], &|t| ops::gelu(&t[0], form), &|t| composed::gelu(&t[0], form))?;
        }
    }
    Ok(())
}

#[test]
fn rope() -> Result<()> {
    for (b, t, h, d) in [(1, 1, 1, 2), (2, 5, 3, 6), (3, 70, 2, 64)] {
        let table = Rope::new(Rope::frequencies(d, 10_000.0), &candle_core::Device::Cpu);
        let shared: std::sync::Arc<[u32]> = (11..11 + t as u32).collect();
        let each: std::sync::Arc<[u32]> = (0..(b * t) as u32).map(|i| i * 7 % 90).collect();
        for positions in [shared, each] {
            check(
                &format!("rope {b} {t} {h} {d}"),
                &[x(1, &[b, t, h, d])],
                &|v| ops::rope(&v[0], &table, &positions),
                &|v| composed::rope(&v[0], &table, &positions),
            )?;
        }
    }
    Ok(())
}

#[test]
fn attention() -> Result<()> {
    // (b, tq, tk, heads, kv_heads, d): one query, square, longer than a tile of 64 and of 128, with a past.
    let sizes = [
        (1, 1, 1, 1, 1, 2),
        (2, 1, 9, 4, 2, 6),
        (1, 7, 7, 3, 1, 5),
        (2, 67, 67, 2, 2, 8),
        (1, 33, 150, 6, 2, 4),
        (1, 131, 200, 2, 1, 3),
    ];
    for (b, tq, tk, heads, kv, d) in sizes {
        let inputs = [x(1, &[b, tq, heads, d]), x(2, &[b, tk, kv, d]), x(3, &[b, tk, kv, d])];
        let padded: Vec<_> = (0..b).map(|r| (r * 2).min(tk - 1)..tk - r.min(tk / 3)).collect();
        for (causal, window, valid) in [
            (false, None, None),
            (true, None, None),
            (true, Some(1), None),
            (true, Some(40), None),
            (false, Some(9), None),
            (false, None, Some(padded.clone().into())),
            (true, Some(70), Some(padded.into())),
        ] {
            let how = Attention { causal, window, valid, ..Attention::default() };
            let name = format!("attention {:?}, {how:?}", (b, tq, tk, heads, kv, d));
            check(&name, &inputs, &|t| ops::attention(&t[0], &t[1], &t[2], &how), &|t| {
                composed::attention(&t[0], &t[1], &t[2], &how)
            })?;
        }
    }
    Ok(())
}

/// Texts in one row, longer and shorter than tiles, of one token too; each sees itself as if it were alone.
#[test]
fn attention_within_segments_and_with_a_relative_bias() -> Result<()> {
    for (lengths, heads, kv, d) in
        [(&[1][..], 1, 1, 2), (&[2, 1, 3], 2, 1, 5), (&[5, 70, 1, 1, 33, 131, 20], 4, 2, 6), (&[16; 20], 3, 3, 8)]
    {
        let t: usize = lengths.iter().sum();
        let starts = lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n)));
        let segments: Vec<_> = starts.zip(lengths).map(|(start, n)| start..start + n).collect();
        let inputs = [x(1, &[1, t, heads, d]), x(2, &[1, t, kv, d]), x(3, &[1, t, kv, d])];
        let bias = RelativeBias::new(heads, 7, |head, distance| (distance as f32 * 0.7).sin() + head as f32 * 0.2);
        for (causal, window, bias) in [
            (false, None, None),
            (false, None, Some(bias.clone())),
            (false, Some(6), None),
            (true, None, None),
            (true, Some(3), Some(bias)),
        ] {
            let alone = Attention { causal, window, bias, ..Attention::default() };
            let how = Attention { segments: Some(segments.clone().into()), ..alone.clone() };
            let name = format!("attention {lengths:?}, {how:?}");
            check(&name, &inputs, &|t| ops::attention(&t[0], &t[1], &t[2], &how), &|t| {
                composed::attention(&t[0], &t[1], &t[2], &how)
            })?;
            let together = ops::attention(&inputs[0], &inputs[1], &inputs[2], &how)?;
            for segment in &segments {
                let part = |x: &Tensor| x.narrow(1, segment.start, segment.len());
                let [q, k, v] = inputs.each_ref().map(part);
                let expected = ops::attention(&q?, &k?, &v?, &alone)?;
                assert_close(&name, &part(&together)?, &expected, Tolerance::absolute(1e-6));
            }
        }
    }
    Ok(())
}

/// The halves of an encoder's layer: fused where nothing is tracked, else the ops that they are made of.
#[test]
fn halves_of_an_encoder_layer() -> Result<()> {
    let narrow = |t: &Tensor, dtype| t.to_dtype(dtype);
    // Up to 48 tokens the heads are shared out, beyond them the queries.
    for (lengths, heads, d, inner) in
        [(&[1][..], 1, 2, 3), (&[5, 27, 1, 13], 3, 6, 37), (&[5, 30, 1, 14], 3, 6, 37), (&[70, 131, 20], 2, 16, 130)]
    {
        let (t, hidden): (usize, usize) = (lengths.iter().sum(), heads * d + 1);
        let starts = lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n)));
        let segments: Vec<_> = starts.zip(lengths).map(|(start, n)| start..start + n).collect();
        let positions: std::sync::Arc<[u32]> = lengths.iter().flat_map(|n| 0..*n as u32).collect();
        let rope = Rope::new(Rope::frequencies(d, 100.0), &candle_core::Device::Cpu);
        let bias = RelativeBias::new(heads, 7, |head, distance| (distance as f32 * 0.7).sin() + head as f32 * 0.2);
        let input = x(1, &[1, t, hidden]);
        for (dtype, rounds) in [(DType::F32, false), (DType::BF16, false), (DType::BF16, true)] {
            let projections = |seed: u64, shapes: &[(usize, usize)], bias: bool| -> Result<Projections> {
                let member = |(i, (out, inner)): (usize, &(usize, usize))| {
                    let weight = Weight::from_tensor(&narrow(&x(seed + i as u64, &[*out, *inner]), dtype)?)?;
                    Ok((weight, bias.then(|| x(seed + 50 + i as u64, &[*out]))))
                };
                Ok(Projections::new(shapes.iter().enumerate().map(member).collect::<Result<_>>()?)
                    .with_sixteen_bits(rounds))
            };
            let (w, b) = (x(5, &[hidden]), x(6, &[hidden]));
            let norm = Some(ops::LayerNorm { weight: &w, bias: Some(&b), eps: 1e-3 });
            let width = heads * d;
            let (three, one) =
                (projections(10, &[(width, hidden); 3], true)?, projections(20, &[(3 * width, hidden)], false)?);
            let (o, plain_o) =
                (projections(30, &[(hidden, width)], true)?, projections(30, &[(hidden, width)], false)?);
            let how =
                Attention { segments: Some(segments.clone().into()), bias: Some(bias.clone()), ..Attention::default() };
            let local = Attention { bias: None, window: Some(4), ..how.clone() };
            let after = ops::EncoderAttention {
                before: None,
                qkv: &three,
                o: &o,
                after: norm,
                head_dim: d,
                rope: None,
                how: &how,
            };
            let rope = Some((&*rope, &positions));
            let before = ops::EncoderAttention {
                before: norm,
                qkv: &one,
                o: &plain_o,
                after: None,
                rope,
                how: &local,
                ..after.clone()
            };
            let (up, down) = (projections(40, &[(inner, hidden)], true)?, projections(41, &[(hidden, inner)], true)?);
            let wide = projections(42, &[(2 * inner, hidden)], false)?;
            let [feed, tanh] = [Gelu::Exact, Gelu::Tanh].map(|form| {
                let activation = ops::Activation::Gelu(form);
                ops::EncoderFeedForward { before: None, up: &up, activation, down: &down, after: norm }
            });
            let activation = ops::Activation::Geglu;
            let gated = ops::EncoderFeedForward { before: norm, up: &wide, activation, down: &down, after: None };
            let halves: [(&str, Op, Op); 5] = [
                ("after", &|t| ops::encoder_attention(&t[0], &after), &|t| composed::encoder_attention(&t[0], &after)),
                ("before", &|t| ops::encoder_attention(&t[0], &before), &|t| {
                    composed::encoder_attention(&t[0], &before)
                }),
                ("feed", &|t| ops::encoder_feed_forward(&t[0], &feed), &|t| {
                    composed::encoder_feed_forward(&t[0], &feed)
                }),
                ("tanh", &|t| ops::encoder_feed_forward(&t[0], &tanh), &|t| {
                    composed::encoder_feed_forward(&t[0], &tanh)
                }),
                ("gated", &|t| ops::encoder_feed_forward(&t[0], &gated), &|t| {
                    composed::encoder_feed_forward(&t[0], &gated)
                }),
            ];
            for (name, fused, composed) in halves {
                let name = format!("{name} {lengths:?} {dtype:?}, sixteen bits {rounds}");
                // Tracked, it is finer ops, which have tests of their own for their precision.
                let exact = composed(&[input.to_dtype(DType::F64)?])?;
                let tolerance = Tolerance { absolute: 2e-5, relative: 2e-5 };
                // Three products one after the other, and a softmax of scores of some dozens.
                let products = up.computation().products;
                let (largest, mean) = match products {
                    Products::F16 => (Tolerance::relative(3e-2), 4e-3),
                    Products::I16 => (Tolerance::relative(1e-2), 1.3e-3),
                    _ => (tolerance, 1e-5),
                };
                let y = fused(std::slice::from_ref(&input))?;
                assert_close(&name, &y, &exact, largest);
                let square = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f64>();
                let off = (square(&(y.to_dtype(DType::F64)? - &exact)?)? / square(&exact)?).sqrt();
                assert!(off <= mean, "{name}, {products:?}: off by {off:.1e} of its norm");
                let tracked = Var::from_tensor(&input)?;
                let y = fused(&[tracked.as_tensor().clone()])?;
                assert_close(&name, &y, &exact, tolerance);
                assert!(y.track_op());
            }
        }
    }
    Ok(())
}

/// An encoder's rows that are padded, on either side of where queries are shared out, with positions of their own.
#[test]
fn an_encoder_half_of_padded_rows() -> Result<()> {
    let (heads, d) = (3, 6);
    let hidden = heads * d + 1;
    let projections = |seed: u64, (out, inner): (usize, usize)| {
        Ok::<_, candle_core::Error>(Projections::new(vec![(
            weights(out, inner)?.swap_remove(0),
            Some(x(seed, &[out])),
        )]))
    };
    let (qkv, o) = (projections(10, (3 * heads * d, hidden))?, projections(20, (hidden, heads * d))?);
    let (w, b) = (x(5, &[hidden]), x(6, &[hidden]));
    let norm = Some(ops::LayerNorm { weight: &w, bias: Some(&b), eps: 1e-3 });
    let rope = Rope::new(Rope::frequencies(d, 100.0), &candle_core::Device::Cpu);
    for (rows, t) in [(2usize, 7usize), (2, 40), (3, 61)] {
        let valid: std::sync::Arc<[_]> = (0..rows).map(|r| r..t - 2 * r).collect();
        let positions = (0..rows * t).map(|i| (i % t).saturating_sub(i / t) as u32).collect();
        let how = Attention { valid: Some(valid), ..Attention::default() };
        for (before, after) in [(norm, None), (None, norm)] {
            let rope = Some((&*rope, &positions));
            let half = ops::EncoderAttention { before, qkv: &qkv, o: &o, after, head_dim: d, rope, how: &how };
            let input = x(1, &[rows, t, hidden]);
            let exact = composed::encoder_attention(&input.to_dtype(DType::F64)?, &half)?;
            let tolerance = Tolerance { absolute: 2e-5, relative: 2e-5 };
            let name = format!("{rows} rows of {t}, norm after {}", after.is_some());
            assert_close(&name, &ops::encoder_attention(&input, &half)?, &exact, tolerance);
        }
    }
    Ok(())
}

#[test]
fn attention_reads_views_into_a_cache() -> Result<()> {
    let (q, cache) = (x(1, &[2, 3, 4, 6]), x(2, &[2, 20, 2, 6]));
    let how = Attention { causal: true, ..Attention::default() };
    let view = cache.narrow(1, 4, 9)?;
    assert!(!view.is_contiguous());
    let expected = ops::attention(&q, &view.copy()?, &view.copy()?, &how)?;
    assert_close("a view", &ops::attention(&q, &view, &view, &how)?, &expected, Tolerance::absolute(0.0));
    let one = q.i((.., 0..1))?;
    let expected = ops::attention(&one, &view.copy()?, &view.copy()?, &how)?;
    assert_close("one query", &ops::attention(&one, &view, &view, &how)?, &expected, Tolerance::absolute(0.0));
    Ok(())
}

#[test]
fn cross_entropy() -> Result<()> {
    // The third has more positions than are computed at a time, in several blocks of each part of the vocabulary; the
    // last is so deep that its products go in pieces, and wide enough that positions go in chunks.
    for (n, d, v) in [(1, 3, 2), (9, 16, 37), (900, 5, 16_411), (150, 8_200, 20)] {
        let positions: Vec<u32> = (0..n as u32).filter(|p| p % 3 != 1 || n == 150).chain([0]).collect();
        let mut targets: Vec<u32> = positions.iter().map(|p| (p * 7919 + 1) % v as u32).collect();
        targets[0] = v as u32 - 1;
        for head in weights(v, d)? {
            // Small where there are many of them, so that logits are not: what rounding does to those grows with them.
            let hidden = (x(1, &[n, d]) * (5.0 / d as f64).min(1.0))?;
            check(
                &format!("cross-entropy {n} {d} {v}"),
                &[hidden],
                &|t| ops::linear_cross_entropy(&t[0], &head, &positions, &targets),
                &|t| composed::linear_cross_entropy(&t[0], &head, &positions, &targets),
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() -> Result<()> {
    let run = |threads| -> Result<Vec<Vec<f32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| {
            let w = &weights(300, 96)?[1];
            let vars = [x(1, &[2, 90, 96]), x(2, &[8, 96]), x(3, &[300, 8])].map(|t| Var::from_tensor(&t));
            let [input, a, b] = vars;
            let (input, a, b) = (input?, a?, b?);
            let lora = Lora { a: &a, b: &b, scale: 2.0, dropout: None };
            let y = ops::lora_linear(&input, w, None, &lora)?.reshape((2, 90, 5, 60))?;
            let out = ops::attention(&y, &y.narrow(2, 0, 1)?, &y.narrow(2, 1, 1)?, &Attention::default())?;
            let norm = ops::rms_norm(&out.reshape((2, 90, 300))?, &x(4, &[300]), 1e-6)?;
            let loss = ops::linear_cross_entropy(&norm, &weights(500, 300)?[1], &[0, 50, 170], &[4, 400, 9])?;
            let grads = loss.backward()?;
            let all = [Some(&loss), grads.get(&input), grads.get(&a), grads.get(&b)];
            all.into_iter().flatten().map(|t| t.flatten_all()?.to_vec1::<f32>()).collect()
        })
    };
    let one = run(1)?;
    assert_eq!(one.len(), 4);
    assert!(one == run(2)? && one == run(3)?);
    Ok(())
}
