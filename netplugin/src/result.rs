//! What a plugin answers to ADD: one type for every version of the specification.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::version::Version;

/// How many entries of a kind are read: real results have one to four.
const MAX_ENTRIES: usize = 256;

/// The result of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Links that were made, in the pod and on the host.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes of the pod.
    pub routes: Vec<Route>,
    /// Name servers and so on, as told.
    pub dns: Map<String, Value>,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    pub mac: String,
    /// The network namespace that it is in; empty: the host's.
    pub sandbox: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// With its prefix length, as told.
    pub cidr: String,
    /// The address alone.
    pub address: IpAddr,
    /// Where the pod sends to.
    pub gateway: Option<IpAddr>,
    /// Index of its link in `interfaces`.
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to, in CIDR form.
    pub destination: String,
    /// By whom.
    pub gateway: Option<IpAddr>,
}

/// In words.
type Reason = String;

impl CniResult {
    /// Reads an answer of any version.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(value: &Value) -> Result<Self, Reason> {
        let object = value.as_object().ok_or("it is not a JSON object")?;
        let mut result = Self::default();
        for interface in entries(object, "interfaces")? {
            result.interfaces.push(Interface {
                name: text(interface, "name")?,
                mac: text(interface, "mac")?,
                sandbox: text(interface, "sandbox")?,
            });
        }
        for ip in entries(object, "ips")? {
            result.ips.push(address(ip, "address", result.interfaces.len())?);
        }
        // Results of 0.2.0 and before, which old plugins give whatever they are asked for.
        for key in ["ip4", "ip6"] {
            if let Some(ip) = object.get(key).filter(|ip| !ip.is_null()) {
                result.ips.push(address(ip, "ip", 0)?);
                let inner = ip.as_object().ok_or_else(|| format!("{key:?} is not an object"))?;
                result.routes.append(&mut routes(inner)?);
            }
        }
        result.routes.append(&mut routes(object)?);
        match object.get("dns") {
            None | Some(Value::Null) => {}
            Some(Value::Object(dns)) => result.dns = dns.clone(),
            Some(_) => return Err("\"dns\" is not an object".to_owned()),
        }
        Ok(result)
    }

    /// The addresses of a link of the pod, in order. One that names no link is the pod's, too: plugins that hand on what
    /// an address plugin said leave it out.
    pub fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for ip in &self.ips {
            let its = ip.interface.map(|index| &self.interfaces[index]);
            let of_pod = its.is_none_or(|link| link.name == interface && !link.sandbox.is_empty());
            if of_pod && !addresses.contains(&ip.address) {
                addresses.push(ip.address);
            }
        }
        addresses
    }

    /// As it is written in a version.
    pub fn to_value(&self, version: Version) -> Value {
        let ips: Vec<Value> = self
            .ips
            .iter()
            .map(|ip| {
                let mut value = json!({"address": ip.cidr});
                if let Some(gateway) = ip.gateway {
                    value["gateway"] = json!(gateway);
                }
                if let Some(interface) = ip.interface {
                    value["interface"] = json!(interface);
                }
                if version < Version::V1_0_0 {
                    value["version"] = json!(if ip.address.is_ipv4() { "4" } else { "6" });
                }
                value
            })
            .collect();
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|route| match route.gateway {
                Some(gateway) => json!({"dst": route.destination, "gw": gateway}),
                None => json!({"dst": route.destination}),
            })
            .collect();
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|link| json!({"name": link.name, "mac": link.mac, "sandbox": link.sandbox}))
            .collect();
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        })
    }
}

fn entries<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], Reason> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) if entries.len() <= MAX_ENTRIES => Ok(entries),
        Some(Value::Array(entries)) => {
            Err(format!("{key:?} has {} entries, more than {MAX_ENTRIES}", entries.len()))
        }
        Some(_) => Err(format!("{key:?} is not a list")),
    }
}

fn text(value: &Value, key: &str) -> Result<String, Reason> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{key:?} is not text")),
    }
}

fn gateway(value: &Value, key: &str) -> Result<Option<IpAddr>, Reason> {
    match text(value, key)? {
        gateway if gateway.is_empty() => Ok(None),
        gateway => gateway.parse().map(Some).map_err(|_| format!("{key:?} {gateway:?} is not an IP address")),
    }
}

