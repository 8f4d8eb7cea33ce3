//! Products in sixteen bits against sums in `f64`, and in vectors against plain Rust.

use super::*;
use half::f16;
use proptest::prelude::*;

const FORMS: [Form; 2] = [Form::F16, Form::I16];

/// About normally distributed, now and then 300 times as large.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let x = mc_testkit::random(seed, n, candle_core::DType::F32).to_vec1::<f32>().unwrap();
    x.into_iter().enumerate().map(|(i, x)| if i % 97 == 13 { x * 300.0 } else { x }).collect()
}

/// In plain Rust and, where this CPU has them, in vectors: the same, bit for bit.
fn product(x: &[f32], width: usize, panels: &Panels, cols: Range<usize>, start: Start) -> Vec<f32> {
    let n = x.len() / width.max(1);
    let mut rows = Rows::new(panels.form, n, width);
    x.chunks_exact(width.max(1)).enumerate().for_each(|(i, x)| rows.fill(i, x));
    let stride = cols.len() + 3;
    let results = [false, panels.form.has_vectors()].map(|vectors| {
        let mut c = vec![f32::NAN; n * stride];
        panels.multiply_in(vectors, &rows, cols.clone(), start, (&mut c, stride));
        assert!(c.chunks_exact(stride).all(|c| c[cols.len()..].iter().all(|x| x.is_nan())));
        c.chunks_exact(stride).flat_map(|c| c[..cols.len()].to_vec()).collect::<Vec<_>>()
    });
    let [plain, vectors] = results;
    for (i, (a, b)) in plain.iter().zip(&vectors).enumerate() {
        assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{i}: {a:e} {b:e}");
    }
    plain
}

proptest! {
    /// Each number against the sum in f64 of what was to be multiplied.
    #[test]
    fn products(
        rows in 1usize..20,
        width in 1usize..300,
        members in prop::collection::vec((1usize..70, 0usize..3), 1..4),
        power in -60i32..60,
        first in 0usize..3,
        form in prop::sample::select(&FORMS[..]),
        seed: u64,
    ) {
        let x: Vec<f32> = noise(rows * width, seed).iter().map(|x| x * 2f32.powi(power)).collect();
        let (mut matrices, mut cols) = (vec![], 0usize);
        let numbers: Vec<Vec<f32>> = members.iter().enumerate()
            .map(|(m, (n, _))| noise(n * width, seed ^ (m as u64 + 1)).iter().map(|x| x * 0.05).collect()).collect();
        let halves: Vec<Vec<f16>> = numbers.iter().map(|x| x.iter().map(|x| f16::from_f32(*x)).collect()).collect();
        for ((n, gap), (f32s, f16s)) in members.iter().zip(numbers.iter().zip(&halves)) {
            cols += gap * 5;
            let elements = if *gap == 1 { Elements::F16(f16s) } else { Elements::F32(f32s) };
            matrices.push((cols..cols + n, elements));
            cols += n;
        }
        let at = (first * LANES).min(cols / LANES * LANES);
        prop_assume!(at < cols);
        let panels = Panels::pack(form, width, cols, &matrices);
        let bias = noise(cols, seed ^ 0x63);
        let residual = noise(rows * (cols + 1), seed ^ 0x64);
        for start in [Start::Zero, Start::Row(&bias[at..]), Start::Matrix(&residual[at..], cols + 1)] {
            let found = product(&x, width, &panels, at..cols, start);
            for (i, found) in found.chunks_exact(cols - at).enumerate() {
                let x = &x[i * width..(i + 1) * width];
                for (j, found) in (at..cols).zip(found) {
                    let add = match start {
                        Start::Row(row) => row[j - at],
                        Start::Matrix(m, stride) => m[i * stride + j - at],
                        _ => 0.0,
                    };
                    let member = matrices.iter().find(|(range, _)| range.contains(&j));
                    let w = |l| member.map_or(0.0, |(range, e)| e.get((j - range.start) * width + l));
                    let w: Vec<f32> = (0..width).map(w).collect();
                    let (sum, most) = expected(form, x, &w);
                    let most = most + f64::from(add.abs()) * 1e-6;
                    prop_assert!((f64::from(*found) - sum - f64::from(add)).abs() <= most, "{found} {sum} {add} {most}");
                }
            }
        }
    }
}

