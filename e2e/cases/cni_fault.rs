//! Plugins that misbehave (E51): the error names them, other pods do not mind, and nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cove_e2e::cni::{self, host_local, leases, list};
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::cni::{addresses, lease_directory, net_d, network_ready, with_cni, write_list};
use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    names_what_a_plugin_does_wrong,
    keeps_no_pod_waiting_for_another,
    stops_a_pod_whose_plugin_hangs,
    ends_a_plugin_whose_daemon_died,
    tries_again_when_a_pod_cannot_be_detached,
    detaches_from_the_others_when_a_plugin_is_missing,
    refuses_types_that_are_paths,
    says_when_no_address_is_left,
);

/// The argument by which a process that a plugin left is known.
const STRAY: &str = "98765431";

/// Writes a plugin that is a shell script: it misbehaves for pods of certain names, and is ptp for all others.
pub(crate) fn plugin(world: &World, script: &str) -> Outcome<Vec<PathBuf>> {
    let directory = world.directory.join("bin");
    fs::create_dir_all(&directory)?;
    let ptp = cni::plugins().join("ptp");
    let text = format!(
        "#!/bin/sh\nD={}\nPTP={}\nPOD=${{CNI_ARGS##*K8S_POD_NAME=}}\nPOD=${{POD%%;*}}\n{script}\nexec $PTP\n",
        world.directory.display(),
        ptp.display()
    );
    let path = directory.join("odd");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(vec![directory, cni::plugins()])
}

/// A chain of that plugin.
pub(crate) fn odd(world: &World, range: &str) -> Value {
    json!({"type": "odd", "ipam": host_local(&lease_directory(world), &[range])})
}

/// Nothing runs that a plugin has left.
fn no_stray() -> Outcome {
    wait::until("what plugins left to end", SOON, || {
        let mut left = false;
        for entry in fs::read_dir("/proc")?.flatten() {
            // A process may end between the two looks.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            left |= line.split(|byte| *byte == 0).any(|word| word == STRAY.as_bytes());
        }
        Ok((!left).then_some(()))
    })
}

async fn names_what_a_plugin_does_wrong(world: &mut World) -> Outcome {
    let script = format!(
        r#"[ $CNI_COMMAND = ADD ] && case $POD in
            hang) sleep {STRAY} & sleep {STRAY};;
            flood) cat /dev/zero;;
            chatter) cat /dev/zero >&2;;
            silent) exit 0;;
            dirty) echo no JSON; exit 0;;
            empty) echo '{{}}'; exit 0;;
            shout) echo out of order >&2; exit 7;;
            refuse) $PTP >/dev/null; echo '{{"code": 11, "msg": "the agent", "details": "is away"}}'; exit 1;;
            fork) sleep {STRAY} & ;;
        esac"#
    );
    let plugins = plugin(world, &script)?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.16.0/24")]))?;
    with_cni(world, plugins, 4, async |world| {
        let good = world.pod("good");
        let id = world.run_pod(&good).await?;
        let before = addresses(world, &id).await?;
        for (name, code, words) in [
            ("hang", tonic::Code::DeadlineExceeded, "did not end within 4s"),
            ("flood", tonic::Code::Internal, "wrote more than 1048576 bytes to standard output"),
            ("chatter", tonic::Code::Internal, "bytes to standard error"),
            ("silent", tonic::Code::Internal, "not JSON"),
            ("dirty", tonic::Code::Internal, "not JSON"),
            ("empty", tonic::Code::Internal, "no address"),
            ("shout", tonic::Code::Internal, "exit status: 7 and no CNI error; it said: \"out of order\""),
            ("refuse", tonic::Code::Unavailable, "the agent: is away (code 11)"),
        ] {
            let config = world.pod(name);
            let refused = world.try_run_pod(&config).await.refused()?;
            let text = refused.message();
            ensure!(text.contains("CNI plugin odd ADD") && text.contains(words), "{name}: {text}");
            ensure_eq!((name, refused.code()), (name, code));
            // Undone: it is not listed, and has no address.
            ensure_eq!((name, world.pods().await?.len()), (name, 1));
            ensure_eq!((name, leases(&lease_directory(world), "odd").len()), (name, 1));
        }
        no_stray()?;
        let fork = world.pod("fork");
        world.run_pod(&fork).await?;
        no_stray()?;
        ensure_eq!(addresses(world, &id).await?, before);
        Ok(())
    })
    .await
}

