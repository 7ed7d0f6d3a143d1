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

/// Messages with tables of their own.
const APART: [&str; 2] = ["PodSandboxConfig", "ContainerConfig"];

/// The request messages of every RPC.
fn requests(proto: &str) -> Vec<&str> {
    let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
    calls.filter_map(|call| Some(call.split_once('(')?.1.split_once(')')?.0)).collect()
}

/// Every field below a message that has none below it itself. What is for Windows counts as one, and so does a message with
/// a table of its own.
fn leaves(messages: &Messages, message: &str, path: &str, found: &mut Vec<String>) {
    for (kind, name) in &messages[message] {
        let path = format!("{path}.{name}");
        let apart = kind.ends_with("Int64Value") || name == "windows" || APART.contains(&kind.as_str());
        if messages.contains_key(kind) && !apart {
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
    let proto = include_str!("../../../proto/api.proto");
    let messages = messages(proto);
    let document = std::fs::read_to_string(repository().join("docs/cri.md")).unwrap();
    let rows = rows(&document);
    let mut fields = Vec::new();
    let requests = requests(proto);
    assert_eq!(requests.len(), 43, "{requests:?}");
    for message in APART.into_iter().chain(requests) {
        leaves(&messages, message, message, &mut fields);
    }
    assert!(fields.len() > 200, "the contract was not read: {fields:?}");
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

/// Every source file below a directory.
fn sources(directory: &Path, found: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_unit_test_that_is_named_exists() {
    let mut text = String::new();
    for package in ["cri-server/src", "runtime/src", "netplugin/src"] {
        sources(&repository().join(package), &mut text);
    }
    let document = std::fs::read_to_string(repository().join("docs/cri.md")).unwrap();
    let mut count = 0;
    for [row, _, shown] in rows(&document) {
        let Some((_, named)) = shown.split_once("unit test") else { continue };
        // Names of tests stand between backticks and are sentences; values are words, and cases have colons.
        let is_test = |name: &&str| !name.contains("::") && name.matches('_').count() >= 2;
        for name in named.split('`').skip(1).step_by(2).filter(is_test) {
            assert!(text.contains(&format!("fn {name}()")), "{row}: {name}");
            count += 1;
        }
    }
    assert!(count > 10, "{count} unit tests are named");
}
