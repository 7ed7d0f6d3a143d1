//! Streams over TLS, where it is configured.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use cove_e2e::Outcome;
use cove_e2e::certificate::{self, CURVE, Certificate};

use crate::stream::{TRANSPORTS, crictl, forward_with, sleeper};
use crate::stream_protocol::{exec_url, servers};
use crate::world::{End, World};

cases!(speaks_tls_where_configured);

fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?)
}

/// crictl's arguments of a client that trusts `authority` and shows its certificate.
fn arguments<'a>(authority: &'a Certificate, client: &'a Certificate) -> Outcome<[&'a str; 6]> {
    let (ca, certificate, key) =
        (text(&authority.certificate)?, text(&client.certificate)?, text(&client.key)?);
    Ok(["--tls-ca", ca, "--tls-cert", certificate, "--tls-key", key])
}

async fn exec(world: &World, container: &str, transport: &str, tls: &[&str]) -> Outcome {
    let arguments = [&["exec", "--transport", transport], tls, &[container, "echo", "over TLS"]].concat();
    let output = crictl(world)?.command(&arguments).stdin(Stdio::null()).output().await?;
    if output.status.success() && output.stdout == b"over TLS\n" {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}

async fn speaks_tls_where_configured(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let (pod, _) = servers(world).await?;
    let directory = world.directory.join("tls");
    fs::create_dir(&directory)?;
    let authority = certificate::self_signed(&directory, "authority", CURVE)?;
    let other = certificate::self_signed(&directory, "other", CURVE)?;
    let server = certificate::signed(&directory, "server", &authority, "IP:127.0.0.1,DNS:localhost", "2")?;
    let client = certificate::signed(&directory, "client", &authority, "DNS:client", "2")?;
    let stranger = certificate::signed(&directory, "stranger", &other, "DNS:stranger", "2")?;
    // The table of images is the file's last, so what follows it may be another table.
    world.place.as_mut().ok_or("needs a daemon of its own")?.images = format!(
        "[stream]\ntls_certificate = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}\n",
        server.certificate, server.key, authority.certificate
    );
    world.restart(End::Term).await?;
    let url = exec_url(world, &container, &["true"], [false, true, false, false]).await?;
    ensure!(url.starts_with("https://127.0.0.1:"), "{url}");
    let tls = arguments(&authority, &client)?;
    for transport in TRANSPORTS {
        exec(world, &container, transport, &tls).await?;
        for (who, tls) in [
            ("without", &[][..]),
            ("another's", &arguments(&authority, &stranger)?),
            ("who trusts another", &arguments(&other, &client)?),
        ] {
            ensure!(exec(world, &container, transport, tls).await.is_err(), "{transport}, {who}: let in");
        }
        let (mut crictl, port) = forward_with(world, &pod, transport, 8080, &tls).await?;
        let sent = crate::stream::noise(1 << 20);
        let bytes = sent.clone();
        let got = tokio::task::spawn_blocking(move || -> Outcome<Vec<u8>> {
            use std::io::{Read, Write};
            let mut client = std::net::TcpStream::connect(("127.0.0.1", port))?;
            let mut reader = client.try_clone()?;
            let reading = std::thread::spawn(move || {
                let mut got = Vec::new();
                reader.read_to_end(&mut got).map(|_| got)
            });
            client.write_all(&bytes)?;
            client.shutdown(std::net::Shutdown::Write)?;
            Ok(reading.join().map_err(|_| "the reader panicked")??)
        });
        ensure!(got.await?? == sent, "{transport}: another came back");
        crictl.kill().await?;
    }
    // A certificate that is renewed is used at once; what is no certificate is not.
    let renewed = certificate::signed(&directory, "renewed", &other, "IP:127.0.0.1,DNS:localhost", "2")?;
    fs::copy(&renewed.key, &server.key)?;
    fs::copy(&renewed.certificate, &server.certificate)?;
    let tls = arguments(&other, &client)?;
    exec(world, &container, "spdy", &tls).await?;
    fs::write(&server.key, "no key")?;
    exec(world, &container, "spdy", &tls).await?;
    let refused = world.restart(End::Term).await.err().ok_or("a daemon without a key runs")?.to_string();
    ensure!(refused.contains("stream.tls_key") && refused.contains("server.key"), "{refused}");
    world.place.as_mut().ok_or("needs a daemon of its own")?.images = String::new();
    world.resume(&[]).await
}
