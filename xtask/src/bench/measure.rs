//! Runs one program in a process of its own and says how long it took and how much memory it held. The same for every
//! program: what is measured is what the system counts.
//!
//! The system tells a process only the largest of all its children, so each program gets a parent of its own:
//! `cargo xtask bench --measure PROGRAM ARGS…`, which this file starts, and is.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process;

/// A program that ended well.
#[derive(Debug)]
pub(super) struct Measured {
    /// From its start to the first byte on its stdout.
    pub(super) first_output_seconds: f64,
    /// The most that was resident, mapped pages of files included.
    pub(super) peak_bytes: u64,
    /// The JSON object in the last line of its stdout, or null.
    pub(super) report: Value,
}

/// Runs `command` and measures it; its stderr is shown if it fails.
pub(super) fn measure(command: &[String]) -> Result<Measured> {
    let mut parent = Command::new(std::env::current_exe()?);
    parent.current_dir(process::root()).args(["bench", "--measure"]).args(command);
    // What Python's libraries would ask the network for, or leave in the tree.
    parent.envs([("HF_HUB_OFFLINE", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
    let output = parent.output().context("cannot start this program again")?;
    if !output.status.success() {
        bail!("{} failed\n{}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let field = |name: &str| told[name].as_f64().with_context(|| format!("no {name} of {}", command.join(" ")));
    let stdout = told["stdout"].as_str().unwrap_or_default();
    Ok(Measured {
        first_output_seconds: field("first_output_seconds")?,
        peak_bytes: field("peak_bytes")? as u64,
        report: stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null),
    })
}

/// The parent of one program: runs it and prints what [`measure`] reads.
pub(super) fn be_parent(command: &[String]) -> Result<()> {
    let [program, args @ ..] = command else { bail!("--measure has no program to run") };
    let start = Instant::now();
    let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn().context(program.clone())?;
    let mut pipe = child.stdout.take().context("the child has no stdout")?;
    let mut stdout = vec![0];
    let first = pipe.read(&mut stdout)?;
    let first_output = start.elapsed();
    stdout.truncate(first);
    pipe.read_to_end(&mut stdout)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    let told = json!({
        "first_output_seconds": first_output.as_secs_f64(),
        "peak_bytes": peak_of_children(),
        "stdout": String::from_utf8_lossy(&stdout),
    });
    println!("{told}");
    Ok(())
}

/// The peak of the only child there was.
#[cfg(unix)]
fn peak_of_children() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?.max_rss() as u64;
    // Apple's systems count bytes, the others KiB.
    Some(if std::env::consts::OS == "macos" { peak } else { peak * 1024 })
}

#[cfg(not(unix))]
fn peak_of_children() -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    //! Programs that every Unix has.
    use super::*;

    #[test]
    fn a_childs_peak_is_told() {
        assert!(Command::new("true").status().unwrap().success());
        assert!(peak_of_children().is_some_and(|bytes| (1 << 16..1 << 34).contains(&bytes)));
    }
}