/// The sum of the products, and by how much what is computed may differ from it.
fn expected(form: Form, x: &[f32], w: &[f32]) -> (f64, f64) {
    let size = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let sum = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let sizes: Vec<f32> = x.iter().zip(w).map(|(x, w)| (x * w).abs()).collect();
    let most = match form {
        // A sum in f16 rounds each time by 2⁻¹¹ of what it has become, and both inputs did.
        Form::F16 => {
            let roundings = float::CHAIN.min(x.len().div_ceil(2)) + 4;
            // And what is too small to be a number of its row or column.
            size(&sizes) * roundings as f64 / 2048.0 + largest_of(x) * 3.0 * x.len() as f64 * 2f64.powi(-25)
        }
        // Half of a step at either side, and the sums in f32.
        Form::I16 => {
            let blocks = x.chunks(2 * integer::BLOCK).zip(w.chunks(2 * integer::BLOCK));
            let steps = blocks.map(|(x, w)| {
                let [of_x, of_w] = [x, w].map(|x| largest_of(x) / 8190.0);
                size(x) * of_w + size(w) * of_x + of_x * of_w * x.len() as f64
            });
            steps.sum::<f64>() * 1.001 + size(&sizes) * 2f64.powi(-20)
        }
    };
    (sum(x, w), most)
}

/// Of normally distributed numbers; see the heads of the forms' files.
#[test]
fn errors_are_smaller_than_those_of_bf16() {
    for (form, most) in [(Form::F16, 1e-3), (Form::I16, 3e-4)] {
        errors(form, most);
    }
}

fn errors(form: Form, most: f64) {
    let (rows, width, cols) = (24, 1536, 64);
    let x = mc_testkit::random(1, rows * width, candle_core::DType::F32).to_vec1::<f32>().unwrap();
    let w = mc_testkit::random(2, cols * width, candle_core::DType::F32).to_vec1::<f32>().unwrap();
    let w: Vec<half::bf16> = w.into_iter().map(half::bf16::from_f32).collect();
    let panels = Panels::pack(form, width, cols, &[(0..cols, Elements::BF16(&w))]);
    let found = product(&x, width, &panels, 0..cols, Start::Zero);
    let bf16 = |x: f32| half::bf16::from_f32(x).to_f64();
    let (mut ours, mut theirs, mut all) = (0.0, 0.0, 0.0);
    for (i, found) in found.chunks_exact(cols).enumerate() {
        for (found, w) in found.iter().zip(w.chunks_exact(width)) {
            let x = &x[i * width..(i + 1) * width];
            let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * w.to_f64()).sum();
            let rounded: f64 = x.iter().zip(w).map(|(x, w)| bf16(*x) * w.to_f64()).sum();
            ours += (f64::from(*found) - exact).powi(2);
            theirs += (rounded - exact).powi(2);
            all += exact.powi(2);
        }
    }
    let [ours, theirs] = [ours, theirs].map(|e: f64| (e / all).sqrt());
    println!("root mean square error of a product: {ours:.2e} in {form:?}, {theirs:.2e} in bf16");
    assert!(ours < theirs / 1.5 && ours < most, "{form:?}: {ours:.2e} {theirs:.2e}");
}

fn largest_of(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |m, x| f64::from(x.abs()).max(m))
}

