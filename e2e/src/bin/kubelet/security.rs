//! Security contexts and user namespaces.

use cove_e2e::Outcome;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial, of};

cases!(
    runs_as_it_is_told,
    runs_as_the_image_says,
    refuses_root_where_it_must_not_be,
    runs_privileged,
    gives_a_pod_users_of_its_own,
    shares_processes_in_a_pod,
    shares_namespaces_of_the_host,
    sets_sysctls,
    filters_calls_by_a_profile_of_the_node,
    shows_the_whole_proc_to_users_of_its_own,
);

const FACTS: &str = "{ id -u; id -g; id -G; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'
    touch /x 2>/dev/null || echo sealed; stat -c %g /empty; touch /empty/x; stat -c %u:%g /empty/x; echo end; } >/witness/facts";

fn runs_as_it_is_told(ground: &Ground) -> Outcome<Trial> {
    let context = json!({
        "runAsUser": 1234, "runAsGroup": 2345, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let more =
        json!({"securityContext": context, "volumeMounts": [{"name": "empty", "mountPath": "/empty"}]});
    let spec = json!({
        "securityContext": {"fsGroup": 4567, "supplementalGroups": [3456]},
        "volumes": [{"name": "empty", "emptyDir": {}}],
    });
    let pod = ground.simple("context", &format!("{FACTS}; {IDLE}"), more, spec)?;
    Trial::new(vec![pod], |ground| {
        let told = ground.told("context", "facts")?;
        let lines: Vec<&str> = told.lines().collect();
        ensure!(lines.len() == 9, "{told}");
        ensure_eq!(lines[..2], ["1234", "2345"]);
        let mut groups: Vec<&str> = lines[2].split(' ').collect();
        groups.sort_unstable();
        ensure_eq!(groups, ["2345", "3456", "4567"]);
        let rest = ["CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2", "sealed", "4567", "1234:4567"];
        ensure_eq!(lines[3..], rest);
        Ok(())
    })
}

fn runs_as_the_image_says(ground: &Ground) -> Outcome<Trial> {
    let more = json!({"image": ground.images.user, "securityContext": {"runAsNonRoot": true}});
    let script = format!("{{ id -u; echo end; }} >/witness/facts; {IDLE}");
    let pod = ground.simple("image-user", &script, more, json!({}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("image-user", "facts")?, "1000\n");
        Ok(())
    })
}

fn refuses_root_where_it_must_not_be(ground: &Ground) -> Outcome<Trial> {
    let more = json!({"securityContext": {"runAsNonRoot": true}});
    let pod = ground.simple("not-root", IDLE, more, json!({}))?;
    Trial::new(vec![pod], |ground| {
        // The kubelet finds out by what the runtime says of the image.
        ground.seen("not-root", "to be refused", |pod| {
            let waiting = of(pod, "main")["state"]["waiting"].clone();
            let told = waiting["message"].as_str().is_some_and(|text| text.contains("will run as root"));
            (waiting["reason"] == "CreateContainerConfigError" && told).then_some(())
        })
    })
}

fn runs_privileged(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ mount -t tmpfs none /mnt 2>/dev/null || {{ mkdir /mnt; mount -t tmpfs none /mnt; }}; grep -c ' /mnt tmpfs' /proc/mounts
        test -e /dev/kmsg && echo devices; echo end; }} >/witness/facts; {IDLE}"
    );
    let pod =
        ground.simple("privileged", &script, json!({"securityContext": {"privileged": true}}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("privileged", "facts")?, "1\ndevices\n");
        Ok(())
    })
}

