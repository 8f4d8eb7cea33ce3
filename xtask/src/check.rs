//! `cargo xtask check`: what CI runs, with the time of each step. Every step runs, whatever became of those before it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::process::{self, cargo, command};
use crate::tidy;

/// Checks the project's own type-check for Apple Silicon on machines without that target, where it is at hand.
const METAL_CHECK: &str = "../shared/tools/metal-check.sh";
const APPLE: &str = "aarch64-apple-darwin";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Everything but the tests.
    #[arg(long)]
    no_test: bool,
}

/// What became of a step.
enum Outcome {
    Passed,
    Failed(anyhow::Error),
    Skipped(&'static str),
}

type Step = (&'static str, fn() -> Result<Outcome>);

const STEPS: &[Step] = &[
    ("format", || passed(cargo().args(["fmt", "--all", "--check"]))),
    ("lints", || passed(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("docs", || passed(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))),
    ("tidy", || tidy::run().map(|()| Outcome::Passed)),
    ("Apple Silicon", apple),
    (TEST, || passed(cargo().args(["test", "--workspace"]))),
];
const TEST: &str = "tests";

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut summary = Vec::new();
    let mut failures = 0;
    for (name, step) in STEPS.iter().filter(|(name, _)| !(args.no_test && *name == TEST)) {
        println!("\n== {name}");
        let start = Instant::now();
        let outcome = step().unwrap_or_else(Outcome::Failed);
        let became = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Skipped(why) => format!("skipped: {why}"),
            Outcome::Failed(error) => {
                failures += 1;
                format!("FAILED: {error:#}")
            }
        };
        let line = format!("{name:<14} {:>6.1} s  {became}", start.elapsed().as_secs_f64());
        println!("{line}");
        summary.push(line);
    }
    println!("\n== summary, {:.1} s", start.elapsed().as_secs_f64());
    for line in summary {
        println!("{line}");
    }
    if failures > 0 {
        bail!("{failures} steps failed");
    }
    Ok(())
}

/// Type-checks the Metal build: code behind the feature is compiled nowhere else on Linux.
fn apple() -> Result<Outcome> {
    let metal = ["--workspace", "--features", "metal-candle/metal"];
    if process::root().join(METAL_CHECK).is_file() {
        return passed(command("bash").arg(METAL_CHECK).args(metal));
    }
    let sysroot = process::output(command("rustc").args(["--print", "sysroot"]))?;
    if !std::path::Path::new(sysroot.trim()).join("lib/rustlib").join(APPLE).is_dir() {
        return Ok(Outcome::Skipped("the target is not installed: rustup target add aarch64-apple-darwin"));
    }
    passed(cargo().args(["check", "--target", APPLE]).args(metal))
}

fn passed(command: &mut Command) -> Result<Outcome> {
    process::run(command).map(|()| Outcome::Passed)
}
