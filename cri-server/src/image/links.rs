//! Links of an archive: names that mean other members of it.

use std::collections::HashMap;

/// How many links lead to one member: each names another, and may name itself.
const MAX_LINKS: usize = 8;

/// Each name, and what it leads to.
#[derive(Debug, Default)]
pub(crate) struct Links(HashMap<String, String>);

impl Links {
    /// A member is a link.
    pub(crate) fn add(&mut self, name: String, to: String) {
        self.0.insert(name, to);
    }

    /// Whether a member is a link.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The member that a name in a document means: without `.` and empty parts, at the end of links. `None`: they lead in a
    /// circle, or too far.
    pub(crate) fn resolve(&self, name: &str) -> Option<String> {
        let parts: Vec<&str> = name.split('/').filter(|part| !["", "."].contains(part)).collect();
        let mut name = parts.join("/");
        for _ in 0..MAX_LINKS {
            match self.0.get(&name) {
                Some(to) => name.clone_from(to),
                None => return Some(name),
            }
        }
        None
    }
}
