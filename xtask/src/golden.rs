//! `cargo xtask golden`: remakes the golden files. Each folder of them holds the `make.py` that wrote it and the
//! `requirements.txt` that pins its tools; the files are committed, so tests need no Python.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, command, run as run_command};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use this Python as it is, instead of a virtual environment made under target/.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Only the scripts whose path contains this.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let scripts = scripts(args.filter.as_deref().unwrap_or_default())?;
    if scripts.is_empty() {
        bail!("no golden/make.py in the tree matches");
    }
    let python = match &args.python {
        Some(python) => std::path::absolute(python)?,
        None => environment(&scripts)?,
    };
    for script in &scripts {
        println!("== {}", script.display());
        let folder = script.parent().context("a script has a folder")?;
        run_command(Command::new(&python).arg("make.py").current_dir(process::root().join(folder)))?;
    }
    println!("== what changed");
    let folders = scripts.iter().filter_map(|script| script.parent());
    run_command(command("git").args(["--no-pager", "diff", "--stat", "--"]).args(folders.clone()))?;
    run_command(command("git").args(["status", "--short", "--"]).args(folders))
}

/// The golden scripts of the tree, relative to its root.
fn scripts(filter: &str) -> Result<Vec<PathBuf>> {
    let listed =
        process::output(command("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let is_golden = |path: &&str| Path::new(path).ends_with("golden/make.py") && path.contains(filter);
    Ok(listed.split_terminator('\0').filter(is_golden).map(PathBuf::from).collect())
}

/// The Python of a virtual environment under target/ with what `scripts` require.
fn environment(scripts: &[PathBuf]) -> Result<PathBuf> {
    let folder = process::root().join("target/golden-venv");
    let python = folder.join("bin/python");
    if !python.is_file() {
        run_command(command("python3").args([OsStr::new("-m"), OsStr::new("venv"), folder.as_os_str()]))?;
    }
    let requirements = scripts.iter().map(|script| script.with_file_name("requirements.txt"));
    let requirements: Vec<PathBuf> = requirements.filter(|path| process::root().join(path).is_file()).collect();
    if !requirements.is_empty() {
        let mut install = Command::new(&python);
        install.current_dir(process::root()).args(["-m", "pip", "install", "--quiet"]);
        for path in &requirements {
            install.arg("--requirement").arg(path);
        }
        run_command(&mut install)?;
    }
    Ok(python)
}
