//! The jinja dialect of chat templates, as transformers sets it up. Knows templates and values, no messages.

use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::json::{Style, dumps};

/// The filter that stands for `{% generation %}`.
pub(crate) const GENERATION: &str = "_generation";

/// An environment with everything but the templates.
pub(crate) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_filter(GENERATION, |body: String| body);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("first", |value: Value| of_sequence(value, |value| filters::first(&value)));
    environment.add_filter("last", |value: Value| of_sequence(value, filters::last));
    environment.add_filter("items", items);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

/// Puts tags that the engine knows in place of `{% generation %}` and `{% endgeneration %}`; none if there are none.
///
/// A filter block can see and mark what is inside; `with` gives the block the scope of its own that it has in
/// transformers. White-space control stays where it was written.
pub(crate) fn without_generation_tags(source: &str) -> Option<String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // After the opening: the `%` of `{%}` does not close it.
        let Some(end) = tag[2..].find("%}").map(|end| end + 2) else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let open = &inside[..usize::from(inside.starts_with(['-', '+']))];
        let inside = &inside[open.len()..];
        let close = &inside[inside.len() - usize::from(inside.ends_with(['-', '+']))..];
        match inside[..inside.len() - close.len()].trim() {
            "generation" => {
                let _ = write!(out, "{{%{open} with -%}}{{%- filter {GENERATION} {close}%}}");
            }
            "endgeneration" => {
                let _ = write!(out, "{{%{open} endfilter -%}}{{%- endwith {close}%}}");
            }
            _ => {
                // Only the opening: there may be a tag inside what looked like one.
                out.push_str("{%");
                rest = &tag[2..];
                continue;
            }
        }
        found = true;
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    found.then_some(out)
}

/// The words of the template, if it was the template that raised the error.
pub(crate) fn raised(error: &Error) -> Option<&str> {
    let raised = std::error::Error::source(error)?.downcast_ref::<Raised>()?;
    Some(&raised.0)
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(Raised(message)))
}

/// As in Python, where texts and maps have a length and can be indexed too, and in jinja, where so can what is not defined.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
}

/// `None` is not: templates ask this of `tools`, which is none where there are no tools.
fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// What is not defined has no members.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::from(Vec::<Value>::new())) } else { filters::items(value) }
}

fn of_sequence(value: Value, member: impl Fn(Value) -> Result<Value, Error>) -> Result<Value, Error> {
    if value.is_undefined() { Ok(value) } else { member(value) }
}

/// In jinja what is no number is 0, or the default that is given.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands keyword arguments over by value")]
fn int(state: &State, value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = match default {
        None => named.get::<Option<Value>>("default")?.unwrap_or(Value::from(0)),
        Some(default) => default,
    };
    let mut base = base.or(named.get("base")?);
    named.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "int: the value is undefined"));
    }
    let value = match value.as_str() {
        Some(text) => {
            let text = text.trim();
            let separated = text.split('_').all(|part| !part.is_empty());
            let text = if separated { text.replace('_', "") } else { text.into() };
            if base == Some(0) {
                let prefix = text.trim_start_matches(['+', '-']).get(..2).map(str::to_lowercase);
                let found = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(p, _)| prefix.as_deref() == Some(*p));
                base = found.map(|(_, base)| base);
            }
            Value::from(text)
        }
        None => value.clone(),
    };
    let none = std::iter::empty::<(String, Value)>().collect();
    Ok(filters::int(state, &value, Some(default.clone()), base, none).unwrap_or(default))
}

/// As [`int`], with 0.0.
fn float(value: &Value, default: Option<f64>) -> Result<f64, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "float: the value is undefined"));
    }
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(number.or(default).unwrap_or(0.0))
}

/// The local time now in the given format.
fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(jiff::Timestamp::now().as_second(), format)
}

