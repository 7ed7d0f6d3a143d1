//! Container output as CRI log lines: `<time> <stdout|stderr> <P|F> <bytes>`.
//!
//! A line longer than [`LINE_MAX`] is cut into parts marked P, the last of which is F; text without a newline at the
//! end of the stream is P. A carriage return before the newline is dropped. Never fsyncs, never gives up: what cannot
//! be written is counted, and the next lines are tried again.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat, ftruncate};
use rustix::io::{Errno, retry_on_intr};

use super::clock::Stamper;

/// The most bytes of one line. The kubelet and all log shippers read lines of containerd's size, which is this.
pub const LINE_MAX: usize = 16 * 1024;
/// Lines are collected up to this before they are written: one write(2) a line is 25 times slower.
const BATCH: usize = 64 * 1024;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Whether a newline ended the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// More of the same line follows, or the stream ended without a newline.
    Partial,
    /// The line ends here.
    Full,
}

/// Cuts one stream into lines, whatever the pieces in which it comes.
#[derive(Debug, Default)]
pub struct Splitter {
    /// The line that has not ended yet: at most `LINE_MAX` + 1 bytes between calls.
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes and hands each finished piece to `emit`.
    pub fn feed(&mut self, mut input: &[u8], emit: &mut impl FnMut(Tag, &[u8])) {
        while let Some(end) = newline(input) {
            if self.pending.is_empty() {
                whole(&input[..end], emit);
            } else {
                self.pending.extend_from_slice(&input[..end]);
                whole(&self.pending, emit);
                self.pending.clear();
                self.pending.shrink_to(LINE_MAX + 1);
            }
            input = &input[end + 1..];
        }
        self.pending.extend_from_slice(input);
        self.spill(emit);
    }

    /// The stream has ended.
    pub fn finish(&mut self, emit: &mut impl FnMut(Tag, &[u8])) {
        self.pending.chunks(LINE_MAX).for_each(|part| emit(Tag::Partial, part));
        self.pending = Vec::new();
    }

    /// Emits the parts that are sure to be followed by another part of the same line. A carriage return at the very
    /// end may yet turn out to belong to the newline.
    fn spill(&mut self, emit: &mut impl FnMut(Tag, &[u8])) {
        let mut from = 0;
        loop {
            let rest = &self.pending[from..];
            if rest.len() <= LINE_MAX || (rest.len() == LINE_MAX + 1 && rest.ends_with(b"\r")) {
                break;
            }
            emit(Tag::Partial, &rest[..LINE_MAX]);
            from += LINE_MAX;
        }
        if from > 0 {
            self.pending.drain(..from);
            self.pending.shrink_to(LINE_MAX + 1);
        }
    }
}

/// A line whose newline was seen.
fn whole(line: &[u8], emit: &mut impl FnMut(Tag, &[u8])) {
    let mut line = line.strip_suffix(b"\r").unwrap_or(line);
    while line.len() > LINE_MAX {
        let (part, rest) = line.split_at(LINE_MAX);
        emit(Tag::Partial, part);
        line = rest;
    }
    emit(Tag::Full, line);
}

/// Where the first newline is. std searches bytes fast (by memchr) only behind this door.
fn newline(input: &[u8]) -> Option<usize> {
    let mut rest = input;
    let end = rest.skip_until(b'\n').unwrap_or(0).checked_sub(1)?;
    (input[end] == b'\n').then_some(end)
}

/// The log file of one container.
#[derive(Debug)]
pub struct Log {
    file: OwnedFd,
    stamper: Stamper,
    batch: Vec<u8>,
    /// Bytes of lines that could not be written since the last that could.
    lost: u64,
    /// The file ends in part of a line.
    torn: bool,
}

impl Log {
    /// Takes a regular file that is open for writing.
    pub fn new(file: OwnedFd) -> std::io::Result<Self> {
        Ok(Self {
            file: appending(file)?,
            stamper: Stamper::default(),
            batch: Vec::new(),
            lost: 0,
            torn: false,
        })
    }

    /// Goes on in another file. What was taken before is in the old one.
    pub fn reopen(&mut self, file: OwnedFd) -> std::io::Result<()> {
        let file = appending(file)?;
        self.flush();
        self.file = file;
        self.torn = false;
        Ok(())
    }

