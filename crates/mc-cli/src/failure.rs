//! From an error to one line, a hint and an exit status.

use crate::report;
use std::process::ExitCode;

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
    let (hint, status) = judge(error);
    report::to_stderr(&format!("error: {}", one_line(&format!("{error:#}"))));
    if let Some(hint) = hint {
        report::to_stderr(&format!("hint: {}", one_line(&hint)));
    }
    ExitCode::from(status)
}

/// The hint of an error and the status it ends the process with.
fn judge(error: &anyhow::Error) -> (Option<String>, u8) {
    use metal_candle::{checkpoint, inference, lora, models, text, training};
    // Tensor errors are ours; what files, options and data are wrong about is the caller's.
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<Wrong>() {
            return (Some(e.hint.clone()), 2);
        } else if let Some(e) = cause.downcast_ref::<models::Error>() {
            return (e.hint(), if matches!(e, models::Error::Tensor(_)) { 1 } else { 2 });
        } else if let Some(e) = cause.downcast_ref::<lora::Error>() {
            return (e.hint(), if matches!(e, lora::Error::Tensor(_)) { 1 } else { 2 });
        } else if let Some(e) = cause.downcast_ref::<inference::Error>() {
            return (e.hint(), if matches!(e, inference::Error::Tensor(_)) { 1 } else { 2 });
        } else if let Some(e) = cause.downcast_ref::<training::Error>() {
            use training::Error::{NoGradient, NonFinite, Tensor};
            return (e.hint(), if matches!(e, NoGradient { .. } | NonFinite { .. } | Tensor(_)) { 1 } else { 2 });
        } else if let Some(e) = cause.downcast_ref::<checkpoint::Error>() {
            return (e.hint(), 2);
        } else if let Some(e) = cause.downcast_ref::<text::Error>() {
            return (e.hint(), 2);
        }
    }
    (None, 1)
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_call_keeps_its_hint_through_context() {
        let error = wrong("a", "b").context("c");
        assert_eq!(judge(&error), (Some("b".into()), 2));
        assert_eq!(judge(&anyhow::anyhow!("disk full")), (None, 1));
        assert_eq!(one_line("a\n  b\n\nc"), "a; b; c");
    }
}