#[test]
fn the_ends_of_the_range() {
    let of = |form, x: [f32; 2], w: [f32; 2]| {
        let w = w.repeat(20);
        let panels = Panels::pack(form, 2, 20, &[(0..20, Elements::F32(&w))]);
        let found = product(&x, 2, &panels, 0..20, Start::Zero);
        assert!(found.iter().all(|y| y.to_bits() == found[0].to_bits()));
        found[0]
    };
    let is = |form, x, w, expected: f32| {
        let found = of(form, x, w);
        assert!(
            (found - expected).abs() <= 1e-2 * expected.abs(),
            "{form:?} {x:?} · {w:?} = {found:e}, not {expected:e}"
        );
    };
    for form in FORMS {
        is(form, [0.0, 0.0], [3e38, 1.0], 0.0);
        is(form, [1e32, 1e32], [1e-30, 1e-30], 200.0);
        is(form, [1e-33, 1e-33], [3e38, 3e38], 6e5);
        is(form, [1e-20, 1e-20], [1e-18, 1e-18], 2e-38);
        assert!(of(form, [3e38, 3e38], [3e38, 1.0]).is_infinite());
        assert!(of(form, [f32::NAN, 1.0], [1.0, 1.0]).is_nan());
        assert!(of(form, [1.0, 0.0], [1.0, f32::INFINITY]).is_nan());
        assert_eq!(of(form, [-1e-30, 0.0], [1e-30, 1e-30]).abs(), 0.0);
    }
    assert!(of(Form::F16, [f32::INFINITY, 1.0], [1.0, 1.0]).is_infinite());
    assert!(of(Form::I16, [f32::INFINITY, 1.0], [1.0, 1.0]).is_nan());
    assert!(of(Form::I16, [1e36, 1e36], [1e-30, 1e-30]).is_infinite());
    let is = |x, w, expected| is(Form::F16, x, w, expected);
    is([1e36, 1e36], [1e-30, 1e-30], 2e6);
    is([1e-38, 1e-38], [3e38, 3e38], 6.0);
    is([1e-40, 0.0], [3e38, 3e38], 0.03);
    is([3e38, 0.0], [1e-38, 1e-38], 3.0);
    is([1e37, 1e37], [1e-3, 1e-3], 2e34);
    is([1e-20, 1e-20], [1e-20, 1e-20], 2e-40);
    is([3e38, -3e38], [3e38, 3e38], 0.0);
    // The smallest beside the largest that is a number still.
    is([8.0, 2f32.powi(-24)], [0.0, 1.0], 2f32.powi(-24));
}

/// All products of one sign and as large as they get.
#[test]
fn no_sum_overflows() {
    let sizes = [(1.999_999_9f32, 1.999_999_9f32), (1.9995, 1.9995), (-31.98, 63.98), (4090.0, 0.124_9)];
    for (form, (x, w)) in FORMS.into_iter().flat_map(|form| sizes.map(|size| (form, size))) {
        let panels = Panels::pack(form, 200, 5, &[(0..5, Elements::F32(&[w; 1000]))]);
        let expected = 200.0 * x * w;
        for y in product(&[x; 400], 200, &panels, 0..5, Start::Zero) {
            assert!((y - expected).abs() < 5e-3 * expected.abs(), "{form:?} {x} {w}: {y} {expected}");
        }
    }
}

#[test]
fn a_column_does_not_notice_its_neighbours() {
    let width = 200;
    let (x, w) = (noise(3 * width, 1), noise(20 * width, 2));
    let column = |form, w: &[f32]| {
        let panels = Panels::pack(form, width, 20, &[(0..20, Elements::F32(w))]);
        let found = product(&x, width, &panels, 0..20, Start::Zero);
        found.chunks_exact(20).map(|row| (row[3].to_bits(), row[5].is_finite())).collect::<Vec<_>>()
    };
    let neighbours = [1e30, f32::NAN, f32::INFINITY];
    for (form, neighbour) in FORMS.into_iter().flat_map(|form| neighbours.map(|neighbour| (form, neighbour))) {
        let before = column(form, &w);
        let mut w = w.clone();
        w[5 * width] = neighbour;
        let after = column(form, &w);
        assert!(
            before.iter().zip(&after).all(|(b, a)| b.0 == a.0 && a.1 == neighbour.is_finite()),
            "{form:?} {neighbour}"
        );
    }
}

/// In vectors as in plain Rust, and to the nearest.
#[test]
fn rounding_to_f16_is_to_the_nearest() {
    let ends =
        [0.0, -0.0, 1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 2f32.powi(-25), 65519.0, 65520.0, f32::NAN];
    let x: Vec<f32> = ends.into_iter().chain([1.0 + 2f32.powi(-11) + 2f32.powi(-20)]).chain(noise(40, 3)).collect();
    for n in 0..x.len() {
        let results = [false, Form::F16.has_vectors()].map(|vectors| {
            let mut units = vec![7u32; n.div_ceil(2) + 1];
            float::round(vectors, &x[..n], 0.5, &mut units);
            units
        });
        let halves: &[u16] = bytemuck::cast_slice(&results[0]);
        for (x, h) in x.iter().zip(&halves[..n]) {
            let (h, expected) = (f16::from_bits(*h), float::nearest(f64::from(*x) * 0.5));
            assert!(h.to_bits() == expected.to_bits() || h.is_nan() && x.is_nan(), "{x} {h}");
        }
        assert!(halves[n..].iter().all(|h| *h == 0));
        let nan = |u: &[u32]| {
            bytemuck::cast_slice::<u32, u16>(u).iter().map(|h| f16::from_bits(*h).is_nan()).collect::<Vec<_>>()
        };
        assert!(results[0] == results[1] || nan(&results[0]) == nan(&results[1]) && n >= ends.len(), "{n}");
    }
}

