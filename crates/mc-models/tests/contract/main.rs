//! What every architecture promises whoever uses it, held on random tiny models of each.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod adapters;
mod halves;
mod passes;
mod tiny;

use candle_core::{DType, IndexOp, Result, Tensor};
use mc_models::{Pass, RopeScaling};
use mc_testkit::{Tolerance, assert_close};
use std::collections::HashSet;
use tiny::{Tiny, logits, models};

/// The random models differ in all that the architectures leave open: a choice that no model makes is not tested.
#[test]
fn the_models_differ_in_everything() {
    let mut seen: HashSet<String> = HashSet::new();
    for tiny in models() {
        let (c, json) = (&tiny.config, &tiny.json);
        let mut see = |what: &str, case: String| {
            seen.insert(format!("{what} {case}"));
            seen.insert(format!("{} {what} {case}", c.model_type));
        };
        see("one kv head", (c.num_key_value_heads == 1).to_string());
        see("grouped", (c.num_key_value_heads < c.num_attention_heads).to_string());
        see("heads as wide as the model", (c.hidden_size == c.num_attention_heads * c.head_dim).to_string());
        see("tied", format!("{:?} {}", c.tie_word_embeddings, !tiny.tensors.contains_key("lm_head.weight")));
        see("attention bias", c.o_bias.to_string());
        see("mlp bias", c.mlp_bias.to_string());
        see("window", c.sliding_windows.iter().any(Option::is_some).to_string());
        see("new style", json.get("rope_parameters").is_some().to_string());
        let rope = match c.rope.scaling {
            RopeScaling::Default => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
        };
        see("rope", rope.into());
    }
    for architecture in mc_models::SUPPORTED {
        let cases = "one kv head,true;one kv head,false;grouped,true;grouped,false;new style,true;new style,false;\
            rope,default;rope,linear;rope,llama3";
        let own = match architecture {
            "llama" => "attention bias,true;attention bias,false;mlp bias,true;mlp bias,false",
            "qwen3" => "attention bias,true;attention bias,false;window,true;window,false",
            _ => "window,true;window,false",
        };
        for case in cases.split(';').chain(own.split(';')) {
            let case = format!("{architecture} {}", case.replace(',', " "));
            assert!(seen.contains(&case), "no model is `{case}`");
        }
    }
    for case in ["Some(true) true", "Some(false) false", "None true", "None false"] {
        assert!(seen.contains(&format!("tied {case}")), "no head is {case}");
    }
    for wide in [true, false] {
        assert!(seen.contains(&format!("heads as wide as the model {wide}")));
    }
}

#[test]
fn shapes_and_the_walk_over_blocks() -> Result<()> {
    for tiny in models() {
        let (model, c) = (tiny.load(), &tiny.config);
        let (b, t) = (2, 5);
        let ids = tiny.ids(1, b * t);
        let mut x = model.embed(&ids, (b, t))?;
        assert_eq!(x.dims(), [b, t, c.hidden_size], "{}", tiny.name);
        let table = tiny.tensors["model.embed_tokens.weight"].i(ids[t + 2] as usize)?;
        assert_close(&tiny.name, &x.i((1, 2))?, &table, Tolerance::absolute(0.0));
        for index in 0..model.num_blocks() {
            let y = model.block(index, &x, &mut Pass::default())?;
            assert_eq!(y.dims(), x.dims(), "{}", tiny.name);
            x = y;
        }
        let x = model.norm(&x)?;
        let hidden = model.hidden(&ids, (b, t), &mut Pass::default())?;
        assert_close(&tiny.name, &hidden, &x, Tolerance::absolute(0.0));
        let logits = model.logits(&hidden)?;
        assert_eq!(logits.dims(), [b, t, c.vocab_size], "{}", tiny.name);

        let head = tiny.tensors.get("lm_head.weight").unwrap_or(&tiny.tensors["model.embed_tokens.weight"]);
        let by_hand = hidden.reshape((b * t, ()))?.matmul(&head.t()?)?.reshape(logits.shape())?;
        assert_close(&tiny.name, &logits, &by_hand, Tolerance::relative(1e-5));
        assert!(model.block(model.num_blocks(), &x, &mut Pass::default()).is_err(), "{}", tiny.name);
    }
    Ok(())
}

