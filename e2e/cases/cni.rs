//! Pods on the real CNI plugins: bridge, ptp, host-local, portmap, loopback, tuning, bandwidth.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cove_e2e::cni::{self, Before, Cni, bridge, host_local, leases, list, portmap};
use cove_e2e::{Outcome, process, wait};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    attaches_by_a_bridge_with_two_families,
    attaches_by_ptp_with_a_chain,
    speaks_every_version,
    takes_the_first_of_two_lists,
    turns_ready_when_a_list_appears,
    keeps_a_pod_over_a_restart,
    gives_back_what_no_record_tells_of,
    gives_back_addresses_after_a_reboot,
    runs_more_pods_than_there_are_addresses,
);

/// Bridges of the cases begin so.
pub(crate) const BRIDGE: &str = "e2ebr";

/// Where configurations are written.
pub(crate) fn net_d(world: &World) -> PathBuf {
    world.directory.join("net.d")
}

/// Where `host-local` keeps its leases.
pub(crate) fn lease_directory(world: &World) -> PathBuf {
    world.directory.join("leases")
}

/// Restarts the daemon on CNI with these plugins, does `body`, removes all pods, and what plugins leave by design. Then the
/// daemon is back on the network that it had.
pub(crate) async fn with_cni(
    world: &mut World,
    plugins: Vec<PathBuf>,
    seconds: u64,
    body: impl AsyncFnOnce(&mut World) -> Outcome,
) -> Outcome {
    let configurations = net_d(world);
    // Only against a runtime that runs already there is none; its network is its own.
    let Some(place) = &mut world.place else { return Ok(()) };
    ensure!(cni::plugins().join("bridge").exists(), "no plugins: hack/deps cni builds them");
    place.cni = Some(Cni { configurations, plugins, seconds });
    let before = Before::now()?;
    let outcome = async {
        world.restart(End::Term).await?;
        body(world).await
    }
    .await;
    let removed = world.remove_everything().await;
    if let Some(place) = &mut world.place {
        place.cni = None;
    }
    let back = if world.daemon.is_some() { world.restart(End::Term).await } else { Ok(()) };
    outcome.and(removed).and(before.restore(BRIDGE)).and(back)
}

/// The same with the real plugins and one configuration.
pub(crate) async fn with_list(
    world: &mut World,
    text: &Value,
    body: impl AsyncFnOnce(&mut World) -> Outcome,
) -> Outcome {
    write_list(world, "10-e2e.conflist", text)?;
    with_cni(world, vec![cni::plugins()], 60, body).await
}

pub(crate) fn write_list(world: &World, name: &str, text: &Value) -> Outcome {
    fs::create_dir_all(net_d(world))?;
    Ok(fs::write(net_d(world).join(name), serde_json::to_vec_pretty(text)?)?)
}

/// NetworkReady, and its message, once the daemon has set up its network.
pub(crate) async fn network_ready(world: &mut World) -> Outcome<(bool, String)> {
    let cri = world.cri.clone();
    wait::until_async("the daemon to be ready", SOON, || {
        let mut cri = cri.clone();
        async move {
            let status = cri.runtime.status(StatusRequest::default()).await?.into_inner().status;
            let conditions = status.ok_or("no status")?.conditions;
            let found = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
            let found = found.ok_or("no condition")?;
            Ok((!found.message.contains("still setting up")).then_some((found.status, found.message)))
        }
    })
    .await
}

/// What verbose status says of a sandbox.
pub(crate) async fn info(world: &mut World, id: &str) -> Outcome<Value> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
    let answer = world.cri.runtime.pod_sandbox_status(request).await?.into_inner();
    Ok(serde_json::from_str(answer.info.get("info").ok_or("no info")?)?)
}

/// A pod's addresses, the primary first.
pub(crate) async fn addresses(world: &mut World, id: &str) -> Outcome<Vec<IpAddr>> {
    let network = world.pod_status(id).await?.network.ok_or("no network")?;
    let all = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Ok(all.map(|ip| ip.parse()).collect::<Result<_, _>>()?)
}

/// A pod that answers `text` on port 80.
pub(crate) async fn serve(world: &mut World, config: &PodSandboxConfig, text: &str) -> Outcome<String> {
    let id = world.run_pod(config).await?;
    let script = format!("mkdir -p /www; echo {text} >/www/index.html; exec httpd -f -p 80 -h /www");
    let script = world.script("web", &script);
    world.launch(&id, config, &script).await?;
    Ok(id)
}

