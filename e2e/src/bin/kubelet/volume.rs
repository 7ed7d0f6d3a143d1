//! Volumes as a kubelet makes them on the host and a runtime shows them.

use cove_e2e::Outcome;
use rustix::mount::MountPropagationFlags;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial, merge};
use crate::node::NAME;

cases!(
    shares_an_empty_directory,
    keeps_a_directory_in_memory,
    projects_what_it_knows_of_a_pod,
    shows_parts_of_volumes,
    mounts_volumes_read_only,
    mounts_an_image,
    keeps_a_directory_over_a_restart,
    passes_mounts_between_pods,
);

fn mount(name: &str, path: &str) -> serde_json::Value {
    json!({"name": name, "mountPath": path})
}

fn shares_an_empty_directory(ground: &Ground) -> Outcome<Trial> {
    let writer = ground.container(
        "writer",
        &format!("echo shared >/there/file; {IDLE}"),
        json!({"volumeMounts": [mount("empty", "/there")]}),
    );
    let script = format!(
        "while ! test -s /here/file; do sleep 0.1; done; cat /here/file >/witness/read
        stat -c %a /here >>/witness/read; echo end >>/witness/read; {IDLE}"
    );
    let reader = ground.container("reader", &script, json!({"volumeMounts": [mount("empty", "/here")]}));
    let spec = json!({"volumes": [{"name": "empty", "emptyDir": {}}]});
    let pod = ground.pod("empty-dir", &[writer, reader], spec)?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("empty-dir", "read")?, "shared\n777\n");
        Ok(())
    })
}

fn keeps_a_directory_in_memory(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "grep ' /memory ' /proc/mounts | cut -d' ' -f3 >/witness/kind
        dd if=/dev/zero of=/memory/fill bs=1M count=20 2>/dev/null && echo no limit >>/witness/kind
        stat -c %s /memory/fill >>/witness/kind; echo end >>/witness/kind; {IDLE}"
    );
    let spec = json!({"volumes": [{"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}]});
    let more = json!({"volumeMounts": [mount("memory", "/memory")]});
    let pod = ground.simple("memory-dir", &script, more, spec)?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("memory-dir", "kind")?, format!("tmpfs\n{}\n", 8 << 20));
        Ok(())
    })
}

fn projects_what_it_knows_of_a_pod(ground: &Ground) -> Outcome<Trial> {
    let field = |path: &str, of: &str| json!({"path": path, "fieldRef": {"fieldPath": of}});
    let resource = |path: &str, of: &str| json!({"path": path, "mode": 0o440, "resourceFieldRef": {"containerName": "main", "resource": of}});
    let items = json!([field("labels", "metadata.labels"), field("name", "metadata.name")]);
    // A kubelet without an API server takes no volume of the kind `projected`.
    let deep = json!([field("deep/namespace", "metadata.namespace"), resource("memory", "limits.memory")]);
    let volumes = json!([
        {"name": "down", "downwardAPI": {"items": items}},
        {"name": "all", "downwardAPI": {"items": deep}},
    ]);
    let env = json!([
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    ]);
    let script = format!("{{ cat /down/labels; echo; cat /down/name; echo; cat /all/deep/namespace; echo; cat /all/memory; echo
        stat -Lc %a /all/memory; echo $WHO $CPUS; ip -4 addr show eth0 | grep -q \" $IP/\" && echo its address; echo end; }} >/witness/facts; {IDLE}");
    let more = json!({
        "volumeMounts": [mount("down", "/down"), mount("all", "/all")],
        "resources": {"limits": {"memory": "64Mi", "cpu": "1"}, "requests": {"memory": "1Mi", "cpu": "1m"}},
        "env": env,
    });
    let pod = ground.simple("projected", &script, more, json!({"volumes": volumes}))?;
    Trial::new(vec![pod], |ground| {
        let name = format!("projected-{NAME}");
        let expected =
            format!("app=\"projected\"\n{name}\ndefault\n{}\n440\n{name} 1\nits address\n", 64 << 20);
        ensure_eq!(ground.told("projected", "facts")?, expected);
        Ok(())
    })
}

