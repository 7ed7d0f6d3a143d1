//! The bytes of an import on their way: read on a thread of their own, since a disk or a pipe may take its time.

use std::io;

use futures_util::{Stream, StreamExt as _};
use hyper::body::Bytes;
use tokio::sync::mpsc::channel;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

use super::source::{Pieces, Source, Unread};
use crate::api::own::ImportRequest;
use crate::image::Outline;

/// How many pieces are read ahead.
const AHEAD: usize = 4;

/// What is said of the archive.
#[derive(Debug, Clone)]
pub(super) struct Choices {
    pub(super) pinned: bool,
    pub(super) name: String,
}

/// Why reading ended early. While it is held the other side does not take what it has for the whole archive.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Unread,
    _open: Pieces,
}

/// The requests of an import, and why they ended early, if they do.
pub(super) fn requests(
    source: Box<dyn Source>,
    outline: Outline,
    choices: Choices,
) -> io::Result<(impl Stream<Item = ImportRequest> + Send + use<>, oneshot::Receiver<Failure>)> {
    let (sender, receiver) = channel(AHEAD);
    let (failed, failure) = oneshot::channel();
    let run = move || {
        let mut pieces = Pieces::new(sender);
        if let Err(error) = source.send(&outline, &mut pieces) {
            // Nobody listens when the call has ended by itself.
            let _ = failed.send(Failure { error, _open: pieces });
        }
    };
    std::thread::Builder::new().name("archive".to_owned()).spawn(run)?;
    let first = ImportRequest { pinned: choices.pinned, name: choices.name, data: Bytes::new() };
    let piece = |data| ImportRequest { pinned: false, name: String::new(), data };
    let requests = futures_util::stream::once(async { first });
    Ok((requests.chain(ReceiverStream::new(receiver).map(piece)), failure))
}
#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use futures_util::FutureExt as _;

    use super::super::source::{self, PIECE};
    use super::*;
    use crate::image::Bounds;

    async fn sent(source: &Path) -> Result<Vec<u8>, String> {
        let choices = Choices { pinned: true, name: "a:1".into() };
        let source = source::open(source, &Bounds::default()).map_err(|error| error.to_string())?;
        let (requests, failure) = requests(source, Outline::default(), choices).unwrap();
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
