//! An attachment: what a chain was run with, enough to run it again and to undo it. Kept in the sandbox's record.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conflist::{Conflist, is_name};
use crate::error::CniError;
use crate::result::CniResult;

/// What a container id may be, in words (spec 1.1.0, "Parameters").
pub const VALID_NAME: &str = "a letter or digit, then letters, digits, '_', '.' and '-'";
/// The longest name of a link: IFNAMSIZ of the kernel without its NUL.
const MAX_INTERFACE: usize = 15;

/// What a chain was run with, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Where the network configuration was read.
    pub file: PathBuf,
    /// Its text: the same plugins undo what they did, whatever the file says by then.
    pub conflist: String,
    /// The id that plugins know the pod by.
    pub container: String,
    /// Where the pod's network namespace is pinned.
    pub netns: PathBuf,
    /// The pod's link.
    pub interface: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// What plugins may ask for, by capability.
    pub capabilities: Map<String, Value>,
    /// What the last plugin of the chain answered; none until ADD was completed.
    pub result: Option<Value>,
}

impl Attachment {
    /// Refuses what cannot be handed to plugins.
    ///
    /// # Errors
    /// [`CniError::Asked`].
    pub fn check(&self) -> Result<(), CniError> {
        let fault = |what: &str, value: &str, reason: &str| {
            Err(CniError::Asked { what: what.to_owned(), value: value.to_owned(), reason: reason.to_owned() })
        };
        if !is_name(&self.container) {
            return fault("container id", &self.container, VALID_NAME);
        }
        let fits = !self.interface.is_empty() && self.interface.len() <= MAX_INTERFACE;
        // The kernel's dev_valid_name(), and `:`, which it keeps for itself.
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
        if !fits || self.interface.starts_with('.') || !self.interface.bytes().all(plain) {
            return fault("link", &self.interface, "must be a name of at most 15 letters");
        }
        for (key, value) in &self.args {
            if value.contains([';', '=']) || value.chars().any(char::is_control) {
                return fault(
                    key,
                    value,
                    "must hold no ';', '=' or control character: it is an argument of CNI plugins",
                );
            }
        }
        Ok(())
    }

    /// The network configuration.
    ///
    /// # Errors
    /// [`CniError::Conflist`]: the record was made by a version that took it.
    pub fn list(&self) -> Result<Conflist, CniError> {
        Conflist::parse(&self.file, &self.conflist)
    }

    /// What came of it, if ADD was completed.
    pub fn result(&self) -> CniResult {
        // It was read once before it was stored.
        self.result.as_ref().and_then(|value| CniResult::parse(value).ok()).unwrap_or_default()
    }

    /// The pod's addresses, the primary first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.result().addresses(&self.interface)
    }

    /// `CNI_ARGS`.
    pub(crate) fn arguments(&self) -> String {
        self.args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    }
}

#[cfg(test)]
pub(crate) mod test {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Of a pod of its own: tests end what runs for their pods.
    pub(crate) fn attachment(conflist: &str) -> Attachment {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Attachment {
            file: "/x/10-a.conflist".into(),
            conflist: conflist.to_owned(),
            container: format!("pod-{}-{number}", std::process::id()),
            netns: "/run/netns/none".into(),
            interface: "eth0".to_owned(),
            args: vec![
                ("IgnoreUnknown".to_owned(), "1".to_owned()),
                ("K8S_POD_NAME".to_owned(), "web".to_owned()),
            ],
            capabilities: Map::new(),
            result: None,
        }
    }

    #[test]
    fn what_cannot_be_handed_on_is_refused() {
        attachment("").check().unwrap();
        assert_eq!(attachment("").arguments(), "IgnoreUnknown=1;K8S_POD_NAME=web");
        let changed = |change: &dyn Fn(&mut Attachment)| {
            let mut changed = attachment("");
            change(&mut changed);
            changed.check().is_err()
        };
        for container in ["", "-a", "a/b", "../a", "a b", &"a".repeat(256)] {
            assert!(changed(&|a| a.container = container.to_owned()), "{container:?}");
        }
        for interface in ["", "..", "a/b", "a b", "a:b", "a\n", "0123456789abcdef"] {
            assert!(changed(&|a| a.interface = interface.to_owned()), "{interface:?}");
        }
        for value in ["a;K8S_POD_NAMESPACE=kube-system", "a=b", "a\nb"] {
            assert!(changed(&|a| a.args[1].1 = value.to_owned()), "{value:?}");
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut attachment = attachment("{}");
        attachment.result = Some(serde_json::json!({"ips": [{"address": "10.0.0.2/24"}]}));
        let text = serde_json::to_string(&attachment).unwrap();
        assert_eq!(serde_json::from_str::<Attachment>(&text).unwrap(), attachment);
        assert_eq!(attachment.addresses(), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }
}
