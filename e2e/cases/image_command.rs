//! `cove image` beside a running daemon and without one: archives of both forms, whole and hostile, lists and progress.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cove_e2e::archive::{self, Member};
use cove_e2e::daemon::Place;
use cove_e2e::image::{self, Layer};
use cove_e2e::random::Random;
use cove_e2e::relay::Relay;
use cove_e2e::server::{Answer, Asked, Server};
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;
use serde_json::json;

use crate::world::{SOON, World};

cases!(
    imports_archives_of_every_form,
    runs_what_was_imported_at_once,
    sends_no_layer_that_is_there,
    imports_what_skopeo_writes,
    refuses_hostile_archives,
    imports_where_no_daemon_runs,
    pulls_lists_and_removes,
    shows_the_pulls_of_a_kubelet,
    draws_bars_on_a_terminal,
    checks_the_store_and_mends_it,
    exports_what_others_and_it_read,
    exports_nothing_that_is_damaged,
);

/// The name that a layout gives its image.
fn named(name: &str) -> serde_json::Value {
    json!({"org.opencontainers.image.ref.name": name})
}

/// Bytes that do not become fewer by compression.
fn noise(count: usize) -> Vec<u8> {
    let mut random = Random::new(1);
    (0..count).map(|_| random.below(256).to_le_bytes()[0]).collect()
}

/// A small layer, and one that can be no document.
pub(crate) fn two_layers(text: &str) -> Outcome<image::Image> {
    let layers =
        vec![Layer::new().file("text", 0o644, text), Layer::new().file("big", 0o644, noise(5 << 20))];
    image::build(layers, json!({"Cmd": ["/text"]}))
}

/// The command of the daemon under test.
fn command(world: &World, arguments: &[&str]) -> Outcome<Command> {
    let place = world.place.as_ref().ok_or("the command needs a daemon of the case's own")?;
    let mut command = Command::new(place.programs.join("cove"));
    command.arg("--config").arg(place.config_file());
    // `check` stands beside `image`, since it may look at more one day.
    let is_of_image = arguments.first() != Some(&"check");
    command.args(is_of_image.then_some("image")).args(arguments);
    Ok(command)
}

pub(crate) fn run(world: &World, arguments: &[&str], input: &[u8]) -> Outcome<Output> {
    let mut child = command(world, arguments)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    let input = input.to_vec();
    // A command that refuses does not read to the end.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| "the writer panicked")?;
    Ok(output)
}

/// Standard output and standard error of a command that works.
pub(crate) fn works(world: &World, arguments: &[&str], input: &[u8]) -> Outcome<(String, String)> {
    let output = run(world, arguments, input)?;
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{arguments:?}: {}: {err}", output.status);
    Ok((out, err))
}

pub(crate) async fn list(world: &mut World) -> Outcome<Vec<Image>> {
    Ok(world.cri.images.list_images(ListImagesRequest { filter: None }).await?.into_inner().images)
}

