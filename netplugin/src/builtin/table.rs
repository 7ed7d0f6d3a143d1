//! The nft table of an instance, `table inet <instance>`, as text for `nft`.
//!
//! It is written once, at start, and again at each start: chains are emptied and filled in the same transaction, while the
//! maps of host ports keep what live pods have. A pod adds elements only if it has host ports.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use super::lease::Range;
use super::port::Rule;

/// The chains that the table has at any time, and where each begins.
pub(super) const CHAINS: [(&str, &str); 5] = [
    ("guard", "type filter hook prerouting priority raw; policy accept;"),
    ("from_outside", "type nat hook prerouting priority dstnat; policy accept;"),
    ("from_host", "type nat hook output priority -100; policy accept;"),
    ("leaving", "type nat hook postrouting priority srcnat; policy accept;"),
    ("ports", ""),
];

/// One family's words.
struct Family {
    digit: char,
    kind: &'static str,
    header: &'static str,
    /// A prefix that never leaves a host.
    loopback: &'static str,
}

const V4: Family = Family { digit: '4', kind: "ipv4_addr", header: "ip", loopback: "127.0.0.0/8" };
const V6: Family = Family { digit: '6', kind: "ipv6_addr", header: "ip6", loopback: "::1" };

fn family(address: IpAddr) -> &'static Family {
    if address.is_ipv4() { &V4 } else { &V6 }
}

/// The whole table.
pub(super) fn whole(instance: &str, link_prefix: &str, ranges: &[Range]) -> String {
    let mut script = format!("add table inet {instance}\n");
    chains(&mut script, instance);
    guard(&mut script, instance, link_prefix);
    // Of a family that is no longer used, too: its old set must not go on masquerading. A family that never was used
    // is not named, since the kernel may be without it.
    for range in ranges {
        let (network, prefix) = range.network();
        let words = family(network);
        sets(&mut script, instance, words);
        element(
            &mut script,
            "add",
            instance,
            &format!("pods{}", words.digit),
            &format!("{network}/{prefix}"),
        );
        rules(&mut script, instance, words);
    }
    script
}

/// Takes the table away.
pub(super) fn none(instance: &str) -> String {
    format!("delete table inet {instance}\n")
}

fn chains(script: &mut String, instance: &str) {
    for (chain, hook) in CHAINS {
        let hook = if hook.is_empty() { String::new() } else { format!(" {{ {hook} }}") };
        push(
            script,
            &format!("add chain inet {instance} {chain}{hook}\nflush chain inet {instance} {chain}"),
        );
    }
    for chain in ["from_outside", "from_host"] {
        // Only what is meant for this host: a port of the outside world stays reachable (CVE-2019-9946).
        rule(script, instance, chain, "fib daddr type local jump ports");
    }
}

/// What a pod must not send: to the host's loopback, which `route_localnet` would let in, and from addresses that
/// are not its own. Bridges and other links of somebody else whose names begin alike are none of ours.
fn guard(script: &mut String, instance: &str, link_prefix: &str) {
    let from_pod = format!("iifname \"{link_prefix}*\" meta iifkind \"veth\"");
    rule(script, instance, "guard", &format!("{from_pod} ip daddr 127.0.0.0/8 drop"));
    // Neighbour discovery speaks from these.
    rule(script, instance, "guard", &format!("{from_pod} ip6 saddr {{ ::, fe80::/10 }} accept"));
    rule(script, instance, "guard", &format!("{from_pod} fib saddr . iif oif missing drop"));
}

fn sets(script: &mut String, instance: &str, words: &Family) {
    let Family { digit, kind, .. } = words;
    for line in [
        format!("set inet {instance} pods{digit} {{ type {kind}; flags interval; }}"),
        format!("set inet {instance} hairpin{digit} {{ type {kind} . {kind}; }}"),
        format!(
            "map inet {instance} any{digit} {{ type inet_proto . inet_service : {kind} . inet_service; }}"
        ),
        format!(
            "map inet {instance} at{digit} {{ type {kind} . inet_proto . inet_service : {kind} . inet_service; }}"
        ),
    ] {
        push(script, &format!("add {line}"));
    }
    push(script, &format!("flush set inet {instance} pods{digit}"));
}

fn rules(script: &mut String, instance: &str, words: &Family) {
    let Family { digit, header, loopback, .. } = words;
    rule(
        script,
        instance,
        "ports",
        &format!("dnat {header} to {header} daddr . meta l4proto . th dport map @at{digit}"),
    );
    rule(script, instance, "ports", &format!("dnat {header} to meta l4proto . th dport map @any{digit}"));
    let masquerade = |matches: String| format!("{matches} masquerade fully-random");
    for matches in [
        format!("{header} saddr @pods{digit} {header} daddr != @pods{digit}"),
        // From the host's own loopback to a host port: the pod could not answer 127.0.0.1.
        format!("{header} saddr {loopback} {header} daddr @pods{digit}"),
        // A pod to its own host port: it would take its own address for a forgery.
        format!("{header} saddr . {header} daddr @hairpin{digit}"),
    ] {
        rule(script, instance, "leaving", &masquerade(matches));
    }
}

/// Elements for host ports. The same again is no change; a port of another pod is refused by the kernel.
pub(super) fn add_ports(instance: &str, rules: &[Rule]) -> String {
    ports("add", instance, rules)
}

/// Takes them away, whether they are there or not: an element that is not there cannot be deleted, so it is added first.
pub(super) fn remove_ports(instance: &str, rules: &[Rule]) -> String {
    ports("add", instance, rules) + &ports("delete", instance, rules)
}

fn ports(verb: &str, instance: &str, rules: &[Rule]) -> String {
    let mut script = String::new();
    // One hairpin for all ports of a pod: it can be deleted only once.
    let mut hairpins = BTreeSet::new();
    for rule in rules {
        let [(map, port), hairpin] = elements(rule);
        element(&mut script, verb, instance, &map, &port);
        hairpins.insert(hairpin);
    }
    for (set, pod) in hairpins {
        element(&mut script, verb, instance, &set, &pod);
    }
    script
}

/// What stands for a host port: its element of a map, and its pod's of the set of those that may reach themselves.
pub(super) fn elements(rule: &Rule) -> [(String, String); 2] {
    let Rule { protocol, at, host_port, pod, pod_port } = rule;
    let digit = family(*pod).digit;
    let (map, key) = match at {
        Some(at) => (format!("at{digit}"), format!("{at} . {} . {host_port}", protocol.number())),
        None => (format!("any{digit}"), format!("{} . {host_port}", protocol.number())),
    };
    [(map, format!("{key} : {pod} . {pod_port}")), (format!("hairpin{digit}"), format!("{pod} . {pod}"))]
}

pub(super) fn element(script: &mut String, verb: &str, instance: &str, set: &str, element: &str) {
    push(script, &format!("{verb} element inet {instance} {set} {{ {element} }}"));
}

fn rule(script: &mut String, instance: &str, chain: &str, rule: &str) {
    push(script, &format!("add rule inet {instance} {chain} {rule}"));
}

fn push(script: &mut String, line: &str) {
    writeln!(script, "{line}").expect("a string takes every line");
}
