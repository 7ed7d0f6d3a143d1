//! What streams look like on the wire: every version that a client may speak, and connections that share one client.

use std::time::Instant;

use cove_e2e::spdy::{self, Frame, Reader};
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;

use crate::stream::{digest, noise, sleeper};
use crate::world::{SOON, World};

cases!(
    every_version_of_spdy_tells_how_it_ended,
    one_connection_that_is_reset_leaves_the_others_alone,
    what_nobody_takes_does_not_grow_the_daemon,
    a_thousand_terminals_leave_nothing,
    a_thousand_attached_clients_leave_nothing,
    forwards_a_thousand_connections_and_ends_with_its_pod,
);

pub(crate) async fn forward_url(world: &mut World, pod: &str, ports: &[u16]) -> Outcome<String> {
    let port = ports.iter().map(|port| i32::from(*port)).collect();
    let request = PortForwardRequest { pod_sandbox_id: pod.into(), port };
    Ok(world.cri.runtime.port_forward(request).await?.into_inner().url)
}

pub(crate) async fn exec_url(
    world: &mut World,
    container: &str,
    cmd: &[&str],
    [stdin, stdout, stderr, tty]: [bool; 4],
) -> Outcome<String> {
    let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
    let request = ExecRequest { container_id: container.into(), cmd, tty, stdin, stdout, stderr };
    Ok(world.cri.runtime.exec(request).await?.into_inner().url)
}

/// A pod with a server at 8080 that sends back what it is sent, one at 8081 that reads nothing, and one at 8082 that reads
/// nothing either, and soon hangs up.
pub(crate) async fn servers(world: &mut World) -> Outcome<(String, String)> {
    let config = world.pod("servers");
    let pod = world.run_pod(&config).await?;
    let script = "busybox nc -ll -p 8081 -e sleep 100000 & busybox nc -ll -p 8082 -e sleep 1 & exec busybox nc -ll -p 8080 -e cat";
    let container = world.launch(&pod, &config, &world.script("servers", script)).await?;
    let end = Instant::now() + SOON;
    // The ports, listening (tcp_states.h).
    let probe = "cat /proc/net/tcp /proc/net/tcp6 | grep -c ':1F9[012] .* 0A '";
    while world.exec(&container, &["sh", "-c", probe]).await?.stdout != b"3\n" {
        ensure!(Instant::now() < end, "the servers do not listen");
    }
    Ok((pod, container))
}

async fn next(reader: &mut Reader) -> Outcome<Frame> {
    let frame = tokio::time::timeout(SOON, reader.next()).await.map_err(|_| "no frame came")??;
    frame.ok_or_else(|| "the connection ended".into())
}

/// Reads until a stream has ended; its bytes. Those of others are thrown away.
async fn to_end(reader: &mut Reader, stream: u32) -> Outcome<Vec<u8>> {
    let mut got = Vec::new();
    loop {
        match next(reader).await? {
            Frame::Data(id, bytes, last) if id == stream => {
                got.extend_from_slice(&bytes);
                if last {
                    return Ok(got);
                }
            }
            Frame::Reset(id, _) if id == stream => return Err("the stream was reset".into()),
            _ => {}
        }
    }
}

