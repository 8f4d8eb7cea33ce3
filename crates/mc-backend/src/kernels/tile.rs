//! The inner loop of every large matrix product: one tile of `C = A·B (+ start)` over the whole depth.
//!
//! Both operands are made of 32-bit *units* along the depth: one `f32`, or a pair of neighbouring `bf16`. So the two
//! precisions share layout and loop, and differ in one instruction: a fused multiply-add, or `vdpbf16ps`, which adds
//! the products of both halves to an `f32`.
//!
//! - A lies in rows of units, or its transpose does ([`Left`]); one unit of a row is broadcast at a time.
//! - B lies in *panels* of 16 columns: unit l of column j of a panel is at `16·l + j`, so a panel's row is one vector.
//!
//! With AVX-512 (32 registers) a tile is 6 rows × 4 panels: 24 sums, 4 vectors of B, and one broadcast, so that each
//! loaded vector serves 6 multiplications and 24 independent sums hide the latency of 4 to 6 cycles. Where fewer panels
//! are left, tiles are taller for the same reason. Elsewhere (AVX2, NEON) a tile is 6 rows × 1 panel of plain Rust: 12 sums of 8
//! numbers in AVX2, of 16 registers.
//!
//! A tile goes through its depth at once, in order, so a number depends on its row and column alone, and not on how the
//! work was cut. Only [`super::operand`] cuts the depth, of products that are deeper than the cache, by their depth alone.

use super::{cpu, holds, simd::simd};

/// Columns of a panel.
pub(crate) const LANES: usize = 16;
/// A may be read, not used, up to a multiple of so many rows: it is padded to that.
pub(crate) const ROWS: usize = 6;

/// Panels of the widest tile; smaller tiles of the same rows go through as many before the next rows.
const PANELS: usize = 4;

/// What the inputs of a product are rounded to; sums are always `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Inputs as they are.
    F32,
    /// Inputs rounded to `bf16`, to nearest with ties to even; those below 1.2·10⁻³⁸ may count as zero.
    BF16,
}

impl Arithmetic {
    /// In which this CPU multiplies `bf16` matrices fastest.
    ///
    /// `vdpbf16ps` has twice the multiplications of a fused multiply-add. AMD's Zen 5 starts as many of either, Intel's
    /// Golden Cove a quarter as many of it, so that `f32` is twice as fast there, and rounds nothing (docs/benchmarks.md).
    pub fn fastest_for_bf16() -> Self {
        if cpu::multiplies_bf16_faster() { Self::BF16 } else { Self::F32 }
    }

    /// Numbers in one unit.
    pub(crate) fn per_unit(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::BF16 => 2,
        }
    }
    /// Units that `n` numbers take, the last one padded with zero.
    pub(crate) fn units(self, n: usize) -> usize {
        n.div_ceil(self.per_unit())
    }
}

