//! ListContainers: reads what is published.

use std::sync::Arc;

use super::{ContainerPhase, ContainerView};
use crate::node::Node;
use crate::sandbox::config::Annotations;
use crate::sandbox::list::has_labels;

/// A phase to filter by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseFilter {
    /// CREATED.
    Created,
    /// RUNNING.
    Running,
    /// EXITED.
    Exited,
    /// UNKNOWN.
    Unknown,
}

/// Which containers are wanted; every condition must hold.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// An id, or a unique prefix of one.
    pub id: Option<String>,
    /// Id of a sandbox, or a unique prefix of one.
    pub sandbox: Option<String>,
    /// Where it is in its life.
    pub phase: Option<PhaseFilter>,
    /// Labels that must be there with exactly these values.
    pub labels: Annotations,
}

/// The containers that a filter names, in the order of their making. An id that nobody has gives an empty list.
pub fn list(node: &Node, filter: &ContainerFilter) -> Vec<Arc<ContainerView>> {
    let all = node.containers.all();
    let prefix = filter.id.as_deref().unwrap_or("");
    let sandbox = match filter.sandbox.as_deref().map(|prefix| node.sandboxes.find(prefix, |_| true)) {
        None => None,
        Some(Ok(sandbox)) => Some(sandbox.id().to_owned()),
        Some(Err(_)) => return Vec::new(),
    };
    let mut views: Vec<_> = all
        .values()
        .filter(|container| container.id().starts_with(prefix))
        .filter(|container| sandbox.as_ref().is_none_or(|id| container.identity.sandbox == *id))
        .filter_map(|container| container.view())
        .filter(|view| filter.phase.is_none_or(|phase| phase == PhaseFilter::of(&view.phase)))
        .filter(|view| has_labels(&view.config.labels, &filter.labels))
        .collect();
    // A prefix names one object or none, as it does everywhere else.
    if filter.id.is_some() && views.len() > 1 {
        views.retain(|view| view.id == prefix);
    }
    views.sort_by_key(|view| view.created_at);
    views
}

impl PhaseFilter {
    /// The filter that finds containers in this phase.
    pub const fn of(phase: &ContainerPhase) -> Self {
        match phase {
            ContainerPhase::Created => Self::Created,
            ContainerPhase::Running { .. } => Self::Running,
            ContainerPhase::Exited { .. } => Self::Exited,
            ContainerPhase::Unknown => Self::Unknown,
        }
    }
}
