//! From an error to one line, a hint and an exit status: 2 for a wrong call or input, 1 for a failure.

use crate::report;
use clap::error::ErrorKind;
use std::{io, process::ExitCode};

/// A wrong call or input: exit status 2.
#[derive(Debug)]
struct Wrong {
    what: String,
    hint: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Wrong {}

/// An error of the call or its input, with the line that says how to mend it.
pub(crate) fn wrong(what: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Wrong { what: what.into(), hint: hint.into() }.into()
}

/// Prints `error: …` and `hint: …`, and says how the process ends.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let Verdict { what, hint, status } = judge(error);
    report::error(&one_line(&what), &one_line(&hint));
    ExitCode::from(status)
}

/// What clap found wrong with the call, in the form of all other errors; help and version as clap prints them.
pub(crate) fn wrong_call(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nobody is left to tell if this fails.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what).lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let what = OF_RUST.iter().fold(what, |what, (rust, plain)| what.replace(rust, plain));
    let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
    report::error(&what, tip.unwrap_or(&help_hint()));
    ExitCode::from(2)
}

/// What parsers say, and what a person can do something with.
const OF_RUST: [(&str, &str); 5] = [
    ("invalid digit found in string", "expected a whole number, 0 or more"),
    ("cannot parse integer from empty string", "expected a whole number, 0 or more"),
    ("number too large to fit in target type", "the number is too large"),
    ("invalid float literal", "expected a number"),
    ("cannot parse float from empty string", "expected a number"),
];

struct Verdict {
    what: String,
    hint: String,
    status: u8,
}

fn judge(error: &anyhow::Error) -> Verdict {
    use checkpoint::Error::{Device, Unreachable};
    use metal_candle::{
        checkpoint,
        embeddings::{self, index},
        inference, lora, models, text, training,
    };
    let mut found = (None, 1);
    let mut option = None;
    // What files, options and data are wrong about is the caller's; tensor errors are ours.
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<Wrong>() {
            found = (Some(e.hint.clone()), 2);
        } else if let Some(index::Error::Model { .. }) = cause.downcast_ref() {
            // What the model says comes next.
            found = (None, 1);
            continue;
        } else if let Some(e) = cause.downcast_ref::<index::Error>() {
            found = (e.hint(), if matches!(e, index::Error::Tensor(_)) { 1 } else { 2 });
            if let index::Error::Setting { field, .. } = e {
                option = Some(*field);
            }
        } else if let Some(e) = cause.downcast_ref::<models::Error>() {
            found = (
                e.hint(),
                match e {
                    models::Error::Tensor(_) | models::Error::Checkpoint(Device(_) | Unreachable { .. }) => 1,
                    _ => 2,
                },
            );
        } else if let Some(e) = cause.downcast_ref::<lora::Error>() {
            found = (e.hint(), if matches!(e, lora::Error::Tensor(_)) { 1 } else { 2 });
            option = match e {
                lora::Error::Config { field, .. }
                | lora::Error::Unmatched { field, .. }
                | lora::Error::Unsupported { field, .. } => Some(*field),
                _ => None,
            };
        } else if let Some(e) = cause.downcast_ref::<inference::Error>() {
            found = (e.hint(), if matches!(e, inference::Error::Tensor(_)) { 1 } else { 2 });
            if let inference::Error::Option { option: name, .. } = e {
                option = Some(name);
            }
        } else if let Some(e) = cause.downcast_ref::<training::Error>() {
            use training::Error::{Config, NoGradient, NonFinite, Tensor};
            found = (e.hint(), if matches!(e, NoGradient { .. } | NonFinite { .. } | Tensor(_)) { 1 } else { 2 });
            if let Config { field, .. } = e {
                option = Some(field);
            }
        } else if let Some(e) = cause.downcast_ref::<embeddings::Error>() {
            use embeddings::Error::{Checkpoint, Dimensions, Model, Tensor};
            let ours = matches!(
                e,
                Tensor(_)
                    | Model(models::Error::Tensor(_) | models::Error::Checkpoint(Device(_) | Unreachable { .. }))
                    | Checkpoint(Device(_) | Unreachable { .. })
            );
            found = (e.hint(), if ours { 1 } else { 2 });
            if matches!(e, Dimensions { .. }) {
                option = Some("dimensions");
            }
        } else if let Some(e) = cause.downcast_ref::<checkpoint::Error>() {
            found = (e.hint(), if matches!(e, Device(_) | Unreachable { .. }) { 1 } else { 2 });
        } else if let Some(e) = cause.downcast_ref::<text::Error>() {
            found = (e.hint(), 2);
        } else {
            continue;
        }
        break;
    }
    let (hint, mut status) = found;
    let system = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    if system.is_some_and(|kind| !is_wrong_path(kind)) {
        status = 1;
    }
    let mut what = said(error);
    if let Some(field) = option {
        what = what.replacen("training configuration: ", "", 1).replacen(
            &format!("`{field}`"),
            &format!("`--{}`", option_name(field)),
            1,
        );
    }
    let hint = hint.unwrap_or_else(|| match (option, status, system) {
        (Some(_), ..) => help_hint(),
        (None, _, Some(io::ErrorKind::StorageFull)) => "free some space on that disk".into(),
        (None, _, Some(io::ErrorKind::IsADirectory)) => "name a file in it".into(),
        (None, _, Some(_)) => "check the path, the disk and who may read and write there".into(),
        (None, 2, None) => "the file may be incomplete, damaged or edited; get it again".into(),
        _ => "run it again with -vv to see what happens before".into(),
    });
    Verdict { what, hint, status }
}

