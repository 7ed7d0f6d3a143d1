//! Devices of vendors, by the files of the Container Device Interface.

use std::fs;
use std::path::PathBuf;

use cove_e2e::{Outcome, cgroup};
use k8s_cri::v1::*;
use serde_json::json;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    edits_the_container_of_a_device,
    takes_devices_from_annotations,
    prefers_the_later_directory,
    runs_hooks_before_the_program,
    gives_up_on_hooks_that_fail_or_hang,
    refuses_what_it_cannot_have,
);

/// Writes a CDI file: into the directory that wins, or the other one.
fn write(world: &World, wins: bool, name: &str, text: &str) -> Outcome {
    let place = world.place.as_ref().ok_or("CDI files are where the daemon of the case looks")?;
    let [low, high] = place.cdi();
    let directory: PathBuf = if wins { high } else { low };
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join(name), text)?)
}

fn with(mut config: ContainerConfig, devices: &[&str]) -> ContainerConfig {
    config.cdi_devices = devices.iter().map(|name| CdiDevice { name: (*name).into() }).collect();
    config
}

async fn edits_the_container_of_a_device(world: &mut World) -> Outcome {
    let library = world.directory.join("libvendor.so");
    fs::write(&library, "of the driver")?;
    let text = format!(
        "---
cdiVersion: 0.7.0
kind: vendor.example/accelerator
annotations: {{note: ignored}}
devices:
  - name: card0
    containerEdits:
      deviceNodes:
        - path: /dev/accel/card0
          hostPath: /dev/fuse
          permissions: r
          fileMode: 0640
          gid: 50000
      env:
        - VISIBLE=card0
      additionalGids: [50007]
containerEdits:
  env:
    - VENDOR=yes
    - FROM_IMAGE=no
  mounts:
    - hostPath: {}
      containerPath: /usr/lib/libvendor.so
      options: [ro, nosuid, nodev, rbind, rprivate]
    - hostPath: tmpfs
      containerPath: /run/vendor
      type: tmpfs
      options: [size=64k, mode=0700]
",
        library.display()
    );
    write(world, false, "vendor.yaml", &text)?;
    let config = world.pod("cdi");
    let id = world.run_pod(&config).await?;
    let script = "stat -c %t:%T:%a:%u:%g /dev/accel/card0; ( : <>/dev/accel/card0 ) 2>/dev/null || echo no-write; \
                  ( : </dev/accel/card0 ) && echo read; \
                  cat /usr/lib/libvendor.so; echo; ( : >/usr/lib/libvendor.so ) 2>/dev/null || echo read-only; \
                  echo $VENDOR $VISIBLE $FROM_IMAGE; id -G; stat -c %a /run/vendor; sleep 1000";
    let container = with(world.script("card", script), &["vendor.example/accelerator=card0"]);
    let container = world.launch(&id, &config, &container).await?;
    let log = crate::world::log_text(&world.wrote(&container, "700\n").await?)?;
    ensure_eq!(
        log,
        "a:e5:640:0:50000\nno-write\nread\nof the driver\nread-only\nyes card0 no\n0 50007\n700\n"
    );
    // A further process is beside the first.
    let exec = world
        .exec(&container, &["sh", "-c", "id -G; echo $VISIBLE; cat </dev/accel/card0 2>&1 | wc -c"])
        .await?;
    ensure!(String::from_utf8(exec.stdout)?.starts_with("0 50007\ncard0\n"), "{:?}", exec.stderr);
    // What was asked for is what is told.
    let request = ContainerStatusRequest { container_id: container, verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    ensure!(info["runtimeSpec"]["linux"]["devices"].to_string().contains("/dev/accel/card0"), "{info}");
    // Who does not name it has nothing of it.
    let (_, text) = world
        .output(&id, &config, &world.script("plain", "ls /dev/accel /usr/lib 2>&1; echo $VENDOR"))
        .await?;
    ensure!(!text.contains("card0") && !text.contains("yes") && !text.contains("libvendor"), "{text}");
    Ok(())
}

/// A file with devices that tell by an environment variable where they are from.
fn telling(from: &str, devices: &[&str]) -> String {
    let device =
        |name: &&str| json!({ "name": name, "containerEdits": { "env": [format!("{name}={from}")] } });
    let all: Vec<_> = devices.iter().map(device).collect();
    json!({ "cdiVersion": "0.3.0", "kind": "v.example/c", "devices": all }).to_string()
}

async fn takes_devices_from_annotations(world: &mut World) -> Outcome {
    write(world, true, "v.json", &telling("file", &["one", "two", "three"]))?;
    let config = world.pod("annotated");
    let id = world.run_pod(&config).await?;
    let mut container = with(world.script("both", "echo $one $two $three"), &["v.example/c=one"]);
    container.annotations.insert("cdi.k8s.io/plugin_x".into(), "v.example/c=two,v.example/c=one".into());
    let (status, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "file file\n");
    ensure_eq!(status.annotations, container.annotations);
    Ok(())
}

async fn prefers_the_later_directory(world: &mut World) -> Outcome {
    write(world, false, "v.json", &telling("low", &["one", "two"]))?;
    write(world, true, "v.json", &telling("high", &["two"]))?;
    let config = world.pod("order");
    let id = world.run_pod(&config).await?;
    let look = |world: &World, name: &str| {
        with(world.script(name, "echo $one $two"), &["v.example/c=one", "v.example/c=two"])
    };
    let (_, text) = world.output(&id, &config, &look(world, "first")).await?;
    ensure_eq!(text, "low high\n");
    // Files are read for each container.
    write(world, true, "v.json", &telling("new", &["one", "two"]))?;
    let (_, text) = world.output(&id, &config, &look(world, "second")).await?;
    ensure_eq!(text, "new new\n");
    Ok(())
}

/// A device with one hook, which is a shell script of the host.
fn hooked(world: &World, name: &str, script: &str, more: serde_json::Value) -> Outcome<serde_json::Value> {
    let path = world.directory.join(format!("{name}.sh"));
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut hook = json!({ "hookName": "createContainer", "path": path, "args": ["vendor-hook", "one", "two words"],
                           "env": ["PATH=/usr/bin:/bin", "OF_HOOK=yes"] });
    hook.as_object_mut().ok_or("no object")?.extend(more.as_object().cloned().unwrap_or_default());
    Ok(
        json!({ "name": name, "containerEdits": { "hooks": [hook], "deviceNodes": [{ "path": "/dev/fuse" }] } }),
    )
}

async fn runs_hooks_before_the_program(world: &mut World) -> Outcome {
    // As a vendor's tool does: the state on stdin leads to the bundle, and that to the root file system with its mounts.
    let told = world.directory.join("told");
    let script = format!(
        r#"state=$(cat); root=$(printf %s "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')/rootfs
echo "$state" >{0}; echo "$0 $# $2 $OF_HOOK $HOME" >>{0}; umask >>{0}; cat /proc/self/cgroup >>{0}
test -c $root/dev/fuse && test -e $root/proc/version && test -f $root/etc/hosts || exit 9
mkdir -p $root/usr/lib; ln -s libvendor.so.9 $root/usr/lib/libvendor.so; echo made >$root/usr/lib/libvendor.so.9
setsid sleep 4242 </dev/null >/dev/null 2>&1 & exit 0"#,
        told.display()
    );
    let devices = [hooked(world, "tool", &script, json!({}))?];
    let text = json!({ "cdiVersion": "0.6.0", "kind": "v.example/hook", "devices": devices });
    write(world, true, "hook.json", &text.to_string())?;
    for (pod_name, pid) in [("hooks", NamespaceMode::Pod), ("hooks-apart", NamespaceMode::Container)] {
        let mut config = world.pod(pod_name);
        cove_e2e::pod::namespaces(&mut config).pid = pid.into();
        let id = world.run_pod(&config).await?;
        let script = "cat /usr/lib/libvendor.so; ls /proc | grep -c '^[0-9]'; sleep 1000";
        let container = with(world.script("device", script), &["v.example/hook=tool"]);
        let container = world.launch(&id, &config, &container).await?;
        // Nobody is left of the hook in any PID namespace that the container sees.
        let log = crate::world::log_text(&world.wrote(&container, "made").await?)?;
        ensure!(log.starts_with("made\n"), "{log}");
        let seen = world.exec(&container, &["sh", "-c", "ps -o args"]).await?;
        ensure!(!String::from_utf8(seen.stdout)?.contains("4242"), "what a hook left behind is in sight");
        let text = fs::read_to_string(&told)?;
        let mut lines = text.lines();
        let state: serde_json::Value = serde_json::from_str(lines.next().ok_or("no state")?)?;
        ensure_eq!(state["id"], json!(container));
        ensure!(state["status"] == "creating" && state["pid"].as_i64().is_some_and(|pid| pid > 0), "{state}");
        let line = lines.next().ok_or("no line")?;
        ensure!(line.ends_with(" 2 two words yes "), "arguments and environment: {line}");
        ensure_eq!(lines.next(), Some("0022"));
        // On version 2 it runs in the container's cgroup namespace, too, which begins at its group.
        let place = if cgroup::unified() { "0::/\n" } else { container.as_str() };
        ensure!(text.contains(place), "it runs in the container's cgroup: {text}");
        world.stop_pod(&id).await?;
        world.remove_pod(&id).await?;
    }
    Ok(())
}

async fn gives_up_on_hooks_that_fail_or_hang(world: &mut World) -> Outcome {
    let devices = [
        hooked(world, "fails", "echo the driver is gone >&2; exit 3", json!({}))?,
        hooked(world, "hangs", "yes lots >&2 & sleep 4243", json!({ "timeout": 1 }))?,
        hooked(world, "missing", "true", json!({ "path": "/no/such/tool" }))?,
        hooked(world, "other", "true", json!({ "hookName": "createRuntime" }))?,
    ];
    let text = json!({ "cdiVersion": "0.6.0", "kind": "v.example/bad", "devices": devices });
    write(world, true, "bad.json", &text.to_string())?;
    let config = world.pod("bad-hooks");
    let id = world.run_pod(&config).await?;
    for (name, words) in
        [("fails", "the driver is gone"), ("hangs", "took longer than 1s"), ("missing", "/no/such/tool")]
    {
        let container = with(world.script(name, "true"), &[&format!("v.example/bad={name}")]);
        let container = world.create(&id, &config, &container).await?;
        let refused = world.start(&container).await.refused()?;
        ensure_eq!((name, refused.code()), (name, tonic::Code::FailedPrecondition));
        ensure!(refused.message().contains("hooks") && refused.message().contains(words), "{refused}");
        let status = world.status(&container).await?;
        ensure_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
    }
    let refused = with(world.script("other", "true"), &["v.example/bad=other"]);
    let refused = world.create(&id, &config, &refused).await.refused()?;
    ensure!(refused.message().contains("createRuntime"), "{refused}");
    Ok(())
}

async fn refuses_what_it_cannot_have(world: &mut World) -> Outcome {
    let device = |name: &str, edits: serde_json::Value| json!({ "name": name, "containerEdits": edits });
    let text = json!({ "cdiVersion": "1.1.0", "kind": "v.example/bad", "devices": [
        device("node", json!({ "deviceNodes": [{ "path": "/dev/no-such-node" }] })),
        device("mount", json!({ "mounts": [{ "hostPath": "/no/such/library", "containerPath": "/x" }] })),
        device("option", json!({ "mounts": [{ "hostPath": "/etc", "containerPath": "/x", "options": ["surprise"] }] })),
        device("rdt", json!({ "intelRdt": { "closID": "x" } })),
        device("net", json!({ "netDevices": [{ "hostInterfaceName": "lo", "name": "x" }] })),
    ] });
    write(world, true, "bad.json", &text.to_string())?;
    write(world, true, "broken.yaml", "cdiVersion: 1.0.0\nkind: &a v.example/x\ndevices: [*a, *a]\n")?;
    for name in ["a", "b"] {
        write(world, true, &format!("twice-{name}.json"), &telling(name, &["twice"]))?;
    }
    let config = world.pod("refused");
    let id = world.run_pod(&config).await?;
    for (name, text) in [
        ("v.example/bad=missing", "v.example/bad=missing is in no file of"),
        ("v.example/x=y", "broken.yaml is not used"),
        ("v.example/c=twice", "more than one file"),
        ("v.example/bad=node", "/dev/no-such-node"),
        ("v.example/bad=mount", "/no/such/library"),
        ("v.example/bad=rdt", "intelRdt"),
        ("v.example/bad=net", "netDevices"),
        ("gpu", "VENDOR/CLASS=NAME"),
        ("", "VENDOR/CLASS=NAME"),
    ] {
        let refused =
            world.create(&id, &config, &with(world.script("bad", "true"), &[name])).await.refused()?;
        ensure_eq!((name, refused.code()), (name, tonic::Code::InvalidArgument));
        ensure!(refused.message().contains(text) && refused.message().contains("CDI_devices"), "{refused}");
    }
    let missing =
        world.create(&id, &config, &with(world.script("bad", "true"), &["v.example/bad=missing"])).await;
    let [low, high] = world.place.as_ref().ok_or("no place")?.cdi();
    let message = missing.refused()?.message().to_owned();
    for directory in [low, high] {
        ensure!(message.contains(&*directory.to_string_lossy()), "{message}");
    }
    // An option that nobody knows is found when the container is started: the builder is asked for no such mount.
    let container = with(world.script("option", "true"), &["v.example/bad=option"]);
    let refused = match world.create(&id, &config, &container).await {
        Ok(container) => world.start(&container).await.refused()?,
        Err(refused) => refused,
    };
    ensure!(refused.message().contains("surprise"), "{refused}");
    Ok(())
}
