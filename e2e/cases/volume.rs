//! Volumes: what is mounted where, seen by whom, and written by nobody who must not.

use std::fs;
use std::path::Path;
use std::process::Command;

use cove_e2e::Outcome;
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    passes_mounts_both_ways_only_where_asked,
    makes_everything_below_read_only_where_asked,
    says_that_it_can,
);

/// A mount of the host that is gone when the case is.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn tmpfs(path: &Path) -> Outcome<Self> {
        fs::create_dir_all(path)?;
        run("mount", &["-t", "tmpfs", "case", &path.to_string_lossy()])?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        // A case that failed half-way may have left mounts below; the check of what is left tells of the rest.
        let _ = Command::new("umount").arg("-R").arg(&self.0).output();
    }
}

fn run(program: &str, args: &[&str]) -> Outcome {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}

fn volume(host: &Path, inside: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: inside.into(),
        ..Default::default()
    }
}

async fn passes_mounts_both_ways_only_where_asked(world: &mut World) -> Outcome {
    let mut config = world.pod("propagation");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.privileged = true;
    let id = world.run_pod(&config).await?;
    let shared = world.directory.join("shared");
    let _mount = HostMount::tmpfs(&shared)?;
    run("mount", &["--make-shared", &shared.to_string_lossy()])?;
    let mut containers = Vec::new();
    for (name, propagation) in [
        ("private", MountPropagation::PropagationPrivate),
        ("slave", MountPropagation::PropagationHostToContainer),
        ("both", MountPropagation::PropagationBidirectional),
    ] {
        let mut container = world.script(name, "sleep 1000");
        cove_e2e::pod::security(&mut container).privileged = true;
        let mount = Mount { propagation: propagation.into(), ..volume(&shared, "/v") };
        container.mounts.push(mount.clone());
        let container = world.launch(&id, &config, &container).await?;
        ensure_eq!(world.status(&container).await?.mounts, [mount]);
        containers.push((name, container));
    }
    fs::create_dir(shared.join("from-host"))?;
    let _below = HostMount::tmpfs(&shared.join("from-host"))?;
    fs::write(shared.join("from-host/file"), "x")?;
    for (name, container) in &containers {
        let seen = world.exec(container, &["ls", "/v/from-host"]).await?;
        ensure_eq!((*name, seen.stdout == b"file\n"), (*name, *name != "private"));
    }
    for (name, container) in &containers {
        let script = format!("mkdir /v/{name} && mount -t tmpfs case /v/{name} && touch /v/{name}/file");
        let done = world.exec(container, &["sh", "-c", &script]).await?;
        ensure_eq!((*name, done.exit_code), (*name, 0));
        ensure_eq!((*name, shared.join(name).join("file").exists()), (*name, *name == "both"));
    }
    for (_, container) in &containers {
        world.stop(container, 0).await?;
    }
    // A source that nobody shares cannot keep the promise.
    let alone = world.directory.join("alone");
    let _alone = HostMount::tmpfs(&alone)?;
    run("mount", &["--make-private", &alone.to_string_lossy()])?;
    for propagation in
        [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional]
    {
        let mut container = world.script("alone", "true");
        container.metadata = Some(ContainerMetadata { name: "alone".into(), attempt: propagation as u32 });
        container.mounts.push(Mount { propagation: propagation.into(), ..volume(&alone, "/v") });
        let container = world.create(&id, &config, &container).await?;
        let refused = world.start(&container).await.refused()?;
        ensure!(refused.message().contains("shared"), "{refused}");
    }
    Ok(())
}

async fn makes_everything_below_read_only_where_asked(world: &mut World) -> Outcome {
    let config = world.pod("readonly");
    let id = world.run_pod(&config).await?;
    let top = world.directory.join("top");
    let _mount = HostMount::tmpfs(&top)?;
    let _below = HostMount::tmpfs(&top.join("below"))?;
    let script =
        "for path in /v/a /v/below/a; do touch $path 2>/dev/null && echo wrote $path; done; echo end";
    for (name, readonly, recursive, expected) in [
        ("rw", false, false, "wrote /v/a\nwrote /v/below/a\nend\n"),
        ("ro", true, false, "wrote /v/below/a\nend\n"),
        ("rro", true, true, "end\n"),
    ] {
        let mut container = world.script(name, script);
        let mount = Mount { readonly, recursive_read_only: recursive, ..volume(&top, "/v") };
        container.mounts.push(mount.clone());
        let (status, text) = world.output(&id, &config, &container).await?;
        ensure_eq!((name, text.as_str()), (name, expected));
        ensure_eq!(status.mounts, [mount]);
    }
    // Through a symlink on the host, and with a source that is not there yet.
    std::os::unix::fs::symlink("top", world.directory.join("link"))?;
    let mut container = world.script("link", "ls /v; ls -d /w; touch /w/x");
    container.mounts.push(Mount { readonly: true, ..volume(&world.directory.join("link"), "/v") });
    container.mounts.push(volume(&world.directory.join("new/deep"), "/w"));
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "a\nbelow\n/w\n");
    ensure!(world.directory.join("new/deep/x").exists(), "a missing source is made");
    for (change, field) in [
        (Mount { recursive_read_only: true, ..volume(&top, "/v") }, "recursive_read_only"),
        (
            Mount { recursive_read_only: true, readonly: true, propagation: 1, ..volume(&top, "/v") },
            "recursive_read_only",
        ),
    ] {
        let mut container = world.script("refused", "true");
        container.mounts.push(change);
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure_eq!(refused.code(), tonic::Code::InvalidArgument);
        ensure!(refused.message().contains(field), "{refused}");
    }
    Ok(())
}

async fn says_that_it_can(world: &mut World) -> Outcome {
    let status = world.cri.runtime.status(StatusRequest { verbose: false }).await?.into_inner();
    let able = |handler: &RuntimeHandler| {
        handler.features.as_ref().is_some_and(|features| features.recursive_read_only_mounts)
    };
    ensure!(status.runtime_handlers.iter().all(able), "{:?}", status.runtime_handlers);
    Ok(())
}