fn gives_a_pod_users_of_its_own(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ id -u; cat /proc/self/uid_map | tr -s ' '; echo mine >/empty/file; stat -c %u:%g /empty/file; cat /down/name; echo; echo end; }} >/witness/facts; {IDLE}"
    );
    let more = json!({"volumeMounts": [
        {"name": "empty", "mountPath": "/empty"}, {"name": "down", "mountPath": "/down"},
    ]});
    let items = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]);
    let spec = json!({"hostUsers": false, "volumes": [
        {"name": "empty", "emptyDir": {}}, {"name": "down", "downwardAPI": {"items": items}},
    ]});
    let pod = ground.simple("own-users", &script, more, spec)?;
    Trial::new(vec![pod], |ground| {
        let told = ground.told("own-users", "facts")?;
        let lines: Vec<&str> = told.lines().collect();
        let map: Vec<u64> =
            lines.get(1).ok_or("no map")?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(map.len() == 3 && map[0] == 0 && map[1] >= 65536 && map[2] == 65536, "{told}");
        ensure_eq!((lines[0], lines[2]), ("0", "0:0"));
        ensure!(lines[3].starts_with("own-users-"), "{told}");
        Ok(())
    })
}

fn shares_processes_in_a_pod(ground: &Ground) -> Outcome<Trial> {
    let other = ground.container("other", "exec sleep 4321", json!({}));
    let script = format!("while ! ps -o args | grep -q '^sleep 432[1]'; do sleep 0.1; done
        {{ ps -o args | grep -c '^sleep 432[1]'; test $$ != 1 && echo not the first; echo end; }} >/witness/facts; {IDLE}");
    let main = ground.container("main", &script, json!({}));
    let pod = ground.pod("shared-pids", &[main, other], json!({"shareProcessNamespace": true}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("shared-pids", "facts")?, "1\nnot the first\n");
        Ok(())
    })
}

fn shares_namespaces_of_the_host(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; echo end; }} >/witness/facts; {IDLE}"
    );
    let pod = ground.simple("host-ns", &script, json!({}), json!({"hostPID": true, "hostIPC": true}))?;
    Trial::new(vec![pod], |ground| {
        let of_host = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}"));
        let expected = format!("{}\n{}\n", of_host("pid")?.display(), of_host("ipc")?.display());
        ensure_eq!(ground.told("host-ns", "facts")?, expected);
        Ok(())
    })
}

fn sets_sysctls(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ cat /proc/sys/net/ipv4/ip_local_port_range | tr -s '\\t' ' '; echo end; }} >/witness/facts; {IDLE}"
    );
    let sysctls = json!([{"name": "net.ipv4.ip_local_port_range", "value": "20000 30000"}]);
    let pod =
        ground.simple("sysctls", &script, json!({}), json!({"securityContext": {"sysctls": sysctls}}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("sysctls", "facts")?, "20000 30000\n");
        Ok(())
    })
}

fn filters_calls_by_a_profile_of_the_node(ground: &Ground) -> Outcome<Trial> {
    let profiles = ground.node.directory.join("kubelet/seccomp");
    std::fs::create_dir_all(&profiles)?;
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28});
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    std::fs::write(profiles.join("no-mkdir.json"), profile.to_string())?;
    let seccomp = json!({"type": "Localhost", "localhostProfile": "no-mkdir.json"});
    let script =
        format!("{{ mkdir /tmp/x 2>&1; touch /tmp/y && echo touched; echo end; }} >/witness/facts; {IDLE}");
    let more = json!({"securityContext": {"seccompProfile": seccomp}});
    let pod = ground.simple("profile", &script, more, json!({}))?;
    Trial::new(vec![pod], |ground| {
        let told = ground.told("profile", "facts")?;
        // ENOSPC: nobody else says so of /tmp.
        ensure!(told.contains("No space left on device") && told.ends_with("touched\n"), "{told}");
        Ok(())
    })
}

fn shows_the_whole_proc_to_users_of_its_own(ground: &Ground) -> Outcome<Trial> {
    let script = format!("{{ grep -c ' /proc/' /proc/mounts; echo end; }} >/witness/facts; {IDLE}");
    let pod = |name: &str, kind: &str| {
        let more = json!({"securityContext": {"procMount": kind}});
        ground.simple(name, &script, more, json!({"hostUsers": false}))
    };
    Trial::new(vec![pod("unmasked", "Unmasked")?, pod("masked", "Default")?], |ground| {
        ensure_eq!(ground.told("unmasked", "facts")?, "0\n");
        ensure!(ground.told("masked", "facts")?.trim().parse::<u32>()? > 5, "nothing is masked");
        Ok(())
    })
}
