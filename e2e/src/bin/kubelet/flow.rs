//! What people do with the real kubectl: through the API server and the kubelet to the runtime.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cove_e2e::{Outcome, wait};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NODE};
use crate::ground::{Ground, IDLE, LIMIT, merge, of};
use crate::network::fetch;

/// A case.
pub(crate) type Flow = fn(&Ground, &Cluster) -> Outcome;

macro_rules! flows {
    ($($name:ident),* $(,)?) => {
        pub(crate) const FLOWS: &[(&str, Flow)] = &[$((stringify!($name), $name)),*];
    };
}

flows!(
    tells_of_the_node,
    projects_what_the_api_server_knows,
    executes_commands,
    carries_much_both_ways,
    has_a_terminal,
    attaches,
    runs_and_removes,
    forwards_ports,
    shows_logs,
    copies_files,
    debugs_by_an_ephemeral_container,
    resizes_in_place,
    mounts_read_only_recursively,
    deletes_and_waits,
    tells_why_in_events,
);

/// Both ways in which kubectl and the kubelet speak: a client before 1.31 and one after it.
const WAYS: [&str; 2] = ["true", "false"];

/// A pod for the node, of one container.
fn pod(ground: &Ground, name: &str, script: &str, container: Value, spec: Value) -> Outcome<Value> {
    let mut pod = ground.simple(name, script, container, spec)?;
    pod["spec"]["nodeName"] = NODE.into();
    Ok(pod)
}

/// Such a pod, once it is ready.
fn launch(ground: &Ground, cluster: &Cluster, name: &str, script: &str) -> Outcome {
    cluster.apply(&[pod(ground, name, script, json!({}), json!({}))?])?;
    cluster.wait(name, "condition=Ready")
}

/// Runs kubectl with something to read; what it wrote and its code.
fn with_input(cluster: &Cluster, way: &str, arguments: &[&str], input: &[u8]) -> Outcome<(Vec<u8>, i32)> {
    let mut command = cluster.kubectl(arguments);
    ways(&mut command, way);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let input = input.to_vec();
    // It ends early where the other side does not read all.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    drop(writer.join());
    let code = output.status.code().unwrap_or(-1);
    if code != 0 && output.stdout.is_empty() {
        return Ok((output.stderr, code));
    }
    Ok((output.stdout, code))
}

fn ways(command: &mut Command, way: &str) {
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", way).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", way);
}

fn tells_of_the_node(_: &Ground, cluster: &Cluster) -> Outcome {
    let node = cluster.get(&format!("node/{NODE}"))?;
    let status = &node["status"];
    let version = status["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap_or_default();
    ensure!(version.starts_with("cove://") || version.starts_with("containerd://"), "{version}");
    let ready = status["conditions"].as_array().is_some_and(|all| {
        all.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    });
    ensure!(ready, "{}", status["conditions"]);
    let handlers = status["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let default = handlers.iter().find(|handler| handler["name"] == "" || handler["name"].is_null());
    let features = &default.ok_or("no default handler")?["features"];
    ensure!(features["recursiveReadOnlyMounts"] == true && features["userNamespaces"] == true, "{features}");
    Ok(())
}

fn projects_what_the_api_server_knows(ground: &Ground, cluster: &Cluster) -> Outcome {
    cluster.run(&["create", "configmap", "settings", "--from-literal=color=blue"])?;
    cluster.run(&["create", "secret", "generic", "hidden", "--from-literal=word=secret"])?;
    let mounts = json!([
        {"name": "settings", "mountPath": "/settings"},
        {"name": "hidden", "mountPath": "/hidden"},
        {"name": "all", "mountPath": "/all"},
    ]);
    let sources = json!([
        {"configMap": {"name": "settings", "items": [{"key": "color", "path": "of/color"}]}},
        {"secret": {"name": "hidden"}},
        {"serviceAccountToken": {"path": "token"}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]);
    let volumes = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o400}},
        {"name": "all", "projected": {"sources": sources}},
    ]);
    let env = json!([{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}}]);
    let more = json!({"volumeMounts": mounts, "env": env});
    let mut pod = pod(ground, "projects", IDLE, more, json!({"volumes": volumes}))?;
    // With the volume that every pod has.
    pod["spec"]["automountServiceAccountToken"] = true.into();
    cluster.apply(&[pod])?;
    cluster.wait("projects", "condition=Ready")?;
    let script = "cat /settings/color /hidden/word /all/of/color /all/word /all/name; echo $WORD; stat -Lc %a /hidden/word
        cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; test -s token && test -s /all/token && echo tokens";
    let told = cluster.run(&["exec", "projects", "--", "sh", "-c", script])?;
    ensure_eq!(told, "bluesecretbluesecretprojectssecret\n400\ndefaulttokens\n");
    // What changes later is seen by the container that runs.
    cluster.run(&["patch", "configmap", "settings", "-p", "{\"data\":{\"color\":\"red\"}}"])?;
    ground.until("the new color to be seen", || {
        Ok((cluster.run(&["exec", "projects", "--", "cat", "/settings/color"])? == "red").then_some(()))
    })
}

