//! Which device nodes the processes of a group may use: the device controller of version 1 (admin-guide/cgroup-v1,
//! devices). Version 2 does this by an eBPF program, which is not built yet and is refused.

use super::CgroupError;
use super::group::Cgroup;
use super::hierarchy::Version;

/// Everything.
const ALL: &str = "a";
/// What a container may use when it is not privileged, as runc allows: making any node (a node alone gives no access),
/// and use of those that every container has. Numbers from the kernel's admin-guide/devices.txt.
const USUAL: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",   // null
    "c 1:5 rwm",   // zero
    "c 1:7 rwm",   // full
    "c 1:8 rwm",   // random
    "c 1:9 rwm",   // urandom
    "c 5:0 rwm",   // tty
    "c 5:2 rwm",   // ptmx
    "c 136:* rwm", // pts, and with it the container's console, which is one of them
];

/// Devices that may be used beside the usual ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block devices; else character devices.
    pub block: bool,
    /// Major number; none: any.
    pub major: Option<u32>,
    /// Minor number; none: any.
    pub minor: Option<u32>,
    /// Letters of `rwm`: read, write, make a node.
    pub access: String,
}

impl DeviceRule {
    /// As the device controller of version 1 reads it.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

impl Cgroup {
    /// The device rules of a container: with `allow_all` everything that its parent group allows, else the usual nodes,
    /// those of `more`, and nothing besides. For a group without children, before a process is in it.
    ///
    /// # Errors
    /// [`CgroupError::Value`] where the parent group allows less; [`CgroupError::NotBuilt`] for rules on cgroup v2.
    pub fn set_device_rules(&self, allow_all: bool, more: &[DeviceRule]) -> Result<(), CgroupError> {
        let group = match self.group("devices") {
            Ok(group) if group.is(Version::V1) => group,
            // Without a rule every device is allowed already.
            _ if allow_all && self.unified => return Ok(()),
            Err(missing) if !self.unified => return Err(missing),
            _ => return Err(CgroupError::NotBuilt("device rules on cgroup v2")),
        };
        if allow_all {
            return group.write("devices.allow", ALL);
        }
        // The kernel takes one rule a write.
        group.write("devices.deny", ALL)?;
        USUAL.iter().try_for_each(|rule| group.write("devices.allow", rule))?;
        more.iter().try_for_each(|rule| group.write("devices.allow", &rule.line()))
    }
}

#[cfg(test)]
mod test {
    use super::super::testing::Scratch;
    use super::*;

    #[test]
    fn allows_the_usual_nodes_and_no_other() {
        let scratch = Scratch::new("devices");
        let cgroup = scratch.create("pod");
        if cgroup.unified {
            assert!(matches!(cgroup.set_device_rules(false, &[]), Err(CgroupError::NotBuilt(_))));
            return;
        }
        for _ in 0..2 {
            cgroup.set_device_rules(false, &[]).unwrap();
            let rules = cgroup.group("devices").unwrap().read("devices.list").unwrap();
            let mut rules: Vec<&str> = rules.lines().collect();
            let mut expected = USUAL.to_vec();
            rules.sort_unstable();
            expected.sort_unstable();
            assert_eq!(rules, expected);
        }
        let more = [
            DeviceRule { block: false, major: Some(10), minor: Some(200), access: "rw".into() },
            DeviceRule { block: true, major: Some(7), minor: None, access: "r".into() },
        ];
        cgroup.set_device_rules(false, &more).unwrap();
        let rules = cgroup.group("devices").unwrap().read("devices.list").unwrap();
        for line in ["c 10:200 rw", "b 7:* r"] {
            assert!(rules.lines().any(|rule| rule == line), "{line}: {rules}");
        }
        cgroup.set_device_rules(true, &[]).unwrap();
        assert_eq!(cgroup.group("devices").unwrap().read("devices.list").unwrap().trim(), "a *:* rwm");
    }
}