/// Errors of the system that mean the name given is the wrong one; all others are failures.
fn is_wrong_path(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound};
    matches!(kind, NotFound | NotADirectory | IsADirectory | InvalidFilename | InvalidInput)
}

/// The error and its causes, without those that it quotes already.
fn said(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match without_frames(&cause.to_string()) {
        cause if said.contains(cause) => said,
        cause if said.is_empty() => cause.into(),
        cause => format!("{said}: {cause}"),
    })
}

/// Where RUST_BACKTRACE is set, candle's errors go on with the frames that they come from.
fn without_frames(text: &str) -> &str {
    text.split("\n   0: ").next().unwrap_or(text)
}

/// The command line's name for a setting of the libraries.
fn option_name(field: &str) -> String {
    match field {
        "num_epochs" => "epochs".into(),
        "max_steps" => "steps".into(),
        "output_dir" => "output".into(),
        "target_modules" => "target".into(),
        "temperature" => "temp".into(),
        other => other.replace('_', "-"),
    }
}

fn help_hint() -> String {
    const COMMANDS: [&str; 8] = ["finetune", "generate", "eval", "embed", "index", "search", "inspect", "bench"];
    // Arguments need not be UTF-8.
    match std::env::args_os().skip(1).find_map(|a| COMMANDS.into_iter().find(|command| a == **command)) {
        Some(command) => format!("see metal-candle {command} --help"),
        None => "see metal-candle --help".into(),
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_wrong_call_keeps_its_hint_through_context() {
        let verdict = judge(&wrong("a", "b").context("c"));
        assert_eq!((verdict.what.as_str(), verdict.hint.as_str(), verdict.status), ("c: a", "b", 2));
        assert_eq!(one_line("a\n  b\n\nc"), "a; b; c");
    }

    #[test]
    fn a_wrong_path_is_the_callers_and_a_full_disk_is_not() {
        let of = |kind| {
            let path = "adapters/mine".into();
            let error = metal_candle::checkpoint::Error::Io { path, source: io::Error::new(kind, "told so") };
            judge(&Err::<(), _>(error).context("saving").unwrap_err())
        };
        let full = of(io::ErrorKind::StorageFull);
        assert_eq!((full.what.as_str(), full.status), ("saving: adapters/mine: told so", 1));
        assert_eq!(of(io::ErrorKind::NotFound).status, 2);
    }
}
