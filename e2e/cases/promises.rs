//! docs/reliability.md and docs/security.md name the test that holds each promise; here they are held to that.

use std::path::Path;

use cove_e2e::Outcome;

/// Promises N1 to N10.
const PROMISES: usize = 10;

/// Each promise has a test, and each case that the document names is one of `cases`.
pub(crate) fn check(cases: &[String]) -> Outcome {
    let document = |name: &str| -> Outcome<String> {
        Ok(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name))?)
    };
    let text = document("reliability.md")?;
    for number in 1..=PROMISES {
        let begin = format!("| N{number} ");
        let row = text.lines().find(|line| line.starts_with(&begin)).ok_or(format!("no N{number}"))?;
        let held_by = row.split('|').nth(3).unwrap_or_default();
        ensure!(
            held_by.contains("case") || held_by.contains("hack/faults"),
            "N{number} is held by {held_by:?}"
        );
    }
    let text = text + &document("security.md")?;
    let quoted = text.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted.filter(|word| word.contains("::") && !word.contains(' ')).collect();
    ensure!(named.len() >= PROMISES, "the document names hardly any case: {named:?}");
    for name in named {
        let is_there = match name.strip_suffix('*') {
            Some(room) => cases.iter().any(|case| case.starts_with(room)),
            None => cases.iter().any(|case| case == name),
        };
        ensure!(is_there, "the document names {name}, and there is no such case");
    }
    Ok(())
}