/// The left side of a product, A. It may be read, not used, up to whole tiles: to a multiple of [`ROWS`] rows.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Unit `l` of row `i` is at `stride·i + l`.
    Rows(&'a [u32], usize),
    /// It is at `i + stride·l`: rows of the transpose, unit by unit.
    Columns(&'a [u32], usize),
}

impl<'a> From<(&'a [u32], usize)> for Left<'a> {
    fn from((units, stride): (&'a [u32], usize)) -> Self {
        Self::Rows(units, stride)
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row for every row of C: a bias.
    Row(&'a [f32]),
    /// A matrix with rows so many elements apart: a residual stream.
    Matrix(&'a [f32], usize),
    /// What C holds.
    Itself,
}

/// `C = start + A·B` on this thread: C is `(rows, cols of B)`, rows `c_stride` apart.
///
/// B is packed: column j of panel p is column `16·p + j` of B, panels are `b_stride` apart, and of the last one only the
/// first columns are used. Depth and strides of A and B are in units.
pub(crate) fn multiply(
    arithmetic: Arithmetic,
    (rows, cols, depth): (usize, usize, usize),
    a: Left,
    (b, b_stride): (&[u32], usize),
    start: Start,
    (c, c_stride): (&mut [f32], usize),
) {
    if rows == 0 || cols == 0 {
        return;
    }
    let whole_tiles = rows.next_multiple_of(ROWS);
    let (a, inside, a_row, a_unit) = match a {
        Left::Rows(a, stride) => (a, holds(a.len(), whole_tiles, stride, depth), stride, 1),
        Left::Columns(a, stride) => (a, holds(a.len(), depth, stride, whole_tiles), 1, stride),
    };
    assert!(inside, "rows of a product out of bounds");
    assert!(holds(b.len(), cols.div_ceil(LANES), b_stride, LANES * depth), "panels of a product out of bounds");
    assert!(holds(c.len(), rows, c_stride, cols), "result of a product out of bounds");
    let c_at = c.as_mut_ptr();
    let (start, start_stride) = match start {
        Start::Zero => (std::ptr::null(), 0),
        Start::Row(row) => (row[..cols].as_ptr(), 0),
        Start::Matrix(m, stride) => {
            assert!(holds(m.len(), rows, stride, cols), "start of a product out of bounds");
            (m.as_ptr(), stride)
        }
        Start::Itself => (c_at.cast_const(), c_stride),
    };
    let whole =
        Place { depth, a: a.as_ptr(), a_row, a_unit, b: b.as_ptr(), b_stride, start, start_stride, c: c_at, c_stride };
    let mut panel = 0;
    let panels = cols.div_ceil(LANES);
    while panel < panels {
        let wide = PANELS.min(panels - panel);
        let width = (cols - panel * LANES).min(wide * LANES);
        // SAFETY: the whole matrices hold what is read and written, as asserted, and so does this part of them;
        // `c` is borrowed mutably, and nothing else refers to it meanwhile.
        #[allow(unsafe_code)]
        unsafe {
            run(arithmetic, wide, (rows, width), whole.at(0, panel));
        }
        panel += wide;
    }
}

/// All rows of so many panels, a tile after the other.
///
/// # Safety
/// The place and size are inside the matrices, whole tiles of A and B included.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn run(arithmetic: Arithmetic, wide: usize, size: (usize, usize), place: Place) {
    // SAFETY: the caller's promise; the CPU has what is called.
    unsafe {
        match arithmetic {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::BF16 if cpu::has_bf16() => match place.a_unit {
                1 => avx512::bf16::<false>(wide, size, place),
                _ => avx512::bf16::<true>(wide, size, place),
            },
            #[cfg(target_arch = "x86_64")]
            Arithmetic::F32 if cpu::has_avx512() => match place.a_unit {
                1 => avx512::f32::<false>(wide, size, place),
                _ => avx512::f32::<true>(wide, size, place),
            },
            _ => portable(arithmetic, wide, size, place),
        }
    }
}

/// Where a tile reads and writes. Strides are in elements.
#[derive(Clone, Copy)]
struct Place {
    /// Units.
    depth: usize,
    a: *const u32,
    /// From one row to the next, and from one unit of a row to the next: one of the two is 1.
    a_row: usize,
    a_unit: usize,
    b: *const u32,
    /// From one panel to the next.
    b_stride: usize,
    /// What the sums are added to; null for zero.
    start: *const f32,
    start_stride: usize,
    c: *mut f32,
    c_stride: usize,
}

impl Place {
    /// The same `rows` further down and `panels` further right.
    #[inline(always)]
    fn at(self, rows: usize, panels: usize) -> Self {
        let start = if self.start.is_null() {
            self.start
        } else {
            self.start.wrapping_add(rows * self.start_stride + panels * LANES)
        };
        Self {
            a: self.a.wrapping_add(rows * self.a_row),
            b: self.b.wrapping_add(panels * self.b_stride),
            start,
            c: self.c.wrapping_add(rows * self.c_stride + panels * LANES),
            ..self
        }
    }
}

/// All rows of so many panels in plain Rust, in tiles of 6 rows × 1 panel.
///
/// # Safety
/// The place and size are inside the matrices, whole tiles of A and B included.
#[allow(unsafe_code)]
unsafe fn portable(arithmetic: Arithmetic, panels: usize, (rows, cols): (usize, usize), place: Place) {
    let number = f32::from_bits;
    for (row, panel) in (0..rows).step_by(ROWS).flat_map(|row| (0..panels).map(move |panel| (row, panel))) {
        let size = (ROWS.min(rows - row), cols.saturating_sub(panel * LANES).min(LANES));
        let place = place.at(row, panel);
        simd(
            #[inline(always)]
            // SAFETY: the caller's promise.
            || unsafe {
                match arithmetic {
                    Arithmetic::F32 => portable_tile(
                        size,
                        place,
                        #[inline(always)]
                        |a, b, sum| number(a).mul_add(number(b), sum),
                    ),
                    Arithmetic::BF16 => portable_tile(
                        size,
                        place,
                        #[inline(always)]
                        |a, b, sum| {
                            let low = number(a << 16).mul_add(number(b << 16), sum);
                            number(a & 0xFFFF_0000).mul_add(number(b & 0xFFFF_0000), low)
                        },
                    ),
                }
            },
        );
    }
}

/// Up to 6 rows × 1 panel, in arrays that the compiler keeps in vector registers.
///
/// # Safety
/// The place and size are inside the matrices, whole tiles of A and B included.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn portable_tile((rows, cols): (usize, usize), p: Place, add: impl Fn(u32, u32, f32) -> f32) {
    let mut sums = [[0f32; LANES]; ROWS];
    for l in 0..p.depth {
        // SAFETY: unit l of the panel.
        let b = unsafe { p.b.add(l * LANES).cast::<[u32; LANES]>().read() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: unit l of a row of A, which is padded.
            let a = unsafe { *p.a.add(i * p.a_row + l * p.a_unit) };
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = add(a, b, *sum);
            }
        }
    }
    // Neither the sums of a row nor the rows are counted through: what is reached by a variable index is kept in memory.
    for (i, sums) in sums.iter().enumerate() {
        if i < rows {
            let start = if p.start.is_null() { p.start } else { p.start.wrapping_add(i * p.start_stride) };
            // SAFETY: row i, with as many columns, is inside the part of C that is the caller's, and inside `start`.
            unsafe { write(*sums, cols, start, p.c.add(i * p.c_stride)) };
        }
    }
}

