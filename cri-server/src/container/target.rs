//! The container whose PID namespace another one shares: how `kubectl debug --target` looks at what runs.

use super::config::PidNamespace;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::sandbox::live::Sandbox;

const FIELD: &str = "config.linux.security_context.namespace_options.target_id";

/// The PID namespace that was asked for, with the whole id of its target: a container of the same sandbox.
pub fn find(node: &Node, sandbox: &Sandbox, asked: &PidNamespace) -> Result<PidNamespace, Error> {
    let PidNamespace::Target(id) = asked else { return Ok(asked.clone()) };
    let target = node.containers.find(id, |container| container.view().is_some());
    let target = target.map_err(|error| Error::invalid(FIELD, error.to_string()))?;
    let of = &target.identity.sandbox;
    if of != sandbox.id() {
        let reason = format!("container {} is of sandbox {of}, not of {}", target.id(), sandbox.id());
        return Err(Error::invalid(FIELD, reason));
    }
    Ok(PidNamespace::Target(target.id().to_owned()))
}

/// Refuses a target that does not run: its PID namespace has ended with it.
pub fn check(node: &Node, asked: &PidNamespace) -> Result<(), Error> {
    let PidNamespace::Target(id) = asked else { return Ok(()) };
    let state = node.containers.get(id).map(|target| target.state());
    if state.as_ref().is_some_and(|state| state.process().is_some()) {
        return Ok(());
    }
    Err(Error::WrongState {
        kind: Kind::Container,
        id: id.clone(),
        state: state.map_or("gone", |state| state.stage.word()),
        needed: "a container whose PID namespace is to be shared must be running",
    })
}
