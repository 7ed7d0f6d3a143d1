//! `cove audit`: finds what was planted, each kind by itself, tells nothing of what is in order, and removes only what
//! nobody needs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cove_e2e::daemon::Place;
use cove_e2e::{Outcome, audit, process, wait};
use k8s_cri::v1::*;
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{SOON, World};

cases!(
    finds_and_removes_what_is_left_over,
    finds_and_removes_what_a_dead_daemon_left,
    finds_what_is_missing,
    leaves_operations_alone,
    leaves_roots_of_others_alone,
);

/// Ids that no object has.
const NOBODY: [&str; 5] = ["a", "b", "c", "d", "e"];

fn nobody(n: usize) -> String {
    NOBODY[n].repeat(64)
}

fn place(world: &World) -> Outcome<Place> {
    world.place.clone().ok_or_else(|| "an audit needs a place of its own".into())
}

fn run(program: &str, arguments: &[&str]) -> Outcome {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// What must be found: state, kind, and a part of the name.
type Expected = (&'static str, &'static str, String);

fn ensure_found(found: &[Value], expected: &[Expected]) -> Outcome {
    let is = |one: &Value, (state, kind, part): &Expected| {
        one["state"] == *state
            && one["kind"] == *kind
            && one["name"].as_str().is_some_and(|name| name.contains(part))
    };
    for wanted in expected {
        ensure!(found.iter().any(|one| is(one, wanted)), "{wanted:?} was not found in {found:#?}");
    }
    for one in found {
        ensure!(expected.iter().any(|wanted| is(one, wanted)), "{one} was not planted");
        ensure!(one["advice"].as_str().is_some_and(|advice| !advice.is_empty()), "{one} says not what to do");
    }
    Ok(())
}

/// A pod with a host port, and a container that runs.
async fn live(world: &mut World, name: &str, port: i32) -> Outcome<(String, String)> {
    let mut config = world.pod(name);
    config.port_mappings.push(PortMapping { host_port: port, container_port: 80, ..Default::default() });
    let id = world.run_pod(&config).await?;
    let script = world.script("sleep", "exec sleep 1000");
    let container = world.launch(&id, &config, &script).await?;
    Ok((id, container))
}

/// Processes of the case that an audit kills.
struct Planted(Vec<Child>);

impl Drop for Planted {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Both fail only where the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process in the shims' cgroup: nobody's, and one that says it is the shim of a sandbox that nobody knows.
fn plant_processes(place: &Place, directory: &Path) -> Outcome<(Planted, Vec<Expected>)> {
    run("mkfifo", &[&directory.join(nobody(0)).display().to_string()])?;
    let stranger = Command::new("sleep").arg("1000").spawn()?;
    let mut shim = Command::new("cat");
    shim.arg0("cove-shim").arg(nobody(0)).current_dir(directory).stdout(Stdio::null());
    let planted = Planted(vec![stranger, shim.spawn()?]);
    let mut expected = Vec::new();
    for child in &planted.0 {
        let procs = format!("/sys/fs/cgroup/memory/{}/shims/cgroup.procs", place.instance);
        fs::write(procs, child.id().to_string())?;
        expected.push(("orphan", "process", format!("{} (", child.id())));
    }
    wait::until("the false shim", SOON, || {
        let line = fs::read(format!("/proc/{}/cmdline", planted.0[1].id()))?;
        Ok(line.starts_with(b"cove-shim").then_some(()))
    })?;
    Ok((planted, expected))
}

/// One group in one hierarchy, with a process, and one of another name.
fn plant_cgroups(place: &Place, planted: &mut Planted) -> Outcome<Vec<Expected>> {
    let parent = Path::new("/sys/fs/cgroup/pids").join(&place.instance);
    for name in [&nobody(1), "strange"] {
        fs::create_dir(parent.join(name))?;
    }
    let member = Command::new("sleep").arg("1000").spawn()?;
    fs::write(parent.join(nobody(1)).join("cgroup.procs"), member.id().to_string())?;
    let pid = member.id();
    planted.0.push(member);
    Ok(vec![
        ("orphan", "cgroup", format!("/pids/{}/{}", place.instance, nobody(1))),
        ("orphan", "cgroup", format!("/pids/{}/strange", place.instance)),
        ("orphan", "process", format!("{pid} (sleep)")),
    ])
}

/// Name and address of the host's end of a pod's link.
fn link(place: &Place, sandbox: &str) -> Outcome<[String; 2]> {
    let name = format!("{}{}", place.instance, &sandbox[..15 - place.instance.len()]);
    let address = fs::read_to_string(format!("/sys/class/net/{name}/address"))?.trim().to_owned();
    Ok([name, address])
}

/// What nobody but people removes.
const STRANGE_CHAIN: &str = "planted";

/// Removes it. Once it is gone nothing is left.
fn remove_by_hand(place: &Place) -> Outcome {
    let found = audit::look(place, true)?;
    ensure!(
        found.len() == 1 && found[0]["name"].as_str().is_some_and(|name| name.ends_with(STRANGE_CHAIN)),
        "{found:#?}"
    );
    run("nft", &["delete", "chain", "inet", &place.instance, STRANGE_CHAIN])?;
    audit::check(place)
}

/// `was`: the link of a pod that is gone.
fn plant_network(place: &Place, was: &[String; 2]) -> Outcome<Vec<Expected>> {
    let instance = &place.instance;
    let netns = [format!("{instance}-{}", nobody(1)), format!("{instance}-{}", nobody(2))];
    run("ip", &["netns", "add", &netns[0]])?;
    File::create(Path::new("/run/netns").join(&netns[1]))?;
    let [link, address] = was;
    run("ip", &["link", "add", link, "address", address, "type", "veth", "peer", "name", "e2e-peer"])?;
    run("nft", &["add", "element", "inet", instance, "any4", "{ 6 . 9999 : 10.214.0.99 . 80 }"])?;
    run("nft", &["add", "element", "inet", instance, "hairpin4", "{ 10.214.0.99 . 10.214.0.99 }"])?;
    run("nft", &["add", "rule", "inet", instance, "leaving", "accept"])?;
    run("nft", &["add", "chain", "inet", instance, STRANGE_CHAIN])?;
    Ok(vec![
        ("orphan", "mount", format!("/run/netns/{}", netns[0])),
        ("orphan", "netns", format!("/run/netns/{}", netns[1])),
        ("orphan", "link", link.clone()),
        ("orphan", "nft", "any4 { 6 . 9999".into()),
        ("orphan", "nft", "hairpin4 { 10.214.0.99".into()),
        ("orphan", "nft", format!("1 more rules in chain inet {instance} leaving")),
        ("orphan", "nft", format!("chain inet {instance} {STRANGE_CHAIN}")),
    ])
}

/// Directories of objects without a record, a temporary name, and a mount below one of them.
fn plant_files(place: &Place, container: &str) -> Outcome<Vec<Expected>> {
    let (root, state) = (&place.root, &place.state);
    let directories: [PathBuf; 3] = [
        root.join("sandboxes").join(nobody(1)),
        root.join("containers").join(nobody(2)),
        state.join("sandboxes").join(nobody(3)),
    ];
    for directory in &directories {
        fs::create_dir_all(directory.join("deep/deeper"))?;
    }
    let mount = directories[1].join("deep/deeper");
    run("mount", &["-t", "tmpfs", "planted", &mount.display().to_string()])?;
    let files =
        [root.join("containers").join(container).join("state.new"), root.join("sandboxes").join("stranger")];
    for file in &files {
        File::create(file)?.write_all(b"half")?;
    }
    let name = |path: &PathBuf| path.display().to_string();
    let mut expected = vec![("orphan", "mount", name(&mount))];
    expected.extend(directories.iter().map(|path| ("orphan", "directory", name(path))));
    expected.extend(files.iter().map(|path| ("orphan", "file", name(path))));
    Ok(expected)
}

async fn finds_and_removes_what_is_left_over(world: &mut World) -> Outcome {
    let place = place(world)?;
    let (sandbox, container) = live(world, "live", 18101).await?;
    // An address that stays leased to a pod that is taken down.
    let (down, _) = live(world, "down", 18102).await?;
    let attachment = place.root.join("sandboxes").join(&down).join("attachment.json");
    let lease = fs::read(&attachment)?;
    let was = link(&place, &down)?;
    world.stop_pod(&down).await?;
    audit::check(&place)?;
    fs::write(&attachment, lease)?;

    let (mut planted, mut expected) = plant_processes(&place, &world.directory)?;
    expected.push(("orphan", "lease", "10.".into()));
    expected.extend(plant_cgroups(&place, &mut planted)?);
    expected.extend(plant_network(&place, &was)?);
    expected.extend(plant_files(&place, &container)?);
    ensure_found(&audit::look(&place, false)?, &expected)?;
    let repaired = audit::look(&place, true)?;
    ensure_found(&repaired, &expected)?;
    let is_removed = |one: &Value| one["outcome"] == "removed";
    let is_strange = |one: &Value| one["name"].as_str().is_some_and(|name| name.ends_with(STRANGE_CHAIN));
    ensure!(repaired.iter().all(|one| is_removed(one) != is_strange(one)), "{repaired:#?}");
    for child in &mut planted.0 {
        ensure!(child.wait()?.code().is_none(), "it was killed");
    }
    remove_by_hand(&place)?;

    ensure_eq!(world.exec(&container, &["echo", "alive"]).await?.stdout, b"alive\n");
    let status = world.pod_status(&sandbox).await?;
    ensure_eq!(status.state(), PodSandboxState::SandboxReady);
    ensure!(run("ip", &["link", "show", "e2e-peer"]).is_err(), "the other end of the link went with it");
    Ok(())
}

async fn finds_and_removes_what_a_dead_daemon_left(world: &mut World) -> Outcome {
    let place = place(world)?;
    let (_, container) = live(world, "live", 18103).await?;
    let (gone, _) = live(world, "gone", 18105).await?;
    let was = link(&place, &gone)?;
    world.stop_pod(&gone).await?;
    world.remove_pod(&gone).await?;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    audit::check(&place)?;
    let images = place.root.join("images");
    // The next daemon does away with these by itself: a whole layer after its time, the others at once.
    let whole = images.join("layers").join(nobody(4));
    let waiting = [
        whole.clone(),
        images.join("tmp/7"),
        images.join("trash/8"),
        place.root.join("trash").join(nobody(0)),
    ];
    for path in &waiting {
        fs::create_dir_all(path.join("fs"))?;
    }
    let layer = fs::read_dir(images.join("layers"))?.flatten().find(|layer| layer.path() != whole);
    fs::copy(layer.ok_or("no layer")?.path().join("layer.json"), whole.join("layer.json"))?;
    audit::check(&place)?;
    // Nobody does away with a layer that cannot be read.
    let damaged = [images.join("layers").join(nobody(0)), images.join("layers/strange")];
    let mut expected = Vec::new();
    for path in &damaged {
        fs::create_dir_all(path.join("fs"))?;
        expected.push(("orphan", "layer", path.display().to_string()));
    }
    expected.extend(plant_files(&place, &container)?);
    expected.extend(plant_network(&place, &was)?);
    ensure_found(&audit::look(&place, false)?, &expected)?;
    ensure_found(&audit::look(&place, true)?, &expected)?;
    remove_by_hand(&place)?;
    ensure!(damaged.iter().all(|path| !path.exists()), "they are gone");
    ensure!(waiting.iter().all(|path| path.exists()), "they are the daemon's to delete");
    world.resume(&[]).await?;
    wait::until("the next daemon to tidy up", SOON, || {
        Ok(waiting.iter().all(|path| path.exists() == (*path == whole)).then_some(()))
    })?;
    ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn finds_what_is_missing(world: &mut World) -> Outcome {
    let place = place(world)?;
    let (sandbox, container) = live(world, "live", 18104).await?;
    let [link, _] = link(&place, &sandbox)?;
    let (pin, files) =
        (format!("{}-{sandbox}", place.instance), place.state.join("sandboxes").join(&sandbox));
    run("ip", &["netns", "del", &pin])?;
    run("ip", &["link", "del", &link])?;
    run("nft", &["flush", "map", "inet", &place.instance, "any4"])?;
    run("nft", &["flush", "chain", "inet", &place.instance, "guard"])?;
    fs::remove_file(files.join("hosts"))?;
    let bundle = place.root.join("containers").join(&container);
    fs::remove_file(bundle.join("config.json"))?;
    let expected: Vec<Expected> = vec![
        ("missing", "netns", pin),
        ("missing", "link", link),
        ("missing", "nft", "any4 { 6 . 18104".into()),
        ("missing", "nft", format!("3 rules of chain inet {} guard", place.instance)),
        ("missing", "file", files.join("hosts").display().to_string()),
        ("missing", "file", bundle.join("config.json").display().to_string()),
    ];
    let found = audit::look(&place, false)?;
    ensure_found(&found, &expected)?;
    // Nothing of it can be removed, so nothing is.
    ensure_found(&audit::look(&place, true)?, &expected)?;
    ensure!(
        found.iter().all(|one| one["pod"].is_string() || one["kind"] == "nft"),
        "it says whose it is: {found:#?}"
    );

    // Without a daemon nobody writes down that a shim has ended.
    world.daemon.take().ok_or("no daemon")?.kill()?;
    let shim = process::shim(&sandbox)?;
    process::signal(shim, Signal::KILL)?;
    wait::until("the end of the shim", SOON, || Ok((!process::lives(shim)).then_some(())))?;
    let mut expected = expected;
    expected.push(("missing", "process", format!("{shim} (cove-shim)")));
    // Of what the shim was the parent of, the kernel or the next daemon makes an end.
    let found: Vec<Value> = audit::look(&place, false)?
        .into_iter()
        .filter(|one| {
            one["kind"] != "process" || one["name"].as_str().is_some_and(|name| name.contains("shim"))
        })
        .collect();
    ensure_found(&found, &expected)?;
    world.resume(&[]).await?;
    world.stop_pod(&sandbox).await?;
    world.remove_pod(&sandbox).await?;
    Ok(())
}

/// Audits that repair, one after another, while pods come and go: none finds anything, and nobody notices them.
async fn leaves_operations_alone(world: &mut World) -> Outcome {
    let place = place(world)?;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let audits = std::thread::spawn(move || -> Outcome {
        while stopped.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Empty) {
            let found = audit::look(&place, true)?;
            if !found.is_empty() {
                return Err(format!("an audit found {found:#?}").into());
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    let mut round = 0;
    while !audits.is_finished() && (round < 12 || done.load(Ordering::Relaxed) < 5) {
        let (sandbox, container) = live(world, &format!("round-{}", round % 3), 18110 + round % 3).await?;
        ensure_eq!(world.exec(&container, &["true"]).await?.exit_code, 0);
        world.stop(&container, 0).await?;
        world.remove(&container).await?;
        world.stop_pod(&sandbox).await?;
        world.remove_pod(&sandbox).await?;
        round += 1;
    }
    drop(stop);
    audits.join().map_err(|_| "the auditor panicked")?
}

/// Two configurations of one instance with different roots: what is in the kernel is the one's, and the other does not
/// take it away, also when nobody is there to say so.
async fn leaves_roots_of_others_alone(world: &mut World) -> Outcome {
    let place = place(world)?;
    let (sandbox, container) = live(world, "live", 18120).await?;
    let mut other = place.clone();
    other.root = world.directory.join("other-root");
    other.state = world.directory.join("other-state");
    fs::create_dir_all(&other.root)?;
    fs::write(other.config_file(), other.config())?;
    let refused = |who: &str| -> Outcome {
        let output = Command::new(other.programs.join("cove"))
            .arg("--config")
            .arg(other.config_file())
            .args(["audit", "--repair"])
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure_eq!(output.status.code(), Some(1));
        ensure!(errors.contains(who) && errors.contains(&place.root.display().to_string()), "{errors}");
        Ok(())
    };
    let pid = world.daemon.as_ref().ok_or("no daemon")?.pid();
    refused(&format!("a daemon (pid {pid})"))?;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    refused("pods of this instance")?;
    world.resume(&[]).await?;
    audit::check(&place)?;
    // Shims are taken hold of after the daemon answers.
    let end = std::time::Instant::now() + SOON;
    let answer = loop {
        match world.exec(&container, &["echo", "alive"]).await {
            Ok(answer) => break answer,
            Err(error) if std::time::Instant::now() > end => return Err(error.into()),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    ensure_eq!(answer.stdout, b"alive\n");
    world.stop_pod(&sandbox).await?;
    world.remove_pod(&sandbox).await?;

    // With no pods left nobody is in the way.
    world.daemon.take().ok_or("no daemon")?.kill()?;
    audit::look(&other, true)?;
    world.resume(&[]).await
}
