//! `cargo xtask coverage`: the share of the workspace's lines that its tests reach. cargo-llvm-cov where the toolchain
//! has llvm-tools, else cargo-tarpaulin, which reads the profiles itself. Doctests are not counted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, cargo, command};

/// Packages that are not measured.
const EXCLUDED: &[&str] = &["xtask", "mc-benches", "mc-examples"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail under this percentage of lines.
    #[arg(long, default_value_t = 80.0, value_name = "PERCENT")]
    min: f64,
    /// Measure these packages instead of the workspace.
    #[arg(short, long, value_name = "NAME")]
    package: Vec<String>,
}

/// Lines that a test reached, of those that could be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Lines {
    covered: u64,
    coverable: u64,
}

/// Each source file of a report, with its lines.
type Files = Vec<(PathBuf, Lines)>;

pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = process::root().join("target/coverage");
    std::fs::create_dir_all(&folder)?;
    let files = if has_llvm_tools() { llvm_cov(&folder, &args.package)? } else { tarpaulin(&folder, &args.package)? };
    let mut packages: BTreeMap<String, Lines> = BTreeMap::new();
    for (path, lines) in files {
        if let Some(package) = measured(&path, &process::root(), &args.package) {
            packages.entry(package).or_default().add(lines);
        }
    }
    let mut total = Lines::default();
    println!("\n{:<16} {:>8} {:>8} {:>8}", "package", "covered", "lines", "percent");
    for (package, lines) in packages.iter().filter(|(_, lines)| lines.coverable > 0) {
        println!("{package:<16} {lines}");
        total.add(*lines);
    }
    println!("{:<16} {total}", "total");
    if total.percent() < args.min {
        bail!("line coverage is {:.2} %, at least {} % is wanted", total.percent(), args.min);
    }
    Ok(())
}

/// The whole embedded run takes a minute, and many with counters in every line; shorter runs reach the same lines.
const SKIP: [&str; 3] = ["--", "--skip", "fine_tuning_the_embedded_model"];

/// Whether the active toolchain has what cargo-llvm-cov needs, and that is installed.
fn has_llvm_tools() -> bool {
    let tool = || {
        let libdir = process::output(command("rustc").args(["--print", "target-libdir"])).ok()?;
        Some(Path::new(libdir.trim()).parent()?.join("bin/llvm-profdata").exists())
    };
    tool().unwrap_or(false) && process::succeeds(cargo().args(["llvm-cov", "--version"]))
}

fn llvm_cov(folder: &Path, packages: &[String]) -> Result<Files> {
    let report = folder.join("llvm-cov.json");
    let mut command = cargo();
    command.args(["llvm-cov", "--json", "--summary-only", "--output-path"]).arg(&report).args(selection(packages));
    process::run(command.args(SKIP))?;
    read(&report, llvm_cov_lines)
}

fn tarpaulin(folder: &Path, packages: &[String]) -> Result<Files> {
    if !process::succeeds(cargo().args(["tarpaulin", "--version"])) {
        println!("cargo-tarpaulin is not installed, installing it");
        process::run(cargo().args(["install", "cargo-tarpaulin", "--locked"]))?;
    }
    let mut command = cargo();
    command.args(["tarpaulin", "--engine", "llvm", "--follow-exec", "--skip-clean", "--timeout", "1800"]);
    command.args(["--out", "Json", "--output-dir"]).arg(folder).arg("--target-dir").arg(folder);
    process::run(command.args(selection(packages)).args(SKIP))?;
    read(&folder.join("tarpaulin-report.json"), tarpaulin_lines)
}

fn selection(packages: &[String]) -> Vec<String> {
    if packages.is_empty() {
        let excluded = EXCLUDED.iter().flat_map(|name| ["--exclude".to_owned(), (*name).to_owned()]);
        return std::iter::once("--workspace".to_owned()).chain(excluded).collect();
    }
    packages.iter().flat_map(|name| ["--package".to_owned(), name.clone()]).collect()
}

