//! One sequence, however it is fed: at once, in chunks through a cache, in a batch, with padding.

use crate::tiny::{Dice, Tiny, logits, models};
use candle_core::{IndexOp, Result, Tensor};
use mc_backend::{Purpose, Stream};
use mc_models::{Adapter, CausalLM, KVCache, KVCacheConfig, Pass, Projection};
use mc_testkit::{Tolerance, assert_close};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Sums of another order differ in their last bits; logits are of size 1 to 50.
const CLOSE: Tolerance = Tolerance { absolute: 1e-5, relative: 2e-6 };

pub(crate) fn cache(model: &dyn CausalLM, batch_size: usize, initial_capacity: usize) -> Result<KVCache> {
    KVCache::new(model, KVCacheConfig { batch_size, initial_capacity, ..KVCacheConfig::default() })
}

/// Tokens `from..to` of every row of `t`.
fn columns(ids: &[u32], t: usize, from: usize, to: usize) -> Vec<u32> {
    ids.chunks(t).flat_map(|row| &row[from..to]).copied().collect()
}

/// The logits of a batch fed in chunks.
pub(crate) fn in_chunks(
    model: &dyn CausalLM,
    ids: &[u32],
    t: usize,
    left: Option<&[usize]>,
    cache: &mut KVCache,
    mut length: impl FnMut() -> usize,
) -> Result<Tensor> {
    let mut chunks = vec![];
    while cache.len() < t {
        let from = cache.len();
        let to = (from + length()).min(t);
        let mut pass = Pass { cache: Some(&mut *cache), left_padding: left, ..Pass::default() };
        chunks.push(logits(model, &columns(ids, t, from, to), ids.len() / t, &mut pass)?);
        assert_eq!(cache.len(), to);
    }
    Tensor::cat(&chunks, 1)
}

#[test]
fn cached_equals_uncached() -> Result<()> {
    for tiny in models() {
        let model = tiny.load();
        let mut dice = Dice(Stream::new(3, Purpose::Shuffle, 0));
        for b in 1..=3 {
            let t = dice.between(9, 17);
            let ids = tiny.ids(b as u64, b * t);
            let whole = logits(&*model, &ids, b, &mut Pass::default())?;
            let name = format!("{}, {b} rows of {t}", tiny.name);

            let one_by_one = in_chunks(&*model, &ids, t, None, &mut cache(&*model, b, 1)?, || 1)?;
            assert_close(&format!("{name}, one by one"), &one_by_one, &whole, CLOSE);
            let mut grown = cache(&*model, b, dice.between(1, 4))?;
            let chunks = in_chunks(&*model, &ids, t, None, &mut grown, || dice.between(1, 5))?;
            assert_close(&format!("{name}, in chunks"), &chunks, &whole, CLOSE);

            // Rolled back, and read on: what was forgotten leaves no trace.
            grown.truncate(t / 2);
            let mut pass = Pass { cache: Some(&mut grown), ..Pass::default() };
            logits(&*model, &tiny.ids(99, 2 * b), b, &mut pass)?;
            grown.truncate(t / 2);
            let again = in_chunks(&*model, &ids, t, None, &mut grown, || dice.between(1, 5))?;
            assert_close(&format!("{name}, rolled back"), &again, &whole.i((.., t / 2..))?, CLOSE);
        }
    }
    Ok(())
}

/// A copy of a cache goes its own way: two continuations of one prompt.
#[test]
fn copies_of_a_cache_are_independent() -> Result<()> {
    for tiny in models().step_by(3) {
        let model = tiny.load();
        let (prompt, one, two) = (tiny.ids(1, 6), tiny.ids(2, 4), tiny.ids(3, 4));
        let mut first = cache(&*model, 1, 32)?;
        logits(&*model, &prompt, 1, &mut Pass { cache: Some(&mut first), ..Pass::default() })?;
        let mut second = first.try_clone()?;
        for (cache, answer) in [(&mut first, &one), (&mut second, &two)] {
            logits(&*model, answer, 1, &mut Pass { cache: Some(cache), ..Pass::default() })?;
        }
        for (mut cache, answer) in [(first, one), (second, two)] {
            let next = logits(&*model, &[5], 1, &mut Pass { cache: Some(&mut cache), ..Pass::default() })?;
            let whole = [prompt.clone(), answer, vec![5]].concat();
            let whole = logits(&*model, &whole, 1, &mut Pass::default())?;
            assert_close(&tiny.name, &next, &whole.i((.., 10..))?, CLOSE);
        }
    }
    Ok(())
}

