//! The daemon dies and comes back: nothing that runs depends on it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use cove_e2e::image::{self, Layer};
use cove_e2e::random::Random;
use cove_e2e::spdy::{self, Frame};
use cove_e2e::{Outcome, pod, process, wait};
use k8s_cri::v1::*;
use serde_json::json;

use crate::world::{End, SOON, World, log_text};

cases!(
    keeps_what_runs,
    learns_what_ended_meanwhile,
    refuses_a_second_daemon,
    keeps_host_ports,
    keeps_limits_labels_and_filters,
    lists_no_image_that_is_not_whole,
    serves_streams_at_once,
    passes_nothing_on_that_it_was_left,
);

async fn pid(world: &mut World, container: &str) -> Outcome<i64> {
    let request = ContainerStatusRequest { container_id: container.into(), verbose: true };
    let info = world.cri.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    info["pid"].as_i64().ok_or_else(|| format!("no pid in {info}").into())
}

async fn keeps_what_runs(world: &mut World) -> Outcome {
    let config = world.pod("kept");
    let id = world.run_pod(&config).await?;
    let script = world.script("count", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done");
    let container = world.launch(&id, &config, &script).await?;
    let before = (world.pod_status(&id).await?, pid(world, &container).await?);
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        ensure_eq!(world.pod_status(&id).await?, before.0);
        ensure_eq!(pid(world, &container).await?, before.1);
        ensure_eq!(world.status(&container).await?.state(), ContainerState::ContainerRunning);
        let answer = world.exec(&container, &["echo", "still here"]).await?;
        ensure_eq!(answer.stdout, b"still here\n");
        ensure_eq!(world.run_pod(&config).await?, id);
    }
    world.stop(&container, 1).await?;
    let text = log_text(&fs::read_to_string(world.status(&container).await?.log_path)?)?;
    for (n, line) in text.lines().enumerate() {
        ensure!(line == (n + 1).to_string(), "line {n} of the log is {line:?}: a gap");
    }
    Ok(())
}

async fn learns_what_ended_meanwhile(world: &mut World) -> Outcome {
    let config = world.pod("meanwhile");
    let id = world.run_pod(&config).await?;
    let gate = world.directory.join("gate");
    fs::create_dir(&gate)?;
    let mut script =
        world.script("wait", "while ! test -e /gate/open; do sleep 0.02; done; echo last words; exit 42");
    let volume =
        Mount { container_path: "/gate".into(), host_path: gate.display().to_string(), ..Default::default() };
    script.mounts.push(volume);
    let container = world.launch(&id, &config, &script).await?;
    let log = world.status(&container).await?.log_path;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    fs::write(gate.join("open"), "")?;
    wait::until("the container's last words", SOON, || {
        Ok(fs::read_to_string(&log)?.contains("last words").then_some(()))
    })?;
    world.resume(&[]).await?;
    let status = world.exited(&container).await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    Ok(())
}

async fn refuses_a_second_daemon(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    let first = world.daemon.as_ref().ok_or("no daemon")?.pid();
    let mut second = place.start()?;
    let error = second.connect_or_end().await.err().ok_or("the second daemon lives")?.to_string();
    ensure!(error.contains("ended with") && error.contains(&first.to_string()), "{error}");
    let version = world.cri.runtime.version(VersionRequest::default()).await?.into_inner();
    ensure!(!version.runtime_name.is_empty(), "the first still answers");
    Ok(())
}

async fn keeps_host_ports(world: &mut World) -> Outcome {
    let mut config = world.pod("ports");
    // A port that is free now; a process that takes it in between makes the case fail loudly.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    config.port_mappings.push(PortMapping {
        container_port: 80,
        host_port: port.into(),
        ..Default::default()
    });
    let id = world.run_pod(&config).await?;
    let script = "mkdir -p /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www";
    world.launch(&id, &config, &world.script("web", script)).await?;
    serves(port)?;
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        serves(port)?;
    }
    // What somebody wiped while the daemon was down is there again.
    let instance = world.place.as_ref().ok_or("no place")?.instance.clone();
    world.daemon.take().ok_or("no daemon")?.kill()?;
    let wiped = std::process::Command::new("nft").args(["delete", "table", "inet", &instance]).output()?;
    ensure!(wiped.status.success(), "{}", String::from_utf8_lossy(&wiped.stderr));
    world.resume(&[]).await?;
    serves(port)?;
    world.stop_pod(&id).await?;
    let refused = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), SOON);
    ensure!(refused.is_err(), "the port of a stopped pod is served");
    Ok(())
}

fn serves(port: u16) -> Outcome {
    let place = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = wait::until("the host port to be served", SOON, || {
        Ok(TcpStream::connect_timeout(&place, Duration::from_secs(1)).ok())
    })?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    ensure!(text.contains("served"), "{text:?}");
    Ok(())
}