/// What is answered at an address, waiting until somebody listens.
pub(crate) fn get(address: IpAddr, port: u16) -> Outcome<String> {
    let address = SocketAddr::new(address, port);
    let connect = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok());
    let mut stream = wait::until(&format!("a server at {address}"), SOON, connect)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A host port for port 80.
pub(crate) fn host_port(protocol: Protocol, port: i32, host_ip: &str) -> PortMapping {
    PortMapping { protocol: protocol.into(), container_port: 80, host_port: port, host_ip: host_ip.into() }
}

async fn attaches_by_a_bridge_with_two_families(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    let ipam = host_local(&leased, &["10.216.1.0/24", "fd00:216:1::/64"]);
    let text = list("1.0.0", "two", &[bridge("e2ebr1", &ipam), portmap()]);
    with_list(world, &text, async |world| {
        let mut config = world.pod("web");
        config.port_mappings.push(host_port(Protocol::Tcp, 18_216, ""));
        let id = serve(world, &config, "by-bridge").await?;
        let found = addresses(world, &id).await?;
        ensure!(found.len() == 2 && found[0].is_ipv4() && found[1].is_ipv6(), "{found:?}");
        for address in &found {
            ensure!(get(*address, 80)?.contains("by-bridge"), "{address}");
        }
        ensure!(get("127.0.0.1".parse()?, 18_216)?.contains("by-bridge"), "by the host port");
        let shown = info(world, &id).await?["cniResult"]["Interfaces"]["eth0"].clone();
        ensure_eq!(shown["IPConfigs"][0]["IP"], json!(found[0]));
        ensure!(shown["Sandbox"].as_str().is_some_and(|path| path.contains(&id)), "{shown}");
        let lines = world.script("hosts", "cat /etc/hosts; ip addr show lo");
        let (_, text) = world.output(&id, &config, &lines).await?;
        ensure!(found.iter().all(|address| text.contains(&format!("{address}\tweb"))), "{text}");
        ensure!(text.contains("LOOPBACK,UP"), "lo is up without a plugin: {text}");
        ensure_eq!(leases(&leased, "two").len(), 2);
        world.remove_pod(&id).await?;
        ensure_eq!(leases(&leased, "two"), BTreeSet::new());
        ensure!(TcpStream::connect(("127.0.0.1", 18_216)).is_err(), "the host port is closed");
        Ok(())
    })
    .await
}

async fn attaches_by_ptp_with_a_chain(world: &mut World) -> Outcome {
    let ipam = host_local(&lease_directory(world), &["10.216.2.0/24"]);
    let chain = [
        json!({"type": "ptp", "ipMasq": true, "ipam": ipam}),
        json!({"type": "loopback"}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "517"}}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
    ];
    with_list(world, &list("1.1.0", "chain", &chain), async |world| {
        let mut config = world.pod("chain");
        for way in ["ingress", "egress"] {
            config.annotations.insert(format!("kubernetes.io/{way}-bandwidth"), "10M".into());
        }
        let id = serve(world, &config, "by-ptp").await?;
        let address = addresses(world, &id).await?[0];
        ensure!(get(address, 80)?.contains("by-ptp"), "{address}");
        let script = world.script("sysctl", "cat /proc/sys/net/core/somaxconn");
        ensure_eq!(world.output(&id, &config, &script).await?.1, "517\n");
        let limits = cni::run("tc", &["qdisc"])?;
        ensure_eq!(limits.matches("rate 10Mbit").count(), 2);
        let mut bad = world.pod("bad");
        bad.annotations.insert("kubernetes.io/egress-bandwidth".into(), "lots".into());
        let refused = world.try_run_pod(&bad).await.refused()?;
        ensure!(refused.code() == tonic::Code::InvalidArgument, "{refused}");
        ensure!(refused.message().contains("egress-bandwidth"), "{refused}");
        world.remove_pod(&id).await?;
        ensure!(!cni::run("tc", &["qdisc"])?.contains("10Mbit"), "a limit is left");
        Ok(())
    })
    .await
}

