//! Every operation that has fail points: what a test that visits each of them goes by (`cove debug steps`).

use super::Operation;
use crate::{container, sandbox};

/// All of them.
const OPERATIONS: &[&Operation] = &[
    &sandbox::run::RUN,
    &sandbox::stop::STOP,
    &sandbox::remove::REMOVE,
    &sandbox::teardown::TEARDOWN,
    &container::create::CREATE,
    &container::start::START,
    &container::end::STOP,
    &container::remove::REMOVE,
    &container::remove::ERASE,
];

/// The fail points: `OPERATION.STEP`.
pub(crate) fn points() -> impl Iterator<Item = String> {
    OPERATIONS
        .iter()
        .flat_map(|operation| operation.steps.iter().map(|step| format!("{}.{step}", operation.point)))
}

/// A step is in the list. (Tests of this room make operations of their own.)
pub(super) fn knows(operation: &Operation, step: &str) -> bool {
    let listed = || OPERATIONS.iter().any(|known| known.point == operation.point);
    operation.point.starts_with("test.") || operation.steps.contains(&step) && listed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_is_there_once() {
        let all: Vec<_> = points().collect();
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), different.len());
        assert!(all.len() > 30 && all.contains(&"sandbox.run.network".to_owned()));
        assert!(knows(&sandbox::run::RUN, "network") && !knows(&sandbox::run::RUN, "no such"));
    }
}
