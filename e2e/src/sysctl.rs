//! Settings of the whole machine that a daemon or a kubelet under test turns on: saved before, put back after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// Forwarding is what the built-in network turns on and leaves on: other software on a node may need it by then.
const CHANGED: &[&str] = &["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// What a kubelet sets, and ends if it cannot (its `setupKernelTunables`).
const CHANGED_BY_A_KUBELET: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Values by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved(BTreeMap<String, String>);

impl Saved {
    /// Reads what is set now.
    pub fn now() -> Outcome<Self> {
        Self::of(CHANGED)
    }

    /// The same with what a kubelet changes.
    pub fn before_a_kubelet() -> Outcome<Self> {
        Self::of(&[CHANGED, CHANGED_BY_A_KUBELET].concat())
    }

    fn of(names: &[&str]) -> Outcome<Self> {
        let mut values = BTreeMap::new();
        for name in names {
            let path = Path::new("/proc/sys").join(name);
            // A kernel without IPv6 has half of them.
            if path.exists() {
                values.insert((*name).to_owned(), fs::read_to_string(path)?.trim().to_owned());
            }
        }
        Ok(Self(values))
    }

    /// Puts back what has changed since.
    pub fn restore(&self) -> Outcome {
        for (name, value) in &self.0 {
            let path = Path::new("/proc/sys").join(name);
            // Writing an equal value of these resets others of each link.
            if fs::read_to_string(&path)?.trim() != value {
                fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Ok(())
    }
}
