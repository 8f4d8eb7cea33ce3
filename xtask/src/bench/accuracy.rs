//! The line of the table that is no speed: how far logits are from a reference in f32, ours and torch's in bf16.

use anyhow::{Context, Result};
use serde_json::Value;

use super::measure::measure;
use super::peers::Places;
use super::table::Row;
use super::work::LOGITS;
use crate::process::{self, cargo};

/// Its numbers are the same in every run.
pub(super) const RUNS: usize = 1;

pub(super) fn row(places: &Places, made: &str) -> Result<Row> {
    process::run(cargo().args(["build", "--quiet", "--release", "--package", "mc-benches", "--example", "logits"]))?;
    let mut command = places.script("tv", "logits.py").to_vec();
    let ours = places.built("examples/logits").to_string_lossy().into_owned();
    let model = places.model("smollm2-135m").to_string_lossy().into_owned();
    command.extend([model, "--ours".into(), ours, "--threads".into(), places.threads.to_string()]);
    of_report(&measure(&command)?.report, made).context("logits.py does not report what it should")
}

fn of_report(report: &Value, made: &str) -> Option<Row> {
    let text = |who: &str| {
        let number = |what: &str| report[who][what].as_f64();
        Some(format!("error mean {:.1e}, largest {:.1e}, KL {:.1e}", number("mean")?, number("max")?, number("kl")?))
    };
    let ratio = report["ours"]["mean"].as_f64()? / report["torch_bf16"]["mean"].as_f64()?;
    Some(Row {
        name: LOGITS.into(),
        title: format!("{} × vocabulary logits, against torch f32", report["tokens"].as_u64()?),
        ours: text("ours")?,
        peer: format!("torch bf16: {}", text("torch_bf16")?),
        speed: "–".into(),
        memory: "–".into(),
        goal: format!("≤ 1× mean error (is {ratio:.3}×)"),
        met: Some(ratio <= 1.0),
        made: made.into(),
        // Errors do not depend on what else runs.
        disturbed: false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_errors_are_told() {
        let error = |mean: f64| json!({"mean": mean, "max": 0.5, "kl": 1.2e-4});
        let row = of_report(&json!({"tokens": 512, "ours": error(0.02), "torch_bf16": error(0.04)}), "abc").unwrap();
        assert_eq!(row.ours, "error mean 2.0e-2, largest 5.0e-1, KL 1.2e-4");
        assert_eq!((row.goal.as_str(), row.met), ("≤ 1× mean error (is 0.500×)", Some(true)));
        assert_eq!(of_report(&json!({"tokens": 512}), ""), None);
    }
}
