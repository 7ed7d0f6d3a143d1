//! Views of sandboxes and containers become replies. What a kubelet sent comes back as it was.

use super::super::wire;
use super::signal;
use crate::container::config::{Mount, MountPropagation, Resources};
use crate::container::{ContainerPhase, ContainerView, ResolvedUser};
use crate::sandbox::SandboxView;
use crate::sandbox::config::{NamespaceMode, SandboxConfig, SandboxName, UserNamespace};

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

pub(super) fn sandbox_name(name: &SandboxName) -> wire::PodSandboxMetadata {
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
            userns_options: config.user_namespace.map(|own| wire::UserNamespace {
                mode: wire::NamespaceMode::Pod.into(),
                uids: vec![mapping(own)],
                gids: vec![mapping(own)],
            }),
            ..Default::default()
        }),
    }
}

fn mapping(ids: UserNamespace) -> wire::IdMapping {
    wire::IdMapping { container_id: 0, host_id: ids.host_id, length: ids.length }
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
        mounts: config
            .mounts
            .iter()
            .enumerate()
            .map(|(index, sent)| {
                let image = view.volume_images.iter().find(|(mount, _)| *mount == index);
                mount(sent, image.map(|(_, id)| id.as_str()).unwrap_or_default())
            })
            .collect(),
        // Built from a log directory and a log path, which were both strings of the request.
        log_path: view.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(wire::ContainerResources {
            linux: Some(resources(&view.resources)),
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

pub(super) fn container_name(view: &ContainerView) -> wire::ContainerMetadata {
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

/// As it was sent; an image with the id that it was found to have.
fn mount(mount: &Mount, image_id: &str) -> wire::Mount {
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
        recursive_read_only: mount.recursive_readonly,
        uid_mappings: mount.mapping.map(mapping).into_iter().collect(),
        gid_mappings: mount.mapping.map(mapping).into_iter().collect(),
        mount_options: mount.options.iter().map(|option| option.as_str().to_owned()).collect(),
        image: mount.image.as_ref().map(|image| wire::ImageSpec {
            image: image.image.clone(),
            annotations: image.annotations.clone(),
            user_specified_image: image.user_specified_image.clone(),
            runtime_handler: image.runtime_handler.clone(),
            image_ref: image_id.to_owned(),
        }),
        image_sub_path: mount.image.as_ref().map(|image| image.sub_path.clone()).unwrap_or_default(),
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
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|(page_size, limit)| wire::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
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

#[cfg(test)]
pub(in crate::api) mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::{container as convert_container, sandbox as convert_sandbox};
    use super::*;
    use crate::config::Config;
    use crate::container::state::ExitReason;

    fn sandbox_config() -> wire::PodSandboxConfig {
        wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "n".into(),
                attempt: 3,
            }),
            labels: [("l\n".into(), "\u{0}".into())].into(),
            annotations: [("a".into(), "{\n}".into())].into(),
            ..Default::default()
        }
    }

    fn sandbox_view() -> SandboxView {
        let request =
            wire::RunPodSandboxRequest { config: Some(sandbox_config()), runtime_handler: String::new() };
        SandboxView {
            id: "5".repeat(64),
            config: Arc::new(convert_sandbox::config(request, &Config::default()).unwrap()),
            created_at: 7,
            ready: true,
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            pid: Some(42),
            netns: None,
            steps: Vec::new(),
            attachment: None,
            reason: String::new(),
        }
    }

    fn container_config() -> wire::ContainerConfig {
        wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: "c".into(), attempt: 1 }),
            image: Some(wire::ImageSpec { image: "sha256:aa".into(), ..Default::default() }),
            labels: [("l\n".into(), "\u{0}".into())].into(),
            mounts: vec![
                wire::Mount {
                    container_path: "/data".into(),
                    host_path: "/srv//x/".into(),
                    readonly: true,
                    selinux_relabel: true,
                    propagation: 1,
                    ..Default::default()
                },
                wire::Mount {
                    container_path: "/image".into(),
                    readonly: true,
                    image: Some(wire::ImageSpec {
                        image: "r/v:1".into(),
                        annotations: [("a".into(), "b".into())].into(),
                        user_specified_image: "v".into(),
                        runtime_handler: "h".into(),
                        image_ref: "sha256:cc".into(),
                    }),
                    image_sub_path: "a/b".into(),
                    ..Default::default()
                },
            ],
            linux: Some(wire::LinuxContainerConfig {
                resources: Some(wire::LinuxContainerResources {
                    cpu_shares: 102,
                    memory_limit_in_bytes: 1 << 20,
                    oom_score_adj: -997,
                    cpuset_cpus: "0-1".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub(in crate::api) fn container_view(phase: ContainerPhase) -> ContainerView {
        let config = convert_container::config(Some(container_config()), &sandbox_view().config).unwrap();
        ContainerView {
            id: "c".repeat(64),
            sandbox: "5".repeat(64),
            resources: config.resources.clone(),
            config: Arc::new(config),
            image_id: "sha256:aa".into(),
            image_ref: "r/i@sha256:bb".into(),
            image_name: "r/i:1".into(),
            volume_images: vec![(1, "sha256:cc".into())],
            created_at: 8,
            phase,
            user: Some(ResolvedUser { uid: 1, gid: 2, groups: vec![2, 3] }),
            log_path: Some(PathBuf::from("/var/log/pods/x/c/0.log")),
            pid: Some(43),
            stop_signal: 15,
            steps: Vec::new(),
            bundle: PathBuf::from("/nowhere"),
        }
    }

    #[test]
    fn a_sandbox_comes_back_as_it_was_sent() {
        let (sent, status) = (sandbox_config(), sandbox(&sandbox_view()));
        assert_eq!((status.metadata, &status.labels), (sent.metadata, &sent.labels));
        assert_eq!(status.annotations, sent.annotations);
        let network = status.network.unwrap();
        assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.0.0.2", "fd00::2"));
        let stopped = SandboxView { ready: false, addresses: Vec::new(), ..sandbox_view() };
        assert_eq!(sandbox_item(&stopped).state, 1);
        let network = sandbox(&stopped).network.unwrap();
        assert!(network.ip.is_empty() && network.additional_ips.is_empty());
    }

    #[test]
    fn a_container_comes_back_as_it_was_sent() {
        let sent = container_config();
        let status = container(&container_view(ContainerPhase::Created));
        assert_eq!(
            (status.metadata, status.labels, status.mounts),
            (sent.metadata, sent.labels, sent.mounts)
        );
        assert_eq!(status.resources.unwrap().linux, sent.linux.unwrap().resources);
        assert_eq!(status.image.unwrap().image, "r/i:1");
        assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), ("r/i@sha256:bb", "sha256:aa"));
        assert_eq!(status.log_path, "/var/log/pods/x/c/0.log");
        assert_eq!(status.stop_signal, i32::from(wire::Signal::Sigterm));
        assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [2, 3]);
        let item = container_item(&container_view(ContainerPhase::Created));
        assert_eq!(item.image.unwrap().image, "sha256:aa", "a list names the image as the request did");
    }

    #[test]
    fn phases_have_their_states_and_times() {
        let exited = ContainerPhase::Exited {
            started_at: 9,
            finished_at: 10,
            exit_code: 137,
            reason: ExitReason::OOMKilled,
            message: "m".into(),
        };
        let cases = [
            (ContainerPhase::Created, (0, 0, 0, 0, "")),
            (ContainerPhase::Running { started_at: 9 }, (1, 9, 0, 0, "")),
            (exited, (2, 9, 10, 137, "OOMKilled")),
            (ContainerPhase::Unknown, (3, 0, 0, 0, "")),
        ];
        for (phase, expected) in cases {
            let found = container(&container_view(phase));
            let times = (found.started_at, found.finished_at);
            assert_eq!((found.state, times.0, times.1, found.exit_code, found.reason.as_str()), expected);
        }
    }

    #[test]
    fn verbose_documents_have_the_names_that_tools_read() {
        let view = container_view(ContainerPhase::Created);
        let spec = super::super::verbose::read_spec(&view.bundle);
        let document = super::super::verbose::container(&view, &spec);
        assert_eq!((&document["pid"], &document["sandboxID"]), (&43.into(), &"5".repeat(64).into()));
        assert!(document["runtimeSpec"].is_null(), "there is no spec to read");
        assert_eq!(super::super::verbose::sandbox(&sandbox_view())["pid"], 42);
    }
}
