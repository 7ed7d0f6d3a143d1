//! Exec, Attach and PortForward: with the real crictl, and with clients that break the rules.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cove_e2e::Outcome;
use cove_e2e::crictl::Crictl;
use cove_e2e::wait;
use k8s_cri::v1::*;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::ensure::Refused;
use crate::world::{SOON, World};

cases!(
    exec_carries_streams_and_code,
    exec_carries_much_in_both_directions,
    exec_has_a_terminal,
    exec_tells_a_missing_command,
    exec_dies_with_its_client,
    exec_leaves_nothing_behind,
    attaches_to_stdin_once,
    attaches_to_a_terminal,
    a_client_that_does_not_read_holds_nobody_up,
    refuses_what_cannot_be_streamed,
    a_token_is_used_once_and_for_one_thing,
    ends_clients_that_break_the_rules,
    forwards_ports,
    forwards_ports_of_the_host_and_tells_closed_ones,
);

/// Bytes of a large transfer.
const LARGE: usize = 64 << 20;

pub(crate) async fn sleeper(world: &mut World) -> Outcome<(String, String)> {
    let config = world.pod("stream");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("sleep", "sleep 100000")).await?;
    Ok((id, container))
}

pub(crate) fn crictl(world: &World) -> Outcome<Crictl> {
    Ok(Crictl::new(&world.place.as_ref().ok_or("needs a daemon of its own")?.socket()))
}

pub(crate) const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

async fn exec_carries_streams_and_code(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for transport in TRANSPORTS {
        let script = "echo out; echo err >&2; exit 5";
        let args = ["exec", "--transport", transport, &container, "sh", "-c", script];
        let output = crictl(world)?.command(&args).output().await?;
        ensure_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(stderr.starts_with("err\n"), "{transport}: {stderr}");
        ensure!(stderr.contains("5"), "{transport}: {stderr}");
        ensure!(!output.status.success(), "{transport}");
    }
    Ok(())
}

pub(crate) fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

async fn exec_carries_much_in_both_directions(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let sent = noise(LARGE);
    let expected = digest(&sent);
    for transport in TRANSPORTS {
        let args = ["exec", "-i", "--transport", transport, &container, "cat"];
        let mut child = crictl(world)?
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let mut stdout = child.stdout.take().ok_or("no stdout")?;
        let mut got = Vec::with_capacity(LARGE);
        let write = async {
            stdin.write_all(&sent).await?;
            stdin.shutdown().await?;
            drop(stdin);
            std::io::Result::Ok(())
        };
        let began = Instant::now();
        let (wrote, read) = tokio::join!(write, stdout.read_to_end(&mut got));
        wrote?;
        read?;
        let status = child.wait().await?;
        ensure!(status.success(), "{transport}: {status}");
        ensure_eq!((got.len(), digest(&got)), (sent.len(), expected.clone()));
        eprintln!("{transport}: {} MiB there and back in {:?}", LARGE >> 20, began.elapsed());
    }
    Ok(())
}

async fn exec_has_a_terminal(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for transport in TRANSPORTS {
        let line = crictl(world)?.line(&["exec", "-it", "--transport", transport, &container, "sh"]);
        let line = format!("stty rows 31 cols 117; {line}");
        let mut child = tokio::process::Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        stdin.write_all(b"tty; until stty size | grep 117; do :; done; echo TERM=$TERM; exit 0\n").await?;
        let mut text = String::new();
        while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await?? {
            text.push_str(&line);
            text.push('\n');
        }
        drop(stdin);
        child.wait().await?;
        ensure!(text.contains("\n/dev/pts/"), "{transport}: {text}");
        ensure!(text.contains("\n31 117"), "{transport}: {text}");
        ensure!(text.contains("\nTERM=xterm"), "{transport}: {text}");
    }
    Ok(())
}

async fn exec_tells_a_missing_command(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for transport in TRANSPORTS {
        let args = ["exec", "--transport", transport, &container, "no-such-program"];
        let output = crictl(world)?.command(&args).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && stderr.contains("no-such-program"), "{transport}: {stderr}");
    }
    Ok(())
}

async fn sleeps(world: &mut World, container: &str) -> Outcome<String> {
    let exec = world.exec(container, &["sh", "-c", "ps -o args | grep -c '[s]leep 4321'"]).await?;
    Ok(String::from_utf8(exec.stdout)?.trim().to_owned())
}

