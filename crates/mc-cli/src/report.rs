//! What people and scripts see: lines, JSON lines, download bars. The only file that writes to stdout and stderr.

use crate::global::Global;
use anyhow::{Context, Result};
use clap::builder::styling::AnsiColor;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use metal_candle::{checkpoint::hub, training::DataReport};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};

/// A line on stderr.
pub(crate) fn to_stderr(line: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// How a command ends that could not do its work.
pub(crate) fn error(what: &str, hint: &str) {
    to_stderr(&format!("{} {}", painted("error:", AnsiColor::Red), escaped(what)));
    to_stderr(&format!("{} {}", painted("hint:", AnsiColor::Cyan), escaped(hint)));
}

/// A text for people: names and contents of files have no say in how a terminal looks, so control characters other than a
/// tab are written out.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

fn painted(word: &str, colour: AnsiColor) -> String {
    let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    if asked_not_to || !console_shows_colours() {
        return word.into();
    }
    let style = colour.on_default().bold();
    format!("{style}{word}{style:#}")
}

fn console_shows_colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text on stdout at once; false if nobody reads any more.
pub(crate) fn stream(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        // A reader that has seen enough, such as `head`, is no failure.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("stdout"),
    }
}

/// Stdout for a run that goes on when nobody reads any more: its files are what counts.
pub(crate) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match std::io::stdout().lock().write(bytes) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match std::io::stdout().lock().flush() {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// A line on stdout.
pub(crate) fn line(text: &str) -> Result<()> {
    stream(&format!("{text}\n")).map(|_| ())
}

/// A JSON object as a line on stdout.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// How a bar looks that a template of indicatif describes.
pub(crate) fn bar_style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
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
            bar.set_style(bar_style("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
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
    let counted = |n: usize, thing| counted(n as u64, thing);
    global.say(format!(
        "{name}: {}, {}, {} of them supervised",
        counted(report.records, "record"),
        counted(report.tokens, "token"),
        count(report.supervised_tokens as u64)
    ));
    if report.truncated > 0 {
        global.say(format!("{name}: {} cut to --max-seq-len", counted(report.truncated, "record")));
    }
    if report.dropped_without_supervision > 0 {
        let left_out = counted(report.dropped_without_supervision, "record");
        global.say(format!("{name}: {left_out} left out, with no supervised token"));
    }
}

/// A number with separators: 12,345.
pub(crate) fn count(n: impl TryInto<u64>) -> String {
    HumanCount(n.try_into().unwrap_or(u64::MAX)).to_string()
}

/// So many of a thing: 1 record, 2,000 records.
pub(crate) fn counted(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A size in binary units: 1.50 GiB.
pub(crate) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        for (text, shown) in [
            ("naïve 海\t’s", "naïve 海\t’s"),
            ("a\nb\rc", r"a\nb\rc"),
            ("\u{1b}[2J\u{7}\u{0}\u{7f}", r"\u{1b}[2J\u{7}\u{0}\u{7f}"),
            ("\u{9b}2J", r"\u{9b}2J"),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }
}
