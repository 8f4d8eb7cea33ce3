//! Matrix products on the CPU: `x·Wᵀ` and `g·W` with a frozen `W` in the file's dtype, and plain `f32` products.
//!
//! `W` is `(n, k)` row-major, `x` is `(m, k)`, `g` is `(m, n)`. Half-precision weights are widened one panel at a time
//! into scratch of the thread that uses it: a panel of 128 rows (or columns) is read once and multiplied with all m
//! rows, so widening costs a 1/m-th of the arithmetic, and no second copy of the weights ever exists.

use super::{
    Shared,
    simd::{self, Element, dot, simd},
};
use crate::weight::Elements;
use rayon::prelude::*;
use std::cell::RefCell;

/// Rows or columns of a weight in one panel: 128 × 4,864 `f32` is 2.5 MB, the size of a large L2 cache.
const PANEL: usize = 128;
/// Up to this many rows of `x` a product is bound by reading the weights: dot products over rows beat panels.
const FEW: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while in use: rayon may run another unit on this thread while one waits.
    let mut scratch = SCRATCH.with(|s| std::mem::take(&mut *s.borrow_mut()));
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    SCRATCH.with(|s| *s.borrow_mut() = scratch);
    result
}

/// An `f32` matrix in memory: element `(i, j)` is at `data[i·rows + j·cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with rows of `width`.
    pub(crate) fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, row_stride: width, col_stride: 1 }
    }
    pub(crate) fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.data.len()
    }
}

/// `c = beta·c + alpha·a·b` for one unit of work, on this thread; c is `(m, n)` with rows `stride` apart from `c` on.
///
/// # Safety
/// Those elements are in bounds of one live buffer, and nobody else touches them meanwhile.
#[allow(unsafe_code)]
unsafe fn product(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: Matrix,
    b: Matrix,
    beta: f32,
    c: *mut f32,
    stride: usize,
) {
    assert!(a.holds(m, k) && b.holds(k, n), "matrix product out of bounds");
    // SAFETY: a and b hold what is read, as asserted; the caller promises the (m, n) elements behind `c`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            stride as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `c = beta·c + alpha·a·b` on this thread into rows of `c` that lie `stride` apart.
pub(crate) fn serial(
    size: (usize, usize, usize),
    alpha: f32,
    a: Matrix,
    b: Matrix,
    beta: f32,
    c: &mut [f32],
    stride: usize,
) {
    let (m, n, _) = size;
    assert!(m == 0 || n == 0 || (m - 1) * stride + n <= c.len(), "matrix product out of bounds");
    // SAFETY: the elements are in bounds of `c`, as asserted, which is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        product(size, alpha, a, b, beta, c.as_mut_ptr(), stride);
    }
}

/// `c = beta·c + alpha·a·b`; `a` is `(m, k)`, `b` is `(k, n)`, `c` is `(m, n)` row-major. In parallel over rows or columns of `c`.
pub(crate) fn parallel((m, n, k): (usize, usize, usize), alpha: f32, a: Matrix, b: Matrix, beta: f32, c: &mut [f32]) {
    assert!(c.len() == m * n && a.holds(m, k) && b.holds(k, n), "matrix product out of bounds");
    if m == 0 || n == 0 {
        return;
    }
    let shared = Shared::new(c);
    if m >= n {
        (0..m.div_ceil(PANEL)).into_par_iter().for_each(|u| {
            let (from, rows) = (u * PANEL, PANEL.min(m - u * PANEL));
            let a = Matrix { data: a.data.get(from * a.row_stride..).unwrap_or_default(), ..a };
            // SAFETY: in bounds, as `block` asserts; units own disjoint rows of c.
            #[allow(unsafe_code)]
            unsafe {
                product((rows, n, k), alpha, a, b, beta, shared.block(from * n, (rows, n), n), n);
            }
        });
    } else {
        (0..n.div_ceil(PANEL)).into_par_iter().for_each(|u| {
            let (from, cols) = (u * PANEL, PANEL.min(n - u * PANEL));
            let b = Matrix { data: b.data.get(from * b.col_stride..).unwrap_or_default(), ..b };
            // SAFETY: in bounds, as `block` asserts; units own disjoint columns of c.
            #[allow(unsafe_code)]
            unsafe {
                product((m, cols, k), alpha, a, b, beta, shared.block(from, (m, cols), n), n);
            }
        });
    }
}

/// `y = x·Wᵀ (+ bias)`: x `(m, k)`, W `(n, k)`, bias `(n)`, y `(m, n)`.
pub(crate) fn times_transposed(x: &[f32], w: Elements, (n, k): (usize, usize), bias: Option<&[f32]>, y: &mut [f32]) {
    match w {
        Elements::F32(w) => forward(x, w, Some(w), (n, k), bias, y),
        Elements::F16(w) => forward(x, w, None, (n, k), bias, y),
        Elements::BF16(w) => forward(x, w, None, (n, k), bias, y),
    }
}

