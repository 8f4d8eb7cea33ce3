//! Bytes on disk. Knows names and tensors, no architecture.
