//! Large transfers through Exec and PortForward of Cove, and of containerd with runc, by the real crictl: how fast, and
//! whether all of it arrived, by SHA-256.
//!
//! `stream [--mib N]`; 1024 by default. Each way is taken by both runtimes in turn.
#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    reason = "requests with every field of a pod are large, and nobody counts here"
)]

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use cove_e2e::cache::cached;
use cove_e2e::client::Cri;
use cove_e2e::crictl::Crictl;
use cove_e2e::daemon::{self, Place};
use cove_e2e::image;
use cove_e2e::peer::Peer;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_buf};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

/// How long one transfer may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a runtime may take to be ready for one.
const SOON: Duration = Duration::from_secs(15);
/// Bytes that are moved at a time here.
const CHUNK: usize = 64 * 1024;
/// What crictl can speak.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// One way for bytes.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// Through `cat` in a container, there and back at the same time.
    Exec,
    /// From a server in a pod, which hangs up after it.
    Down,
    /// To a server in a pod, which answers with the digest once the client has ended its half.
    Up,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stream: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One runtime.
struct Side {
    cri: Cri,
    crictl: Crictl,
    pod: String,
    container: String,
}

async fn run() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mib: u64 = match arguments.iter().position(|argument| argument == "--mib") {
        Some(place) => arguments.get(place + 1).ok_or("--mib needs a number")?.parse()?,
        None => 1024,
    };
    let keep = tempfile::Builder::new().prefix("cove-stream-").tempdir()?;
    let settings = Saved::now()?;
    let outcome = measure(keep.path(), mib).await;
    settings.restore()?;
    outcome
}

async fn measure(directory: &Path, mib: u64) -> Outcome {
    let registry = Registry::start(&directory.join("registry"))?;
    let config = json!({"Env": ["PATH=/bin"], "Entrypoint": ["sleep", "1000000"]});
    let pause = registry.push("stream/pause", "1", &image::build(vec![image::busybox()?], config)?)?;
    let image = image::build(vec![image::busybox()?, image::accounts()], json!({"Env": ["PATH=/bin"]}))?;
    let reference = registry.push("stream/busybox", "1", &image)?;
    let file = directory.join("data");
    let make = format!("head -c {} /dev/urandom >{}", mib << 20, file.display());
    shell(&make).await?;
    let sum = shell(&format!("sha256sum <{}", file.display())).await?;
    let programs = cached("bin");
    let peer = Peer::start(&directory.join("containerd"), &programs, &pause, "10.219.0.0/16")?;
    let place = Place {
        instance: "strm".into(),
        root: directory.join("root"),
        state: directory.join("state"),
        range: "10.218.0.0/16".into(),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    };
    let mut cove = place.start()?;
    let ready = async {
        let ours = Side::new(cove.connect().await?, &place.socket(), directory, &reference, "cove").await?;
        let theirs =
            Side::new(peer.connect().await?, &peer.socket, directory, &reference, "containerd").await?;
        Outcome::Ok([ours, theirs])
    };
    let outcome = match ready.await {
        Ok(sides) => {
            let outcome = compare(&sides, &file, &sum, mib).await;
            for side in sides {
                side.end().await?;
            }
            outcome
        }
        Err(error) => Err(error),
    };
    cove.stop()?;
    peer.end()?;
    outcome
}

