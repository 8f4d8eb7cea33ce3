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

    #[test]
    fn both_sides_do_the_same_work() {
        // What of a command says how much work there is; the others say where and how.
        let amount = |args: &str| {
            let words: Vec<_> = args.split(' ').map(str::to_owned).collect();
            let pairs = words.windows(2).filter(|pair| {
                ["--batch", "--seq", "--target", "--rank", "--prompt", "--gen"].contains(&pair[0].as_str())
            });
            let mut amount: Vec<_> = pairs.map(<[_]>::to_vec).collect();
            amount.extend(words.iter().filter(|word| word.starts_with("TEXTS/")).map(|word| vec![word.clone()]));
            amount.sort();
            amount
        };
        for work in WORKS.iter().filter(|work| !["checkpoint-4096", "cache", "start-smollm2"].contains(&work.name)) {
            assert!(!amount(work.ours.args).is_empty(), "{}", work.name);
            for peer in work.peers {
                assert_eq!(amount(work.ours.args), amount(peer.args), "{}: {}", work.name, peer.label);
            }
        }
    }
}
