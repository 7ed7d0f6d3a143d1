//! Holds `docs/cri.md` against the wire contract, and against the cases that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Fields of a message: type and name.
type Messages = BTreeMap<String, Vec<(String, String)>>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The messages of a proto file that has one field a line, and no message in a message.
fn messages(proto: &str) -> Messages {
    let mut all = Messages::new();
    let mut current = None;
    for line in proto.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("message ") {
            let name = rest.split(' ').next().unwrap().to_owned();
            all.entry(name.clone()).or_default();
            current = (!line.ends_with('}')).then_some(name);
        } else if let (Some(message), Some((left, _))) = (&current, line.split_once(" = ")) {
            let left = left.strip_prefix("repeated ").unwrap_or(left);
            if let Some((kind, name)) = left.rsplit_once(' ') {
                all.get_mut(message).unwrap().push((kind.to_owned(), name.to_owned()));
            }
        }
    }
    all
}

/// Every field below a message that has none below it itself. What is for Windows counts as one.
fn leaves(messages: &Messages, message: &str, path: &str, found: &mut Vec<String>) {
    for (kind, name) in &messages[message] {
        let path = format!("{path}.{name}");
        if messages.contains_key(kind) && !kind.ends_with("Int64Value") && name != "windows" {
            leaves(messages, kind, &path, found);
        } else {
            found.push(path);
        }
    }
}

/// Field, what becomes of it, and where that is shown.
fn rows(document: &str) -> Vec<[String; 3]> {
    let cells = |line: &str| -> Option<[String; 3]> {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.splitn(3, " | ");
        let field = cells.next()?.strip_suffix('`')?.to_owned();
        Some([field, cells.next()?.to_owned(), cells.next()?.to_owned()])
    };
    document.lines().filter_map(cells).collect()
}

fn covers(row: &str, field: &str) -> bool {
    match row.strip_suffix(".*") {
        Some(above) => field.strip_prefix(above).is_some_and(|rest| rest.starts_with('.')),
        None => row == field,
    }
}

#[test]
fn every_field_has_one_row_and_every_row_a_field() {
    let messages = messages(include_str!("../../../proto/api.proto"));
    let document = std::fs::read_to_string(repository().join("docs/cri.md")).unwrap();
    let rows = rows(&document);
    let mut fields = Vec::new();
    for message in ["PodSandboxConfig", "ContainerConfig"] {
        leaves(&messages, message, message, &mut fields);
    }
    assert!(fields.len() > 100, "the contract was not read: {fields:?}");
    for field in &fields {
        let found: Vec<_> = rows.iter().filter(|[row, ..]| covers(row, field)).collect();
        assert_eq!(found.len(), 1, "{field}: {found:?}");
    }
    for [row, what, shown] in &rows {
        assert!(fields.iter().any(|field| covers(row, field)), "{row} is no field");
        assert!(["honoured", "refused", "ignored"].contains(&what.as_str()), "{row}: {what}");
        assert!(!shown.is_empty(), "{row} is shown nowhere");
        if what == "honoured" {
            assert!(shown.contains("::") || shown.contains("unit test"), "{row}: {shown}");
        }
    }
}

#[test]
fn every_case_that_is_named_exists() {
    let document = std::fs::read_to_string(repository().join("docs/cri.md")).unwrap();
    let words = document.split('`').filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (room, case) in words {
        let file = repository().join(format!("e2e/cases/{room}.rs"));
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(text.contains(&format!("async fn {case}(")), "{room}::{case}");
        count += 1;
    }
    assert!(count > 30, "{count} cases are named");
}
