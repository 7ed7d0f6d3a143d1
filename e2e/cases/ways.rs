//! The four ways of a pod's packets, on the built-in network and on CNI: to a container of the same pod, to another pod,
//! to an address outside, and in from outside by a host port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use cove_e2e::cni::{bridge, host_local, list, portmap, run};
use cove_e2e::outside::{HOST, OUTSIDE, Outside, within};
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;

use crate::cni::{addresses, host_port, info, lease_directory, serve, with_list};
use crate::world::{SOON, World};

cases!(builtin_goes_four_ways, cni_goes_four_ways, builtin_maps_sctp);

/// Host ports of the cases, in the order of `ports`.
const PORTS: [u16; 3] = [18_301, 18_302, 18_303];

async fn builtin_goes_four_ways(world: &mut World) -> Outcome {
    four_ways(world).await
}

async fn cni_goes_four_ways(world: &mut World) -> Outcome {
    let ipam = host_local(&lease_directory(world), &["10.216.32.0/24"]);
    let text = list("1.0.0", "ways", &[bridge("e2ebr32", &ipam), portmap()]);
    with_list(world, &text, four_ways).await
}

async fn four_ways(world: &mut World) -> Outcome {
    let outside = Outside::new()?;
    let mut config = world.pod("server");
    config.port_mappings = vec![
        host_port(Protocol::Tcp, PORTS[0].into(), ""),
        host_port(Protocol::Tcp, PORTS[1].into(), HOST),
        host_port(Protocol::Udp, PORTS[2].into(), ""),
    ];
    let server = serve(world, &config, "served-here").await?;
    let address = addresses(world, &server).await?[0];
    let fetch = |url: &str| format!("for n in 1 2 3 4 5; do wget -q -O - {url} && exit; sleep 0.2; done");

    let same = world.script("same", &fetch("http://127.0.0.1/"));
    ensure_eq!(world.output(&server, &config, &same).await?.1, "served-here\n");

    let other_config = world.pod("client");
    let other = world.run_pod(&other_config).await?;
    let script = world.script("pod", &fetch(&format!("http://{address}/")));
    ensure_eq!(world.output(&other, &other_config, &script).await?.1, "served-here\n");

    let listener = outside.act(|| TcpListener::bind((OUTSIDE, 8080)))??;
    let answered = std::thread::spawn(move || -> std::io::Result<String> {
        let (mut stream, peer) = listener.accept()?;
        // What is not read makes the end of a connection a reset.
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom outside\n")?;
        Ok(peer.ip().to_string())
    });
    let script = world.script("out", &format!("wget -q -O - http://{OUTSIDE}:8080/"));
    let text = world.output(&other, &other_config, &script).await?.1;
    if text != "from outside\n" {
        // Ends the thread that waits.
        drop(TcpStream::connect((OUTSIDE, 8080)));
        return Err(format!("from outside came {text:?}").into());
    }
    // Nobody out there knows a way to a pod's address: it comes by the host's.
    ensure_eq!(answered.join().map_err(|_| "the server panicked")??, HOST);

    for port in &PORTS[..2] {
        let text = outside.act(|| ask(&format!("{HOST}:{port}")))??;
        ensure!(text.contains("served-here"), "{port}: {text}");
    }
    // The one that has an address is at that address alone.
    ensure!(ask(&format!("127.0.0.1:{}", PORTS[0]))?.contains("served-here"), "from the host");
    ensure!(ask(&format!("127.0.0.1:{}", PORTS[1])).is_err(), "at another address of the host");
    datagram(world, &server, &outside).await
}

/// A datagram in by the host port, and its answer out.
async fn datagram(world: &mut World, server: &str, outside: &Outside) -> Outcome {
    let netns: PathBuf = info(world, server).await?["netns"].as_str().ok_or("no netns")?.into();
    let socket = within(&netns, || UdpSocket::bind("0.0.0.0:80"))??;
    socket.set_read_timeout(Some(SOON))?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 64];
        let (length, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], peer).map(drop)
    });
    let answer = outside.act(|| -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind((OUTSIDE, 0))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.connect((HOST, PORTS[2]))?;
        socket.send(b"datagram")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(buffer[..length].to_vec())
    })??;
    echo.join().map_err(|_| "the echo panicked")??;
    ensure_eq!(answer, b"datagram");
    Ok(())
}

/// What is answered at an address, once or never.
fn ask(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether the kernel has sockets of SCTP or not, it forwards its packets.
async fn builtin_maps_sctp(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    let mut config = world.pod("sctp");
    config.port_mappings =
        vec![host_port(Protocol::Sctp, 18_304, ""), host_port(Protocol::Sctp, 18_305, HOST)];
    let id = world.run_pod(&config).await?;
    let address = addresses(world, &id).await?[0];
    let table = || run("nft", &["-n", "list", "table", "inet", &place.instance]);
    for key in ["132 . 18304".to_owned(), format!("{HOST} . 132 . 18305")] {
        ensure!(table()?.contains(&format!("{key} : {address} . 80")), "{}", table()?);
    }
    world.remove_pod(&id).await?;
    wait::until("the ports to go", SOON, || Ok((!table()?.contains("1830")).then_some(())))
}