/// What the kernel holds a process to: the limits of its cgroups, its own limits, capabilities and filters.
fn held_to(pid: i64) -> Outcome<BTreeMap<String, String>> {
    const FILES: &[&str] = &[
        "memory.limit_in_bytes",
        "memory.max",
        "cpu.shares",
        "cpu.weight",
        "cpu.cfs_quota_us",
        "cpu.max",
        "cpuset.cpus",
        "pids.max",
        "devices.list",
    ];
    let mut found = BTreeMap::new();
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup"))?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let hierarchy = controllers.trim_start_matches("name=").split(',').next().unwrap_or_default();
        for file in FILES {
            let file = format!("/sys/fs/cgroup/{hierarchy}{path}/{file}");
            if let Ok(text) = fs::read_to_string(&file) {
                found.insert(file, text);
            }
        }
    }
    found.insert("limits".into(), fs::read_to_string(format!("/proc/{pid}/limits"))?);
    for line in fs::read_to_string(format!("/proc/{pid}/status"))?.lines() {
        if ["Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Cap"].iter().any(|name| line.starts_with(name))
        {
            found.insert(line.split(':').next().unwrap_or_default().to_owned(), line.to_owned());
        }
    }
    Ok(found)
}

async fn keeps_limits_labels_and_filters(world: &mut World) -> Outcome {
    let mut config = world.pod("held");
    config.labels.insert("app".into(), "held".into());
    config.annotations.insert("example.org/note".into(), "kept".into());
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert("net.ipv4.ip_local_port_range".into(), "20000 30000".into());
    let id = world.run_pod(&config).await?;
    let mut script = world.script("held", "exec sleep 1000");
    script.labels.insert("part".into(), "main".into());
    script.annotations.insert("example.org/note".into(), "kept".into());
    *pod::resources(&mut script) = LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    let security = pod::security(&mut script);
    security.no_new_privs = true;
    security.seccomp = Some(SecurityProfile::default());
    security.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    let container = world.launch(&id, &config, &script).await?;
    let number = pid(world, &container).await?;
    let before = (held_to(number)?, world.status(&container).await?, world.pod_status(&id).await?);
    let limits: Vec<_> = before.0.values().map(|value| value.trim()).collect();
    ensure!(limits.contains(&(64 << 20).to_string().as_str()), "no limit of 64 MiB in {limits:?}");
    ensure!(limits.contains(&"Seccomp:\t2"), "no filter in {limits:?}");
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        ensure_eq!(pid(world, &container).await?, number);
        let after = (held_to(number)?, world.status(&container).await?, world.pod_status(&id).await?);
        ensure_eq!(after, before);
        let range = world.exec(&container, &["cat", "/proc/sys/net/ipv4/ip_local_port_range"]).await?;
        ensure_eq!(range.stdout, b"20000\t30000\n");
        let filter = ContainerFilter {
            label_selector: [("part".to_owned(), "main".to_owned())].into(),
            ..Default::default()
        };
        let request = ListContainersRequest { filter: Some(filter) };
        let listed = world.cri.runtime.list_containers(request).await?.into_inner().containers;
        ensure!(listed.len() == 1 && listed[0].annotations == script.annotations, "{listed:?}");
    }
    Ok(())
}

/// A way to the registry that lets so many bytes of its answers through, and then holds.
struct Door {
    host: String,
    left: Arc<AtomicI64>,
}

impl Door {
    fn new(registry: &str) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (host, left) = (listener.local_addr()?.to_string(), Arc::new(AtomicI64::new(i64::MAX)));
        let (registry, budget) = (registry.to_owned(), Arc::clone(&left));
        // Threads end with their connections; the last, which waits for more, with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&registry) else { return };
                let (Ok(mut asks), Ok(mut to)) = (client.try_clone(), server.try_clone()) else { return };
                std::thread::spawn(move || std::io::copy(&mut asks, &mut to));
                let left = Arc::clone(&budget);
                std::thread::spawn(move || pass(server, client, &left));
            }
        });
        Ok(Self { host, left })
    }

    fn holds(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, left: &AtomicI64) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return to.shutdown(std::net::Shutdown::Both);
        }
        let size = i64::try_from(length).unwrap_or(0);
        left.fetch_sub(size, Ordering::SeqCst);
        while left.load(Ordering::SeqCst) <= 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        to.write_all(&buffer[..length])?;
    }
}

