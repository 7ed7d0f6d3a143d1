//! Who is shown a secret: credentials of a registry stay with it, whoever stands beside it or between (row E36 of
//! docs/security.md). The registries are real; whoever must not see anything is one that remembers what it was sent.

use std::fs;
use std::path::Path;

use cove_e2e::Outcome;
use cove_e2e::certificate::{self, CURVE};
use cove_e2e::proxy::Proxy;
use cove_e2e::registry::{Guard, Registry};
use cove_e2e::server::{Answer, Server};

use crate::image_command::{run, works};
use crate::image_pull::{
    BASIC, PASSWORD, USERS, alice, configure, keeps_secrets, remove_all, small, try_pull,
};
use crate::world::World;

cases!(
    shows_them_to_their_registry_alone,
    goes_through_a_proxy_that_sees_none,
    mends_with_them_what_is_of_their_registry,
);

/// Whom the proxy lets in; percent-encoded in its URL.
const PROXY_USER: &str = "p%40xy:pass%3Aword";
/// The same as a header has it.
const PROXY_BASIC: &str = "Basic cEB4eTpwYXNzOndvcmQ=";

/// The `auth` line of a registry that knows alice.
fn basic(directory: &Path) -> Outcome<String> {
    let users = directory.join("users");
    fs::write(&users, USERS)?;
    Ok(format!("auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n", users.display()))
}

/// Makes a registry send for its blobs to `url`.
fn sends_to(url: &str) -> String {
    format!("middleware: {{storage: [{{name: redirect, options: {{baseurl: '{url}'}}}}]}}\n")
}

async fn shows_them_to_their_registry_alone(world: &mut World) -> Outcome {
    let (directory, hosts) = (world.directory.join("beside"), world.directory.join("hosts"));
    let blobs = directory.join("blobs");
    let open = Registry::start(&blobs)?;
    let made = small("beside")?;
    open.push("e2e/beside", "1", &made)?;
    let auth = basic(&directory)?;
    let of_server = made.clone();
    // Another registry: of blobs by the path of a storage, of nothing else.
    let beside = Server::start("127.0.0.2", move |asked| {
        let blob = of_server.blobs.iter().find(|blob| asked.target.contains(&blob.digest["sha256:".len()..]));
        match blob {
            Some(blob) if !asked.target.starts_with("/v2/") => {
                Answer::Whole(200, Vec::new(), blob.bytes.clone())
            }
            _ => Answer::Whole(404, Vec::new(), Vec::new()),
        }
    })?;
    let url = format!("http://{}", beside.address);
    let authority = certificate::self_signed(&directory, "authority", CURVE)?;
    let identity = certificate::signed(&directory, "registry", &authority, "IP:127.0.0.1", "2")?;
    let start = |name: &str, auth: String, is_secure: bool| {
        let tls = is_secure.then(|| identity.clone());
        Registry::guarded(&directory.join(name), &blobs, &Guard { tls, auth, ..Guard::default() })
    };
    let redirects = start("redirects", format!("{auth}{}", sends_to(&url)), false)?;
    let downgrades = start("downgrades", format!("{auth}{}", sends_to(&url)), true)?;
    let bundle = identity.certificate.display().to_string();
    let realm = |url: &str| {
        format!(
            "auth: {{token: {{realm: '{url}/token', service: e2e, issuer: e2e, rootcertbundle: {bundle}}}}}\n"
        )
    };
    let asks = start("asks", realm(&url), false)?;
    let asks_securely = start("asks-securely", realm(&url), true)?;
    let plain = start("plain", auth.clone(), false)?;
    let secure = start("secure", auth.clone(), true)?;
    let ca = format!("ca = {:?}\n", authority.certificate);
    let write = |registry: &Registry, text: String| -> Outcome {
        let files = hosts.join(&registry.host);
        fs::create_dir_all(&files)?;
        Ok(fs::write(files.join("hosts.toml"), text)?)
    };
    for registry in [&downgrades, &asks_securely] {
        write(registry, ca.clone())?;
    }
    // A mirror that has nothing, before the registry itself.
    write(&plain, format!("[host.{url:?}]\n"))?;
    write(&secure, format!("{ca}[host.{url:?}]\n"))?;
    configure(world, Some(&hosts), "").await?;
    let mut texts = Vec::new();
    for (what, registry, refused) in [
        ("a redirect to another host", &redirects, None),
        ("a redirect out of TLS", &downgrades, Some("which would leave TLS")),
        ("a realm elsewhere", &asks, Some("which is another host without TLS")),
        ("a realm out of TLS", &asks_securely, Some("which would leave TLS")),
        ("a mirror", &plain, None),
        ("a mirror without TLS", &secure, None),
    ] {
        match (try_pull(world, &format!("{}/e2e/beside:1", registry.host), Some(alice())).await, refused) {
            (Ok(id), None) => ensure_eq!(id, made.id),
            (Err(status), Some(refused)) => {
                ensure!(status.message().contains(refused), "{what}: {refused:?} is not in {status}");
                texts.push(status.message().to_owned());
            }
            (outcome, refused) => return Err(format!("{what}: {outcome:?}, and not {refused:?}").into()),
        }
        // Else the next one has the layer already.
        remove_all(world).await?;
    }
    let seen = beside.asked();
    ensure!(seen.iter().any(|asked| asked.target.starts_with("/docker/")), "nobody was redirected: {seen:?}");
    ensure!(seen.iter().any(|asked| asked.target.starts_with("/v2/")), "the mirror was not asked: {seen:?}");
    for asked in &seen {
        let text = format!("{}{}{}", asked.target, asked.head, asked.body);
        ensure!(asked.header("authorization").is_none() && asked.header("cookie").is_none(), "{asked:?}");
        ensure!(![PASSWORD, BASIC, "/token"].iter().any(|secret| text.contains(secret)), "{asked:?}");
    }
    keeps_secrets(world, &texts)
}

