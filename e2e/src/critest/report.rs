//! Ginkgo's JSON report: which specs there were, and how each ended.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;

use crate::Outcome;

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should.
    Passed,
    /// Did not run: what it needs is not here.
    Skipped,
    /// Anything else: failed, panicked, cut off.
    Failed,
}

/// A spec that was to run.
#[derive(Debug)]
pub struct Spec {
    /// Its whole name.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// Why, if it did not pass.
    pub reason: String,
}

/// All specs of a run, by name.
#[derive(Debug)]
pub struct Counts(pub Vec<Spec>);

impl Counts {
    /// Those that ended so.
    pub fn of(&self, state: State) -> impl Iterator<Item = &Spec> {
        self.0.iter().filter(move |spec| spec.state == state)
    }

    /// `N passed, N failed, N skipped`.
    pub fn line(&self) -> String {
        let [passed, failed, skipped] =
            [State::Passed, State::Failed, State::Skipped].map(|state| self.of(state).count());
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Leaf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Leaf {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Location {
    #[serde(default)]
    file_name: String,
    #[serde(default)]
    line_number: u32,
}

/// Reads a report. Specs that the focus left out are not in the result; a set-up that failed is, as a failed spec.
pub fn read(path: &Path) -> Outcome<Counts> {
    let suites: Vec<Suite> = serde_json::from_reader(BufReader::new(File::open(path)?))?;
    let mut specs: Vec<Spec> =
        suites.into_iter().flat_map(|suite| suite.spec_reports).filter_map(Leaf::spec).collect();
    specs.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(Counts(specs))
}

impl Leaf {
    fn spec(self) -> Option<Spec> {
        let state = match self.state.as_str() {
            "passed" => State::Passed,
            "skipped" | "pending" => State::Skipped,
            _ => State::Failed,
        };
        let is_spec = self.leaf_node_type == "It";
        // A spec that is skipped without a word was not in the focus.
        let is_left_out = state == State::Skipped && self.failure.message.is_empty();
        if is_left_out || !is_spec && state != State::Failed {
            return None;
        }
        let mut names = self.container_hierarchy_texts.unwrap_or_default();
        names.push(if is_spec { self.leaf_node_text } else { self.leaf_node_type });
        let Location { file_name, line_number } = &self.failure.location;
        let file = file_name.rsplit('/').next().unwrap_or_default();
        let reason = match state {
            State::Failed => format!("{file}:{line_number}: {}", self.failure.message),
            _ => self.failure.message,
        };
        Some(Spec { name: names.join(" "), state, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_counted_and_what_was_left_out_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let report = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "State": "passed"},
            {"ContainerHierarchyTexts": ["b", "c"], "LeafNodeType": "It", "LeafNodeText": "works", "State": "passed"},
            {"ContainerHierarchyTexts": ["b"], "LeafNodeType": "It", "LeafNodeText": "hangs", "State": "interrupted",
             "Failure": {"Message": "late", "Location": {"FileName": "/x/y.go", "LineNumber": 7}}},
            {"ContainerHierarchyTexts": ["b"], "LeafNodeType": "It", "LeafNodeText": "needs", "State": "skipped",
             "Failure": {"Message": "no AppArmor"}},
            {"ContainerHierarchyTexts": ["b"], "LeafNodeType": "It", "LeafNodeText": "other", "State": "skipped"}
        ]}]"#;
        std::fs::write(&path, report).unwrap();
        let counts = read(&path).unwrap();
        assert_eq!(counts.line(), "1 passed, 1 failed, 1 skipped");
        let failed = counts.of(State::Failed).next().unwrap();
        assert_eq!((failed.name.as_str(), failed.reason.as_str()), ("b hangs", "y.go:7: late"));
    }
}