async fn speaks_every_version(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    let ipam = host_local(&leased, &["10.216.3.0/24"]);
    let chain = [bridge("e2ebr3", &ipam), portmap(), json!({"type": "tuning"})];
    write_list(world, "10-e2e.conflist", &list("1.1.0", "versions", &chain))?;
    with_cni(world, vec![cni::plugins()], 60, async |world| {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            write_list(world, "10-e2e.conflist", &list(version, "versions", &chain))?;
            let config = world.pod(&format!("pod-{version}"));
            let id = world.run_pod(&config).await?;
            ensure_eq!(addresses(world, &id).await?.len(), 1);
            world.remove_pod(&id).await?;
            ensure_eq!((version, leases(&leased, "versions").len()), (version, 0));
        }
        // A configuration of one plugin.
        fs::remove_file(net_d(world).join("10-e2e.conflist"))?;
        let ipam = host_local(&leased, &["10.216.3.0/24"]);
        let one = json!({"cniVersion": "0.4.0", "name": "versions", "type": "ptp", "ipam": ipam});
        write_list(world, "20-one.conf", &one)?;
        let config = world.pod("one");
        let id = world.run_pod(&config).await?;
        ensure_eq!(addresses(world, &id).await?.len(), 1);
        Ok(())
    })
    .await
}

async fn takes_the_first_of_two_lists(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    for (file, name, range) in
        [("20-b.conflist", "b", "10.216.5.0/24"), ("10-a.conflist", "a", "10.216.4.0/24")]
    {
        let ptp = json!({"type": "ptp", "ipam": host_local(&leased, &[range])});
        write_list(world, file, &list("1.0.0", name, &[ptp]))?;
    }
    with_cni(world, vec![cni::plugins()], 60, async |world| {
        let (one, two) = (world.pod("one"), world.pod("two"));
        let first = world.run_pod(&one).await?;
        ensure!(addresses(world, &first).await?[0].to_string().starts_with("10.216.4."), "the lowest name");
        fs::remove_file(net_d(world).join("10-a.conflist"))?;
        let second = world.run_pod(&two).await?;
        ensure!(addresses(world, &second).await?[0].to_string().starts_with("10.216.5."), "the other");
        // The first is detached by what attached it, though that is gone.
        world.remove_pod(&first).await?;
        ensure_eq!((leases(&leased, "a").len(), leases(&leased, "b").len()), (0, 1));
        Ok(())
    })
    .await
}

/// The node says that its network is not ready, with these words.
async fn says_not_ready(world: &mut World, words: &[&str]) -> Outcome {
    let (ready, message) = network_ready(world).await?;
    ensure!(!ready && words.iter().all(|word| message.contains(word)), "{ready} {message}");
    Ok(())
}

async fn turns_ready_when_a_list_appears(world: &mut World) -> Outcome {
    let ipam = host_local(&lease_directory(world), &["10.216.6.0/24"]);
    let text = list("1.0.0", "late", &[json!({"type": "ptp", "ipam": ipam})]).to_string();
    let plugins = world.directory.join("bin");
    with_cni(world, vec![plugins.clone()], 60, async |world| {
        says_not_ready(world, &["net.d", "No such file"]).await?;
        let config = world.pod("late");
        let refused = world.try_run_pod(&config).await.refused()?;
        ensure!(refused.code() == tonic::Code::Unavailable, "{refused}");
        ensure!(refused.message().contains("net.d"), "{refused}");
        fs::create_dir(net_d(world))?;
        let file = net_d(world).join("10-late.conflist");
        fs::write(&file, &text[..text.len() / 2])?;
        says_not_ready(world, &["10-late.conflist", "JSON"]).await?;
        fs::write(&file, &text)?;
        says_not_ready(world, &["10-late.conflist", "\"ptp\"", "\"host-local\"", "install"]).await?;
        fs::create_dir(&plugins)?;
        for name in ["ptp", "host-local"] {
            fs::copy(cni::plugins().join(name), plugins.join(name))?;
        }
        ensure_eq!(network_ready(world).await?, (true, String::new()));
        let id = world.run_pod(&config).await?;
        // While it is written anew, it counts as it was.
        fs::write(&file, "{")?;
        ensure!(network_ready(world).await?.0, "half written");
        let other = world.pod("other");
        world.run_pod(&other).await?;
        world.remove_pod(&id).await.map_err(Into::into)
    })
    .await
}

async fn keeps_a_pod_over_a_restart(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    let chain = [bridge("e2ebr7", &host_local(&leased, &["10.216.7.0/24"])), portmap()];
    with_list(world, &list("1.0.0", "kept", &chain), async |world| {
        let mut config = world.pod("kept");
        config.port_mappings.push(host_port(Protocol::Tcp, 18_217, ""));
        let id = serve(world, &config, "kept-here").await?;
        let before = (world.pod_status(&id).await?, info(world, &id).await?["cniResult"].clone());
        for how in [End::Kill, End::Term] {
            world.restart(how).await?;
            ensure_eq!(world.pod_status(&id).await?, before.0);
            ensure_eq!(info(world, &id).await?["cniResult"], before.1);
            ensure!(get("127.0.0.1".parse()?, 18_217)?.contains("kept-here"), "by the host port");
        }
        world.remove_pod(&id).await?;
        ensure_eq!(leases(&leased, "kept").len(), 0);
        Ok(())
    })
    .await
}

