//! What `metal-candle bench` has measured of a language model, and how it is told. It times nothing itself.

use crate::{global::Global, report, source};
use anyhow::Result;
use metal_candle::{backend::DeviceExt, models::Model, training::peak_memory_bytes};
use serde_json::{Map, Value, json};

/// The middle of several values, and how far they lie apart.
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    /// Of two in the middle their mean; `None` of no values.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let n = values.len();
        Some(Self { median: f64::midpoint(values[(n - 1) / 2], values[n / 2]), lowest, highest })
    }
}

/// What was measured.
pub(super) struct Report {
    pub(super) mode: &'static str,
    /// Key, words and values; nothing where there was nothing to time.
    pub(super) speeds: Vec<(&'static str, String, Option<Spread>)>,
    pub(super) facts: Map<String, Value>,
}

impl Report {
    pub(super) fn tell(self, global: &Global, model: &Model, name: &str) -> Result<()> {
        let device = model.device().info().description;
        let memory = peak_memory_bytes();
        if !global.json {
            report::line(&format!("{name} on {}", source::computation(model.device(), model.computation())))?;
            report::line(&format!("{:<34} {:>10}   lowest to highest", "tokens per second", "median"))?;
            for (_, what, spread) in &self.speeds {
                if let Some(Spread { median, lowest, highest }) = spread {
                    report::line(&format!("{what:<34} {median:>10.1}   {lowest:.1} to {highest:.1}"))?;
                }
            }
            let number = |key: &str| self.facts.get(key).and_then(Value::as_f64);
            if let Some(seconds) = number("first_token_seconds") {
                report::line(&format!("{:<34} {seconds:>10.2} s", "start to first token"))?;
            }
            if let (Some(first), Some(last)) = (number("first_loss"), number("last_loss")) {
                report::line(&format!("{:<34} {first:>10.4} → {last:.4}", "loss, first → last step"))?;
            }
            return memory.map_or(Ok(()), |n| report::line(&format!("{:<34} {:>10}", "peak memory", report::bytes(n))));
        }
        let mut all = json!({
            "mode": self.mode, "model": name, "device": device, "dtype": format!("{:?}", model.head().dtype()).to_lowercase(),
            "prefill_tokens_per_second": null, "decode_tokens_per_second": null, "train_tokens_per_second": null,
            "peak_memory_bytes": memory,
        });
        for (key, _, spread) in &self.speeds {
            if let Some(Spread { median, lowest, highest }) = spread {
                all[format!("{key}_tokens_per_second")] = json!(median);
                all[format!("{key}_range")] = json!([lowest, highest]);
            }
        }
        for (key, value) in self.facts {
            all[key] = value;
        }
        report::json(&all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let of = |values: &[f64]| Spread::of(values.to_vec()).map(|s| (s.median, s.lowest, s.highest));
        assert_eq!(of(&[3.0, 1.0, 100.0]), Some((3.0, 1.0, 100.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 100.0]), Some((3.0, 1.0, 100.0)));
        assert_eq!(of(&[7.0]), Some((7.0, 7.0, 7.0)));
        assert_eq!(of(&[]), None);
    }
}