/// To the nearest of the block's steps, and of the same distance to the even one.
#[test]
fn rounding_to_whole_numbers_is_to_the_nearest() {
    let x = [4095.0, -4095.0, 0.5, 1.5, -0.5, -1.5, 2.499_99, -2.500_01, 4094.5, 1e-30, -0.0];
    let mut units = [7u32; 8];
    assert_eq!(integer::encode(&x, &mut units).to_bits(), 1f32.to_bits());
    let halves: &[i16] = bytemuck::cast_slice(&units);
    assert_eq!(halves[..11], [4095, -4095, 0, 2, 0, -2, 2, -3, 4094, 0, 0]);
    assert!(halves[11..].iter().all(|h| *h == 0));
    // A block's largest is the largest number that there is, whatever it is multiplied by.
    for x in noise(2000, 5).iter().map(|x| x * 1e-9).chain([f32::MAX, 1e-34, 2f32.powi(-113)]) {
        let mut units = [0u32];
        let scale = integer::encode(&[x], &mut units);
        assert_eq!(units[0], if x < 0.0 { 0xF001 } else { 0x0FFF }, "{x:e}");
        assert!((scale - x.abs() / 4095.0).abs() <= scale * 1e-6, "{x:e}");
    }
    assert_eq!(integer::encode(&[2f32.powi(-114)], &mut units), 2f32.powi(-113) / 4095.0);
    let mut units = [7u32; 8];
    assert!(integer::encode(&[1.0, f32::NEG_INFINITY], &mut units).is_nan() && units == [0; 8]);
}

/// Where the system says what the CPU has.
#[test]
fn it_serves_where_the_cpu_has_it() {
    if let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") {
        let has = |flag| info.split_whitespace().any(|has| has == flag);
        let in_integers = has("avx2") && has("fma") && !has("avx512f") && cpu::multiplies_integers_faster();
        let other = in_integers.then_some(Form::I16);
        assert_eq!(Form::fastest(), if has("avx512_fp16") { Some(Form::F16) } else { other });
    }
}

/// Of another form, width or length.
#[test]
fn rows_that_do_not_fit_are_refused() {
    let x = [1f32; 256];
    let multiplied = |form, width, panels: &Panels| {
        let mut rows = Rows::new(form, 1, width);
        rows.fill(0, &x[..width]);
        let mut c = [0f32; 2];
        panels.multiply(&rows, 0..2, Start::Zero, (&mut c, 2));
        c
    };
    for form in FORMS {
        let panels = Panels::pack(form, 128, 2, &[(0..2, Elements::F32(&x))]);
        assert!(multiplied(form, 128, &panels).iter().all(|y| (y - 128.0).abs() < 1e-3));
        let refused = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        for (form, width) in [(form, 126), (form, 130), (FORMS[usize::from(form == FORMS[0])], 128)] {
            assert!(refused(&|| assert_ne!(multiplied(form, width, &panels), [0.0; 2])), "{form:?} {width}");
        }
        for width in [126, 130, 256] {
            assert!(refused(&|| Rows::new(form, 1, 128).fill(0, &x[..width])), "{form:?} {width}");
        }
    }
}

#[test]
fn nothing_is_no_product() {
    for form in FORMS {
        let panels = Panels::pack(form, 0, 5, &[]);
        let mut c = [7f32; 10];
        panels.multiply(&Rows::new(form, 2, 0), 0..5, Start::Zero, (&mut c, 5));
        assert_eq!(c, [0.0; 10]);
        panels.multiply(&Rows::new(form, 0, 0), 0..5, Start::Zero, (&mut c, 5));
    }
}
