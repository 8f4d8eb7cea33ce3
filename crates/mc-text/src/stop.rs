//! Stop strings in streamed text. Knows no tokens.

/// Looks for stop strings in text that comes in pieces, and holds back what may be the start of one.
///
/// How the text is cut into pieces does not change the outcome: the stop string that is complete first wins, the
/// longest of those that end together.
///
/// ```
/// use mc_text::StopStrings;
///
/// let mut stop = StopStrings::new(vec!["</s>".to_string()]);
/// assert_eq!(stop.push("done <").emit, "done ");
/// assert!(stop.push("/s> and more").stopped);
/// assert_eq!(stop.finish(), "");
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopScan {
    /// Text before any stop string that will not become part of one.
    pub emit: String,
    /// Whether a stop string is complete: nothing is emitted after it.
    pub stopped: bool,
}

impl StopStrings {
    /// Looks for any of `stops`; empty ones are left out.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> StopScan {
        if self.stopped {
            return StopScan { emit: String::new(), stopped: true };
        }
        let before = self.held.len();
        self.held.push_str(text);
        // What is held was searched before, so a stop string can only end in the new text.
        let ends = self.held[before..].char_indices().map(|(at, c)| before + at + c.len_utf8());
        for end in ends {
            let longest = self.stops.iter().filter(|stop| self.held[..end].ends_with(*stop)).map(String::len).max();
            if let Some(length) = longest {
                self.held.truncate(end - length);
                self.stopped = true;
                return StopScan { emit: std::mem::take(&mut self.held), stopped: true };
            }
        }
        let keep = self.held.split_off(self.held.len() - self.undecided());
        StopScan { emit: std::mem::replace(&mut self.held, keep), stopped: false }
    }

    /// Ends the text: what was held back, as no stop string came of it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The length of the longest end of the held text that starts a stop string.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        (from..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopStrings::new(stops.iter().map(ToString::to_string).collect());
        let mut text = String::new();
        let mut stopped = false;
        for piece in pieces {
            let scan = scanner.push(piece);
            text += &scan.emit;
            stopped = scan.stopped;
        }
        text += &scanner.finish();
        (text, stopped)
    }

    #[test]
    fn a_stop_string_across_pieces_is_cut_off() {
        assert_eq!(stream(&["STOP"], &["go S", "T", "OP now"]), ("go ".into(), true));
    }

    #[test]
    fn a_false_start_is_given_back() {
        assert_eq!(stream(&["STOP"], &["go S", "TO", "RE"]), ("go STORE".into(), false));
        assert_eq!(stream(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
    }

    #[test]
    fn an_unfinished_stop_string_is_text() {
        assert_eq!(stream(&["\n\n"], &["line\n"]), ("line\n".into(), false));
    }

    #[test]
    fn only_what_may_stop_is_held_back() {
        let mut scanner = StopStrings::new(vec!["<end>".into()]);
        assert_eq!(scanner.push("1 < 2").emit, "1 < 2");
        assert_eq!(scanner.push(" <e").emit, " ");
    }

    #[test]
    fn no_stop_strings_hold_nothing() {
        assert_eq!(stream(&[""], &["a", "é"]), ("aé".into(), false));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..24, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < chars.len()).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let whole = stream(&stops, &[&text]);
            // An empty last piece must not forget that the stream has stopped.
            prop_assert_eq!(stream(&stops, &pieces), whole.clone());
            prop_assert_eq!(whole.1, stops.iter().any(|stop| text.contains(stop)));
            prop_assert!(text.starts_with(&whole.0));
        }
    }
}
