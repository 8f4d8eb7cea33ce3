//! Examples side by side in one tensor's shape. Knows no model.

use crate::Example;

/// Rows of tokens, padded at their ends, and which of them are to be predicted.
///
/// A row ends before its last supervised token: that one is only predicted, and what comes after changes nothing.
///
/// ```
/// use mc_train::{Batch, Example};
/// let long = Example::new(vec![1, 5, 9, 2], vec![true; 4]);
/// let short = Example::new(vec![1, 7], vec![true; 2]);
/// let batch = Batch::new([&long, &short]);
/// assert_eq!(batch.shape, (2, 3));
/// assert_eq!(batch.ids, [1, 5, 9, /* next row */ 1, 0, 0]);
/// assert_eq!(batch.positions, [0, 1, 2, /* next row */ 3]);
/// assert_eq!(batch.targets, [5, 9, 2, /* next row */ 7]);
/// assert_eq!(batch.tokens, 6); // padding does not count
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `b·t` tokens row by row; padding is token 0 and read by nobody.
    pub ids: Vec<u32>,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Which of the `b·t` hidden states predict something, ascending.
    pub positions: Vec<u32>,
    /// What each of `positions` should predict.
    pub targets: Vec<u32>,
    /// Tokens of its examples, padding not counted.
    pub tokens: usize,
}

impl Batch {
    /// A batch of these examples.
    pub fn new<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Self {
        let examples: Vec<_> = examples.into_iter().collect();
        let t = examples.iter().map(|e| e.tokens_read()).max().unwrap_or(0);
        let mut batch = Self { shape: (examples.len(), t), ..Self::default() };
        for (row, example) in examples.iter().enumerate() {
            let read = example.tokens_read();
            batch.ids.extend(&example.ids[..read]);
            batch.ids.resize((row + 1) * t, 0);
            batch.tokens += example.ids.len();
            for i in (1..=read).filter(|i| example.supervised[*i]) {
                batch.positions.push((row * t + i - 1) as u32);
                batch.targets.push(example.ids[i]);
            }
        }
        batch
    }
}
