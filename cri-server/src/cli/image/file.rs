//! A plain tar in a file: its headers are read first, so that layers which the other side has are left out. What is sent of
//! it is sent as it stands there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use cove_layer::{Archive, Limits, MemberKind};

use super::source::{Pieces, Source, Unread, exactly};
use crate::image::{Bounds, Documents, ImageError, Links, Outline, tar};

/// Where a tar says that it is one (POSIX.1-2024 pax, "ustar Interchange Format"), and what stands there. What has it not,
/// by age or since it is compressed, is sent as it is.
const MAGIC: (u64, [u8; 5]) = (257, *b"ustar");

/// The file, and where its members are.
#[derive(Debug)]
pub(super) struct TarFile {
    file: File,
    path: PathBuf,
    /// In their order.
    members: Vec<Member>,
    links: Links,
    /// Where each file is among the members.
    names: HashMap<String, usize>,
}

#[derive(Debug)]
struct Member {
    /// With its headers and up to the next one's.
    whole: Range<u64>,
    name: String,
    content: Range<u64>,
}

impl TarFile {
    /// Reads the headers. The file itself is returned if it is no plain tar, or one that whoever takes it in will refuse.
    pub(super) fn open(file: File, path: &Path, bounds: &Bounds) -> io::Result<Result<Self, File>> {
        let mut magic = [0; MAGIC.1.len()];
        let is_tar = file.read_exact_at(&mut magic, MAGIC.0).is_ok() && magic == MAGIC.1;
        let read = if is_tar { headers(&file, bounds)? } else { None };
        match read {
            Some((members, links)) => {
                let names =
                    members.iter().enumerate().map(|(at, member)| (member.name.clone(), at)).collect();
                Ok(Ok(Self { file, path: path.to_owned(), members, links, names }))
            }
            None => {
                (&file).seek(SeekFrom::Start(0))?;
                Ok(Err(file))
            }
        }
    }
}

/// The members of an archive; `None`: it is not sound, or has names twice.
fn headers(mut file: &File, bounds: &Bounds) -> io::Result<Option<(Vec<Member>, Links)>> {
    let limits = Limits { size: u64::MAX, ..Limits::default() };
    let (mut members, mut links) = (Vec::<Member>::new(), Links::default());
    let mut at = 0;
    loop {
        file.seek(SeekFrom::Start(at))?;
        let Ok(mut archive) = Archive::new(file, &limits) else { return Ok(None) };
        let Ok(member) = archive.next_member() else { return Ok(None) };
        let Some(member) = member else { return Ok(Some((members, links))) };
        let begin = at + archive.offset();
        let size = match &member.kind {
            MemberKind::File(size) => *size,
            MemberKind::Link(_) | MemberKind::Other => 0,
        };
        let Some(end) = begin.checked_add(size) else { return Ok(None) };
        let Some(next) = end.checked_add(tar::padding(size) as u64) else { return Ok(None) };
        let Some(name) = member.path.to_str().map(str::to_owned) else { return Ok(None) };
        if members.len() == bounds.archive_entries {
            return Ok(None);
        }
        if let MemberKind::Link(to) = &member.kind
            && let Some(to) = to.to_str()
        {
            links.add(name.clone(), to.to_owned());
        }
        members.push(Member { whole: at..next, name, content: begin..end });
        at = next;
    }
}

impl Documents for (&TarFile, u64) {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let (tar, limit) = *self;
        let member = self.resolve(name).and_then(|name| Some(&tar.members[*tar.names.get(&name)?]));
        let Some(member) = member else { return Ok(None) };
        let size = member.content.end - member.content.start;
        if size > limit {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        let read = tar.file.read_exact_at(&mut bytes, member.content.start);
        read.map_err(|error| ImageError::unread(name, &error))?;
        Ok(Some(bytes))
    }

    fn resolve(&self, name: &str) -> Option<String> {
        self.0.links.resolve(name)
    }
}

impl Source for TarFile {
    fn outline(&self, bounds: &Bounds) -> Result<Outline, ImageError> {
        let limit = u64::try_from(bounds.document_bytes).unwrap_or(u64::MAX);
        Outline::of(&(self, limit), bounds)
    }

    fn send(mut self: Box<Self>, outline: &Outline, pieces: &mut Pieces) -> Result<(), Unread> {
        let this = &mut *self;
        let failed = |error| Unread::file(&this.path, error);
        for member in &this.members {
            let size = member.content.end - member.content.start;
            if outline.is_needless(&member.name, size) {
                continue;
            }
            this.file.seek(SeekFrom::Start(member.whole.start)).map_err(failed)?;
            let whole = member.whole.end - member.whole.start;
            exactly(pieces, &mut this.file, whole, this.path.display())?;
        }
        let end = this.members.last().map_or(0, |member| member.whole.end);
        this.file.seek(SeekFrom::Start(end)).map_err(failed)?;
        pieces.copy(&mut this.file, this.path.display()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn open(bytes: &[u8]) -> Result<TarFile, File> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, bytes).unwrap();
        TarFile::open(File::open(&path).unwrap(), &path, &Bounds::default()).unwrap()
    }

    #[test]
    fn members_are_found_where_they_stand_and_read_by_their_links() {
        let long = "d/".repeat(80) + "x";
        let mut bytes = archive(&[("a", b"one"), (&long, &[7; 1000])]);
        bytes.truncate(bytes.len() - 1024);
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Symlink);
        header.set_size(0);
        let mut builder = ::tar::Builder::new(bytes);
        builder.append_link(&mut header, "l", "a").unwrap();
        let bytes = builder.into_inner().unwrap();
        let tar = open(&bytes).unwrap();
        assert_eq!(
            tar.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(),
            ["a", &long, "l"]
        );
        let documents = (&tar, 1000);
        assert_eq!(documents.document("l").unwrap().unwrap(), b"one");
        assert_eq!(documents.document(&long).unwrap().unwrap(), [7; 1000]);
        assert!((&tar, 999).document(&long).unwrap().is_none() && documents.document("x").unwrap().is_none());
        let whole: Vec<_> = tar.members.iter().map(|member| member.whole.clone()).collect();
        assert!(whole[0].start == 0 && whole.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(usize::try_from(whole[2].end).unwrap() + 1024, bytes.len());
    }

    #[test]
    fn what_cannot_be_looked_through_is_left_as_it_is() {
        let bytes = archive(&[("a", b"one"), ("b", b"two")]);
        let mut broken = bytes.clone();
        broken[1024 + 10] ^= 1;
        assert!([&b"short"[..], &[0; 2048], &[0x1f, 0x8b, 8]].iter().all(|bytes| open(bytes).is_err()));
        let mut file = open(&broken).unwrap_err();
        let mut read = Vec::new();
        io::Read::read_to_end(&mut file, &mut read).unwrap();
        assert_eq!(read, broken, "from its beginning");
    }
}
