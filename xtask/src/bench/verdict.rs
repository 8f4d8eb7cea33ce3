//! From the runs of several programs to one row: medians, the best peer, ratios, and whether the goal is met.

use anyhow::{Context, Result};

use super::measure::Measured;
use super::table::{Row, Spread};
use super::work::{Goal, Reading, Subject, Work};

/// What the runs of one program came to.
pub(super) struct Outcome<'a> {
    subject: &'a Subject,
    value: Spread,
    memory: Spread,
    /// Of the first and of the last step, where it trained.
    losses: Option<(f64, f64)>,
    disturbed: bool,
}

/// What a run is about: a speed or a time.
pub(super) fn value(reading: Reading, measured: &Measured) -> Result<f64> {
    match reading {
        Reading::FirstOutput => Ok(measured.first_output_seconds),
        Reading::Speed(key) | Reading::Time(key) => {
            measured.report[key].as_f64().with_context(|| format!("no {key} is reported"))
        }
    }
}

pub(super) fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

impl<'a> Outcome<'a> {
    pub(super) fn of(subject: &'a Subject, runs: &[Measured]) -> Result<Self> {
        let values = runs.iter().map(|run| value(subject.value, run)).collect::<Result<Vec<_>>>()?;
        let last = &runs.last().context("no runs")?.report;
        Ok(Self {
            subject,
            value: Spread::of(values).context("no runs")?,
            memory: Spread::of(runs.iter().map(|run| run.peak_bytes as f64)).context("no runs")?,
            disturbed: runs.iter().any(|run| run.disturbed),
            losses: last["first_loss"].as_f64().zip(last["last_loss"].as_f64()),
        })
    }

    fn text(&self) -> String {
        let unit = self.subject.value.unit();
        let losses = self.losses.map(|(first, last)| format!(", loss {first:.4} → {last:.4}")).unwrap_or_default();
        format!("{} {unit}, {}{losses}", self.value.text(), mib(self.memory.median))
    }

    fn beats(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.value.median, other.value.median);
        if self.subject.value.is_speed() { ours > theirs } else { ours < theirs }
    }
}

/// The row of `work`; `left_out` says of peers why they are not there.
pub(super) fn row(work: &Work, ours: &Outcome, peers: &[Outcome], left_out: &[String], made: &str) -> Result<Row> {
    let best = peers.iter().reduce(|best, peer| if peer.beats(best) { peer } else { best });
    let best = best.with_context(|| format!("{}: no peer, {}", work.name, left_out.join(", ")))?;
    let value = ours.value.median / best.value.median;
    let memory = ours.memory.median / best.memory.median;
    let disturbed = ours.disturbed || peers.iter().any(|peer| peer.disturbed);
    let peers = peers.iter().map(|peer| format!("{}: {}", peer.subject.label, peer.text()));
    let goal = &work.goal;
    Ok(Row {
        name: work.name.into(),
        title: work.title.into(),
        ours: ours.text(),
        peer: peers.chain(left_out.iter().cloned()).collect::<Vec<_>>().join("; "),
        speed: if ours.subject.value.is_speed() { format!("{value:.2}×") } else { format!("{value:.2}× the time") },
        memory: format!("{memory:.2}×"),
        goal: goal.text(),
        met: goal.met(value, memory),
        made: made.into(),
        disturbed,
    })
}

impl Goal {
    fn text(&self) -> String {
        let part = |bound: Option<f64>, sign: &str, what: &str| bound.map(|bound| format!("{sign} {bound}× {what}"));
        let parts = [part(self.speed, "≥", "speed"), part(self.time, "≤", "time"), part(self.memory, "≤", "memory")];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// `value` is the ratio of speeds or times, whichever the goal bounds; `None` if it bounds nothing.
    fn met(&self, value: f64, memory: f64) -> Option<bool> {
        let parts = [
            self.speed.map(|bound| value >= bound),
            self.time.map(|bound| value <= bound),
            self.memory.map(|bound| memory <= bound),
        ];
        parts.into_iter().flatten().reduce(|all, part| all && part)
    }
}

#[cfg(test)]
mod tests {
    //! Runs that never ran.
    use serde_json::{Value, json};

    use super::*;
    use crate::bench::work::{Program, WORKS};

    fn run(report: Value, mib: u64) -> Measured {
        Measured { first_output_seconds: 0.5, peak_bytes: mib << 20, disturbed: false, report }
    }

    fn subject(label: &'static str, value: Reading) -> Subject {
        Subject { label, program: Program::Ours, args: "", value }
    }

    fn work(goal: Goal) -> Work {
        Work { name: "name", title: "title", ours: subject("ours", SPEED), peers: &[], goal }
    }

    const SPEED: Reading = Reading::Speed("speed");

    #[test]
    fn ours_is_held_against_the_best_peer() {
        let [ours, slow, fast] = ["ours", "slow", "fast"].map(|label| subject(label, SPEED));
        let of = |subject, speed: f64, mib| Outcome::of(subject, &[run(json!({"speed": speed}), mib)]).unwrap();
        let peers = [of(&slow, 10.0, 100), of(&fast, 20.0, 200), of(&slow, 15.0, 10)];
        let goal = Goal { speed: Some(1.5), memory: Some(0.5), ..Goal::default() };
        let row = row(&work(goal), &of(&ours, 30.0, 100), &peers, &["third: not there".into()], "abc, 1").unwrap();
        assert_eq!((row.speed.as_str(), row.memory.as_str(), row.met), ("1.50×", "0.50×", Some(true)));
        assert_eq!(row.goal, "≥ 1.5× speed, ≤ 0.5× memory");
        assert_eq!(row.ours, "30.0 (30.0–30.0) tok/s, 100 MiB");
        assert!(row.peer.starts_with("slow: 10.0") && row.peer.ends_with("; third: not there"), "{}", row.peer);
    }