#[test]
fn a_row_of_a_batch_equals_the_row_alone() -> Result<()> {
    for tiny in models() {
        let model = tiny.load();
        let (b, t) = (4, 11);
        let ids = tiny.ids(7, b * t);
        // Whatever stands in the padding: its tokens are random too.
        let left = [0, 3, t - 1, 6];
        let mut pass = Pass { left_padding: Some(&left), ..Pass::default() };
        let padded = logits(&*model, &ids, b, &mut pass)?;
        let chunks = in_chunks(&*model, &ids, t, Some(&left), &mut cache(&*model, b, 2)?, || 4)?;
        let plain = logits(&*model, &ids, b, &mut Pass::default())?;
        for (row, pad) in left.into_iter().enumerate() {
            let tokens = &ids[row * t..(row + 1) * t];
            let alone = logits(&*model, &tokens[pad..], 1, &mut Pass::default())?;
            let name = format!("{}, row {row}", tiny.name);
            assert_close(&format!("{name}, padded left"), &padded.i((row..=row, pad..))?, &alone, CLOSE);
            assert_close(&format!("{name}, padded left, cached"), &chunks.i((row..=row, pad..))?, &alone, CLOSE);
            let alone = logits(&*model, &tokens[..t - pad], 1, &mut Pass::default())?;
            assert_close(&format!("{name}, padded right"), &plain.i((row..=row, ..t - pad))?, &alone, CLOSE);
        }
    }
    Ok(())
}

/// A row that is nothing but padding gives numbers, and leaves the others alone.
#[test]
fn a_row_of_padding_is_finite() -> Result<()> {
    for tiny in models().step_by(3) {
        let (model, t) = (tiny.load(), 4);
        let ids = tiny.ids(8, 2 * t);
        let both = logits(&*model, &ids, 2, &mut Pass { left_padding: Some(&[t, 0]), ..Pass::default() })?;
        assert!(both.abs()?.max_all()?.to_scalar::<f32>()?.is_finite(), "{}", tiny.name);
        let alone = logits(&*model, &ids[t..], 1, &mut Pass::default())?;
        assert_close(&tiny.name, &both.i(1..)?, &alone, CLOSE);
    }
    Ok(())
}

#[test]
fn no_token_sees_a_later_one() -> Result<()> {
    for tiny in models() {
        let (model, t) = (tiny.load(), 10);
        let mut ids = tiny.ids(4, t);
        let before = logits(&*model, &ids, 1, &mut Pass::default())?;
        for changed in [t - 1, t / 2, 1] {
            ids[changed] = (ids[changed] + 1) % tiny.config.vocab_size as u32;
            let after = logits(&*model, &ids, 1, &mut Pass::default())?;
            ids[changed] = (ids[changed] + tiny.config.vocab_size as u32 - 1) % tiny.config.vocab_size as u32;
            let values = |logits: &Tensor, i| logits.i((0, i))?.to_vec1::<f32>();
            for i in 0..=changed {
                let same = values(&before, i)? == values(&after, i)?;
                assert_eq!(same, i < changed, "{}: token {changed} and logits {i}", tiny.name);
            }
        }
    }
    Ok(())
}

/// A window of w: a token sees itself and the w − 1 before it.
#[test]
fn a_window_ends_where_it_says() -> Result<()> {
    for Tiny { name, json, mut config, tensors } in models() {
        let (window, t) = (3, 9);
        config.num_hidden_layers = 1;
        config.sliding_windows = vec![Some(window)];
        let tiny = Tiny { name, json, config, tensors };
        let model = tiny.load();
        let mut ids = tiny.ids(5, t);
        let before = logits(&*model, &ids, 1, &mut Pass::default())?;
        ids[2] = (ids[2] + 1) % tiny.config.vocab_size as u32;
        let after = logits(&*model, &ids, 1, &mut Pass::default())?;
        let cached = in_chunks(&*model, &ids, t, None, &mut cache(&*model, 1, 1)?, || 1)?;
        assert_close(&tiny.name, &cached, &after, CLOSE);
        for i in 0..t {
            let same = before.i((0, i))?.to_vec1::<f32>()? == after.i((0, i))?.to_vec1::<f32>()?;
            assert_eq!(same, !(2..2 + window).contains(&i), "{}: token 2 and logits {i}", tiny.name);
        }
    }
    Ok(())
}

/// Fails at one group, the first being 0, and adds nothing to the others.
struct FailsAt(AtomicUsize);

impl Adapter for FailsAt {
    fn project(&self, group: &[Projection], x: &Tensor) -> Result<Vec<Tensor>> {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            candle_core::bail!("a group fails")
        }
        group.iter().map(|p| p.forward(x)).collect()
    }
}

