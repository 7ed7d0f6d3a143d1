//! The built-in network on the real kernel: namespaces of our own, real packets.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::LinkNameSpaceType;

use super::*;

/// Longest wait for a connection that must come about.
const SOON: Duration = Duration::from_secs(5);
/// How long a packet that must not arrive is waited for: on one machine the others take microseconds.
const NEVER: Duration = Duration::from_millis(300);

/// One test at a time: they share the host's routes, table names by process, and forwarding.
static ALONE: Mutex<()> = Mutex::new(());

/// An instance that is taken down, and the host's forwarding as it was before, when dropped.
struct Host {
    instances: Vec<String>,
    sysctls: Vec<(&'static str, String)>,
    attached: Mutex<Vec<Attachment>>,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
        let sysctls = keys.map(|key| (key, fs::read_to_string(key).unwrap())).to_vec();
        Self { instances: Vec::new(), sysctls, attached: Mutex::new(Vec::new()), _alone: alone }
    }

    fn name(number: u8) -> String {
        format!("cvt{number}-{}", std::process::id())
    }

    fn start(&mut self, number: u8, ranges: &[&str]) -> Builtin {
        let name = Self::name(number);
        self.instances.push(name.clone());
        let ranges: Vec<String> = ranges.iter().map(|&range| range.to_owned()).collect();
        Builtin::start(&name, &ranges, &[]).unwrap()
    }

    fn pod(&self, network: &Builtin, ports: &[HostPort]) -> Pod {
        let netns = netns();
        let id = format!("{:016x}", rustix::fs::fstat(&netns).unwrap().st_ino);
        let id: String = id.chars().rev().collect();
        let attachment = network.lease(&id, ports).unwrap();
        self.attached.lock().unwrap().push(attachment.clone());
        assert_eq!(Builtin::find(&network.instance, &id, ports).unwrap(), None);
        network.attach(netns.as_fd(), &attachment).unwrap();
        let mut found = Builtin::find(&network.instance, &id, ports).unwrap().unwrap();
        found.addresses.sort_by_key(|address| attachment.addresses.iter().position(|known| known == address));
        assert_eq!(found, attachment, "what the kernel shows");
        Pod { netns, attachment, served: Mutex::default() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for attachment in self.attached.get_mut().unwrap() {
            for instance in &self.instances {
                link::doom(&attachment.host_link, &[], name::number(instance)).unwrap();
            }
        }
        for instance in &self.instances {
            Builtin::stop(instance).unwrap();
        }
        for (key, value) in &self.sysctls {
            if fs::read_to_string(key).unwrap() != *value {
                fs::write(key, value).unwrap();
            }
        }
    }
}

struct Pod {
    netns: OwnedFd,
    attachment: Attachment,
    served: Mutex<HashSet<(IpAddr, u16)>>,
}

impl Pod {
    fn address(&self) -> IpAddr {
        self.attachment.addresses[0]
    }

    fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = || {
                rustix::thread::move_into_link_name_space(
                    self.netns.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )
                .unwrap();
                act()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    /// Answers each connection to a port with the address that it came from, until the tests end.
    fn serve(&self, address: IpAddr, port: u16) {
        if !self.served.lock().unwrap().insert((address, port)) {
            return;
        }
        let listener = self.enter(|| TcpListener::bind((address, port)).unwrap());
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
            }
        });
    }
}

fn netns() -> OwnedFd {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    };
    thread::spawn(make).join().unwrap()
}

/// Connects from the calling thread's namespace; what the server says.
fn ask(address: IpAddr, port: u16, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), patience)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(host_port: u16, container_port: u16) -> HostPort {
    HostPort { protocol: "tcp".into(), host_port, host_ip: None, container_port }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn table(number: u8) -> String {
    output("nft", &["list", "table", "inet", &Host::name(number)])
}

#[test]
fn the_host_and_other_pods_reach_a_pod() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/24"]);
    let (one, two) = (host.pod(&network, &[]), host.pod(&network, &[]));
    one.serve(one.address(), 80);
    assert_eq!(ask(one.address(), 80, SOON).unwrap(), "10.221.0.1");
    one.serve(one.address(), 80);
    assert_eq!(two.enter(|| ask(one.address(), 80, SOON)).unwrap(), two.address().to_string());
    one.serve(ip("127.0.0.1"), 80);
    assert_eq!(one.enter(|| ask(ip("127.0.0.1"), 80, SOON)).unwrap(), "127.0.0.1");

    let link = &one.attachment.host_link;
    let read = |key: &str| fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap();
    assert_eq!(read(&format!("ipv6/conf/{link}/accept_ra")).trim(), "0");
    assert_eq!(read(&format!("ipv4/conf/{link}/route_localnet")).trim(), "0");
    // Nobody has this one: it is refused here instead of leaving the host.
    let nobody = ask(ip("10.221.0.200"), 80, SOON).unwrap_err();
    assert!(
        matches!(nobody.kind(), std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable),
        "{nobody}"
    );
}