    #[test]
    fn of_times_the_shortest_is_best() {
        let [ours, long, short] = ["ours", "long", "short"].map(|label| subject(label, Reading::Time("seconds")));
        let of = |subject, seconds: f64| Outcome::of(subject, &[run(json!({"seconds": seconds}), 1)]).unwrap();
        let goal = Goal { time: Some(0.7), ..Goal::default() };
        let row = row(&work(goal), &of(&ours, 0.2), &[of(&long, 1.0), of(&short, 0.25)], &[], "").unwrap();
        assert_eq!((row.speed.as_str(), row.met), ("0.80× the time", Some(false)));
    }

    #[test]
    fn the_median_of_runs_counts_and_losses_are_kept() {
        let ours = subject("ours", SPEED);
        let report = |speed: f64| json!({"speed": speed, "first_loss": 3.5, "last_loss": 2.25});
        let runs = [1.0, 300.0, 200.0].map(|speed| run(report(speed), 1));
        let text = Outcome::of(&ours, &runs).unwrap().text();
        assert_eq!(text, "200 (1–300) tok/s, 1 MiB, loss 3.5000 → 2.2500");
        assert!(Outcome::of(&ours, &[run(json!({}), 1)]).is_err());
        assert_eq!(Goal::default().met(1.0, 1.0), None);
        let mut disturbed = runs;
        disturbed[1].disturbed = true;
        assert!(Outcome::of(&ours, &disturbed).unwrap().disturbed);
        let runs = disturbed;
        let first_output = Outcome::of(&subject("ours", Reading::FirstOutput), &runs).map(|o| o.value.median);
        assert_eq!(first_output.unwrap(), 0.5);
    }

    /// Works whose peer is ours with other options, or that only start.
    const OF_ITS_OWN: [&str; 3] = ["checkpoint-4096", "cache", "start-smollm2"];

    fn works() -> impl Iterator<Item = &'static Work> {
        WORKS.iter().filter(|work| !OF_ITS_OWN.contains(&work.name))
    }

    /// The word after `option`.
    fn value_of<'a>(args: &'a str, option: &str) -> Option<&'a str> {
        args.split(' ').skip_while(|word| *word != option).nth(1)
    }

    /// What says how much work there is is said to both sides, so that no default decides.
    #[test]
    fn both_sides_do_the_same_work() {
        for work in works() {
            let options: &[&str] = if work.name.starts_with("train-") {
                &["--batch", "--seq", "--target", "--rank", "--repeat"]
            } else if work.name.starts_with("embed-") {
                &["--repeat"]
            } else {
                &["--prompt", "--gen", "--repeat"]
            };
            let texts = |args: &'static str| args.split(' ').find(|word| word.starts_with("TEXTS/"));
            assert_eq!(texts(work.ours.args).is_some(), work.name.starts_with("embed-"), "{}", work.name);
            for peer in work.peers {
                for option in options {
                    let [ours, theirs] = [&work.ours, peer].map(|subject| value_of(subject.args, option));
                    assert!(ours.is_some() && ours == theirs, "{} of {}: {}", option, work.name, peer.label);
                }
                assert_eq!(texts(work.ours.args), texts(peer.args), "{}: {}", work.name, peer.label);
            }
        }
    }

    /// Weights are in the same dtype, but for encoders, of which peers in others are told too; labels say in which.
    #[test]
    fn both_sides_have_the_same_dtype() {
        for work in works() {
            let ours = value_of(work.ours.args, "--dtype").expect("ours says its dtype");
            for peer in work.peers {
                let theirs = match value_of(peer.args, "--dtype") {
                    Some(torch) => torch.replace("bfloat", "bf").replace("float", "f"),
                    // What is not asked for is in the file.
                    None if peer.args.contains("BF16.gguf") => "bf16".to_owned(),
                    None => "f32".to_owned(),
                };
                assert!(peer.label.to_lowercase().contains(&theirs), "{}: {} has {theirs}", work.name, peer.label);
                assert!(theirs == ours || work.name.starts_with("embed-"), "{}: {}", work.name, peer.label);
            }
        }
    }

    /// What no option says stands in the sources of both.
    #[test]
    fn both_sides_train_alike() {
        let has = |path: &str, what: &[&str]| {
            let source = std::fs::read_to_string(crate::process::root().join(path)).unwrap();
            for what in what {
                assert!(source.contains(what), "{path} has no `{what}`");
            }
        };
        let peer = ["lora_alpha=16", "lr=1e-4, weight_decay=0.0", "clip_grad_norm_(trained, 1.0)"];
        has("benches/compare/torch_peft.py", &peer);
        has("crates/mc-cli/src/bench.rs", &["LRScheduler::constant(1e-4)", "..LoRAAdapterConfig::default()"]);
        has("crates/mc-lora/src/config.rs", &["alpha: 16.0", "dropout: 0.0"]);
        has("crates/mc-train/src/config.rs", &["max_grad_norm: Some(1.0)", "AdamWConfig { weight_decay: 0.0,"]);
    }
}
