//! The built-in network: from the host, from pod to pod, and out.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};

use cove_e2e::{Outcome, wait};

use crate::world::{SOON, World};

cases!(
    reaches_a_pod_from_the_host_and_from_a_pod,
    reaches_the_host_from_a_pod,
    gives_each_pod_its_own_address
);

/// A pod that answers `text` on port 80, and its address.
async fn server(world: &mut World, name: &str, text: &str) -> Outcome<(String, IpAddr)> {
    let config = world.pod(name);
    let id = world.run_pod(&config).await?;
    let script = format!("mkdir -p /www; echo {text} >/www/index.html; exec httpd -f -p 80 -h /www");
    world.launch(&id, &config, &world.script("web", &script)).await?;
    let address = world.pod_status(&id).await?.network.ok_or("no network")?.ip.parse()?;
    Ok((id, address))
}

fn get(address: IpAddr) -> Outcome<String> {
    let mut stream = wait::until("the pod's server", SOON, || Ok(TcpStream::connect((address, 80)).ok()))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn reaches_a_pod_from_the_host_and_from_a_pod(world: &mut World) -> Outcome {
    let (_, address) = server(world, "web", "served-here").await?;
    ensure!(get(address)?.contains("served-here"), "from the host");
    let config = world.pod("client");
    let id = world.run_pod(&config).await?;
    let (_, text) =
        world.output(&id, &config, &world.script("get", &format!("wget -q -O - http://{address}/"))).await?;
    ensure_eq!(text, "served-here\n");
    // Two containers of one pod share its loopback.
    let script = world.script("local", "wget -q -O - http://127.0.0.1/ 2>/dev/null || echo nobody");
    let (_, text) = world.output(&id, &config, &script).await?;
    ensure_eq!(text, "nobody\n");
    Ok(())
}

async fn reaches_the_host_from_a_pod(world: &mut World) -> Outcome {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let served = std::thread::spawn(move || -> std::io::Result<IpAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host\n")?;
        Ok(peer.ip())
    });
    let config = world.pod("out");
    let id = world.run_pod(&config).await?;
    let gateway = "ip route | grep default | tr -s ' ' | cut -d' ' -f3";
    let script = format!("wget -q -O - http://$({gateway}):{port}/");
    let (status, text) = world.output(&id, &config, &world.script("get", &script)).await?;
    if text != "from the host\n" {
        // Ends the thread that waits.
        drop(TcpStream::connect(("127.0.0.1", port)));
        return Err(format!("{text:?} {status:?}").into());
    }
    let peer = served.join().map_err(|_| "the server panicked")??;
    ensure_eq!(peer.to_string(), world.pod_status(&id).await?.network.ok_or("no network")?.ip);
    Ok(())
}

async fn gives_each_pod_its_own_address(world: &mut World) -> Outcome {
    let mut addresses = std::collections::BTreeSet::new();
    for n in 0..8 {
        let config = world.pod(&format!("pod-{n}"));
        let id = world.run_pod(&config).await?;
        addresses.insert(world.pod_status(&id).await?.network.ok_or("no network")?.ip);
    }
    ensure_eq!(addresses.len(), 8);
    Ok(())
}
