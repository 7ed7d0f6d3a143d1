//! What an instance's network has in the kernel, for who compares it with the records, and how a piece of it is taken
//! away that no record knows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::lease::Range;
use super::port::{self, Rule};
use super::{Attachment, Builtin, NetworkError, link, name, nft, owner, table};

/// Every link of the host by name (sysfs of the network namespace that mounted it, which is the host's).
const LINKS: &str = "/sys/class/net";

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Links with the name and the address that only this instance gives.
    pub links: BTreeSet<String>,
    /// Its nft table; not another program's of that name.
    pub table: Option<Table>,
}

/// What is in an instance's nft table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// How many rules each chain has.
    pub chains: BTreeMap<String, usize>,
    /// The ranges whose pods are masqueraded.
    pub ranges: BTreeSet<String>,
    /// What pods with host ports have.
    pub elements: BTreeSet<Element>,
}

/// An element of a map or set of host ports, as `nft` takes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The map or set.
    pub set: String,
    /// Key, or key and value.
    pub text: String,
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {{ {} }}", self.set, self.text)
    }
}

impl Element {
    /// Those that an attachment has.
    ///
    /// # Errors
    /// [`NetworkError::Port`]: a port that cannot be had, so that no element stands for it.
    pub fn of(attachment: &Attachment) -> Result<Vec<Self>, NetworkError> {
        Ok(port::rules(attachment)?.iter().flat_map(Self::of_rule).collect())
    }

    pub(super) fn of_rule(rule: &Rule) -> [Self; 2] {
        table::elements(rule).map(|(set, text)| Self { set, text })
    }
}

impl Table {
    /// As [`Builtin::start`] writes it, without host ports.
    ///
    /// # Errors
    /// [`NetworkError::Range`].
    pub fn expected(instance: &str, ranges: &[String]) -> Result<Self, NetworkError> {
        let ranges = super::parse(ranges)?;
        let mut chains = BTreeMap::new();
        for line in table::whole(instance, &name::prefix(instance), &ranges).lines() {
            let mut words = line.split(' ');
            let (verb, kind, chain) = (words.next(), words.next(), words.nth(2));
            if let (Some("add"), Some("chain" | "rule"), Some(chain)) = (verb, kind, chain) {
                *chains.entry(chain.to_owned()).or_default() += usize::from(kind == Some("rule"));
            }
        }
        let ranges = ranges.iter().map(text).collect();
        Ok(Self { chains, ranges, elements: BTreeSet::new() })
    }

    fn is_ours(&self) -> bool {
        table::CHAINS.iter().all(|(chain, _)| self.chains.contains_key(*chain))
    }

    fn parse(json: &str) -> Option<Self> {
        let listing: Value = serde_json::from_str(json).ok()?;
        let mut found = Self::default();
        for object in listing["nftables"].as_array()? {
            if let Some(chain) = object["chain"]["name"].as_str() {
                found.chains.entry(chain.to_owned()).or_default();
            } else if let Some(chain) = object["rule"]["chain"].as_str() {
                *found.chains.entry(chain.to_owned()).or_default() += 1;
            }
            for kind in ["set", "map"] {
                let (name, elements) = (object[kind]["name"].as_str(), object[kind]["elem"].as_array());
                let (Some(name), Some(elements)) = (name, elements) else { continue };
                for element in elements {
                    let text = element_text(element)?;
                    if name.starts_with("pods") {
                        found.ranges.insert(text);
                    } else {
                        found.elements.insert(Element { set: name.to_owned(), text });
                    }
                }
            }
        }
        Some(found)
    }
}

fn text(range: &Range) -> String {
    let (network, prefix) = range.network();
    format!("{network}/{prefix}")
}

/// An element as `nft` takes it: of a map it is a pair of key and value.
fn element_text(element: &Value) -> Option<String> {
    match element {
        Value::Array(pair) => match &pair[..] {
            [key, value] => Some(format!("{} : {}", element_text(key)?, element_text(value)?)),
            _ => None,
        },
        Value::Number(number) => Some(number.to_string()),
        // Some versions of nft give protocols by name although they are asked for numbers.
        Value::String(word) => Some(match word.as_str() {
            "tcp" => port::Protocol::Tcp.number().to_string(),
            "udp" => port::Protocol::Udp.number().to_string(),
            "sctp" => port::Protocol::Sctp.number().to_string(),
            other => other.to_owned(),
        }),
        Value::Object(object) => {
            if let Some(parts) = object.get("concat").and_then(Value::as_array) {
                let parts: Option<Vec<String>> = parts.iter().map(element_text).collect();
                return Some(parts?.join(" . "));
            }
            if let Some(prefix) = object.get("prefix") {
                return Some(format!("{}/{}", prefix["addr"].as_str()?, prefix["len"].as_u64()?));
            }
            // An element with a comment or a time.
            element_text(object.get("elem")?.get("val")?)
        }
        Value::Null | Value::Bool(_) => None,
    }
}