async fn every_version_of_spdy_tells_how_it_ended(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for (version, protocol) in
        [(1, "channel.k8s.io"), (2, "v2.channel.k8s.io"), (3, "v3.channel.k8s.io"), (4, "v4.channel.k8s.io")]
    {
        for (script, code) in [("read line; echo $line; exit 7", 7), ("read line; echo $line", 0)] {
            let url = exec_url(world, &container, &["sh", "-c", script], [true, true, false, false]).await?;
            let (mut writer, mut reader) = spdy::connect(&url, protocol).await?;
            let error = writer.open(&[("streamtype", "error")]).await?;
            let stdin = writer.open(&[("streamtype", "stdin")]).await?;
            let stdout = writer.open(&[("streamtype", "stdout")]).await?;
            writer.data(stdin, b"of the client\n", true).await?;
            let (mut out, mut told, mut open) = (Vec::new(), Vec::new(), 2);
            while open > 0 {
                if let Frame::Data(id, bytes, last) = next(&mut reader).await? {
                    if id == stdout {
                        out.extend(bytes)
                    } else if id == error {
                        told.extend(bytes)
                    }
                    open -= u32::from(last);
                }
            }
            ensure_eq!(out, b"of the client\n");
            let told = String::from_utf8(told)?;
            match (version, code) {
                (4, 0) => {
                    let status: serde_json::Value = serde_json::from_str(&told)?;
                    ensure_eq!(status["status"], "Success");
                }
                (4, code) => {
                    let status: serde_json::Value = serde_json::from_str(&told)?;
                    ensure_eq!(status["reason"], "NonZeroExitCode");
                    ensure_eq!(status["details"]["causes"][0]["message"], code.to_string());
                }
                (_, 0) => ensure_eq!(told, ""),
                (_, code) => ensure!(told.ends_with(&format!("exit code {code}")), "{protocol}: {told}"),
            }
        }
    }
    // The size of a terminal is known from version 3 on; before, no client opens a stream for it.
    for (protocol, sized) in [("v2.channel.k8s.io", false), ("v3.channel.k8s.io", true)] {
        let script = if sized {
            "until stty size 2>/dev/null | grep 117; do :; done"
        } else {
            "test -t 1 && echo tty"
        };
        let url = exec_url(world, &container, &["sh", "-c", script], [false, true, false, true]).await?;
        let (mut writer, mut reader) = spdy::connect(&url, protocol).await?;
        writer.open(&[("streamtype", "error")]).await?;
        let stdout = writer.open(&[("streamtype", "stdout")]).await?;
        if sized {
            let resize = writer.open(&[("streamtype", "resize")]).await?;
            writer.data(resize, b"{\"Width\":117,\"Height\":31}", false).await?;
        }
        let out = String::from_utf8(to_end(&mut reader, stdout).await?)?;
        ensure_eq!(out, if sized { "31 117\r\n" } else { "tty\r\n" });
    }
    Ok(())
}

async fn one_connection_that_is_reset_leaves_the_others_alone(world: &mut World) -> Outcome {
    let (pod, _) = servers(world).await?;
    let url = forward_url(world, &pod, &[]).await?;
    let (mut writer, mut reader) = spdy::connect(&url, "portforward.k8s.io").await?;
    let (_, first) = writer.forward(1, 8080).await?;
    let (_, second) = writer.forward(2, 8080).await?;
    let (closed_error, closed) = writer.forward(3, 9).await?;
    let sent = noise(16 << 20);
    let expected = digest(&sent);
    let upload = async {
        for (n, chunk) in sent.chunks(32 << 10).enumerate() {
            writer.data(second, chunk, false).await?;
            if n == 100 {
                // In the middle of what it sends itself.
                writer.data(first, &sent[..100_000], false).await?;
                writer.reset(first).await?;
            }
        }
        writer.data(second, b"", true).await?;
        Outcome::Ok(writer)
    };
    let download = async {
        let (mut got, mut told, mut reset) = (Vec::new(), Vec::new(), false);
        loop {
            match next(&mut reader).await? {
                Frame::Data(id, bytes, last) if id == second => {
                    got.extend(bytes);
                    if last {
                        return Outcome::Ok((got, told, reset, reader));
                    }
                }
                Frame::Data(id, bytes, _) if id == closed_error => told.extend(bytes),
                Frame::Reset(id, _) => {
                    ensure!(id == closed, "stream {id} was reset");
                    reset = true;
                }
                _ => {}
            }
        }
    };
    let (writer, download) = tokio::join!(upload, download);
    let (mut writer, (got, told, reset, mut reader)) = (writer?, download?);
    ensure_eq!((got.len(), digest(&got)), (sent.len(), expected));
    let told = String::from_utf8(told)?;
    ensure!(reset && told.contains("port 9") && told.contains("refused"), "{told}");
    // One that the pod resets: its server ends with bytes unread.
    let (error, third) = writer.forward(4, 8082).await?;
    let (_, fourth) = writer.forward(5, 8080).await?;
    writer.data(third, &sent[..1 << 20], false).await?;
    let told = String::from_utf8(to_end(&mut reader, error).await?)?;
    ensure!(told.contains("port 8082"), "{told}");
    writer.data(fourth, b"still here", true).await?;
    ensure_eq!(to_end(&mut reader, fourth).await?, b"still here");
    Ok(())
}

