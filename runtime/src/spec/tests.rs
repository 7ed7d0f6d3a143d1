//! Specs in the form in which they are written, and what becomes of them.

use super::*;
use crate::build::request::{GroupsPolicy, Propagation};
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web",
        "annotations": {"a": "b"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "cove-shm", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/vol", "type": "bind", "source": "/srv/vol", "options": ["rbind", "rslave", "ro"]},
            {"destination": "/rro", "source": "/srv/rro", "options": ["rbind", "rprivate", "rro"]},
            {"destination": "/image", "type": "overlay", "source": "overlay",
             "options": ["ro", "nosuid", "lowerdir+=/i/2", "lowerdir+=/i/1", "X-mount.subdir=etc/x"]},
            {"destination": "/data", "type": "cove-volume", "source": "/b/volumes/0", "options": ["rw"]}
        ],
        "process": {
            "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]},
            "args": ["/bin/sh", "-c", "true"],
            "env": ["PATH=/bin", "X=1"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_RAW"], "effective": ["CAP_CHOWN", "CAP_NET_RAW"],
                             "permitted": ["CAP_CHOWN", "CAP_NET_RAW"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024}],
            "noNewPrivileges": true,
            "oomScoreAdj": 100
        },
        "linux": {
            "resources": {"memory": {"limit": 1000, "swap": 2000}, "cpu": {"shares": 512, "cpus": "0-1"},
                          "pids": {"limit": 10}, "devices": [{"allow": false, "access": "rwm"}]},
            "cgroupsPath": "/kubepods/x",
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/run/netns/x"}],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 384}],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn build(spec: &Value) -> Result<ContainerSpec, SpecError> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let rootfs = Rootfs {
        lower: vec!["/l".into()],
        upper: "/u".into(),
        work: "/w".into(),
        target: "/t".into(),
        readonly: false,
        volatile: true,
    };
    let user = User { user: "app".into(), gid: None, supplemental: vec![], policy: GroupsPolicy::Merge };
    container("c1", &spec, rootfs, user)
}

#[test]
fn a_whole_spec() {
    let built = build(&base()).unwrap();
    assert!(built.rootfs.readonly);
    assert_eq!(built.container, "c1");
    assert!(!built.new_cgroup_namespace);
    assert_eq!(built.process.capabilities.bounding, 1 | 1 << 13);
    assert_eq!(built.process.capabilities.inheritable, 0);
    assert_eq!(built.process.rlimits, [Rlimit { resource: 7, soft: 1024, hard: 2048 }]);
    assert_eq!((built.process.umask, built.process.no_new_privs), (0o022, true));
    assert_eq!(built.process.user.user, "app");
    let kinds: Vec<_> = built.mounts.iter().map(|mount| &mount.kind).collect();
    assert!(
        matches!(kinds[1], MountKind::Tmpfs(t) if t.size == 65_536 << 10 && t.mode == 0o755 && t.strict_atime)
    );
    assert!(matches!(kinds[3], MountKind::Shm));
    assert!(matches!(kinds[4], MountKind::Bind(b)
        if b.recursive && b.propagation == Propagation::HostToContainer && !b.recursive_readonly));
    assert!(matches!(kinds[5], MountKind::Bind(b) if b.recursive_readonly));
    assert!(matches!(kinds[6], MountKind::Image(image)
        if image.lower == ["/i/2", "/i/1"].map(PathBuf::from) && image.sub_path == Path::new("etc/x")));
    assert!(matches!(kinds[7], MountKind::Volume(source) if source == Path::new("/b/volumes/0")));
    assert!(built.mounts[4].readonly && built.mounts[5].readonly && !built.mounts[0].readonly);
    let names: Vec<_> = built.devices.iter().map(|device| device.path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["/dev/fuse", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"]
    );
    assert_eq!(built.devices[0].mode, 0o600);
}

#[test]
fn what_is_not_built_is_refused_by_path() {
    // JSON pointer, value, what the refusal names.
    let table = [
        ("/hooks", json!({"poststop": [{"path": "/bin/true"}]}), "hooks.poststop[0].path"),
        ("/domainname", json!("x"), "domainname"),
        ("/process/selinuxLabel", json!("a:b:c"), "process.selinuxLabel"),
        ("/process/terminal", json!(true), "process.terminal"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 1}), "process.ioPriority"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("x"), "process.cwd"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp"),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": [""], "action": "SCMP_ACT_ERRNO"},
            ]}),
            "linux.seccomp",
        ),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "linux.gidMappings"),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt.closID"),
        ("/linux/personality", json!({"domain": "LINUX"}), "linux.personality"),
        ("/linux/rootfsPropagation", json!("rshared"), "linux.rootfsPropagation"),
        ("/linux/namespaces/0", json!({"type": "user"}), "linux.uidMappings"),
        ("/linux/namespaces/0", json!({"type": "time"}), "linux.namespaces[0]"),
        ("/linux/namespaces/0", json!({"type": "user", "path": "/x"}), "linux.namespaces[0]"),
        ("/linux/namespaces/0", json!({"type": "mount", "path": "/x"}), "linux.namespaces[0]"),
        ("/linux/resources/blockIO", json!({"weight": 10}), "linux.resources.blockIO.weight"),
        ("/linux/resources/memory/swappiness", json!(1), "linux.resources.memory.swappiness"),
        ("/linux/devices/0/type", json!("p"), "linux.devices[0].type"),
        ("/linux/devices/0/path", json!("/etc/x"), "linux.devices[0].path"),
        ("/linux/devices/0/major", json!(-1), "linux.devices[0].major"),
        ("/linux/maskedPaths/0", json!("proc/kcore"), "linux.maskedPaths[0]"),
        ("/mounts/0/type", json!("nfs"), "mounts[0].type"),
        ("/mounts/0/destination", json!("proc"), "mounts[0].destination"),
        ("/mounts/0/options/0", json!("hidepid=2"), "mounts[0].options"),
        ("/mounts/1/options/0", json!("size=x"), "mounts[1].options"),
        ("/mounts/2/options/0", json!("gid=6"), "mounts[2].options"),
        ("/mounts/4/options/0", json!("idmap"), "mounts[4].options"),
        ("/mounts/4/source", json!("vol"), "mounts[4].source"),
        ("/mounts/6/options/2", json!("upperdir=/x"), "mounts[6].options"),
        ("/mounts/6/options/2", json!("lowerdir+=x"), "mounts[6].options"),
        ("/mounts/6/options/4", json!("X-mount.subdir="), "mounts[6].options"),
        ("/mounts/7/source", json!("vol"), "mounts[7].source"),
        (
            "/mounts/4/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "mounts[4].gidMappings",
        ),
    ];
    for (pointer, value, named) in table {
        let mut spec = base();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        match spec.pointer_mut(parent).unwrap() {
            Value::Object(fields) => drop(fields.insert(name.to_owned(), value)),
            Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
            other => panic!("{pointer} leads to {other}"),
        }
        let refused = build(&spec).expect_err(pointer);
        assert!(refused.field.starts_with(named), "{pointer}: {refused}");
    }
}

