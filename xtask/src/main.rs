//! Development tasks, one file per command: `cargo xtask --help`. Knows the tree and cargo, nothing about models.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
#![allow(clippy::case_sensitive_file_extension_comparisons, reason = "the paths are git's, in their exact case")]

mod bench;
mod check;
mod coverage;
mod golden;
mod process;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of metal-candle.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run what CI runs: format, lints, docs, tidy, tests, and the type-check for Apple Silicon.
    Check(check::Args),
    /// Check the invariants of the tree that no compiler knows.
    Tidy,
    /// Remake the golden files with the Python tools they are compared against.
    Golden(golden::Args),
    /// Measure the line coverage of the tests and fail under a minimum.
    Coverage(coverage::Args),
    /// Run the benches, or compare speed and memory with the peers.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Tidy => tidy::run(),
        Command::Golden(args) => golden::run(&args),
        Command::Coverage(args) => coverage::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