fn read(report: &Path, lines: fn(&Value) -> Option<Files>) -> Result<Files> {
    let text = std::fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    let report_value = serde_json::from_str(&text)?;
    lines(&report_value).with_context(|| format!("{} has not the fields it should have", report.display()))
}

fn llvm_cov_lines(report: &Value) -> Option<Files> {
    let lines = |file: &Value| {
        let lines = &file["summary"]["lines"];
        let lines = Lines { covered: lines["covered"].as_u64()?, coverable: lines["count"].as_u64()? };
        Some((PathBuf::from(file["filename"].as_str()?), lines))
    };
    report["data"][0]["files"].as_array()?.iter().map(lines).collect()
}

fn tarpaulin_lines(report: &Value) -> Option<Files> {
    let lines = |file: &Value| {
        let path = file["path"].as_array()?.iter().filter_map(Value::as_str).collect();
        Some((path, Lines { covered: file["covered"].as_u64()?, coverable: file["coverable"].as_u64()? }))
    };
    report["files"].as_array()?.iter().map(lines).collect()
}

/// The package of a source file that counts: one under `crates/…/src`, or under the `src` of one of `packages`. A report
/// names files of other packages too.
fn measured(path: &Path, root: &Path, packages: &[String]) -> Option<String> {
    let path = path.strip_prefix(root).unwrap_or(path);
    let folders: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let src = folders.iter().position(|folder| folder == "src")?;
    let package = folders[src.checked_sub(1)?].clone().into_owned();
    let counts = if packages.is_empty() { folders[0] == "crates" } else { packages.contains(&package) };
    counts.then_some(package)
}

impl Lines {
    fn add(&mut self, other: Self) {
        self.covered += other.covered;
        self.coverable += other.coverable;
    }

    fn percent(self) -> f64 {
        if self.coverable == 0 { 0.0 } else { 100.0 * self.covered as f64 / self.coverable as f64 }
    }
}

impl std::fmt::Display for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>8} {:>8} {:>8.2}", self.covered, self.coverable, self.percent())
    }
}

#[cfg(test)]
mod tests {
    //! Both reports, reduced to what is read of them.
    use serde_json::json;

    use super::*;

    #[test]
    fn both_reports_are_read() {
        let expected = vec![(PathBuf::from("/a/crates/mc-text/src/lib.rs"), Lines { covered: 3, coverable: 4 })];
        let tarpaulin = json!({"files": [
            {"path": ["/", "a", "crates", "mc-text", "src", "lib.rs"], "covered": 3, "coverable": 4}
        ]});
        assert_eq!(tarpaulin_lines(&tarpaulin), Some(expected.clone()));
        let llvm_cov = json!({"data": [{"files": [
            {"filename": "/a/crates/mc-text/src/lib.rs", "summary": {"lines": {"count": 4, "covered": 3}}}
        ]}]});
        assert_eq!(llvm_cov_lines(&llvm_cov), Some(expected));
        assert_eq!(llvm_cov_lines(&json!({"data": [{"files": [{}]}]})), None);
    }

    #[test]
    fn sources_count_and_tests_do_not() {
        let package = |path: &str, packages: &[String]| measured(Path::new(path), Path::new("/a"), packages);
        assert_eq!(package("/a/crates/mc-text/src/chat/jinja.rs", &[]).as_deref(), Some("mc-text"));
        assert_eq!(package("/a/crates/mc-text/tests/golden.rs", &[]), None);
        assert_eq!(package("/a/examples/src/lib.rs", &[]), None);
        assert_eq!(package("/a/xtask/src/tidy.rs", &[]), None);
        assert_eq!(package("/a/xtask/src/tidy.rs", &["xtask".to_owned()]).as_deref(), Some("xtask"));
        assert_eq!(package("/a/crates/mc-text/src/lib.rs", &["xtask".to_owned()]), None);
    }

    #[test]
    fn percent_of_no_lines_is_zero() {
        assert!(Lines::default().percent() < f64::EPSILON);
        assert!((Lines { covered: 1, coverable: 4 }.percent() - 25.0).abs() < f64::EPSILON);
    }
}
