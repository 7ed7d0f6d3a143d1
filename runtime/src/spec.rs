//! From an OCI runtime spec to what a builder is asked to do. A field of the spec that is not built is refused by
//! name, never dropped.
//! STUB of the interface; its owner replaces it.

use std::path::Path;

use crate::build::request::{ContainerSpec, ProcessSpec, Rootfs, User};

/// Why a spec cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} of the OCI spec: {reason}")]
pub struct SpecError {
    /// JSON path of the field.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A container from its spec. `rootfs` and `user` say what the spec cannot: layers, and names resolved later.
pub fn container(
    id: &str,
    spec: &oci_spec::runtime::Spec,
    rootfs: Rootfs,
    user: User,
) -> Result<ContainerSpec, SpecError> {
    let _ = (id, spec, rootfs, user);
    todo!()
}

/// A process from its spec, for an exec.
pub fn process(process: &oci_spec::runtime::Process, user: User) -> Result<ProcessSpec, SpecError> {
    let _ = (process, user);
    todo!()
}

/// Limits from the `linux.resources` of a spec.
pub fn limits(resources: &oci_spec::runtime::LinuxResources) -> crate::cgroup::Limits {
    let _ = (resources, Path::new("/"));
    todo!()
}