pub(crate) async fn find(world: &mut World, name: &str) -> Outcome<Option<Image>> {
    let spec = ImageSpec { image: name.into(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(spec), verbose: false };
    Ok(world.cri.images.image_status(request).await?.into_inner().image)
}

/// Nothing half-done is in the store.
pub(crate) fn is_tidy(world: &World) -> Outcome {
    let root = world.place.as_ref().ok_or("no place")?.root.join("images");
    wait::until("the store to be tidy", SOON, || {
        let count = |name: &str| Ok::<_, std::io::Error>(fs::read_dir(root.join(name))?.count());
        Ok((count("tmp")? == 0 && count("trash")? == 0).then_some(()))
    })
}

async fn imports_archives_of_every_form(world: &mut World) -> Outcome {
    let directory = world.directory.join("layout");
    let file = world.directory.join("file.tar");
    let made = two_layers("every form")?;
    let one = archive::layout(&made, &named("r.io/layout:1"))?;
    archive::unpack(&one, &directory)?;
    fs::write(
        &file,
        archive::gzip(&archive::tar(&archive::saved(&[(&made, &["saved:1", "r.io/saved:2"])])?))?,
    )?;
    let reversed: Vec<Member> =
        archive::layout(&made, &json!({"io.containerd.image.name": "docker.io/library/stream:1"}))?
            .into_iter()
            .rev()
            .collect();
    let ways: [(&str, &[u8], &[&str]); 3] = [
        (directory.to_str().ok_or("a path")?, b"", &["r.io/layout:1"]),
        (file.to_str().ok_or("a path")?, b"", &["docker.io/library/saved:1", "r.io/saved:2"]),
        ("-", &archive::tar(&reversed), &["docker.io/library/stream:1"]),
    ];
    for (source, input, names) in ways {
        let before = list(world).await?.len();
        let (out, err) = works(world, &["import", source], input)?;
        ensure!(out.starts_with(&made.id) && names.iter().all(|name| out.contains(name)), "{source}: {out}");
        ensure!(err.contains(", done\n") && !err.contains('\u{1b}'), "lines, not bars: {err}");
        ensure_eq!(list(world).await?.len(), before + 1);
        for name in names {
            let found = find(world, name).await?.ok_or(format!("{name} is not there"))?;
            ensure_eq!(found.id, made.id);
            ensure!(!found.pinned, "{name} is pinned");
        }
        // Again: nothing of it is needed.
        let (_, err) = works(world, &["import", "--pinned", source], input)?;
        ensure!(!err.contains("done"), "a layer that is there was unpacked again: {err}");
        ensure!(find(world, names[0]).await?.ok_or("gone")?.pinned, "{source}: not pinned");
        works(world, &["rm", names[0]], b"")?;
        ensure_eq!(list(world).await?.len(), before);
        is_tidy(world)?;
    }
    Ok(())
}

async fn runs_what_was_imported_at_once(world: &mut World) -> Outcome {
    let layers = vec![image::busybox()?, Layer::new().file("said", 0o644, "imported\n")];
    let made = image::build(layers, json!({"Env": ["PATH=/bin"]}))?;
    let bytes = archive::tar(&archive::saved(&[(&made, &["imported/app:1"])])?);
    works(world, &["import", "-"], &bytes)?;
    let pod = world.pod("imported");
    let sandbox = world.run_pod(&pod).await?;
    let config = cove_e2e::pod::container("c", "docker.io/imported/app:1", &["cat", "/said"]);
    let (status, text) = world.output(&sandbox, &pod, &config).await?;
    ensure_eq!((status.exit_code, text.as_str()), (0, "imported\n"));
    Ok(())
}

/// A directory and a plain tar in a file: no more than the documents travels of what the daemon has.
async fn sends_no_layer_that_is_there(world: &mut World) -> Outcome {
    let place = world.place.as_ref().ok_or("no place")?;
    let relay = Relay::start(world.directory.join("relay.sock"), &place.socket())?;
    let config = world.directory.join("relayed.toml");
    fs::write(&config, format!("listen = [\"unix://{}\"]\n{}", relay.socket.display(), place.config()))?;
    let cove = place.programs.join("cove");
    let import = |source: &Path| {
        let mut command = Command::new(&cove);
        let output = command.arg("--config").arg(&config).args(["image", "import"]).arg(source).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Outcome::Ok((relay.taken().0, String::from_utf8(output.stderr)?))
    };
    let is_again = |sent: u64, told: &str| {
        ensure!(sent < 20_000, "{sent} bytes were sent again");
        ensure!(told.contains(", not needed") && !told.contains("done"), "{told}");
        Outcome::Ok(())
    };
    for form in ["layout", "layout.tar", "saved.tar"] {
        let layers = vec![Layer::new().file(&format!("big-{form}"), 0o644, noise(5 << 20))];
        let made = image::build(layers, json!({}))?;
        let name = format!("r.io/{form}:1");
        let path = world.directory.join(form);
        match form {
            "layout" => archive::unpack(&archive::layout(&made, &named(&name))?, &path)?,
            "layout.tar" => fs::write(&path, archive::tar(&archive::layout(&made, &named(&name))?))?,
            _ => fs::write(&path, archive::tar(&archive::saved(&[(&made, &[name.as_str()])])?))?,
        }
        let (sent, told) = import(&path)?;
        ensure!(sent > 5 << 20 && told.contains(", done"), "{form}: {sent} bytes: {told}");
        let (sent, told) = import(&path)?;
        is_again(sent, &told)?;
        // An image of these layers and a further one.
        let changed = image::build_on(&made, vec![Layer::new().file("top", 0o644, form)], json!({}))?;
        let path = world.directory.join(format!("changed-{form}"));
        archive::unpack(&archive::layout(&changed, &named("r.io/changed:1"))?, &path)?;
        let (sent, told) = import(&path)?;
        ensure!(sent < 20_000 && told.contains(", done") && told.contains(", not needed"), "{sent}: {told}");
        is_tidy(world)?;
    }
    Ok(())
}

/// Debian's skopeo, which hack/deps installs: its own idea of both forms, and of what is first.
async fn imports_what_skopeo_writes(world: &mut World) -> Outcome {
    let made = two_layers("skopeo")?;
    let source = world.registry.push("e2e/skopeo", "1", &made)?;
    let path = |name: &str| world.directory.join(name).to_string_lossy().into_owned();
    let forms = [
        (
            "oci-archive",
            format!("{}:r.io/oci-archive:1", path("oci.tar")),
            path("oci.tar"),
            "r.io/oci-archive:1",
        ),
        ("oci", format!("{}:r.io/oci:1", path("oci")), path("oci"), "r.io/oci:1"),
        (
            "docker-archive",
            format!("{}:r.io/docker-archive:1", path("docker.tar")),
            path("docker.tar"),
            "r.io/docker-archive:1",
        ),
    ];
    for (transport, target, source_path, name) in forms {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
            .arg(format!("docker://{source}"))
            .arg(format!("{transport}:{target}"))
            .output()?;
        ensure!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        works(world, &["import", &source_path], b"")?;
        let found = find(world, name).await?.ok_or(format!("{name} is not there"))?;
        ensure!(transport == "docker-archive" || found.id == made.id, "{transport} gives {}", found.id);
        works(world, &["rm", name], b"")?;
    }
    is_tidy(world)
}

async fn refuses_hostile_archives(world: &mut World) -> Outcome {
    type Spoil = fn(&mut Vec<Member>);
    let table: [(&str, Spoil, &str); 8] = [
        ("leaves", |m| m.push(("../../../../tmp/cove-e2e-canary".into(), b"x".to_vec())), "\"..\""),
        ("twice", |m| m.push(m[3].clone()), "is there twice"),
        ("missing", |m| drop(m.pop()), "is not in the archive"),
        ("damaged", |m| m[4].1[100_000] ^= 1, "its digest is"),
        ("junk", |m| m[4].1.fill(0x55), "its digest is"),
        ("config", |m| m[3].1.push(b' '), "bytes were sent"),
        ("huge index", |m| m[1].1.resize((4 << 20) + 1, b' '), "image_limits.document_bytes = 4194304"),
        ("deep index", |m| m[1].1 = [b'['; 100_000].to_vec(), "is no manifest"),
    ];
    let canary = Path::new("/tmp/cove-e2e-canary");
    let made = two_layers("hostile")?;
    let good = archive::layout(&made, &named("r.io/hostile:1"))?;
    let before = list(world).await?.len();
    for (what, spoil, expected) in table {
        let mut members = good.clone();
        spoil(&mut members);
        for is_reversed in [false, true] {
            if is_reversed {
                members.reverse();
            }
            let output = run(world, &["import", "-"], &archive::tar(&members))?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(1) && text.contains(expected), "{what}: {text}");
            ensure_eq!(list(world).await?.len(), before);
            is_tidy(world)?;
        }
    }
    // Links that lead out are names of nothing; a layer that breaks out is stopped where a pulled one is.
    let mut members = archive::saved(&[(&made, &["hostile:1"])])?;
    let links = Layer::new().symlink("out", "../../../../etc/passwd").hardlink("passwd", "../../etc/passwd");
    let breakout = Layer::new().symlink("up", "/tmp").file("up/cove-e2e-canary", 0o644, "x").tar();
    let replaced = image::digest(&breakout);
    let config = String::from_utf8(members[1].1.clone())?;
    let document: serde_json::Value = serde_json::from_str(&config)?;
    let old = document["rootfs"]["diff_ids"][0].as_str().ok_or("a diff ID")?;
    let config = config.replace(old, &replaced).into_bytes();
    let name = format!("{}.json", &image::digest(&config)["sha256:".len()..]);
    members[0].1 = serde_json::to_vec(
        &json!([{"Config": name, "RepoTags": ["hostile:1"], "Layers": ["0-0/layer.tar", "0-1/layer.tar"]}]),
    )?;
    members[1] = (name, config);
    members[2].1 = breakout;
    let mut bytes = links.tar();
    bytes.truncate(bytes.len() - 1024);
    let output = run(world, &["import", "-"], &[bytes, archive::tar(&members)].concat())?;
    ensure!(!canary.exists(), "the canary was made");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // A hard link to what is outside the archive is refused by its name.
    ensure!(output.status.code() == Some(1) && text.contains("\"..\""), "{text}");
    works(world, &["import", "-"], &archive::tar(&members))?;
    ensure!(!canary.exists(), "the canary was made by a layer");
    works(world, &["rm", "hostile:1"], b"")?;

    // Whoever sends goes in the middle.
    let bytes = archive::tar(&good);
    let mut child = command(world, &["import", "-"])?.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    stdin.write_all(&bytes[..bytes.len() / 2])?;
    child.kill()?;
    child.wait()?;
    is_tidy(world)?;
    ensure_eq!(list(world).await?.len(), before);
    Ok(())
}

