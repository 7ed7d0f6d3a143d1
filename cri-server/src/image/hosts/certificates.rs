//! Certificates and keys beside a registry's name: the files of `ca` and `client` in hosts.toml, and the directories that
//! Docker made known (`*.crt` to trust, `*.cert` with its `*.key` to be known by).

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::transport::{Access, Identity};

/// Most files of a directory that are looked at.
const MAX_FILES: usize = 1000;

/// Every certificate of a file. None is an error: an administrator meant somebody.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{} holds no certificate", path.display())),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{} holds no certificate in PEM form: {error}", path.display())),
    }
}

/// A certificate with its chain, and its key, which may be in the same file.
pub(super) fn identity(certificate: &Path, key: &Path) -> Result<Identity, String> {
    let text = read(key)?;
    let found = PrivateKeyDer::from_pem_slice(&text);
    let key =
        found.map_err(|error| format!("{} holds no private key in PEM form: {error}", key.display()))?;
    Ok(Identity { chain: certificates(certificate)?, key })
}

/// What a directory of Docker's form says; `None`: it holds no certificate.
pub(super) fn directory(path: &Path) -> Result<Option<Access>, String> {
    let mut access = Access::default();
    let mut files = files(path)?;
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => access.roots.extend(certificates(&file)?),
            Some("cert") => {
                let key = file.with_extension("key");
                let found = identity(&file, &key)?;
                access.identity = access.identity.or(Some(found));
            }
            _ => (),
        }
    }
    Ok(access.is_of_tls().then_some(access))
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        files.push(entry.map_err(unreadable)?.path());
        if files.len() > MAX_FILES {
            return Err(format!("{} holds more than {MAX_FILES} files", path.display()));
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    match super::read(path) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(format!("{} does not exist", path.display())),
        Err(reason) => Err(format!("{}: {reason}", path.display())),
    }
}
