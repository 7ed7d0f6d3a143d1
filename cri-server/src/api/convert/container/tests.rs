//! Of requests as they come to what is made of them.

use super::super::sandbox as convert_sandbox;
use super::*;
use crate::config::Config;
use crate::container::config::{AppArmor, MountPropagation, Resources, Seccomp};

fn sandbox(privileged: bool, pid: i32) -> SandboxConfig {
    let security = wire::LinuxSandboxSecurityContext {
        privileged,
        namespace_options: Some(wire::NamespaceOption { pid, ..Default::default() }),
        ..Default::default()
    };
    let linux = wire::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    let metadata = wire::PodSandboxMetadata { name: "p".into(), namespace: "n".into(), ..Default::default() };
    let config =
        wire::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
    let request = wire::RunPodSandboxRequest { config: Some(config), ..Default::default() };
    convert_sandbox::config(request, &Config::default()).unwrap()
}

fn smallest() -> wire::ContainerConfig {
    wire::ContainerConfig {
        metadata: Some(wire::ContainerMetadata { name: "c".into(), attempt: 1 }),
        image: Some(wire::ImageSpec { image: "sha256:aa".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn changed(change: impl FnOnce(&mut wire::ContainerConfig)) -> wire::ContainerConfig {
    let mut config = smallest();
    change(&mut config);
    config
}

fn with_security(change: impl FnOnce(&mut wire::LinuxContainerSecurityContext)) -> wire::ContainerConfig {
    changed(|config| {
        change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    })
}

fn with_resources(change: impl FnOnce(&mut wire::LinuxContainerResources)) -> wire::ContainerConfig {
    changed(|config| change(config.linux.get_or_insert_default().resources.get_or_insert_default()))
}

fn with_device(host: &str, inside: &str, permissions: &str) -> wire::ContainerConfig {
    changed(|config| {
        config.devices.push(wire::Device {
            container_path: inside.into(),
            host_path: host.into(),
            permissions: permissions.into(),
        });
    })
}

fn with_mount(change: impl FnOnce(&mut wire::Mount)) -> wire::ContainerConfig {
    changed(|config| {
        let mut mount =
            wire::Mount { container_path: "/data".into(), host_path: "/srv/x".into(), ..Default::default() };
        change(&mut mount);
        config.mounts.push(mount);
    })
}

fn take(wire: wire::ContainerConfig) -> ContainerConfig {
    config(Some(wire), &sandbox(false, 0)).unwrap()
}

fn refused(wire: wire::ContainerConfig, field: &str) {
    refused_in(&sandbox(false, 0), wire, field);
}

fn refused_in(sandbox: &SandboxConfig, wire: wire::ContainerConfig, field: &str) {
    match config(Some(wire), sandbox) {
        Err(Error::InvalidArgument { field: found, .. }) => assert_eq!(found, field),
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn the_smallest_request_is_taken() {
    let container = take(smallest());
    assert_eq!((container.name.name.as_str(), container.name.attempt), ("c", 1));
    assert_eq!((container.pid, container.resources), (PidNamespace::Pod, Resources::default()));
    assert!(container.log_path.is_none() && container.stop_signal.is_none() && !container.privileged);
}

#[test]
fn values_are_carried_as_they_were_sent() {
    let bytes = wire::KeyValue { key: "HOME".into(), value: b"/a\n\xff".to_vec() };
    let container = take(changed(|config| {
        config.envs.push(bytes);
        config.log_path = "c/0.log".into();
        config.stop_signal = wire::Signal::Sigusr1.into();
        config.labels.insert("k\n".into(), "v\u{0}".into());
    }));
    assert_eq!(container.envs, [("HOME".to_owned(), b"/a\n\xff".to_vec())]);
    assert_eq!((container.log_path, container.stop_signal), (Some(PathBuf::from("c/0.log")), Some(10)));
    assert_eq!(container.labels["k\n"], "v\u{0}");
    let mount = take(with_mount(|mount| {
        mount.host_path = "/srv//x/".into();
        mount.propagation = 2;
        mount.selinux_relabel = true;
    }));
    assert_eq!(mount.mounts[0].host_path, "/srv//x/", "a kubelet finds its mounts by these strings");
    assert_eq!(mount.mounts[0].propagation, MountPropagation::Bidirectional);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let profile = |kind| Some(wire::SecurityProfile { profile_type: kind, ..Default::default() });
    let target = wire::NamespaceOption { pid: 3, ..Default::default() };
    let userns =
        wire::NamespaceOption { userns_options: Some(wire::UserNamespace::default()), ..Default::default() };
    let page = wire::HugepageLimit { page_size: "2MB/../x".into(), limit: 1 };
    let cases = [
        (changed(|config| config.devices.push(wire::Device::default())), "config.devices[0].host_path"),
        (with_device("/dev/null", "/etc/x", "rw"), "config.devices[0].container_path"),
        (with_device("/dev/null", "/dev", "rw"), "config.devices[0].container_path"),
        (with_device("/dev/null", "/dev/../etc", "rw"), "config.devices[0].container_path"),
        (with_device("/dev/null", "", ""), "config.devices[0].permissions"),
        (with_device("/dev/null", "", "rx"), "config.devices[0].permissions"),
        (with_device("/dev/null", "", "rr"), "config.devices[0].permissions"),
        (changed(|config| config.cdi_devices.push(wire::CdiDevice::default())), "config.CDI_devices[0].name"),
        (
            changed(|config| drop(config.annotations.insert("cdi.k8s.io/x".into(), "v/c=d,gpu".into()))),
            "config.annotations[\"cdi.k8s.io/x\"]",
        ),
        (changed(|config| config.windows = Some(wire::WindowsContainerConfig::default())), "config.windows"),
        (with_mount(|mount| mount.image_sub_path = "a".into()), "config.mounts[0].image_sub_path"),
        (with_mount(|mount| mount.recursive_read_only = true), "config.mounts[0].recursive_read_only"),
        (
            with_mount(|mount| mount.mount_options.push("noexec,suid".into())),
            "config.mounts[0].mount_options[0]",
        ),
        (with_mount(|mount| mount.mount_options.push("ro".into())), "config.mounts[0].mount_options[0]"),
        (
            with_mount(|mount| {
                (mount.recursive_read_only, mount.readonly, mount.propagation) = (true, true, 1);
            }),
            "config.mounts[0].recursive_read_only",
        ),
        (
            with_mount(|mount| mount.uid_mappings.push(wire::IdMapping::default())),
            "config.mounts[0].uidMappings[0]",
        ),
        // Those of users are what is missing.
        (
            with_mount(|mount| mount.gid_mappings.push(wire::IdMapping::default())),
            "config.mounts[0].uidMappings",
        ),
        (
            with_resources(|limits| limits.hugepage_limits.push(page)),
            "config.linux.resources.hugepage_limits[0].page_size",
        ),
        (
            with_resources(|limits| drop(limits.unified.insert("a b".into(), "c".into()))),
            "config.linux.resources.unified",
        ),
        (
            with_security(|context| context.seccomp = profile(2)),
            "config.linux.security_context.seccomp.localhost_ref",
        ),
        (
            with_security(|context| context.apparmor = profile(2)),
            "config.linux.security_context.apparmor.localhost_ref",
        ),
        (
            with_security(|context| context.namespace_options = Some(target)),
            "config.linux.security_context.namespace_options.target_id",
        ),
        (
            with_security(|context| context.namespace_options = Some(userns)),
            "config.linux.security_context.namespace_options.userns_options.uids",
        ),
    ];
    for (wire, field) in cases {
        refused(wire, field);
    }
}

#[test]
fn the_user_namespace_is_the_pods() {
    let line = |length| vec![wire::IdMapping { container_id: 0, host_id: 1000, length }];
    let userns = |mode, length| {
        let lines = if mode == 0 { line(length) } else { Vec::new() };
        let userns_options = Some(wire::UserNamespace { mode, uids: lines.clone(), gids: lines });
        Some(wire::NamespaceOption { userns_options, ..Default::default() })
    };
    let pod = UserNamespace { host_id: 1000, length: 10 };
    let mapped = SandboxConfig { user_namespace: Some(pod), ..sandbox(false, 0) };
    let asks = |options| with_security(|context| context.namespace_options = options);
    let volume =
        |length| with_mount(|mount| (mount.uid_mappings, mount.gid_mappings) = (line(length), line(length)));
    for wire in [smallest(), asks(Some(wire::NamespaceOption::default())), asks(userns(0, 10))] {
        assert!(config(Some(wire), &mapped).is_ok());
    }
    assert!(config(Some(asks(userns(2, 0))), &sandbox(false, 0)).is_ok());
    let container = config(Some(volume(10)), &mapped).unwrap();
    assert_eq!(container.mounts[0].mapping, Some(pod));
    let id = |value| Some(wire::Int64Value { value });
    let context = "config.linux.security_context";
    let refusals = [
        (asks(userns(0, 11)), "namespace_options.userns_options"),
        (asks(userns(2, 0)), "namespace_options.userns_options"),
        (asks(Some(wire::NamespaceOption { pid: 2, ..Default::default() })), "namespace_options.pid"),
        (with_security(|context| context.run_as_user = id(10)), "run_as_user"),
        (with_security(|context| context.supplemental_groups = vec![9, 10]), "supplemental_groups[1]"),
    ];
    for (wire, field) in refusals {
        refused_in(&mapped, wire, &format!("{context}.{field}"));
    }
    refused_in(&mapped, volume(9), "config.mounts[0].uidMappings");
    refused(volume(10), "config.mounts[0].uidMappings");
    refused(asks(userns(0, 10)), &format!("{context}.namespace_options.userns_options"));
}

#[test]
fn an_image_in_the_place_of_a_host_path() {
    let with = |change: &dyn Fn(&mut wire::Mount)| {
        with_mount(|mount| {
            mount.host_path.clear();
            mount.readonly = true;
            mount.image = Some(wire::ImageSpec { image: "i".into(), ..Default::default() });
            mount.image_sub_path = "a/b".into();
            change(mount);
        })
    };
    let taken = take(with(&|_| {})).mounts.remove(0);
    assert_eq!(taken.image.map(|image| (image.image, image.sub_path)), Some(("i".into(), "a/b".into())));
    type Change<'a> = &'a dyn Fn(&mut wire::Mount);
    let cases: [(Change<'_>, &str); 7] = [
        (&|mount| mount.image = Some(wire::ImageSpec::default()), "image.image"),
        (&|mount| mount.image.as_mut().unwrap().image.push('\n'), "image.image"),
        (&|mount| mount.host_path = "/x".into(), "host_path"),
        (&|mount| mount.readonly = false, "readonly"),
        (&|mount| mount.propagation = 2, "propagation"),
        (&|mount| mount.image_sub_path = "../x".into(), "image_sub_path"),
        (&|mount| mount.image_sub_path = "/x".into(), "image_sub_path"),
    ];
    for (change, field) in cases {
        refused(with(change), &format!("ImageVolumeMountFailed: config.mounts[0].{field}"));
    }
}

#[test]
#[expect(deprecated, reason = "what an older client sends must be refused, not dropped")]
fn older_profile_fields_are_refused_too() {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let seccomp = |path: &str| with_security(|context| context.seccomp_profile_path = path.into());
    let apparmor = |name: &str| with_security(|context| context.apparmor_profile = name.into());
    refused(seccomp("localhost/relative.json"), &field("seccomp_profile_path"));
    refused(seccomp("default"), &field("seccomp_profile_path"));
    assert_eq!(take(seccomp("runtime/default")).seccomp, Seccomp::RuntimeDefault);
    assert_eq!(take(seccomp("localhost//p.json")).seccomp, Seccomp::Localhost("/p.json".into()));
    refused(apparmor("x"), &field("apparmor_profile"));
    assert_eq!(take(apparmor("localhost/x")).apparmor, AppArmor::Localhost("x".into()));
    take(seccomp("unconfined"));
    take(apparmor("unconfined"));
}

#[test]
fn unconfined_and_empty_limits_are_nothing_to_refuse() {
    let unconfined = Some(wire::SecurityProfile { profile_type: 1, ..Default::default() });
    take(with_security(|context| {
        context.seccomp = unconfined.clone();
        context.apparmor = unconfined;
    }));
    // A kubelet sends one of these for each page size of the host.
    let none = wire::HugepageLimit { page_size: "2MB".into(), limit: 0 };
    take(with_resources(|limits| limits.hugepage_limits.push(none)));
}

#[test]
fn values_that_cannot_be_honoured_are_refused_by_field() {
    let security = |field: &str| format!("config.linux.security_context.{field}");
    let resources = |field: &str| format!("config.linux.resources.{field}");
    let mounts = |field: &str| format!("config.mounts[0].{field}");
    let id = |value| Some(wire::Int64Value { value });
    let env = |key: &str, value: &[u8]| wire::KeyValue { key: key.into(), value: value.into() };
    let cases = [
        (changed(|config| config.metadata = None), "config.metadata".into()),
        (
            changed(|config| config.metadata = Some(wire::ContainerMetadata::default())),
            "config.metadata.name".into(),
        ),
        (changed(|config| config.image = None), "config.image".into()),
        (changed(|config| config.image = Some(wire::ImageSpec::default())), "config.image.image".into()),
        (changed(|config| config.command = vec!["a\0".into()]), "config.command[0]".into()),
        (changed(|config| config.args = vec!["a".into(), "\0".into()]), "config.args[1]".into()),
        (changed(|config| config.working_dir = "tmp".into()), "config.working_dir".into()),
        (changed(|config| config.envs.push(env("", b""))), "config.envs[0].key".into()),
        (changed(|config| config.envs.push(env("a=b", b""))), "config.envs[0].key".into()),
        (changed(|config| config.envs.push(env("a", b"\0"))), "config.envs[0].value".into()),
        (changed(|config| config.log_path = "/var/log/x".into()), "config.log_path".into()),
        (changed(|config| config.log_path = "../x".into()), "config.log_path".into()),
        (changed(|config| config.stop_signal = 99), "config.stop_signal".into()),
        (with_mount(|mount| mount.container_path = "data".into()), mounts("container_path")),
        (with_mount(|mount| mount.container_path = "//".into()), mounts("container_path")),
        (with_mount(|mount| mount.container_path = "/a/../b".into()), mounts("container_path")),
        (with_mount(|mount| mount.host_path.clear()), mounts("host_path")),
        (with_mount(|mount| mount.host_path = "/a\n".into()), mounts("host_path")),
        (with_mount(|mount| mount.propagation = 7), mounts("propagation")),
        (with_resources(|limits| limits.cpu_period = 10), resources("cpu_period")),
        (with_resources(|limits| limits.cpu_quota = -2), resources("cpu_quota")),
        (with_resources(|limits| limits.cpu_shares = 1), resources("cpu_shares")),
        (with_resources(|limits| limits.memory_limit_in_bytes = -2), resources("memory_limit_in_bytes")),
        (with_resources(|limits| limits.oom_score_adj = 1001), resources("oom_score_adj")),
        (with_resources(|limits| limits.cpuset_cpus = "0-".into()), resources("cpuset_cpus")),
        (with_resources(|limits| limits.cpuset_mems = "0 1".into()), resources("cpuset_mems")),
        (with_security(|context| context.privileged = true), security("privileged")),
        (with_security(|context| context.run_as_user = id(-1)), security("run_as_user")),
        (with_security(|context| context.run_as_user = id(4_294_967_295)), security("run_as_user")),
        (with_security(|context| context.run_as_group = id(1)), security("run_as_group")),
        (with_security(|context| context.run_as_username = "a:b".into()), security("run_as_username")),
        (with_security(|context| context.run_as_username = "a\n".into()), security("run_as_username")),
        (with_security(|context| context.run_as_username = "4294967296".into()), security("run_as_username")),
        (
            with_security(|context| context.supplemental_groups = vec![0, -1]),
            security("supplemental_groups[1]"),
        ),
        (
            with_security(|context| context.supplemental_groups_policy = 5),
            security("supplemental_groups_policy"),
        ),
        (with_security(|context| context.masked_paths = vec!["proc".into()]), security("masked_paths[0]")),
        (with_security(|context| context.readonly_paths = vec!["/..".into()]), security("readonly_paths[0]")),
    ];
    for (wire, field) in cases {
        let field: String = field;
        refused(wire, &field);
    }
}

#[test]
fn devices_of_vendors_are_named_once() {
    let container = take(changed(|config| {
        let device = |name: &str| wire::CdiDevice { name: name.into() };
        config.cdi_devices = vec![device("v.com/c=2"), device("v.com/c=1"), device("v.com/c=2")];
        config.annotations.insert("cdi.k8s.io/plugin_1".into(), "v.com/c=3,v.com/c=1".into());
        config.annotations.insert("cdi.example.com/x".into(), "none of ours".into());
    }));
    assert_eq!(container.cdi_devices, ["v.com/c=2", "v.com/c=1", "v.com/c=3"]);
    assert_eq!(container.annotations.len(), 2, "given back as sent");
}

#[test]
fn capabilities_have_one_form() {
    let with = |add: &str| {
        with_security(|context| {
            let add_capabilities = vec![add.into()];
            context.capabilities = Some(wire::Capability { add_capabilities, ..Default::default() });
        })
    };
    for (text, name) in [("NET_ADMIN", "NET_ADMIN"), ("cap_sys_ptrace", "SYS_PTRACE"), ("all", "ALL")] {
        assert_eq!(take(with(text)).capabilities.add, [name]);
    }
    for bad in ["", "CAP_", "FLY", "CAP_CAP_CHOWN"] {
        refused(with(bad), "config.linux.security_context.capabilities.add_capabilities[0]");
    }
}

#[test]
fn identity_is_exact() {
    let run_as = take(with_security(|context| {
        context.run_as_user = Some(wire::Int64Value { value: 4_294_967_294 });
        context.run_as_username = "web".into();
        context.supplemental_groups_policy = 1;
    }))
    .run_as;
    assert_eq!((run_as.user, run_as.username), (Some(4_294_967_294), None), "the id wins over the name");
    assert!(run_as.strict_groups);
}

#[test]
fn pid_follows_the_sandbox_unless_asked_otherwise() {
    use PidNamespace::{Container, Node, Pod};
    // POD, CONTAINER, NODE of the container, in a sandbox of each kind.
    let expected =
        [(0, [Pod, Container, Node]), (1, [Container, Container, Node]), (2, [Node, Container, Node])];
    for (of_sandbox, modes) in expected {
        for (asked, mode) in (0..).zip(modes.clone()) {
            let wire = with_security(|context| {
                context.namespace_options = Some(wire::NamespaceOption { pid: asked, ..Default::default() });
            });
            let container = config(Some(wire), &sandbox(false, of_sandbox)).unwrap();
            assert_eq!(container.pid, mode, "{asked} in {of_sandbox}");
        }
        let silent = config(Some(smallest()), &sandbox(false, of_sandbox)).unwrap();
        assert_eq!(silent.pid, modes[0]);
    }
    let target = wire::NamespaceOption { pid: 3, target_id: "t".into(), ..Default::default() };
    let beside = take(with_security(|context| context.namespace_options = Some(target)));
    assert_eq!(beside.pid, PidNamespace::Target("t".into()));
}

#[test]
fn a_privileged_sandbox_may_have_privileged_containers() {
    let wire = with_security(|context| {
        context.privileged = true;
        context.seccomp = Some(wire::SecurityProfile::default());
    });
    assert!(config(Some(wire), &sandbox(true, 0)).unwrap().privileged, "and no profile applies to them");
}