async fn compare(sides: &[Side; 2], file: &Path, sum: &str, mib: u64) -> Outcome {
    println!("{mib} MiB of random bytes; MiB a second, and SHA-256 at the end");
    println!("{:<36} {:>16} {:>16} {:>7}", "", "cove", "containerd", "ratio");
    let mut lost = Vec::new();
    for (name, way) in [
        ("exec, there and back", Way::Exec),
        ("port-forward, from the pod", Way::Down),
        ("port-forward, to the pod", Way::Up),
    ] {
        for transport in TRANSPORTS {
            let mut rates = Vec::new();
            for side in sides {
                let began = Instant::now();
                let moved = timeout(LIMIT, side.transfer(way, transport, file)).await;
                #[expect(clippy::cast_precision_loss, reason = "some thousand")]
                let rate = mib as f64 / began.elapsed().as_secs_f64();
                rates.push(match moved {
                    Ok(Ok(digest)) if digest == sum => Ok(rate),
                    Ok(Ok(_)) => Err("not whole".to_owned()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no end".to_owned()),
                });
            }
            let name = format!("{name}, {transport}");
            let text = |rate: &Result<f64, String>| match rate {
                Ok(rate) => format!("{rate:.0}"),
                Err(error) => error.chars().take(16).collect(),
            };
            let ratio = match &rates[..] {
                [Ok(ours), Ok(theirs)] => format!("{:.2}", ours / theirs),
                _ => "-".to_owned(),
            };
            println!("{name:<36} {:>16} {:>16} {ratio:>7}", text(&rates[0]), text(&rates[1]));
            if let Err(error) = &rates[0] {
                lost.push(format!("{name}: {error}"));
            }
        }
    }
    if lost.is_empty() { Ok(()) } else { Err(lost.join("; ").into()) }
}

/// What a shell writes.
async fn shell(script: &str) -> Outcome<String> {
    let output = Command::new("bash").args(["-ec", script]).stderr(Stdio::piped()).output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().last().unwrap_or("failed").to_owned().into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

impl Side {
    async fn new(
        mut cri: Cri,
        socket: &Path,
        directory: &Path,
        reference: &str,
        name: &str,
    ) -> Outcome<Self> {
        let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
        cri.images.pull_image(PullImageRequest { image, ..Default::default() }).await?;
        let logs = directory.join("logs").join(name);
        fs::create_dir_all(&logs)?;
        let config =
            PodSandboxConfig { log_directory: logs.to_string_lossy().into_owned(), ..pod::sandbox(name) };
        let script = "busybox nc -ll -p 8081 -e cat /data/data & exec busybox nc -ll -p 8082 -e sha256sum";
        let mut container = pod::container("servers", reference, &["sh", "-c", script]);
        container.mounts.push(Mount {
            container_path: "/data".into(),
            host_path: directory.display().to_string(),
            readonly: true,
            ..Default::default()
        });
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let pod = cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container = cri.runtime.create_container(request).await?.into_inner().container_id;
        let request = StartContainerRequest { container_id: container.clone() };
        cri.runtime.start_container(request).await?;
        Ok(Self { cri, crictl: Crictl::new(socket), pod, container })
    }

    /// The digest of what arrived, as `sha256sum` writes it.
    async fn transfer(&self, way: Way, transport: &str, file: &Path) -> Outcome<String> {
        if let Way::Exec = way {
            let exec = self.crictl.line(&["exec", "-i", "--transport", transport, &self.container, "cat"]);
            return shell(&format!("set -o pipefail; {exec} <{} | sha256sum", file.display())).await;
        }
        let theirs = if matches!(way, Way::Down) { 8081 } else { 8082 };
        let (mut child, port) = self.forward(transport, theirs).await?;
        let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
        let digest = match way {
            Way::Down => {
                let mut sum =
                    Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
                let mut stdin = sum.stdin.take().ok_or("no stdin")?;
                copy_buf(&mut BufReader::with_capacity(CHUNK, &mut client), &mut stdin).await?;
                drop(stdin);
                String::from_utf8(sum.wait_with_output().await?.stdout)?
            }
            Way::Exec | Way::Up => {
                let (mut file, mut chunk) = (fs::File::open(file)?, vec![0; CHUNK]);
                loop {
                    match file.read(&mut chunk)? {
                        0 => break,
                        length => client.write_all(&chunk[..length]).await?,
                    }
                }
                client.shutdown().await?;
                let mut digest = String::new();
                client.read_to_string(&mut digest).await?;
                digest
            }
        };
        child.kill().await?;
        Ok(digest)
    }

    /// crictl port-forward, and the port on this side.
    async fn forward(&self, transport: &str, port: u16) -> Outcome<(tokio::process::Child, u16)> {
        let ours = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let ports = format!("{ours}:{port}");
        let mut child = self
            .crictl
            .command(&["port-forward", "--transport", transport, &self.pod, &ports])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        loop {
            let line = timeout(SOON, lines.next_line()).await??.ok_or("refused")?;
            if line.contains("Forwarding from 127.0.0.1") {
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok((child, ours));
            }
        }
    }

    async fn end(mut self) -> Outcome {
        let runtime = &mut self.cri.runtime;
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: self.pod.clone() }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: self.pod }).await?;
        Ok(())
    }
}
