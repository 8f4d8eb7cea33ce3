//! Sentence embeddings: texts become vectors whose angles say how near their meanings are.
//!
//! Knows nothing of training, generation or the terminal.

pub mod documents;
pub mod index;