fn address(value: &Value, key: &str, interfaces: usize) -> Result<IpConfig, Reason> {
    let cidr = text(value, key)?;
    let fault = || format!("{key:?} {cidr:?} is not an address with a prefix length");
    let (address, length) = cidr.split_once('/').ok_or_else(fault)?;
    let address: IpAddr = address.parse().map_err(|_| fault())?;
    let length: u8 = length.parse().map_err(|_| fault())?;
    if length > if address.is_ipv4() { 32 } else { 128 } {
        return Err(fault());
    }
    let interface = match value.get("interface") {
        None | Some(Value::Null) => None,
        // Below 0 is how some plugins say that there is none.
        Some(index) if index.as_i64().is_some_and(|index| index < 0) => None,
        Some(index) => {
            let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
            let index = index.filter(|index| *index < interfaces);
            Some(index.ok_or_else(|| format!("the link of {cidr} is none of \"interfaces\""))?)
        }
    };
    Ok(IpConfig { address, gateway: gateway(value, "gateway")?, interface, cidr })
}

fn routes(object: &Map<String, Value>) -> Result<Vec<Route>, Reason> {
    let route = |value| Ok(Route { destination: text(value, "dst")?, gateway: gateway(value, "gw")? });
    entries(object, "routes")?.iter().map(route).collect()
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn bridge(version: &str) -> Value {
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "aa:aa:aa:aa:aa:aa"},
                {"name": "veth1", "mac": "bb:bb:bb:bb:bb:bb"},
                {"name": "eth0", "mac": "cc:cc:cc:cc:cc:cc", "sandbox": "/run/netns/a"},
            ],
            "ips": [
                {"version": "4", "interface": 2, "address": "10.1.0.2/16", "gateway": "10.1.0.1"},
                {"version": "6", "interface": 2, "address": "fd00::2/64"},
                {"interface": 0, "address": "10.1.0.1/16"},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0"}],
            "dns": {"nameservers": ["10.0.0.10"]},
        })
    }

    #[test]
    fn reads_every_version_into_one_type() {
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let result = CniResult::parse(&bridge(version)).unwrap();
            let expected: [IpAddr; 2] = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
            assert_eq!(result.addresses("eth0"), expected);
            assert!(result.addresses("eth1").is_empty());
            assert_eq!(result.routes.len(), 2);
        }
        let old = json!({"ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": null});
        let result = CniResult::parse(&old).unwrap();
        assert_eq!((result.addresses("eth0").len(), result.routes.len()), (1, 1));
        assert_eq!(CniResult::parse(&json!({})).unwrap(), CniResult::default());
    }

    #[test]
    fn is_written_in_the_version_that_is_spoken() {
        let result = CniResult::parse(&bridge("1.0.0")).unwrap();
        for version in Version::ALL {
            let value = result.to_value(version);
            assert_eq!(value["ips"][1]["version"] == "6", version < Version::V1_0_0);
            assert_eq!(CniResult::parse(&value).unwrap(), result);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (value, reason) in [
            (json!([]), "not a JSON object"),
            (json!({"ips": {}}), "not a list"),
            (json!({"ips": [{}]}), "prefix length"),
            (json!({"ips": [{"address": "10.0.0.1"}]}), "prefix length"),
            (json!({"ips": [{"address": "10.0.0.1/33"}]}), "prefix length"),
            (json!({"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}), "not an IP address"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}), "none of"),
            (json!({"ips": [{"address": "10.0.0.1/8", "interface": "a"}]}), "none of"),
            (json!({"interfaces": [{"name": 1}]}), "not text"),
            (json!({"dns": 1}), "not an object"),
            (json!({"routes": vec![json!({}); 300]}), "more than 256"),
        ] {
            let error = CniResult::parse(&value).unwrap_err();
            assert!(error.contains(reason), "{value}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(key in "ips|interfaces|routes|dns|ip4", inner in "address|name|interface|dst", n in -3_i64..3) {
            for value in [json!({&key: [{&inner: n}]}), json!({&key: {&inner: n}}), json!({&key: n})] {
                if let Ok(result) = CniResult::parse(&value) {
                    result.addresses("eth0");
                }
            }
        }
    }
}
