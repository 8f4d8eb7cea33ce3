//! The sampler against transformers, against a plain sort, and against its own promises.

use super::*;
use mc_backend::Purpose;
use mc_testkit::golden;
use proptest::prelude::*;
use std::path::Path;

const SAMPLE: SamplingStrategy = SamplingStrategy::Sample { temperature: 1.0, top_k: None, top_p: None, min_p: None };

fn strategy(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, min_p: Option<f64>) -> SamplingStrategy {
    SamplingStrategy::Sample { temperature, top_k, top_p, min_p }
}

/// Ids and probabilities of the tokens that may be drawn.
fn distribution(logits: &[f32], strategy: SamplingStrategy) -> Vec<(u32, f64)> {
    let best = first_maximum(logits).unwrap();
    let mut sampler = Sampler::new(strategy).unwrap();
    let kept = sampler.keep(logits, best);
    let total: f64 = kept.iter().map(|c| f64::from(c.weight)).sum();
    kept.iter().map(|c| (c.id, f64::from(c.weight) / total)).collect()
}

fn draw(logits: &[f32], strategy: SamplingStrategy, step: u64) -> u32 {
    sample_token(logits, &strategy, &mut Stream::new(3, Purpose::Sample, step)).unwrap()
}

#[test]
fn filters_are_those_of_transformers() {
    let golden = golden::json(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/expected.json"));
    let numbers =
        |v: &serde_json::Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect() };
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 90);
    for case in cases {
        let (input, options) = (&golden["inputs"][case["input"].as_u64().unwrap() as usize], &case["options"]);
        let mut logits: Vec<f32> = numbers(&input["logits"]).iter().map(|n| *n as f32).collect();
        let seen: Vec<u32> = numbers(&input["seen"]).iter().map(|n| *n as u32).collect();
        let number = |name: &str| options[name].as_f64();
        let mut penalty = crate::RepetitionPenalty::new(number("repetition_penalty").unwrap_or(1.0)).unwrap();
        penalty.see(&seen);
        penalty.apply(&mut logits);
        let kept = distribution(
            &logits,
            strategy(
                number("temperature").unwrap_or(1.0),
                number("top_k").map(|k| k as usize),
                number("top_p"),
                number("min_p"),
            ),
        );
        let ids: Vec<u32> = kept.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, numbers(&case["ids"]).iter().map(|n| *n as u32).collect::<Vec<_>>(), "{case}");
        for ((_, ours), theirs) in kept.iter().zip(numbers(&case["probabilities"])) {
            // They round logits / temperature to f32 before the softmax: 24 bits of a logit of up to 20.
            assert!((ours - theirs).abs() <= 5e-6 * theirs + 1e-12, "{ours} {theirs}: {options}");
        }
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(draw(&[1.0, 5.0, 5.0, -2.0], SamplingStrategy::Greedy, 0), 1);
    assert_eq!(draw(&[-7.0], SamplingStrategy::Greedy, 0), 0);
    assert_eq!(draw(&[-3.0, -1.0, -2.0], SamplingStrategy::Greedy, 0), 1);
    assert_eq!(draw(&[-1.0, -0.0, 0.0], SamplingStrategy::Greedy, 0), 1);
    assert_eq!(draw(&[-1.0, 0.0, -0.0], SamplingStrategy::Greedy, 0), 1);
    assert_eq!(draw(&[f32::MIN, f32::MAX, 1e-40], SamplingStrategy::Greedy, 0), 1);
}

#[test]
fn what_is_not_finite_is_refused() {
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for strategy in [SamplingStrategy::Greedy, SAMPLE] {
            let mut stream = Stream::new(0, Purpose::Sample, 0);
            let error = sample_token(&[0.0, 9.0, value], &strategy, &mut stream).unwrap_err();
            assert_eq!(error.to_string(), format!("the logits are not finite: that of token 2 is {text}"));
            assert!(error.hint().unwrap().contains("f32"));
        }
    }
    let error = sample_token(&[], &SAMPLE, &mut Stream::new(0, Purpose::Sample, 0)).unwrap_err();
    assert_eq!(error.to_string(), "there are no logits: the vocabulary is empty");
}