async fn goes_through_a_proxy_that_sees_none(world: &mut World) -> Outcome {
    let (directory, hosts) = (world.directory.join("behind"), world.directory.join("hosts"));
    let blobs = directory.join("blobs");
    let open = Registry::start(&blobs)?;
    let made = small("behind")?;
    open.push("e2e/behind", "1", &made)?;
    let authority = certificate::self_signed(&directory, "authority", CURVE)?;
    let tls = Some(certificate::signed(&directory, "registry", &authority, "DNS:registry.test", "2")?);
    let registry = Registry::guarded(
        &directory.join("secure"),
        &blobs,
        &Guard { tls, auth: basic(&directory)?, ..Guard::default() },
    )?;
    // Nobody else knows where these are.
    let proxy = Proxy::start(PROXY_BASIC, &[("registry.test:443", &registry.host)])?;
    for name in ["registry.test", "unknown.test"] {
        fs::create_dir_all(hosts.join(name))?;
        fs::write(hosts.join(name).join("hosts.toml"), format!("ca = {:?}\n", authority.certificate))?;
    }
    configure(world, Some(&hosts), "").await?;
    let near = world.registry.push("e2e/near", "2", &small("nearby")?)?;
    let behind = "registry.test/e2e/behind:1";
    let good = format!("http://{PROXY_USER}@{}", proxy.address);
    let wrong = format!("http://pass:word@{}", proxy.address);
    let http = [("HTTP_PROXY", "http://127.0.0.1:1")];
    let of = |url: &str, direct: &str| vec![("HTTPS_PROXY", url.to_owned()), ("NO_PROXY", direct.to_owned())];
    let mut texts = Vec::new();
    for (what, variables, reference, refused) in [
        ("through the proxy", of(&good, "10.0.0.0/8,other.test"), behind, &[][..]),
        (
            "a registry that the proxy does not know",
            of(&good, ""),
            "unknown.test/a:1",
            &["RegistryUnavailable: ", "502", "CONNECT unknown.test:443"],
        ),
        (
            "with wrong credentials",
            of(&wrong, ""),
            behind,
            &["RegistryUnavailable: ", "407", "proxy 127.0.0.1"],
        ),
        ("without the proxy", of(&good, ".test"), behind, &["RegistryUnavailable: ", "registry.test"]),
        (
            "without the proxy, by its port",
            of(&good, "registry.test:443"),
            behind,
            &["RegistryUnavailable: "],
        ),
        ("a value that is none", of("socks5://pass:word@proxy", ""), behind, &["HTTPS_PROXY"]),
    ] {
        world.daemon.take().ok_or("no daemon")?.stop()?;
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).chain(http).collect();
        world.resume(&variables).await?;
        let before = proxy.asked().len();
        match try_pull(world, reference, Some(alice())).await {
            Ok(id) => ensure!(refused.is_empty() && id == made.id, "{what}: pulled"),
            Err(status) => {
                ensure!(!refused.is_empty(), "{what}: {status}");
                for part in refused {
                    ensure!(status.message().contains(part), "{what}: {part:?} is not in {status}");
                }
                texts.push(status.message().to_owned());
            }
        }
        let is_asked = proxy.asked().len() > before;
        ensure!(
            is_asked != (what.starts_with("without") || what.starts_with("a value")),
            "{what}: asked: {is_asked}"
        );
        // This machine is asked itself, whatever the variables say.
        try_pull(world, &near, None).await?;
        remove_all(world).await?;
    }
    saw_no_secret(&proxy)?;
    hides_the_proxy(world, &texts)?;
    keeps_secrets(world, &texts)
}

