//! Filters of lists: every condition given must hold, none given means everything.

use super::super::wire;
use super::field::known;
use crate::container::list::{ContainerFilter, PhaseFilter};
use crate::error::Error;
use crate::sandbox::list::SandboxFilter;

/// Of ListPodSandbox.
pub(in crate::api) fn sandboxes(filter: Option<wire::PodSandboxFilter>) -> Result<SandboxFilter, Error> {
    let Some(filter) = filter else { return Ok(SandboxFilter::default()) };
    let ready = match filter.state {
        None => None,
        Some(value) => {
            let state: wire::PodSandboxState = known("filter.state.state", value.state)?;
            Some(state == wire::PodSandboxState::SandboxReady)
        }
    };
    Ok(SandboxFilter { id: given(filter.id), ready, labels: filter.label_selector })
}

/// Of ListContainers.
pub(in crate::api) fn containers(filter: Option<wire::ContainerFilter>) -> Result<ContainerFilter, Error> {
    let Some(filter) = filter else { return Ok(ContainerFilter::default()) };
    let phase = match filter.state {
        None => None,
        Some(value) => Some(match known("filter.state.state", value.state)? {
            wire::ContainerState::ContainerCreated => PhaseFilter::Created,
            wire::ContainerState::ContainerRunning => PhaseFilter::Running,
            wire::ContainerState::ContainerExited => PhaseFilter::Exited,
            wire::ContainerState::ContainerUnknown => PhaseFilter::Unknown,
        }),
    };
    Ok(ContainerFilter {
        id: given(filter.id),
        sandbox: given(filter.pod_sandbox_id),
        phase,
        labels: filter.label_selector,
    })
}

/// An empty string is how the wire says "not given".
fn given(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_no_condition() {
        for filter in [None, Some(wire::PodSandboxFilter::default())] {
            let filter = sandboxes(filter).unwrap();
            assert!(filter.id.is_none() && filter.ready.is_none() && filter.labels.is_empty());
        }
        for filter in [None, Some(wire::ContainerFilter::default())] {
            let filter = containers(filter).unwrap();
            assert!(filter.id.is_none() && filter.sandbox.is_none() && filter.phase.is_none());
        }
    }

    #[test]
    fn states_are_carried_and_unknown_ones_refused() {
        let state = |state| Some(wire::PodSandboxStateValue { state });
        let filter = |state| wire::PodSandboxFilter { state, ..Default::default() };
        assert_eq!(sandboxes(Some(filter(state(0)))).unwrap().ready, Some(true));
        assert_eq!(sandboxes(Some(filter(state(1)))).unwrap().ready, Some(false));
        assert!(sandboxes(Some(filter(state(7)))).is_err());
        let expected =
            [PhaseFilter::Created, PhaseFilter::Running, PhaseFilter::Exited, PhaseFilter::Unknown];
        for (state, phase) in (0..).zip(expected) {
            let state = Some(wire::ContainerStateValue { state });
            let filter = wire::ContainerFilter { state, ..Default::default() };
            assert_eq!(containers(Some(filter)).unwrap().phase, Some(phase));
        }
    }
}
