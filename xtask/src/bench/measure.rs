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

use super::quiet;
use crate::process;

/// How often a run is done that others disturb.
const ATTEMPTS: usize = 2;

/// A program that ended well.
#[derive(Debug)]
pub(super) struct Measured {
    /// From its start to the first byte on its stdout.
    pub(super) first_output_seconds: f64,
    /// The most that was resident, mapped pages of files included.
    pub(super) peak_bytes: u64,
    /// Whether others used the machine meanwhile.
    pub(super) disturbed: bool,
    /// The JSON object in the last line of its stdout, or null.
    pub(super) report: Value,
}

/// Runs `command` and measures it, again if others used the machine meanwhile; its stderr is shown if it fails.
pub(super) fn measure(command: &[String]) -> Result<Measured> {
    undisturbed(quiet::wait, || once(command))
}

/// What `once` measured when nobody disturbed it, or the last of some attempts; each waits before.
fn undisturbed(mut wait: impl FnMut(), mut once: impl FnMut() -> Result<Measured>) -> Result<Measured> {
    for _ in 1..ATTEMPTS {
        wait();
        let measured = once()?;
        if !measured.disturbed {
            return Ok(measured);
        }
        eprintln!("others used the machine meanwhile: once more");
    }
    wait();
    once()
}

fn once(command: &[String]) -> Result<Measured> {
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
    let seconds = field("seconds")?;
    Ok(Measured {
        first_output_seconds: field("first_output_seconds")?,
        peak_bytes: field("peak_bytes")? as u64,
        disturbed: told["others_seconds"].as_f64().is_some_and(|others| quiet::is_disturbed(others, seconds)),
        report: stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null),
    })
}

/// The parent of one program: runs it and prints what [`measure`] reads.
pub(super) fn be_parent(command: &[String]) -> Result<()> {
    let [program, args @ ..] = command else { bail!("--measure has no program to run") };
    let before = quiet::busy_seconds();
    let start = Instant::now();
    let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn().context(program.clone())?;
    let mut pipe = child.stdout.take().context("the child has no stdout")?;
    let mut stdout = vec![0];
    let first = pipe.read(&mut stdout)?;
    let first_output = start.elapsed();
    stdout.truncate(first);
    pipe.read_to_end(&mut stdout)?;
    let status = child.wait()?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    let of_all = before.zip(quiet::busy_seconds()).map(|(before, after)| after - before);
    let (peak, own) = usage_of_children().unzip();
    let told = json!({
        "seconds": seconds,
        "first_output_seconds": first_output.as_secs_f64(),
        "peak_bytes": peak,
        "others_seconds": of_all.zip(own).map(|(all, own)| all - own),
        "stdout": String::from_utf8_lossy(&stdout),
    });
    println!("{told}");
    Ok(())
}

/// The peak of the only child there was, in bytes, and its processor time in seconds.
#[cfg(unix)]
fn usage_of_children() -> Option<(u64, f64)> {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    // Apple's systems count bytes, the others KiB.
    let unit = if std::env::consts::OS == "macos" { 1 } else { 1024 };
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    Some((usage.max_rss() as u64 * unit, seconds(usage.user_time()) + seconds(usage.system_time())))
}

#[cfg(not(unix))]
fn usage_of_children() -> Option<(u64, f64)> {
    None
}

#[cfg(test)]
mod tests {
    //! Programs that every Unix has, and one that never ran.
    use super::*;
    use std::cell::Cell;

    #[test]
    fn every_attempt_waits_for_others() {
        for (disturbed, runs) in [(vec![false], 1), (vec![true, false], 2), (vec![true, true], 2)] {
            let (waited, ran) = (Cell::new(0), Cell::new(0));
            let once = || {
                let run = ran.replace(ran.get() + 1);
                assert_eq!(waited.get(), ran.get(), "a run that did not wait");
                let (first_output_seconds, peak_bytes, report) = (0.0, 0, Value::Null);
                Ok(Measured { first_output_seconds, peak_bytes, disturbed: disturbed[run], report })
            };
            let last = undisturbed(|| waited.set(waited.get() + 1), once).unwrap();
            assert_eq!((ran.get(), last.disturbed), (runs, disturbed[runs - 1]));
        }
    }

    #[test]
    #[cfg(unix)]
    fn what_children_used_is_told() {
        assert!(Command::new("true").status().unwrap().success());
        assert!(usage_of_children().is_some_and(|(bytes, _)| (1 << 16..1 << 34).contains(&bytes)));
    }
}