fn forward<T: Element>(
    x: &[f32],
    w: &[T],
    as_f32: Option<&[f32]>,
    (n, k): (usize, usize),
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let m = x.len().checked_div(k).unwrap_or(0);
    assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n, "matrix product out of bounds");
    if m == 0 || n == 0 {
        return;
    }
    if m <= FEW {
        return forward_few(x, w, (m, n, k), bias, y);
    }
    if let Some(bias) = bias {
        y.par_chunks_mut(n).for_each(|row| row.copy_from_slice(bias));
    }
    let beta = if bias.is_some() { 1.0 } else { 0.0 };
    let shared = Shared::new(y);
    (0..n.div_ceil(PANEL)).into_par_iter().for_each(|u| {
        let (from, rows) = (u * PANEL, PANEL.min(n - u * PANEL));
        let range = from * k..(from + rows) * k;
        let run = |panel: &[f32]| {
            let (x, panel) = (Matrix::new(x, k), Matrix::new(panel, k).transposed());
            // SAFETY: in bounds, as `block` asserts; each unit owns columns from..from + rows of y.
            #[allow(unsafe_code)]
            unsafe {
                product((m, rows, k), 1.0, x, panel, beta, shared.block(from, (m, rows), n), n);
            }
        };
        match as_f32 {
            Some(w) => run(&w[range]),
            None => with_scratch(rows * k, |panel| {
                simd(
                    #[inline(always)]
                    || simd::widen(&w[range], panel),
                );
                run(panel);
            }),
        }
    });
}

/// Few rows: each weight row is read once and multiplied with all of them.
fn forward_few<T: Element>(x: &[f32], w: &[T], (m, n, k): (usize, usize, usize), bias: Option<&[f32]>, y: &mut [f32]) {
    const UNIT: usize = 64;
    let mut columns = vec![0f32; if m == 1 { 0 } else { m * n }];
    let out: &mut [f32] = if m == 1 { y } else { &mut columns };
    out.par_chunks_mut(UNIT * m).enumerate().for_each(|(u, out)| {
        simd(
            #[inline(always)]
            || {
                for (j, out) in out.chunks_exact_mut(m).enumerate() {
                    let j = u * UNIT + j;
                    let row = &w[j * k..(j + 1) * k];
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = dot(row, &x[i * k..(i + 1) * k]) + bias.map_or(0.0, |b| b[j]);
                    }
                }
            },
        );
    });
    if m > 1 {
        for (j, column) in columns.chunks_exact(m).enumerate() {
            for (i, v) in column.iter().enumerate() {
                y[i * n + j] = *v;
            }
        }
    }
}

/// `dx = g·W`: g `(m, n)`, W `(n, k)`, dx `(m, k)`.
pub(crate) fn times(g: &[f32], w: Elements, (n, k): (usize, usize), dx: &mut [f32]) {
    match w {
        Elements::F32(w) => parallel((dx.len() / k.max(1), k, n), 1.0, Matrix::new(g, n), Matrix::new(w, k), 0.0, dx),
        Elements::F16(w) => backward(g, w, (n, k), dx),
        Elements::BF16(w) => backward(g, w, (n, k), dx),
    }
}

fn backward<T: Element>(g: &[f32], w: &[T], (n, k): (usize, usize), dx: &mut [f32]) {
    // Rows of W in one panel, so that scratch stays bounded under a head of 150,000 rows.
    const DEPTH: usize = 2048;
    let m = g.len().checked_div(n).unwrap_or(0);
    assert!(g.len() == m * n && w.len() == n * k && dx.len() == m * k, "matrix product out of bounds");
    if m == 0 {
        return;
    }
    let shared = Shared::new(dx);
    (0..k.div_ceil(PANEL)).into_par_iter().for_each(|u| {
        let (from, cols) = (u * PANEL, PANEL.min(k - u * PANEL));
        with_scratch(DEPTH.min(n) * cols, |panel| {
            for top in (0..n).step_by(DEPTH) {
                let depth = DEPTH.min(n - top);
                simd(
                    #[inline(always)]
                    || {
                        for (i, row) in panel.chunks_exact_mut(cols).take(depth).enumerate() {
                            let start = (top + i) * k + from;
                            simd::widen(&w[start..start + cols], row);
                        }
                    },
                );
                let beta = if top == 0 { 0.0 } else { 1.0 };
                let (g, panel) = (Matrix { data: &g[top..], row_stride: n, col_stride: 1 }, Matrix::new(panel, cols));
                // SAFETY: in bounds, as `block` asserts; each unit owns columns from..from + cols of dx, and adds its
                // panels in order.
                #[allow(unsafe_code)]
                unsafe {
                    product((m, cols, depth), 1.0, g, panel, beta, shared.block(from, (m, cols), k), k);
                }
            }
        });
    });
}

