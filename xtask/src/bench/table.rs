//! From numbers to the table in docs/benchmarks.md. Knows no program and no machine.

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- peers: begin; written by cargo xtask bench --peers -->";
const END: &str = "<!-- peers: end -->";
const HEAD: &str = "| work | ours | peer | ratio of speed | ratio of memory | goal | met | commit, runs |\n|---|---|---|---|---|---|---|---|";

/// The middle of several values, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    /// Of two in the middle their mean; `None` of no values.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let n = values.len();
        Some(Self { median: f64::midpoint(values[(n - 1) / 2], values[n / 2]), lowest, highest })
    }

    /// `1739 (1700–1750)`; with three digits of a small number.
    pub(super) fn text(self) -> String {
        let Self { median, lowest, highest } = self;
        let digits = match median {
            m if m >= 100.0 => 0,
            m if m >= 10.0 => 1,
            _ => 3,
        };
        format!("{median:.digits$} ({lowest:.digits$}–{highest:.digits$})")
    }
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) ours: String,
    pub(super) peer: String,
    pub(super) speed: String,
    pub(super) memory: String,
    pub(super) goal: String,
    /// Nothing where there is no goal.
    pub(super) met: Option<bool>,
    /// The commit and how many runs each.
    pub(super) made: String,
    /// Whether others used the machine meanwhile: such a row is shown, and not kept.
    pub(super) disturbed: bool,
}

impl Row {
    fn line(&self) -> String {
        let met = match self.met {
            _ if self.disturbed => "disturbed",
            None => "–",
            Some(true) => "yes",
            Some(false) => "no",
        };
        let Self { name, title, ours, peer, speed, memory, goal, made, .. } = self;
        format!("| `{name}`: {title} | {ours} | {peer} | {speed} | {memory} | {goal} | {met} | {made} |")
    }
}

/// The rows as Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let lines = rows.iter().map(Row::line);
    std::iter::once(HEAD.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

/// The document with `rows` between its markers, in the table under `heading`, which says on which machine they were measured: a
/// new one at the end where there is none, if there is a row for it. Its other rows stay, in the order of `names`, and so do tables of other machines.
pub(super) fn rewrite(document: &str, heading: &str, rows: &[Row], names: &[&str]) -> Result<String> {
    let missing = || format!("no `{BEGIN}` with a `{END}` after it");
    let (before, rest) = document.split_once(BEGIN).with_context(missing)?;
    let (old, after) = rest.split_once(END).with_context(missing)?;
    let mut tables: Vec<(&str, Vec<&str>)> = vec![];
    for line in old.lines().filter(|line| !line.trim().is_empty()) {
        match tables.last_mut() {
            Some((_, lines)) if line.starts_with('|') => lines.push(line),
            _ => tables.push((line, vec![])),
        }
    }
    let rows: Vec<Row> = rows.iter().filter(|row| !row.disturbed).cloned().collect();
    if !rows.is_empty() && !tables.iter().any(|(of, _)| *of == heading) {
        tables.push((heading, vec![]));
    }
    let new = markdown(&rows);
    let tables = tables.into_iter().map(|(of, old)| {
        let new = new.lines().filter(|_| of == heading).chain(old);
        let line = |name: &&str| new.clone().find(|line| line.starts_with(&format!("| `{name}`: ")));
        let lines: Vec<&str> = names.iter().filter_map(line).collect();
        format!("{of}\n\n{HEAD}\n{}\n", lines.join("\n"))
    });
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", tables.collect::<Vec<_>>().join("\n")))
}

#[cfg(test)]
mod tests {
    //! Numbers and documents of a few lines.
    use super::*;

    fn row(name: &str, ours: &str) -> Row {
        let text = |text: &str| text.to_owned();
        Row {
            name: text(name),
            title: text("work"),
            ours: text(ours),
            peer: text("2"),
            speed: text("0.5×"),
            memory: String::new(),
            goal: String::new(),
            met: Some(false),
            made: text("abc, 5"),
            disturbed: false,
        }
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let of = |values: &[f64]| Spread::of(values.iter().copied()).map(|s| (s.median, s.lowest, s.highest));
        assert_eq!(of(&[3.0, 1.0, 100.0]), Some((3.0, 1.0, 100.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 100.0]), Some((3.0, 1.0, 100.0)));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        let text = |median| Spread { median, lowest: median / 2.0, highest: median }.text();
        assert_eq!(text(1739.4), "1739 (870–1739)");
        assert_eq!(text(27.25), "27.2 (13.6–27.2)");
        assert_eq!(text(0.25), "0.250 (0.125–0.250)");
    }

    #[test]
    fn a_row_is_replaced_and_the_others_stay_in_order() {
        let document = format!("# Title\n\n{BEGIN}\n{END}\nafter\n");
        let names = ["a", "b"];
        let first = rewrite(&document, "Machine X.", &[row("b", "1")], &names).unwrap();
        let both = rewrite(&first, "Machine X.", &[row("a", "7")], &names).unwrap();
        let expected = format!(
            "# Title\n\n{BEGIN}\nMachine X.\n\n{HEAD}\n| `a`: work | 7 | 2 | 0.5× |  |  | no | abc, 5 |\n\
            | `b`: work | 1 | 2 | 0.5× |  |  | no | abc, 5 |\n{END}\nafter\n"
        );
        assert_eq!(both, expected);
        let again = rewrite(&both, "Machine X.", &[row("b", "2")], &names).unwrap();
        assert_eq!(again, expected.replace("work | 1 |", "work | 2 |"));
    }

    #[test]
    fn a_disturbed_row_is_not_kept() {
        let disturbed = Row { disturbed: true, met: Some(true), ..row("a", "7") };
        assert!(markdown(std::slice::from_ref(&disturbed)).contains("| disturbed | abc, 5 |"));
        let document = format!("{BEGIN}\nMachine X.\n{HEAD}\n{}\n{END}", row("a", "1").line());
        let rewrite = |heading: &str| rewrite(&document, heading, std::slice::from_ref(&disturbed), &["a"]).unwrap();
        let kept = rewrite("Machine X.");
        assert!(kept.contains("work | 1 |"), "{kept}");
        assert_eq!(rewrite("Machine Y."), kept, "a table without rows");
    }

    #[test]
    fn each_machine_has_a_table_of_its_own() {
        let table = |heading: &str, row: &Row| format!("{heading}\n\n{HEAD}\n{}\n", row.line());
        let x = table("Machine X.", &row("a", "1"));
        let document = format!("{BEGIN}\n{x}{END}");
        let names = ["a", "b"];
        let both = rewrite(&document, "Machine Y.", &[row("a", "2")], &names).unwrap();
        assert_eq!(both, format!("{BEGIN}\n{x}\n{}{END}", table("Machine Y.", &row("a", "2"))));
        let again = rewrite(&both, "Machine X.", &[row("a", "3")], &names).unwrap();
        assert_eq!(again, both.replace("work | 1 |", "work | 3 |"));
    }

    #[test]
    fn a_document_without_markers_is_an_error() {
        assert!(rewrite("# Title", "", &[], &[]).is_err());
        assert!(rewrite(&format!("{END}{BEGIN}"), "", &[], &[]).is_err());
    }
}
