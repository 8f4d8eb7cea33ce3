//! JSON as Python's `json.dumps` writes it: what a model saw in training, to the byte.

use std::fmt::Write;

use serde_json::{Number, Value};

/// The keyword arguments of `json.dumps` that chat templates use.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub(crate) ensure_ascii: bool,
    /// One level of indentation; none: all on one line.
    pub(crate) indent: Option<String>,
    /// Between items, and between a key and its value.
    pub(crate) separators: Option<(String, String)>,
    pub(crate) sort_keys: bool,
}

pub(crate) fn dumps(value: &Value, style: &Style) -> String {
    let (item, key) = match (&style.separators, &style.indent) {
        (Some((item, key)), _) => (item.as_str(), key.as_str()),
        (None, Some(_)) => (",", ": "),
        (None, None) => (", ", ": "),
    };
    let mut writer = Writer { out: String::new(), style, item, key, depth: 0 };
    writer.value(value);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Number(value) => self.number(value),
            Value::String(value) => self.string(value),
            Value::Array(values) => self.items('[', ']', values, Self::value),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.style.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.items('{', '}', entries, |writer, (key, value)| {
                    writer.string(key);
                    writer.out.push_str(writer.key);
                    writer.value(value);
                });
            }
        }
    }

    fn items<T>(
        &mut self,
        open: char,
        close: char,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.out.push(open);
        self.depth += 1;
        let mut any = false;
        for item in items {
            if any {
                self.out.push_str(self.item);
            }
            any = true;
            self.new_line();
            write(self, item);
        }
        self.depth -= 1;
        if any {
            self.new_line();
        }
        self.out.push(close);
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(self.depth));
        }
    }

    fn number(&mut self, number: &Number) {
        match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => self.out.push_str(&float_repr(float)),
            None => {
                let _ = write!(self.out, "{number}");
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a finite float: the shortest digits that read back the same, with an exponent below 1e-4 and from
/// 1e16 on.
fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..=15) => {
            let plain = format!("{value}");
            if exponent >= 0 && !plain.contains('.') { plain + ".0" } else { plain }
        }
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // Each expected value is what `json.dumps` of Python 3.12 prints.
    #[test]
    fn floats_are_python_s() {
        let check = |value: f64, expected: &str| assert_eq!(float_repr(value), expected);
        check(0.0, "0.0");
        check(-0.0, "-0.0");
        check(1.0, "1.0");
        check(0.1, "0.1");
        check(0.0001, "0.0001");
        check(0.00001, "1e-05");
        check(1.5e-7, "1.5e-07");
        check(1e15, "1000000000000000.0");
        check(1e16, "1e+16");
        check(1.25e300, "1.25e+300");
        check(123_456.789, "123456.789");
    }

    #[test]
    fn one_line_has_spaces_after_separators() {
        let value = json!({"b": [1, 2.0, null], "a": {"é<": "x\"\n\u{1}"}, "e": [], "o": {}});
        assert_eq!(
            dumps(&value, &Style::default()),
            r#"{"b": [1, 2.0, null], "a": {"é<": "x\"\n\u0001"}, "e": [], "o": {}}"#
        );
    }

    #[test]
    fn arguments_are_respected() {
        let value = json!({"b": [1, {}], "a": "😀"});
        let style = Style { indent: Some("  ".into()), sort_keys: true, ensure_ascii: true, separators: None };
        assert_eq!(dumps(&value, &style), "{\n  \"a\": \"\\ud83d\\ude00\",\n  \"b\": [\n    1,\n    {}\n  ]\n}");
        let style = Style { separators: Some((",".into(), ":".into())), ..Style::default() };
        assert_eq!(dumps(&value, &style), r#"{"b":[1,{}],"a":"😀"}"#);
    }
}
