//! Models in bf16: what their caches keep is rounded to f16 where products round to bf16, and only there.

use crate::{
    passes::{cache, in_chunks},
    tiny::{Dice, Tiny, logits, models},
};
use candle_core::{DType, IndexOp, Result, Tensor};
use mc_backend::{Purpose, Stream, computation::Products};
use mc_models::{CausalLM, Pass};
use std::sync::Arc;

/// A tiny model whose matrices are bf16, and the same numbers with everything computed in f32.
fn rounded(tiny: &mut Tiny) -> Result<(Arc<dyn CausalLM>, Arc<dyn CausalLM>)> {
    for tensor in tiny.tensors.values_mut().filter(|t| t.rank() == 2) {
        *tensor = tensor.to_dtype(DType::BF16)?;
    }
    Ok((tiny.load_as(None), tiny.load_as(Some(DType::F32))))
}

/// The largest difference of tokens that are not padding, as a part of the largest logit.
fn error(found: &Tensor, expected: &Tensor, left: &[usize]) -> Result<f32> {
    let largest = |x: &Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
    let mut error = 0f32;
    for (row, padding) in left.iter().enumerate() {
        let (found, expected) = (found.i((row, *padding..))?, expected.i((row, *padding..))?);
        error = error.max(largest(&(found - &expected)?)? / largest(&expected)?);
    }
    Ok(error)
}

#[test]
fn a_prompt_in_pieces_is_as_near_as_at_once() -> Result<()> {
    for mut tiny in models() {
        let (model, exact) = rounded(&mut tiny)?;
        let mut dice = Dice(Stream::new(3, Purpose::Shuffle, 0));
        for b in [1, 3] {
            let t = dice.between(9, 40);
            let ids = tiny.ids(b as u64, b * t);
            let left: Vec<usize> = (0..b).map(|row| if row == 0 { 0 } else { dice.between(0, t - 1) }).collect();
            let padded = (b > 1).then_some(&left[..]);
            let pass = || Pass { left_padding: padded, ..Pass::default() };
            let reference = logits(&*exact, &ids, b, &mut pass())?;
            let whole = logits(&*model, &ids, b, &mut pass())?;
            let near = 4.0 * error(&whole, &reference, &left)? + 1e-5;
            let check = |what: &str, found: &Tensor, from: usize| -> Result<()> {
                let left: Vec<usize> = left.iter().map(|left| left.saturating_sub(from)).collect();
                let error = error(found, &reference.i((.., from..))?, &left)?;
                assert!(error <= near, "{}, {b} rows of {t}, {what}: {error}, at once {}", tiny.name, near / 4.0);
                Ok(())
            };
            let mut kept = cache(&*model, b, dice.between(1, 4))?;
            check("one by one", &in_chunks(&*model, &ids, t, padded, &mut kept, || 1)?, 0)?;
            kept.truncate(t / 2);
            let mut copy = kept.try_clone()?;
            check("rolled back", &in_chunks(&*model, &ids, t, padded, &mut kept, || dice.between(1, 12))?, t / 2)?;
            check("of a copy", &in_chunks(&*model, &ids, t, padded, &mut copy, || 2)?, t / 2)?;
            // What is read into an empty cache is seen as it was computed.
            kept.truncate(0);
            let first = in_chunks(&*model, &ids, t, padded, &mut kept, || t)?;
            assert_eq!(first.to_vec3::<f32>()?, whole.to_vec3::<f32>()?, "{}", tiny.name);
        }
    }
    Ok(())
}

/// One projection that rounds nothing is enough for a cache that rounds nothing.
#[test]
fn caches_are_in_f16_where_all_blocks_round() -> Result<()> {
    for mut tiny in models() {
        let (model, exact) = rounded(&mut tiny)?;
        let numbers = cache(&*exact, 1, 1)?.size_in_bytes() / 4;
        let halves = model.projection(0).unwrap().weight.computation().products == Products::BF16;
        let size = |halves: bool| numbers * if halves { 2 } else { 4 };
        assert_eq!(cache(&*model, 1, 1)?.size_in_bytes(), size(halves), "{}", tiny.name);
        let last = format!("{}.weight", model.sites().last().unwrap().path);
        let weight = tiny.tensors.get_mut(&last).unwrap();
        *weight = weight.to_dtype(DType::F32)?;
        assert_eq!(cache(&*tiny.load_as(None), 1, 1)?.size_in_bytes(), size(false), "{}", tiny.name);
    }
    Ok(())
}
