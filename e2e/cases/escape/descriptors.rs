//! What a process finds open, and where it stands.

use std::process::Stdio;

use cove_e2e::crictl::Crictl;
use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;

use super::{Reached, canary, path, pull, pull_attacker, reached_in};
use crate::world::World;

attacks!(
    leaves_no_descriptor_open without "close-on-exec",
    keeps_the_working_directory_inside without "close-range,working-directory",
);

/// The highest number of a descriptor that a working directory is asked for. A shim has some twenty open; the file
/// descriptors of a process are given out from below (open(2)), so those above name nothing.
const DESCRIPTORS: u32 = 40;
/// Execs beside the swapping of the working directory.
const SWAPPED: u32 = 1000;

const MODES: [(&str, NamespaceMode); 3] =
    [("pod", NamespaceMode::Pod), ("own", NamespaceMode::Container), ("host", NamespaceMode::Node)];

/// The lines of `attacker descriptors` that are none of stdin, stdout, stderr.
fn further(what: &str, text: &str, reached: &mut Reached) -> Outcome {
    let fds: Vec<&str> =
        text.lines().filter_map(|line| line.trim().split_once("fd ")).map(|(_, fd)| fd).collect();
    ensure!(fds.iter().any(|fd| fd.starts_with("1 ")), "{what}: {text}");
    let further = fds.iter().filter(|fd| !["0 ", "1 ", "2 "].iter().any(|own| fd.starts_with(own)));
    reached.extend(further.map(|fd| format!("{what}: descriptor {fd}")));
    Ok(())
}

/// E01: first processes and execs in each PID namespace, with and without stdin and a terminal.
async fn leaves_no_descriptor_open(world: &mut World) -> Outcome<Reached> {
    let image = pull_attacker(world).await?;
    let socket = world.place.as_ref().ok_or("needs a daemon of its own")?.socket();
    let config = world.pod("descriptors");
    let id = world.run_pod(&config).await?;
    let mut reached = Reached::new();
    for (name, mode) in MODES {
        for (kind, stdin, tty) in [("plain", false, false), ("stdin", true, false), ("terminal", true, true)]
        {
            if world.is_shown(&reached) {
                return Ok(reached);
            }
            let what = format!("{name}, {kind}");
            let script = "attacker descriptors; echo end; sleep 1000";
            let mut container = pod::container(&format!("{name}-{kind}"), &image, &["sh", "-c", script]);
            pod::security(&mut container).namespace_options.get_or_insert_default().pid = mode.into();
            (container.stdin, container.tty) = (stdin, tty);
            let container = world.launch(&id, &config, &container).await?;
            let log = world.wrote(&container, "F end").await?;
            further(&format!("{what}, start"), &crate::world::log_text(&log)?, &mut reached)?;
            let exec = world.exec(&container, &["attacker", "descriptors"]).await?;
            further(&format!("{what}, exec"), &String::from_utf8(exec.stdout)?, &mut reached)?;
            if kind == "plain" {
                let line = Crictl::new(&socket).line(&["exec", "-it", &container, "attacker", "descriptors"]);
                let output = tokio::process::Command::new("script")
                    .args(["-qec", &line, "/dev/null"])
                    .stdin(Stdio::null())
                    .output()
                    .await?;
                further(
                    &format!("{what}, exec with a terminal"),
                    &String::from_utf8(output.stdout)?,
                    &mut reached,
                )?;
            }
            world.stop(&container, 0).await?;
        }
    }
    Ok(reached)
}

/// E02, CVE-2024-21626: a working directory that is somebody's open descriptor, as request, as the image's, and swapped
/// for one while a container runs.
async fn keeps_the_working_directory_inside(world: &mut World) -> Outcome<Reached> {
    let canary = canary(world)?.join("file").display().to_string();
    // Where processes of the host are in sight, this one is.
    let own = std::process::id();
    let look = format!(
        "[ -e ./{own}/comm ] && echo reached the processes of the host from $(pwd); \
         for up in . .. ../.. ../../.. ../../../../../../../../..; do \
         [ -s $up{canary} ] && echo reached the canary from $(pwd); done; true"
    );
    let image = pull_attacker(world).await?;
    let mut reached = Reached::new();
    let config = world.pod("cwd");
    let id = world.run_pod(&config).await?;
    let mut wanted: Vec<(String, String, String)> = Vec::new();
    for n in 0..DESCRIPTORS {
        for process in ["self", "1"] {
            wanted.push((format!("{process}-{n}"), image.clone(), format!("/proc/{process}/fd/{n}")));
        }
    }
    for n in 3..9 {
        let link = cove_e2e::image::Layer::new().symlink("here", &format!("/proc/self/fd/{n}"));
        let mut with = path();
        with["WorkingDir"] = "/here".into();
        let image = pull(world, &format!("cwd-{n}"), vec![link], with).await?;
        wanted.push((format!("image-{n}"), image, String::new()));
    }
    for (name, image, directory) in wanted {
        if world.is_shown(&reached) {
            return Ok(reached);
        }
        let mut container = pod::container(&name, &image, &["sh", "-c", &look]);
        // A process of its own namespace finds itself in /proc.
        pod::security(&mut container).namespace_options.get_or_insert_default().pid =
            NamespaceMode::Container.into();
        container.working_dir = directory;
        let created = world.create(&id, &config, &container).await?;
        if world.start(&created).await.is_ok() {
            let status = world.exited(&created).await?;
            reached.extend(reached_in(&std::fs::read_to_string(&status.log_path)?));
        }
        world.remove(&created).await?;
    }
    swapped(world, &image, &look, &mut reached).await?;
    Ok(reached)
}

async fn swapped(world: &mut World, image: &str, look: &str, reached: &mut Reached) -> Outcome {
    let config = world.pod("swapped");
    let id = world.run_pod(&config).await?;
    let script = "mkdir -p /here; ln -s /proc/self/fd/4 /link; exec attacker swap /here /link";
    let mut container = pod::container("swapper", image, &["sh", "-c", script]);
    container.working_dir = "/here".into();
    let container = world.launch(&id, &config, &container).await?;
    world.wrote(&container, "swapping").await?;
    let (mut ran, mut refused) = (0, 0);
    for _ in 0..SWAPPED {
        match world.exec(&container, &["sh", "-c", look]).await {
            Ok(exec) => {
                ran += 1;
                reached.extend(reached_in(&String::from_utf8(exec.stdout)?));
            }
            Err(error) => {
                ensure!(error.message().contains("cwd") || error.message().contains("directory"), "{error}");
                refused += 1;
            }
        }
    }
    ensure!(
        ran > 0 && refused > 0,
        "a race that ends in one way only shows nothing: {ran} ran, {refused} refused"
    );
    world.stop(&container, 0).await.map_err(Into::into)
}