#[test]
fn options_out_of_range_are_named() {
    let check = |strategy: SamplingStrategy, message: &str| {
        let error = sample_token(&[0.0], &strategy, &mut Stream::new(0, Purpose::Sample, 0)).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    for (temperature, shown) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        check(
            strategy(temperature, None, None, None),
            &format!("`temperature` is {shown}, expected a number above 0, or 0 for the likeliest token"),
        );
    }
    check(strategy(1.0, Some(0), None, None), "`top_k` is 0, expected at least 1, or none for no limit");
    for (p, shown) in [(0.0, "0"), (-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        check(strategy(1.0, None, Some(p), None), &format!("`top_p` is {shown}, expected a number above 0, at most 1"));
    }
    for (p, shown) in [(-0.1, "-0.1"), (1.1, "1.1"), (f64::NAN, "NaN")] {
        check(strategy(1.0, None, None, Some(p)), &format!("`min_p` is {shown}, expected a number from 0 to 1"));
    }
}

#[test]
fn extreme_temperatures_keep_to_their_limits() {
    let logits = [1.0, 1.5, -4.0, 1.4999];
    for step in 0..200 {
        assert_eq!(draw(&logits, strategy(1e-300, None, None, None), step), 1);
    }
    for (_, probability) in distribution(&logits, strategy(1e9, None, None, None)) {
        assert!((probability - 0.25).abs() < 1e-6);
    }
    let wide = [f32::MAX, f32::MIN, 0.0];
    assert_eq!(draw(&wide, SAMPLE, 5), 0);
}

#[test]
fn of_equal_tokens_a_nucleus_takes_the_first() {
    let kept = distribution(&[0.0, 2.0, 0.0, 0.0, 2.0, 0.0], strategy(1.0, None, Some(0.9), None));
    // e² twice and 1 four times: 0.787 together, then 0.053 each.
    assert_eq!(kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let kept = distribution(&[1.0; 8], strategy(1.0, None, Some(0.3), None));
    assert_eq!(kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
}

/// Pearson's test: how often each token is drawn against its probability in f64 by the definition.
#[test]
fn draws_follow_the_filtered_softmax() {
    let logits = [0.3, -1.2, 2.1, 0.9, -0.4, 1.7, -3.0, 1.1];
    let (n, all) = (40_000u64, 1.0);
    for (strategy, seed) in [
        (SAMPLE, 1),
        (strategy(0.6, None, None, None), 2),
        (strategy(1.7, Some(5), None, None), 3),
        (strategy(all, None, Some(0.85), None), 4),
        (strategy(1.3, None, None, Some(0.2)), 5),
        (strategy(1.5, Some(6), Some(0.9), Some(0.15)), 6),
    ] {
        let expected = by_definition(&logits, strategy);
        let mut counts = [0u64; 8];
        for step in 0..n {
            counts
                [sample_token(&logits, &strategy, &mut Stream::new(seed, Purpose::Sample, step)).unwrap() as usize] +=
                1;
        }
        let mut chi_square = 0.0;
        for (count, p) in counts.iter().zip(&expected) {
            if *p == 0.0 {
                assert_eq!(*count, 0, "{strategy:?}");
            } else {
                chi_square += (*count as f64 - p * n as f64).powi(2) / (p * n as f64);
            }
        }
        // 24.3 is passed by one in a thousand with 7 degrees of freedom, fewer of them make it rarer.
        assert!(chi_square < 24.3, "{strategy:?}: {chi_square} {counts:?}");
    }
}

/// The probabilities that sorting and summing in f64 gives, by id; logits differ.
fn by_definition(logits: &[f32], strategy: SamplingStrategy) -> Vec<f64> {
    let SamplingStrategy::Sample { temperature, top_k, top_p, min_p } = strategy else { unreachable!() };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(top_k.unwrap_or(usize::MAX));
    let weight = |id: usize| (f64::from(logits[id] - logits[order[0]]) / temperature).exp();
    let total: f64 = order.iter().map(|id| weight(*id)).sum();
    let mut above = 0.0;
    let nucleus = order.iter().take_while(|id| {
        let keep = above < top_p.unwrap_or(f64::INFINITY) * total;
        above += weight(**id);
        keep
    });
    let kept: Vec<usize> = nucleus.copied().filter(|id| weight(*id) >= min_p.unwrap_or(0.0)).collect();
    let total: f64 = kept.iter().map(|id| weight(*id)).sum();
    (0..logits.len()).map(|id| if kept.contains(&id) { weight(id) / total } else { 0.0 }).collect()
}

#[test]
fn the_stream_decides_and_nothing_else() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
    let strategy = strategy(1.2, Some(80), Some(0.95), Some(0.01));
    let mut sampler = Sampler::new(strategy).unwrap();
    let mut drawn = std::collections::HashSet::new();
    for step in 0..300 {
        // The memory that a sampler keeps, larger or smaller vocabularies before, makes no difference.
        sampler.sample(&logits[..=step as usize % 400], &mut Stream::new(8, Purpose::Sample, step)).unwrap();
        let again = sampler.sample(&logits, &mut Stream::new(3, Purpose::Sample, step)).unwrap();
        assert_eq!(again, draw(&logits, strategy, step));
        drawn.insert(again);
    }
    assert!(drawn.len() > 20);
}

fn options() -> impl Strategy<Value = SamplingStrategy> {
    let temperature = prop_oneof![Just(1.0), 0.05..4.0f64];
    let top_k = proptest::option::of(1usize..40);
    let top_p = proptest::option::of(1e-3..=1.0f64);
    let min_p = proptest::option::of(0.0..=1.0f64);
    (temperature, top_k, top_p, min_p).prop_map(|(t, k, p, m)| strategy(t, k, p, m))
}

/// Logits that all differ, by more than rounding.
fn distinct_logits() -> impl Strategy<Value = Vec<f32>> {
    (1usize..60).prop_flat_map(|n| {
        (Just((0..n).collect::<Vec<_>>()).prop_shuffle(), proptest::collection::vec(0.01..0.5f32, n)).prop_map(
            |(order, gaps)| {
                let mut logits = vec![0.0; order.len()];
                let mut value = -3.0;
                for (id, gap) in order.into_iter().zip(gaps) {
                    value += gap;
                    logits[id] = value;
                }
                logits
            },
        )
    })
}

proptest! {
    #[test]
    fn what_is_kept_is_what_sorting_keeps(logits in distinct_logits(), strategy in options()) {
        let expected = by_definition(&logits, strategy);
        let kept = distribution(&logits, strategy);
        for (id, p) in expected.iter().enumerate() {
            let ours = kept.iter().find(|c| c.0 as usize == id).map_or(0.0, |c| c.1);
            prop_assert!((ours - p).abs() < 1e-5, "token {}: {} {}", id, ours, p);
        }
        prop_assert!(kept.is_sorted_by_key(|c| c.0));
    }

    #[test]
    fn the_likeliest_token_is_always_kept(
        logits in proptest::collection::vec(-50.0..50.0f32, 1..80),
        strategy in options(),
        step in 0u64..1000,
    ) {
        let kept = distribution(&logits, strategy);
        let best = first_maximum(&logits).unwrap();
        prop_assert!(kept.iter().any(|c| c.0 == best));
        prop_assert!(kept.iter().any(|c| c.0 == draw(&logits, strategy, step)));
    }

    #[test]
    fn top_k_of_one_is_greedy(logits in distinct_logits(), temperature in 0.1..3.0f64, step in 0u64..1000) {
        let greedy = draw(&logits, SamplingStrategy::Greedy, 0);
        prop_assert_eq!(draw(&logits, strategy(temperature, Some(1), None, None), step), greedy);
        prop_assert_eq!(draw(&logits, strategy(temperature, None, Some(1e-9), None), step), greedy);
        prop_assert_eq!(draw(&logits, strategy(temperature, None, None, Some(1.0)), step), greedy);
    }

    /// Renaming the tokens renames the outcome.
    #[test]
    fn the_order_of_the_vocabulary_does_not_matter(
        (logits, order) in distinct_logits().prop_flat_map(|l| {
            let order = Just((0..l.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(l), order)
        }),
        strategy in options(),
    ) {
        let renamed: Vec<f32> = order.iter().map(|&i| logits[i]).collect();
        let mut back: Vec<_> = distribution(&renamed, strategy)
            .into_iter()
            .map(|(id, p)| (order[id as usize] as u32, p))
            .collect();
        back.sort_by_key(|c| c.0);
        let kept = distribution(&logits, strategy);
        prop_assert_eq!(kept.len(), back.len());
        for (a, b) in kept.iter().zip(&back) {
            prop_assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-12);
        }
    }

    #[test]
    fn a_larger_share_keeps_more(logits in proptest::collection::vec(-9.0..9.0f32, 1..80), p in 0.01..0.99f64) {
        let kept = |p| distribution(&logits, strategy(1.0, None, Some(p), None));
        let all = distribution(&logits, SAMPLE);
        let mass = |ids: &[(u32, f64)]| -> f64 {
            all.iter().filter(|a| ids.iter().any(|k| k.0 == a.0)).map(|a| a.1).sum()
        };
        let (some, more) = (kept(p), kept(p + 0.01));
        prop_assert!(mass(&some) >= p - 1e-9);
        prop_assert!(some.iter().all(|a| more.iter().any(|b| a.0 == b.0)));
        // Without its least likely token it would have less than was asked for.
        let least = some.iter().map(|a| a.1).fold(f64::INFINITY, f64::min) * mass(&some);
        prop_assert!(mass(&some) - least < p + 1e-9);
    }
}
