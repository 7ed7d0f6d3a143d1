//! TLS of the server of streams: certificate, key, and whose clients are let in. The files are looked at for each client,
//! so that a certificate that was renewed is used without a restart; what cannot be used then leaves the older one in force.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::blocking;
use crate::config;
use crate::error::Error;

/// The most bytes of a file. A chain takes some thousand.
const MAX_FILE: u64 = 1024 * 1024;

/// Where the files are, under the keys that name them.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What tells a file from one that took its place: inode, size, time of the last change.
type Mark = Option<(u64, u64, i64, i64)>;

#[derive(Clone)]
struct Loaded {
    marks: [Mark; 3],
    acceptor: TlsAcceptor,
}

/// See the module's header.
pub struct Tls {
    files: Files,
    loaded: Mutex<Loaded>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files that the configuration names; none if it names none. Blocking.
    pub fn open(options: &config::Stream) -> Result<Option<Self>, Error> {
        if options.tls_certificate.as_os_str().is_empty() {
            return Ok(None);
        }
        let files = Files {
            certificate: options.tls_certificate.clone(),
            key: options.tls_key.clone(),
            client_ca: Some(options.tls_client_ca.clone()).filter(|path| !path.as_os_str().is_empty()),
        };
        let loaded = files.load()?;
        Ok(Some(Self { files, loaded: Mutex::new(loaded) }))
    }

    /// Takes a client that speaks TLS, with the files as they are now.
    pub async fn accept(&self, client: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let (files, loaded) = (self.files.clone(), self.loaded().clone());
        let marks = loaded.marks;
        let anew = blocking::run(move || (files.marks() != marks).then(|| files.load())).await;
        let acceptor = match anew {
            None => loaded.acceptor,
            Some(Ok(anew)) => {
                tracing::info!("the certificate of streams was read anew");
                let acceptor = anew.acceptor.clone();
                *self.loaded() = anew;
                acceptor
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the certificate of streams cannot be read anew: the older one is used");
                loaded.acceptor
            }
        };
        acceptor.accept(client).await
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn marks(&self) -> [Mark; 3] {
        let mark = |path: &Path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
        };
        [mark(&self.certificate), mark(&self.key), self.client_ca.as_deref().and_then(mark)]
    }

    fn load(&self) -> Result<Loaded, Error> {
        // Looked at first: what changes while it is read is read again for the next client.
        let marks = self.marks();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong = |key: &'static str, path: &Path, why: String| {
            Error::invalid(key, format!("{}: {why}", path.display()))
        };
        let certificates = |key: &'static str, path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
            let text = read(path).map_err(|error| wrong(key, path, error.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
            match found {
                Ok(found) if found.is_empty() => Err(wrong(key, path, "holds no certificate".to_owned())),
                Ok(found) => Ok(found),
                Err(error) => Err(wrong(key, path, format!("holds no certificate in PEM form: {error}"))),
            }
        };
        let chain = certificates("stream.tls_certificate", &self.certificate)?;
        let text = read(&self.key).map_err(|error| wrong("stream.tls_key", &self.key, error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            wrong("stream.tls_key", &self.key, format!("holds no private key in PEM form: {error}"))
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("stream.tls_certificate", &self.certificate, error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                const KEY: &str = "stream.tls_client_ca";
                let mut roots = RootCertStore::empty();
                for root in certificates(KEY, path)? {
                    roots.add(root).map_err(|error| wrong(KEY, path, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| wrong(KEY, path, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| {
            wrong("stream.tls_key", &self.key, format!("does not go with the certificate: {error}"))
        })?;
        Ok(Loaded { marks, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = std::fs::metadata(path)?;
    if !file.is_file() {
        return Err(io::Error::other("is no file"));
    }
    if file.len() > MAX_FILE {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    std::fs::read(path)
}