async fn imports_where_no_daemon_runs(world: &mut World) -> Outcome {
    let made = two_layers("no daemon")?;
    let bytes = archive::tar(&archive::layout(&made, &named("r.io/offline:1"))?);
    let daemon = world.daemon.take().ok_or("no daemon")?;
    daemon.stop()?;
    works(world, &["import", "--pinned", "-"], &bytes)?;
    let (out, _) = works(world, &["ls"], b"")?;
    ensure!(out.contains("r.io/offline:1") && out.contains(&world.image), "{out}");
    world.resume(&[]).await?;
    let found = find(world, "r.io/offline:1").await?.ok_or("the daemon does not list it")?;
    ensure!(found.id == made.id && found.pinned, "{found:?}");
    works(world, &["rm", "r.io/offline:1"], b"")?;
    Ok(())
}

async fn pulls_lists_and_removes(world: &mut World) -> Outcome {
    let made = two_layers("pulled by command")?;
    let reference = world.registry.push("e2e/command", "1", &made)?;
    let (out, err) = works(world, &["pull", &reference], b"")?;
    ensure_eq!(out, format!("{} {reference}\n", made.id));
    for blob in &made.blobs[..2] {
        ensure!(err.contains(&format!("{}: ", blob.digest)), "no line for {}: {err}", blob.digest);
    }
    let (out, _) = works(world, &["ls"], b"")?;
    let line = out.lines().find(|line| line.starts_with(&reference)).ok_or(format!("not listed: {out}"))?;
    ensure!(line.contains(&made.id["sha256:".len()..][..13]) && line.contains(" MB"), "{line}");
    works(world, &["rm", &reference], b"")?;
    ensure!(find(world, &reference).await?.is_none(), "it is still there");
    works(world, &["rm", &reference], b"")?;
    let output = run(world, &["pull", &format!("{}/e2e/nothing:1", world.registry.host)], b"")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains("answered 404"), "{text}");
    Ok(())
}

