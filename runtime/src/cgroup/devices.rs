//! Which device nodes the processes of a group may use: the device controller of version 1 (admin-guide/cgroup-v1,
//! devices), and on version 2 an eBPF program that we attach (admin-guide/cgroup-v2, device controller).

mod attach;
mod program;

use super::CgroupError;
use super::group::Cgroup;
use super::hierarchy::Version;
use program::{Kind, Rule};

/// Everything.
const ALL: &str = "a";
/// What a container may use when it is not privileged, as runc allows: making any node (a node alone gives no access),
/// and use of those that every container has. Numbers from the kernel's admin-guide/devices.txt.
const USUAL: [(bool, Option<u32>, Option<u32>, &str); 10] = [
    (false, None, None, "m"),
    (true, None, None, "m"),
    (false, Some(1), Some(3), "rwm"), // null
    (false, Some(1), Some(5), "rwm"), // zero
    (false, Some(1), Some(7), "rwm"), // full
    (false, Some(1), Some(8), "rwm"), // random
    (false, Some(1), Some(9), "rwm"), // urandom
    (false, Some(5), Some(0), "rwm"), // tty
    (false, Some(5), Some(2), "rwm"), // ptmx
    (false, Some(136), None, "rwm"),  // pts, and with it the container's console, which is one of them
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

    /// As the program of version 2 is made of it.
    fn rule(&self) -> Result<Rule, CgroupError> {
        let access = program::access(&self.access).ok_or(CgroupError::Limit {
            limit: "devices.access",
            reason: "is not made of the letters r, w and m",
        })?;
        let kind = Some(if self.block { Kind::Block } else { Kind::Char });
        Ok(Rule { allow: true, kind, major: self.major, minor: self.minor, access })
    }
}

fn usual() -> impl Iterator<Item = DeviceRule> {
    USUAL.into_iter().map(|(block, major, minor, access)| DeviceRule {
        block,
        major,
        minor,
        access: access.to_owned(),
    })
}

/// The rules of a container as a list of which later ones win: nothing, the usual nodes, more.
fn rules(more: &[DeviceRule]) -> Result<Vec<Rule>, CgroupError> {
    let nothing = Rule { allow: false, kind: None, major: None, minor: None, access: program::ALL };
    let allowed = usual().map(|usual| usual.rule()).chain(more.iter().map(DeviceRule::rule));
    std::iter::once(Ok(nothing)).chain(allowed).collect()
}

impl Cgroup {
    /// The device rules of a container: with `allow_all` everything that its parent group allows, else the usual nodes,
    /// those of `more`, and nothing besides. For a group without children, before a process is in it; on version 2 also
    /// later, where the new rules take the place of the old ones with no moment between.
    ///
    /// # Errors
    /// [`CgroupError::Value`] where the parent group allows less (v1); [`CgroupError::Program`] where the kernel takes no
    /// program, and [`CgroupError::Limit`] for too many rules (v2).
    pub fn set_device_rules(&self, allow_all: bool, more: &[DeviceRule]) -> Result<(), CgroupError> {
        if self.unified {
            let group = self.groups.first().ok_or(CgroupError::NoController("devices"))?;
            return if allow_all { attach::clear(group) } else { attach::set(group, &rules(more)?) };
        }
        let group = self.group("devices").ok().filter(|group| group.is(Version::V1));
        let group = group.ok_or(CgroupError::NoController("devices"))?;
        if allow_all {
            return group.write("devices.allow", ALL);
        }
        // The kernel takes one rule a write.
        group.write("devices.deny", ALL)?;
        usual().try_for_each(|rule| group.write("devices.allow", &rule.line()))?;
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
            // What the program allows is tried in `attach`.
            cgroup.set_device_rules(false, &[]).unwrap();
            return cgroup.set_device_rules(true, &[]).unwrap();
        }
        for _ in 0..2 {
            cgroup.set_device_rules(false, &[]).unwrap();
            let rules = cgroup.group("devices").unwrap().read("devices.list").unwrap();
            let mut rules: Vec<&str> = rules.lines().collect();
            let mut expected = [
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:2 rwm",
                "c 136:* rwm",
            ];
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
