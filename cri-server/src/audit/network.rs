//! Links, the nft table and address leases, against the attachments in the records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cove_netplugin::builtin::{Element, Table};

use super::Subject;
use super::finding::{Finding, Kind, Repair};
use super::known::Known;
use super::seen::Seen;
use crate::config::NetworkMode;
use crate::error::Error;
use crate::network::Attachment;

pub(super) fn find(
    subject: &Subject<'_>,
    seen: &Seen,
    known: &Known,
    found: &mut BTreeSet<Finding>,
) -> Result<(), Error> {
    links(seen, known, found);
    leases(known, found);
    match &seen.network.table {
        Some(table) => self::table(subject, table, known, found),
        None => no_table(subject, known, found),
    }
}

fn links(seen: &Seen, known: &Known, found: &mut BTreeSet<Finding>) {
    let owned: BTreeSet<&String> = known.attachments().map(|(_, attachment)| &attachment.host_link).collect();
    // A pod whose attachment cannot be read has a link all the same: its name ends with the first digits of the id.
    let hidden = known.pods.iter().filter(|(_, pod)| pod.attachment.is_err()).map(|(id, _)| id);
    let hidden: Vec<&String> = hidden.chain(known.unreadable.keys()).collect();
    for link in &seen.network.links {
        let is_hidden = |id: &&String| (1..link.len()).any(|at| id.starts_with(&link[at..]));
        if !owned.contains(link) && !hidden.iter().any(is_hidden) {
            found.insert(Finding::orphan(Kind::Link, link, Repair::Link(link.clone())));
        }
    }
    for (id, attachment) in known.attachments() {
        let is_settled = known.pods.get(id).is_some_and(|pod| pod.is_settled().is_some());
        if is_settled && !seen.network.links.contains(&attachment.host_link) {
            let advice = "its network is cut off: stop and remove the pod, so that the kubelet makes it anew";
            found.insert(Finding::missing(Kind::Link, &attachment.host_link, id, advice));
        }
    }
}

/// A lease is the attachment in a record: the daemon's own table is made from these.
fn leases(known: &Known, found: &mut BTreeSet<Finding>) {
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (id, pod) in &known.pods {
        match pod.attachment.as_ref().map(|attachment| attachment.as_ref().and_then(Attachment::builtin)) {
            Ok(Some(attachment)) if !pod.stands() => {
                let addresses: Vec<_> = attachment.addresses.iter().map(ToString::to_string).collect();
                let repair = Repair::Delete(pod.places.attachment());
                found.insert(Finding::orphan(Kind::Lease, addresses.join(","), repair).of(id));
            }
            Ok(Some(attachment)) => {
                for address in &attachment.addresses {
                    if let Some(other) = owners.insert(*address, id) {
                        let advice = format!("{other} has it, too: stop and remove one of them");
                        let repair = Repair::ByHand;
                        let lease = Finding::orphan(Kind::Lease, address.to_string(), repair).of(id);
                        found.insert(lease.advise(&advice));
                    }
                }
            }
            Ok(None) => {}
            Err(reason) => {
                let name = pod.places.attachment().display().to_string();
                let advice = format!("{reason}; stop and remove the pod, so that the kubelet makes it anew");
                found.insert(Finding::missing(Kind::Lease, name, id, &advice));
            }
        }
    }
}

/// The table is there while a daemon with the built-in network runs, or a pod has an attachment.
fn is_needed(subject: &Subject<'_>, known: &Known) -> bool {
    let is_builtin = subject.config.network.mode == NetworkMode::Builtin;
    is_builtin && subject.daemon.is_some()
        || known.attachments().next().is_some()
        || known.hides_attachments()
}

fn no_table(subject: &Subject<'_>, known: &Known, found: &mut BTreeSet<Finding>) -> Result<(), Error> {
    if known.attachments().next().is_some() {
        let advice = "pods can reach nobody outside: restart the daemon, which writes it anew";
        let mut finding =
            Finding::orphan(Kind::Nft, format!("table inet {}", subject.config.instance), Repair::ByHand);
        finding.state = super::finding::State::Missing;
        found.insert(finding.advise(advice));
    }
    Ok(())
}

fn table(
    subject: &Subject<'_>,
    table: &Table,
    known: &Known,
    found: &mut BTreeSet<Finding>,
) -> Result<(), Error> {
    let instance = &subject.config.instance;
    if !is_needed(subject, known) {
        found.insert(Finding::orphan(Kind::Nft, format!("table inet {instance}"), Repair::Table));
        return Ok(());
    }
    elements(instance, table, known, found)?;
    // Ranges that are not the configuration's are those of a daemon that was started with another one: its chains are not
    // judged by this one.
    if subject.config.network.mode != NetworkMode::Builtin {
        return Ok(());
    }
    let expected = Table::expected(instance, &subject.config.network.ranges)?;
    if table.ranges != expected.ranges {
        return Ok(());
    }
    for (chain, rules) in &table.chains {
        match expected.chains.get(chain) {
            None => {
                let name = format!("chain inet {instance} {chain}");
                // The table stays for it (`builtin::owner`), and what it does is not known here.
                let advice =
                    "it is not Cove's, and Cove's table stays for it: if nobody needs it, remove it by nft";
                found.insert(Finding::orphan(Kind::Nft, name, Repair::ByHand).advise(advice));
            }
            Some(wanted) if rules > wanted => {
                let name = format!("{} more rules in chain inet {instance} {chain}", rules - wanted);
                found.insert(Finding::orphan(Kind::Nft, name, Repair::Rules));
            }
            Some(_) => {}
        }
    }
    for (chain, wanted) in &expected.chains {
        let there = table.chains.get(chain).copied().unwrap_or(0);
        if there < *wanted {
            let name = format!("{} rules of chain inet {instance} {chain}", wanted - there);
            let mut finding = Finding::orphan(Kind::Nft, name, Repair::ByHand);
            finding.state = super::finding::State::Missing;
            found.insert(finding.advise("restart the daemon, which writes the table anew in one step"));
        }
    }
    Ok(())
}

fn elements(
    instance: &str,
    table: &Table,
    known: &Known,
    found: &mut BTreeSet<Finding>,
) -> Result<(), Error> {
    let mut owned = BTreeSet::new();
    for (id, attachment) in known.attachments() {
        let own = Element::of(attachment)?;
        if known.pods.get(id).is_some_and(|pod| pod.is_settled().is_some()) {
            for element in own.iter().filter(|element| !table.elements.contains(*element)) {
                let name = format!("element inet {instance} {element}");
                let advice = "the host port leads nowhere: restart the daemon, which writes it again";
                found.insert(Finding::missing(Kind::Nft, name, id, advice));
            }
        }
        owned.extend(own);
    }
    // Whose ports are not known may be those of an object whose record cannot be read.
    if !known.hides_attachments() {
        for element in table.elements.difference(&owned) {
            let name = format!("element inet {instance} {element}");
            found.insert(Finding::orphan(Kind::Nft, name, Repair::Element(element.clone())));
        }
    }
    Ok(())
}
