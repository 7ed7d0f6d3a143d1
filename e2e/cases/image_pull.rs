//! Pulls from registries that want credentials, that speak TLS, that are slow, busy or hostile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cove_e2e::certificate::{self, CURVE, Certificate};
use cove_e2e::image::{self, Layer};
use cove_e2e::process::Peak;
use cove_e2e::registry::{Guard, Registry};
use cove_e2e::server::{Answer, Asked, Server};
use cove_e2e::token::Tokens;
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;
use serde_json::json;
use tonic::Code;

use crate::ensure::Refused;
use crate::world::{End, SOON, World};

cases!(
    takes_every_kind_of_credentials,
    keeps_credentials_from_everybody_else,
    believes_only_whom_it_should,
    bounds_a_registry_that_hangs,
    takes_up_a_broken_connection,
    waits_for_a_busy_registry_within_bounds,
    holds_documents_in_bounds_of_memory,
    goes_by_the_proxy_of_the_environment,
);

/// `alice:secret-of-alice` as bcrypt has it, and as a header has it.
pub(crate) const USERS: &str = "alice:$2b$04$oSco2iwIDC/gdw59pNX7UO/vYtodYnRyOMktvTm3Rk.01ELXiG1yW\n";
pub(crate) const BASIC: &str = "YWxpY2U6c2VjcmV0LW9mLWFsaWNl";
pub(crate) const PASSWORD: &str = "secret-of-alice";
const REFRESH: &str = "secret-refresh-token";

pub(crate) async fn try_pull(
    world: &World,
    reference: &str,
    auth: Option<AuthConfig>,
) -> Result<String, tonic::Status> {
    let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
    let request = PullImageRequest { image, auth, ..Default::default() };
    Ok(world.cri.clone().images.pull_image(request).await?.into_inner().image_ref)
}

pub(crate) fn alice() -> AuthConfig {
    AuthConfig { username: "alice".into(), password: PASSWORD.into(), ..Default::default() }
}

pub(crate) fn small(text: &str) -> Outcome<image::Image> {
    image::build(vec![Layer::new().file("text", 0o644, text)], json!({}))
}

/// The daemon starts again with other choices of its administrator.
pub(crate) async fn configure(world: &mut World, hosts: Option<&Path>, images: &str) -> Outcome {
    let place = world.place.as_mut().ok_or("a case that configures needs a daemon of its own")?;
    place.hosts = hosts.map(Path::to_owned);
    place.images = images.to_owned();
    world.restart(End::Term).await
}

/// Fails if what a pull must not show is in the daemon's log or in one of these texts.
pub(crate) fn keeps_secrets(world: &World, texts: &[String]) -> Outcome {
    let log = fs::read_to_string(world.place.as_ref().ok_or("no log")?.log())?;
    for text in texts.iter().chain([&log]) {
        for secret in [PASSWORD, BASIC, REFRESH, "eyJ0eXAi", "eyJhbGci"] {
            ensure!(!text.contains(secret), "{secret:?} is shown: {}", &text[..text.len().min(2000)]);
        }
    }
    Ok(())
}