/// Wherever a pass fails, the cache is as before it: the same tokens again give what they would have given.
#[test]
fn a_failed_pass_leaves_the_cache_as_it_was() -> Result<()> {
    for tiny in models().step_by(3) {
        let (model, t) = (tiny.load(), 7);
        let ids = tiny.ids(6, 2 * t);
        let whole = logits(&*model, &ids, 2, &mut Pass::default())?;
        let groups = 4 * model.num_blocks();
        for before in [0, 4] {
            let mut cache = cache(&*model, 2, 2)?;
            if before > 0 {
                let mut pass = Pass { cache: Some(&mut cache), ..Pass::default() };
                logits(&*model, &columns(&ids, t, 0, before), 2, &mut pass)?;
            }
            for group in 0..groups {
                let fails = FailsAt(group.into());
                let mut pass = Pass { cache: Some(&mut cache), adapter: Some(&fails), ..Pass::default() };
                let error = logits(&*model, &columns(&ids, t, before, t), 2, &mut pass).unwrap_err().to_string();
                assert!(error.contains("a group fails"), "{}, group {group}: {error}", tiny.name);
                assert_eq!(cache.len(), before, "{}, group {group}", tiny.name);
            }
            let mut pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let rest = logits(&*model, &columns(&ids, t, before, t), 2, &mut pass)?;
            assert_close(&tiny.name, &rest, &whole.i((.., before..))?, CLOSE);
        }
    }
    Ok(())
}

/// A walk over the blocks that stops half-way is its caller's to roll back; until then nothing is read.
#[test]
fn a_walk_that_stops_half_way_is_noticed() -> Result<()> {
    for tiny in models().filter(|tiny| tiny.config.num_hidden_layers > 1).step_by(3) {
        let (model, ids) = (tiny.load(), tiny.ids(6, 5));
        let mut cache = cache(&*model, 1, 8)?;
        let x = model.embed(&ids, (1, 5))?;
        model.block(0, &x, &mut Pass { cache: Some(&mut cache), ..Pass::default() })?;
        let pass = &mut Pass { cache: Some(&mut cache), ..Pass::default() };
        let error = logits(&*model, &ids, 1, pass).unwrap_err().to_string();
        assert!(error.contains("a pass was not finished"), "{}: {error}", tiny.name);
        cache.truncate(0);
        let again = logits(&*model, &ids, 1, &mut Pass { cache: Some(&mut cache), ..Pass::default() })?;
        assert_close(&tiny.name, &again, &logits(&*model, &ids, 1, &mut Pass::default())?, CLOSE);
    }
    Ok(())
}

#[test]
fn a_cache_of_another_depth_is_refused() -> Result<()> {
    for mut tiny in models().filter(|tiny| tiny.config.num_hidden_layers > 1).step_by(3) {
        let deep = tiny.load();
        tiny.config.num_hidden_layers -= 1;
        let flat = tiny.load();
        for (model, other) in [(&deep, &flat), (&flat, &deep)] {
            let mut cache = cache(&**other, 1, 8)?;
            let mut pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let error = logits(&**model, &[1, 2], 1, &mut pass).unwrap_err().to_string();
            let (found, expected) = (other.num_blocks(), model.num_blocks());
            let message = format!("the cache is of a model with {found} layers, expected {expected}");
            assert!(error.contains(&message), "{}: {error}", tiny.name);
            assert!(cache.is_empty());
        }
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_errors() -> Result<()> {
    for tiny in models().step_by(5) {
        let model = tiny.load();
        let vocabulary = tiny.config.vocab_size as u32;
        assert!(logits(&*model, &[0, vocabulary], 1, &mut Pass::default()).is_err(), "a token past the vocabulary");
        assert!(model.hidden(&[1, 2, 3], (2, 2), &mut Pass::default()).is_err(), "three tokens for four");
        for left in [&[1][..], &[1, 0, 0]] {
            let mut pass = Pass { left_padding: Some(left), ..Pass::default() };
            assert!(logits(&*model, &[1, 2, 3, 4], 2, &mut pass).is_err(), "padding of {} rows for 2", left.len());
        }
        let mut other = cache(&*model, 3, 8)?;
        let mut pass = Pass { cache: Some(&mut other), ..Pass::default() };
        assert!(logits(&*model, &[1, 2], 2, &mut pass).is_err(), "a cache of three rows for two");
        assert!(other.is_empty());

        let mut small = KVCache::new(&*model, KVCacheConfig { max_length: 3, ..KVCacheConfig::default() })?;
        let mut pass = Pass { cache: Some(&mut small), ..Pass::default() };
        let error = logits(&*model, &[1, 2, 3, 4], 1, &mut pass).unwrap_err().to_string();
        assert!(error.contains("4 tokens exceed the cache's maximum of 3"), "{error}");
        logits(&*model, &[1, 2, 3], 1, &mut Pass { cache: Some(&mut small), ..Pass::default() })?;
    }
    Ok(())
}