/// Anonymous and shared memory of the daemon, in KiB.
pub(crate) fn memory(world: &World) -> Outcome<u64> {
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}

async fn what_nobody_takes_does_not_grow_the_daemon(world: &mut World) -> Outcome {
    let (pod, container) = servers(world).await?;
    let before = memory(world)?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let url = forward_url(world, &pod, &[]).await?;
        let (mut writer, mut reader) = spdy::connect(&url, "portforward.k8s.io").await?;
        let mut streams = Vec::new();
        for request in 0..25 {
            streams.push(writer.forward(request, 8081).await?.1);
        }
        // Until all of them are accepted, and then as much as it takes.
        let mut accepted = 0;
        while accepted < 50 {
            accepted += u32::from(matches!(next(&mut reader).await?, Frame::Reply(_)));
        }
        let flood = async {
            let chunk = noise(64 << 10);
            loop {
                for stream in &streams {
                    writer.data(*stream, &chunk, false).await?;
                }
            }
        };
        let flooded: Result<Outcome, _> =
            tokio::time::timeout(std::time::Duration::from_secs(2), flood).await;
        ensure!(flooded.is_err(), "the flood was not held back: {flooded:?}");
        clients.push((writer, reader));
    }
    let grown = memory(world)?.saturating_sub(before);
    // 4 MiB may wait; the rest is what 100 connections cost.
    ensure!(grown < 16 << 10, "the daemon has grown by {grown} KiB");
    // Others notice nothing.
    ensure_eq!(world.exec(&container, &["echo", "x"]).await?.stdout, b"x\n");
    drop(clients);
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    wait::until("the connections to be closed", SOON, || {
        let sockets = std::fs::read_dir(format!("/proc/{pid}/fd"))?
            .flatten()
            .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with("socket:")))
            .count();
        Ok((sockets < 50).then_some(()))
    })?;
    Ok(())
}