/// A plugin that hangs for pods of the name `hang`, after it has written a file.
fn hanging(world: &World) -> Outcome<Vec<PathBuf>> {
    plugin(world, &format!("[ $CNI_COMMAND$POD = ADDhang ] && {{ $PTP; touch $D/hangs; sleep {STRAY}; }}"))
}

/// Begins to run the pod `hang`, and waits until its plugin hangs.
async fn hang(world: &World) -> Outcome<tokio::task::JoinHandle<Result<(), tonic::Status>>> {
    let mut cri = world.cri.clone();
    let request = RunPodSandboxRequest { config: Some(world.pod("hang")), runtime_handler: String::new() };
    let run = tokio::spawn(async move { cri.runtime.run_pod_sandbox(request).await.map(drop) });
    let mark = world.directory.join("hangs");
    wait::until_async("the plugin to hang", SOON, || async { Ok(mark.exists().then_some(())) }).await?;
    Ok(run)
}

async fn keeps_no_pod_waiting_for_another(world: &mut World) -> Outcome {
    let plugins = hanging(world)?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.17.0/24")]))?;
    with_cni(world, plugins, 60, async |world| {
        let run = hang(world).await?;
        let begun = Instant::now();
        for n in 0..3 {
            let config = world.pod(&format!("good-{n}"));
            let id = world.run_pod(&config).await?;
            world.remove_pod(&id).await?;
            ensure!(network_ready(world).await?.0, "the node is ready");
        }
        ensure!(begun.elapsed() < Duration::from_secs(20) && !run.is_finished(), "{:?}", begun.elapsed());
        // Asked again it is not run again; and what was begun is undone when it is removed.
        for sandbox in unlisted(world)? {
            world.remove_pod(&sandbox).await?;
        }
        run.await?.refused()?;
        no_stray()
    })
    .await
}

/// Sandboxes on disk: those that are being made are in no list.
fn unlisted(world: &World) -> Outcome<Vec<String>> {
    let place = world.place.as_ref().ok_or("no place")?;
    let entries = fs::read_dir(place.root.join("sandboxes"))?.flatten();
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

async fn stops_a_pod_whose_plugin_hangs(world: &mut World) -> Outcome {
    let plugins = hanging(world)?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.18.0/24")]))?;
    with_cni(world, plugins, 100, async |world| {
        let run = hang(world).await?;
        let sandbox = unlisted(world)?.pop().ok_or("no sandbox")?;
        let begun = Instant::now();
        world.stop_pod(&sandbox).await?;
        ensure!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        run.await?.refused()?;
        no_stray()?;
        ensure_eq!(leases(&lease_directory(world), "odd").len(), 0);
        ensure!(world.pods().await?.is_empty(), "nothing is left of it");
        Ok(())
    })
    .await
}

async fn ends_a_plugin_whose_daemon_died(world: &mut World) -> Outcome {
    let plugins = hanging(world)?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.19.0/24")]))?;
    with_cni(world, plugins, 100, async |world| {
        let run = hang(world).await?;
        ensure_eq!(leases(&lease_directory(world), "odd").len(), 1);
        world.restart(End::Kill).await?;
        run.await?.refused()?;
        no_stray()?;
        let directory = lease_directory(world);
        wait::until("the address to be given back", SOON, || {
            Ok(leases(&directory, "odd").is_empty().then_some(()))
        })?;
        // The same pod, as a kubelet asks for it again.
        let plugins = world.directory.join("bin/odd");
        fs::remove_file(&plugins)?;
        fs::copy(cni::plugins().join("ptp"), &plugins)?;
        let config = world.pod("hang");
        world.run_pod(&config).await?;
        Ok(())
    })
    .await
}

async fn tries_again_when_a_pod_cannot_be_detached(world: &mut World) -> Outcome {
    let script = r#"[ $CNI_COMMAND = DEL ] && {
        N=$(cat $D/count 2>/dev/null || echo 0); echo $((N + 1)) >$D/count
        [ $N -ge 3 ] || { echo '{"code": 100, "msg": "not yet"}'; exit 1; }
    }"#;
    let plugins = plugin(world, script)?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.20.0/24")]))?;
    with_cni(world, plugins, 60, async |world| {
        let config = world.pod("sticky");
        let id = world.run_pod(&config).await?;
        for _ in 0..3 {
            let refused = world.stop_pod(&id).await.refused()?;
            ensure!(refused.message().contains("CNI plugin odd DEL: not yet"), "{refused}");
            ensure_eq!(world.pod_status(&id).await?.state(), PodSandboxState::SandboxNotready);
            ensure_eq!(leases(&lease_directory(world), "odd").len(), 1);
        }
        world.stop_pod(&id).await?;
        ensure_eq!(leases(&lease_directory(world), "odd").len(), 0);
        world.stop_pod(&id).await?;
        ensure_eq!(fs::read_to_string(world.directory.join("count"))?, "4\n");
        Ok(())
    })
    .await
}

