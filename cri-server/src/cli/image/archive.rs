//! What is sent to be imported: a file or standard input as it is, a directory as a tar of its files. Read on a thread of its
//! own, since a disk or a pipe may take its time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures_util::{Stream, StreamExt as _};
use hyper::body::Bytes;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::own::ImportRequest;
use crate::image::tar;

/// Bytes of one message: with as many as may wait on their way the daemon holds 4 MiB.
const PIECE: usize = 256 * 1024;
/// How many pieces are read ahead.
const AHEAD: usize = 4;
/// The files of a layout beside its blobs, in the order in which they are of use.
const DOCUMENTS: [&str; 2] = ["oci-layout", "index.json"];

/// What is said of the archive.
#[derive(Debug, Clone)]
pub(super) struct Choices {
    pub(super) pinned: bool,
    pub(super) name: String,
}

/// Why the archive could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(super) struct Unread {
    path: PathBuf,
    reason: String,
}

impl Unread {
    fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Why reading ended early. While it is held the other side does not take what it has for the whole archive.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Unread,
    _open: Pieces,
}

/// The requests of an import, and why they ended early, if they do.
pub(super) fn requests(
    source: &Path,
    choices: Choices,
) -> Result<(impl Stream<Item = ImportRequest> + Send + use<>, oneshot::Receiver<Failure>), Unread> {
    let (sender, receiver) = channel(AHEAD);
    let (failed, failure) = oneshot::channel();
    let read = reader(source)?;
    let run = move || {
        let mut pieces = Pieces { sender };
        if let Err(error) = read(&mut pieces) {
            // Nobody listens when the call has ended by itself.
            let _ = failed.send(Failure { error, _open: pieces });
        }
    };
    let started = std::thread::Builder::new().name("archive".to_owned()).spawn(run);
    started.map_err(|error| Unread::new(source, error))?;
    let first = ImportRequest { pinned: choices.pinned, name: choices.name, data: Bytes::new() };
    let piece = |data| ImportRequest { pinned: false, name: String::new(), data };
    let requests = futures_util::stream::once(async { first });
    Ok((requests.chain(ReceiverStream::new(receiver).map(piece)), failure))
}

type Reader = Box<dyn FnOnce(&mut Pieces) -> Result<(), Unread> + Send>;

fn reader(source: &Path) -> Result<Reader, Unread> {
    let failed = |error| Unread::new(source, error);
    let path = source.to_owned();
    if source == Path::new("-") {
        return Ok(Box::new(move |pieces| pieces.copy(&mut io::stdin().lock(), &path).map(drop)));
    }
    if fs::metadata(source).map_err(failed)?.is_dir() {
        return Ok(Box::new(move |pieces| directory(&path, pieces)));
    }
    let mut file = File::open(source).map_err(failed)?;
    Ok(Box::new(move |pieces| pieces.copy(&mut file, &path).map(drop)))
}

/// Sends the files of a layout as a tar: the documents first, and then from the smallest to the largest, so that the other
/// side knows what each layer is before it comes.
fn directory(root: &Path, pieces: &mut Pieces) -> Result<(), Unread> {
    let mut files = Vec::new();
    for name in DOCUMENTS {
        let path = root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => files.push((0, name.to_owned(), metadata.len())),
            Ok(_) => return Err(Unread::new(&path, "is no file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Unread::new(&path, error)),
        }
    }
    for algorithm in ["sha256", "sha512"] {
        let directory = root.join("blobs").join(algorithm);
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| Unread::new(&directory, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| Unread::new(&directory, error))?;
            let metadata = entry.metadata().map_err(|error| Unread::new(&entry.path(), error))?;
            if let Some(name) = entry.file_name().to_str().filter(|_| metadata.is_file()) {
                files.push((1, format!("blobs/{algorithm}/{name}"), metadata.len()));
            }
        }
    }
    files.sort_by(|(kind, name, size), other| (kind, size, name).cmp(&(&other.0, &other.2, &other.1)));
    for (_, name, size) in files {
        let path = root.join(&name);
        let file = File::open(&path).map_err(|error| Unread::new(&path, error))?;
        pieces.send(tar::header(&name, size));
        if pieces.copy(&mut file.take(size), &path)? < size {
            return Err(Unread::new(&path, "became shorter while it was read"));
        }
        pieces.send(vec![0; tar::padding(size)]);
    }
    pieces.send(tar::END.to_vec());
    Ok(())
}

/// Where what is read goes.
#[derive(Debug)]
struct Pieces {
    sender: Sender<Bytes>,
}

impl Pieces {
    /// False: nobody wants any more, which is no error of this side.
    fn send(&mut self, bytes: Vec<u8>) -> bool {
        self.sender.blocking_send(bytes.into()).is_ok()
    }

    /// Sends all that a source has, and says how much it was. What nobody wants counts as sent.
    fn copy(&mut self, source: &mut impl Read, path: &Path) -> Result<u64, Unread> {
        let limit = u64::try_from(PIECE).unwrap_or(u64::MAX);
        let mut sent = 0;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = source.by_ref().take(limit).read_to_end(&mut piece);
            let count = read.map_err(|error| Unread::new(path, error))?;
            sent += u64::try_from(count).unwrap_or(u64::MAX);
            if count == 0 {
                return Ok(sent);
            }
            if !self.send(piece) {
                return Ok(u64::MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    async fn sent(source: &Path) -> Result<Vec<u8>, String> {
        let choices = Choices { pinned: true, name: "a:1".into() };
        let (requests, failure) = requests(source, choices).map_err(|error| error.to_string())?;
        let mut failure = failure.fuse();
        let mut requests = std::pin::pin!(requests);
        let first = requests.next().await.unwrap();
        assert!(first.pinned && first.name == "a:1" && first.data.is_empty());
        let mut bytes = Vec::new();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(request) => bytes.extend_from_slice(&request.data),
                    None => return Ok(bytes),
                },
                Ok(failure) = &mut failure => return Err(failure.error.to_string()),
            }
        }
    }

    #[tokio::test]
    async fn a_file_goes_as_it_is_and_a_directory_as_a_tar_with_the_documents_first() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.tar");
        let content = vec![7; PIECE + 1];
        fs::write(&file, &content).unwrap();
        assert_eq!(sent(&file).await.unwrap(), content);
        assert!(sent(&directory.path().join("nothing")).await.unwrap_err().contains("nothing: "));

        let layout = directory.path().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        for (name, content) in
            [("blobs/sha256/a", "larger"), ("blobs/sha256/b", "small"), ("index.json", "{}")]
        {
            fs::write(layout.join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", layout.join("blobs/sha256/c")).unwrap();
        let bytes = sent(&layout).await.unwrap();
        let mut archive = ::tar::Archive::new(&bytes[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["index.json", "blobs/sha256/b", "blobs/sha256/a"], "no link is followed");
        fs::remove_file(layout.join("index.json")).unwrap();
        fs::create_dir(layout.join("index.json")).unwrap();
        assert!(sent(&layout).await.unwrap_err().contains("is no file"));
    }
}
