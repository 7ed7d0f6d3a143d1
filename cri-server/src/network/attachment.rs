//! What the network gave a pod: `attachment.json` of its sandbox, and nowhere else.

use std::net::IpAddr;

use cove_netplugin::{Attachment as CniAttachment, builtin};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::stats::DEFAULT_LINK;

/// What a pod was given, and by whom: enough to take it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attachment {
    /// By the built-in network.
    Builtin(builtin::Attachment),
    /// By CNI plugins.
    Cni(Box<CniAttachment>),
}

impl Attachment {
    /// The pod's addresses, the primary first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Builtin(attachment) => attachment.addresses.clone(),
            Self::Cni(attachment) => attachment.addresses(),
        }
    }

    /// Whoever gave it keeps something of it on disk, which must be given back even after a power loss. The built-in
    /// network keeps nothing but what is in the kernel.
    pub fn outlives_the_host(&self) -> bool {
        matches!(self, Self::Cni(_))
    }

    /// That of the built-in network.
    pub fn builtin(&self) -> Option<&builtin::Attachment> {
        match self {
            Self::Builtin(attachment) => Some(attachment),
            Self::Cni(_) => None,
        }
    }

    /// As `cniResult` of verbose status has it, in the form that tools read: a map of links (ecosystem.md 1.5).
    pub fn shown(&self) -> Value {
        match self {
            Self::Builtin(attachment) => {
                let ips: Vec<_> = attachment.addresses.iter().map(|ip| json!({ "IP": ip })).collect();
                let link = |ips: Value| json!({"IPConfigs": ips, "Mac": "", "Sandbox": ""});
                let links = json!({DEFAULT_LINK: link(json!(ips)), &attachment.host_link: link(json!([]))});
                json!({"Interfaces": links, "DNS": [], "Routes": []})
            }
            Self::Cni(attachment) if attachment.result.is_none() => Value::Null,
            Self::Cni(attachment) => shown(attachment),
        }
    }
}

fn shown(attachment: &CniAttachment) -> Value {
    let result = attachment.result();
    let mut links = Map::new();
    let named =
        result.interfaces.iter().map(|link| (link.name.clone(), link.mac.clone(), link.sandbox.clone()));
    // Addresses that name no link are those of the pod's own.
    let own = (attachment.interface.clone(), String::new(), attachment.netns.display().to_string());
    for (name, mac, sandbox) in named.chain([own]) {
        if links.contains_key(&name) {
            continue;
        }
        let is_its = |index: Option<usize>| match index {
            Some(index) => result.interfaces[index].name == name,
            None => attachment.interface == name,
        };
        let ips: Vec<_> = result
            .ips
            .iter()
            .filter(|ip| is_its(ip.interface))
            .map(|ip| json!({"IP": ip.address, "Gateway": ip.gateway}))
            .collect();
        links.insert(name, json!({"IPConfigs": ips, "Mac": mac, "Sandbox": sandbox}));
    }
    let routes: Vec<_> =
        result.routes.iter().map(|route| json!({"dst": route.destination, "gw": route.gateway})).collect();
    json!({"Interfaces": links, "DNS": [result.dns], "Routes": routes})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_kinds_are_told_apart() {
        // As a version without CNI wrote it.
        let old = r#"{"host_link":"cove01","addresses":["10.0.0.2"],"ports":[]}"#;
        let builtin: Attachment = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&builtin).unwrap(), old);
        assert_eq!(builtin.shown()["Interfaces"]["eth0"]["IPConfigs"][0]["IP"], "10.0.0.2");
        let new = r#"{"file":"/x","conflist":"{}","container":"a","netns":"/n","interface":"eth0","args":[["K","V"]],"capabilities":{},"result":null}"#;
        let cni: Attachment = serde_json::from_str(new).unwrap();
        assert_eq!(serde_json::to_string(&cni).unwrap(), new);
        assert!(cni.builtin().is_none() && cni.addresses().is_empty() && cni.shown().is_null());
    }

    #[test]
    fn a_result_is_shown_by_link() {
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "aa:bb", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1}, {"address": "fd00::2/64"}],
        });
        let text = json!({"file": "/x", "conflist": "{}", "container": "a", "netns": "/n", "interface": "eth0", "args": [],
            "capabilities": {}, "result": result});
        let attachment: Attachment = serde_json::from_value(text).unwrap();
        let shown = attachment.shown();
        let eth0 = &shown["Interfaces"]["eth0"];
        assert_eq!((&eth0["Mac"], &eth0["Sandbox"]), (&json!("aa:bb"), &json!("/n")));
        assert_eq!(eth0["IPConfigs"][0], json!({"IP": "10.0.0.2", "Gateway": "10.0.0.1"}));
        assert_eq!(eth0["IPConfigs"][1]["IP"], "fd00::2");
        assert_eq!(shown["Interfaces"]["br0"]["IPConfigs"], json!([]));
        assert_eq!(attachment.addresses().len(), 2);
    }
}
