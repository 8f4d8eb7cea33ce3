//! Which bytes of a rendered conversation the assistant wrote. Knows no template language.

use std::ops::Range;

use serde_json::Value;

use crate::{Error, Message, Result};

/// Two characters that `text` does not have. Noncharacters, 32 of which Unicode keeps for use inside programs.
pub(crate) fn markers(text: &str) -> (char, char) {
    let mut unused = ('\u{fdd0}'..='\u{fdef}').filter(|&c| !text.contains(c));
    // A text with all of them in it is no text: then its own are taken for markers.
    let open = unused.next().unwrap_or('\u{fdd0}');
    (open, unused.next().unwrap_or('\u{fdd1}'))
}

/// Takes the markers out of a text and says where they stood.
pub(crate) fn by_markers(marked: &str, open: char, close: char) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut ranges = Vec::new();
    let mut start = None;
    for c in marked.chars() {
        if c == open {
            start = Some(text.len());
        } else if c == close {
            ranges.extend(start.take().map(|start| start..text.len()));
        } else {
            text.push(c);
        }
    }
    (text, ranges)
}

/// Finds each assistant turn in the whole text: it starts where the prompt for it ends, and ends where the conversation
/// up to it ends. `render` renders messages, with or without the generation prompt.
pub(crate) fn by_comparison(
    messages: &[Message],
    add_generation_prompt: bool,
    template: &str,
    render: impl Fn(&[Message], bool) -> Result<String>,
) -> Result<(String, Vec<Range<usize>>)> {
    let whole = render(messages, add_generation_prompt)?;
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        if message.role != "assistant" {
            continue;
        }
        let failed = |reason| Error::AssistantRange { template: template.to_string(), message: at, reason };
        let prompt = render(&messages[..at], true)?;
        if !whole.starts_with(&prompt) || ranges.last().is_some_and(|last| last.end > prompt.len()) {
            return Err(failed("the prompt for it is not how the whole conversation starts"));
        }
        let turn = render(&messages[..=at], false)?;
        let end = if whole.starts_with(&turn) && turn.len() >= prompt.len() {
            turn.len()
        } else {
            // Some templates leave the reasoning out of all turns but the last, so that the turn reads otherwise later
            // on. Its end does not change.
            let ending = ending(&messages[..=at], &render)?
                .ok_or_else(|| failed("what follows its content cannot be told from it"))?;
            if message.text().is_some_and(|content| content.contains(&ending)) {
                return Err(failed("what follows its content is in its content, too"));
            }
            let found = whole[prompt.len()..].find(&ending);
            let found = found.ok_or_else(|| failed("it ends otherwise when the conversation goes on"))?;
            prompt.len() + found + ending.len()
        };
        ranges.push(prompt.len()..end);
    }
    Ok((whole, ranges))
}

/// What the template writes after the content of the last message.
fn ending(messages: &[Message], render: impl Fn(&[Message], bool) -> Result<String>) -> Result<Option<String>> {
    let mut messages = messages.to_vec();
    let Some(last) = messages.last_mut() else {
        return Ok(None);
    };
    let mark = "\u{fdd0}";
    last.content = Some(Value::String(mark.into()));
    let text = render(&messages, false)?;
    let ending = text.rsplit_once(mark).map(|(_, ending)| ending.to_string());
    Ok(ending.filter(|ending| !ending.is_empty()))
}
