//! Transformer architectures.
