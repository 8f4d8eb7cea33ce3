//! Benches by subject; see the files beside this one.
