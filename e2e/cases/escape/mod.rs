//! Ways out of a container: the critical rows E01 to E20 of docs/security.md. Each attack tells what it reached. As a
//! case it must reach nothing; as a control, run by `hack/escapes` against a daemon whose guard is taken away, the same
//! attack must reach something, or the case would show nothing.

mod confinement;
mod descriptors;
mod identity;
mod kernel;
mod other_processes;
mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cove_e2e::image::{self, Image, Layer};
use cove_e2e::{Outcome, attacker};
use serde_json::{Value, json};

use crate::world::{Case, World};

/// What attacks reached, a line each.
type Reached = Vec<String>;

/// The rooms of attacks, as cases.
pub(crate) const CASES: &[&[Case]] = &[
    descriptors::CASES,
    other_processes::CASES,
    rootfs::CASES,
    kernel::CASES,
    identity::CASES,
    confinement::CASES,
];

/// The same as controls.
pub(crate) const CONTROLS: &[&[Case]] = &[
    descriptors::CONTROLS,
    other_processes::CONTROLS,
    rootfs::CONTROLS,
    kernel::CONTROLS,
    identity::CONTROLS,
    confinement::CONTROLS,
];

pub(crate) fn holds(reached: Reached) -> Outcome {
    ensure!(reached.is_empty(), "{} escapes, for example:\n  {}", reached.len(), shown(&reached));
    Ok(())
}

pub(crate) fn falls(reached: Reached) -> Outcome {
    ensure!(!reached.is_empty(), "the guard is taken away and nothing was reached: the case cannot fail");
    eprintln!("  reached without the guard: {}", shown(&reached[..1]));
    Ok(())
}

fn shown(reached: &[String]) -> String {
    reached.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n  ")
}

/// Of a container's output or a program's: the lines that tell of an escape.
fn reached_in(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.contains("reached ")).map(str::to_owned)
}

/// A tree of the host beside everything that containers are given.
pub(crate) fn canary(world: &World) -> Outcome<PathBuf> {
    let canary = world.directory.join("canary");
    fs::create_dir_all(canary.join("sub"))?;
    fs::write(canary.join("file"), "untouched")?;
    fs::write(canary.join("sub/file"), "untouched too")?;
    Ok(canary)
}

/// From anywhere to `path` of the host. Names in a tar header are at most 100 bytes.
pub(crate) fn climb(path: &Path) -> String {
    format!("../../../../../../../../../../..{}", path.display())
}

static BASE: OnceLock<Image> = OnceLock::new();

/// What all images of this room are made of, compressed once.
fn base() -> Outcome<&'static Image> {
    if BASE.get().is_none() {
        let program = attacker::program()?;
        let own = Layer::new().file("bin/attacker", 0o755, program).file("bin/raised", 0o4755, program);
        let layers = vec![image::busybox()?, image::accounts(), own];
        // Nobody else sets it: cases run on one thread.
        let _ = BASE.set(image::build(layers, json!({}))?);
    }
    Ok(BASE.get().ok_or("no image")?)
}

/// Pulls an image of busybox, accounts, the attacker (also as `/bin/raised`, setuid) and these layers.
async fn pull(world: &mut World, name: &str, layers: Vec<Layer>, config: Value) -> Outcome<String> {
    let reference = world.registry.push("e2e/escape", name, &image::build_on(base()?, layers, config)?)?;
    world.pull(&reference).await?;
    Ok(reference)
}

/// The image without anything further.
async fn pull_attacker(world: &mut World) -> Outcome<String> {
    pull(world, "attacker", Vec::new(), path()).await
}

fn path() -> Value {
    json!({"Env": ["PATH=/bin"]})
}
