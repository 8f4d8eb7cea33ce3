//! What people and scripts see: lines, JSON lines, download bars. The only file that writes to stdout and stderr.

use crate::global::Global;
use anyhow::Result;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use metal_candle::{checkpoint::hub, training::DataReport};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// A line on stderr.
pub(crate) fn to_stderr(line: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Text on stdout at once; false if nobody reads any more.
pub(crate) fn stream(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// A line on stdout.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // A reader that has seen enough, such as `head`, is no failure.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A JSON object as a line on stdout.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// A listener for downloads: a bar per file where a person watches, a line per file elsewhere.
pub(crate) fn download(global: &Global) -> impl FnMut(hub::Progress<'_>) + use<> {
    let (bars, quiet) = (global.bars(), global.quiet);
    let mut current: Option<(String, ProgressBar)> = None;
    move |progress| {
        if quiet {
            return;
        }
        if current.as_ref().is_none_or(|(file, _)| file != progress.file) {
            let bar = if bars { ProgressBar::new(0) } else { ProgressBar::hidden() };
            let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(progress.file.to_string());
            if !bars {
                to_stderr(&format!("downloading {}", progress.file));
            }
            current = Some((progress.file.to_string(), bar));
        }
        if let Some((_, bar)) = &current {
            bar.set_length(progress.total.unwrap_or(progress.bytes));
            bar.set_position(progress.bytes);
            if progress.total == Some(progress.bytes) {
                bar.finish();
            }
        }
    }
}

/// What became of a file of records: nothing is cut or left out without a word.
pub(crate) fn dataset(global: &Global, name: &str, report: &DataReport) {
    global.say(format!(
        "{name}: {} records, {} tokens, {} of them supervised",
        count(report.records),
        count(report.tokens),
        count(report.supervised_tokens)
    ));
    if report.truncated > 0 {
        global.say(format!("{name}: {} records were cut to --max-seq-len", count(report.truncated)));
    }
    if report.dropped_without_supervision > 0 {
        let left_out = count(report.dropped_without_supervision);
        global.say(format!("{name}: {left_out} records were left out, no token of them is supervised"));
    }
}

/// A number with separators: 12,345.
pub(crate) fn count(n: impl TryInto<u64>) -> String {
    HumanCount(n.try_into().unwrap_or(u64::MAX)).to_string()
}

/// A size in binary units: 1.50 GiB.
pub(crate) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}
