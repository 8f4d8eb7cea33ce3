//! The seam for adapters: every site passes through it once, and what trains there gets its gradient.

use crate::tiny::{logits, models};
use candle_core::{DType, Result, Tensor, Var};
use mc_backend::ops::{Lora, lora_linear};
use mc_models::{Adapter, CausalLM, Pass, Projection};
use mc_testkit::{Tolerance, assert_close, random};
use std::sync::Mutex;

/// Writes down the groups that it is asked for, and adds nothing.
#[derive(Default)]
struct Recorder(Mutex<Vec<Vec<usize>>>);

impl Adapter for Recorder {
    fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        let mut out = vec![];
        for projection in group {
            assert_eq!(x.dims()[2], projection.site.in_features, "{}", projection.site.path);
            let y = projection.forward(x)?;
            assert_eq!(y.dims(), [x.dims()[0], x.dims()[1], projection.site.out_features], "{}", projection.site.path);
            out.push(y);
        }
        self.0.lock().unwrap().push(group.iter().map(|p| p.site.index).collect());
        Ok(out)
    }
}

/// Adds a trainable product of two thin matrices at every site.
struct LowRank {
    a: Vec<Var>,
    b: Vec<Var>,
}

impl LowRank {
    fn new(model: &dyn CausalLM, seed: u64) -> Result<Self> {
        let rank = 2;
        let var = |seed: u64, rows: usize, cols: usize| {
            Var::from_tensor(&(random(seed, (rows, cols), DType::F32) / (cols as f64).sqrt())?)
        };
        let sites = model.sites().iter().zip((2 * seed * model.sites().len() as u64..).step_by(2));
        let (a, b) = sites
            .map(|(s, seed)| Ok((var(seed, rank, s.in_features)?, var(seed + 1, s.out_features, rank)?)))
            .collect::<Result<_>>()?;
        Ok(Self { a, b })
    }

    fn variables(&self) -> impl Iterator<Item = &Var> {
        self.a.iter().chain(&self.b)
    }
}

impl Adapter for LowRank {
    fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        let one = |p: &Projection| {
            let (a, b) = (&self.a[p.site.index], &self.b[p.site.index]);
            lora_linear(x, &p.weight, p.bias.as_ref(), &Lora { a, b, scale: 0.7, dropout: None })
        };
        group.iter().map(one).collect()
    }
}

/// Returns one tensor too few.
struct Short;

impl Adapter for Short {
    fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        group[1..].iter().map(|p| p.forward(x)).collect()
    }
}

#[test]
fn every_site_is_reached_once_and_in_order() -> Result<()> {
    for tiny in models() {
        let model = tiny.load();
        let ids = tiny.ids(1, 8);
        let recorder = Recorder::default();
        let with = logits(&*model, &ids, 2, &mut Pass { adapter: Some(&recorder), ..Pass::default() })?;
        let without = logits(&*model, &ids, 2, &mut Pass::default())?;
        // Without an adapter a block is one op, which adds in another order.
        let name = format!("{}: an adapter that adds nothing", tiny.name);
        assert_close(&name, &with, &without, Tolerance { absolute: 1e-5, relative: 1e-5 });

        let groups = recorder.0.into_inner().unwrap();
        let sizes: Vec<_> = groups.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 2, 1].repeat(model.num_blocks()), "{}: q k v, o, gate up, down", tiny.name);
        let visited: Vec<_> = groups.into_iter().flatten().collect();
        assert_eq!(visited, (0..model.sites().len()).collect::<Vec<_>>(), "{}", tiny.name);

        for (index, site) in model.sites().iter().enumerate() {
            let projection = model.projection(index).unwrap();
            assert_eq!(&projection.site, site);
            assert_eq!(site.index, index);
            let weight = &tiny.tensors[&format!("{}.weight", site.path)];
            assert_eq!(weight.dims(), [site.out_features, site.in_features], "{}", site.path);
            assert_eq!(projection.weight.to_tensor(DType::F32)?.to_vec2::<f32>()?, weight.to_vec2::<f32>()?);
            let bias = tiny.tensors.get(&format!("{}.bias", site.path));
            assert_eq!(projection.bias.is_some(), bias.is_some(), "{}: {}", tiny.name, site.path);
        }
        let in_checkpoint = tiny.tensors.keys().filter(|name| name.ends_with("_proj.weight")).count();
        assert_eq!(model.sites().len(), in_checkpoint, "{}: each projection is a site", tiny.name);
        assert!(model.projection(model.sites().len()).is_none());
    }
    Ok(())
}

