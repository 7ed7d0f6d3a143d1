//! A real registry (Debian's docker-registry) on loopback, and what pushes images into it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::certificate::Certificate;
use crate::image::{Image, MANIFEST};
use crate::{Outcome, wait};

/// How long the registry may take to answer for the first time.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A registry that ends with this value, unless it is left running.
#[derive(Debug)]
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    child: Mutex<Option<Child>>,
}

/// Whom a registry lets in, and how.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// It speaks TLS and is known by this.
    pub tls: Option<Certificate>,
    /// Clients have a certificate of this authority.
    pub clients: Option<PathBuf>,
    /// Further lines of its configuration: `auth`, `middleware`.
    pub auth: String,
}

impl Registry {
    /// Starts a registry that keeps its blobs below `directory`.
    pub fn start(directory: &Path) -> Outcome<Self> {
        let registry = Self::serve(directory, directory, &Guard::default())?;
        let url = format!("http://{}/v2/", registry.host);
        wait::until("the registry to answer", START_LIMIT, || Ok(ureq::get(&url).call().ok().map(drop)))?;
        Ok(registry)
    }

    /// Starts another one for the blobs of one that was started in `blobs`, which lets in only whom it knows. Its own files
    /// go to `directory`.
    pub fn guarded(directory: &Path, blobs: &Path, guard: &Guard) -> Outcome<Self> {
        let registry = Self::serve(directory, blobs, guard)?;
        wait::until("the registry to listen", START_LIMIT, || {
            Ok(TcpStream::connect(&registry.host).ok().map(drop))
        })?;
        Ok(registry)
    }

    fn serve(directory: &Path, blobs: &Path, guard: &Guard) -> Outcome<Self> {
        // A free port by asking for one; another process could take it in between, and then the start fails loudly.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("127.0.0.1:{port}");
        fs::create_dir_all(directory)?;
        let config = directory.join("registry.yml");
        let clients = guard.clients.as_ref().map(|file| format!(", clientcas: [{}]", file.display()));
        let tls = guard.tls.as_ref().map(|tls| {
            let (certificate, key) = (tls.certificate.display(), tls.key.display());
            format!(", tls: {{certificate: {certificate}, key: {key}{}}}", clients.unwrap_or_default())
        });
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: '{host}'{}}}\n{}",
                blobs.join("blobs").display(),
                tls.unwrap_or_default(),
                guard.auth
            ),
        )?;
        let log = fs::File::create(directory.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { host, child: Mutex::new(Some(child)) })
    }

    /// A registry that runs already.
    pub fn at(host: &str) -> Self {
        Self { host: host.to_owned(), child: Mutex::new(None) }
    }

    /// Leaves the process running and says its pid.
    pub fn leave(self) -> Option<u32> {
        self.take().map(|child| child.id())
    }

    /// Ends the process.
    pub fn end(&self) -> Outcome {
        if let Some(mut child) = self.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn take(&self) -> Option<Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Pushes an image under `name:tag` and returns its reference.
    pub fn push(&self, name: &str, tag: &str, image: &Image) -> Outcome<String> {
        for blob in &image.blobs {
            let upload = ureq::post(format!("http://{}/v2/{name}/blobs/uploads/", self.host)).send_empty()?;
            let location = upload
                .headers()
                .get("location")
                .and_then(|value| value.to_str().ok())
                .ok_or("the registry named no place for an upload")?;
            let separator = if location.contains('?') { '&' } else { '?' };
            ureq::put(format!("{location}{separator}digest={}", blob.digest))
                .header("content-type", "application/octet-stream")
                .send(&blob.bytes[..])?;
        }
        self.put(name, tag, MANIFEST, &image.manifest.bytes)
    }

    /// Puts a manifest or an index that names what is there already, and returns its reference.
    pub fn put(&self, name: &str, tag: &str, media_type: &str, document: &[u8]) -> Outcome<String> {
        ureq::put(format!("http://{}/v2/{name}/manifests/{tag}", self.host))
            .header("content-type", media_type)
            .send(document)?;
        Ok(format!("{}/{name}:{tag}", self.host))
    }
}

/// Where a registry that was started in `directory` keeps a blob.
pub fn blob_file(directory: &Path, digest: &str) -> Outcome<PathBuf> {
    let hex = digest.strip_prefix("sha256:").ok_or("not a sha256 digest")?;
    Ok(directory.join("blobs/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data"))
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the registry at {} is left: {error}", self.host);
        }
    }
}