async fn gives_back_what_no_record_tells_of(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    let chain = [bridge("e2ebra", &host_local(&leased, &["10.216.10.0/24"])), portmap()];
    with_list(world, &list("1.0.0", "lost", &chain), async |world| {
        let mut config = world.pod("lost");
        config.port_mappings.push(host_port(Protocol::Tcp, 18_220, ""));
        let id = world.run_pod(&config).await?;
        let place = world.place.clone().ok_or("no place")?;
        let record = place.root.join("sandboxes").join(&id).join("attachment.json");
        ensure_eq!(leases(&leased, "lost").len(), 1);
        fs::write(&record, "{\"file\": \"/")?;
        world.restart(End::Kill).await?;
        world.pod_status(&id).await?;
        ensure!(record.with_extension("unreadable").exists(), "it was readable");
        world.remove_pod(&id).await?;
        ensure_eq!(leases(&leased, "lost").len(), 0);
        Ok(())
    })
    .await
}

/// What a restart of the host does: every process and every mount of ours is gone, and so is what was below /run.
fn reboot(world: &mut World, sandbox: &str) -> Outcome {
    let place = world.place.clone().ok_or("no place")?;
    world.daemon.take().ok_or("no daemon")?.kill()?;
    let shim = process::shim(sandbox)?;
    process::signal(shim, rustix::process::Signal::KILL)?;
    wait::until("the shim to end", SOON, || Ok((!process::lives(shim)).then_some(())))?;
    let pin = Path::new("/run/netns").join(format!("{}-{sandbox}", place.instance));
    cni::run("umount", &[&pin.to_string_lossy()])?;
    fs::remove_file(&pin)?;
    Ok(fs::remove_dir_all(&place.state)?)
}

async fn gives_back_addresses_after_a_reboot(world: &mut World) -> Outcome {
    let leased = lease_directory(world);
    let chain = [bridge("e2ebr8", &host_local(&leased, &["10.216.8.0/24"])), portmap()];
    with_list(world, &list("1.0.0", "reboot", &chain), async |world| {
        let mut config = world.pod("reboot");
        config.port_mappings.push(host_port(Protocol::Tcp, 18_218, ""));
        let id = world.run_pod(&config).await?;
        ensure_eq!(leases(&leased, "reboot"), BTreeSet::from([addresses(world, &id).await?[0].to_string()]));
        reboot(world, &id)?;
        world.resume(&[]).await?;
        let status = world.pod_status(&id).await?;
        ensure_eq!(status.state(), PodSandboxState::SandboxNotready);
        // It is given back without being asked for, and stopping finds nothing left to do.
        wait::until("the address to be given back", SOON, || {
            Ok(leases(&leased, "reboot").is_empty().then_some(()))
        })?;
        world.stop_pod(&id).await?;
        if let Some(metadata) = &mut config.metadata {
            metadata.attempt += 1;
        }
        world.run_pod(&config).await?;
        ensure_eq!(leases(&leased, "reboot").len(), 1);
        Ok(())
    })
    .await
}

async fn runs_more_pods_than_there_are_addresses(world: &mut World) -> Outcome {
    /// As many as fit in this time: the case must not be the longest of all.
    const TIME: Duration = Duration::from_secs(30);
    let leased = lease_directory(world);
    let chain = [bridge("e2ebr9", &host_local(&leased, &["10.216.9.0/28"])), portmap()];
    with_list(world, &list("1.0.0", "small", &chain), async |world| {
        let begun = Instant::now();
        let mut count = 0;
        let mut used = BTreeSet::new();
        while count < 1000 && begun.elapsed() < TIME {
            let config = world.pod(&format!("pod-{count}"));
            let id = world.run_pod(&config).await?;
            used.insert(addresses(world, &id).await?[0]);
            world.remove_pod(&id).await?;
            count += 1;
        }
        println!("{count} pods one after another, {} addresses", used.len());
        // 13 pods have room at once.
        ensure!(count > 26 && used.len() <= 13, "{count} pods, {} addresses", used.len());
        ensure_eq!(leases(&leased, "small").len(), 0);
        Ok(())
    })
    .await
}