/// A time in seconds since 1970, as local time in the given format.
pub(crate) fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let time = jiff::Timestamp::from_second(seconds).map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    time.and_then(|time| jiff::fmt::strtime::format(format, &time))
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `json.dumps`, not jinja's own filter: that one escapes HTML.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands keyword arguments over by value")]
fn tojson(value: &Value, ensure_ascii: Option<bool>, arguments: Kwargs) -> Result<Value, Error> {
    let wrong = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
    let indent = match arguments.get::<Option<Value>>("indent")? {
        Some(indent) if indent.kind() == ValueKind::String => Some(indent.to_string()),
        Some(indent) if !indent.is_none() => {
            let width = usize::try_from(indent).map_err(|_| wrong("indent is no small number"))?;
            // Wider than any template asks for, and too narrow to fill the memory.
            Some(" ".repeat(width.min(64)))
        }
        _ => None,
    };
    let separators = match arguments.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(wrong("separators are no pair")),
    };
    let style = Style {
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii).unwrap_or(false),
        indent,
        separators,
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    arguments.assert_all_used()?;
    if value.is_undefined() {
        return Err(wrong("the value is undefined"));
    }
    let value = serde_json::to_value(value).map_err(|error| wrong(&error.to_string()))?;
    Ok(Value::from_safe_string(dumps(&value, &style)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_now_and_local() {
        let mut environment = environment().unwrap();
        environment.add_template("t", "{{ strftime_now('%d %b %Y') }}").unwrap();
        environment.add_template("bad", "{{ strftime_now('%') }}").unwrap();
        let render = |name| environment.get_template(name).unwrap().render(());
        // Around midnight the day may change in between.
        let days = [jiff::Zoned::now(), jiff::Zoned::now() - jiff::SignedDuration::from_secs(60)];
        let rendered = render("t").unwrap();
        assert!(days.iter().any(|day| day.strftime("%d %b %Y").to_string() == rendered), "{rendered}");
        assert!(render("bad").is_err());
    }

    /// What jinja2 3.1 renders, with a `tools` that is none and an `absent` that is not there.
    #[test]
    fn what_is_none_or_not_there_is_as_in_jinja() {
        let environment = environment().unwrap();
        let render = |source: &str| {
            let context = minijinja::context! { tools => Value::from(()), list => vec![1, 2], text => "7" };
            environment.render_str(source, context).map_err(|error| error.to_string())
        };
        for (source, expected) in [
            ("{{ tools is iterable }} {{ tools is sequence }}", "False False"),
            ("{{ absent is iterable }} {{ absent is sequence }}", "True True"),
            ("{{ list is iterable }} {{ 'a' is iterable }} {{ 3 is iterable }}", "True True False"),
            ("{% if tools is iterable and tools | length > 0 %}some{% else %}none{% endif %}", "none"),
            ("{{ absent | length }} {{ absent | count }} {{ list | length }}", "0 0 2"),
            ("[{{ absent | first }}{{ absent | last }}] {{ list | first }} {{ list | last }}", "[] 1 2"),
            (
                "{% for k, v in absent | items %}x{% endfor %}-{% for k, v in {'a': 1} | items %}{{ k }}{{ v }}{% endfor %}",
                "-a1",
            ),
            (
                "{{ '' | int }} {{ 'a' | int }} {{ 'a' | int(5) }} {{ 'a' | int(default=6) }} {{ text | int }} {{ '0x1f' | int(base=16) }}",
                "0 0 5 6 7 31",
            ),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
        for (source, expected) in [
            (
                "{{ ' 7 ' | int }} {{ '1_000' | int }} {{ '_1' | int }} {{ '0x1f' | int(base=0) }} {{ '12' | int(0, 0) }}",
                "7 1000 0 31 12",
            ),
            ("{{ 'a' | float }} {{ ' 1.5 ' | float }} {{ 'a' | float(2.5) }} {{ 3 | float }}", "0.0 1.5 2.5 3.0"),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
        assert!(render("{{ absent | int }}").is_err() && render("{{ absent | float }}").is_err());
        assert!(render("{{ tools | length }}").is_err() && render("{{ 'a' | int(nonsense=1) }}").is_err());
    }

    #[test]
    fn a_template_may_have_a_time_of_its_own() {
        let template = crate::ChatTemplate::from_source("{{ strftime_now('%s') }}", []).unwrap();
        let time = |template: &crate::ChatTemplate| template.apply(&[], &crate::ChatOptions::default()).unwrap();
        let earlier = template.clone().at(86_400);
        assert_eq!(time(&earlier), "86400");
        assert!(time(&template).parse::<i64>().unwrap() > 1_700_000_000);
        let never = template.at(i64::MAX).apply(&[], &crate::ChatOptions::default());
        assert!(never.is_err());
    }

    #[test]
    fn generation_tags_become_filter_blocks() {
        let check = |source: &str, expected: Option<&str>| {
            assert_eq!(without_generation_tags(source).as_deref(), expected, "{source}");
        };
        check("{% if generation %}{% endif %} {% x", None);
        check(
            "é{%- generation -%}a{% endgeneration +%}",
            Some("é{%- with -%}{%- filter _generation -%}a{% endfilter -%}{%- endwith +%}"),
        );
        check("{%generation%}{%-%}", Some("{% with -%}{%- filter _generation %}{%-%}"));
        // As in a comment.
        check("{# {%} #}{% generation %}a", Some("{# {%} #}{% with -%}{%- filter _generation %}a"));
        check("{%}", None);
    }
}