async fn lists_no_image_that_is_not_whole(world: &mut World) -> Outcome {
    let mut random = Random::new(7);
    let mut file = |name: &str| {
        let bytes: Vec<u8> = (0..200_000).map(|_| random.below(256).to_le_bytes()[0]).collect();
        (Layer::new().file(name, 0o644, &bytes), image::digest(&bytes).replacen("sha256:", "", 1))
    };
    let ((first, first_digest), (second, second_digest)) = (file("first"), file("second"));
    let whole = image::build(vec![image::busybox()?, first, second], json!({"Env": ["PATH=/bin"]}))?;
    world.registry.push("e2e/killed", "1", &whole)?;
    let door = Door::new(&world.registry.host)?;
    let reference = format!("{}/e2e/killed:1", door.host);
    let config = world.pod("killed");
    let root = world.place.as_ref().ok_or("no place")?.root.clone();
    let layers = || -> Outcome<usize> { Ok(fs::read_dir(root.join("images/layers"))?.count()) };
    let before = layers()?;
    // In the manifest, in the first layer or two that are not there (200 kB each), and just before their end.
    for cut in [500, 100_000, 250_000, 398_000] {
        door.left.store(cut, Ordering::SeqCst);
        let mut cri = world.cri.clone();
        let image = Some(ImageSpec { image: reference.clone(), ..Default::default() });
        let request = PullImageRequest { image: image.clone(), ..Default::default() };
        let pulling = tokio::spawn(async move { cri.images.pull_image(request).await });
        wait::until("the pull to be held", SOON, || Ok(door.holds().then_some(())))?;
        ensure!(!pulling.is_finished(), "cut at {cut}, and it is there");
        world.restart(End::Kill).await?;
        ensure!(pulling.await?.is_err(), "answered by a daemon that was killed");
        door.left.store(i64::MAX, Ordering::SeqCst);
        let images = world.cri.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
        ensure!(images.iter().all(|listed| listed.id != whole.id), "cut at {cut}, and listed: {images:?}");
        let halves: Vec<_> = fs::read_dir(root.join("images/tmp"))?.flatten().collect();
        ensure!(halves.is_empty(), "cut at {cut}, and left: {halves:?}");
        ensure_eq!(world.pull(&reference).await?, whole.id);
        let id = world.run_pod(&config).await?;
        let command = ["sha256sum", "/first", "/second"];
        let (status, text) =
            world.output(&id, &config, &pod::container("sums", &reference, &command)).await?;
        ensure_eq!(status.exit_code, 0);
        ensure!(text.contains(&first_digest) && text.contains(&second_digest), "{text}");
        world.remove_pod(&id).await?;
        world.cri.images.remove_image(RemoveImageRequest { image }).await?;
        // Its layers go with it, so that the next pull fetches all of them again.
        wait::until("the layers to be collected", SOON, || Ok((layers()? == before).then_some(())))?;
    }
    Ok(())
}

async fn serves_streams_at_once(world: &mut World) -> Outcome {
    let mut pods = Vec::new();
    for n in 0..20 {
        let config = world.pod(&format!("stream-{n}"));
        let id = world.run_pod(&config).await?;
        let script = "exec busybox nc -ll -p 8080 -e echo of the pod";
        pods.push((id.clone(), world.launch(&id, &config, &world.script("server", script)).await?));
    }
    for how in [End::Kill, End::Term] {
        world.restart(how).await?;
        let mut asked = tokio::task::JoinSet::new();
        for (pod, container) in &pods {
            let mut runtime = world.cri.runtime.clone();
            let forward = PortForwardRequest { pod_sandbox_id: pod.clone(), port: Vec::new() };
            asked.spawn(async move {
                let url = runtime.port_forward(forward).await?.into_inner().url;
                let (mut writer, mut reader) = spdy::connect(&url, "portforward.k8s.io").await?;
                let (_, data) = writer.forward(1, 8080).await?;
                while let Some(frame) = reader.next().await? {
                    match frame {
                        Frame::Data(id, bytes, false) if id == data => {
                            ensure_eq!(bytes, b"of the pod\n");
                            return Ok(());
                        }
                        Frame::Reset(..) => break,
                        _ => {}
                    }
                }
                Outcome::Err("the pod did not answer".into())
            });
            let mut runtime = world.cri.runtime.clone();
            let cmd = vec!["true".to_owned()];
            let exec = ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
            asked.spawn(async move { Ok(runtime.exec_sync(exec).await.map(drop)?) });
        }
        while let Some(answered) = asked.join_next().await {
            answered??;
        }
    }
    Ok(())
}

/// As from a shell or a lock that runs a command: a pod that held it would hold it for weeks.
async fn passes_nothing_on_that_it_was_left(world: &mut World) -> Outcome {
    let path = world.directory.join("left-open");
    let file = fs::File::create(&path)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    world.restart(End::Term).await?;
    let holds = |pid: i64| -> Outcome<bool> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
        Ok(descriptors.map(|one| fs::read_link(one.path())).any(|link| link.is_ok_and(|link| link == path)))
    };
    let daemon = world.daemon.as_ref().ok_or("no daemon")?.pid();
    ensure!(holds(daemon.into())?, "the daemon has not got it, so nothing is tried");
    let config = world.pod("left");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("left", "exec sleep 1000")).await?;
    ensure!(!holds(process::shim(&id)?.into())?, "the shim has it");
    ensure!(!holds(pid(world, &container).await?)?, "the container has it");
    Ok(())
}