/// A registry whose blob comes a byte at a time.
fn slow(made: &image::Image) -> Outcome<Server> {
    let made = made.clone();
    Server::start("127.0.0.1", move |asked: &Asked| {
        let target = asked.target.as_str();
        if target.contains("/manifests/") {
            let headers = vec![format!("content-type: {}", image::MANIFEST)];
            return Answer::Whole(200, headers, made.manifest.bytes.clone());
        }
        match made.blobs.iter().find(|blob| target.ends_with(&blob.digest)) {
            Some(blob) if blob.bytes.len() > 1 << 20 => {
                Answer::Hang(blob.bytes.len(), blob.bytes[..1 << 20].to_vec())
            }
            Some(blob) => Answer::Whole(200, Vec::new(), blob.bytes.clone()),
            None => Answer::Whole(404, Vec::new(), Vec::new()),
        }
    })
}

async fn shows_the_pulls_of_a_kubelet(world: &mut World) -> Outcome {
    let made = two_layers("slow")?;
    let server = slow(&made)?;
    let reference = format!("{}/slow:1", server.address);
    let mut cri = world.cri.clone();
    let asked = reference.clone();
    let pull = tokio::spawn(async move {
        let image = Some(ImageSpec { image: asked, ..Default::default() });
        cri.images.pull_image(PullImageRequest { image, ..Default::default() }).await
    });
    let shown = wait::until_async("the pull to be shown", SOON, || async {
        let (out, _) = works(world, &["ls", "--pulling"], b"")?;
        let shown = out.contains("arriving") && out.contains("1.0 MB");
        Ok(shown.then_some(out))
    })
    .await?;
    let size = made.blobs[1].bytes.len();
    let size = format!("{}.{} MB", size / 1_000_000, size % 1_000_000 / 100_000);
    ensure!(shown.contains(&reference) && shown.contains(&size), "no {size}: {shown}");
    // A client that leaves ends its pull.
    pull.abort();
    wait::until_async("the pull to end", SOON, || async {
        let (out, _) = works(world, &["ls", "--pulling"], b"")?;
        Ok((!out.contains(&reference)).then_some(()))
    })
    .await?;
    // A command that is ended, too.
    let mut child =
        command(world, &["pull", &reference])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait::until_async("the pull of the command to be shown", SOON, || async {
        Ok(works(world, &["ls", "--pulling"], b"")?.0.contains(&reference).then_some(()))
    })
    .await?;
    child.kill()?;
    child.wait()?;
    wait::until_async("the pull of the command to end", SOON, || async {
        Ok((!works(world, &["ls", "--pulling"], b"")?.0.contains(&reference)).then_some(()))
    })
    .await?;
    drop(server);
    is_tidy(world)
}

