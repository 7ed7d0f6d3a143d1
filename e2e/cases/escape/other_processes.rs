//! Processes that Cove starts in a container, seen by somebody who is in there already.

use std::fs;
use std::time::Duration;

use cove_e2e::{Outcome, image, pod, process, wait};
use k8s_cri::v1::*;
use rustix::process::Signal;

use super::{Reached, canary, pull_attacker, reached_in};
use crate::world::World;

attacks!(
    overwrites_no_program_of_the_host without "sealed-program",
    finds_no_way_out_through_other_processes without "builder-outside",
);

/// Execs of the host's own program beside the one who wants to overwrite it.
const EXECS: usize = 500;
/// How long the program may take to be writable after the last process that runs it was killed.
const WRITABLE: Duration = Duration::from_secs(5);
/// Starts and execs beside the one who looks for a way out: 250 and 750.
const PROCESSES: usize = 1000;

/// E03, CVE-2019-5736: a container runs the very program that starts processes in it, holds on to it, and writes to it
/// once it does not run any more. Daemon and shim are killed for that, since a shim runs as long as its pod.
async fn overwrites_no_program_of_the_host(world: &mut World) -> Outcome<Reached> {
    let script = image::Layer::new().file("bin/self", 0o755, "#!/proc/self/exe x\n");
    let image = super::pull(world, "self", vec![script], super::path()).await?;
    // Copies: without its guard the attack succeeds.
    let programs = world.directory.join("programs");
    fs::create_dir(&programs)?;
    let place = world.place.as_mut().ok_or("needs a daemon of its own")?;
    for name in ["cove", "cove-shim"] {
        fs::copy(place.programs.join(name), programs.join(name))?;
    }
    place.programs.clone_from(&programs);
    world.daemon.take().ok_or("no daemon")?.stop()?;
    world.resume(&[]).await?;
    let digests = || -> Outcome<Vec<String>> {
        ["cove", "cove-shim"]
            .iter()
            .map(|name| Ok(cove_e2e::image::digest(&fs::read(programs.join(name))?)))
            .collect()
    };
    let before = digests()?;

    let volume = world.directory.join("volume");
    fs::create_dir(&volume)?;
    let mut config = world.pod("exe");
    // In a PID namespace of its pod's or its own everybody ends with the shim.
    pod::namespaces(&mut config).pid = NamespaceMode::Node.into();
    let id = world.run_pod(&config).await?;
    let script = format!("setsid attacker overwrite /volume/out {} & exec sleep 100000", programs.display());
    let mut container = pod::container("attacker", &image, &["sh", "-c", &script]);
    pod::security(&mut container).namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
    container.mounts.push(Mount {
        host_path: volume.display().to_string(),
        container_path: "/volume".into(),
        ..Default::default()
    });
    let container = world.launch(&id, &config, &container).await?;
    let out = || fs::read_to_string(volume.join("out")).unwrap_or_default();
    wait::until("the attacker", crate::world::SOON, || Ok(out().contains("looking").then_some(())))?;
    for n in 0..EXECS {
        let command: &[&str] = if n % 2 == 0 { &["/proc/self/exe", "x"] } else { &["/bin/self"] };
        // The program says how it is used, or is refused: what counts is who holds on to it.
        drop(world.exec(&container, command).await);
    }
    ensure!(out().contains("held "), "the attacker never held the program: {}", out());
    let shim = process::shim(&id)?;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    process::signal(shim, Signal::KILL)?;
    // Either way the attacker could open it for writing.
    let tried = wait::until("the program to be written to", WRITABLE, || {
        let text = out();
        Ok((text.contains("reached ") || text.contains("refused ")).then_some(text))
    })?;
    let mut reached: Reached = reached_in(&tried).collect();
    if digests()? != before {
        reached.push("a program on the host is another now".to_owned());
    }
    for name in ["cove", "cove-shim"] {
        // The next daemon needs them.
        fs::remove_file(programs.join(name))?;
        fs::copy(cove_e2e::daemon::programs().join(name), programs.join(name))?;
    }
    world.resume(&[]).await?;
    Ok(reached)
}

/// E04: a container with SYS_PTRACE looks through every process of the PID namespace that it shares, while containers
/// are started and entered.
async fn finds_no_way_out_through_other_processes(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?.join("file").display().to_string();
    let image = pull_attacker(world).await?;
    let config = world.pod("look");
    let id = world.run_pod(&config).await?;
    let mut container = pod::container("look", &image, &["attacker", "look", &canary]);
    pod::security(&mut container).capabilities.get_or_insert_default().add_capabilities =
        vec!["SYS_PTRACE".into()];
    let attacker = world.launch(&id, &config, &container).await?;
    world.wrote(&attacker, "looking").await?;
    let log = world.status(&attacker).await?.log_path;
    let mut reached = Reached::new();
    for n in 0..PROCESSES / 4 {
        let victim = pod::container(&format!("victim-{n}"), &image, &["true"]);
        let victim = world.launch(&id, &config, &victim).await?;
        for _ in 0..3 {
            let exec = world.exec(&attacker, &["true"]).await?;
            ensure_eq!(exec.exit_code, 0);
        }
        world.remove(&victim).await?;
        reached = reached_in(&fs::read_to_string(&log)?).collect();
        if world.is_shown(&reached) {
            break;
        }
    }
    Ok(reached)
}
