//! `cove image`: images beyond what the CRI has words for. Asks the daemon, or works by itself where none runs (see `connect`).

mod archive;
mod bars;
#[cfg(feature = "containerd")]
mod containerd;
mod directory;
mod file;
mod import;
mod list;
mod output;
mod source;

use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tonic::{Status, Streaming};

use super::connect::{self, Connected};
use crate::api::own::{Event, ExportRequest, Image, PullRequest, RemoveRequest};
use crate::config::Config;
pub(in crate::cli) use bars::Bars;
use import::Import;
use output::Output;

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// List images, or with --pulling the pulls that run, those of a kubelet among them
    Ls {
        /// Pulls that run: bytes and rates of every layer
        #[arg(long)]
        pulling: bool,
    },
    /// Pull an image, and show how far each layer is
    Pull(Pull),
    /// Remove images with all their names
    Rm {
        /// Names, digests or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Take in the images of an archive (of `docker save`, or an OCI image layout), or those of a containerd
    Import(Import),
    /// Write images as an archive: an OCI image layout that `docker load` takes, too; layers are not compressed
    Export(Export),
}

/// What is pulled, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// registry/name:tag or registry/name@digest
    image: String,
    #[command(flatten)]
    credentials: Credentials,
}

/// As whom a registry is asked.
#[derive(Debug, Args)]
pub(super) struct Credentials {
    /// Who asks the registry
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Credentials {
    /// User name and password; both are empty if nobody is named.
    pub(super) fn read(&self) -> std::io::Result<(String, String)> {
        let mut password = String::new();
        if self.password_stdin {
            std::io::stdin().lock().read_line(&mut password)?;
        }
        password.truncate(password.trim_end_matches(['\r', '\n']).len());
        Ok((self.username.clone().unwrap_or_default(), password))
    }
}

/// What is exported, and where to.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Names, digests or ids; an image goes out with the names that are given here, or with all if none is
    #[arg(required = true)]
    images: Vec<String>,
    /// A file, which is replaced once the archive is whole, or - for standard output, which is the default
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(action: &Action, option: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let config = Config::load(option)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut connected = connect::connect(&config).await?;
        match action {
            Action::Ls { pulling: false } => print(&list::images(&mut connected).await?),
            Action::Ls { pulling: true } => print(&list::pulls(&mut connected).await?),
            Action::Pull(pull) => pull_one(&mut connected, pull).await,
            Action::Rm { images } => remove(&mut connected, images).await,
            Action::Import(import) => import::run(&mut connected, import, &config).await,
            Action::Export(export) => export_all(&mut connected, export).await,
        }
    })
}

fn print(text: &str) -> Result<(), Box<dyn Error>> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What the other side says, without the clothes of its protocol.
pub(super) fn told(status: Status) -> Box<dyn Error> {
    status.message().into()
}

async fn pull_one(connected: &mut Connected, pull: &Pull) -> Result<(), Box<dyn Error>> {
    let (username, password) = pull.credentials.read()?;
    let request = PullRequest { reference: pull.image.clone(), username, password };
    let events = connected.images.pull(request).await.map_err(told)?.into_inner();
    show(events).await
}

async fn remove(connected: &mut Connected, images: &[String]) -> Result<(), Box<dyn Error>> {
    for image in images {
        let request = RemoveRequest { reference: image.clone() };
        connected.images.remove(request).await.map_err(told)?;
    }
    Ok(())
}

async fn export_all(connected: &mut Connected, export: &Export) -> Result<(), Box<dyn Error>> {
    let mut output = Output::open(export.output.as_deref())?;
    let request = ExportRequest { references: export.images.clone() };
    let mut pieces = connected.images.export(request).await.map_err(told)?.into_inner();
    let mut bars = Bars::new();
    while let Some(piece) = pieces.message().await.map_err(told)? {
        output.write(&piece.data)?;
        if let Some(progress) = piece.progress {
            bars.show(&progress)?;
        }
        if let Some(finished) = piece.finished {
            let names: String = finished.images.iter().map(line).collect();
            // Standard output has the archive.
            return if output.finish()? {
                print(&names)
            } else {
                Ok(std::io::stderr().write_all(names.as_bytes())?)
            };
        }
    }
    Err(ENDED.into())
}

/// What is said of an answer without an end.
pub(super) const ENDED: &str = "the daemon ended before the work was done";

/// Shows progress while there is some, then the images.
pub(super) async fn show(mut events: Streaming<Event>) -> Result<(), Box<dyn Error>> {
    let mut bars = Bars::new();
    while let Some(event) = events.message().await.map_err(told)? {
        if let Some(progress) = event.progress {
            bars.show(&progress)?;
        }
        if let Some(finished) = event.finished {
            let names: String = finished.images.iter().map(line).collect();
            return print(&names);
        }
    }
    Err(ENDED.into())
}

/// Id and names of an image.
fn line(image: &Image) -> String {
    let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
    format!("{} {}", image.id, names.join(" ")).trim_end().to_owned() + "\n"
}
