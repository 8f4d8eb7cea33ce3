//! Thin facade over the crates of this workspace. No logic here.
