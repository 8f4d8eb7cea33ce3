//! Vector primitives, compiled for each instruction set and chosen at run time.
//!
//! Loops are written over fixed-size lanes, which the compiler turns into vector instructions of whatever width
//! [`simd`] has enabled. Sums run over 16 partial sums that are added in a fixed order.

use super::{round, tile::LANES, transpose};
use half::{bf16, f16};

/// Runs `f` once, compiled for the best instruction set of this CPU. `f` and what it calls must be `#[inline(always)]`.
///
/// It is called as what it is: a closure that could be called more than once, called as `FnOnce`, is called by a function in between
/// that is not always inlined, so that a long one would be compiled for any CPU, with a call of `fmaf` for each multiply-add.
#[inline]
pub(crate) fn simd<R>(f: impl FnMut() -> R) -> R {
    struct Once<F>(F);
    impl<R, F: FnMut() -> R> pulp::NullaryFnOnce for Once<F> {
        type Output = R;
        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Once(f))
}

/// An element that a kernel can widen to `f32`.
pub(crate) trait Element: Copy + Send + Sync {
    const ZERO: Self;
    /// How many are one unit of a product as they lie in memory; 0 for none.
    const OF_UNIT: usize;
    fn widen(self) -> f32;
    /// To the nearest `bf16`, ties to even; NaN stays NaN.
    #[inline(always)]
    fn nearest(self) -> bf16 {
        let bits = self.widen().to_bits();
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded } as u16)
    }
    /// What the CPU does faster than [`pairs`]; whether it did.
    #[inline(always)]
    fn fast_pairs(_: &[Self], _: usize, _: &mut [[u32; LANES]]) -> bool {
        false
    }
    /// [`transpose::columns`] where units of `PER` numbers are what lies in memory; whether it was done.
    #[inline(always)]
    fn fast_columns<const PER: usize>(x: &[Self], stride: usize, to: &mut [[u32; LANES]]) -> bool {
        PER == Self::OF_UNIT && transpose::columns(x, stride, to)
    }
}
impl Element for f32 {
    const ZERO: Self = 0.0;
    const OF_UNIT: usize = 1;
    #[inline(always)]
    fn fast_pairs(x: &[Self], stride: usize, pairs: &mut [[u32; LANES]]) -> bool {
        round::pairs(x, stride, pairs)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}
impl Element for bf16 {
    const ZERO: Self = bf16::ZERO;
    const OF_UNIT: usize = 2;
    #[inline(always)]
    fn nearest(self) -> bf16 {
        self
    }
    #[inline(always)]
    fn fast_pairs(x: &[Self], stride: usize, pairs: &mut [[u32; LANES]]) -> bool {
        transpose::pairs(x, stride, pairs)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}
impl Element for f16 {
    const ZERO: Self = f16::ZERO;
    const OF_UNIT: usize = 0;
    /// Without a branch, so that it vectorises: the exponent is rebased by a multiplication, which also makes
    /// subnormal numbers right; infinities and NaN get the full exponent.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = bits & 0x7FFF;
        let finite = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
        let special = if magnitude >= 0x7C00 { 0xFF << 23 } else { 0 };
        f32::from_bits(finite.to_bits() | special | (bits & 0x8000) << 16)
    }
}

/// Pairs of 16 neighbouring columns, rounded to `bf16`: two rows of `x`, which lie `stride` apart, become one row of pairs,
/// the first of the two in the low half.
#[inline(always)]
pub(crate) fn pairs<T: Element>(x: &[T], stride: usize, pairs: &mut [[u32; LANES]]) {
    if T::fast_pairs(x, stride, pairs) {
        return;
    }
    for (i, pairs) in pairs.iter_mut().enumerate() {
        let (first, second) = (&x[2 * i * stride..][..LANES], &x[(2 * i + 1) * stride..][..LANES]);
        for ((p, a), b) in pairs.iter_mut().zip(first).zip(second) {
            *p = u32::from(a.nearest().to_bits()) | u32::from(b.nearest().to_bits()) << 16;
        }
    }
}

#[inline(always)]
pub(crate) fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = f.widen();
    }
}

/// The sum of all lanes, by halves; of nothing but zeros of either sign it is 0.
#[inline(always)]
pub(crate) fn total(sums: [f32; LANES]) -> f32 {
    let mut sums = sums;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0] + 0.0
}

/// How many times [`LANES`] sums [`dot`] has.
pub(crate) const UNROLL: usize = 4;

/// `Σ a[i]·b[i]`
#[inline(always)]
pub(crate) fn dot<T: Element>(a: &[T], b: &[f32]) -> f32 {
    let mut sums = [[0f32; LANES]; UNROLL];
    let (mut ca, mut cb) = (a.chunks_exact(LANES * UNROLL), b.chunks_exact(LANES * UNROLL));
    for (a, b) in (&mut ca).zip(&mut cb) {
        for (u, sum) in sums.iter_mut().enumerate() {
            for i in 0..LANES {
                sum[i] = a[u * LANES + i].widen().mul_add(b[u * LANES + i], sum[i]);
            }
        }
    }
    finish(sums, ca.remainder(), cb.remainder())
}

/// All of these sums, lane by lane.
#[inline(always)]
fn added(sums: [[f32; LANES]; UNROLL]) -> [f32; LANES] {
    let mut sum = [0f32; LANES];
    for s in sums {
        for i in 0..LANES {
            sum[i] += s[i];
        }
    }
    sum
}

