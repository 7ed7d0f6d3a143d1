//! Names in an archive: made relative, checked, and told apart by what they mean to overlayfs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::{Fault, Limits};

/// The prefix that makes a name a whiteout (OCI layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Names that AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A checked name below the layer's root: no `..`, no NUL, every part within the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath {
    /// The parts in front of the last, without a leading slash.
    pub(crate) parent: PathBuf,
    /// The last part; empty for the root.
    pub(crate) leaf: OsString,
    /// It was written with a slash at its end.
    pub(crate) slash: bool,
}

/// What a name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The layer's root directory.
    Root,
    /// Something to make.
    Plain,
    /// Hide this name of the layers below.
    Whiteout(OsString),
    /// Hide all that the layers below have in this entry's directory.
    Opaque,
    /// AUFS's own bookkeeping: nothing to do.
    Ignored,
}

impl EntryPath {
    /// Reads a name as an archive gives it: a leading slash, `.` and empty parts mean nothing.
    pub(crate) fn parse(name: &[u8], limits: &Limits) -> Result<Self, NameTrouble> {
        if name.len() > limits.path {
            return Err(NameTrouble::Limit("path", limits.path));
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(NameTrouble::Fault(Fault::Name)),
                _ if part.contains(&0) => return Err(NameTrouble::Fault(Fault::Name)),
                _ if part.len() > limits.component => {
                    return Err(NameTrouble::Limit("component", limits.component));
                }
                _ => parts.push(part),
            }
        }
        let leaf = parts.pop().unwrap_or_default();
        Ok(Self {
            parent: PathBuf::from(OsString::from_vec(parts.join(&b'/'))),
            leaf: OsStr::from_bytes(leaf).to_owned(),
            slash: name.ends_with(b"/"),
        })
    }

    pub(crate) fn role(&self) -> Result<Role, Fault> {
        let leaf = self.leaf.as_bytes();
        if self.parent.as_os_str().as_bytes().split(|byte| *byte == b'/').any(|part| part.starts_with(AUFS)) {
            return Ok(Role::Ignored);
        }
        if self.parent.components().any(|part| part.as_os_str().as_bytes().starts_with(WHITEOUT)) {
            return Err(Fault::Whiteout);
        }
        match leaf.strip_prefix(WHITEOUT) {
            None if leaf.is_empty() => Ok(Role::Root),
            None => Ok(Role::Plain),
            Some(_) if leaf == OPAQUE => Ok(Role::Opaque),
            Some(b"" | b"." | b"..") => Err(Fault::Whiteout),
            Some(_) if leaf.starts_with(AUFS) => Ok(Role::Ignored),
            Some(base) => Ok(Role::Whiteout(OsStr::from_bytes(base).to_owned())),
        }
    }

    /// The whole path.
    pub(crate) fn full(&self) -> PathBuf {
        if self.leaf.is_empty() { self.parent.clone() } else { self.parent.join(Path::new(&self.leaf)) }
    }
}

/// A name that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NameTrouble {
    Fault(Fault),
    Limit(&'static str, usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &[u8]) -> Result<EntryPath, NameTrouble> {
        EntryPath::parse(name, &Limits::default())
    }

    #[test]
    fn names() {
        for (name, parent, leaf) in [
            ("a", "", "a"),
            ("/a/b/", "a", "b"),
            ("./a//b/./c", "a/b", "c"),
            ("", "", ""),
            (".", "", ""),
            ("./", "", ""),
            ("///", "", ""),
            ("...", "", "..."),
        ] {
            let path = parse(name.as_bytes()).unwrap();
            assert_eq!(
                (path.parent.to_str().unwrap(), path.leaf.to_str().unwrap()),
                (parent, leaf),
                "{name}"
            );
        }
        for name in ["..", "../x", "a/../b", "a/..", "/..", "./.."] {
            assert_eq!(parse(name.as_bytes()), Err(NameTrouble::Fault(Fault::Name)), "{name}");
        }
        assert_eq!(parse(b"a\0b"), Err(NameTrouble::Fault(Fault::Name)));
        assert!(parse("x".repeat(255).as_bytes()).is_ok());
        assert_eq!(parse("x".repeat(256).as_bytes()), Err(NameTrouble::Limit("component", 255)));
        let long = "x/".repeat(2047) + "y";
        assert!(parse(long.as_bytes()).is_ok());
        assert_eq!(parse((long + "z").as_bytes()), Err(NameTrouble::Limit("path", 4095)));
    }

    #[test]
    fn roles() {
        let whiteout = |base: &str| Ok(Role::Whiteout(OsString::from(base)));
        for (name, role) in [
            ("/", Ok(Role::Root)),
            ("a/.whx", Ok(Role::Plain)),
            ("a/.wh.b", whiteout("b")),
            (".wh.b.wh.", whiteout("b.wh.")),
            ("a/.wh..wh..opq", Ok(Role::Opaque)),
            (".wh..wh.plnk", Ok(Role::Ignored)),
            (".wh..wh.plnk/12.3", Ok(Role::Ignored)),
            (".wh.", Err(Fault::Whiteout)),
            (".wh..", Err(Fault::Whiteout)),
            ("a/.wh...", Err(Fault::Whiteout)),
            (".wh.a/b", Err(Fault::Whiteout)),
        ] {
            assert_eq!(parse(name.as_bytes()).unwrap().role(), role, "{name}");
        }
    }
}
