//! WebSocket: channels of every version, and ports in the older form.

use cove_e2e::Outcome;
use cove_e2e::websocket::{self, WebSocket};
use serde_json::Value;

use crate::stream::sleeper;
use crate::stream_protocol::{exec_url, forward_url, memory, servers};
use crate::world::{SOON, World};

cases!(
    every_version_of_channels_tells_how_it_ended,
    forwards_ports_that_were_named_before,
    ends_clients_that_break_the_rules
);

async fn next(client: &mut WebSocket) -> Outcome<Option<(u8, Vec<u8>)>> {
    tokio::time::timeout(SOON, client.next()).await.map_err(|_| "no message came")?
}

async fn every_version_of_channels_tells_how_it_ended(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    for (protocol, version) in [
        ("v5.channel.k8s.io", 5),
        ("v4.channel.k8s.io", 4),
        ("v4.base64.channel.k8s.io", 4),
        ("channel.k8s.io", 1),
        ("base64.channel.k8s.io", 1),
        ("", 1),
    ] {
        // Only version 5 can say that stdin has ended.
        let script = if version == 5 { "cat; exit 7" } else { "head -n 1; exit 7" };
        let url = exec_url(world, &container, &["sh", "-c", script], [true, true, true, false]).await?;
        let mut client = websocket::connect(&url, protocol).await?;
        ensure_eq!(next(&mut client).await?.ok_or("closed")?, (1, Vec::new()));
        client.send(0, b"of the client\n").await?;
        if version == 5 {
            client.send(255, &[0]).await?;
        }
        let (mut out, mut told) = (Vec::new(), Vec::new());
        while let Some((channel, bytes)) = next(&mut client).await? {
            match channel {
                1 => out.extend(bytes),
                3 => told.extend(bytes),
                other => return Err(format!("{protocol}: channel {other}").into()),
            }
        }
        ensure_eq!(out, b"of the client\n");
        if version >= 4 {
            let status: Value = serde_json::from_slice(&told)?;
            ensure_eq!(status["details"]["causes"][0]["message"], "7");
        } else {
            let told = String::from_utf8(told)?;
            ensure!(told.ends_with("exit code 7"), "{protocol}: {told}");
        }
    }
    let url = exec_url(world, &container, &["true"], [false, true, false, false]).await?;
    let refused = websocket::connect(&url, "v9.channel.k8s.io").await.err().ok_or("it was granted")?;
    ensure!(refused.to_string().contains(" 403 "), "{refused}");
    Ok(())
}

async fn forwards_ports_that_were_named_before(world: &mut World) -> Outcome {
    let (pod, _) = servers(world).await?;
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
        let url = forward_url(world, &pod, &[8080, 9]).await?;
        let mut client = websocket::connect(&url, protocol).await?;
        let (mut begun, mut got, mut told) = (Vec::new(), Vec::new(), Vec::new());
        client.send(0, b"to the pod").await?;
        while got.len() < 10 || told.is_empty() {
            let (channel, bytes) = next(&mut client).await?.ok_or("closed")?;
            if !begun.contains(&channel) {
                // Each channel begins with its port.
                let port: u16 = if channel < 2 { 8080 } else { 9 };
                ensure_eq!(bytes, port.to_le_bytes());
                begun.push(channel);
            } else if channel == 0 {
                got.extend(bytes);
            } else {
                ensure_eq!(channel, 3);
                told.extend(bytes);
            }
        }
        ensure_eq!(got, b"to the pod");
        let told = String::from_utf8(told)?;
        ensure!(told.contains("port 9") && told.contains("refused"), "{told}");
    }
    let url = forward_url(world, &pod, &[]).await?;
    let mut client = websocket::connect(&url, "v4.channel.k8s.io").await?;
    ensure!(!matches!(next(&mut client).await, Ok(Some(_))), "ports were made up");
    Ok(())
}

async fn ends_clients_that_break_the_rules(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let before = memory(world)?;
    // Masked with zeros where they are masked at all.
    let payloads: Vec<(&str, Vec<u8>)> = vec![
        ("a message of 2^63 bytes", [&[0x82, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat()),
        ("a message of 16 MiB", [&[0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 0][..], &[0; 4]].concat()),
        ("one without a mask", vec![0x82, 1, 0]),
        ("an opcode that is none", vec![0x83, 0x80, 0, 0, 0, 0]),
        ("reserved bits", vec![0xf2, 0x80, 0, 0, 0, 0]),
        ("a long ping", [&[0x89, 0xfe, 0x10, 0][..], &[0; 4 + 0x1000]].concat()),
        ("a fragment of nothing", vec![0x80, 0x80, 0, 0, 0, 0]),
        // Each fragment is small, and the message never ends.
        (
            "fragments without end",
            [&[0x02, 0xfe, 0xff, 0xff][..], &[0; 4 + 0xffff]]
                .concat()
                .into_iter()
                .chain([&[0x00, 0xfe, 0xff, 0xff][..], &[0; 4 + 0xffff]].concat().repeat(40))
                .collect(),
        ),
    ];
    for (name, payload) in payloads {
        let url = exec_url(world, &container, &["cat"], [true, true, false, false]).await?;
        let mut client = websocket::connect(&url, "v4.channel.k8s.io").await?;
        ensure_eq!(next(&mut client).await?.ok_or("closed")?, (1, Vec::new()));
        // It may hang up before it has all.
        let _ = client.raw(&payload).await;
        ensure!(client.is_closed().await?, "{name}: the connection stays");
    }
    let grown = memory(world)?.saturating_sub(before);
    ensure!(grown < 8 << 10, "the daemon has grown by {grown} KiB");
    ensure_eq!(world.exec(&container, &["true"]).await?.exit_code, 0);
    Ok(())
}
