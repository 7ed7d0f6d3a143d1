//! ListPodSandbox: reads what is published.

use std::sync::Arc;

use super::SandboxView;
use super::config::Annotations;
use crate::node::Node;

/// Which sandboxes are wanted; every condition must hold.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// An id, or a unique prefix of one.
    pub id: Option<String>,
    /// READY, or not.
    pub ready: Option<bool>,
    /// Labels that must be there with exactly these values.
    pub labels: Annotations,
}

/// The sandboxes that a filter names, in the order of their making. An id that nobody has gives an empty list.
pub fn list(node: &Node, filter: &SandboxFilter) -> Vec<Arc<SandboxView>> {
    let all = node.sandboxes.all();
    let prefix = filter.id.as_deref().unwrap_or("");
    let mut views: Vec<_> = all
        .values()
        .filter(|sandbox| sandbox.id().starts_with(prefix))
        .filter_map(|sandbox| sandbox.view())
        .filter(|view| filter.ready.is_none_or(|ready| view.ready == ready))
        .filter(|view| has_labels(&view.config.labels, &filter.labels))
        .collect();
    // A prefix names one object or none, as it does everywhere else.
    if filter.id.is_some() && views.len() > 1 {
        views.retain(|view| view.id == prefix);
    }
    views.sort_by_key(|view| view.created_at);
    views
}

/// Every wanted label is there, with its value.
pub fn has_labels(labels: &Annotations, wanted: &Annotations) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_must_all_be_there() {
        let labels = |pairs: &[(&str, &str)]| -> Annotations {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let have = labels(&[("a", "1"), ("b", "2")]);
        for (wanted, matches) in [
            (labels(&[]), true),
            (labels(&[("a", "1")]), true),
            (labels(&[("a", "1"), ("b", "2")]), true),
            (labels(&[("a", "2")]), false),
            (labels(&[("c", "")]), false),
        ] {
            assert_eq!(has_labels(&have, &wanted), matches, "{wanted:?}");
        }
    }
}
