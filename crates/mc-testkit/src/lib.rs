//! Gradient checks, tolerances and golden files.