#[test]
fn a_pod_goes_out_under_another_address() {
    let mut host = Host::new();
    // For each instance the other one's range is the world outside.
    let (ours, theirs) = (host.start(1, &["10.221.0.0/24"]), host.start(2, &["10.222.0.0/24"]));
    let (pod, outside) = (host.pod(&ours, &[]), host.pod(&theirs, &[]));
    outside.serve(outside.address(), 80);
    assert_eq!(pod.enter(|| ask(outside.address(), 80, SOON)).unwrap(), "10.222.0.1");
    drop(theirs);
    Builtin::stop(&Host::name(2)).unwrap();
    pod.serve(pod.address(), 80);
    assert_eq!(ask(pod.address(), 80, SOON).unwrap(), "10.221.0.1");
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere() {
    let mut host = Host::new();
    let (ours, theirs) = (host.start(1, &["10.221.0.0/24"]), host.start(2, &["10.222.0.0/24"]));
    let at = HostPort { host_ip: Some(ip("10.222.0.1")), ..port(18_081, 81) };
    let pod = host.pod(&ours, &[port(18_080, 80), at]);
    let (outside, neighbour) = (host.pod(&theirs, &[]), host.pod(&ours, &[]));

    pod.serve(pod.address(), 80);
    let seen = outside.enter(|| ask(ip("10.222.0.1"), 18_080, SOON)).unwrap();
    assert_eq!(seen, "10.221.0.1", "theirs masquerades what leaves their range");
    pod.serve(pod.address(), 80);
    let seen = neighbour.enter(|| ask(ip("10.221.0.1"), 18_080, SOON)).unwrap();
    assert_eq!(seen, neighbour.address().to_string());
    for from_host in ["127.0.0.1", "127.9.9.9", "10.221.0.1"] {
        pod.serve(pod.address(), 80);
        assert_eq!(ask(ip(from_host), 18_080, SOON).unwrap(), "10.221.0.1", "{from_host}");
    }
    pod.serve(pod.address(), 80);
    let seen = pod.enter(|| ask(ip("10.221.0.1"), 18_080, SOON)).unwrap();
    assert_eq!(seen, "10.221.0.1", "to itself by the host's port");
    pod.serve(pod.address(), 81);
    // `theirs` takes the gateway, a sender of its range, for a pod of its own.
    assert_eq!(ask(ip("10.222.0.1"), 18_081, SOON).unwrap(), "10.221.0.1");
    assert!(ask(ip("10.221.0.1"), 18_081, NEVER).is_err(), "not at that address of the host");
    // A port of the world outside is not the host's.
    outside.serve(outside.address(), 18_080);
    assert_eq!(neighbour.enter(|| ask(outside.address(), 18_080, SOON)).unwrap(), "10.222.0.1");
}

#[test]
fn a_pod_has_two_families() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/24", "fd00:221::/64"]);
    let (one, two) = (host.pod(&network, &[port(18_080, 80)]), host.pod(&network, &[]));
    assert_eq!(one.attachment.addresses, [ip("10.221.0.2"), ip("fd00:221::2")]);
    let six = one.attachment.addresses[1];
    one.serve(six, 80);
    assert_eq!(ask(six, 80, SOON).unwrap(), "fd00:221::1");
    one.serve(six, 80);
    assert_eq!(two.enter(|| ask(six, 80, SOON)).unwrap(), "fd00:221::3");
    one.serve(six, 80);
    assert_eq!(two.enter(|| ask(ip("fd00:221::1"), 18_080, SOON)).unwrap(), "fd00:221::3");
    one.serve(one.address(), 80);
    assert_eq!(ask(ip("127.0.0.1"), 18_080, SOON).unwrap(), "10.221.0.1");
    network.detach(&one.attachment).unwrap();
    assert!(!table(1).contains("18080"));
}

#[test]
fn detach_leaves_nothing_and_can_be_repeated() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/28"]);
    let pod = host.pod(&network, &[port(18_080, 80)]);
    let address = pod.address().to_string();
    assert!(table(1).contains("18080"));
    assert!(output("ip", &["route"]).contains(&format!("{address} dev")));
    let Pod { netns, attachment, .. } = pod;
    drop(netns);
    for _ in 0..2 {
        network.detach(&attachment).unwrap();
        assert!(!output("ip", &["route"]).contains(&format!("{address} ")));
        let table = table(1);
        assert!(!table.contains("18080") && !table.contains(&address), "{table}");
    }
    let deadline = Instant::now() + SOON;
    while fs::exists(format!("/sys/class/net/{}", attachment.host_link)).unwrap() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    Builtin::stop(&Host::name(1)).unwrap();
    assert_eq!(table(1), "");
    assert!(!output("ip", &["route"]).contains("10.221.0"));
    Builtin::stop(&Host::name(1)).unwrap();
}

