//! `cove image import`: an archive, or the images of a running containerd.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use cove_layer::Digest;
use tonic::Streaming;

use super::super::connect::Connected;
use super::source::{self, Source};
use super::{archive, show, told};
use crate::api::own::{PresentRequest, PresentResponse};
use crate::config::Config;
use crate::image::{Bounds, Outline};

/// What is imported, and how.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A tar file (also compressed), the directory of an OCI image layout, or - for standard input; with --from, names of the
    /// images to take, all without one
    #[arg(required_unless_present = "from", value_name = "SOURCE|NAME")]
    sources: Vec<String>,
    /// Bring images over from a store of this machine
    #[arg(long, value_enum, value_name = "STORE")]
    from: Option<Store>,
    /// The namespace of containerd that has the images
    #[arg(long, requires = "from", default_value = "k8s.io")]
    namespace: String,
    /// The socket of containerd
    #[arg(long, requires = "from", value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    address: PathBuf,
    /// Never remove the images to make room
    #[arg(long)]
    pinned: bool,
    /// Name the one image of the archive so
    #[arg(long, value_name = "REFERENCE", conflicts_with = "from")]
    name: Option<String>,
}

/// A store of another runtime.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Store {
    /// A containerd that runs
    Containerd,
}

/// Imports what was asked for.
pub(super) async fn run(
    connected: &mut Connected,
    import: &Import,
    config: &Config,
) -> Result<(), Box<dyn Error>> {
    let bounds = config.image_limits.bounds();
    match (import.from, &import.sources[..]) {
        (Some(Store::Containerd), names) => from_containerd(connected, import, names, bounds).await,
        (None, [source]) => from_archive(connected, source, import, bounds).await,
        (None, _) => Err("one archive is imported at a time".into()),
    }
}

async fn from_archive(
    connected: &mut Connected,
    path: &str,
    import: &Import,
    bounds: Bounds,
) -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(path);
    let opened = move || {
        let source = source::open(Path::new(&path), &bounds)?;
        // Of what cannot be understood all is sent: the other side says what is wrong with it.
        let outline = source.outline(&bounds).unwrap_or_default();
        Ok::<_, source::Unread>((source, outline))
    };
    let (source, outline) = tokio::task::spawn_blocking(opened).await??;
    let name = import.name.clone().unwrap_or_default();
    send(connected, source, outline, archive::Choices { pinned: import.pinned, name }).await
}

#[cfg(not(feature = "containerd"))]
async fn from_containerd(
    _: &mut Connected,
    _: &Import,
    _: &[String],
    _: Bounds,
) -> Result<(), Box<dyn Error>> {
    Err("this cove was built without the feature \"containerd\": hack/build makes one that has it".into())
}

/// Image after image: what is wrong with one keeps none of the others from coming, and what has come stays.
#[cfg(feature = "containerd")]
async fn from_containerd(
    connected: &mut Connected,
    import: &Import,
    names: &[String],
    bounds: Bounds,
) -> Result<(), Box<dyn Error>> {
    let node = super::containerd::Node::connect(&import.address, &import.namespace).await?;
    let (images, mut wrong) = node.images(names).await?;
    let count = images.len() + wrong.len();
    for image in images {
        let name = image.shown();
        let choices = archive::Choices { pinned: import.pinned || image.pinned, name: String::new() };
        let (source, bounds) = (node.source(image)?, bounds.clone());
        let read = move || {
            let outline = source.outline(&bounds);
            (source, outline)
        };
        let (source, outline) = tokio::task::spawn_blocking(read).await?;
        let sent = match outline {
            Ok(outline) => send(connected, source, outline, choices).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = sent {
            wrong.push(format!("{name}: {error}"));
        }
    }
    for text in &wrong {
        eprintln!("cove: passed over: {text}");
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{} of {count} images did not come over", wrong.len()).into())
    }
}

/// Sends an archive without the layers that the other side has, and shows what comes of it.
async fn send(
    connected: &mut Connected,
    source: Box<dyn Source>,
    mut outline: Outline,
    choices: archive::Choices,
) -> Result<(), Box<dyn Error>> {
    let (there, _held) = present(connected, &outline.diff_ids()).await?;
    outline.present(&there);
    let (requests, failure) = archive::requests(source, outline, choices)?;
    let work = async {
        let events = connected.images.import(requests).await.map_err(told)?;
        show(events.into_inner()).await
    };
    tokio::select! {
        shown = work => shown,
        Ok(failure) = failure => Err(failure.error.into()),
    }
}

/// The layers that the other side has, and the call that keeps them there.
async fn present(
    connected: &mut Connected,
    asked: &[Digest],
) -> Result<(HashSet<Digest>, Streaming<PresentResponse>), Box<dyn Error>> {
    let request = PresentRequest { diff_ids: asked.iter().map(Digest::to_string).collect() };
    let mut held = connected.images.present(request).await.map_err(told)?.into_inner();
    let answer = held.message().await.map_err(told)?.unwrap_or_default();
    let there = answer.diff_ids.iter().map(|diff_id| diff_id.parse()).collect::<Result<_, _>>()?;
    Ok((there, held))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        import: Import,
    }

    #[test]
    fn an_archive_or_a_store_is_named() {
        let good: [&[&str]; 5] = [
            &["-"],
            &["--name", "a:1", "x.tar"],
            &["--from", "containerd"],
            &["--from", "containerd", "--namespace", "moby", "--address", "/x.sock"],
            &["--from", "containerd", "--pinned", "a:1", "b:2"],
        ];
        let bad: [&[&str]; 5] = [
            &[],
            &["--from", "docker"],
            &["--from", "containerd", "--name", "a:1"],
            &["--namespace", "moby", "x.tar"],
            &["--address", "/x.sock", "x.tar"],
        ];
        let parse = |words: &[&str]| Line::try_parse_from([&["import"], words].concat());
        for words in good {
            parse(words).unwrap();
        }
        for words in bad {
            assert!(parse(words).is_err(), "{words:?}");
        }
        assert_eq!(parse(&["--from", "containerd"]).unwrap().import.namespace, "k8s.io");
    }
}
