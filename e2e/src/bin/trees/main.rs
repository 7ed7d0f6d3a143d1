//! Behind `hack/trees`: images of real Debian roots are pulled and run, and what a container sees is compared with what
//! umoci unpacks of the same image: owners, modes, times, extended attributes, links, devices and content. And each layer's
//! archive is made again from its files, and has its digest.
//!
//! `trees DIRECTORY` keeps the downloaded packages below DIRECTORY.
#![forbid(unsafe_code)]

mod debian;
mod image;
mod picture;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cove_e2e::daemon::{self, Place};
use cove_e2e::kubelet::Kubelet;
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, cni, pod};
use k8s_cri::v1::*;

use image::Recipe;

/// What is compared: each suite's root once, with as many layers as said.
const RECIPES: [Recipe; 5] = [
    Recipe { suite: "bullseye", layers: 6, variant: "minbase" },
    Recipe { suite: "bookworm", layers: 60, variant: "minbase" },
    Recipe { suite: "trixie", layers: 20, variant: "minbase" },
    Recipe { suite: "trixie", layers: 127, variant: "buildd" },
    Recipe { suite: "bookworm", layers: 9, variant: "buildd" },
];

/// What a runtime mounts or makes in a container's root, so that it differs from the image's.
const NOT_THE_IMAGES: [&str; 7] =
    ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", "run"];

fn main() -> ExitCode {
    let Some(cache) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: trees DIRECTORY");
        return ExitCode::FAILURE;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&cache))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("trees: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cache: &Path) -> Outcome<bool> {
    let directory = tempfile::Builder::new().prefix("cove-trees-").tempdir()?;
    let registry = Registry::start(&directory.path().join("registry"))?;
    let place = Place {
        instance: "trees".into(),
        root: directory.path().join("root"),
        state: directory.path().join("state"),
        range: "10.216.0.0/24".into(),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    };
    let settings = Saved::now()?;
    let mut daemon = place.start()?;
    let mut cri = Kubelet(daemon.connect().await?);
    let (mut passed, mut failed) = (0, 0);
    for recipe in &RECIPES {
        let work = directory.path().join("work");
        std::fs::create_dir_all(&work)?;
        match Box::pin(compare(recipe, cache, &work, &registry, &place, &mut cri)).await {
            Ok(files) => {
                passed += 1;
                println!("ok {recipe}: {files} paths are the same");
            }
            Err(error) => {
                failed += 1;
                println!("FAILED {recipe}: {error}");
            }
        }
        std::fs::remove_dir_all(&work)?;
    }
    let ended = daemon.stop();
    settings.restore()?;
    ended?;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// One image; says how many paths were compared.
async fn compare(
    recipe: &Recipe,
    cache: &Path,
    work: &Path,
    registry: &Registry,
    place: &Place,
    cri: &mut Kubelet,
) -> Outcome<usize> {
    let packages = debian::packages(cache, recipe.suite, recipe.variant)?;
    let image = recipe.build(&packages, work)?;
    let layout = image::layout(&image, &work.join("layout"))?;
    let bundle = work.join("bundle").display().to_string();
    cni::run("umoci", &["unpack", "--image", &layout, &bundle])?;
    let expected = picture::of(&work.join("bundle/rootfs"), &NOT_THE_IMAGES)?;

    let reference = registry.push(&format!("trees/{}", recipe.suite), &recipe.layers.to_string(), &image)?;
    cri.pull(&reference).await?;
    let rebuilt = rebuilt(place);
    let sandbox = pod::sandbox("trees");
    let id = cri.run(&sandbox).await?;
    let container = pod::container("root", &reference, &["/busybox-cove", "sleep", "1000000"]);
    let seen = async {
        let container = cri.create(&id, &sandbox, &container).await?;
        cri.start(&container).await?;
        let pid = cri.pid(&container).await?;
        picture::of(Path::new(&format!("/proc/{pid}/root/.")), &NOT_THE_IMAGES)
    }
    .await;
    cri.stop_pod(&id).await?;
    cri.remove_pod(&id).await?;
    let image = Some(ImageSpec { image: reference, ..Default::default() });
    cri.0.images.remove_image(RemoveImageRequest { image }).await?;
    picture::same(&expected, &seen?)?;
    rebuilt?;
    Ok(expected.len())
}

/// Every layer's archive comes back from its files.
fn rebuilt(place: &Place) -> Outcome {
    let mut command = Command::new(place.programs.join("cove"));
    let output = command.arg("--config").arg(place.config_file()).args(["check", "--content"]).output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() && out.is_empty() && !err.contains("cannot be compared") {
        return Ok(());
    }
    Err(format!("check --content: {}: {out}{err}", output.status).into())
}