#[test]
fn attach_can_be_repeated_and_never_takes_a_link_of_the_pod() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/24"]);
    let pod = host.pod(&network, &[port(18_080, 80)]);
    network.attach(pod.netns.as_fd(), &pod.attachment).unwrap();
    pod.serve(pod.address(), 80);
    assert_eq!(ask(pod.address(), 80, SOON).unwrap(), "10.221.0.1");

    let other = network.lease("ffff", &[]).unwrap();
    let error = network.attach(pod.netns.as_fd(), &other).unwrap_err().to_string();
    assert!(error.contains("eth0") && error.contains("File exists"), "{error}");
    network.detach(&other).unwrap();
    let no_namespace = File::open("/dev/null").unwrap();
    assert!(network.attach(no_namespace.as_fd(), &other).is_err());
}

#[test]
fn what_others_call_by_a_name_of_ours_stays_as_it_is() {
    let mut host = Host::new();
    let nft = |script: &str| nft::run(script).unwrap();
    let name = Host::name(2);
    nft(&format!(
        "add table inet {name}\nadd chain inet {name} theirs\nadd rule inet {name} theirs counter\n"
    ));
    let before = output("nft", &["list", "table", "inet", &name]);
    let refused = Builtin::start(&name, &["10.221.1.0/24".to_owned()], &[]).unwrap_err();
    assert!(matches!(refused, NetworkError::Another { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("nft delete table inet {name}")), "{refused}");
    Builtin::stop(&name).unwrap();
    assert_eq!(output("nft", &["list", "table", "inet", &name]), before);
    nft(&format!("delete table inet {name}\n"));

    // A chain in a table of ours: it is taken for ours, and not taken away.
    let network = host.start(1, &["10.221.0.0/24"]);
    let own = Host::name(1);
    nft(&format!("add chain inet {own} theirs\n"));
    assert!(Builtin::stop(&own).unwrap_err().to_string().contains("theirs"));
    drop(Builtin::start(&own, &["10.221.0.0/24".to_owned()], &[]).unwrap());
    nft(&format!("delete chain inet {own} theirs\n"));

    // A link called like that of a pod.
    let taken = network.lease("abcd", &[]).unwrap();
    output("ip", &["link", "add", &taken.host_link, "type", "bridge"]);
    let link = || fs::read_to_string(format!("/sys/class/net/{}/ifindex", taken.host_link)).unwrap();
    let index = link();
    let refused = network.attach(netns().as_fd(), &taken).unwrap_err();
    assert!(matches!(refused, NetworkError::Another { .. }), "{refused}");
    network.detach(&taken).unwrap();
    Builtin::stop(&own).unwrap();
    assert_eq!(link(), index);
    output("ip", &["link", "del", &taken.host_link]);
}

#[test]
fn a_small_range_runs_out_and_recovers() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/28"]);
    let leases: Vec<Attachment> =
        (0..13).map(|number| network.lease(&format!("{number:064x}"), &[]).unwrap()).collect();
    let refused = network.lease("ab", &[port(18_080, 80)]).unwrap_err();
    assert!(matches!(refused, NetworkError::Exhausted { leased: 13, .. }), "{refused}");
    for _ in 0..2 {
        network.detach(&leases[4]).unwrap();
    }
    let again = network.lease("cd", &[port(18_080, 80)]).unwrap();
    assert_eq!(again.addresses, leases[4].addresses);
    // The first owner's detach, a third time, frees nothing of the second.
    network.detach(&leases[4]).unwrap();
    assert!(network.lease("ef", &[]).is_err());
}