/// Writes the first `cols` of these sums, with `start` added unless it is null.
///
/// # Safety
/// So many columns are at `start`, if it is not null, and at `c`, which is the caller's.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) unsafe fn write(mut sums: [f32; LANES], cols: usize, start: *const f32, c: *mut f32) {
    let mut add = |start: &[f32]| sums.iter_mut().zip(start).for_each(|(sum, start)| *sum += start);
    // SAFETY: the caller's promise.
    unsafe {
        if cols == LANES {
            if !start.is_null() {
                add(&start.cast::<[f32; LANES]>().read());
            }
            c.cast::<[f32; LANES]>().write(sums);
        } else {
            if !start.is_null() {
                add(std::slice::from_raw_parts(start, cols));
            }
            std::slice::from_raw_parts_mut(c, cols).copy_from_slice(&sums[..cols]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512 {
    //! The tiles in AVX-512. All functions are unsafe for the same reason: `Place` holds raw pointers.
    #![allow(unsafe_code, clippy::wildcard_imports)]

    use super::{LANES, Place};
    use std::arch::x86_64::*;

    /// The one instruction in which the precisions differ.
    pub(in super::super) trait MultiplyAdd {
        /// # Safety
        /// The CPU has the instruction.
        unsafe fn run(sum: __m512, a: __m512i, b: __m512i) -> __m512;
    }
    pub(in super::super) struct F32;
    impl MultiplyAdd for F32 {
        /// # Safety
        /// The CPU has AVX-512.
        #[inline(always)]
        unsafe fn run(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum) }
        }
    }
    pub(in super::super) struct Bf16;
    impl MultiplyAdd for Bf16 {
        /// # Safety
        /// The CPU has AVX-512-BF16.
        #[inline(always)]
        unsafe fn run(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: the caller has AVX-512-BF16; a 512-bit vector is 32 bf16 as well.
            unsafe {
                _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            }
        }
    }

    /// A function for each kind of A: one for both is slower (docs/benchmarks.md).
    ///
    /// # Safety
    /// The place and size are inside the matrices, whole tiles of A and B included, and the CPU has AVX-512-BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16<const COLUMNS: bool>(panels: usize, size: (usize, usize), p: Place) {
        // SAFETY: the caller's promise.
        unsafe { choose::<Bf16, COLUMNS>(panels, size, p) }
    }

    /// # Safety
    /// The place and size are inside the matrices, whole tiles of A and B included, and the CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn f32<const COLUMNS: bool>(panels: usize, size: (usize, usize), p: Place) {
        // SAFETY: the caller's promise.
        unsafe { choose::<F32, COLUMNS>(panels, size, p) }
    }

    /// # Safety
    /// As for [`super::multiply`], and the CPU has the instruction of `T`.
    #[inline(always)]
    unsafe fn choose<T: MultiplyAdd, const COLUMNS: bool>(panels: usize, size: (usize, usize), p: Place) {
        // SAFETY: the caller's promise.
        unsafe {
            match panels {
                1 => tiles::<T, COLUMNS, 12, 1>(size, p),
                2 => tiles::<T, COLUMNS, 12, 2>(size, p),
                3 => tiles::<T, COLUMNS, 6, 3>(size, p),
                _ => tiles::<T, COLUMNS, 6, 4>(size, p),
            }
        }
    }

    /// The loop over tiles is here, and not where they are chosen: on the way through memory `Place` would be written in words and
    /// read in pairs, which waits until all of C before it is written (measured: 5% of a training step).
    ///
    /// # Safety
    /// As for [`choose`].
    #[inline(always)]
    unsafe fn tiles<T: MultiplyAdd, const COLUMNS: bool, const TALL: usize, const PANELS: usize>(
        (rows, cols): (usize, usize),
        p: Place,
    ) {
        // The widest tiles are lower where so few rows are left: those of one short text are not a multiple of 6.
        let low = if PANELS == super::PANELS { 4 } else { 0 };
        let mut row = 0;
        // SAFETY: the caller's promise; what a tile reads of A ends at a multiple of 6 rows, as A does.
        unsafe {
            while rows - row > TALL - super::ROWS + low {
                tile::<T, COLUMNS, TALL, PANELS>((TALL.min(rows - row), cols), p.at(row, 0));
                row = (row + TALL).min(rows);
            }
            if row < rows {
                let (size, p) = ((rows - row, cols), p.at(row, 0));
                match rows - row {
                    1 | 2 if low > 0 => tile::<T, COLUMNS, 2, PANELS>(size, p),
                    3 | 4 if low > 0 => tile::<T, COLUMNS, 4, PANELS>(size, p),
                    _ => tile::<T, COLUMNS, { super::ROWS }, PANELS>(size, p),
                }
            }
        }
    }

    /// # Safety
    /// As for [`choose`].
    #[inline(always)]
    unsafe fn tile<T: MultiplyAdd, const COLUMNS: bool, const ROWS: usize, const PANELS: usize>(
        (rows, cols): (usize, usize),
        p: Place,
    ) {
        /// How far ahead B comes into the first cache: Golden Cove gains a seventh by it, Zen 5 nothing.
        const AHEAD: usize = 8 * LANES;
        // SAFETY: what is read of A and B is padded to whole tiles; what is read of `start` and written to C is masked
        // to rows × cols.
        unsafe {
            // What is written last is asked for first.
            for i in 0..rows {
                for q in 0..PANELS {
                    _mm_prefetch::<_MM_HINT_ET0>(p.c.wrapping_add(i * p.c_stride + q * LANES).cast());
                }
            }
            let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
            for l in 0..p.depth {
                // Loops, not closures: a closure would not be compiled for the instruction set of this function.
                let mut b = [_mm512_setzero_si512(); PANELS];
                for (q, b) in b.iter_mut().enumerate() {
                    let at = p.b.add(q * p.b_stride + l * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                    *b = _mm512_loadu_si512(at.cast());
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let at = if COLUMNS { i + l * p.a_unit } else { i * p.a_row + l };
                    let a = _mm512_set1_epi32((*p.a.add(at)).cast_signed());
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = T::run(*sum, a, b);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                if i < rows {
                    for (q, sum) in sums.iter().enumerate() {
                        let left = cols.saturating_sub(q * LANES);
                        let mask: __mmask16 = if left >= LANES { !0 } else { (1 << left) - 1 };
                        let mut sum = *sum;
                        if !p.start.is_null() {
                            let start = p.start.add(i * p.start_stride).wrapping_add(q * LANES);
                            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, start));
                        }
                        _mm512_mask_storeu_ps(p.c.add(i * p.c_stride).wrapping_add(q * LANES), mask, sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::noise, *};

    /// 7 rows are 12, and a depth of 3 is two strides and what the last row or unit needs.
    #[test]
    fn a_left_side_shorter_than_its_whole_tiles_is_refused() {
        let (a, b) = (vec![0u32; 200], vec![0u32; 3 * LANES]);
        let multiply = |left: Left| {
            let mut c = [f32::NAN; 7];
            multiply(Arithmetic::F32, (7, 1, 3), left, (&b, 3 * LANES), Start::Zero, (&mut c, 1));
            c == [0.0; 7]
        };
        let refused = |left: Left| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| multiply(left))).is_err();
        assert!(multiply(Left::Rows(&a[..11 * 5 + 3], 5)) && refused(Left::Rows(&a[..11 * 5 + 2], 5)));
        assert!(multiply(Left::Columns(&a[..2 * 9 + 12], 9)) && refused(Left::Columns(&a[..2 * 9 + 11], 9)));
        assert!(refused(Left::Columns(&a, usize::MAX / 2 + 1)));
    }

    /// Compiled without the CPU's multiply-add, a tile would call a function for each of its products and take 40 times as long; the
    /// numbers would be the same.
    #[test]
    fn the_portable_tile_is_compiled_for_this_cpu() {
        /// As many products, in one long sum, compiled for the CPU without [`simd`].
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
        fn squares(x: &[f32]) -> f32 {
            crate::kernels::simd::dot(x, x)
        }
        if cfg!(target_arch = "x86_64") && !cpu::has_avx2() {
            return;
        }
        let (rows, depth) = (ROWS, 1024);
        let x: Vec<f32> = (0..rows * LANES * depth).map(|i| (i % 89) as f32).collect();
        let units: &[u32] = bytemuck::cast_slice(&x);
        let mut c = vec![0f32; rows * LANES];
        let (a, b, start, at) = (units.as_ptr(), units.as_ptr(), std::ptr::null(), c.as_mut_ptr());
        let (a_row, b_stride) = (depth, LANES * depth);
        let place = Place { depth, a, a_row, a_unit: 1, b, b_stride, start, start_stride: 0, c: at, c_stride: LANES };
        let least = |f: &mut dyn FnMut()| {
            let time = |_| {
                let start = std::time::Instant::now();
                f();
                start.elapsed()
            };
            (0..50).map(time).min().unwrap_or_default()
        };
        // SAFETY: the CPU has the instructions that the function is compiled for, if it is for any.
        #[allow(unsafe_code, unused_unsafe)]
        let dot = least(&mut || assert!(unsafe { squares(&x) } > 0.0));
        // SAFETY: A, B and C are whole tiles.
        #[allow(unsafe_code)]
        let tile = least(&mut || unsafe { portable(Arithmetic::F32, 1, (rows, LANES), place) });
        assert!(c[0] > 0.0 && tile < 8 * dot, "a tile takes {tile:?}, a sum of as many products {dot:?}");
    }

    /// The tile of plain Rust, which this CPU may not choose, against the one that it chooses.
    #[test]
    fn the_portable_tile_equals_the_chosen_one() {
        let numbers = noise(20_000, 1);
        let noise = |i: usize| numbers[i];
        let sizes = [(1, 1, 0), (1, 1, 1), (5, 15, 2), (6, 16, 7), (7, 17, 33), (12, 40, 64), (25, 100, 130)];
        // Each height of the widest tile, alone and below others, and more columns than it has.
        let heights = (1..=14usize).map(|rows| (rows, 60 + rows, 5 + rows));
        let sizes: Vec<(usize, usize, usize)> = sizes.into_iter().chain(heights).collect();
        let arithmetics = [Arithmetic::F32, Arithmetic::BF16];
        for (arithmetic, (rows, cols, depth)) in arithmetics.iter().flat_map(|a| sizes.iter().map(|s| (*a, *s))) {
            let unit = |i: usize| match arithmetic {
                Arithmetic::F32 => noise(i).to_bits(),
                Arithmetic::BF16 => noise(i).to_bits() >> 16 | noise(i + 1).to_bits() & 0xFFFF_0000,
            };
            let (a_stride, b_stride, c_stride) = (depth + 3, LANES * depth + 5, cols + 2);
            let a: Vec<u32> = (0..rows.next_multiple_of(ROWS) * a_stride).map(unit).collect();
            let b: Vec<u32> = (0..cols.div_ceil(LANES) * b_stride).map(|i| unit(i + 77)).collect();
            let first: Vec<f32> = (0..rows * c_stride).map(|i| noise(i + 5)).collect();
            let starts = [Start::Zero, Start::Row(&first), Start::Matrix(&first, c_stride)];
            let tall = rows.next_multiple_of(ROWS);
            let mut columns = vec![0; tall * depth];
            (0..tall * depth).for_each(|i| columns[i] = a[i % tall * a_stride + i / tall]);
            let sides = [(Left::Rows(&a, a_stride), a_stride, 1), (Left::Columns(&columns, tall), 1, tall)];
            for (start, (left, a_row, a_unit)) in starts.into_iter().flat_map(|s| sides.map(|side| (s, side))) {
                let [mut chosen, mut plain] = [(); 2].map(|()| vec![f32::NAN; rows * c_stride]);
                multiply(arithmetic, (rows, cols, depth), left, (&b, b_stride), start, (&mut chosen, c_stride));
                let (start, start_stride) = match start {
                    Start::Row(row) => (row.as_ptr(), 0),
                    Start::Matrix(m, stride) => (m.as_ptr(), stride),
                    _ => (std::ptr::null(), 0),
                };
                let c = plain.as_mut_ptr();
                let (Left::Rows(a, _) | Left::Columns(a, _)) = left;
                let (a, b) = (a.as_ptr(), b.as_ptr());
                let place = Place { depth, a, a_row, a_unit, b, b_stride, start, start_stride, c, c_stride };
                // SAFETY: A and B are padded to whole tiles, and C and what it starts with hold rows × cols.
                #[allow(unsafe_code)]
                unsafe {
                    portable(arithmetic, cols.div_ceil(LANES), (rows, cols), place);
                }
                for (e, (chosen, plain)) in chosen.iter().zip(&plain).enumerate() {
                    let inside = e % c_stride < cols;
                    assert_eq!(
                        (chosen.is_nan(), plain.is_nan()),
                        (!inside, !inside),
                        "{arithmetic:?} {rows} {cols} {depth}"
                    );
                    // Both are sums of `depth` units; only the order within a pair may differ.
                    assert!(!inside || (chosen - plain).abs() <= 1e-6 * (depth as f32 + 1.0), "{chosen} {plain}");
                }
            }
        }
    }
}