fn shows_parts_of_volumes(ground: &Ground) -> Outcome<Trial> {
    let first = ground.container(
        "first",
        "mkdir -p /all/part; echo inside >/all/part/file; echo outside >/all/file",
        json!({"volumeMounts": [mount("empty", "/all")]}),
    );
    let script = format!(
        "{{ cat /part/file; ls /part; cat /file; echo new >/own/new; echo end; }} >/witness/facts; {IDLE}"
    );
    let main = ground.container(
        "main",
        &script,
        json!({
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [
                {"name": "empty", "mountPath": "/part", "subPath": "part", "readOnly": true},
                {"name": "empty", "mountPath": "/file", "subPath": "file"},
                {"name": "witness", "mountPath": "/own", "subPathExpr": "of-$(POD)"},
            ],
        }),
    );
    let spec = json!({"initContainers": [first], "volumes": [{"name": "empty", "emptyDir": {}}]});
    let pod = ground.pod("sub-path", &[main], spec)?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("sub-path", "facts")?, "inside\nfile\noutside\n");
        let own = ground.witness("sub-path", &format!("of-sub-path-{NAME}")).join("new");
        ensure_eq!(std::fs::read_to_string(own)?, "new\n");
        Ok(())
    })
}

fn mounts_volumes_read_only(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ touch /one/x 2>/dev/null || echo read-only; touch /two/x && ls /one; echo end; }} >/witness/facts; {IDLE}"
    );
    let more = json!({"volumeMounts": [
        {"name": "empty", "mountPath": "/one", "readOnly": true},
        {"name": "empty", "mountPath": "/two"},
    ]});
    let spec = json!({"volumes": [{"name": "empty", "emptyDir": {}}]});
    let pod = ground.simple("read-only", &script, more, spec)?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("read-only", "facts")?, "read-only\nx\n");
        Ok(())
    })
}

fn mounts_an_image(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ cat /image/data/file; touch /image/x 2>/dev/null || echo read-only; echo end; }} >/witness/facts; {IDLE}"
    );
    let image = json!({"reference": ground.images.content, "pullPolicy": "IfNotPresent"});
    let spec = json!({"volumes": [{"name": "image", "image": image}]});
    let more = json!({"volumeMounts": [mount("image", "/image")]});
    let pod = ground.simple("image-volume", &script, more, spec)?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("image-volume", "facts")?, "from the image\nread-only\n");
        Ok(())
    })
}

fn keeps_a_directory_over_a_restart(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "echo life >>/empty/lives; echo life >>/tmp/lives
        test $(wc -l </empty/lives) = 2 || exit 1
        {{ cat /tmp/lives; echo end; }} >/witness/facts; {IDLE}"
    );
    let more = json!({"volumeMounts": [mount("empty", "/empty")]});
    let spec = json!({"volumes": [{"name": "empty", "emptyDir": {}}]});
    let pod = ground.simple("lives", &script, more, spec)?;
    Trial::new(vec![pod], |ground| {
        // The volume is the pod's, what the container wrote besides went with it.
        ensure_eq!(ground.told("lives", "facts")?, "life\n");
        Ok(())
    })
}

fn passes_mounts_between_pods(ground: &Ground) -> Outcome<Trial> {
    // Made once the other runs: the case is of mounts that come later.
    let script = "mkdir -p /shared/part; trap 'umount /shared/part; exit 0' TERM
        while ! test -e /shared/ready; do sleep 0.1; done
        mount -t tmpfs passed /shared/part; echo passed >/shared/part/file; sleep 100000 & wait";
    let shared = |way: &str| json!({"volumeMounts": [{"name": "shared", "mountPath": "/shared", "mountPropagation": way}]});
    let mut more = shared("Bidirectional");
    merge(&mut more, json!({"securityContext": {"privileged": true}}));
    // The kernel passes nothing on from a mount that is not shared, and a runtime refuses it.
    let path = ground.node.directory.join("shared");
    std::fs::create_dir_all(&path)?;
    rustix::mount::mount_bind(&path, &path)?;
    rustix::mount::mount_change(&path, MountPropagationFlags::SHARED)?;
    let spec =
        json!({"volumes": [{"name": "shared", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}]});
    let from = ground.simple("passes", script, more, spec.clone())?;
    let script = format!(
        "touch /shared/ready; while ! test -s /shared/part/file; do sleep 0.1; done
        {{ cat /shared/part/file; echo end; }} >/witness/facts; {IDLE}"
    );
    let to = ground.simple("takes", &script, shared("HostToContainer"), spec)?;
    Trial::new(vec![from, to], move |ground| {
        ensure_eq!(ground.told("takes", "facts")?, "passed\n");
        ground.node.take_away("passes")?;
        // The mount goes with the one who made it, from the host and from the other.
        ground.until("the mount to be gone", || {
            let mounts = std::fs::read_to_string("/proc/self/mounts")?;
            Ok((!mounts.contains(&format!("passed {}", path.display()))).then_some(()))
        })?;
        let mounts = ground.exec("takes", "main", &["cat", "/proc/mounts"])?;
        ensure!(!mounts.contains("passed /shared"), "{mounts}");
        Ok(())
    })
}