/// It was asked for tunnels, and through them went TLS.
fn saw_no_secret(proxy: &Proxy) -> Outcome {
    for asked in proxy.asked() {
        ensure!(asked.method == "CONNECT" && asked.target.ends_with(".test:443"), "{asked:?}");
        ensure_eq!(asked.header("host"), Some(&*asked.target));
        ensure!(asked.header("authorization").is_none() && !asked.head.contains(BASIC), "{asked:?}");
    }
    let sent = proxy.sent();
    // A record of TLS, a handshake (RFC 8446, section 5.1).
    ensure!(!sent.is_empty() && sent.iter().all(|bytes| bytes.first() == Some(&22)), "no TLS went through");
    for secret in [PASSWORD, BASIC, "authorization", "cEB4eTpwYXNzOndvcmQ"] {
        let is_in = |bytes: &Vec<u8>| {
            bytes.windows(secret.len()).any(|part| part.eq_ignore_ascii_case(secret.as_bytes()))
        };
        ensure!(!sent.iter().any(is_in), "{secret:?} went through in clear");
    }
    Ok(())
}

/// What lets the daemon in is in no error and in no log.
fn hides_the_proxy(world: &World, texts: &[String]) -> Outcome {
    let log = fs::read_to_string(world.place.as_ref().ok_or("no place")?.log())?;
    for text in texts.iter().chain([&log]) {
        let shown = ["pass%3Aword", "pass:word", "cEB4eTpwYXNzOndvcmQ"]
            .into_iter()
            .find(|secret| text.contains(secret));
        ensure!(shown.is_none(), "{shown:?} is shown: {:.2000}", text);
    }
    Ok(())
}

async fn mends_with_them_what_is_of_their_registry(world: &mut World) -> Outcome {
    let directory = world.directory.join("mends");
    let blobs = directory.join("blobs");
    let open = Registry::start(&blobs)?;
    let made = small("mended")?;
    open.push("e2e/mended", "1", &made)?;
    let guard = Guard { auth: basic(&directory)?, ..Guard::default() };
    let registry = Registry::guarded(&directory.join("basic"), &blobs, &guard)?;
    let password = format!("{PASSWORD}\n");
    let asks = ["--username", "alice", "--password-stdin"];
    let reference = format!("{}/e2e/mended:1", registry.host);
    works(world, &[&["pull", &reference][..], &asks].concat(), password.as_bytes())?;

    let layers = world.place.as_ref().ok_or("no place")?.root.join("images/layers");
    let text = |entry: std::io::Result<fs::DirEntry>| Some(entry.ok()?.path().join("fs/text"));
    let file =
        fs::read_dir(layers)?.filter_map(text).find(|file| file.is_file()).ok_or("no layer has the file")?;
    fs::write(&file, "cut off")?;
    let repair = ["check", "--repair"];
    let elsewhere = open.host.as_str();
    for (arguments, expected) in [
        (repair.to_vec(), "answered 401"),
        ([&repair[..], &asks].concat(), "--registry"),
        ([&repair[..], &["--registry", elsewhere], &asks].concat(), "answered 401"),
        (["check", "--registry", elsewhere].to_vec(), "--repair"),
    ] {
        let output = run(world, &arguments, password.as_bytes())?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && text.contains(expected),
            "{arguments:?}: {expected:?} is not in {text}"
        );
        ensure!(!text.contains(PASSWORD), "{arguments:?}: {text}");
        ensure_eq!(fs::read(&file)?, b"cut off");
    }
    let arguments = [&repair[..], &["--registry", &registry.host], &asks].concat();
    works(world, &arguments, password.as_bytes())?;
    ensure_eq!(fs::read(&file)?, b"mended");
    works(world, &["rm", &reference], b"")?;
    keeps_secrets(world, &[])
}