impl Builtin {
    /// Looks at what an instance has. Blocking.
    ///
    /// # Errors
    /// The kernel's or nft's refusal.
    pub fn inventory(instance: &str) -> Result<Inventory, NetworkError> {
        name::check_instance(instance)?;
        let failed = |e: std::io::Error| NetworkError::system("list links in", LINKS, e);
        let tables = nft::tables()?;
        let mut links = BTreeSet::new();
        for entry in std::fs::read_dir(LINKS).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if is_own(instance, &name, &tables) && link::is_made_by_us(&name).map_err(failed)? {
                links.insert(name);
            }
        }
        let there = tables.iter().any(|table| table == instance);
        let table = match if there { nft::table(instance)? } else { None } {
            None => None,
            Some(json) => Some(Table::parse(&json).ok_or_else(|| {
                NetworkError::Nft(format!("table inet {instance} was listed in a form that is not known"))
            })?),
        };
        // One that lacks any of our chains is another program's.
        Ok(Inventory { links, table: table.filter(Table::is_ours) })
    }

    /// Removes a link by its name. Gone is done. Blocking, some 30 ms.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_link(name: &str) -> Result<(), NetworkError> {
        name::check_link(name)?;
        link::remove(name)
    }

    /// Removes elements that no pod has. One that is gone by now makes the kernel refuse them all: look again then.
    ///
    /// # Errors
    /// nft's refusal.
    pub fn remove_elements<'a>(
        instance: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) -> Result<(), NetworkError> {
        name::check_instance(instance)?;
        let mut script = String::new();
        for Element { set, text } in elements {
            table::element(&mut script, "delete", instance, set, text);
        }
        nft::run(&script)
    }

    /// Writes the elements of a pod again, those that are there among them.
    ///
    /// # Errors
    /// nft's refusal.
    pub fn restore_elements(instance: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        name::check_instance(instance)?;
        let rules = port::rules(attachment)?;
        if rules.is_empty() { Ok(()) } else { nft::run(&table::add_ports(instance, &rules)) }
    }

    /// Writes chains and rules anew, in one transaction, as `start` does; host ports stay.
    ///
    /// # Errors
    /// [`NetworkError::Another`]; nft's refusal.
    pub fn rewrite(instance: &str, ranges: &[String]) -> Result<(), NetworkError> {
        name::check_instance(instance)?;
        owner::may_write(instance)?;
        nft::run(&table::whole(instance, &name::prefix(instance), &super::parse(ranges)?))
    }
}

/// The name is one that the instance gives, and no other instance that has a table gives it, too: `cove` and the digits
/// `e12…` is the same text as `covee` and `12…`. The longest prefix wins.
fn is_own(instance: &str, link: &str, tables: &[String]) -> bool {
    let gives = |instance: &str| {
        let prefix = name::prefix(instance);
        let digits = link.strip_prefix(&prefix)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (link.len() == name::LINK_MAX && digits.bytes().all(is_digit)).then_some(prefix.len())
    };
    let Some(own) = gives(instance) else { return false };
    tables.iter().filter(|other| *other != instance).filter_map(|other| gives(other)).all(|other| other < own)
}

#[cfg(test)]
mod test {
    use super::super::HostPort;
    use super::*;

    #[test]
    fn a_link_is_of_the_instance_with_the_longest_prefix() {
        let tables = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(is_own("cove", "cove0123456789a", &tables(&["cove"])));
        assert!(!is_own("cove", "cove0123456789", &[]), "too short for one of ours");
        assert!(!is_own("cove", "cove0123456789x", &[]));
        assert!(!is_own("cove", "eth0", &[]));
        assert!(!is_own("cove", "covee0123456789", &tables(&["cove", "covee"])));
        assert!(is_own("covee", "covee0123456789", &tables(&["cove", "covee"])));
    }

    #[test]
    fn reads_what_nft_lists_as_what_it_is_given() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "x"}},
            {"chain": {"family": "inet", "table": "x", "name": "guard"}},
            {"chain": {"family": "inet", "table": "x", "name": "ports"}},
            {"rule": {"family": "inet", "table": "x", "chain": "guard", "handle": 3, "expr": []}},
            {"set": {"name": "pods4", "elem": [{"prefix": {"addr": "10.1.0.0", "len": 24}}]}},
            {"set": {"name": "hairpin4", "elem": [{"concat": ["10.1.0.2", "10.1.0.2"]}]}},
            {"map": {"name": "at4", "elem":
                [[{"concat": ["10.9.9.9", "udp", 53]}, {"concat": ["10.1.0.2", 5353]}]]}},
            {"map": {"name": "any4", "elem":
                [[{"concat": [6, 8080]}, {"elem": {"val": {"concat": ["10.1.0.2", 80]}}}]]}}]}"#;
        let found = Table::parse(json).unwrap();
        assert_eq!(found.chains, BTreeMap::from([("guard".into(), 1), ("ports".into(), 0)]));
        assert_eq!(found.ranges, BTreeSet::from(["10.1.0.0/24".to_owned()]));
        let port = |protocol: &str, host_port, host_ip: Option<&str>, container_port| HostPort {
            protocol: protocol.into(),
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            container_port,
        };
        let attachment = Attachment {
            host_link: "x".into(),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            ports: vec![port("tcp", 8080, None, 80), port("udp", 53, Some("10.9.9.9"), 5353)],
        };
        let expected: BTreeSet<Element> = Element::of(&attachment).unwrap().into_iter().collect();
        assert_eq!(found.elements, expected);
        assert_eq!(Table::parse("{}"), None);
    }

    #[test]
    fn counts_the_rules_that_start_writes() {
        let expected = Table::expected("x", &["10.1.0.0/24".into(), "fd00::/64".into()]).unwrap();
        let counts: Vec<_> = expected.chains.iter().map(|(chain, rules)| (chain.as_str(), *rules)).collect();
        assert_eq!(
            counts,
            [("from_host", 1), ("from_outside", 1), ("guard", 3), ("leaving", 6), ("ports", 4)]
        );
    }
}