    /// Adds a line, and writes if enough are waiting.
    pub fn line(&mut self, at: i64, stream: Stream, tag: Tag, text: &[u8]) {
        self.stamper.put(at, &mut self.batch);
        self.batch.extend_from_slice(match (stream, tag) {
            (Stream::Stdout, Tag::Full) => b" stdout F ",
            (Stream::Stdout, Tag::Partial) => b" stdout P ",
            (Stream::Stderr, Tag::Full) => b" stderr F ",
            (Stream::Stderr, Tag::Partial) => b" stderr P ",
        });
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes what is waiting, in one write(2) if the kernel takes it whole.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.torn {
            self.batch.insert(0, b'\n');
        }
        match write_all(&self.file, &self.batch) {
            Ok(()) => {
                if self.lost > 0 {
                    super::say(&format!("the log can be written again, {} bytes were lost", self.lost));
                }
                (self.lost, self.torn) = (0, false);
            }
            Err((written, error)) => self.mend(written, error),
        }
        self.batch.clear();
    }

    /// It holds the memory of a burst of output.
    pub fn is_large(&self) -> bool {
        /// Less is not worth the page faults of the next burst.
        const LARGE: usize = 16 * 1024;
        self.batch.capacity() > LARGE
    }

    /// Frees that memory.
    pub fn rest(&mut self) {
        self.batch = Vec::new();
    }

    /// After a write that failed: counts the loss, and removes the part of a line that reached the file.
    fn mend(&mut self, written: usize, error: Errno) {
        let kept = self.batch[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if self.lost == 0 {
            super::say(&format!("write of the log: {error}; output goes on and is counted"));
        }
        self.lost += u64::try_from(self.batch.len() - kept).unwrap_or(u64::MAX);
        if written > kept {
            self.torn = truncate_by(&self.file, written - kept).is_err();
        }
    }
}

/// A line goes to the end, wherever that is: the file may have been written by an earlier life of the container.
fn appending(file: OwnedFd) -> std::io::Result<OwnedFd> {
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags | OFlags::APPEND)?;
    Ok(file)
}

