//! Views of sandboxes and containers become replies. What a kubelet sent comes back as it was.

use super::super::wire;
use super::signal;
use crate::container::config::{Mount, MountPropagation, Resources};
use crate::container::{ContainerPhase, ContainerView, ResolvedUser};
use crate::sandbox::SandboxView;
use crate::sandbox::config::{NamespaceMode, SandboxConfig, SandboxName};

/// An item of ListPodSandbox.
pub(in crate::api) fn sandbox_item(view: &SandboxView) -> wire::PodSandbox {
    wire::PodSandbox {
        id: view.id.clone(),
        metadata: Some(sandbox_name(&view.config.name)),
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        runtime_handler: view.config.runtime_handler.clone(),
    }
}

/// The status of PodSandboxStatus.
pub(in crate::api) fn sandbox(view: &SandboxView) -> wire::PodSandboxStatus {
    let mut addresses = view.addresses.iter().map(ToString::to_string);
    wire::PodSandboxStatus {
        id: view.id.clone(),
        metadata: Some(sandbox_name(&view.config.name)),
        state: sandbox_state(view).into(),
        created_at: view.created_at,
        network: Some(wire::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| wire::PodIp { ip }).collect(),
        }),
        linux: Some(wire::LinuxPodSandboxStatus { namespaces: Some(namespaces(&view.config)) }),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        runtime_handler: view.config.runtime_handler.clone(),
    }
}

fn sandbox_name(name: &SandboxName) -> wire::PodSandboxMetadata {
    wire::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

fn sandbox_state(view: &SandboxView) -> wire::PodSandboxState {
    if view.ready { wire::PodSandboxState::SandboxReady } else { wire::PodSandboxState::SandboxNotready }
}

/// As requested: a kubelet that finds another network mode kills the pod.
fn namespaces(config: &SandboxConfig) -> wire::Namespace {
    wire::Namespace {
        options: Some(wire::NamespaceOption {
            network: namespace(config.network).into(),
            pid: namespace(config.pid).into(),
            ipc: namespace(config.ipc).into(),
            ..Default::default()
        }),
    }
}

fn namespace(mode: NamespaceMode) -> wire::NamespaceMode {
    match mode {
        NamespaceMode::Pod => wire::NamespaceMode::Pod,
        NamespaceMode::Container => wire::NamespaceMode::Container,
        NamespaceMode::Node => wire::NamespaceMode::Node,
    }
}

/// An item of ListContainers.
pub(in crate::api) fn container_item(view: &ContainerView) -> wire::Container {
    wire::Container {
        id: view.id.clone(),
        pod_sandbox_id: view.sandbox.clone(),
        metadata: Some(container_name(view)),
        image: Some(wire::ImageSpec {
            image: view.config.image.clone(),
            user_specified_image: view.config.user_specified_image.clone(),
            ..Default::default()
        }),
        image_ref: view.image_ref.clone(),
        state: container_state(&view.phase).into(),
        created_at: view.created_at,
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.clone(),
        image_id: view.image_id.clone(),
    }
}

/// The status of ContainerStatus.
pub(in crate::api) fn container(view: &ContainerView) -> wire::ContainerStatus {
    let config = &view.config;
    let mut status = wire::ContainerStatus {
        id: view.id.clone(),
        metadata: Some(container_name(view)),
        state: container_state(&view.phase).into(),
        created_at: view.created_at,
        image: Some(wire::ImageSpec {
            image: view.image_name.clone(),
            user_specified_image: config.user_specified_image.clone(),
            ..Default::default()
        }),
        image_ref: view.image_ref.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: config.mounts.iter().map(mount).collect(),
        // Built from a log directory and a log path, which were both strings of the request.
        log_path: view.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(wire::ContainerResources {
            linux: Some(resources(&config.resources)),
            ..Default::default()
        }),
        image_id: view.image_id.clone(),
        user: view.user.as_ref().map(user),
        stop_signal: signal::name(view.stop_signal).into(),
        ..Default::default()
    };
    times(&view.phase, &mut status);
    status
}

fn times(phase: &ContainerPhase, status: &mut wire::ContainerStatus) {
    match phase {
        ContainerPhase::Created | ContainerPhase::Unknown => {}
        ContainerPhase::Running { started_at } => status.started_at = *started_at,
        ContainerPhase::Exited { started_at, finished_at, exit_code, reason, message } => {
            status.started_at = *started_at;
            status.finished_at = *finished_at;
            status.exit_code = *exit_code;
            reason.as_str().clone_into(&mut status.reason);
            message.clone_into(&mut status.message);
        }
    }
}

fn container_name(view: &ContainerView) -> wire::ContainerMetadata {
    wire::ContainerMetadata { name: view.config.name.name.clone(), attempt: view.config.name.attempt }
}

fn container_state(phase: &ContainerPhase) -> wire::ContainerState {
    match phase {
        ContainerPhase::Created => wire::ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => wire::ContainerState::ContainerRunning,
        ContainerPhase::Exited { .. } => wire::ContainerState::ContainerExited,
        ContainerPhase::Unknown => wire::ContainerState::ContainerUnknown,
    }
}

fn mount(mount: &Mount) -> wire::Mount {
    let propagation = match mount.propagation {
        MountPropagation::Private => wire::MountPropagation::PropagationPrivate,
        MountPropagation::HostToContainer => wire::MountPropagation::PropagationHostToContainer,
        MountPropagation::Bidirectional => wire::MountPropagation::PropagationBidirectional,
    };
    wire::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        ..Default::default()
    }
}

fn resources(resources: &Resources) -> wire::LinuxContainerResources {
    wire::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        ..Default::default()
    }
}

fn user(user: &ResolvedUser) -> wire::ContainerUser {
    wire::ContainerUser {
        linux: Some(wire::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|group| i64::from(*group)).collect(),
        }),
    }
}
