//! A unix socket that leads to another one, and counts what goes through.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::Outcome;

/// The socket, which ends with this value.
#[derive(Debug)]
pub struct Relay {
    /// Where clients connect.
    pub socket: PathBuf,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Listens on `socket` and leads to `to`.
    pub fn start(socket: PathBuf, to: &Path) -> Outcome<Self> {
        let listener = UnixListener::bind(&socket)?;
        let (sent, received) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (out, back, to) = (sent.clone(), received.clone(), to.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = UnixStream::connect(&to).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tokio::spawn(count(near_read, far_write, out.clone()));
                tokio::spawn(count(far_read, near_write, back.clone()));
            }
        });
        Ok(Self { socket, sent, received, task })
    }

    /// Bytes that clients have sent and received since the last look.
    pub fn taken(&self) -> (u64, u64) {
        (self.sent.swap(0, Ordering::Relaxed), self.received.swap(0, Ordering::Relaxed))
    }
}

/// Until either side ends.
async fn count(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counter: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        counter.fetch_add(u64::try_from(read).unwrap_or(u64::MAX), Ordering::Relaxed);
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
