//! Certificates for tests, made by the `openssl` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// A certificate and its key, in PEM form.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// `NAME.crt`.
    pub certificate: PathBuf,
    /// `NAME.key`.
    pub key: PathBuf,
}

/// Runs openssl and returns what it writes.
pub fn openssl(arguments: &[&str]) -> Outcome<Vec<u8>> {
    let output = Command::new("openssl").args(arguments).output()?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is not UTF-8")?)
}

/// One that signs itself, marked as an authority's, for the address 127.0.0.1. `kind` is what `-newkey` takes.
pub fn self_signed(directory: &Path, name: &str, kind: &[&str]) -> Outcome<Certificate> {
    let made = place(directory, name);
    let subject = format!("/CN={name}");
    let mut arguments = vec!["req", "-x509", "-nodes", "-days", "2", "-subj", &subject];
    arguments.extend(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", text(&made.key)?]);
    arguments.extend(["-out", text(&made.certificate)?, "-newkey"]);
    arguments.extend(kind);
    openssl(&arguments)?;
    Ok(made)
}

/// An elliptic curve: made at once, where RSA takes a while.
pub const CURVE: &[&str] = &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// One that `authority` signs, for `name` as openssl writes alternative names (`IP:127.0.0.1`), for so many days.
pub fn signed(
    directory: &Path,
    name: &str,
    authority: &Certificate,
    alternative: &str,
    days: &str,
) -> Outcome<Certificate> {
    let made = place(directory, name);
    let (request, extensions) =
        (directory.join(format!("{name}.csr")), directory.join(format!("{name}.ext")));
    let subject = format!("/CN={name}");
    let mut arguments = vec!["req", "-nodes", "-subj", &subject, "-keyout", text(&made.key)?];
    arguments.extend(["-out", text(&request)?, "-newkey"]);
    arguments.extend(CURVE);
    openssl(&arguments)?;
    fs::write(&extensions, format!("subjectAltName={alternative}\nbasicConstraints=CA:FALSE\n"))?;
    openssl(&[
        "x509",
        "-req",
        "-days",
        days,
        "-CAcreateserial",
        "-in",
        text(&request)?,
        "-out",
        text(&made.certificate)?,
        "-extfile",
        text(&extensions)?,
        "-CA",
        text(&authority.certificate)?,
        "-CAkey",
        text(&authority.key)?,
    ])?;
    Ok(made)
}

fn place(directory: &Path, name: &str) -> Certificate {
    Certificate {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}