fn executes_commands(ground: &Ground, cluster: &Cluster) -> Outcome {
    launch(ground, cluster, "execs", IDLE)?;
    for way in WAYS {
        let script = "cat; echo after; exit 7";
        let (out, code) =
            with_input(cluster, way, &["exec", "-i", "execs", "--", "sh", "-c", script], b"typed\n")?;
        ensure_eq!((out.as_slice(), code), (b"typed\nafter\n".as_slice(), 7));
        let (out, code) = with_input(cluster, way, &["exec", "execs", "--", "/no/such"], b"")?;
        let out = String::from_utf8_lossy(&out);
        ensure!(code != 0 && out.contains("no such file"), "{code}: {out}");
    }
    Ok(())
}

fn carries_much_both_ways(ground: &Ground, cluster: &Cluster) -> Outcome {
    const MUCH: usize = 32 << 20;
    launch(ground, cluster, "much", IDLE)?;
    let bytes: Vec<u8> = (0..MUCH).map(|place| (place * 31 % 251).to_le_bytes()[0]).collect();
    for way in WAYS {
        let (out, code) = with_input(cluster, way, &["exec", "-i", "much", "--", "cat"], &bytes)?;
        ensure!(code == 0 && out == bytes, "{code}: {} of {MUCH} bytes came back", out.len());
    }
    Ok(())
}

fn has_a_terminal(ground: &Ground, cluster: &Cluster) -> Outcome {
    launch(ground, cluster, "terminal", IDLE)?;
    for way in WAYS {
        let kubectl = cluster.kubectl(&[
            "exec",
            "-it",
            "terminal",
            "--",
            "sh",
            "-c",
            "test -t 0 && test -t 1 && stty size",
        ]);
        let line: Vec<_> = std::iter::once(kubectl.get_program())
            .chain(kubectl.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let mut command = Command::new("script");
        command.args(["-qec", &format!("stty rows 33 cols 77; {}", line.join(" ")), "/dev/null"]);
        ways(&mut command, way);
        let output = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // A terminal knows that it is one; the size may come after the command has asked for it.
        ensure!(output.status.success(), "{way}: {said}");
    }
    Ok(())
}

fn attaches(ground: &Ground, cluster: &Cluster) -> Outcome {
    for way in WAYS {
        let name = format!("attach-{way}");
        let more = json!({"stdin": true, "stdinOnce": true});
        cluster.apply(&[pod(
            ground,
            &name,
            "cat; echo got all",
            more,
            json!({"restartPolicy": "Never"}),
        )?])?;
        cluster.wait(&name, "condition=Ready")?;
        let (out, code) = with_input(cluster, way, &["attach", "-i", &name], b"by attach\n")?;
        let out = String::from_utf8_lossy(&out);
        ensure!(code == 0 && out.contains("by attach\ngot all\n"), "{way}: {code}: {out}");
        cluster.wait(&name, "jsonpath={.status.phase}=Succeeded")?;
    }
    Ok(())
}

fn runs_and_removes(ground: &Ground, cluster: &Cluster) -> Outcome {
    let image = format!("--image={}", ground.images.busybox);
    let overrides =
        format!("--overrides={}", json!({"spec": {"nodeName": NODE, "terminationGracePeriodSeconds": 2}}));
    let line = ["run", "once", "--rm", "-i", "--quiet", "--restart=Never", &image, &overrides, "--", "cat"];
    let (out, code) = with_input(cluster, "true", &line, b"through a new pod\n")?;
    ensure_eq!((out.as_slice(), code), (b"through a new pod\n".as_slice(), 0));
    ensure!(cluster.run(&["get", "pod", "once"]).is_err(), "it is still there");
    Ok(())
}

/// A kubectl that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forwards_ports(ground: &Ground, cluster: &Cluster) -> Outcome {
    let script = format!(
        "mkdir -p /www; echo through a port >/www/index.html; httpd -p 127.0.0.1:8080 -h /www; {IDLE}"
    );
    launch(ground, cluster, "ports", &script)?;
    for way in WAYS {
        let mut command = cluster.kubectl(&["port-forward", "pod/ports", ":8080", ":9999"]);
        ways(&mut command, way);
        let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let mut lines = BufReader::new(running.0.stdout.take().ok_or("no stdout")?).lines();
        let mut port = |of: &str| -> Outcome<u16> {
            for line in lines.by_ref() {
                let line = line?;
                if let Some((_, rest)) = line.split_once("127.0.0.1:")
                    && let Some((port, to)) = rest.split_once(" -> ")
                    && to == of
                {
                    return Ok(port.parse()?);
                }
            }
            Err(format!("kubectl names no port for {of}").into())
        };
        let (open, closed) = (port("8080")?, port("9999")?);
        let ask = |port: u16| fetch(SocketAddr::from(([127, 0, 0, 1], port)));
        for _ in 0..20 {
            let answer = ask(open)?.ok_or("no answer")?;
            ensure!(answer.contains("through a port"), "{way}: {answer}");
        }
        // Nobody listens there. kubectl then ends by itself, whatever the runtime (its `handleConnection`).
        let answer = ask(closed)?.unwrap_or_default();
        ensure!(answer.is_empty(), "{answer}");
    }
    Ok(())
}

