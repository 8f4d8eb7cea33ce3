//! What is supervised: every assistant turn, with its end of turn, and nothing else.

use expect_test::{Expect, expect};
use mc_text::{ChatOptions, ChatTemplate, Message};

use crate::{golden_template, golden_tokenizer};

fn check(chat: &ChatTemplate, messages: &[(&str, &str)], expected: &Expect) {
    let messages: Vec<Message> = messages.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    let (text, ranges) = chat.render_with_assistant_ranges(&messages, &ChatOptions::default()).unwrap();
    assert_eq!(text, chat.apply(&messages, &ChatOptions::default()).unwrap());
    let turns: Vec<&str> = ranges.into_iter().map(|range| &text[range]).collect();
    expected.assert_debug_eq(&turns);
}

const TURNS: [(&str, &str); 5] =
    [("system", "Be é."), ("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two 😀")];

#[test]
fn every_turn_is_found_by_comparison() {
    check(
        &golden_template("qwen", "chatml"),
        &TURNS,
        &expect![[r#"
            [
                "one<|im_end|>\n",
                "two 😀<|im_end|>\n",
            ]
        "#]],
    );
    check(
        &golden_template("byte_level", "headers"),
        &TURNS,
        &expect![[r#"
            [
                "one<|eot_id|>",
                "two 😀<|eot_id|>",
            ]
        "#]],
    );
    check(
        &golden_template("metaspace", "inst"),
        &TURNS,
        &expect![[r#"
            [
                " one</s>",
                " two 😀</s>",
            ]
        "#]],
    );
}

#[test]
fn reasoning_that_history_leaves_out_does_not_hide_a_turn() {
    check(
        &golden_template("qwen", "tools"),
        &[
            ("user", "1?"),
            ("assistant", "<think>\nhm\n</think>\n\none"),
            ("user", "2?"),
            ("assistant", "<think>\nwell\n</think>\n\ntwo"),
        ],
        &expect![[r#"
            [
                "one<|im_end|>\n",
                "<think>\nwell\n</think>\n\ntwo<|im_end|>\n",
            ]
        "#]],
    );
}

#[test]
fn generation_blocks_say_it_themselves() {
    check(
        &golden_template("qwen", "generation"),
        &TURNS,
        &expect![[r#"
            [
                "one<|im_end|>",
                "two 😀<|im_end|>",
            ]
        "#]],
    );
    // What the engine marks the blocks with is not taken from the text.
    check(
        &golden_template("qwen", "generation"),
        &[("user", "\u{fdd0}x\u{fdd1}"), ("assistant", "\u{fdd2}")],
        &expect![[r#"
            [
                "\u{fdd2}<|im_end|>",
            ]
        "#]],
    );
}

#[test]
fn a_generation_block_has_its_own_scope() {
    let source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}";
    let chat = ChatTemplate::from_source(source, []).unwrap();
    let (text, ranges) = chat.render_with_assistant_ranges(&[], &ChatOptions::default()).unwrap();
    assert_eq!((text.as_str(), ranges[0].clone(), ranges.len()), ("21", 0..1, 1));
}

#[test]
fn a_template_that_rewrites_the_prompt_is_refused() {
    // The system message moves to the last user turn, so no earlier prompt starts the conversation.
    let source = "{% for m in messages %}{% if loop.last %}!{% endif %}[{{ m.content }}]{% endfor %}";
    let chat = ChatTemplate::from_source(source, []).unwrap();
    let messages = [("user", "a"), ("assistant", "b"), ("user", "c")].map(|(role, text)| Message::new(role, text));
    let error = chat.render_with_assistant_ranges(&messages, &ChatOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "chat template: message 1: cannot tell which text the assistant wrote: the prompt for it is not how the \
         whole conversation starts"
    );
    assert!(error.hint().unwrap().contains("{% generation %}"));
}

#[test]
fn the_mask_covers_the_tokens_of_the_ranges() {
    for (tokenizer, template) in [("qwen", "chatml"), ("byte_level", "headers"), ("metaspace", "inst")] {
        let chat = golden_template(tokenizer, template);
        let tokenizer = golden_tokenizer(tokenizer);
        let messages = TURNS.map(|(role, content)| Message::new(role, content));
        let (text, ranges) = chat.render_with_assistant_ranges(&messages, &ChatOptions::default()).unwrap();
        let (ids, mask) = tokenizer.encode_with_mask(&text, &ranges).unwrap();
        assert_eq!(ids, tokenizer.encode(&text, false).unwrap());
        // Each run of supervised tokens is one turn, to the byte.
        let turns: Vec<String> = ids
            .iter()
            .zip(&mask)
            .collect::<Vec<_>>()
            .chunk_by(|a, b| a.1 == b.1)
            .filter(|run| *run[0].1)
            .map(|run| tokenizer.decode(&run.iter().map(|(id, _)| **id).collect::<Vec<_>>(), false).unwrap())
            .collect();
        let expected: Vec<&str> = ranges.iter().map(|range| &text[range.clone()]).collect();
        let trimmed: Vec<&str> = expected.iter().map(|turn| turn.trim_start()).collect();
        // Decoding a run alone strips a leading space where the tokenizer does that.
        assert!(turns == expected || turns == trimmed, "{template}: {turns:?} for {expected:?}");
    }
}

#[test]
fn a_token_of_white_space_belongs_where_it_stands() {
    let tokenizer = golden_tokenizer("qwen");
    let text = "ab\n\ncd\n\n";
    let (ids, mask) = tokenizer.encode_with_mask(text, &[2..6, 6..8]).unwrap();
    let supervised: Vec<u32> = ids.iter().zip(&mask).filter(|(_, on)| **on).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&supervised, false).unwrap(), "\n\ncd\n\n");
    let (_, mask) = tokenizer.encode_with_mask(text, &[0..2, 4..6]).unwrap();
    let kept: Vec<u32> = ids.iter().zip(&mask).filter(|(_, on)| **on).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&kept, false).unwrap(), "abcd");
}

/// A turn that reads otherwise later on, and whose end is nothing but a line's: in an answer of two lines nobody can tell where it is.
#[test]
fn an_end_that_is_in_the_answer_too_is_refused() {
    let template = "{% for m in messages %}{{ m.role }}:{% if loop.last %}{{ m.content }}\
        {% else %}{{ m.content.split('</think>')[-1] }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let chat = ChatTemplate::from_source(template, []).unwrap();
    let ranges = |answer: &str| {
        let messages =
            [("user", "a"), ("assistant", answer), ("user", "b")].map(|(role, content)| Message::new(role, content));
        let found = chat.render_with_assistant_ranges(&messages, &ChatOptions::default());
        found.map(|(text, ranges)| ranges.into_iter().map(|range| text[range].to_string()).collect::<Vec<_>>())
    };
    assert_eq!(ranges("<think>hm</think>one").unwrap(), ["one\n"]);
    assert_eq!(ranges("one\nmore").unwrap(), ["one\nmore\n"]);
    let error = ranges("<think>hm</think>one\nmore").unwrap_err();
    assert!(error.to_string().contains("is in its content, too") && error.hint().is_some(), "{error}");
}

/// As jinja reads it: lines of a template end in one character.
#[test]
fn a_template_of_another_system() {
    let chat = |template: &str| {
        let chat = ChatTemplate::from_source(template, []).unwrap();
        chat.apply(&[Message::new("user", "a\r\nb")], &ChatOptions::default()).unwrap()
    };
    let template = "{% for m in messages %}\n{{ m.role + '\n' }}{{ m.content }}\n{% endfor %}\n";
    assert_eq!(chat(&template.replace('\n', "\r\n")), chat(template));
    assert!(chat(template).contains("a\r\nb"));
}