async fn exec_dies_with_its_client(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for transport in TRANSPORTS {
        let args =
            ["exec", "-i", "--transport", transport, &container, "sh", "-c", "sleep 4321 & sleep 4321"];
        let mut child = crictl(world)?.command(&args).stdin(Stdio::piped()).spawn()?;
        // More than all queues hold: nobody reads it, and the end of the client must be seen all the same.
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let flood = tokio::spawn(async move { while stdin.write_all(&[0; 65536]).await.is_ok() {} });
        let end = Instant::now() + SOON;
        while sleeps(world, &container).await? == "0" {
            ensure!(Instant::now() < end, "the command does not run");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        child.kill().await?;
        flood.await?;
        let end = Instant::now() + SOON;
        while sleeps(world, &container).await? != "0" {
            ensure!(Instant::now() < end, "{transport}: the command lives on");
        }
    }
    Ok(())
}

async fn exec_leaves_nothing_behind(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    let count = move || -> Outcome<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    let mut before = 0;
    for round in 0..5 {
        let mut running = tokio::task::JoinSet::new();
        for n in 0..40 {
            let transport = TRANSPORTS[n % 2];
            let missing = n % 4 == 0;
            let program = if missing { "no-such-program" } else { "true" };
            let mut command =
                crictl(world)?.command(&["exec", "--transport", transport, &container, program]);
            running.spawn(
                async move { command.output().await.map(|output| output.status.success() != missing) },
            );
            if running.len() >= 8 {
                ensure!(running.join_next().await.ok_or("nothing ran")???, "an exec went wrong");
            }
        }
        while let Some(ended) = running.join_next().await {
            ensure!(ended??, "an exec went wrong");
        }
        if round == 0 {
            before = count()?;
        }
    }
    wait::until("as few descriptors as before", SOON, || Ok((count()? <= before).then_some(())))?;
    Ok(())
}

async fn attaches_to_stdin_once(world: &mut World) -> Outcome {
    let config = world.pod("attach");
    let id = world.run_pod(&config).await?;
    for transport in TRANSPORTS {
        let mut shell = cove_e2e::pod::container(transport, &world.image.clone(), &["sh"]);
        (shell.stdin, shell.stdin_once) = (true, true);
        let container = world.launch(&id, &config, &shell).await?;
        let mut child = crictl(world)?
            .command(&["attach", "-i", "--transport", transport, &container])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(b"echo -n hello\n").await?;
        drop(stdin);
        let output = tokio::time::timeout(SOON, child.wait_with_output()).await??;
        ensure_eq!(String::from_utf8_lossy(&output.stdout), "hello");
        // Its stdin has ended with the client, and so has the shell.
        ensure_eq!(world.exited(&container).await?.exit_code, 0);
    }
    Ok(())
}

async fn attaches_to_a_terminal(world: &mut World) -> Outcome {
    let config = world.pod("terminal");
    let id = world.run_pod(&config).await?;
    let mut shell = cove_e2e::pod::container("shell", &world.image.clone(), &["sh"]);
    (shell.stdin, shell.tty) = (true, true);
    let container = world.launch(&id, &config, &shell).await?;
    let runtime = &mut world.cri.runtime;
    let wrong = AttachRequest { container_id: container.clone(), stdout: true, ..Default::default() };
    ensure_eq!(runtime.attach(wrong).await.refused()?.code(), tonic::Code::InvalidArgument);
    for round in ["first", "second"] {
        let line = crictl(world)?.line(&["attach", "-it", &container]);
        let mut child = tokio::process::Command::new("script")
            .args(["-qec", &format!("stty rows 31 cols 117; {line}"), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        // The output of the arithmetic, not the echo of what was typed, is waited for.
        stdin.write_all(format!("echo {round}-$((6*7)) $TERM\n").as_bytes()).await?;
        let wanted = format!("{round}-42 xterm");
        while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await?? {
            if line.trim_end() == wanted {
                break;
            }
        }
        child.kill().await?;
    }
    let log = world.wrote(&container, "second-42 xterm").await?;
    ensure!(log.contains(" stdout F first-42 xterm\n"), "{log}");
    Ok(())
}

async fn a_client_that_does_not_read_holds_nobody_up(world: &mut World) -> Outcome {
    let config = world.pod("stuck");
    let id = world.run_pod(&config).await?;
    let script =
        "until test -e /tmp/go; do sleep 0.1; done; yes 0123456789abcdef | head -n 1000000; echo done";
    let container = world.launch(&id, &config, &world.script("writer", script)).await?;
    let mut child = crictl(world)?
        .command(&["attach", &container])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    // It is attached, and nobody reads what it prints.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.exec(&container, &["touch", "/tmp/go"]).await?;
    world.exited(&container).await?;
    let log = std::fs::read_to_string(world.status(&container).await?.log_path)?;
    ensure_eq!(log.matches(" stdout F 0123456789abcdef\n").count(), 1_000_000);
    ensure!(log.ends_with(" stdout F done\n"), "the log is cut");
    child.kill().await?;
    Ok(())
}

async fn refuses_what_cannot_be_streamed(world: &mut World) -> Outcome {
    let (pod, container) = sleeper(world).await?;
    let good = ExecRequest {
        container_id: container.clone(),
        cmd: vec!["true".into()],
        tty: false,
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let runtime = &mut world.cri.runtime;
    for bad in [
        ExecRequest { tty: true, ..good.clone() },
        ExecRequest { stdout: false, stderr: false, ..good.clone() },
        ExecRequest { cmd: Vec::new(), ..good.clone() },
        ExecRequest { container_id: String::new(), ..good.clone() },
    ] {
        ensure_eq!(runtime.exec(bad).await.refused()?.code(), tonic::Code::InvalidArgument);
    }
    let gone = ExecRequest { container_id: "0".repeat(64), ..good.clone() };
    ensure_eq!(runtime.exec(gone).await.refused()?.code(), tonic::Code::NotFound);
    for port in [0, -1, 65536] {
        let request = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![port] };
        ensure_eq!(runtime.port_forward(request).await.refused()?.code(), tonic::Code::InvalidArgument);
    }
    let gone = PortForwardRequest { pod_sandbox_id: "0".repeat(64), port: vec![80] };
    ensure_eq!(runtime.port_forward(gone).await.refused()?.code(), tonic::Code::NotFound);
    // As many as may wait, and one more.
    let mut full = None;
    for _ in 0..=1000 {
        full = runtime.exec(good.clone()).await.err();
    }
    ensure_eq!(full.ok_or("the 1,001st was given out")?.code(), tonic::Code::ResourceExhausted);
    Ok(())
}

async fn url(world: &mut World, container: &str) -> Outcome<String> {
    let request = ExecRequest {
        container_id: container.into(),
        cmd: vec!["echo".into(), "hello".into()],
        tty: false,
        stdin: false,
        stdout: true,
        stderr: false,
    };
    Ok(world.cri.runtime.exec(request).await?.into_inner().url)
}

/// Connects and asks for the path; the answer's first line.
fn ask(address: &str, path: &str) -> Outcome<(TcpStream, String)> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(SOON))?;
    write!(
        client,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let line = String::from_utf8(head)?.lines().next().unwrap_or_default().to_owned();
    Ok((client, line))
}

fn split(url: &str) -> Outcome<(&str, &str)> {
    let rest = url.strip_prefix("http://").ok_or("the URL is not absolute")?;
    let slash = rest.find('/').ok_or("the URL has no path")?;
    Ok(rest.split_at(slash))
}

async fn a_token_is_used_once_and_for_one_thing(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let used = url(world, &container).await?;
    let (address, path) = split(&used)?;
    ensure!(address.starts_with("127.0.0.1:") && path.starts_with("/exec/"), "{used}");
    ensure_eq!(path.len(), "/exec/".len() + 64);
    let (_client, answer) = ask(address, path)?;
    ensure!(answer.contains(" 101 "), "{answer}");
    ensure!(ask(address, path)?.1.contains(" 404 "), "used twice");

    let other = url(world, &container).await?;
    let path = split(&other)?.1;
    for verb in ["attach", "portforward", "exec"] {
        let answer = ask(address, &path.replacen("exec", verb, 1))?.1;
        ensure!(answer.contains(" 404 "), "{verb}: {answer}");
    }
    for path in ["/", "/exec", "/exec/", "/exec/../exec/x", "/metrics"] {
        ensure!(ask(address, path)?.1.contains(" 404 "), "{path}");
    }
    // Without an upgrade the token is not used up.
    let plain = url(world, &container).await?;
    let path = split(&plain)?.1;
    let mut client = TcpStream::connect(address)?;
    write!(client, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 400 "), "{answer}");
    ensure!(ask(address, path)?.1.contains(" 101 "), "the token was used up");
    Ok(())
}

async fn ends_clients_that_break_the_rules(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    let memory = move || -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
    };
    let before = memory()?;
    let syn = |id: u8, block: &[u8]| {
        let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(10 + block.len()).unwrap_or(255)];
        frame.extend_from_slice(&[0, 0, 0, id, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(block);
        frame
    };
    let payloads: Vec<(&str, Vec<u8>)> = vec![
        ("another version", vec![0x80, 2, 0, 1, 0, 0, 0, 0]),
        ("a control frame of 16 MiB", vec![0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]),
        ("a header block that is none", syn(1, &[0xff; 32])),
        ("an even stream", syn(2, &[])),
        ("a stream without headers", syn(1, &[])),
        ("a short control frame", vec![0x80, 3, 0, 3, 0, 0, 0, 1, 0]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".repeat(100)),
        ("noise", noise(1 << 20)),
    ];
    for (name, payload) in payloads {
        let url = url(world, &container).await?;
        let (address, path) = split(&url)?;
        let (mut client, answer) = ask(address, path)?;
        ensure!(answer.contains(" 101 "), "{answer}");
        // It may hang up before it has all.
        let _ = client.write_all(&payload);
        if name == "HTTP" {
            // Reads as the head of a long data frame of a stream that is not there: allowed, and worth nothing.
            continue;
        }
        let mut rest = Vec::new();
        match client.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(format!("{name}: {error}").into()),
        }
    }
    // A head that does not come, one that is too long.
    let url = url(world, &container).await?;
    let address = split(&url)?.0;
    let mut long = TcpStream::connect(address)?;
    long.set_read_timeout(Some(SOON))?;
    let _ = write!(long, "GET / HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
    let mut rest = Vec::new();
    match long.read_to_end(&mut rest) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => return Err(error.into()),
        _ => {}
    }
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < 8 << 10, "the daemon has grown by {grown} KiB");
    ensure_eq!(world.exec(&container, &["true"]).await?.exit_code, 0);
    Ok(())
}

/// crictl port-forward, and the port on this side.
async fn forward(
    world: &World,
    pod: &str,
    transport: &str,
    port: u16,
) -> Outcome<(tokio::process::Child, u16)> {
    forward_with(world, pod, transport, port, &[]).await
}

/// The same with further options.
pub(crate) async fn forward_with(
    world: &World,
    pod: &str,
    transport: &str,
    port: u16,
    options: &[&str],
) -> Outcome<(tokio::process::Child, u16)> {
    let ours = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ports = format!("{ours}:{port}");
    let mut child = crictl(world)?
        .command(&[&["port-forward", "--transport", transport], options, &[pod, &ports]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    loop {
        let line = tokio::time::timeout(SOON, lines.next_line()).await??.ok_or("crictl ended")?;
        if line.contains("Forwarding from 127.0.0.1") {
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((child, ours));
        }
    }
}

async fn forwards_ports(world: &mut World) -> Outcome {
    let config = world.pod("forward");
    let pod = world.run_pod(&config).await?;
    let script = "busybox nc -ll -p 8080 -e cat";
    let container = world.launch(&pod, &config, &world.script("server", script)).await?;
    let end = Instant::now() + SOON;
    while world.exec(&container, &["sh", "-c", "echo x | busybox nc -w 1 127.0.0.1 8080"]).await?.exit_code
        != 0
    {
        ensure!(Instant::now() < end, "the server does not listen");
    }
    let sent = noise(LARGE);
    for transport in TRANSPORTS {
        let (mut crictl, port) = forward(world, &pod, transport, 8080).await?;
        let began = Instant::now();
        // One that is reset in the middle leaves the other alone.
        let mut other = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        other.write_all(b"first").await?;
        let mut answer = [0; 5];
        other.read_exact(&mut answer).await?;
        other.set_zero_linger()?;
        drop(other);
        let client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut read, mut write) = client.into_split();
        let mut got = Vec::with_capacity(LARGE);
        let upload = async {
            write.write_all(&sent).await?;
            write.shutdown().await
        };
        let (wrote, read) = tokio::join!(upload, read.read_to_end(&mut got));
        wrote?;
        read?;
        ensure_eq!((got.len(), digest(&got)), (sent.len(), digest(&sent)));
        eprintln!("port-forward, {transport}: {} MiB there and back in {:?}", LARGE >> 20, began.elapsed());
        crictl.kill().await?;
    }
    Ok(())
}

async fn forwards_ports_of_the_host_and_tells_closed_ones(world: &mut World) -> Outcome {
    let mut config = world.pod("forward-host");
    cove_e2e::pod::namespaces(&mut config).network = NamespaceMode::Node.into();
    let pod = world.run_pod(&config).await?;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let theirs = server.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = server.accept().await {
            let _ = client.write_all(b"of the host").await;
        }
    });
    let (mut crictl, port) = forward(world, &pod, "spdy", theirs).await?;
    let mut text = String::new();
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await?.read_to_string(&mut text).await?;
    ensure_eq!(text, "of the host");
    crictl.kill().await?;
    // What listens on the host is not to be reached through a pod with a network of its own.
    let own = world.pod("forward-own");
    let pod = world.run_pod(&own).await?;
    let (mut crictl, port) = forward(world, &pod, "spdy", theirs).await?;
    let mut text = String::new();
    let read = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?.read_to_string(&mut text).await;
    ensure!(read.is_err() || text.is_empty(), "the host was reached: {text}");
    crictl.kill().await?;
    Ok(())
}