#[test]
fn a_pass_without_an_adapter_keeps_no_graph() -> Result<()> {
    for tiny in models() {
        let model = tiny.load();
        let hidden = model.hidden(&tiny.ids(1, 6), (1, 6), &mut Pass::default())?;
        assert!(!hidden.track_op() && !model.logits(&hidden)?.track_op(), "{}", tiny.name);
    }
    Ok(())
}

/// The gradient of every variable, and of the embeddings that a trainer starts a block from, is there; and along a
/// direction in which every one of them has its part, the loss changes as the gradients say.
#[test]
fn gradients_reach_every_variable() -> Result<()> {
    for tiny in models() {
        let model = tiny.load();
        let (b, t) = (2, 6);
        let input = Var::from_tensor(&model.embed(&tiny.ids(1, b * t), (b, t))?)?;
        let adapter = LowRank::new(&*model, 1)?;
        let weights = random(2, (b, t, tiny.config.vocab_size), DType::F64);
        for left in [None, Some(&[2, 0][..])] {
            let loss = || {
                let mut pass = Pass { adapter: Some(&adapter), left_padding: left, ..Pass::default() };
                let mut x = input.as_tensor().clone();
                for index in 0..model.num_blocks() {
                    x = model.block(index, &x, &mut pass)?;
                }
                let logits = model.logits(&model.norm(&x)?)?;
                // The rows of padding have no part in a loss.
                let seen = logits.narrow(1, 2, t - 2)?.to_dtype(DType::F64)?;
                (seen * weights.narrow(1, 2, t - 2)?)?.mean_all()
            };
            let gradients = loss()?.backward()?;
            let mut slope = 0.0;
            let mut directions = vec![];
            for (index, var) in adapter.variables().chain([&input]).enumerate() {
                let gradient = gradients.get(var).unwrap_or_else(|| panic!("{}: variable {index}", tiny.name));
                let norm = gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f64>()?;
                assert!(norm.is_finite() && norm > 1e-9, "{}: variable {index} has |gradient| {norm}", tiny.name);
                slope += norm;
                directions.push((var, (gradient.detach() / norm)?, var.as_detached_tensor().copy()?));
            }
            let mut at = |step: f64| -> Result<f64> {
                for (var, direction, start) in &mut directions {
                    var.set(&(&*start + (&*direction * step)?)?)?;
                }
                loss()?.to_scalar::<f64>()
            };
            let mut difference = |step: f64| Ok::<_, candle_core::Error>((at(step)? - at(-step)?) / (2.0 * step));
            // Richardson: the error of a central difference falls with the square of its step.
            let (wide, narrow) = (difference(2e-3)?, difference(1e-3)?);
            let measured = (4.0 * narrow - wide) / 3.0;
            at(0.0)?;
            // What is left is the rounding of f32 logits, about 1e-6 over a step of 1e-3.
            let off = (measured - slope).abs();
            assert!(off < 5e-4 * slope, "{}: slope {measured}, gradients say {slope}", tiny.name);
        }
    }
    Ok(())
}

#[test]
fn two_threads_with_two_adapters_share_a_model() -> Result<()> {
    for tiny in models().step_by(3) {
        let model = tiny.load();
        let ids = tiny.ids(1, 14);
        let adapters = [LowRank::new(&*model, 1)?, LowRank::new(&*model, 2)?];
        let run = |adapter: &LowRank| -> Result<Vec<f32>> {
            let mut pass = Pass { adapter: Some(adapter), ..Pass::default() };
            logits(&*model, &ids, 2, &mut pass)?.flatten_all()?.to_vec1()
        };
        let sequential = [run(&adapters[0])?, run(&adapters[1])?];
        assert_ne!(sequential[0], sequential[1], "{}", tiny.name);
        std::thread::scope(|scope| {
            let threads = adapters.each_ref().map(|adapter| {
                let run = &run;
                scope.spawn(move || (0..4).map(|_| run(adapter)).collect::<Result<Vec<_>>>())
            });
            for (thread, expected) in threads.into_iter().zip(&sequential) {
                let results = thread.join().unwrap()?;
                assert!(results.iter().all(|result| result == expected), "{}", tiny.name);
            }
            Ok::<_, candle_core::Error>(())
        })?;
    }
    Ok(())
}

#[test]
fn an_adapter_that_forgets_a_projection_is_an_error() {
    let tiny = models().next().unwrap();
    let mut pass = Pass { adapter: Some(&Short), ..Pass::default() };
    let error = logits(&*tiny.load(), &[1, 2], 1, &mut pass).unwrap_err().to_string();
    assert!(error.contains("2 projections for 3"), "{error}");
}
