//! The loss as people look at it: a line of blocks in the terminal, a picture in a file.

use std::fmt::Write;

/// A series of numbers as one line of blocks, the mean of each part where there are more than `width`.
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let means = shrink(values, width);
    let (low, high) = range(&means);
    let block = |v: &f64| match v {
        v if !v.is_finite() => '!',
        v => BLOCKS[(((v - low) / (high - low) * 7.0).round() as usize).min(7)],
    };
    means.iter().map(block).collect()
}

/// Training and validation loss over steps, as an SVG picture of 720 × 360.
pub(crate) fn svg(train: &[(u64, f64)], valid: &[(u64, f64)]) -> String {
    let (width, height, left, top, right, bottom) = (720., 360., 56., 28., 16., 40.);
    let all = || train.iter().chain(valid).filter(|(_, loss)| loss.is_finite());
    let last = all().map(|(step, _)| *step).max().unwrap_or(1).max(1) as f64;
    let losses: Vec<f64> = all().map(|(_, loss)| *loss).collect();
    let (low, high) = range(&losses);
    let x = |step: u64| left + (width - left - right) * step as f64 / last;
    let y = |loss: f64| top + (height - top - bottom) * (high - loss) / (high - low);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for tick in 0..=4 {
        let part = f64::from(tick) / 4.0;
        let (loss, step) = (low + (high - low) * part, (last * part).round());
        let (at_y, at_x) = (y(loss), x(step as u64));
        let _ = writeln!(svg, "<path d=\"M{left} {at_y:.1}H{}\" stroke=\"#ddd\"/>", width - right);
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>", left - 6.0, at_y + 4.0);
        let _ = writeln!(
            svg,
            "<text x=\"{at_x:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            height - bottom + 18.0
        );
    }
    for (i, (name, colour, series)) in
        [("train", "#4477aa", train), ("validation", "#ee6677", valid)].iter().enumerate()
    {
        let points: Vec<_> = series.iter().filter(|(_, l)| l.is_finite()).collect();
        if points.is_empty() {
            continue;
        }
        let line: Vec<_> = points.iter().map(|(step, loss)| format!("{:.1},{:.1}", x(*step), y(*loss))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            line.join(" ")
        );
        let _ = writeln!(svg, "<text x=\"{}\" y=\"18\" fill=\"{colour}\">{name} loss</text>", left + 110.0 * i as f64);
    }
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">step</text>\n</svg>", width - right, height - 6.0);
    svg
}

/// Smallest and largest finite value, never equal.
fn range(values: &[f64]) -> (f64, f64) {
    let finite = || values.iter().copied().filter(|v| v.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    match (low, high) {
        (low, high) if low < high => (low, high),
        (low, _) if low.is_finite() => (low - 0.5, low + 0.5),
        _ => (0.0, 1.0),
    }
}

/// At most `width` numbers: the mean of each part.
fn shrink(values: &[f64], width: usize) -> Vec<f64> {
    let n = width.min(values.len());
    let part = |i: usize| &values[i * values.len() / n..(i + 1) * values.len() / n];
    (0..n).map(|i| part(i).iter().sum::<f64>() / part(i).len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_falls_with_the_loss() {
        assert_eq!(sparkline(&[7., 6., 5., 4., 3., 2., 1., 0.], 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[4., 2., 2., 0.], 2), "█▁");
        assert_eq!(sparkline(&[1., f64::NAN, 1.], 3).chars().nth(1), Some('!'));
        assert_eq!(sparkline(&[], 8), "");
    }

    #[test]
    fn a_picture_has_both_series_inside_its_frame() {
        let picture = svg(&[(1, 4.0), (2, 2.0), (3, f64::INFINITY)], &[(2, 3.0)]);
        assert!(picture.contains("points=\"380.0,28.0"), "{picture}");
        assert!(picture.contains("train loss") && picture.contains("validation loss"));
        assert!(!picture.contains("inf") && !picture.contains("NaN"));
        assert!(svg(&[], &[]).ends_with("</svg>\n"));
    }
}
