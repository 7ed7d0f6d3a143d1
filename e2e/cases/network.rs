//! The built-in network: from the host, from pod to pod, and out; and what of others is called like it.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cove_e2e::daemon::Place;
use cove_e2e::outside::within;
use cove_e2e::{Outcome, cni, wait};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    reaches_a_pod_from_the_host_and_from_a_pod,
    reaches_the_host_from_a_pod,
    gives_each_pod_its_own_address,
    takes_the_pod_cidr_of_a_kubelet,
    serves_two_families,
    runs_more_pods_than_there_are_addresses,
    runs_beside_another_instance,
    leaves_a_table_of_its_name_alone,
    leaves_a_bridge_of_its_name_alone,
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
        // What is not read makes the end of the connection a reset.
        let _ = stream.read(&mut [0; 4096])?;
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

async fn say(world: &mut World, cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(NetworkConfig { pod_cidr: cidr.into() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    world.cri.runtime.update_runtime_config(request).await.map(drop)
}

async fn network_is_ready(world: &mut World) -> Outcome<(bool, String)> {
    // Answered once the daemon has read its records, which Status does not wait for.
    world.pods().await?;
    let status = world.cri.runtime.status(StatusRequest { verbose: false }).await?.into_inner().status;
    let conditions = status.ok_or("no status")?.conditions;
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
    network.map(|condition| (condition.status, condition.message)).ok_or_else(|| "no NetworkReady".into())
}

async fn takes_the_pod_cidr_of_a_kubelet(world: &mut World) -> Outcome {
    let range = world.place.as_ref().ok_or("the daemon is another's")?.range.clone();
    // A configuration with ranges has the last word, and a kubelet tells every runtime.
    say(world, "10.215.7.0/24").await?;
    let config = world.pod("own");
    let own = world.run_pod(&config).await?;
    ensure!(
        !world.pod_status(&own).await?.network.ok_or("no network")?.ip.starts_with("10.215."),
        "not this one"
    );
    world.stop_pod(&own).await?;
    world.remove_pod(&own).await?;
    world.place.as_mut().ok_or("the daemon is another's")?.range = String::new();
    world.restart(End::Term).await?;
    let (ready, message) = network_is_ready(world).await?;
    ensure!(!ready && message.contains("pod CIDR"), "{message}");
    let config = world.pod("early");
    ensure!(world.try_run_pod(&config).await.refused()?.message().contains("pod CIDR"), "no address to give");
    for bad in ["10.215.7.0", "10.215.7.0/24,10.215.8.0/24"] {
        ensure_eq!(say(world, bad).await.refused()?.code(), tonic::Code::InvalidArgument);
    }
    say(world, "").await?;
    say(world, "10.215.7.0/24").await?;
    ensure!(network_is_ready(world).await?.0, "a range is known");
    let id = world.run_pod(&config).await?;
    let address = world.pod_status(&id).await?.network.ok_or("no network")?.ip;
    ensure!(address.starts_with("10.215.7."), "{address}");
    // Known before the kubelet speaks again, and said again without harm.
    world.restart(End::Kill).await?;
    ensure!(network_is_ready(world).await?.0, "it was kept");
    ensure_eq!(world.pod_status(&id).await?.network.ok_or("no network")?.ip, address);
    say(world, "10.215.7.0/24").await?;
    // A pod has an address of it, which would lead nowhere.
    let refused = say(world, "10.215.9.0/24").await.refused()?;
    ensure!(refused.message().contains("stopped"), "{refused}");
    world.stop_pod(&id).await?;
    world.remove_pod(&id).await?;
    say(world, "10.215.9.0/24,fd00:215::/64").await?;
    let id = world.run_pod(&world.pod("later")).await?;
    let network = world.pod_status(&id).await?.network.ok_or("no network")?;
    ensure!(network.ip.starts_with("10.215.9.") && network.additional_ips.len() == 1, "{network:?}");
    // The table goes with its last pod and its daemon, and the one before comes again.
    world.remove_everything().await?;
    world.place.as_mut().ok_or("the daemon is another's")?.range = range;
    world.restart(End::Term).await
}

/// Restarts the daemon with other ranges, does `body`, and restarts it with those that it had.
async fn with_range(
    world: &mut World,
    range: &str,
    body: impl AsyncFnOnce(&mut World) -> Outcome,
) -> Outcome {
    let place = world.place.as_mut().ok_or("the daemon is another's")?;
    let before = std::mem::replace(&mut place.range, range.to_owned());
    world.restart(End::Term).await?;
    let outcome = body(world).await;
    let removed = world.remove_everything().await;
    world.place.as_mut().ok_or("the daemon is another's")?.range = before;
    let back = world.restart(End::Term).await;
    outcome.and(removed).and(back)
}

async fn serves_two_families(world: &mut World) -> Outcome {
    with_range(world, "10.215.10.0/24,fd00:215:10::/64", async |world| {
        let (id, first) = server(world, "web", "both").await?;
        let network = world.pod_status(&id).await?.network.ok_or("no network")?;
        let more: Vec<IpAddr> =
            network.additional_ips.iter().map(|ip| ip.ip.parse()).collect::<Result<_, _>>()?;
        ensure!(first.is_ipv4() && more.len() == 1 && more[0].is_ipv6(), "{network:?}");
        ensure!(get(first)?.contains("both") && get(more[0])?.contains("both"), "from the host");
        let config = world.pod("client");
        let client = world.run_pod(&config).await?;
        for (name, url) in
            [("get-4", format!("http://{first}/")), ("get-6", format!("http://[{}]/", more[0]))]
        {
            let script = world.script(name, &format!("wget -q -O - {url}"));
            let (_, text) = world.output(&client, &config, &script).await?;
            ensure_eq!((&url, text.as_str()), (&url, "both\n"));
        }
        Ok(())
    })
    .await
}

async fn runs_more_pods_than_there_are_addresses(world: &mut World) -> Outcome {
    /// As many as fit in this time: the case must not be the longest of all.
    const TIME: Duration = Duration::from_secs(30);
    with_range(world, "10.215.11.0/28", async |world| {
        let begun = Instant::now();
        let (mut count, mut used) = (0, std::collections::BTreeSet::new());
        while count < 1000 && begun.elapsed() < TIME {
            let config = world.pod(&format!("pod-{count}"));
            let id = world.run_pod(&config).await?;
            used.insert(world.pod_status(&id).await?.network.ok_or("no network")?.ip);
            world.remove_pod(&id).await?;
            count += 1;
        }
        println!("{count} pods one after another, {} addresses", used.len());
        // 13 pods have room at once.
        ensure!(count > 26 && used.len() <= 13, "{count} pods, {} addresses", used.len());
        Ok(())
    })
    .await
}

async fn runs_beside_another_instance(world: &mut World) -> Outcome {
    let place = world.place.clone().ok_or("the daemon is another's")?;
    let (_, first) = server(world, "web", "of-the-first").await?;
    let directory = world.directory.join("second");
    let second = Place {
        instance: format!("b{}", place.instance),
        root: directory.join("root"),
        state: directory.join("state"),
        range: "10.215.12.0/24".into(),
        ..place
    };
    let mut daemon = second.start()?;
    let own = std::mem::replace(&mut world.cri, daemon.connect().await?);
    let outcome: Outcome = async {
        world.pull(&world.image.clone()).await?;
        // Pods of the same names.
        let (id, address) = server(world, "web", "of-the-second").await?;
        ensure!(get(address)?.contains("of-the-second"), "from the host");
        let config = world.pod("web");
        let script = world.script("get", &format!("wget -q -O - http://{first}/"));
        ensure_eq!(world.output(&id, &config, &script).await?.1, "of-the-first\n");
        ensure_eq!(world.pods().await?.len(), 1);
        Ok(())
    }
    .await;
    let removed = world.remove_everything().await;
    world.cri = own;
    outcome.and(removed).and(daemon.stop())?;
    ensure!(get(first)?.contains("of-the-first"), "after the other one has gone");
    ensure_eq!(world.pods().await?.len(), 1);
    Ok(())
}

fn run(program: &str, line: &str) -> Outcome<String> {
    cni::run(program, &line.split(' ').collect::<Vec<_>>())
}

async fn leaves_a_table_of_its_name_alone(world: &mut World) -> Outcome {
    let place = world.place.clone().ok_or("the daemon is another's")?;
    world.daemon.take().ok_or("no daemon")?.stop()?;
    let name = &place.instance;
    run(
        "nft",
        &format!("add table inet {name}; add chain inet {name} theirs; add rule inet {name} theirs accept"),
    )?;
    let list = || run("nft", &format!("list table inet {name}"));
    let outcome: Outcome = async {
        let before = list()?;
        let ended = place.start()?.connect_or_end().await;
        let error = ended.err().ok_or("it starts in a table of another's")?;
        let error = error.to_string();
        ensure!(error.contains("is not Cove's") && error.contains("nft delete table inet"), "{error}");
        ensure_eq!(list()?, before);
        Ok(())
    }
    .await;
    run("nft", &format!("delete table inet {name}"))?;
    outcome?;
    world.resume(&[]).await?;
    world.run_pod(&world.pod("after")).await?;
    Ok(())
}

/// A bridge that is called as Cove's links begin: it stays, and so does what it lets through. The built-in network itself
/// has no bridge.
async fn leaves_a_bridge_of_its_name_alone(world: &mut World) -> Outcome {
    let place = world.place.clone().ok_or("the daemon is another's")?;
    let bridge = format!("{}0", place.instance);
    let netns = format!("{}-bridge", place.instance);
    run("ip", &format!("link add {bridge} type bridge"))?;
    let outcome: Outcome = async {
        run("ip", &format!("netns add {netns}"))?;
        for line in [
            format!("addr add 198.51.100.65/26 dev {bridge}"),
            format!("link set {bridge} up"),
            format!("link add e2eport master {bridge} type veth peer name eth0 netns {netns}"),
            "link set e2eport up".to_owned(),
            format!("-n {netns} addr add 198.51.100.66/26 dev eth0"),
            format!("-n {netns} addr add 192.0.2.9/32 dev eth0"),
            format!("-n {netns} link set eth0 up"),
        ] {
            run("ip", &line)?;
        }
        let link = || run("ip", &format!("-o addr show dev {bridge}"));
        let before = link()?;
        let pod = world.run_pod(&world.pod("beside")).await?;
        let ears = UdpSocket::bind("198.51.100.65:0")?;
        ears.set_read_timeout(Some(SOON))?;
        let at = ears.local_addr()?;
        // From an address that the host knows no way to by this bridge: nothing that a pod may do, but this is no pod.
        let netns = std::path::Path::new("/run/netns").join(&netns);
        within(&netns, || UdpSocket::bind("192.0.2.9:0")?.send_to(b"heard", at))??;
        let mut heard = [0; 16];
        let length = ears.recv(&mut heard).map_err(|error| format!("nothing came by {bridge}: {error}"))?;
        ensure_eq!(&heard[..length], b"heard");
        world.restart(End::Kill).await?;
        world.stop_pod(&pod).await?;
        world.remove_pod(&pod).await?;
        world.restart(End::Term).await?;
        ensure_eq!(link()?, before);
        Ok(())
    }
    .await;
    // The port goes with the namespace.
    let removed = [format!("link del {bridge}"), format!("netns del {netns}")].map(|line| run("ip", &line));
    outcome?;
    removed.into_iter().try_for_each(|one| one.map(drop))
}