async fn takes_every_kind_of_credentials(world: &mut World) -> Outcome {
    let directory = world.directory.join("auth");
    let blobs = directory.join("blobs");
    let open = Registry::start(&blobs)?;
    let made = small("private")?;
    open.push("e2e/private", "1", &made)?;
    fs::write(directory.join("users"), USERS)?;
    let auth = format!("auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n", directory.join("users").display());
    let basic = Registry::guarded(&directory.join("basic"), &blobs, &Guard { auth, ..Guard::default() })?;
    let tokens = Tokens::start(&directory, &format!("Basic {BASIC}"), REFRESH)?;
    let guard = Guard { auth: tokens.auth(), ..Guard::default() };
    let token = Registry::guarded(&directory.join("token"), &blobs, &guard)?;

    let with = |set: &dyn Fn(&mut AuthConfig)| {
        let mut auth = AuthConfig::default();
        set(&mut auth);
        Some(auth)
    };
    let wrong = || Some(AuthConfig { password: format!("{PASSWORD}-wrong"), ..alice() });
    let identity = |token: String| with(&|auth| auth.identity_token.clone_from(&token));
    let direct = tokens.token("e2e/private")?;
    let other = tokens.token("e2e/other")?;
    let table = [
        (&basic, Some(alice()), true),
        (&basic, with(&|auth| auth.auth = BASIC.into()), true),
        (&basic, Some(AuthConfig { server_address: format!("http://{}", basic.host), ..alice() }), true),
        (&basic, Some(AuthConfig { server_address: "https://elsewhere.io".into(), ..alice() }), false),
        (&basic, wrong(), false),
        (&basic, None, false),
        (&basic, identity(REFRESH.into()), false),
        (&token, Some(alice()), true),
        (&token, identity(REFRESH.into()), true),
        (&token, with(&|auth| auth.registry_token.clone_from(&direct)), true),
        (&token, with(&|auth| auth.registry_token.clone_from(&other)), false),
        (&token, identity(format!("{REFRESH}-wrong")), false),
        (&token, wrong(), false),
        (&token, None, false),
    ];
    let mut texts = Vec::new();
    for (n, (registry, auth, is_let_in)) in table.into_iter().enumerate() {
        match try_pull(world, &format!("{}/e2e/private:1", registry.host), auth).await {
            Ok(id) => ensure!(is_let_in && id == made.id, "number {n} was let in"),
            Err(status) => {
                ensure!(!is_let_in && status.code() == Code::Unauthenticated, "number {n}: {status}");
                texts.push(status.message().to_owned());
            }
        }
    }
    keeps_secrets(world, &texts)
}

/// What a registry of one image answers; `None`: it has not this.
fn content(image: &image::Image, target: &str) -> Option<(Vec<String>, Vec<u8>)> {
    let name = target.rsplit('/').next()?;
    if target.contains("/manifests/") {
        return Some((vec![format!("content-type: {}", image::MANIFEST)], image.manifest.bytes.clone()));
    }
    let blob = image.blobs.iter().find(|blob| blob.digest == name)?;
    Some((Vec::new(), blob.bytes.clone()))
}

pub(crate) fn whole(image: &image::Image, asked: &Asked) -> Answer {
    match content(image, &asked.target) {
        Some((headers, bytes)) => Answer::Whole(200, headers, bytes),
        None => Answer::Whole(404, Vec::new(), Vec::new()),
    }
}

async fn keeps_credentials_from_everybody_else(world: &mut World) -> Outcome {
    let made = small("redirected")?;
    let mut listed: serde_json::Value = serde_json::from_slice(&made.manifest.bytes)?;
    let other = {
        let made = made.clone();
        move |asked: &Asked| whole(&made, asked)
    };
    let elsewhere = [Server::start("127.0.0.2", other.clone())?, Server::start("127.0.0.1", other)?];
    let urls = elsewhere.each_ref().map(|server| format!("http://{}", server.address));
    listed["layers"][0]["urls"] = json!([format!("{}/foreign", urls[0])]);
    let foreign = image::Image { manifest: image::Blob::new(serde_json::to_vec(&listed)?), ..made.clone() };
    let answer = {
        let urls = urls.clone();
        move |asked: &Asked| {
            if asked.header("authorization") != Some(&format!("Basic {BASIC}")) {
                let realm = match asked.target.split('/').nth(2) {
                    Some("realm") => format!("Bearer realm=\"{}/token\",service=\"x\"", urls[0]),
                    Some("scheme") => "Bearer realm=\"ftp://127.0.0.1/token\",service=\"x\"".to_owned(),
                    _ => "Basic realm=\"x\"".to_owned(),
                };
                let headers = vec![format!("www-authenticate: {realm}"), "set-cookie: secret=1".to_owned()];
                return Answer::Whole(401, headers, Vec::new());
            }
            let is_blob = asked.target.contains("/blobs/");
            match asked.target.split('/').nth(2) {
                Some("host") if is_blob => redirect(&urls[0], &asked.target),
                Some("port") if is_blob => redirect(&urls[1], &asked.target),
                Some("manifest") if !is_blob => redirect(&urls[0], &asked.target),
                Some("foreign") => whole(&foreign, asked),
                _ => whole(&made, asked),
            }
        }
    };
    let registry = Server::start("127.0.0.1", answer)?;
    let mut texts = Vec::new();
    for (name, is_pulled) in [
        ("host", true),
        ("port", true),
        ("manifest", true),
        ("foreign", true),
        ("realm", false),
        ("scheme", false),
    ] {
        match try_pull(world, &format!("{}/{name}:1", registry.address), Some(alice())).await {
            Ok(_) => ensure!(is_pulled, "{name} is pulled"),
            Err(status) => {
                ensure!(!is_pulled, "{name}: {status}");
                texts.push(status.message().to_owned());
            }
        }
        // Else the next one has the layer already.
        remove_all(world).await?;
    }
    let seen: Vec<Asked> = elsewhere.iter().flat_map(Server::asked).collect();
    ensure!(seen.len() >= 3, "{seen:?}");
    for asked in seen {
        let credentials = asked.header("authorization").or(asked.header("cookie"));
        ensure!(credentials.is_none() && !asked.target.contains("foreign"), "{asked:?}");
        ensure!(!asked.target.contains("token"), "{asked:?}");
    }
    keeps_secrets(world, &texts)
}