async fn draws_bars_on_a_terminal(world: &mut World) -> Outcome {
    let made = two_layers("bars")?;
    let reference = world.registry.push("e2e/bars", "1", &made)?;
    let place = world.place.as_ref().ok_or("no place")?;
    let words = format!(
        "{} --config {} image pull {reference}",
        place.programs.join("cove").display(),
        place.config_file().display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &words, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // To `script` its end would be a key that is pressed.
    let stdin = child.stdin.take();
    let mut text = String::new();
    child.stdout.take().ok_or("no standard output")?.read_to_string(&mut text)?;
    drop(stdin);
    ensure!(child.wait()?.success(), "{text}");
    let digits = &made.blobs[1].digest["sha256:".len()..][..13];
    ensure!(
        text.contains(digits) && text.contains("[====") && text.contains("\u{1b}[K"),
        "no bars: {text:?}"
    );
    ensure!(text.contains(&made.id), "{text:?}");
    works(world, &["rm", &reference], b"")?;
    Ok(())
}

async fn checks_the_store_and_mends_it(world: &mut World) -> Outcome {
    let made = two_layers("checked")?;
    let reference = world.registry.push("e2e/checked", "1", &made)?;
    world.pull(&reference).await?;
    ensure_eq!(works(world, &["check"], b"")?.0, "");
    let layers = world.place.as_ref().ok_or("no place")?.root.join("images/layers");
    let has_big = |entry: &fs::DirEntry| entry.path().join("fs/big").is_file();
    let entries = fs::read_dir(layers)?.collect::<Result<Vec<_>, _>>()?;
    let file =
        entries.iter().find(|entry| has_big(entry)).ok_or("no layer has the file")?.path().join("fs/big");
    fs::write(&file, b"cut off")?;
    let output = run(world, &["check"], b"")?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(found.contains(&made.id) && found.contains(&reference) && found.contains(" bytes"), "{found}");
    ensure!(find(world, &reference).await?.is_some(), "a look removed the image");
    works(world, &["check", "--repair"], b"")?;
    ensure_eq!(fs::metadata(&file)?.len(), 5 << 20);
    ensure_eq!(works(world, &["check"], b"")?.0, "");

    // One bit, which no length tells.
    flip(&file)?;
    ensure_eq!(works(world, &["check"], b"")?.0, "");
    let output = run(world, &["check", "--content"], b"")?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(found.contains(&made.id) && found.contains(&reference) && found.contains("damaged"), "{found}");
    works(world, &["check", "--content", "--repair"], b"")?;
    ensure_eq!(works(world, &["check", "--content"], b"")?.0, "");
    works(world, &["rm", &reference], b"")?;
    is_tidy(world)
}

/// Flips one bit in the middle of a file.
fn flip(file: &Path) -> Outcome {
    let mut bytes = fs::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(file, bytes)?)
}