/// On failure, how many bytes reached the file before it.
fn write_all(file: &OwnedFd, batch: &[u8]) -> Result<(), (usize, Errno)> {
    let mut written = 0;
    while written < batch.len() {
        match retry_on_intr(|| rustix::io::write(file, &batch[written..])) {
            Ok(0) => return Err((written, Errno::IO)),
            Ok(n) => written += n,
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

fn truncate_by(file: &OwnedFd, bytes: usize) -> rustix::io::Result<()> {
    let size = u64::try_from(fstat(file)?.st_size).map_err(|_| Errno::INVAL)?;
    ftruncate(file, size.saturating_sub(u64::try_from(bytes).map_err(|_| Errno::INVAL)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Seek};

    type Pieces = Vec<(Tag, Vec<u8>)>;

    fn split(chunks: &[&[u8]]) -> Pieces {
        let mut pieces = Pieces::new();
        let mut emit = |tag, text: &[u8]| pieces.push((tag, text.to_vec()));
        let mut splitter = Splitter::default();
        for chunk in chunks {
            splitter.feed(chunk, &mut emit);
            assert!(splitter.pending.len() <= LINE_MAX + 1);
        }
        splitter.finish(&mut emit);
        pieces
    }

    /// The rules as they are written down, on the whole stream at once.
    fn model(input: &[u8]) -> Pieces {
        let mut pieces = Pieces::new();
        let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        let tail = lines.pop().unwrap();
        for line in lines {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let parts = line.len().div_ceil(LINE_MAX).max(1);
            for part in 0..parts {
                let tag = if part + 1 == parts { Tag::Full } else { Tag::Partial };
                let end = line.len().min((part + 1) * LINE_MAX);
                pieces.push((tag, line[part * LINE_MAX..end].to_vec()));
            }
        }
        tail.chunks(LINE_MAX).for_each(|part| pieces.push((Tag::Partial, part.to_vec())));
        pieces
    }

    #[test]
    fn lines_at_the_limits() {
        let full = |text: &[u8]| (Tag::Full, text.to_vec());
        let partial = |text: &[u8]| (Tag::Partial, text.to_vec());
        let long = vec![b'x'; LINE_MAX];
        let table: [(Vec<u8>, Pieces); 9] = [
            (b"".to_vec(), vec![]),
            (b"a\nb\r\n\n".to_vec(), vec![full(b"a"), full(b"b"), full(b"")]),
            (b"a\nb".to_vec(), vec![full(b"a"), partial(b"b")]),
            (b"a\rb\r\r\n\r".to_vec(), vec![full(b"a\rb\r"), partial(b"\r")]),
            ([&long[..], b"\n"].concat(), vec![full(&long)]),
            ([&long[..], b"\r\n"].concat(), vec![full(&long)]),
            ([&long[..], b"y\n"].concat(), vec![partial(&long), full(b"y")]),
            ([&long[..], b"\ry\n"].concat(), vec![partial(&long), full(b"\ry")]),
            ([&long[..], b"\r"].concat(), vec![partial(&long), partial(b"\r")]),
        ];
        for (input, expected) in table {
            assert_eq!(model(&input), expected);
            assert_eq!(split(&[&input]), expected);
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(split(&bytes), expected);
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..40),
            1 => (LINE_MAX - 2..LINE_MAX + 3).prop_map(|n| vec![b'x'; n]),
            1 => (2 * LINE_MAX - 2..2 * LINE_MAX + 3).prop_map(|n| vec![b'y'; n]),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_chunking_gives_what_the_model_gives(input in stream(), sizes in proptest::collection::vec(1_usize..70_000, 1..20)) {
            let mut chunks = Vec::new();
            let (mut rest, mut sizes) = (&input[..], sizes.into_iter().cycle());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(rest.len().min(sizes.next().unwrap()));
                chunks.push(chunk);
                rest = tail;
            }
            let pieces = split(&chunks);
            prop_assert_eq!(&pieces, &model(&input));
            // Nothing is lost but carriage returns before a newline.
            let joined: Vec<u8> = pieces.iter().flat_map(|(tag, text)| {
                text.iter().copied().chain((*tag == Tag::Full).then_some(b'\n'))
            }).collect();
            let mut expected = Vec::new();
            for (at, byte) in input.iter().enumerate() {
                if !(*byte == b'\r' && input.get(at + 1) == Some(&b'\n')) {
                    expected.push(*byte);
                }
            }
            prop_assert_eq!(joined, expected);
        }
    }

    fn content(file: &std::fs::File) -> String {
        let mut text = String::new();
        let mut file = file.try_clone().unwrap();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn writes_whole_lines_and_reopens() {
        let (first, second) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut log = Log::new(first.try_clone().unwrap().into()).unwrap();
        log.line(0, Stream::Stdout, Tag::Full, b"one");
        log.reopen(second.try_clone().unwrap().into()).unwrap();
        log.line(1_000, Stream::Stderr, Tag::Partial, b"two");
        log.flush();
        assert_eq!(content(&first), "1970-01-01T00:00:00.000000000Z stdout F one\n");
        assert_eq!(content(&second), "1970-01-01T00:00:00.000001000Z stderr P two\n");
    }

    #[test]
    fn a_full_disk_tears_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Mounted::tmpfs(directory.path(), "size=8192");
        let path = directory.path().join("log");
        let file = std::fs::File::options().create_new(true).read(true).append(true).open(&path).unwrap();
        let ballast = directory.path().join("ballast");
        std::fs::write(&ballast, [0; 4096]).unwrap();

        let mut log = Log::new(file.try_clone().unwrap().into()).unwrap();
        for _ in 0..60 {
            log.line(0, Stream::Stdout, Tag::Full, &[b'x'; 100]);
        }
        log.flush();
        let text = content(&file);
        assert!(log.lost > 0 && text.ends_with("x\n") && text.len() > 3000, "{} bytes", text.len());

        std::fs::remove_file(ballast).unwrap();
        log.line(0, Stream::Stdout, Tag::Full, b"again");
        log.flush();
        assert_eq!(log.lost, 0);
        assert!(content(&file).lines().all(|line| line.len() > 30 && line.contains(" stdout F ")));
        assert!(content(&file).ends_with(" again\n"));
        drop(mounted);
    }

    struct Mounted(std::path::PathBuf);

    impl Mounted {
        fn tmpfs(path: &std::path::Path, options: &str) -> Self {
            let options = std::ffi::CString::new(options).unwrap();
            rustix::mount::mount(
                "cove-test",
                path,
                "tmpfs",
                rustix::mount::MountFlags::empty(),
                Some(options.as_c_str()),
            )
            .unwrap();
            Self(path.to_owned())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
}
