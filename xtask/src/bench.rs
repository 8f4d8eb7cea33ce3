//! `cargo xtask bench`: the criterion benches by subject, and with `--peers` ours beside torch and llama.cpp on this
//! machine.

mod accuracy;
mod measure;
mod peers;
mod quiet;
mod table;
mod verdict;
mod work;

use anyhow::Result;

use crate::process::{self, cargo};

#[derive(clap::Args)]
#[command(
    after_help = "With --peers every run is a process of its own, ours and the peers' in turn, and the peers come from \
    the folder that LAB names (default: lab in the temp directory); nothing is installed. docs/benchmarks.md says what \
    that folder holds."
)]
pub(crate) struct Args {
    /// Only this bench: ops, step, decode, search or roofline.
    #[arg(value_name = "BENCH")]
    bench: Option<String>,
    /// Compare with the peers, and print the table of docs/benchmarks.md.
    #[arg(long, conflicts_with = "bench")]
    peers: bool,
    #[command(flatten)]
    options: peers::Options,
    /// Run a program and print what it took.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, value_name = "PROGRAM")]
    measure: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.measure.is_empty() {
        return measure::be_parent(&args.measure);
    }
    if args.peers {
        return peers::run(&args.options);
    }
    let mut bench = cargo();
    bench.args(["bench", "--package", "mc-benches"]);
    match &args.bench {
        Some(name) => bench.args(["--bench", name]),
        None => bench.arg("--benches"),
    };
    process::run(&mut bench)
}