fn shows_logs(ground: &Ground, cluster: &Cluster) -> Outcome {
    let script = "for n in 1 2 3 4 5; do echo line $n; done; test -e /witness/again || { touch /witness/again; exit 1; }
        sleep 2; echo later; trap 'exit 0' TERM; sleep 100000 & wait";
    cluster.apply(&[pod(ground, "logs", script, json!({}), json!({}))?])?;
    ground.until("its second life", || {
        Ok((of(&cluster.get("pod/logs")?, "main")["restartCount"] == 1).then_some(()))
    })?;
    let whole = "line 1\nline 2\nline 3\nline 4\nline 5\n";
    ensure_eq!(cluster.run(&["logs", "logs", "--previous"])?, whole);
    let mut following = Running(cluster.kubectl(&["logs", "-f", "logs"]).stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(following.0.stdout.take().ok_or("no stdout")?).lines();
    let mut last = String::new();
    while last != "later" {
        last = lines.next().ok_or("the log ended")??;
    }
    ensure_eq!(cluster.run(&["logs", "logs", "--tail=2"])?, "line 5\nlater\n");
    let stamped = cluster.run(&["logs", "logs", "--timestamps", "--tail=1"])?;
    ensure!(stamped.ends_with(" later\n") && stamped.contains('T'), "{stamped}");
    Ok(())
}

fn copies_files(ground: &Ground, cluster: &Cluster) -> Outcome {
    launch(ground, cluster, "copies", IDLE)?;
    let directory = tempfile::Builder::new().prefix("cove-copy-").tempdir()?;
    let text = "line\n".repeat(200_000);
    std::fs::create_dir(directory.path().join("sent"))?;
    std::fs::write(directory.path().join("sent/file"), &text)?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    cluster.run(&["cp", &path("sent"), "copies:/tmp/there"])?;
    let size = cluster.run(&["exec", "copies", "--", "stat", "-c", "%s", "/tmp/there/file"])?;
    ensure_eq!(size.trim(), text.len().to_string());
    cluster.run(&["cp", "copies:/tmp/there", &path("back")])?;
    ensure!(std::fs::read_to_string(directory.path().join("back/file"))? == text, "it came back changed");
    Ok(())
}

fn debugs_by_an_ephemeral_container(ground: &Ground, cluster: &Cluster) -> Outcome {
    launch(ground, cluster, "debugged", "trap 'exit 0' TERM; sleep 45678 & wait")?;
    let image = format!("--image={}", ground.images.user);
    let script = "ps -o args | grep -q '^sleep 4567[8]' && echo sees it";
    cluster.run(&["debug", "debugged", &image, "-c", "look", "--target=main", "--", "sh", "-c", script])?;
    ground.until("the ephemeral container to have looked", || {
        let pod = cluster.get("pod/debugged")?;
        let ended = &pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"];
        ensure!(ended.is_null() || ended["exitCode"] == 0, "{ended}");
        Ok((!ended.is_null()).then_some(()))
    })?;
    ensure_eq!(cluster.run(&["logs", "debugged", "-c", "look"])?, "sees it\n");
    Ok(())
}

fn resizes_in_place(ground: &Ground, cluster: &Cluster) -> Outcome {
    let resources = |cpu: &str, memory: &str| json!({"resources": {"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "10m", "memory": "16Mi"}}});
    cluster.apply(&[pod(ground, "resized", IDLE, resources("100m", "32Mi"), json!({}))?])?;
    cluster.wait("resized", "condition=Ready")?;
    let before = of(&cluster.get("pod/resized")?, "main")["containerID"].clone();
    let mut main = json!({"name": "main"});
    merge(&mut main, resources("300m", "64Mi"));
    let patch = json!({"spec": {"containers": [main]}}).to_string();
    cluster.run(&["patch", "pod", "resized", "--subresource", "resize", "-p", &patch])?;
    ground.until("the new limits to be told", || {
        let limits = of(&cluster.get("pod/resized")?, "main")["resources"]["limits"].clone();
        Ok((limits == json!({"cpu": "300m", "memory": "64Mi"})).then_some(()))
    })?;
    let main = of(&cluster.get("pod/resized")?, "main");
    ensure_eq!((main["restartCount"].clone(), main["containerID"].clone()), (json!(0), before));
    let script =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    let limit = cluster.run(&["exec", "resized", "--", "sh", "-c", script])?;
    ensure_eq!(limit.trim(), (64 << 20).to_string());
    Ok(())
}

fn mounts_read_only_recursively(ground: &Ground, cluster: &Cluster) -> Outcome {
    let more = json!({"volumeMounts": [
        {"name": "empty", "mountPath": "/sealed", "readOnly": true, "recursiveReadOnly": "Enabled"}]});
    let spec = json!({"volumes": [{"name": "empty", "emptyDir": {}}]});
    cluster.apply(&[pod(ground, "sealed", IDLE, more, spec)?])?;
    cluster.wait("sealed", "condition=Ready")?;
    let mounts = of(&cluster.get("pod/sealed")?, "main")["volumeMounts"].to_string();
    ensure!(mounts.contains("\"recursiveReadOnly\":\"Enabled\""), "{mounts}");
    let told = cluster.run(&["exec", "sealed", "--", "sh", "-c", "touch /sealed/x 2>&1 || true"])?;
    ensure!(told.contains("Read-only file system"), "{told}");
    Ok(())
}

fn deletes_and_waits(ground: &Ground, cluster: &Cluster) -> Outcome {
    let script = "trap 'sleep 1; echo end >/witness/ended; exit 0' TERM; sleep 100000 & wait";
    launch(ground, cluster, "goes", script)?;
    let began = std::time::Instant::now();
    cluster.run(&["delete", "pod", "goes", "--grace-period=30"])?;
    ensure_eq!(ground.told("goes", "ended")?, "");
    ensure!(began.elapsed() < Duration::from_secs(25), "it took {:?}", began.elapsed());
    launch(ground, cluster, "goes-now", "trap '' TERM; while :; do sleep 1; done")?;
    cluster.run(&["delete", "pod", "goes-now", "--grace-period=0", "--force"])?;
    Ok(())
}

fn tells_why_in_events(ground: &Ground, cluster: &Cluster) -> Outcome {
    let mut missing = pod(ground, "no-program", "", json!({}), json!({}))?;
    missing["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
    cluster.apply(&[missing])?;
    wait::until("the event that says why", LIMIT, || {
        let events = cluster.run(&["events", "--for", "pod/no-program"])?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(events.contains("/no/such/program").then_some(()))
    })?;
    cluster.run(&["delete", "pod", "no-program"]).map(drop)
}

/// Takes all pods away, and waits until they are gone.
pub(crate) fn empty(cluster: &Cluster) -> Outcome {
    cluster.run(&["delete", "pods", "--all", "--timeout=120s"]).map(drop)
}
