//! The images that critest asks for, made here: names, users and texts are those that it looks for.

use std::process::Command;

use serde_json::{Value, json};

use crate::Outcome;
use crate::cache::cached;
use crate::image::{self, Image, Layer};
use crate::registry::Registry;

/// The registries of these images. No runtime under test needs the internet: our registry is the mirror of all of them.
pub const MIRRORED: &[&str] = &["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// Where critest's own images lie in gcr.io.
const STAGING: &str = "k8s-staging-cri-tools";

/// Pushes all of them. The one that critest asks for by digest cannot be made: only its original has that digest.
pub fn push(registry: &Registry) -> Outcome {
    let e2e = |name: &str| format!("e2e-test-images/{name}");
    let staging = |name: &str| format!("{STAGING}/test-image-{name}");
    let plain = busybox("", "")?;
    registry.push(&e2e("busybox"), "1.29-2", &plain)?;
    registry.push(&e2e("nginx"), "1.14-2", &web("nginx", 80, "nginx: master process")?)?;
    registry.push(
        &e2e("httpd"),
        "2.4.39-4",
        &web("httpd", 80, "AH00094: Command line: 'httpd -D FOREGROUND'")?,
    )?;
    registry.push(&e2e("nonewprivs"), "1.3", &effective_uid()?)?;
    let host_web = web("nginx", 12003, "nginx: master process")?;
    registry.push(&format!("{STAGING}/hostnet-nginx-{}", go_arch()), "latest", &host_web)?;
    registry.push("pause", "3.9", &pause()?)?;
    registry.push(&staging("latest"), "latest", &busybox("latest", "")?)?;
    for tag in ["test", "all"] {
        registry.push(&staging("tag"), tag, &busybox(tag, "")?)?;
    }
    let same = busybox("tags", "")?;
    for number in ["1", "2", "3"] {
        registry.push(&staging(number), "latest", &busybox(number, "")?)?;
        registry.push(&staging("tags"), number, &same)?;
    }
    let users = [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:users"),
        ("user-username-group", "www-data:100"),
        ("predefined-group", "1000"),
    ];
    for (name, user) in users {
        registry.push(&staging(name), "latest", &busybox(name, user)?)?;
    }
    Ok(())
}

/// Go's name of this machine's architecture.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A busybox image that differs from others by `mark`, for `user`.
fn busybox(mark: &str, user: &str) -> Outcome<Image> {
    let marked = Layer::new().file(&format!("mark-{mark}"), 0o644, mark);
    image::build(vec![base()?, marked], json!({"Env": [PATH], "Cmd": ["sh"], "User": user}))
}

/// What another runtime runs in each pod; Cove needs it for its name alone. No program that specs look for.
fn pause() -> Outcome<Image> {
    image::build(vec![base()?], json!({"Env": [PATH], "Entrypoint": ["/usr/bin/tail", "-f", "/dev/null"]}))
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// busybox and its programs as hard links, so that one of them can be masked, and the accounts that specs name.
fn base() -> Outcome<Layer> {
    let program = cached("conformance/busybox");
    let mut layer = Layer::new();
    for directory in ["bin", "dev", "etc", "home", "proc", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var"]
    {
        layer = layer.dir(directory, 0o755);
    }
    layer = layer
        .dir("root", 0o700)
        .dir("tmp", 0o1777)
        .dir("var/run", 0o755)
        .file("etc/passwd", 0o644, include_str!("passwd"))
        .file("etc/group", 0o644, include_str!("group"))
        .file("bin/busybox", 0o755, std::fs::read(&program)?);
    let listed = Command::new(&program).arg("--list-full").output()?;
    for path in String::from_utf8(listed.stdout)?.lines().filter(|path| *path != "bin/busybox") {
        if let Some((directory, _)) = path.rsplit_once('/')
            && ["bin", "sbin", "usr/bin", "usr/sbin"].contains(&directory)
        {
            layer = layer.hardlink(path, "bin/busybox");
        }
    }
    Ok(layer)
}

/// A web server of this name, which says `words` at its start.
fn web(name: &str, port: u16, words: &str) -> Outcome<Image> {
    let program = format!("usr/sbin/{name}");
    let server = Layer::new().file(&program, 0o755, std::fs::read(cached("conformance/web"))?);
    let command: Value =
        json!([format!("/{program}"), port.to_string(), format!("/var/run/{name}.pid"), words]);
    image::build(vec![base()?, server], json!({"Env": [PATH], "Cmd": command}))
}

/// A setuid program that says as whom it runs.
fn effective_uid() -> Outcome<Image> {
    let program = Layer::new().file("nnp", 0o4755, std::fs::read(cached("conformance/effective-uid"))?);
    image::build(vec![base()?, program], json!({"Env": [PATH], "Entrypoint": ["/nnp"]}))
}