/// A command of a store that is empty, and has no daemon.
fn elsewhere(world: &World, arguments: &[&str]) -> Outcome<Output> {
    let place = world.place.as_ref().ok_or("no place")?;
    let directory = world.directory.join("elsewhere");
    let other = Place { root: directory.join("root"), state: directory.join("state"), ..place.clone() };
    fs::create_dir_all(&other.root)?;
    fs::write(other.config_file(), other.config())?;
    let mut command = Command::new(place.programs.join("cove"));
    Ok(command.arg("--config").arg(other.config_file()).arg("image").args(arguments).output()?)
}

fn skopeo(arguments: &[&str]) -> Outcome<Vec<u8>> {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output()?;
    ensure!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

async fn exports_what_others_and_it_read(world: &mut World) -> Outcome {
    let (name, target) = (world.image.clone(), world.directory.join("image.tar"));
    let file = target.to_string_lossy().into_owned();
    let (out, err) = works(world, &["export", &name, "-o", &file], b"")?;
    let id = out.split(' ').next().ok_or("no id")?.to_owned();
    ensure_eq!(out, format!("{id} {name}\n"));
    ensure!(err.contains(", done\n"), "no progress: {err}");
    // The same to standard output, where what is said goes to the other.
    let piped = run(world, &["export", &id], b"")?;
    ensure!(piped.status.success() && piped.stdout == fs::read(&target)?, "{}", piped.status);
    ensure!(String::from_utf8_lossy(&piped.stderr).contains(&format!("{id} {name}\n")), "no id is told");

    // By skopeo, which computes every digest, in both of its forms.
    let layout = world.directory.join("layout").to_string_lossy().into_owned();
    let inspected = skopeo(&["inspect", "--config", "--raw", &format!("oci-archive:{file}:{name}")])?;
    ensure_eq!(image::digest(&inspected), id);
    skopeo(&["copy", "-q", &format!("oci-archive:{file}:{name}"), &format!("oci:{layout}:again")])?;
    skopeo(&["copy", "-q", &format!("docker-archive:{file}:{name}"), &format!("oci:{layout}:docker")])?;

    // By another store of ours; from there it comes out as it went in.
    let imported = elsewhere(world, &["import", &file])?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    ensure_eq!(String::from_utf8(imported.stdout)?, format!("{id} {name}\n"));
    let again = elsewhere(world, &["export", &name])?;
    ensure!(again.status.success() && again.stdout == fs::read(&target)?, "{}", again.status);

    // Whoever reads only a part ends it, and keeps nothing.
    let mut child =
        command(world, &["export", &name])?.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    stdout.read_exact(&mut [0; 1000])?;
    child.kill()?;
    child.wait()?;
    let output = run(world, &["export", "e2e/nothing:1"], b"")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains("is not present"), "{text}");
    is_tidy(world)
}

async fn exports_nothing_that_is_damaged(world: &mut World) -> Outcome {
    let made = two_layers("exported")?;
    let reference = world.registry.push("e2e/exported", "1", &made)?;
    world.pull(&reference).await?;
    let layers = world.place.as_ref().ok_or("no place")?.root.join("images/layers");
    let diff_id = image::digest(&Layer::new().file("big", 0o644, noise(5 << 20)).tar());
    let big = layers.join(&diff_id["sha256:".len()..]).join("fs/big");
    flip(&big)?;
    let place = world.directory.join("exported");
    fs::create_dir(&place)?;
    let file = place.join("image.tar");
    fs::write(&file, "what was there")?;
    let output = run(world, &["export", &reference, "-o", &file.to_string_lossy()], b"")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure_eq!(output.status.code(), Some(1));
    ensure!(text.contains(&diff_id) && text.contains("cove check --content --repair"), "{text}");
    ensure_eq!(fs::read_to_string(&file)?, "what was there");
    ensure_eq!(fs::read_dir(&place)?.count(), 1);
    works(world, &["check", "--content", "--repair"], b"")?;
    works(world, &["export", &reference, "-o", &file.to_string_lossy()], b"")?;
    ensure!(fs::metadata(&file)?.len() > 5 << 20, "the archive is too small");
    ensure_eq!(fs::read_dir(&place)?.count(), 1);
    works(world, &["rm", &reference], b"")?;
    is_tidy(world)
}
