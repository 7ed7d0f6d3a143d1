//! What runs side by side: two daemons of different instances, and daemons and shims of different builds.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cove_e2e::daemon::{Daemon, Place};
use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod, process, residue, wait};
use k8s_cri::v1::{ContainerState, PortMapping};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::Ground;
use crate::stranger::{Answer, Stranger};

/// How long anything here may take.
const SOON: Duration = Duration::from_secs(15);
/// What a daemon does not learn from a shim it looks for every ten seconds.
const ENDS_UNTOLD: Duration = Duration::from_secs(30);

/// A daemon that has the image.
async fn start(ground: &Ground, place: &Place) -> Outcome<(Daemon, Kubelet)> {
    let mut daemon = place.start()?;
    let mut kubelet = Kubelet(daemon.connect().await?);
    kubelet.pull(&ground.image).await?;
    Ok((daemon, kubelet))
}

/// A pod that serves its instance's name, also by a port of the host.
struct Server {
    id: String,
    text: String,
    places: [SocketAddr; 2],
}

impl Server {
    async fn start(ground: &Ground, kubelet: &mut Kubelet, text: &str, port: u16) -> Outcome<Self> {
        let mut config = ground.pod("server");
        config.port_mappings.push(PortMapping {
            container_port: 80,
            host_port: port.into(),
            host_ip: "127.0.0.1".into(),
            ..Default::default()
        });
        let id = kubelet.run(&config).await?;
        let script = format!("mkdir -p /www; echo {text} >/www/index.html; exec httpd -f -p 80 -h /www");
        let container = pod::container("web", &ground.image, &["sh", "-c", &script]);
        let container = kubelet.create(&id, &config, &container).await?;
        kubelet.start(&container).await?;
        let address = kubelet.pod_status(&id).await?.network.ok_or("no network")?.ip.parse()?;
        let places = [SocketAddr::new(address, 80), SocketAddr::from(([127, 0, 0, 1], port))];
        Ok(Self { id, text: text.to_owned(), places })
    }

    fn answers(&self) -> Outcome {
        for place in self.places {
            let mut stream = wait::until(&format!("{place} to be served"), SOON, || {
                Ok(TcpStream::connect_timeout(&place, SOON).ok())
            })?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            if !answer.contains(&self.text) {
                return Err(format!("{place} answers {answer:?}, not {}", self.text).into());
            }
        }
        Ok(())
    }
}

/// Two instances with pods of the same name: each knows its own, and the end of one is nothing to the other.
pub async fn instances(ground: &Ground) -> Outcome {
    let directory = ground.directory.path().join("second");
    let second = Place {
        instance: "second".into(),
        root: directory.join("root"),
        state: directory.join("state"),
        range: "10.218.0.0/24".into(),
        ..ground.place.clone()
    };
    let (daemon, mut kubelet) = start(ground, &ground.place).await?;
    let (other_daemon, mut other) = start(ground, &second).await?;
    let mine = Server::start(ground, &mut kubelet, "of-the-first", 18_216).await?;
    let its = Server::start(ground, &mut other, "of-the-second", 18_218).await?;
    for (kubelet, server) in [(&mut kubelet, &mine), (&mut other, &its)] {
        server.answers()?;
        if kubelet.pods().await? != [server.id.clone()] {
            return Err(format!("an instance lists {:?}", kubelet.pods().await?).into());
        }
    }
    // Another's pod is not there, so stopping and removing it is done.
    kubelet.stop_pod(&its.id).await?;
    kubelet.remove_pod(&its.id).await?;
    its.answers()?;
    // A daemon on one root of another is told whose it is.
    for (root, state) in [(&second.root, &directory), (&directory, &second.state)] {
        let place = Place { root: root.clone(), state: state.clone(), ..second.clone() };
        let refused = place.start()?.connect_or_end().await.err().ok_or("two daemons on one root")?;
        if !refused.to_string().contains(&format!("pid {}", other_daemon.pid())) {
            return Err(format!("the first is not named: {refused}").into());
        }
    }
    // Killed and started again, with the host ports of the other in force.
    daemon.kill()?;
    let (daemon, mut kubelet) = start(ground, &ground.place).await?;
    mine.answers()?;
    its.answers()?;
    other.stop_pod(&its.id).await?;
    other.remove_pod(&its.id).await?;
    residue::check(&second, Some(other_daemon.pid()))?;
    other_daemon.stop()?;
    residue::check(&second, None)?;
    mine.answers()?;
    let (other_daemon, mut other) = start(ground, &second).await?;
    let its = Server::start(ground, &mut other, "of-the-second", 18_218).await?;
    kubelet.stop_pod(&mine.id).await?;
    kubelet.remove_pod(&mine.id).await?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)?;
    its.answers()?;
    other.stop_pod(&its.id).await?;
    other.remove_pod(&its.id).await?;
    other_daemon.stop()?;
    residue::check(&second, None)
}

