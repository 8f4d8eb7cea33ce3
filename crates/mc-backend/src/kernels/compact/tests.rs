//! Each form that this CPU reads, also one that it would not choose.

use super::{super::simd::dot, *};

fn codes() -> impl Iterator<Item = Code> {
    [Code::Eleven, Code::Twelve].into_iter().filter(|code| code.is_read())
}

/// Numbers with a spread of exponents, of which some are zero, some far away, and some no numbers at all.
fn numbers(rows: usize, width: usize, seed: usize) -> Vec<bf16> {
    let number = |i: usize| {
        let bits = (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 17;
        match bits % 9973 {
            0 => bf16::from_f32(1e-20),
            1 => bf16::from_bits(3),
            2..9 => bf16::NEG_ZERO,
            9..99 => bf16::ZERO,
            99..110 => bf16::MAX,
            110..113 => bf16::NEG_INFINITY,
            n => bf16::from_f32((n as f32 - 4999.5) / 5000.0),
        }
    };
    (0..rows * width).map(number).collect()
}

/// The even numbers of x and its odd ones, as [`Row`] has them.
fn halves(x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let half = x.len().next_multiple_of(BLOCK) / 2;
    let (mut even, mut odd) = (vec![0f32; half], vec![0f32; half]);
    for (pair, (even, odd)) in x.chunks(2).zip(even.iter_mut().zip(&mut odd)) {
        (*even, *odd) = (pair[0], pair[1]);
    }
    (even, odd)
}

/// The first products of rows with x, which is padded with something that must not be read.
fn products<const N: usize>(form: &Compact, first: usize, x: &[f32]) -> [f32; N] {
    let (even, odd) = halves(x);
    let mut y = [f32::NAN; N];
    let x: Vec<f32> = x.iter().copied().chain([f32::NAN; BLOCK]).collect();
    form.dots(first, Row { x: &x, even: &even, odd: &odd }, &mut y);
    y
}

/// A number of a row, read back by the product with a unit vector.
fn read_back(form: &Compact, row: usize, only: usize) -> f32 {
    let mut x = vec![0f32; form.width];
    x[only] = 1.0;
    let [y] = products(form, row, &x);
    y
}

#[test]
fn every_number_is_what_it_was() {
    for code in codes() {
        let mut far = 0;
        for (rows, width) in [(3, 64), (40, 60), (5, 250), (2, 576), (600, 128), (40, 896), (20, 1022)] {
            let mut w = numbers(rows, width, rows * width);
            // An infinite number makes NaN of the zeros that unit vectors have beside their one.
            w.iter_mut().filter(|x| x.is_infinite()).for_each(|x| *x = bf16::MIN);
            let form = Compact::of(code, &w, width).expect("it saves an eighth");
            far += (form.starts[rows] - rows * code.row_bytes(width, 0)) / code.listed();
            for row in 0..rows {
                for i in 0..width {
                    // Sums begin at 0, which a zero of either sign leaves as it is.
                    assert_eq!(
                        read_back(&form, row, i),
                        w[row * width + i].to_f32(),
                        "{code:?}: {i} of row {row}, {rows} x {width}"
                    );
                }
            }
        }
        assert!(far > 1000, "{code:?}: {far}");
    }
}

/// Sums run as those of the matrix as it lies, bit for bit. (Those of eleven bits are compared where products of a few rows are: a
/// CPU that reads them chooses them.)
#[test]
fn products_of_twelve_bits_are_those_of_the_rows_as_they_lie() {
    for (rows, width) in [(40, 60), (9, 128), (9, 896), (9, 250), (9, 1026)] {
        let w: Vec<_> = numbers(rows, width, 5).iter().map(|x| bf16::from_f32(x.to_f32().clamp(-1.0, 1.0))).collect();
        let x: Vec<f32> = numbers(1, width, 77).iter().map(|x| x.to_f32().clamp(-3.0, 3.0)).collect();
        let code = Code::Twelve;
        let Some(form) = code.is_read().then(|| Compact::of(code, &w, width).expect("it saves an eighth")) else {
            return;
        };
        for (i, w) in w.chunks_exact(width).enumerate() {
            let [y] = products(&form, i, &x);
            assert_eq!(y.to_bits(), dot(w, &x).to_bits(), "row {i} of {rows} x {width}");
        }
    }
    // Sums that underflow to -0 end as 0.
    let (w, x) = ([bf16::from_f32(-1e-30); 256], [1e-30; 256]);
    let [y] = products(&Compact::of(Code::Twelve, &w, 256).expect("it saves an eighth"), 0, &x);
    assert_eq!((y.to_bits(), dot(&w, &x).to_bits()), (0, 0));
}

/// Of normally distributed rows, wherever their spread lies between two exponents, hardly a number lies elsewhere, and few where
/// each row has an outlier.
#[test]
fn few_numbers_lie_elsewhere() {
    let (rows, width) = (200, 576);
    let spread =
        mc_testkit::random(3, (rows, width), candle_core::DType::F32).flatten_all().and_then(|x| x.to_vec1::<f32>());
    let spread = spread.expect("numbers");
    for (code, scale) in codes().flat_map(|code| [1.0, 1.2, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4].map(|scale| (code, scale))) {
        let elsewhere = |w: &[bf16]| {
            let form = Compact::of(code, w, width).expect("it saves an eighth");
            (form.starts[rows] - rows * code.row_bytes(width, 0)) / code.listed()
        };
        let mut w: Vec<_> = spread.iter().map(|x| bf16::from_f32(x * scale)).collect();
        let alone = elsewhere(&w);
        w.iter_mut().step_by(width + 1).for_each(|x| *x = bf16::from_f32(300.0 * scale));
        let with_outliers = elsewhere(&w);
        let most = match code {
            Code::Eleven => [rows * width / 25, rows * width / 25],
            Code::Twelve => [rows * width / 3000, rows + rows * width / 500],
        };
        assert!(alone <= most[0] && with_outliers <= most[1], "{code:?}, {scale}: {alone}, {with_outliers}");
    }
}

#[test]
fn infinity_and_what_is_no_number_stay() {
    for code in codes() {
        let mut w = vec![bf16::ONE; 256 * 20];
        w[256 * 3 + 5] = bf16::NEG_INFINITY;
        w[256 * 4 + 200] = bf16::NAN;
        let form = Compact::of(code, &w, 256).expect("two exponents lie elsewhere");
        assert_eq!(form.starts[20], 20 * code.row_bytes(256, 0) + 2 * code.listed());
        let y: [f32; 6] = products(&form, 0, &[1.0; 256]);
        assert_eq!((&y[..4], y[4].is_nan(), y[5]), (&[256.0, 256.0, 256.0, f32::NEG_INFINITY][..], true, 256.0));
    }
}

/// Rows of infinities only, whose top is the highest there is, and of the smallest numbers, whose top is the lowest.
#[test]
fn the_ends_of_the_range() {
    for code in codes() {
        let mut w = vec![bf16::INFINITY; 128];
        w.extend([bf16::from_bits(0x0080); 128]);
        w.extend([bf16::from_bits(0x807F); 128]);
        w.extend([bf16::ZERO; 128]);
        w.extend([bf16::ONE; 128 * 40]);
        let form = Compact::of(code, &w, 128).expect("most of it is ones");
        let y: [f32; 5] = products(&form, 0, &[1.0; 128]);
        let sum = |x: u16| 128.0 * bf16::from_bits(x).to_f32();
        assert_eq!(y, [f32::INFINITY, sum(0x0080), sum(0x807F), 0.0, 128.0], "{code:?}");
    }
}

/// As small as any, where the lowest top is not below the numbers any more, and with a last block that is filled up.
#[test]
fn small_numbers_are_what_they_were() {
    for code in codes() {
        for scale in [1.0, 2f32.powi(-110), 2f32.powi(-119)] {
            let width = 998;
            let w: Vec<_> = numbers(9, width, 7)
                .iter()
                .map(|x| bf16::from_f32(if x.to_f32().abs() <= 1.0 { x.to_f32() * scale } else { scale }))
                .collect();
            let form = Compact::of(code, &w, width).expect("it saves an eighth");
            for (row, i) in (0..9).flat_map(|row| (0..width).map(move |i| (row, i))) {
                assert_eq!(
                    read_back(&form, row, i),
                    w[row * width + i].to_f32(),
                    "{code:?}: {i} of row {row}, {scale}"
                );
            }
        }
    }
}

/// The last place of the widest row stands in its list.
#[test]
fn the_widest_row() {
    for code in codes() {
        let width = (1 << 24) - BLOCK;
        let mut w = vec![bf16::ONE; width];
        w[width - 1] = bf16::from_f32(1e-30);
        let form = Compact::of(code, &w, width).expect("it saves an eighth");
        assert_eq!(form.starts[1], code.row_bytes(width, 1));
        assert_eq!(
            (read_back(&form, 0, width - 1), read_back(&form, 0, width - 2)),
            (w[width - 1].to_f32(), 1.0),
            "{code:?}"
        );
    }
}

#[test]
fn what_would_save_little_is_not_made() {
    let spread: Vec<bf16> = (0..1024).map(|i| bf16::from_f32(0.5f32.powi(i % 60))).collect();
    for code in codes() {
        assert!(Compact::of(code, &spread, 128).is_none());
        // Rows that end soon after the beginning of a block.
        assert!(
            Compact::of(code, &[bf16::ONE; 660], 66).is_none() && Compact::of(code, &[bf16::ONE; 320], 32).is_none()
        );
    }
    assert!(!serves(0) && !serves(3));
    assert!(!serves((1 << 24) - 2), "a row of zeros would not fit its header");
}

/// Many at a time, as many as are added up together and not, they are what they are one by one.
#[test]
fn products_do_not_depend_on_their_neighbours() {
    for code in codes() {
        let (w, x) = (numbers(37, 250, 9), [0.5; 250]);
        let form = Compact::of(code, &w, 250).expect("it saves an eighth");
        let all: [f32; 37] = products(&form, 0, &x);
        for (i, y) in all.into_iter().enumerate() {
            let [alone] = products(&form, i, &x);
            assert!(y.to_bits() == alone.to_bits() || y.is_nan() && alone.is_nan(), "{code:?}, row {i}");
        }
    }
}

#[test]
#[should_panic(expected = "more products than rows")]
fn rows_that_are_not_there_are_refused() {
    let Some(form) = Compact::new(&numbers(3, 64, 1), 64) else { panic!("more products than rows: no form here") };
    let _: [f32; 2] = products(&form, 2, &[1.0; 64]);
}
