//! The `metal-candle` command line.
fn main() {}