/// Weights in half precision, asked to compute in `f32`, give what the rounded weights give in `f32`: they are widened
/// where they are read, never the activations narrowed. Left to themselves `bf16` weights round what they read, too.
#[test]
fn half_precision_weights() -> Result<()> {
    for mut tiny in models() {
        let ids = tiny.ids(2, 12);
        let exact = logits(&*tiny.load(), &ids, 2, &mut Pass::default())?;
        for (dtype, near, rounding) in [(DType::BF16, 0.1, 0.03), (DType::F16, 0.02, 1e-5)] {
            let converted = tiny.load_as(Some(dtype));
            assert_eq!((converted.dtype(), converted.head().dtype()), (DType::F32, dtype), "{}", tiny.name);
            let full = tiny.tensors.clone();
            let cast = |tiny: &mut Tiny, dtype| -> Result<()> {
                for tensor in tiny.tensors.values_mut().filter(|t| t.rank() == 2) {
                    *tensor = tensor.to_dtype(dtype)?;
                }
                Ok(())
            };
            cast(&mut tiny, dtype)?;
            let half = tiny.load_as(Some(DType::F32));
            assert!((0..half.sites().len()).all(|i| half.projection(i).unwrap().weight.dtype() == dtype));
            let halved = logits(&*half, &ids, 2, &mut Pass::default())?;
            cast(&mut tiny, DType::F32)?;
            let rounded = logits(&*tiny.load(), &ids, 2, &mut Pass::default())?;
            tiny.tensors = full;
            assert_close(&tiny.name, &halved, &rounded, Tolerance::relative(1e-5));
            assert_close(&format!("{} in {dtype:?}", tiny.name), &halved, &exact, Tolerance::relative(near));
            let left = logits(&*converted, &ids, 2, &mut Pass::default())?;
            assert_close(&format!("{} left {dtype:?}", tiny.name), &left, &rounded, Tolerance::relative(rounding));
        }
    }
    Ok(())
}

/// A source may hold `f64`, which the kernels do not read.
#[test]
fn double_precision_weights() -> Result<()> {
    for mut tiny in models().step_by(3) {
        let ids = tiny.ids(2, 12);
        let exact = logits(&*tiny.load(), &ids, 2, &mut Pass::default())?;
        for tensor in tiny.tensors.values_mut() {
            *tensor = tensor.to_dtype(DType::F64)?;
        }
        for dtype in [None, Some(DType::F32)] {
            let double = logits(&*tiny.load_as(dtype), &ids, 2, &mut Pass::default())?;
            assert_close(&tiny.name, &double, &exact, Tolerance::relative(1e-5));
        }
    }
    Ok(())
}

/// Every tensor of a checkpoint is needed, and has to have its shape; the error names it.
#[test]
fn a_missing_or_misshapen_tensor_is_named() -> Result<()> {
    for mut tiny in models().step_by(5) {
        // Where neither says so, a missing head means a tied one.
        tiny.config.tie_word_embeddings = Some(!tiny.tensors.contains_key("lm_head.weight"));
        for name in tiny.tensors.keys() {
            let load = |tensors| {
                let source = mc_checkpoint::MemorySource::new(tensors);
                let device = candle_core::Device::Cpu;
                mc_models::Decoder::load(tiny.config.clone(), &source, &device, None).unwrap_err().to_string()
            };
            let mut without = tiny.tensors.clone();
            let tensor = without.remove(name).unwrap();
            let error = load(without.clone());
            assert!(error.contains(name.as_str()), "{error}");
            without.insert(name.clone(), Tensor::cat(&[&tensor, &tensor], 0)?);
            let error = load(without);
            assert!(error.contains(name.as_str()) && error.contains("expected"), "{error}");
        }
    }
    Ok(())
}
