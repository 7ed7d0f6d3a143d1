//! What a run of Cove has to come to: no spec fails but one, and those that are skipped are the listed ones.

use std::collections::BTreeSet;

use super::report::{Counts, State};

/// The one spec that cannot pass here: it pulls an image by a digest that only the internet has.
const OUT_OF_REACH: &str = "public image with digest should be pulled and removed";
/// The specs that are skipped on the machine of our tests, each under its reason.
const SKIPPED: &str = include_str!("skipped.txt");

/// Which of the specs are held against the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skips {
    /// Cove, and every spec: the listed ones are skipped and no other.
    AsListed,
    /// Cove, and some specs: no other is skipped than those listed.
    Listed,
    /// Another runtime, which has a list of its own.
    Any,
}

/// What speaks against a run, a line each. Empty: it is good.
pub fn objections(counts: &Counts, skips: Skips) -> Vec<String> {
    against(counts, skips, SKIPPED)
}

fn against(counts: &Counts, skips: Skips, list: &str) -> Vec<String> {
    let listed: BTreeSet<&str> =
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let skipped: BTreeSet<&str> = counts.of(State::Skipped).map(|spec| spec.name.as_str()).collect();
    let mut found: Vec<String> = counts
        .of(State::Failed)
        .filter(|spec| !spec.name.contains(OUT_OF_REACH))
        .map(|spec| format!("failed: {}", spec.name))
        .collect();
    if counts.of(State::Passed).next().is_none() {
        found.push("no spec passed".into());
    }
    if skips != Skips::Any {
        found.extend(skipped.difference(&listed).map(|name| format!("skipped, and not listed: {name}")));
    }
    if skips == Skips::AsListed {
        found.extend(listed.difference(&skipped).map(|name| format!("listed, and not skipped: {name}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::critest::Spec;

    fn counts(specs: &[(&str, State)]) -> Counts {
        let spec = |&(name, state): &(&str, State)| Spec { name: name.into(), state, reason: String::new() };
        Counts(specs.iter().map(spec).collect())
    }

    #[test]
    fn what_was_expected_is_no_objection() {
        let failed = format!("Image {OUT_OF_REACH} [Conformance]");
        let run = counts(&[("a", State::Passed), (&failed, State::Failed), ("b", State::Skipped)]);
        assert_eq!(against(&run, Skips::AsListed, "# why\nb\n"), [""; 0]);
    }

    #[test]
    fn every_other_failure_and_skip_is_one() {
        let run = counts(&[("a", State::Passed), ("b", State::Failed), ("c", State::Skipped)]);
        let failed = "failed: b";
        let (unlisted, idle) = ("skipped, and not listed: c", "listed, and not skipped: d");
        assert_eq!(against(&run, Skips::AsListed, "d\n"), [failed, unlisted, idle]);
        assert_eq!(against(&run, Skips::Listed, "d\n"), [failed, unlisted]);
        assert_eq!(against(&run, Skips::Any, "d\n"), [failed]);
    }

    #[test]
    fn a_run_of_nothing_is_not_good() {
        assert_eq!(against(&counts(&[]), Skips::Any, ""), ["no spec passed"]);
    }
}