/// What a shim's program says of itself.
fn version(program: &Path) -> Outcome<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split(' ').nth(1).ok_or("a shim without a build")?.to_owned())
}

/// The shim's program, but for the name of its build.
fn rename_build(program: &Path, target: &Path) -> Outcome<String> {
    let build = version(program)?;
    let renamed = format!("{}{}", if build.starts_with('8') { '9' } else { '8' }, &build[1..]);
    let mut bytes = fs::read(program)?;
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(build.len()).position(|window| window == build.as_bytes()) {
        at += found;
        bytes[at..at + build.len()].copy_from_slice(renamed.as_bytes());
    }
    fs::write(target, bytes)?;
    fs::set_permissions(target, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let told = version(target)?;
    if told == renamed { Ok(renamed) } else { Err(format!("{renamed} calls itself {told}").into()) }
}

/// A package that is upgraded under a live daemon mixes nothing, and the next daemon drives the shims of both builds.
pub async fn builds(ground: &Ground) -> Outcome {
    let programs: PathBuf = ground.directory.path().join("programs");
    fs::create_dir_all(&programs)?;
    fs::copy(ground.place.programs.join("cove"), programs.join("cove"))?;
    let (shim, new) = (programs.join("cove-shim"), ground.place.programs.join("cove-shim"));
    let old_build = rename_build(&new, &shim)?;
    let place = Place { programs: programs.clone(), ..ground.place.clone() };
    let (daemon, mut kubelet) = start(ground, &place).await?;
    let mut pods = vec![kubelet.run(&ground.pod("before")).await?];
    fs::copy(&new, programs.join("upgraded"))?;
    fs::rename(programs.join("upgraded"), &shim)?;
    pods.push(kubelet.run(&ground.pod("between")).await?);
    daemon.stop()?;
    let (daemon, mut kubelet) = start(ground, &place).await?;
    pods.push(kubelet.run(&ground.pod("after")).await?);
    let mut builds = Vec::new();
    for id in &pods {
        builds.push(version(Path::new(&format!("/proc/{}/exe", process::shim(id)?)))?);
    }
    if builds != [old_build.clone(), old_build, version(&new)?] {
        return Err(format!("the shims are of the builds {builds:?}").into());
    }
    for (id, name) in pods.iter().zip(["before", "between", "after"]) {
        let config = ground.pod(name);
        let container = pod::container("lives", &ground.image, &["sh", "-c", "echo here; exec sleep 1000"]);
        let container = kubelet.create(id, &config, &container).await?;
        kubelet.start(&container).await?;
        let (code, said) = kubelet.exec(&container, &["echo", "driven"]).await?;
        let log = kubelet.status(&container).await?.log_path;
        wait::until("its log", SOON, || Ok(fs::read_to_string(&log)?.contains(" here").then_some(())))?;
        if (code, said.as_slice()) != (0, b"driven\n") {
            return Err(format!("exec by the shim of {name} ends with {code} and {said:?}").into());
        }
        kubelet.stop(&container, 0).await?;
        if kubelet.status(&container).await?.exit_code != 137 {
            return Err("a killed container did not end with 137".into());
        }
        kubelet.remove(&container).await?;
        kubelet.stop_pod(id).await?;
        kubelet.remove_pod(id).await?;
    }
    residue::check(&place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&place, None)?;
    Ok(fs::remove_dir_all(programs)?)
}

/// A container that ends by itself is said to have ended, whatever only its shim knows of how.
async fn ends_untold(kubelet: &Kubelet, container: &str, pid: i32) -> Outcome {
    process::signal(pid, Signal::KILL)?;
    wait::until_async("the end of a container to be seen", ENDS_UNTOLD, || {
        let mut kubelet = kubelet.clone();
        async move {
            let status = kubelet.status(container).await?;
            let is_lost = status.exit_code == 255 && status.reason == "Unknown";
            Ok((status.state() == ContainerState::ContainerExited && is_lost).then_some(()))
        }
    })
    .await
}

/// Shims that this daemon cannot talk to: their pods are listed as they are, and can be stopped and removed. One that is
/// left alone serves a later daemon that it does obey.
pub async fn strangers(ground: &Ground) -> Outcome {
    let (daemon, mut kubelet) = ground.start("").await?;
    let mut pods = Vec::new();
    for answer in Answer::ALL.into_iter().chain([Answer::Refuses]) {
        let config = ground.pod(&format!("{answer:?}-{}", pods.len()).to_lowercase());
        let id = kubelet.run(&config).await?;
        let script = "while :; do echo line; sleep 0.05; done";
        let container = pod::container("goes-on", &ground.image, &["sh", "-c", script]);
        let container = kubelet.create(&id, &config, &container).await?;
        kubelet.start(&container).await?;
        let pid = kubelet.pid(&container).await?;
        pods.push((answer, id, container, pid));
    }
    daemon.kill()?;
    let mut strangers = Vec::new();
    for (answer, id, ..) in &pods {
        strangers.push(Stranger::in_place_of(&ground.place.state.join("sandboxes").join(id), *answer)?);
    }
    let (daemon, mut kubelet) = ground.start("").await?;
    for (n, stranger) in strangers.iter().enumerate() {
        let (answer, id, container, pid) = &pods[n];
        wait::until("the daemon to ask the stranger", SOON, || Ok(stranger.was_asked().then_some(())))?;
        if *answer == Answer::Later {
            ends_untold(&kubelet, container, *pid).await?;
            continue;
        }
        let status = kubelet.status(container).await?;
        let is_listed = kubelet.containers().await?.contains(container) && kubelet.pods().await?.contains(id);
        if !is_listed || status.state() != ContainerState::ContainerRunning || !process::lives(*pid) {
            return Err(format!("{answer:?}: {status:?}").into());
        }
        // It writes its log as ever.
        let lines = || -> Outcome<usize> { Ok(fs::read_to_string(&status.log_path)?.lines().count()) };
        let before = lines()?;
        wait::until("the log to grow", SOON, || Ok((lines()? > before).then_some(())))?;
    }
    let (_, left_id, left_container, left_pid) = pods.pop().ok_or("no pods")?;
    let mut endings = JoinSet::new();
    for (answer, id, container, pid) in pods {
        let mut kubelet = kubelet.clone();
        endings.spawn(async move {
            let ended = async {
                kubelet.stop(&container, 1).await?;
                let status = kubelet.status(&container).await?;
                if status.state() != ContainerState::ContainerExited || process::lives(pid) {
                    return Err(format!("stopped, and still {status:?}").into());
                }
                kubelet.remove(&container).await?;
                kubelet.stop_pod(&id).await?;
                kubelet.remove_pod(&id).await?;
                Outcome::Ok(())
            };
            match tokio::time::timeout(SOON, ended).await {
                Ok(ended) => ended.map_err(|error| format!("{answer:?}: {error}")),
                Err(_) => Err(format!("{answer:?}: its end takes longer than {SOON:?}")),
            }
        });
    }
    while let Some(ended) = endings.join_next().await {
        ended??;
    }
    // Who reads the daemon's log is told why these pods can do no more than go on and end.
    let log = fs::read_to_string(ground.place.log())?;
    for reason in ["too old for this shim", "speaks protocol 9"] {
        if !log.contains(reason) {
            return Err(format!("the log does not say {reason:?}").into());
        }
    }
    daemon.kill()?;
    drop(strangers);
    let (daemon, mut kubelet) = ground.start("").await?;
    let (code, _) = kubelet.exec(&left_container, &["true"]).await?;
    if code != 0 || kubelet.pid(&left_container).await? != left_pid {
        return Err("a shim that was left alone does not serve a daemon that it obeys".into());
    }
    kubelet.stop_pod(&left_id).await?;
    kubelet.remove_pod(&left_id).await?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}
