//! The OCI spec that a request becomes, against `snapshots/NAME.json`: who changes what containers are given sees it
//! here, line by line. To write them anew: `COVE_SNAPSHOTS=write cargo test -p cove snapshots`, then read the diff.
//!
//! What depends on the machine is replaced by words: its limits, and the capabilities and devices of the privileged.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{convert, wire};
use crate::config::Config;
use crate::container::image_volume::VolumeImage;
use crate::container::spec::{Sources, prepare};
use crate::image::{Image, ImageConfig};
use crate::sandbox::live::Sandbox;
use crate::sandbox::record::SandboxIdentity;

/// Docker's default set has fourteen; a longer list is every one that the kernel has.
const DEFAULT_CAPABILITIES: usize = 14;

fn pod(privileged: bool) -> wire::PodSandboxConfig {
    wire::PodSandboxConfig {
        metadata: Some(wire::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "9f2b".into(),
            namespace: "shop".into(),
            attempt: 0,
        }),
        hostname: "web-0".into(),
        linux: Some(wire::LinuxPodSandboxConfig {
            security_context: Some(wire::LinuxSandboxSecurityContext { privileged, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn smallest() -> wire::ContainerConfig {
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(wire::ImageSpec { image: "registry/web:1".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn env(key: &str, value: &str) -> wire::KeyValue {
    wire::KeyValue { key: key.into(), value: value.into() }
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// What a kubelet sends for an ordinary container: probes of its kind are in cluster.md.
fn of_a_kubelet() -> wire::ContainerConfig {
    let volumes = "/var/lib/kubelet/pods/9f2b/volumes";
    let profile = |kind| Some(wire::SecurityProfile { profile_type: kind, ..Default::default() });
    wire::ContainerConfig {
        command: strings(&["/bin/web"]),
        args: strings(&["--port", "8080"]),
        envs: vec![env("KUBERNETES_SERVICE_HOST", "10.0.0.1"), env("KUBERNETES_SERVICE_PORT", "443")],
        mounts: vec![
            wire::Mount {
                container_path: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
                host_path: format!("{volumes}/kubernetes.io~projected/token"),
                readonly: true,
                ..Default::default()
            },
            wire::Mount {
                container_path: "/etc/hosts".into(),
                host_path: "/var/lib/kubelet/pods/9f2b/etc-hosts".into(),
                ..Default::default()
            },
            wire::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: "/var/lib/kubelet/pods/9f2b/containers/web/5d1c".into(),
                ..Default::default()
            },
        ],
        log_path: "web/0.log".into(),
        linux: Some(wire::LinuxContainerConfig {
            resources: Some(wire::LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                cpu_shares: 256,
                memory_limit_in_bytes: 128 << 20,
                oom_score_adj: 996,
                hugepage_limits: vec![wire::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
                ..Default::default()
            }),
            security_context: Some(wire::LinuxContainerSecurityContext {
                namespace_options: Some(wire::NamespaceOption { pid: 1, ..Default::default() }),
                run_as_user: Some(wire::Int64Value { value: 1000 }),
                no_new_privs: true,
                seccomp: profile(0),
                masked_paths: strings(&["/proc/asound", "/proc/acpi", "/proc/kcore", "/sys/firmware"]),
                readonly_paths: strings(&["/proc/bus", "/proc/fs", "/proc/sys"]),
                ..Default::default()
            }),
        }),
        ..smallest()
    }
}

fn privileged() -> wire::ContainerConfig {
    let mut config = of_a_kubelet();
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.privileged = true;
    config.mounts.push(wire::Mount {
        container_path: "/host".into(),
        host_path: "/".into(),
        propagation: wire::MountPropagation::PropagationBidirectional.into(),
        ..Default::default()
    });
    config
}

/// Every field that has a word in the spec, away from its default.
fn everything() -> wire::ContainerConfig {
    let mut config = of_a_kubelet();
    config.working_dir = "/srv".into();
    config.stdin = true;
    config.tty = true;
    config.devices.push(wire::Device {
        container_path: "/dev/nothing".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    });
    config.mounts.extend([
        wire::Mount {
            container_path: "/image".into(),
            readonly: true,
            image: Some(wire::ImageSpec { image: "registry/data:1".into(), ..Default::default() }),
            image_sub_path: "share/data".into(),
            mount_options: strings(&["noexec"]),
            ..Default::default()
        },
        wire::Mount {
            container_path: "/deep".into(),
            host_path: "/srv/deep".into(),
            readonly: true,
            recursive_read_only: true,
            mount_options: strings(&["nosuid", "nodev"]),
            ..Default::default()
        },
        wire::Mount {
            container_path: "/follows".into(),
            host_path: "/srv/follows".into(),
            propagation: wire::MountPropagation::PropagationHostToContainer.into(),
            ..Default::default()
        },
    ]);
    let linux = config.linux.get_or_insert_default();
    let resources = linux.resources.get_or_insert_default();
    resources.memory_swap_limit_in_bytes = 256 << 20;
    resources.cpuset_cpus = "0-1".into();
    resources.cpuset_mems = "0".into();
    resources.hugepage_limits[0].limit = 4 << 20;
    let context = linux.security_context.get_or_insert_default();
    context.capabilities = Some(wire::Capability {
        add_capabilities: strings(&["NET_ADMIN"]),
        drop_capabilities: strings(&["ALL"]),
        add_ambient_capabilities: strings(&["NET_ADMIN"]),
    });
    context.run_as_group = Some(wire::Int64Value { value: 1001 });
    context.supplemental_groups = vec![2000, 2001];
    context.readonly_rootfs = true;
    config
}

fn spec_of(pod: wire::PodSandboxConfig, container: wire::ContainerConfig) -> Value {
    let request = wire::RunPodSandboxRequest { config: Some(pod), ..Default::default() };
    let pod = convert::sandbox::config(request, &Config::default()).unwrap();
    let config = convert::container::config(Some(container), &pod).unwrap();
    let identity = SandboxIdentity {
        id: "5".repeat(64),
        config: Arc::new(pod),
        created_at: 1,
        netns: None,
        cgroup: "/kubepods/pod9f2b".into(),
        own_cgroup: false,
        shm_size: 64 << 20,
        volatile: true,
    };
    let (root, run) = (Path::new("/var/lib/cove"), Path::new("/run/cove"));
    let sandbox = Sandbox::new(root, run, identity, Default::default(), None, Default::default());
    let image = Image {
        id: "sha256:1".into(),
        repo_tags: strings(&["registry/web:1"]),
        repo_digests: Vec::new(),
        size: 1,
        pinned: false,
        config: ImageConfig {
            user: "web".into(),
            env: strings(&["PATH=/bin:/usr/bin", "LANG=C.UTF-8"]),
            entrypoint: strings(&["/bin/entry"]),
            cmd: strings(&["serve"]),
            volumes: strings(&["/var/lib/web"]),
            ..ImageConfig::default()
        },
        layers: vec!["/var/lib/cove/images/layers/a/fs".into()],
    };
    let volume_images: Vec<VolumeImage> = config
        .mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| mount.image.is_some())
        .map(|(mount, _)| VolumeImage {
            mount,
            image_id: "sha256:2".into(),
            layers: vec![
                "/var/lib/cove/images/layers/c/fs".into(),
                "/var/lib/cove/images/layers/b/fs".into(),
            ],
        })
        .collect();
    let sources = Sources {
        image: &image,
        volume_images: &volume_images,
        volumes: Path::new("/var/lib/cove/containers/c/volumes"),
    };
    let mut spec = prepare(&sandbox, &config, &sources, false, &[]).unwrap().spec;
    forget_the_machine(&mut spec);
    spec
}

fn forget_the_machine(spec: &mut Value) {
    for limit in spec["process"]["rlimits"].as_array_mut().unwrap() {
        limit["hard"] = json!("as high as the daemon's");
        if limit["type"] == "RLIMIT_NPROC" {
            limit["soft"] = json!("as high as the daemon's");
        }
    }
    for set in spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        if set.as_array().is_some_and(|names| names.len() > DEFAULT_CAPABILITIES) {
            *set = json!("every one of the kernel");
        }
    }
    if let Some(profile) = spec.pointer_mut("/linux/seccomp") {
        *profile = json!("the default profile of this architecture");
    }
    if spec.pointer("/linux/devices").and_then(Value::as_array).is_some_and(|nodes| nodes.len() > 3) {
        spec["linux"]["devices"] = json!("every one of the host");
    }
}

/// The lines that differ, with those before and after that do not left out.
fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut old.iter().zip(&new));
    let tail = same(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
    let mut text = format!("from line {}:\n", head + 1);
    for (sign, lines) in [('-', &old[head..old.len() - tail]), ('+', &new[head..new.len() - tail])] {
        for line in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    text
}

#[test]
fn specs_are_those_that_are_written_down() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/api/snapshots");
    let write = std::env::var_os("COVE_SNAPSHOTS").is_some_and(|value| value == "write");
    let mut wrong = String::new();
    for (name, pod, container) in [
        ("minimal", pod(false), smallest()),
        ("kubelet", pod(false), of_a_kubelet()),
        ("privileged", pod(true), privileged()),
        ("everything", pod(false), everything()),
    ] {
        let found = format!("{}\n", serde_json::to_string_pretty(&spec_of(pod, container)).unwrap());
        let path = directory.join(format!("{name}.json"));
        if write {
            std::fs::write(&path, &found).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if expected != found {
            let _ = writeln!(wrong, "{}: {}", path.display(), difference(&expected, &found));
        }
    }
    assert!(wrong.is_empty(), "COVE_SNAPSHOTS=write writes them anew\n{wrong}");
}

#[test]
fn a_difference_is_told_by_its_lines() {
    assert_eq!(difference("a\nb\nc\nd\n", "a\nx\ny\nd\n"), "from line 2:\n- b\n- c\n+ x\n+ y\n");
    assert_eq!(difference("a\nd\n", "a\nb\nd\n"), "from line 2:\n+ b\n");
    assert_eq!(difference("a\n", "a\na\n"), "from line 2:\n+ a\n");
}
