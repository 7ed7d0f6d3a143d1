//! A tar archive whose members are for the caller: an image in the form of `docker save`, or an OCI layout. Read once, from
//! front to back, by the same strict parser as layers; nothing of it becomes a path on this machine.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::stream::Stream;
use crate::tar::{EntryPath, Kind, Reader};
use crate::{Compression, LayerError, Limits};

/// Member after member.
pub struct Archive<'a, R: Read> {
    reader: Reader<'a, R>,
    /// Why the content of a member ended early.
    broken: Option<LayerError>,
}

impl<R: Read> std::fmt::Debug for Archive<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("broken", &self.broken).finish_non_exhaustive()
    }
}

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name without a leading slash, `.` and empty parts; there is no `..` in it.
    pub path: PathBuf,
    /// What it is.
    pub kind: MemberKind,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A file of so many bytes.
    File(u64),
    /// Another name for a member; a relative symlink counts from the member's directory.
    Link(PathBuf),
    /// A directory, or something else without content.
    Other,
}

impl<'a, R: Read> Archive<'a, R> {
    /// The archive may be compressed. Of `limits` those count that bound headers, names, entries and expansion.
    ///
    /// # Errors
    /// When the source fails.
    pub fn new(source: R, limits: &'a Limits) -> Result<Self, LayerError> {
        let stream = Stream::new(source, Compression::Detect, limits)?.unhashed();
        Ok(Self { reader: Reader::new(stream, limits), broken: None })
    }

    /// The next member. What is left of the one before is passed over.
    ///
    /// # Errors
    /// When the archive is broken, has a name with `..`, or exceeds a limit.
    pub fn next_member(&mut self) -> Result<Option<Member>, LayerError> {
        let Some(entry) = self.reader.next()? else { return Ok(None) };
        let path = entry.path.full();
        let kind = match &entry.kind {
            Kind::File(size) => MemberKind::File(*size),
            Kind::Hardlink(target) => MemberKind::Link(target.full()),
            Kind::Symlink(target) => linked(&entry.path, target).map_or(MemberKind::Other, MemberKind::Link),
            Kind::Directory | Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => MemberKind::Other,
        };
        Ok(Some(Member { path, kind }))
    }

    /// How many bytes were read of the archive, as it is when it is not compressed: before the content of a member is read,
    /// where that begins.
    pub fn offset(&self) -> u64 {
        self.reader.offset()
    }

    /// The content of the member that came last.
    pub fn body(&mut self) -> Body<'_, 'a, R> {
        Body(self)
    }

    /// Why the content of a member ended early, once: whoever read it saw only an I/O error.
    pub fn take_broken(&mut self) -> Option<LayerError> {
        self.broken.take()
    }

    /// After the last member: reads the rest, which means nothing.
    ///
    /// # Errors
    /// When the source fails.
    pub fn finish(self) -> Result<(), LayerError> {
        self.reader.finish().map(drop)
    }
}

/// Where a symlink leads inside the archive; `None`: nowhere.
fn linked(from: &EntryPath, target: &[u8]) -> Option<PathBuf> {
    let mut parts = if target.starts_with(b"/") { PathBuf::new() } else { from.parent.clone() };
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if !parts.pop() => return None,
            b".." => {}
            part => parts.push(OsStr::from_bytes(part)),
        }
    }
    Some(parts)
}

/// Reads one member's content.
#[derive(Debug)]
pub struct Body<'b, 'a, R: Read>(&'b mut Archive<'a, R>);

impl<R: Read> Read for Body<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Archive { reader, broken } = &mut *self.0;
        let chunk = match reader.body() {
            Ok(chunk) => chunk,
            Err(error) => {
                let seen = io::Error::other(error.to_string());
                *broken = Some(error);
                return Err(seen);
            }
        };
        let count = chunk.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), chunk.get(..count)) {
            to.copy_from_slice(from);
        }
        reader.take(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o644);
        builder.append_data(&mut header, "./a/b", &b"one"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header, "a/c", "../a/b").unwrap();
        builder.append_link(&mut header, "a/d", "../../etc/passwd").unwrap();
        header.set_entry_type(tar::EntryType::Link);
        builder.append_link(&mut header, "e", "a/b").unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn members_are_told_with_where_links_lead() {
        let (bytes, limits) = (archive(), Limits::default());
        let mut archive = Archive::new(&bytes[..], &limits).unwrap();
        let mut found = Vec::new();
        while let Some(member) = archive.next_member().unwrap() {
            let mut text = String::new();
            let begin = usize::try_from(archive.offset()).unwrap();
            archive.body().read_to_string(&mut text).unwrap();
            assert!(bytes[begin..].starts_with(text.as_bytes()));
            found.push((member.path, member.kind, text));
        }
        archive.finish().unwrap();
        let link = |to: &str| MemberKind::Link(to.into());
        let expected = [
            ("a/b", MemberKind::File(3), "one"),
            ("a/c", link("a/b"), ""),
            ("a/d", MemberKind::Other, ""),
            ("e", link("a/b"), ""),
        ];
        let expected: Vec<_> =
            expected.map(|(path, kind, text)| (PathBuf::from(path), kind, text.to_owned())).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn content_that_is_cut_off_says_why() {
        let (bytes, limits) = (archive(), Limits::default());
        let mut archive = Archive::new(&bytes[..514], &limits).unwrap();
        assert_eq!(archive.next_member().unwrap().unwrap().path, Path::new("a/b"));
        assert!(io::copy(&mut archive.body(), &mut io::sink()).is_err());
        assert!(archive.take_broken().unwrap().to_string().contains("cut off"));
    }
}
