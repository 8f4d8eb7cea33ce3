//! Counter-based random streams: one seed, and for each use a stream of its own.
//!
//! A number depends on (seed, purpose, step, position) alone, never on what was drawn before. So shuffling,
//! initialisation, dropout and sampling do not disturb each other, and a resumed run equals the uninterrupted one.
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).

/// What random numbers are drawn for; each purpose is a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// The order of examples in an epoch.
    Shuffle = 1,
    /// First values of adapter parameters.
    Init = 2,
    /// Dropout masks.
    Dropout = 3,
    /// The choice of a token.
    Sample = 4,
}

/// A stream of random numbers for one purpose at one step.
///
/// ```
/// use mc_backend::{Purpose, Stream};
/// let mut a = Stream::new(7, Purpose::Sample, 3);
/// let mut b = Stream::new(7, Purpose::Sample, 3);
/// assert_eq!(a.uniform().to_bits(), b.uniform().to_bits());
/// assert!(a.uniform() < 1.0);
/// ```
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    /// Step (64 bits) and purpose; word 0 counts blocks.
    high: [u32; 3],
    position: u64,
    block: [u32; 4],
}

impl Stream {
    /// The stream of `purpose` at `step` (an optimizer step, an epoch, a layer: what the purpose counts).
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        // 12 bits for the purpose, 20 for the high part of the step: a step stays below 2^52.
        let high = [step as u32, ((step >> 32) as u32 & 0xF_FFFF) | ((purpose as u32) << 20), 0];
        Self { key: [seed as u32, (seed >> 32) as u32], high, position: 0, block: [0; 4] }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        let lane = (self.position % 4) as usize;
        if lane == 0 {
            self.block = self.block_at(self.position / 4);
        }
        self.position += 1;
        self.block[lane]
    }

    /// The numbers from position `4·block` on, uniform in [0, 1), without moving the stream: for kernels that run in
    /// any order.
    pub fn fill_uniform(&self, block: u64, out: &mut [f32]) {
        for (i, four) in out.chunks_mut(4).enumerate() {
            four.iter_mut().zip(self.block_at(block + i as u64)).for_each(|(out, bits)| *out = to_unit(bits));
        }
    }

    /// The next number, uniform in [0, 1) with 24 bits.
    pub fn uniform(&mut self) -> f32 {
        to_unit(self.next_u32())
    }

    /// The next integer, uniform in `0..n` without bias (Lemire's multiplication method); 0 if `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let threshold = n.wrapping_neg().checked_rem(n).unwrap_or(0);
        loop {
            let wide = u64::from(self.next_u32()) * u64::from(n);
            if wide as u32 >= threshold {
                return (wide >> 32) as u32;
            }
        }
    }

    /// Shuffles a slice (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }

    fn block_at(&self, index: u64) -> [u32; 4] {
        philox([index as u32, self.high[0], self.high[1], self.high[2] ^ (index >> 32) as u32], self.key)
    }
}

fn to_unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn random_access_equals_the_sequence() {
        let mut s = Stream::new(1 << 40 | 3, Purpose::Dropout, 1 << 33);
        let fixed = s.clone();
        let mut tail = [0f32; 29];
        fixed.fill_uniform(2, &mut tail);
        let sequence: Vec<f32> = (0..37).map(|_| s.uniform()).collect();
        assert_eq!(sequence[8..], tail);
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_step() {
        let first = |seed, purpose, step| Stream::new(seed, purpose, step).next_u32();
        let base = first(1, Purpose::Shuffle, 1);
        assert_ne!(base, first(2, Purpose::Shuffle, 1));
        assert_ne!(base, first(1, Purpose::Init, 1));
        assert_ne!(base, first(1, Purpose::Shuffle, 2));
        assert_ne!(base, first(1, Purpose::Shuffle, 1 | 1 << 32));
    }

    #[test]
    fn below_is_unbiased_enough_and_shuffle_permutes() {
        let mut s = Stream::new(9, Purpose::Shuffle, 0);
        let mut counts = [0; 3];
        (0..30_000).for_each(|_| counts[s.below(3) as usize] += 1);
        assert!(counts.iter().all(|c| (9_700..10_300).contains(c)), "{counts:?}");
        let mut items: Vec<u32> = (0..50).collect();
        s.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        assert_eq!(s.below(0), 0);
    }
}
