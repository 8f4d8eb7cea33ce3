//! Ours and the peers at the same work, one after the other on the same machine, and how they compare.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::accuracy;
use super::measure::{Measured, measure};
use super::table::{self, Row};
use super::verdict::{self, Outcome, mib, value};
use super::work::{LOGITS, PROMPT, Program, Subject, WORKS, Work};
use crate::process::{self, cargo, command};

const DOCUMENT: &str = "docs/benchmarks.md";
/// With fewer runs the document stays as it is.
const RUNS_TO_WRITE: usize = 5;
/// Said of a commit whose tree has changes.
const CHANGED: &str = " and changes";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this line of the table; may be given several times.
    #[arg(long, value_name = "NAME", requires = "peers")]
    only: Vec<String>,
    /// Runs of each program, alternating; the table is written into docs/benchmarks.md from 5 on.
    #[arg(long, value_name = "N", default_value_t = RUNS_TO_WRITE, requires = "peers")]
    runs: usize,
    /// Threads of each program.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "peers")]
    threads: usize,
}

/// Where programs and models are.
pub(super) struct Places {
    lab: PathBuf,
    target: PathBuf,
    pub(super) threads: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let names: Vec<&str> = WORKS.iter().map(|work| work.name).chain([LOGITS]).collect();
    if let Some(unknown) = options.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no line `{unknown}`, there are {}", names.join(", "));
    }
    if options.runs == 0 || options.threads == 0 {
        bail!("--runs and --threads are at least 1");
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let lab = std::env::var_os("LAB").map_or_else(|| std::env::temp_dir().join("lab"), PathBuf::from);
    let places = Places { lab: std::path::absolute(lab)?, target: target()?, threads: options.threads };
    places.check()?;
    // As it stands at the start: a run takes long, and the binary is built now.
    let commit = commit()?;
    if commit.ends_with(CHANGED) {
        eprintln!("warning: the tree differs from its commit: nobody can make these numbers again");
    }
    let made = |runs: usize| format!("{commit}, {runs}");
    process::run(cargo().args(["build", "--quiet", "--release", "--package", "mc-cli"]))?;

    let mut rows = Vec::new();
    for work in WORKS.iter().filter(|work| wanted(work.name)) {
        rows.push(compare(work, &places, options.runs, &made(options.runs))?);
        eprintln!("\n{}\n", table::markdown(&rows[rows.len() - 1..]));
    }
    if wanted(LOGITS) {
        rows.push(accuracy::row(&places, &made(accuracy::RUNS))?);
    }
    let heading = heading(&places);
    println!("{heading}\n\n{}", table::markdown(&rows));
    if options.runs < RUNS_TO_WRITE {
        println!("\nfewer than {RUNS_TO_WRITE} runs: {DOCUMENT} stays as it is");
        return Ok(());
    }
    for row in rows.iter().filter(|row| row.disturbed) {
        println!("\n{} was disturbed by others: its row stays as it is", row.name);
    }
    let path = process::root().join(DOCUMENT);
    let document = std::fs::read_to_string(&path).context(DOCUMENT)?;
    let document = table::rewrite(&document, &heading, &rows, &names).context(DOCUMENT)?;
    std::fs::write(&path, document).context(DOCUMENT)
}

/// The folder that cargo builds into.
fn target() -> Result<PathBuf> {
    let metadata = process::output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target directory")?.into())
}

/// The commit that is measured, and whether the tree differs from it in more than documents.
fn commit() -> Result<String> {
    let commit = process::output(command("git").args(["rev-parse", "--short", "HEAD"]))?;
    let changed = process::output(command("git").args(["status", "--porcelain", "--", ".", ":!docs", ":!*.md"]))?;
    Ok(format!("{}{}", commit.trim(), if changed.trim().is_empty() { "" } else { CHANGED }))
}

/// The line above the table: what all its numbers have in common.
fn heading(places: &Places) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok();
    let cpu = cpu.as_deref().and_then(cpu_of);
    let sysctl = || process::output(command("sysctl").args(["-n", "machdep.cpu.brand_string"])).ok();
    let cpu = cpu.or_else(sysctl).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Machine: {}, {cores} cores, {}; {} threads for each program.",
        cpu.trim(),
        std::env::consts::OS,
        places.threads
    )
}