/// The end of [`dot`]: all of its sums, and the products of what is left.
#[inline(always)]
pub(crate) fn finish<T: Element>(sums: [[f32; LANES]; UNROLL], a: &[T], b: &[f32]) -> f32 {
    let mut sum = added(sums);
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sum[i % LANES] = a.widen().mul_add(*b, sum[i % LANES]);
    }
    total(sum)
}

/// `Σ f(x[i])` with as many partial sums as [`dot`].
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [[0f32; LANES]; UNROLL];
    let mut chunks = x.chunks_exact(LANES * UNROLL);
    for c in &mut chunks {
        for (u, sum) in sums.iter_mut().enumerate() {
            for i in 0..LANES {
                sum[i] += f(c[u * LANES + i]);
            }
        }
    }
    let mut sum = added(sums);
    for (i, x) in chunks.remainder().iter().enumerate() {
        sum[i % LANES] += f(*x);
    }
    total(sum)
}

/// `eˣ` with a relative error below 1.2·10⁻⁷; 0 below −87.3, capped above 88. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    use exp::{LOG2_E, ROUND};
    let clamped = if x > 88.0 { 88.0 } else { x };
    let rounded = clamped.mul_add(LOG2_E[0], ROUND);
    let r = clamped.mul_add(LOG2_E[0], ROUND - rounded);
    let power = power_of_two(rounded, clamped.mul_add(LOG2_E[1], r));
    if x < -87.3 { 0.0 } else { power }
}

/// `2ˣ` with a relative error below 1·10⁻⁷; 0 below −126, capped above 127. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    use exp::{LARGEST, LEAST, ROUND};
    let clamped = if x > LARGEST { LARGEST } else { x };
    let rounded = clamped + ROUND;
    let power = power_of_two(rounded, clamped - (rounded - ROUND));
    if x < LEAST { 0.0 } else { power }
}

/// `2ⁿ⁺ʳ` of n in the low bits of `rounded` and `|r| ≤ ½`: `2ʳ` by a polynomial, `2ⁿ` by the exponent bits (Cody and Waite,
/// "Software Manual for the Elementary Functions", 1980, chapter 6).
#[inline(always)]
fn power_of_two(rounded: f32, r: f32) -> f32 {
    let mut p = exp::POLYNOMIAL[0];
    for c in &exp::POLYNOMIAL[1..] {
        p = r.mul_add(p, *c);
    }
    p * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// The numbers of [`exp()`] and [`exp2`].
pub(crate) mod exp {
    pub(crate) const LEAST: f32 = -126.0;
    pub(crate) const LARGEST: f32 = 127.0;
    /// 1.5 · 2²³: adding it rounds to an integer in the low mantissa bits.
    pub(crate) const ROUND: f32 = 12_582_912.0;
    /// log₂ e, and what that lacks.
    pub(crate) const LOG2_E: [f32; 2] = [std::f32::consts::LOG2_E, 1.925_963e-8];
    /// `2ʳ` for `|r| ≤ ½` within 2·10⁻⁸, relatively, and exact at 0: the least largest error of degree 6, found by weighted least squares
    /// whose weights are multiplied by the errors (Lawson, "Contributions to the Theory of Linear Least Maximum Approximations", 1961), which
    /// is 2·10⁻⁹ before its numbers are rounded to `f32`.
    pub(crate) const POLYNOMIAL: [f32; 7] =
        [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_4e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_stated_error() {
        let mut worst = 0f64;
        for i in -873_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(simd(|| exp(x))) - exact).abs() / exact);
        }
        assert!(worst < 1.2e-7, "{worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1000.0) > 1e38);
    }

    #[test]
    fn exp2_is_within_its_stated_error() {
        let mut worst = 0f64;
        for i in -1_260_000..=1_270_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(simd(|| exp2(x))) - exact).abs() / exact);
        }
        assert!(worst < 1e-7, "{worst}");
        for r in (-5000..=5000).map(|i| f64::from(i) * 1e-4) {
            let power = exp::POLYNOMIAL.iter().fold(0.0, |p, c| p * r + f64::from(*c));
            assert!((power / r.exp2() - 1.0).abs() < 2e-8, "{r}");
        }
        let [least, largest] = [exp::LEAST, exp::LARGEST].map(f32::exp2);
        assert_eq!([f32::NEG_INFINITY, exp::LEAST.next_down(), exp::LEAST], [f32::NEG_INFINITY, -126.00001, -126.0]);
        assert_eq!([f32::NEG_INFINITY, -126.00001, -126.0].map(exp2), [0.0, 0.0, least]);
        assert_eq!([0.0, 1.0, 127.0, 127.00001, 1000.0].map(exp2), [1.0, 2.0, largest, largest, largest]);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn every_half_number_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(h.widen().to_bits() == h.to_f32().to_bits() || h.is_nan() && h.widen().is_nan(), "{bits:x}");
            assert!(b.widen().to_bits() == b.to_f32().to_bits() || b.is_nan() && b.widen().is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn dot_and_sum_on_odd_lengths() {
        for n in [0, 1, 15, 16, 17, 63, 64, 65, 130, 1001] {
            let a: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 53 % 89) as f32 - 40.0) / 64.0).collect();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(simd(|| dot(&a, &b))) - exact).abs() < 1e-3, "{n}");
            let sum: f64 = a.iter().map(|a| f64::from(*a)).sum();
            assert!((f64::from(simd(|| sum_of(&a, |v| v))) - sum).abs() < 1e-3, "{n}");
        }
    }
}
