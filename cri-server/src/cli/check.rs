//! `cove check`: what is damaged in the image store, and, if asked for, mended by pulling again. Nothing is ever removed by it.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use clap::Args;

use super::connect::{self, Connected};
use super::image::{Bars, Credentials, ENDED, show, told};
use crate::api::own::{CheckRequest, Checked, Finding, RepairRequest};
use crate::config::Config;

/// What to do with what is found.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Pull damaged images again; what was there stays until what replaces it is whole
    #[arg(long)]
    repair: bool,
    /// Read every file, too, and compare each layer with its digest: finds a bit that flipped, and takes as long as the disk
    #[arg(long)]
    content: bool,
    /// The one registry (host or host:port) that user name and password are for; others are asked without
    #[arg(long, value_name = "HOST", requires = "repair", requires = "username")]
    registry: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
}

pub(super) fn run(check: &Check, option: Option<&Path>) -> Result<(), Box<dyn Error>> {
    let config = Config::load(option)?;
    let (username, password) = check.credentials.read()?;
    let registry = check.registry.clone().unwrap_or_default();
    if registry.is_empty() && !username.is_empty() {
        return Err("--username needs --registry: damaged images may be of several".into());
    }
    let request = |id: &String| RepairRequest {
        id: id.clone(),
        content: check.content,
        username: username.clone(),
        password: password.clone(),
        registry: registry.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut connected = connect::connect(&config).await?;
        let Checked { mut findings, unknown } = find(&mut connected, check.content).await?;
        std::io::stderr().write_all(lines(&unknown).as_bytes())?;
        std::io::stdout().write_all(lines(&findings).as_bytes())?;
        if check.repair && !findings.is_empty() {
            repair(&mut connected, &findings, request).await?;
            findings = find(&mut connected, check.content).await?.findings;
            if !findings.is_empty() {
                std::io::stdout().write_all(format!("still:\n{}", lines(&findings)).as_bytes())?;
            }
        }
        match findings.len() {
            0 => Ok(()),
            count if check.repair => Err(format!("{count} faults are left").into()),
            count => {
                let how = if check.content { "cove check --content --repair" } else { "cove check --repair" };
                Err(format!("{count} faults; `{how}` pulls these images again").into())
            }
        }
    })
}

async fn find(connected: &mut Connected, content: bool) -> Result<Checked, Box<dyn Error>> {
    let mut events = connected.images.check(CheckRequest { content }).await.map_err(told)?.into_inner();
    let mut bars = Bars::new();
    while let Some(event) = events.message().await.map_err(told)? {
        if let Some(progress) = event.progress {
            bars.show(&progress)?;
        }
        if let Some(checked) = event.checked {
            return Ok(checked);
        }
    }
    Err(ENDED.into())
}

/// Each damaged image once. One that cannot be mended keeps none of the others from it.
async fn repair(
    connected: &mut Connected,
    findings: &[Finding],
    request: impl Fn(&String) -> RepairRequest,
) -> Result<(), Box<dyn Error>> {
    let mut ids: Vec<&String> = findings.iter().map(|one| &one.image).filter(|id| !id.is_empty()).collect();
    ids.dedup();
    for id in ids {
        let events = connected.images.repair(request(id)).await.map_err(told)?;
        if let Err(error) = show(events.into_inner()).await {
            eprintln!("cove: {id}: {error}");
        }
    }
    Ok(())
}

fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { image, name, part, reason } in findings {
        let image = if image.is_empty() { "no image" } else { image };
        let line = format!("{image} {name}: {part}: {reason}");
        let plain: String = line.chars().filter(|letter| !letter.is_control()).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", plain.replace(" :", ":"));
    }
    text
}