fn redirect(to: &str, target: &str) -> Answer {
    Answer::Whole(307, vec![format!("location: {to}{target}")], Vec::new())
}

/// Removes every image, and waits until their layers are gone.
pub(crate) async fn remove_all(world: &World) -> Outcome {
    let mut images = world.cri.clone().images;
    for image in images.list_images(ListImagesRequest { filter: None }).await?.into_inner().images {
        let image = Some(ImageSpec { image: image.id, ..Default::default() });
        images.remove_image(RemoveImageRequest { image }).await?;
    }
    let layers = store(world)?.join("layers");
    wait::until("all layers to be gone", SOON, || Ok((fs::read_dir(&layers)?.count() == 0).then_some(())))
}

fn store(world: &World) -> Outcome<PathBuf> {
    Ok(world.place.as_ref().ok_or("no place")?.root.join("images"))
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn believes_only_whom_it_should(world: &mut World) -> Outcome {
    let directory = world.directory.join("tls");
    let (blobs, hosts) = (directory.join("blobs"), world.directory.join("hosts"));
    let open = Registry::start(&blobs)?;
    let made = small("by TLS")?;
    open.push("e2e/tls", "1", &made)?;
    let authority = certificate::self_signed(&directory, "authority", CURVE)?;
    let address = "IP:127.0.0.1";
    let good = certificate::signed(&directory, "good", &authority, address, "2")?;
    let wrong = certificate::signed(&directory, "wrong", &authority, "DNS:other.example", "2")?;
    let expired = certificate::signed(&directory, "expired", &authority, address, "-1")?;
    let own = certificate::self_signed(&directory, "own", CURVE)?;
    let client = certificate::signed(&directory, "client", &authority, "DNS:node", "2")?;
    let start = |name: &str, tls: &Certificate, clients: Option<PathBuf>| {
        let guard = Guard { tls: Some(tls.clone()), clients, ..Guard::default() };
        Registry::guarded(&directory.join(name), &blobs, &guard)
    };
    let [good, wrong, expired, of_own] =
        [("1", &good), ("2", &wrong), ("3", &expired), ("4", &own)].map(|(name, tls)| start(name, tls, None));
    let (good, wrong, expired, of_own) = (good?, wrong?, expired?, of_own?);
    let closed = start(
        "5",
        &certificate::signed(&directory, "closed", &authority, address, "2")?,
        Some(authority.certificate.clone()),
    )?;
    configure(world, Some(&hosts), "").await?;

    let ca = format!("ca = {:?}\n", authority.certificate);
    let table: [(&Registry, String, Option<&str>); 10] = [
        (&good, ca.clone(), None),
        (&good, "server = 'HOST'\n".into(), Some("self-signed, or of an authority")),
        (&wrong, ca.clone(), Some("for another name")),
        (&wrong, "skip_verify = true\n".into(), None),
        (&expired, ca.clone(), Some("has expired")),
        (&of_own, "server = 'HOST'\n".into(), Some("self-signed, or of an authority")),
        (&of_own, format!("ca = {:?}\n", own.certificate), None),
        (&open, "server = 'HOST'\n".into(), Some("not TLS")),
        (&closed, ca.clone(), Some("RegistryUnavailable: ")),
        (&closed, format!("{ca}client = [[{:?}, {:?}]]\n", client.certificate, client.key), None),
    ];
    for (registry, text, expected) in table {
        let files = hosts.join(&registry.host);
        fs::create_dir_all(&files)?;
        fs::write(files.join("hosts.toml"), text.replace("HOST", &format!("https://{}", registry.host)))?;
        expect(world, &registry.host, &text, expected).await?;
    }
    // Docker's directories.
    let files = hosts.join(&good.host);
    fs::remove_file(files.join("hosts.toml"))?;
    fs::copy(&authority.certificate, files.join("ca.crt"))?;
    expect(world, &good.host, "ca.crt", None).await?;
    let files = hosts.join(&closed.host);
    fs::remove_file(files.join("hosts.toml"))?;
    fs::copy(&authority.certificate, files.join("ca.crt"))?;
    fs::copy(&client.certificate, files.join("client.cert"))?;
    fs::copy(&client.key, files.join("client.key"))?;
    expect(world, &closed.host, "client.cert", None).await?;
    refuses_old_versions(world, &hosts, &own).await
}

/// Nothing below TLS 1.2.
async fn refuses_old_versions(world: &World, hosts: &Path, own: &Certificate) -> Outcome {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (key, certificate) = (own.key.display().to_string(), own.certificate.display().to_string());
    let old = Command::new("openssl")
        .args([
            "s_server",
            "-quiet",
            "-tls1_1",
            "-cipher",
            "ALL:@SECLEVEL=0",
            "-key",
            &key,
            "-cert",
            &certificate,
        ])
        .args(["-accept", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let _old = Process(old);
    let host = format!("127.0.0.1:{port}");
    wait::until("openssl to listen", SOON, || Ok(std::net::TcpStream::connect(&host).ok().map(drop)))?;
    fs::create_dir_all(hosts.join(&host))?;
    fs::write(hosts.join(&host).join("hosts.toml"), format!("ca = {certificate:?}\n"))?;
    expect(world, &host, "TLS 1.1", Some("TLS from 1.2 on")).await
}

async fn expect(world: &World, host: &str, setting: &str, expected: Option<&str>) -> Outcome {
    match (try_pull(world, &format!("{host}/e2e/tls:1"), None).await, expected) {
        (Ok(_), None) => Ok(()),
        (Err(status), Some(expected)) => {
            ensure!(status.message().contains(expected), "{setting}: {expected:?} is not in {status}");
            ensure!(status.code() == Code::Unknown, "{setting}: {status}");
            Ok(())
        }
        (Ok(_), Some(expected)) => Err(format!("{setting}: pulled, and not {expected:?}").into()),
        (Err(status), None) => Err(format!("{setting}: {status}").into()),
    }
}

async fn bounds_a_registry_that_hangs(world: &mut World) -> Outcome {
    configure(world, None, "progress_seconds = 2\n").await?;
    let made = image::build(vec![Layer::new().file("big", 0o644, random(1 << 20))], json!({}))?;
    let of_server = made.clone();
    let server = Server::start("127.0.0.1", move |asked| match asked.target.split('/').nth(2) {
        Some("silent") => Answer::Hang(0, Vec::new()),
        Some("half") if asked.target.ends_with(&of_server.blobs[0].digest) => {
            let bytes = &of_server.blobs[0].bytes;
            Answer::Hang(bytes.len(), bytes[..bytes.len() / 2].to_vec())
        }
        Some("slow") if asked.target.ends_with(&of_server.blobs[0].digest) => {
            Answer::Slow(of_server.blobs[0].bytes.clone())
        }
        _ => whole(&of_server, asked),
    })?;
    for (name, text) in [("silent", "no answer in 2s"), ("half", "no byte in 2s")] {
        let began = Instant::now();
        let reference = format!("{}/{name}:1", server.address);
        let hung = try_pull(world, &reference, None);
        let others = async {
            for n in 0..10 {
                let reference = world.registry.push(
                    "e2e/beside",
                    &format!("{name}{n}"),
                    &small(&format!("{name}{n}"))?,
                )?;
                try_pull(world, &reference, None).await?;
            }
            Outcome::Ok(())
        };
        let (hung, others) = tokio::join!(hung, others);
        others?;
        let status = hung.refused()?;
        ensure!(
            status.code() == Code::Unknown && status.message().starts_with("RegistryUnavailable: "),
            "{status}"
        );
        for part in [text, "images.progress_seconds"] {
            ensure!(status.message().contains(part), "{part:?} is not in {status}");
        }
        ensure!(began.elapsed() < Duration::from_secs(12), "took {:?}", began.elapsed());
    }
    // A slow one goes on, until nobody waits for it.
    let began = Instant::now();
    let reference = format!("{}/slow:1", server.address);
    let limit = Duration::from_secs(4);
    ensure!(
        tokio::time::timeout(limit, try_pull(world, &reference, None)).await.is_err(),
        "a slow pull has ended"
    );
    let rooms = store(world)?.join("tmp");
    wait::until("a pull that nobody waits for to end", SOON, || {
        Ok((fs::read_dir(&rooms)?.count() == 0).then_some(()))
    })?;
    ensure!(began.elapsed() < limit + Duration::from_secs(5), "took {:?}", began.elapsed());
    Ok(())
}

/// Bytes that do not shrink.
pub(crate) fn random(count: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

async fn takes_up_a_broken_connection(world: &mut World) -> Outcome {
    let made = image::build(vec![Layer::new().file("big", 0o644, random(4 << 20))], json!({}))?;
    let blob = made.blobs[0].bytes.clone();
    let half = blob.len() / 2;
    let (of_server, digest) = (made.clone(), made.blobs[0].digest.clone());
    let server = Server::start("127.0.0.1", move |asked| {
        if !asked.target.ends_with(&digest) {
            return whole(&of_server, asked);
        }
        match asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            Some((first, _)) if !asked.target.contains("/deaf/") => {
                let first: usize = first.parse().unwrap_or(0);
                let total = blob.len();
                let mut rest = blob[first..].to_vec();
                if asked.target.contains("/torn/") {
                    rest[100] ^= 1;
                }
                Answer::Whole(206, vec![format!("content-range: bytes {first}-{}/{total}", total - 1)], rest)
            }
            Some(_) => Answer::Whole(200, Vec::new(), blob.clone()),
            None => Answer::Short(Vec::new(), blob.len(), blob[..half].to_vec()),
        }
    })?;
    let status = try_pull(world, &format!("{}/torn:1", server.address), None).await.refused()?;
    ensure!(
        status.message().contains("its digest is"),
        "what two connections sent is verified as one: {status}"
    );
    for name in ["ranges", "deaf"] {
        let id = try_pull(world, &format!("{}/{name}:1", server.address), None).await?;
        ensure_eq!(id, made.id);
        let asked = server.asked();
        let ranges: Vec<_> = asked
            .iter()
            .filter(|asked| asked.target.contains(&format!("/{name}/blobs/")))
            .filter_map(|asked| asked.header("range"))
            .collect();
        ensure_eq!(ranges, [format!("bytes={half}-{}", made.blobs[0].bytes.len() - 1)]);
        remove_all(world).await?;
    }
    Ok(())
}

async fn waits_for_a_busy_registry_within_bounds(world: &mut World) -> Outcome {
    configure(world, None, "max_wait_seconds = 5\n").await?;
    let made = small("busy")?;
    let (of_server, refusals) = (made.clone(), AtomicUsize::new(0));
    let server = Server::start("127.0.0.1", move |asked| {
        let busy =
            |status, after: &str| Answer::Whole(status, vec![format!("retry-after: {after}")], Vec::new());
        match asked.target.split('/').nth(2) {
            Some("long") => busy(429, "6"),
            Some("down") => busy(503, "0"),
            Some("storm") if refusals.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) => busy(429, "1"),
            _ => whole(&of_server, asked),
        }
    })?;
    ensure_eq!(try_pull(world, &format!("{}/storm:1", server.address), None).await?, made.id);
    let status = try_pull(world, &format!("{}/long:1", server.address), None).await.refused()?;
    for part in ["RegistryUnavailable: ", "429", "6 s", "images.max_wait_seconds = 5"] {
        ensure!(status.message().contains(part), "{part:?} is not in {status}");
    }
    let status = try_pull(world, &format!("{}/down:1", server.address), None).await.refused()?;
    ensure!(status.code() == Code::Unknown && status.message().contains("503"), "{status}");
    let asked = server.asked().iter().filter(|asked| asked.target.contains("/down/")).count();
    ensure!((5..=10).contains(&asked), "asked {asked} times");
    Ok(())
}

async fn holds_documents_in_bounds_of_memory(world: &mut World) -> Outcome {
    let made = small("bounded")?;
    let manifest =
        |body: &str| Answer::Whole(200, vec![format!("content-type: {}", image::MANIFEST)], body.into());
    let server = Server::start("127.0.0.1", move |asked| {
        let typed = vec![format!("content-type: {}", image::MANIFEST)];
        match asked.target.split('/').nth(2) {
            Some("endless") => Answer::Endless(typed, vec![b' '; 1 << 20]),
            Some("declared") => Answer::Short(typed, 1 << 30, vec![b' '; 1 << 10]),
            Some("deep") => manifest(&format!("{{\"schemaVersion\":2,\"x\":{}", "[".repeat(1_000_000))),
            Some("keys") => {
                let keys: String = (0..300_000).map(|n| format!("\"{n}\":0,")).collect();
                manifest(&format!("{{{keys}\"schemaVersion\":2}}"))
            }
            Some("old") => manifest("{\"schemaVersion\":1,\"fsLayers\":[]}"),
            Some("zipped") => Answer::Whole(200, vec!["content-encoding: gzip".into()], vec![0; 100]),
            _ => whole(&made, asked),
        }
    })?;
    let pid = world.daemon.as_ref().ok_or("no daemon")?.pid();
    for (name, expected) in [
        ("endless", "image_limits.document_bytes = 4194304"),
        ("declared", "image_limits.document_bytes = 4194304"),
        ("deep", "is no manifest"),
        ("keys", "lacks config"),
        ("old", "Docker's schema 1"),
        ("zipped", "Content-Encoding"),
    ] {
        let peak = Peak::from_now(pid)?;
        let status = try_pull(world, &format!("{}/{name}:1", server.address), None).await.refused()?;
        ensure!(status.message().contains(expected), "{expected:?} is not in {status}");
        let grown = peak.grown()?;
        ensure!(grown <= 32 * 1024, "{name}: the daemon grew by {grown} KiB");
    }
    Ok(())
}

async fn goes_by_the_proxy_of_the_environment(world: &mut World) -> Outcome {
    let made = small("by proxy")?;
    let of_server = made.clone();
    let proxy = Server::start("127.0.0.1", move |asked| whole(&of_server, asked))?;
    let hosts = world.directory.join("hosts");
    fs::create_dir_all(hosts.join("registry.test"))?;
    fs::write(hosts.join("registry.test/hosts.toml"), "server = 'http://registry.test'\n")?;
    configure(world, Some(&hosts), "").await?;
    world.daemon.take().ok_or("no daemon")?.stop()?;
    let url = format!("http://alice:{PASSWORD}@{}", proxy.address);
    world.resume(&[("HTTP_PROXY", &url), ("NO_PROXY", "10.0.0.0/8")]).await?;
    ensure_eq!(try_pull(world, "registry.test/e2e/far:1", None).await?, made.id);
    let seen = proxy.asked();
    ensure!(seen.len() >= 3, "{seen:?}");
    for asked in &seen {
        ensure!(asked.target.starts_with("http://registry.test/v2/e2e/far/"), "{asked:?}");
        ensure_eq!(asked.header("proxy-authorization"), Some(&*format!("Basic {BASIC}")));
    }
    // This machine is asked itself.
    let reference = world.registry.push("e2e/near", "1", &small("near")?)?;
    try_pull(world, &reference, None).await?;
    ensure_eq!(proxy.asked().len(), seen.len());
    keeps_secrets(world, &[])
}
