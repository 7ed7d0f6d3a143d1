//! Clients that do not read: they are told so and sent away, and nobody else waits for them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cove_e2e::{Outcome, process, spdy, wait};
use k8s_cri::v1::*;
use tokio::io::AsyncReadExt;

use crate::stream::crictl;
use crate::world::World;

cases!(
    an_attached_client_that_lags_is_told_so,
    an_attached_client_that_never_reads_is_sent_away,
    a_terminal_that_lags_goes_on,
);

/// Lines of 17 bytes, of which a client with its sockets and queues does not hold the most.
const LINES: usize = 2_000_000;

/// A container that writes all its lines once it is told to go, says so, and stays.
fn writer(world: &World, name: &str) -> ContainerConfig {
    let script = format!(
        "until test -e /tmp/go; do sleep 0.1; done; yes 0123456789abcdef | head -n {LINES}; echo done; sleep 100000"
    );
    world.script(name, &script)
}

/// Lets it go; how long it took, by its log.
async fn go(world: &mut World, container: &str) -> Outcome<Duration> {
    let began = Instant::now();
    world.exec(container, &["touch", "/tmp/go"]).await?;
    let log = world.status(container).await?.log_path;
    ends_with(&log, b" stdout F done\n")?;
    let took = began.elapsed();
    let text = std::fs::read_to_string(&log)?;
    ensure_eq!(text.matches(" stdout F 0123456789abcdef\n").count(), LINES);
    Ok(took)
}

/// Waits until a log, which is too long to be read again and again, ends with this.
fn ends_with(log: &str, text: &[u8]) -> Outcome {
    let length = i64::try_from(text.len())?;
    wait::until("the last line", Duration::from_secs(60), || {
        let (mut file, mut tail) = (File::open(log)?, Vec::new());
        if file.metadata()?.len() < length.unsigned_abs() {
            return Ok(None);
        }
        file.seek(SeekFrom::End(-length))?;
        file.read_to_end(&mut tail)?;
        Ok((tail == text).then_some(()))
    })
}

/// How many descriptors the daemon has open, whenever it is asked.
fn descriptors(world: &World) -> Outcome<impl Fn() -> Outcome<usize> + use<>> {
    let pid = world.daemon.as_ref().ok_or("needs a daemon of its own")?.pid();
    Ok(move || process::descriptors(pid))
}

/// Waits until a client is attached: the daemon has more open than before and for its connections, so what the shim writes
/// to is there.
fn attached(count: &impl Fn() -> Outcome<usize>, before: usize, connections: usize) -> Outcome {
    wait::until("the client to be attached", crate::world::SOON, || {
        Ok((count()? > before + connections).then_some(()))
    })
}

async fn an_attached_client_that_lags_is_told_so(world: &mut World) -> Outcome {
    let config = world.pod("lags");
    let id = world.run_pod(&config).await?;
    let alone = world.launch(&id, &config, &writer(world, "alone")).await?;
    let alone = go(world, &alone).await?;
    let container = world.launch(&id, &config, &writer(world, "lags")).await?;
    let count = descriptors(world)?;
    let before = count()?;
    let mut child = crictl(world)?
        .command(&["attach", &container])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It has one for calls, and one for what nobody reads.
    attached(&count, before, 2)?;
    let took = go(world, &container).await?;
    eprintln!("{LINES} lines: {alone:?} alone, {took:?} with a client that does not read");
    ensure!(took < 2 * alone + Duration::from_secs(2), "{took:?} instead of {alone:?}");
    let (mut out, mut told) = (Vec::new(), String::new());
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut stderr = child.stderr.take().ok_or("no stderr")?;
    let read = async { tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_string(&mut told)) };
    tokio::time::timeout(Duration::from_secs(30), read)
        .await
        .map_err(|_| "the client was not sent away")??;
    ensure!(!child.wait().await?.success(), "the client was not told");
    ensure!(told.contains("more than 1 MiB behind"), "{told}");
    // What it has is a beginning without a gap.
    ensure!(!out.is_empty() && out.len() < LINES * 17, "{} bytes", out.len());
    let whole = out.chunks(17).all(|line| b"0123456789abcdef\n".starts_with(line));
    ensure!(whole, "what the client was given has a gap");
    Ok(())
}

async fn an_attached_client_that_never_reads_is_sent_away(world: &mut World) -> Outcome {
    let config = world.pod("never");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &writer(world, "never")).await?;
    let count = descriptors(world)?;
    let before = count()?;
    let request = AttachRequest { container_id: container.clone(), stdout: true, ..Default::default() };
    let url = world.cri.runtime.attach(request).await?.into_inner().url;
    let (mut spdy, _reader) = spdy::connect(&url, "v4.channel.k8s.io").await?;
    spdy.open(&[("streamtype", "error")]).await?;
    spdy.open(&[("streamtype", "stdout")]).await?;
    attached(&count, before, 1)?;
    go(world, &container).await?;
    let limit = Duration::from_secs(30);
    wait::until("the client to be sent away", limit, || Ok((count()? <= before).then_some(())))?;
    Ok(())
}

async fn a_terminal_that_lags_goes_on(world: &mut World) -> Outcome {
    let config = world.pod("screen");
    let id = world.run_pod(&config).await?;
    let mut shell = writer(world, "screen");
    shell.tty = true;
    shell.command[2] = shell.command[2]
        .replace("echo done;", "echo done; until test -e /tmp/more; do sleep 0.1; done; echo more;");
    let container = world.launch(&id, &config, &shell).await?;
    let count = descriptors(world)?;
    let before = count()?;
    let request =
        AttachRequest { container_id: container.clone(), stdout: true, tty: true, ..Default::default() };
    let url = world.cri.runtime.attach(request).await?.into_inner().url;
    let (mut client, mut reader) = spdy::connect(&url, "v4.channel.k8s.io").await?;
    client.open(&[("streamtype", "error")]).await?;
    client.open(&[("streamtype", "stdout")]).await?;
    client.open(&[("streamtype", "resize")]).await?;
    attached(&count, before, 1)?;
    world.exec(&container, &["touch", "/tmp/go"]).await?;
    let log = world.status(&container).await?.log_path;
    ends_with(&log, b" stdout F done\n")?;
    // It reads again: what is there, that something was left out, and what comes now.
    let mut screen = Vec::new();
    let mut asked = false;
    while !screen.ends_with(b"more\r\n") {
        let next = tokio::time::timeout(Duration::from_secs(2), reader.next());
        match next.await {
            Ok(frame) => {
                if let spdy::Frame::Data(_, bytes, _) = frame?.ok_or("the connection ended")? {
                    screen.extend(bytes);
                }
            }
            Err(_) if asked => return Err("the terminal does not go on".into()),
            Err(_) => {
                asked = true;
                world.exec(&container, &["touch", "/tmp/more"]).await?;
            }
        }
    }
    // How often it catches up meanwhile is up to its sockets. What is there and what it is told of make the whole.
    let (mut seen, mut left_out) = (0, Vec::new());
    for line in String::from_utf8(screen)?.split_inclusive("\r\n") {
        match line.split_once(" bytes of output were left out") {
            Some((count, _)) => left_out.push(count.trim_start_matches('[').parse::<usize>()?),
            None => seen += line.len(),
        }
    }
    // Each mark begins a line of its own.
    let whole = LINES * 18 + "done\r\nmore\r\n".len() + left_out.len() * 2;
    ensure!(!left_out.is_empty(), "nothing was left out of {seen} bytes");
    ensure_eq!(seen + left_out.iter().sum::<usize>(), whole);
    Ok(())
}