#[test]
fn a_pod_cannot_speak_for_another_nor_to_the_hosts_loopback() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/24"]);
    let (liar, victim) = (host.pod(&network, &[port(18_080, 80)]), host.pod(&network, &[]));
    let secret = TcpListener::bind("127.0.0.1:0").unwrap();
    let secret_port = secret.local_addr().unwrap().port();
    let run = |arguments: &str| {
        liar.enter(|| {
            let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(done.success(), "ip {arguments}");
        });
    };
    // With its loopback down and the route to it changed, the pod's packets to 127.0.0.1 leave by eth0.
    run("addr del 127.0.0.1/8 dev lo");
    liar.enter(|| fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
    run("route add 127.0.0.1/32 via 10.221.0.1 dev eth0");
    assert!(liar.enter(|| ask(ip("127.0.0.1"), secret_port, NEVER)).is_err());

    victim.serve(victim.address(), 80);
    run("addr add 10.221.0.77/32 dev eth0");
    run(&format!("route add {} via 10.221.0.1 dev eth0 src 10.221.0.77", victim.address()));
    let socket = liar.enter(|| std::net::UdpSocket::bind("10.221.0.77:0").unwrap());
    let ears = victim.enter(|| std::net::UdpSocket::bind((victim.address(), 99)).unwrap());
    ears.set_read_timeout(Some(NEVER)).unwrap();
    // The kernel may refuse to send at once, which is as good.
    let _ = socket.send_to(b"lie", (victim.address(), 99));
    assert!(ears.recv(&mut [0; 8]).is_err());
    let honest = liar.enter(|| std::net::UdpSocket::bind((liar.address(), 0)).unwrap());
    honest.send_to(b"truth", (victim.address(), 99)).unwrap();
    assert_eq!(ears.recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn a_new_start_keeps_the_host_ports_of_live_pods_and_adopt_mends_them() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/24"]);
    let pod = host.pod(&network, &[port(18_080, 80)]);
    let works = || {
        pod.serve(pod.address(), 80);
        assert_eq!(ask(ip("127.0.0.1"), 18_080, SOON).unwrap(), "10.221.0.1");
    };
    let network =
        Builtin::start(&Host::name(1), &["10.221.0.0/24".to_owned()], &pod.attachment.addresses).unwrap();
    works();
    nft::run(&table::none(&Host::name(1))).unwrap();
    let network2 = Builtin::start(&network.instance, &["10.221.0.0/24".to_owned()], &[]).unwrap();
    network2.adopt([&pod.attachment, &pod.attachment]).unwrap();
    works();
    assert!(network2.lease("ab", &[port(18_080, 80)]).is_err());
    assert_ne!(network2.lease("ab", &[]).unwrap().addresses, pod.attachment.addresses);
}

#[test]
fn says_what_is_wrong_with_a_configuration() {
    for (ranges, reason) in [
        (vec!["10.0.0.0/24", "10.1.0.0/24"], "second one of its family"),
        (vec!["10.0.0.0/24", "fd00::/64", "fd01::/64"], "second one of its family"),
        (vec!["x"], "prefix length"),
    ] {
        let ranges: Vec<String> = ranges.into_iter().map(str::to_owned).collect();
        let error = Builtin::start("cvt", &ranges, &[]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(Builtin::start("a b", &["10.0.0.0/24".to_owned()], &[]).is_err());
}

#[test]
fn ranges_come_later_and_change_while_nobody_has_an_address() {
    let mut host = Host::new();
    let network = host.start(0, &[]);
    assert!(!network.has_range());
    let error = network.lease("aa", &[]).unwrap_err().to_string();
    assert!(error.contains("no kubelet has sent"), "{error}");
    let take = |ranges: &[&str]| {
        network.take_ranges(&ranges.iter().map(|&range| range.to_owned()).collect::<Vec<_>>())
    };
    take(&["10.244.7.0/24"]).unwrap();
    assert!(network.has_range());
    let pod = host.pod(&network, &[]);
    assert!(pod.attachment.addresses[0].to_string().starts_with("10.244.7."));
    // Said again, as a kubelet does after each restart.
    take(&["10.244.7.0/24"]).unwrap();
    let error = take(&["10.244.9.0/24"]).unwrap_err().to_string();
    assert!(error.contains("10.244.7.0/24") && error.contains("stopped"), "{error}");
    assert!(take(&["10.244.9.0/33"]).is_err());
    network.detach(&pod.attachment).unwrap();
    take(&["10.244.9.0/24", "fd00:9::/64"]).unwrap();
    let later = host.pod(&network, &[]);
    assert_eq!(later.attachment.addresses.len(), 2);
}

/// Not a test of speed: prints what an attach and a detach take, with `--nocapture`.
#[test]
fn attach_and_detach_take_milliseconds() {
    let mut host = Host::new();
    let network = host.start(1, &["10.221.0.0/16"]);
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for number in 0..100 {
        let netns = netns();
        let attachment = network.lease(&format!("{number:08x}"), &[]).unwrap();
        host.attached.lock().unwrap().push(attachment.clone());
        let start = Instant::now();
        network.attach(netns.as_fd(), &attachment).unwrap();
        attach.push(start.elapsed());
        let start = Instant::now();
        network.detach(&attachment).unwrap();
        detach.push(start.elapsed());
    }
    attach.sort_unstable();
    detach.sort_unstable();
    println!(
        "attach p50 {:?} p95 {:?}; detach p50 {:?} p95 {:?}",
        attach[50], attach[95], detach[50], detach[95]
    );
    assert!(attach[50] < SOON);
}