/// `sums[i] = Σ_j W[i, j]²`
pub(crate) fn row_square_sums(w: Elements, k: usize, sums: &mut [f32]) {
    fn run<T: Element>(w: &[T], k: usize, sums: &mut [f32]) {
        sums.par_iter_mut().zip(w.par_chunks(k.max(1))).for_each(|(sum, row)| {
            *sum = row.iter().map(|v| f64::from(v.widen()).powi(2)).sum::<f64>() as f32;
        });
    }
    match w {
        Elements::F32(w) => run(w, k, sums),
        Elements::F16(w) => run(w, k, sums),
        Elements::BF16(w) => run(w, k, sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 - 1001.0) / 1001.0).collect()
    }

    fn naive((m, n, k): (usize, usize, usize), a: Matrix, b: Matrix) -> Vec<f32> {
        let at = |x: &Matrix, i: usize, j: usize| f64::from(x.data[i * x.row_stride + j * x.col_stride]);
        (0..m * n).map(|e| (0..k).map(|l| at(&a, e / n, l) * at(&b, l, e % n)).sum::<f64>() as f32).collect()
    }

    fn close(a: &[f32], b: &[f32], k: usize) {
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6 * (k as f32 + 8.0), "{worst}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn frozen_products_equal_a_triple_loop(m in 1usize..70, n in 1usize..300, k in 1usize..200, kind in 0..3) {
            let (w, x, g, bias) = (noise(n * k, 1), noise(m * k, 2), noise(m * n, 3), noise(n, 4));
            let bf: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
            let hf: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
            let (elements, wide): (_, Vec<f32>) = match kind {
                0 => (Elements::F32(&w), w.clone()),
                1 => (Elements::BF16(&bf), bf.iter().map(|v| v.to_f32()).collect()),
                _ => (Elements::F16(&hf), hf.iter().map(|v| v.to_f32()).collect()),
            };
            let mut expected = naive((m, n, k), Matrix::new(&x, k), Matrix::new(&wide, k).transposed());
            let mut y = vec![f32::NAN; m * n];
            times_transposed(&x, elements, (n, k), None, &mut y);
            close(&y, &expected, k);
            expected.chunks_mut(n).for_each(|row| row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b));
            times_transposed(&x, elements, (n, k), Some(&bias), &mut y);
            close(&y, &expected, k);
            let mut dx = vec![f32::NAN; m * k];
            times(&g, elements, (n, k), &mut dx);
            close(&dx, &naive((m, k, n), Matrix::new(&g, n), Matrix::new(&wide, k)), n);
        }

        #[test]
        fn plain_products_equal_a_triple_loop(m in 1usize..300, n in 1usize..300, k in 1usize..40, ta: bool, tb: bool) {
            let (a, b) = (noise(m * k, 5), noise(k * n, 6));
            let a = if ta { Matrix::new(&a, m).transposed() } else { Matrix::new(&a, k) };
            let b = if tb { Matrix::new(&b, k).transposed() } else { Matrix::new(&b, n) };
            let expected = naive((m, n, k), a, b);
            let mut c = vec![f32::NAN; m * n];
            parallel((m, n, k), 1.0, a, b, 0.0, &mut c);
            close(&c, &expected, k);
            parallel((m, n, k), -0.5, a, b, 1.0, &mut c);
            close(&c, &expected.iter().map(|v| v * 0.5).collect::<Vec<_>>(), k);
        }
    }

    #[test]
    fn a_head_deeper_than_one_panel() {
        let (m, n, k) = (5, 4500, 7);
        let w: Vec<bf16> = noise(n * k, 1).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
        let g = noise(m * n, 2);
        let mut dx = vec![f32::NAN; m * k];
        times(&g, Elements::BF16(&w), (n, k), &mut dx);
        close(&dx, &naive((m, k, n), Matrix::new(&g, n), Matrix::new(&wide, k)), n);
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let (m, n, k) = (37, 700, 333);
        let w: Vec<bf16> = noise(n * k, 1).into_iter().map(bf16::from_f32).collect();
        let (x, g) = (noise(m * k, 2), noise(m * n, 3));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut dx) = (vec![0f32; m * n], vec![0f32; m * k]);
                times_transposed(&x, Elements::BF16(&w), (n, k), None, &mut y);
                times(&g, Elements::BF16(&w), (n, k), &mut dx);
                (y, dx)
            })
        };
        assert!(run(1) == run(2) && run(2) == run(5));
    }
}
