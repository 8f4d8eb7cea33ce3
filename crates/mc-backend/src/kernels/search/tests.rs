//! Properties of the search: it finds what sorting the dot products of plain loops in `f64` finds, on any number of
//! threads. Knows nothing of files.

use super::{super::tests::noise, *};
use proptest::prelude::*;

/// Rows in one of the forms.
enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Int8(Vec<u8>, Vec<f32>),
}

impl Stored {
    fn new(kind: u64, x: &[f32], width: usize) -> Self {
        match kind % 3 {
            0 => Self::F32(x.to_vec()),
            1 => Self::F16(x.iter().map(|x| f16::from_f32(*x)).collect()),
            _ => {
                let mut codes = vec![0; x.len()];
                let rows = x.chunks_exact(width).zip(codes.chunks_exact_mut(width));
                let scales = rows.map(|(x, codes)| to_codes(x, codes)).collect();
                Self::Int8(codes, scales)
            }
        }
    }
    fn vectors(&self) -> Vectors<'_> {
        match self {
            Self::F32(x) => Vectors::F32(x),
            Self::F16(x) => Vectors::F16(x),
            Self::Int8(codes, scales) => Vectors::Int8 { codes, scales },
        }
    }
    /// The products with a query that are meant, in the precision of the form.
    fn products(&self, query: &[f32]) -> Vec<f64> {
        let width = query.len();
        let dot = |x: &mut dyn Iterator<Item = f64>| x.zip(query).map(|(x, q)| x * f64::from(*q)).sum::<f64>();
        match self {
            Self::F32(x) => x.chunks_exact(width).map(|x| dot(&mut x.iter().map(|x| f64::from(*x)))).collect(),
            Self::F16(x) => x.chunks_exact(width).map(|x| dot(&mut x.iter().map(|x| x.to_f64()))).collect(),
            Self::Int8(codes, scales) => {
                let mut query_codes = vec![0; width];
                let query_scale = f64::from(to_codes(query, &mut query_codes));
                let number = |c: &u8| f64::from(*c) - 128.0;
                let row =
                    |codes: &[u8]| codes.iter().zip(&query_codes).map(|(c, q)| number(c) * number(q)).sum::<f64>();
                let rows = codes.chunks_exact(width).zip(scales);
                rows.map(|(codes, scale)| row(codes) * f64::from(*scale) * query_scale).collect()
            }
        }
    }
}

/// All rows in the order in which they should be found, of scores that are no NaN.
fn sorted(scores: impl Iterator<Item = f32>) -> Vec<Hit> {
    let mut hits: Vec<_> =
        scores.enumerate().filter(|(_, s)| !s.is_nan()).map(|(row, score)| Hit { row, score }).collect();
    hits.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap().then(a.row.cmp(&b.row)));
    hits
}

fn on_threads<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Every row is found with its product, in order, and `k` rows are the first `k` of all.
    #[test]
    fn what_is_found_is_what_sorting_finds(
        kind: u64, rows in 0usize..90, width in 1usize..200, queries in 0usize..4, k in 0usize..100, seed: u64,
    ) {
        let stored = Stored::new(kind, &noise(rows * width, seed), width);
        let queries = noise(queries * width, !seed);
        let all = nearest(stored.vectors(), width, &queries, usize::MAX).unwrap();
        let some = nearest(stored.vectors(), width, &queries, k).unwrap();
        prop_assert_eq!(all.len(), queries.len() / width);
        for ((all, some), query) in all.iter().zip(&some).zip(queries.chunks_exact(width)) {
            prop_assert_eq!(all.len(), rows);
            let mut scores = vec![f32::NAN; rows];
            for hit in all {
                scores[hit.row] = hit.score;
            }
            for (score, expected) in scores.iter().zip(stored.products(query)) {
                let error = 4e-7 * (width as f64);
                prop_assert!((f64::from(*score) - expected).abs() <= error, "{} {}", score, expected);
            }
            prop_assert_eq!(all, &sorted(scores.into_iter()));
            prop_assert_eq!(some.as_slice(), &all[..k.min(rows)]);
        }
    }

    /// The instructions of this CPU give the bits of the plain loops.
    #[test]
    fn sums_of_bytes_equal_the_portable_ones(rows in 0usize..9, width in 1usize..300, seed: u64) {
        let x = noise(rows * width, seed);
        let query = noise(width, !seed);
        let (mut chosen, mut portable) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
        // What would be as right, and slow.
        #[cfg(target_arch = "x86_64")]
        prop_assert!(bytes_avx2(&[], &[1], &mut []) || !cpu::has_avx2(), "AVX2 is not used");
        // Any bytes, the extremes as well.
        let codes: Vec<u8> = x.iter().map(|x| (x * 200.0).clamp(-128.0, 127.0) as i8 as u8).collect();
        let query: Vec<i8> = query.iter().map(|x| (x * 200.0).clamp(-127.0, 127.0) as i8).collect();
        plain_bytes(&codes, &query, &mut portable);
        for form in [bytes_avx512, bytes_avx2] {
            chosen.fill(f32::NAN);
            prop_assert!(!form(&codes, &query, &mut chosen) || chosen == portable);
        }
        bytes(&codes, &query, &mut chosen);
        prop_assert_eq!(&chosen, &portable);
    }

    /// Codes are off by at most half a step.
    #[test]
    fn codes_are_the_nearest(width in 1usize..100, seed: u64) {
        let x = noise(width, seed);
        let mut codes = vec![0; width];
        let scale = to_codes(&x, &mut codes);
        for (x, code) in x.iter().zip(codes) {
            prop_assert!((x - scale * (f32::from(code) - 128.0)).abs() <= 0.501 * scale);
        }
    }
}