/// Name, family and model of the first CPU that Linux describes: virtual machines call CPUs of several designs by one name.
fn cpu_of(info: &str) -> Option<String> {
    let value = |key: &str| {
        let mut fields = info.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    };
    let name = value("model name")?;
    let design = value("cpu family").zip(value("model"));
    Some(design.map_or(name.into(), |(family, model)| format!("{name} (family {family}, model {model})")))
}

impl Places {
    /// Whether the lab is there. It is not set up by this program.
    fn check(&self) -> Result<()> {
        for part in ["tv/bin/python", "lv/bin/python", "models"] {
            if !self.lab.join(part).exists() {
                bail!(
                    "no {part} in the lab {}\nhint: set LAB to a folder with tv/ (a Python environment with torch, \
                    transformers and peft), lv/ (one with llama-cpp-python) and models/ (see docs/benchmarks.md)",
                    self.lab.display()
                );
            }
        }
        Ok(())
    }

    pub(super) fn model(&self, name: &str) -> PathBuf {
        self.lab.join("models").join(name)
    }

    pub(super) fn built(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// The Python of an environment of the lab, and the script that it is to run.
    pub(super) fn script(&self, environment: &str, script: &str) -> [String; 2] {
        let script = process::root().join("benches/compare").join(script);
        [text(&self.lab.join(environment).join("bin/python")), text(&script)]
    }

    /// What to run for `subject`; `Err` is the model that is not there.
    fn command(&self, subject: &Subject) -> Result<Vec<String>, PathBuf> {
        let mut words = match subject.program {
            Program::Ours => vec![text(&self.built("metal-candle")), "--json".into(), "--quiet".into()],
            Program::Torch(script) => self.script("tv", script).to_vec(),
            Program::Llama(script) => self.script("lv", script).to_vec(),
        };
        words.extend(["--threads".into(), self.threads.to_string()]);
        for word in subject.args.split(' ') {
            words.push(match word.strip_prefix("MODELS/") {
                Some(model) if !self.model(model).exists() => return Err(self.model(model)),
                Some(model) => text(&self.model(model)),
                None if word.starts_with("TEXTS/") => {
                    text(&process::root().join("benches/compare/texts").join(&word["TEXTS/".len()..]))
                }
                None if word == "PROMPT" => PROMPT.into(),
                None => word.into(),
            });
        }
        Ok(words)
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn compare(work: &Work, places: &Places, runs: usize, made: &str) -> Result<Row> {
    let ours = places.command(&work.ours).map_err(|model| missing(&model))?;
    let mut subjects = vec![(&work.ours, ours)];
    let mut left_out = Vec::new();
    for peer in work.peers {
        match places.command(peer) {
            Ok(command) => subjects.push((peer, command)),
            Err(model) => left_out.push(format!("{}: no {} in the lab", peer.label, name_of(&model))),
        }
    }
    let mut measured: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
    for run in 1..=runs {
        for ((subject, command), measured) in subjects.iter().zip(&mut measured) {
            let one = measure(command)?;
            let value = value(subject.value, &one).with_context(|| command.join(" "))?;
            let disturbed = if one.disturbed { ", disturbed by others" } else { "" };
            let memory = mib(one.peak_bytes as f64);
            eprintln!("{} {run}/{runs}: {} {value:.3}, {memory}{disturbed}", work.name, subject.label);
            measured.push(one);
        }
    }
    let outcomes = subjects.iter().zip(&measured).map(|((subject, _), measured)| Outcome::of(subject, measured));
    let outcomes: Vec<_> = outcomes.collect::<Result<_>>()?;
    let (ours, peers) = outcomes.split_first().context("nothing was measured")?;
    verdict::row(work, ours, peers, &left_out, made)
}

fn missing(model: &Path) -> anyhow::Error {
    anyhow::anyhow!("no model {}\nhint: docs/benchmarks.md says what the lab holds", model.display())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_of_one_name_are_told_apart_by_their_design() {
        let info = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\ncpu family\t: 6\n";
        assert_eq!(cpu_of(info).as_deref(), Some("AMD EPYC (family 25, model 1)"));
        assert_eq!(cpu_of("model name\t: Neoverse: N1\n").as_deref(), Some("Neoverse: N1"));
        assert_eq!(cpu_of("Features\t: fp asimd\n"), None);
    }
}
