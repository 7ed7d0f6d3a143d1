//! YAML as CDI files use it becomes JSON: one document, no aliases (by which a small file becomes a huge one), and plain
//! scalars by the rules of the YAML library of Go, by whose users these files are written.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use super::DocumentError;

/// How deep a document may be: CDI's own is 7.
const MAX_DEPTH: usize = 32;

/// What is being read: a list, or an object with the key that waits for its value.
enum Open {
    List(Vec<Value>),
    Object(Map<String, Value>, Option<String>),
}

/// Reads a document.
pub(super) fn parse(text: &str) -> Result<Value, DocumentError> {
    let mut open: Vec<Open> = Vec::new();
    let mut whole = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| fault(&error.to_string()))?;
        let at = |what: &str| fault(&format!("line {}: {what}", span.start.line()));
        let value = match event {
            Event::Alias(_) => return Err(at("aliases are not taken")),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Object(Map::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Some(Value::Array(items)),
                Some(Open::Object(fields, _)) => Some(Value::Object(fields)),
                None => None,
            },
            Event::Scalar(text, style, _, tag) => {
                if tag.is_some() {
                    return Err(at("tags are not taken"));
                }
                Some(scalar(&text, style))
            }
            Event::DocumentStart(_) if whole.is_some() => return Err(at("a second document begins")),
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd => None,
        };
        if open.len() > MAX_DEPTH {
            return Err(at("is nested too deep"));
        }
        let Some(value) = value else { continue };
        match open.last_mut() {
            None => whole = Some(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Object(fields, key)) => match key.take() {
                None => *key = Some(key_of(value).ok_or_else(|| at("a key is no text"))?),
                Some(name) => {
                    if fields.insert(name.clone(), value).is_some() {
                        return Err(at(&format!("{name:?} is there twice")));
                    }
                }
            },
        }
    }
    whole.ok_or_else(|| fault("it is empty"))
}

fn fault(text: &str) -> DocumentError {
    DocumentError::Yaml(text.to_owned())
}

fn key_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    match integer(text) {
        Some(number) => Value::Number(number),
        None => Value::String(text.to_owned()),
    }
}

/// `438`, `-1`, `0666` and `0o666` (octal, as file modes are written), `0x1b6`. CDI has no other numbers.
fn integer(text: &str) -> Option<Number> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let octal = |digits: &str| u64::from_str_radix(digits, 8).ok();
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits {
        _ if digits.starts_with("0o") => octal(digits.strip_prefix("0o")?)?,
        _ if digits.starts_with("0x") => u64::from_str_radix(digits.strip_prefix("0x")?, 16).ok()?,
        _ if digits.len() > 1 && digits.starts_with('0') => octal(digits)?,
        _ => digits.parse().ok()?,
    };
    if digits.len() == text.len() {
        return Some(value.into());
    }
    i64::try_from(value).ok().map(|value| (-value).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_json_says() {
        let text = "---\ncdiVersion: \"0.6.0\"\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n  containerEdits:\n    \
                    deviceNodes:\n    - path: /dev/nvidia0\n      fileMode: 0666\n      major: 195\n    env: [A=1, 'B=2 # no']\n  \
                    annotations: {}\n# a word\ncontainerEdits:\n  env: ~\n";
        let expected = json!({
            "cdiVersion": "0.6.0",
            "kind": "nvidia.com/gpu",
            "devices": [{
                "name": "0",
                "containerEdits": {
                    "deviceNodes": [{ "path": "/dev/nvidia0", "fileMode": 438, "major": 195 }],
                    "env": ["A=1", "B=2 # no"],
                },
                "annotations": {},
            }],
            "containerEdits": { "env": null },
        });
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn scalars_are_what_they_look_like() {
        for (text, expected) in [
            ("0", json!(0)),
            ("-7", json!(-7)),
            ("0o600", json!(384)),
            ("0x10", json!(16)),
            ("'0'", json!("0")),
            ("0.6.0", json!("0.6.0")),
            ("09", json!("09")),
            ("1e3", json!("1e3")),
            ("no", json!("no")),
            ("true", json!(true)),
            ("99999999999999999999", json!("99999999999999999999")),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "[".repeat(10_000);
        for bad in [
            "",
            "a: &x 1\nb: *x\n",
            "a: 1\na: 2\n",
            "a: !!binary x\n",
            "a: 1\n---\nb: 2\n",
            "[1, 2]: x\n",
            "a: [1\n",
            "a: {b: 1\n",
            "\tx: 1\n- y",
            deep.as_str(),
        ] {
            assert!(parse(bad).is_err(), "{bad:.40?}");
        }
    }
}