/// One command on a terminal, to its end; or, for `leaves`, until its client dies.
async fn terminal(url: String, leaves: bool) -> Outcome {
    let (mut writer, mut reader) = spdy::connect(&url, "v4.channel.k8s.io").await?;
    writer.open(&[("streamtype", "error")]).await?;
    let stdin = writer.open(&[("streamtype", "stdin")]).await?;
    let stdout = writer.open(&[("streamtype", "stdout")]).await?;
    let resize = writer.open(&[("streamtype", "resize")]).await?;
    writer.data(resize, b"{\"Width\":117,\"Height\":31}", false).await?;
    writer.data(stdin, b"hello\n", false).await?;
    let mut screen = Vec::new();
    loop {
        match next(&mut reader).await? {
            Frame::Data(id, bytes, last) if id == stdout => {
                screen.extend(bytes);
                if last || leaves && screen.ends_with(b"got hello\r\n") {
                    ensure!(screen.ends_with(b"got hello\r\n"), "{:?}", String::from_utf8_lossy(&screen));
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

/// Descriptors of daemon and shim, terminals and processes of the container.
async fn holds(world: &mut World, pod: &str, container: &str) -> Outcome<[usize; 4]> {
    let daemon = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    let descriptors =
        |pid: String| -> Outcome<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    let counted =
        world.exec(container, &["sh", "-c", "ls /dev/pts | wc -l; ls -d /proc/[0-9]* | wc -l"]).await?;
    let counted = String::from_utf8(counted.stdout)?;
    let mut counted = counted.lines().map(|line| line.trim().parse::<usize>());
    let mut next = || -> Outcome<usize> { Ok(counted.next().ok_or("no number")??) };
    let (terminals, processes) = (next()?, next()?);
    let shim = cove_e2e::process::shim(pod)?.to_string();
    Ok([descriptors(daemon.to_string())?, descriptors(shim)?, terminals, processes])
}

async fn a_thousand_terminals_leave_nothing(world: &mut World) -> Outcome {
    let (pod, container) = sleeper(world).await?;
    let (mut before, mut small) = ([0; 4], 0);
    for round in 0..20 {
        let mut running = tokio::task::JoinSet::new();
        for n in 0..50 {
            // Every fourth client dies while its command runs.
            let leaves = n % 4 == 3;
            let script = if leaves { "read x; echo got $x; sleep 4321" } else { "read x; echo got $x" };
            let url = exec_url(world, &container, &["sh", "-c", script], [true, true, false, true]).await?;
            running.spawn(terminal(url, leaves));
            if running.len() >= 10 {
                running.join_next().await.ok_or("nothing ran")???;
            }
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        if round == 1 {
            let end = Instant::now() + SOON;
            while {
                before = holds(world, &pod, &container).await?;
                before[2] > 1
            } {
                ensure!(Instant::now() < end, "terminals stay: {before:?}");
            }
            small = memory(world)?;
        }
    }
    let end = Instant::now() + SOON;
    loop {
        let now = holds(world, &pod, &container).await?;
        if now.iter().zip(before).all(|(now, before)| *now <= before) {
            break;
        }
        ensure!(
            Instant::now() < end,
            "daemon's and shim's descriptors, terminals, processes: {before:?} before, {now:?} after"
        );
    }
    let grown = memory(world)?.saturating_sub(small);
    ensure!(grown < 4 << 10, "the daemon has grown by {grown} KiB");
    Ok(())
}

async fn a_thousand_attached_clients_leave_nothing(world: &mut World) -> Outcome {
    let (pod, container) = sleeper(world).await?;
    let before = holds(world, &pod, &container).await?;
    for _ in 0..1000 {
        let request = AttachRequest { container_id: container.clone(), stdout: true, ..Default::default() };
        let url = world.cri.runtime.attach(request).await?.into_inner().url;
        let (mut writer, mut reader) = spdy::connect(&url, "v4.channel.k8s.io").await?;
        writer.open(&[("streamtype", "error")]).await?;
        let stdout = writer.open(&[("streamtype", "stdout")]).await?;
        while next(&mut reader).await? != Frame::Reply(stdout) {}
    }
    let end = Instant::now() + SOON;
    loop {
        let now = holds(world, &pod, &container).await?;
        // A shim notices those who have gone when the next one comes, or the container writes.
        if now[0] <= before[0] && now[1] <= before[1] + 16 && now[3] <= before[3] {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{before:?} before, {now:?} after");
    }
}

async fn forwards_a_thousand_connections_and_ends_with_its_pod(world: &mut World) -> Outcome {
    let (pod, _) = servers(world).await?;
    let url = forward_url(world, &pod, &[]).await?;
    let (mut writer, mut reader) = spdy::connect(&url, "portforward.k8s.io").await?;
    for request in 0..1000 {
        let (_, data) = writer.forward(request, 8080).await?;
        let sent = format!("{request} there and back");
        writer.data(data, sent.as_bytes(), true).await?;
        ensure_eq!(to_end(&mut reader, data).await?, sent.as_bytes());
    }
    let (error, open) = writer.forward(1000, 8081).await?;
    writer.data(open, b"nobody reads this", false).await?;
    while next(&mut reader).await? != Frame::Reply(open) {}
    world.stop_pod(&pod).await?;
    // Told or not, both streams end; and what comes then is told that there is no pod.
    to_end(&mut reader, error).await?;
    let (error, _) = writer.forward(1001, 8080).await?;
    let told = String::from_utf8(to_end(&mut reader, error).await?)?;
    ensure!(told.contains("is not ready"), "{told}");
    Ok(())
}