#[test]
fn one_mapping_for_the_namespace_and_its_volumes() {
    let mapping =
        |inside: u32, host: u32, size: u32| json!([{"containerID": inside, "hostID": host, "size": size}]);
    let with = |uids: Value, gids: Value, of_mount: Value| {
        let mut spec = base();
        spec["linux"]["namespaces"][0] = json!({"type": "user"});
        spec["linux"]["uidMappings"] = uids;
        spec["linux"]["gidMappings"] = gids;
        spec["mounts"][4]["uidMappings"] = of_mount.clone();
        spec["mounts"][4]["gidMappings"] = of_mount;
        build(&spec)
    };
    let whole = mapping(0, 1000, 65_536);
    let built = with(whole.clone(), whole.clone(), whole.clone()).unwrap();
    assert!(matches!(&built.mounts[4].kind, MountKind::MappedBind(bind) if bind.recursive));
    assert!(matches!(&built.mounts[5].kind, MountKind::Bind(_)), "as asked: without a mapping");
    let two = json!([{"containerID": 0, "hostID": 1, "size": 1}, {"containerID": 1, "hostID": 5, "size": 1}]);
    let none = || json!([]);
    let end = u32::MAX - 1;
    for (uids, gids, of_mount, named) in [
        (two.clone(), two, none(), "linux.uidMappings"),
        (mapping(1, 1000, 10), mapping(1, 1000, 10), none(), "linux.uidMappings[0].containerID"),
        (mapping(0, 1000, 0), mapping(0, 1000, 0), none(), "linux.uidMappings[0]"),
        (mapping(0, end, 2), mapping(0, end, 2), none(), "linux.uidMappings[0]"),
        (whole.clone(), mapping(0, 2000, 65_536), none(), "linux.gidMappings"),
        (whole.clone(), whole.clone(), mapping(0, 1000, 65_535), "mounts[4].uidMappings"),
        (none(), none(), whole, "linux.uidMappings"),
    ] {
        let refused = with(uids, gids, of_mount).expect_err(named);
        assert_eq!(refused.field, named, "{refused}");
    }
}

#[test]
fn the_filter_of_a_container_and_of_its_execs() {
    let mut spec = base();
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    let filter = build(&spec).unwrap().process.seccomp;
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let asked = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    assert_eq!(filter, Some(compile(&Profile::from_oci(&asked).unwrap(), 0).unwrap()));
    let user = User { user: String::new(), gid: None, supplemental: vec![], policy: GroupsPolicy::Merge };
    let process = spec.process().clone().unwrap();
    assert_eq!(exec(&spec, &process, user.clone()).unwrap().seccomp, filter);
    let free: Spec = serde_json::from_value(base()).unwrap();
    assert_eq!(exec(&free, &process, user).unwrap().seccomp, None);
    assert_eq!(build(&base()).unwrap().process.seccomp, None);
}

#[test]
fn limits_of_resources() {
    let spec: Spec = serde_json::from_value(base()).unwrap();
    let limits = limits(spec.linux().as_ref().unwrap().resources().as_ref().unwrap());
    let expected = Limits {
        cpu_shares: Some(512),
        cpuset_cpus: Some("0-1".into()),
        memory: Some(1000),
        memory_swap: Some(2000),
        pids: Some(10),
        ..Limits::default()
    };
    assert_eq!(limits, expected);
}