/// Rows of few distinct scores in many units: ties go to the lower row, whatever the number of threads.
#[test]
fn ties_go_to_the_lower_row_on_any_number_of_threads() {
    let rows = 3 * UNIT + 17;
    let x: Vec<f32> = (0..rows).map(|i| ((i * 7919) % 13) as f32).collect();
    let expected = sorted(x.iter().copied());
    for (threads, k) in [(1, 5), (2, 5), (5, 3000), (3, rows), (4, rows + 9)] {
        let found = on_threads(threads, || nearest(Vectors::F32(&x), 1, &[1.0], k).unwrap());
        assert_eq!(found[0], expected[..k.min(rows)], "{threads} {k}");
    }
}

#[test]
fn nan_is_never_found_and_infinity_is_a_score() {
    let x = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY, -1.0, f32::NEG_INFINITY];
    let rows =
        |k| -> Vec<usize> { nearest(Vectors::F32(&x), 1, &[2.0], k).unwrap()[0].iter().map(|h| h.row).collect() };
    assert_eq!(rows(9), [3, 1, 4, 2, 5]);
    assert_eq!(rows(4), [3, 1, 4, 2]);
    assert!(nearest(Vectors::F32(&x), 1, &[f32::NAN], 3).unwrap()[0].is_empty());
    let mut codes = [0; 2];
    let scales = [to_codes(&[1.0, f32::INFINITY], &mut codes)];
    let found = nearest(Vectors::Int8 { codes: &codes, scales: &scales }, 2, &[1.0, 1.0], 3).unwrap();
    assert!(found[0].is_empty(), "a row that is not finite has no scale");
    let scales = [to_codes(&[0.0, -0.0], &mut codes)];
    let found = nearest(Vectors::Int8 { codes: &codes, scales: &scales }, 2, &[1.0, 1.0], 3).unwrap();
    assert_eq!(found[0], [Hit { row: 0, score: 0.0 }]);
}

/// The largest sums that the widest rows can have.
#[test]
fn the_widest_rows_do_not_overflow() {
    let query = vec![-1.0; WIDEST];
    for (code, number) in [(255u8, 127.0), (0, -128.0), (128, 0.0)] {
        let codes = vec![code; WIDEST];
        let scales = [1.0];
        let found = nearest(Vectors::Int8 { codes: &codes, scales: &scales }, WIDEST, &query, 1).unwrap();
        let expected = -number * WIDEST as f32;
        assert!((found[0][0].score - expected).abs() <= 1e-5 * expected.abs(), "{:?} {expected}", found[0]);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let error = |v: Vectors, width, queries: &[f32]| nearest(v, width, queries, 1).unwrap_err().to_string();
    assert!(error(Vectors::F32(&[1.0; 3]), 2, &[1.0; 2]).contains("3 numbers are no rows of width 2"));
    assert!(error(Vectors::F32(&[]), 0, &[]).contains("width 0"));
    assert!(error(Vectors::F32(&[1.0; 4]), 2, &[1.0; 3]).contains("no queries of width 2"));
    assert!(error(Vectors::Int8 { codes: &[0; 4], scales: &[1.0] }, 2, &[1.0; 2]).contains("1 scales for 2 rows"));
    assert!(error(Vectors::F32(&vec![0.0; WIDEST + 1]), WIDEST + 1, &[]).contains("65537"));
    assert_eq!(nearest(Vectors::F32(&[]), 2, &[1.0, 0.0], 3).unwrap(), [vec![]]);
    let (matrix, query) = (Tensor::zeros((2, 3), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(), [1f32]);
    let query = Tensor::new(&query, &candle_core::Device::Cpu).unwrap();
    assert!(top_k(&matrix, &query, 1).unwrap_err().to_string().contains("a query of 1 numbers for rows of 3"));
}
