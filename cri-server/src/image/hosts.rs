//! Where a registry is asked: mirrors and the registry itself, in order, as `hosts.toml` files say (the form that containerd
//! documents), or itself with the certificates of a directory as Docker has them. Read at each pull, so a changed file
//! counts at once.

mod certificates;
pub(super) mod file;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::HeaderMap;

use super::ImageError;
use super::reference::Reference;
use super::transport::{Access, Origin, Transport};

/// A directory beside those of registries, for all that have none.
const FOR_ALL: &str = "_default";
/// Largest file that is read: an administrator's file has some lines, or some certificates.
const MAX_FILE: u64 = 1024 * 1024;

/// One place that serves a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Who is asked.
    pub(super) origin: Origin,
    /// What goes before `/NAME/manifests/…`: `/v2`, or what the file says.
    pub(super) base: String,
    /// Tags may be asked for here.
    pub(super) resolves: bool,
    /// Content may be asked for here by digest.
    pub(super) pulls: bool,
    /// The registry of the reference by host and port: credentials are for it alone.
    pub(super) is_own: bool,
    /// What the administrator adds to each request, for this host alone.
    pub(super) headers: HeaderMap,
    /// How it is reached.
    pub(super) access: Arc<Access>,
}

/// The hosts of `reference`, in the order to ask them: those of the first directory below `directories` that says
/// something, then the registry itself.
pub(super) fn of(
    directories: &[PathBuf],
    reference: &Reference,
    transport: &Transport,
) -> Result<Vec<Host>, ImageError> {
    let upstream = upstream(reference, transport)?;
    for directory in candidates(directories, reference) {
        let wrong = |path: PathBuf| move |reason| ImageError::Hosts { path, reason };
        let path = directory.join("hosts.toml");
        if let Some(text) = read(&path).map_err(wrong(path.clone()))? {
            let text = String::from_utf8(text).map_err(|_| wrong(path.clone())("is not UTF-8".to_owned()))?;
            return file::parse(&text, &directory, reference, upstream, transport).map_err(wrong(path));
        }
        if directory.is_dir()
            && let Some(access) = certificates::directory(&directory).map_err(wrong(directory.clone()))?
        {
            let access = Arc::new(access);
            return Ok(vec![Host { origin: upstream.origin.with_tls(), access, ..upstream }]);
        }
    }
    Ok(vec![upstream])
}

/// The registry itself, as it is asked where no file says otherwise.
pub(super) fn upstream(reference: &Reference, transport: &Transport) -> Result<Host, ImageError> {
    let origin = transport.origin(reference.host()).map_err(|_| ImageError::InvalidReference {
        reference: reference.to_string(),
        reason: "has a registry that is not host or host:port",
    })?;
    Ok(Host {
        origin,
        base: "/v2".to_owned(),
        resolves: true,
        pulls: true,
        is_own: true,
        headers: HeaderMap::new(),
        access: Arc::default(),
    })
}

/// `HOST:PORT`, else `HOST_PORT_` (for file systems that know no colon), else the one for all; of one directory after
/// another.
fn candidates(directories: &[PathBuf], reference: &Reference) -> Vec<PathBuf> {
    let domain = reference.domain();
    let mut names = vec![domain.to_owned()];
    names.extend(domain.split_once(':').map(|(host, port)| format!("{host}_{port}_")));
    names.push(FOR_ALL.to_owned());
    directories.iter().flat_map(|directory| names.iter().map(|name| directory.join(name))).collect()
}