async fn detaches_from_the_others_when_a_plugin_is_missing(world: &mut World) -> Outcome {
    let plugins = plugin(world, "")?;
    let tuning = plugins[0].join("last");
    fs::copy(cni::plugins().join("tuning"), &tuning)?;
    let ptp = json!({"type": "ptp", "ipam": host_local(&lease_directory(world), &["10.216.21.0/24"])});
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[ptp, json!({"type": "last"})]))?;
    with_cni(world, plugins, 60, async |world| {
        let config = world.pod("missing");
        let id = world.run_pod(&config).await?;
        let kept = world.directory.join("kept");
        fs::rename(&tuning, &kept)?;
        let refused = world.stop_pod(&id).await.refused()?;
        ensure!(refused.message().contains("CNI plugin \"last\" is in none of"), "{refused}");
        ensure_eq!(leases(&lease_directory(world), "odd").len(), 0);
        ensure!(
            world.try_run_pod(&world.pod("next")).await.refused()?.message().contains("\"last\""),
            "named"
        );
        fs::rename(&kept, &tuning)?;
        Ok(world.stop_pod(&id).await?)
    })
    .await
}

async fn refuses_types_that_are_paths(world: &mut World) -> Outcome {
    let plugins = plugin(world, "")?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.22.0/24")]))?;
    with_cni(world, plugins, 60, async |world| {
        for kind in ["../bin/odd", "/bin/sh", "a/b", "", ".."] {
            fs::remove_dir_all(net_d(world))?;
            // Away and back, else the file would count as it was.
            network_ready(world).await?;
            write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[json!({"type": kind})]))?;
            let (ready, message) = network_ready(world).await?;
            ensure!(!ready && message.contains("10-odd.conflist: type"), "{kind}: {message}");
            world.try_run_pod(&world.pod("path")).await.refused()?;
        }
        Ok(())
    })
    .await
}

async fn says_when_no_address_is_left(world: &mut World) -> Outcome {
    let plugins = plugin(world, "")?;
    write_list(world, "10-odd.conflist", &list("1.0.0", "odd", &[odd(world, "10.216.23.0/29")]))?;
    with_cni(world, plugins, 60, async |world| {
        let mut last = String::new();
        for n in 0..5 {
            let config = world.pod(&format!("pod-{n}"));
            last = world.run_pod(&config).await?;
        }
        let one_more = world.pod("one-more");
        let refused = world.try_run_pod(&one_more).await.refused()?;
        ensure!(refused.message().contains("no IP addresses available"), "{refused}");
        world.remove_pod(&last).await?;
        world.run_pod(&one_more).await?;
        Ok(())
    })
    .await
}