/// A file; `None`: it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err("is no file".to_owned()),
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(format!("is larger than the limit of {MAX_FILE} bytes"));
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => (),
    }
    std::fs::read(path).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    fn transport() -> Transport {
        Transport::new(Options::default().transport())
    }

    fn hosts(text: &str) -> Result<Vec<String>, String> {
        let (transport, reference) = (transport(), Reference::parse("r.io/a").unwrap());
        let upstream = upstream(&reference, &transport).unwrap();
        let shown = |host: Host| {
            let can = |yes: bool, letter| if yes { letter } else { '-' };
            format!("{}{} {}{}", host.origin, host.base, can(host.resolves, 'r'), can(host.pulls, 'p'))
        };
        file::parse(text, Path::new("/nowhere"), &reference, upstream, &transport)
            .map(|hosts| hosts.into_iter().map(shown).collect())
    }

    #[test]
    fn files_give_hosts_in_order_and_the_registry_last() {
        let table: [(&str, &[&str]); 9] = [
            ("", &["https://r.io/v2 rp"]),
            ("server = \"https://other.io\"", &["https://other.io/v2 rp"]),
            (
                "[host.\"http://z:5000\"]\n[host.\"https://a\"]",
                &["http://z:5000/v2 rp", "https://a/v2 rp", "https://r.io/v2 rp"],
            ),
            (
                "[host.\"http://m:5000\"]\ncapabilities = [\"pull\"]",
                &["http://m:5000/v2 -p", "https://r.io/v2 rp"],
            ),
            // Fallback is switched off by naming the mirror as the server.
            (
                "server = \"http://m:5000\"\n[host.\"http://m:5000\"]\ncapabilities = [\"pull\", \"resolve\"]",
                &["http://m:5000/v2 rp"],
            ),
            (
                "[host.\"https://m/v2/k8s/\"]\noverride_path = true",
                &["https://m/v2/k8s rp", "https://r.io/v2 rp"],
            ),
            ("[host.\"m/cache\"]", &["https://m/cache/v2 rp", "https://r.io/v2 rp"]),
            ("server = \"https://docker.io\"", &["https://registry-1.docker.io/v2 rp"]),
            (
                "server = \"https://s/x\"\noverride_path = true\ncapabilities = [\"pull\"]",
                &["https://s/x -p"],
            ),
        ];
        for (text, expected) in table {
            assert_eq!(hosts(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let table = [
            ("servr = \"x\"", "servr"),
            ("server = 3", "server"),
            ("[host.\"https://m\"]\nca = \"x\"", "ca: /nowhere/x does not exist"),
            ("ca = [1]", "ca: must be"),
            ("client = [\"a\", \"b\", \"c\"]", "client: must be"),
            ("client = [[\"a\", \"b\"], [\"a\", \"b\"]]", "client: must be"),
            ("skip_verify = \"yes\"", "skip_verify"),
            ("[header]\n\"a b\" = \"secret\"", "\"a b\" or its value"),
            ("[header]\na = \"secret\\n\"", "\"a\" or its value"),
            ("dial_timeout = \"5\"", "dial_timeout"),
            ("[host.\"https://m\"]\nca_file = \"x\"", "ca_file"),
            ("[host.\"https://m\"]\ncapabilities = [\"pul\"]", "\"pul\""),
            ("[host.\"ftp://m\"]", "ftp://m"),
            ("[host.\"https://u:p@m\"]", "not http or https"),
            ("[host]\nx = 1", "must be a table"),
            ("host = ", "TOML"),
        ];
        for (text, named) in table {
            let reason = hosts(text).unwrap_err();
            assert!(reason.contains(named) && !reason.contains("secret"), "{text}: {reason}");
        }
    }

    #[test]
    fn settings_are_for_their_host_alone() {
        let (transport, reference) = (transport(), Reference::parse("r.io:5000/a").unwrap());
        let text = "[header]\nX-A = [\"1\", \"2\"]\n[host.\"http://m\"]\nskip_verify = true\ndial_timeout = \"250ms\"\n\
                    [host.\"http://r.io:5000\"]\ncapabilities = [\"pull\"]\n[host.\"http://r.io\"]";
        let upstream = upstream(&reference, &transport).unwrap();
        let hosts = file::parse(text, Path::new("/"), &reference, upstream, &transport).unwrap();
        let own: Vec<bool> = hosts.iter().map(|host| host.is_own).collect();
        assert_eq!(own, [false, true, false, true]);
        assert!(hosts[0].access.skip_verify && hosts[0].headers.is_empty());
        assert_eq!(hosts[0].access.dial, Some(std::time::Duration::from_millis(250)));
        assert_eq!(hosts[3].headers.get_all("x-a").iter().count(), 2);
        assert!(hosts[3].headers["x-a"].is_sensitive() && !hosts[3].access.skip_verify);
    }

    #[test]
    fn certificates_of_a_directory_are_taken_and_bad_ones_named() {
        let directory = tempfile::tempdir().unwrap();
        let of = |reference: &str| {
            of(&[directory.path().to_owned()], &Reference::parse(reference).unwrap(), &transport())
        };
        let path = directory.path().join("127.0.0.1:5000");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(of("127.0.0.1:5000/a").unwrap()[0].origin.to_string(), "http://127.0.0.1:5000");
        std::fs::write(path.join("notes.txt"), "x").unwrap();
        std::fs::write(path.join("ca.crt"), "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n")
            .unwrap();
        let found = of("127.0.0.1:5000/a").unwrap();
        assert_eq!(found[0].origin.to_string(), "https://127.0.0.1:5000", "who has an authority speaks TLS");
        assert_eq!(found[0].access.roots, [vec![1, 2, 3].into()]);
        std::fs::write(path.join("client.cert"), "x").unwrap();
        let error = of("127.0.0.1:5000/a").unwrap_err().to_string();
        assert!(error.contains("client.key does not exist"), "{error}");
        std::fs::write(path.join("ca.crt"), "secret").unwrap();
        let error = of("127.0.0.1:5000/a").unwrap_err().to_string();
        assert!(error.contains("ca.crt holds no certificate") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_most_exact_directory_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let transport = transport();
        let first = |reference: &str| {
            let hosts = of(&[directory.path().to_owned()], &Reference::parse(reference).unwrap(), &transport);
            hosts.map(|hosts| hosts[0].origin.to_string())
        };
        assert_eq!(first("r.io:5000/a").unwrap(), "https://r.io:5000");
        for (name, mirror) in
            [(FOR_ALL, "all"), ("r.io_5000_", "port"), ("r.io:5000", "exact"), ("docker.io", "hub")]
        {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("hosts.toml"), format!("[host.\"http://{mirror}\"]")).unwrap();
            let reference = if name == "docker.io" { "busybox" } else { "r.io:5000/a" };
            assert_eq!(first(reference).unwrap(), format!("http://{mirror}"));
        }
        assert_eq!(first("r.io/a").unwrap(), "http://all");
        std::fs::write(directory.path().join("r.io:5000/hosts.toml"), "x = 1").unwrap();
        let error = first("r.io:5000/a").unwrap_err().to_string();
        assert!(error.contains("r.io:5000/hosts.toml") && error.contains("x: "), "{error}");
    }
}
