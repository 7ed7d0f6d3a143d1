//! critest against Cove, or against another runtime. Behind `hack/conformance`.
//!
//! `conformance [--endpoint SOCKET] [--focus REGEX]... [--workers N] [--keep] [-- CRITEST ARGUMENTS...]` starts a registry
//! with the images that critest asks for, and Cove with an instance of its own. It runs the specs one after the other,
//! then again with several workers; prints for each run which specs failed or were skipped and why, the counts, and what
//! differs from what is expected. All is taken down again; `--keep` leaves the logs and the reports.
//! Another runtime has to read the hosts.toml files of `/var/lib/cove-conf/hosts.d`.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cove_e2e::Outcome;
use cove_e2e::crictl::Crictl;
use cove_e2e::critest::{self, Counts, Run, Skips, State};
use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;

/// The runs: alone, a spec finds nothing of another; beside others, it finds a busy runtime.
const WORKERS: [u32; 2] = [1, 4];
/// Most lines of a failure that are shown: what follows is a dump of a whole object.
const SHOWN_LINES: usize = 3;
/// Most characters of such a line.
const SHOWN_WIDTH: usize = 300;

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Options {
    endpoint: Option<PathBuf>,
    focus: Vec<String>,
    workers: Option<u32>,
    keep: bool,
    further: Vec<String>,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--endpoint" => options.endpoint = Some(value()?.trim_start_matches("unix://").into()),
                "--focus" => options.focus.push(value()?),
                "--workers" => options.workers = Some(value()?.parse()?),
                "--keep" => options.keep = true,
                "--" => options.further = words.by_ref().collect(),
                _ => {
                    return Err("usage: [--endpoint SOCKET] [--focus REGEX]... [--workers N] [--keep] \
                                [-- ARGUMENTS...]"
                        .into());
                }
            }
        }
        Ok(options)
    }

    fn workers(&self) -> Vec<u32> {
        self.workers.map_or_else(|| WORKERS.to_vec(), |workers| vec![workers])
    }

    fn skips(&self) -> Skips {
        match self.endpoint {
            Some(_) => Skips::Any,
            None if self.focus.is_empty() && self.further.is_empty() => Skips::AsListed,
            None => Skips::Listed,
        }
    }
}

/// Apart from a Cove that may be installed here.
fn place() -> Place {
    Place {
        instance: "conf".into(),
        root: "/var/lib/cove-conf".into(),
        state: "/run/cove-conf".into(),
        range: "10.87.0.0/24".into(),
        programs: daemon::programs(),
        hosts: Some("/var/lib/cove-conf/hosts.d".into()),
        images: String::new(),
        cni: None,
    }
}

fn run(options: &Options) -> Outcome<bool> {
    let place = place();
    if place.root.join("config.toml").exists() {
        // A run that was killed: what it left is removed by the one who knows what that is.
        take_down(&place, started(&place)?)?;
    }
    fs::create_dir_all(&place.root)?;
    let registry = Registry::start(&place.root.join("registry"))?;
    critest::push(&registry)?;
    mirrors(&place.root.join("hosts.d"), &registry)?;
    let settings = Saved::now()?;
    let daemon = if options.endpoint.is_none() { Some(started(&place)?) } else { None };
    let socket = options.endpoint.clone().unwrap_or_else(|| place.socket());
    let mut runs = Vec::new();
    for workers in options.workers() {
        let run = Run {
            socket: &socket,
            directory: &place.root,
            workers,
            focus: &options.focus,
            further: &options.further,
        };
        runs.push((workers, run.go()));
        if options.keep {
            keep(&[place.log(), run.log(), run.report()])?;
        }
    }
    // The outcome is the first to tell, and leaving nothing behind comes before telling it.
    let cleaned = match daemon {
        Some(daemon) => take_down(&place, daemon),
        None => remove(&place.root),
    };
    let cleaned = cleaned.and(settings.restore());
    let mut good = true;
    for (workers, counts) in runs {
        good &= tell(workers, &counts?, options.skips());
    }
    cleaned?;
    Ok(good)
}

fn started(place: &Place) -> Outcome<Daemon> {
    let mut daemon = place.start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(daemon.connect())?;
    Ok(daemon)
}

/// No way around our registry: a test that asks the internet is another test tomorrow.
fn mirrors(directory: &Path, registry: &Registry) -> Outcome {
    let url = format!("http://{}", registry.host);
    for name in critest::MIRRORED {
        fs::create_dir_all(directory.join(name))?;
        fs::write(directory.join(name).join("hosts.toml"), format!("server = {url:?}\n\n[host.{url:?}]\n"))?;
    }
    Ok(())
}

fn keep(files: &[PathBuf]) -> Outcome {
    let kept = std::env::temp_dir().join("cove-conformance");
    fs::create_dir_all(&kept)?;
    for file in files {
        if let (true, Some(name)) = (file.exists(), file.file_name()) {
            fs::copy(file, kept.join(name))?;
        }
    }
    println!("logs and report: {}", kept.display());
    Ok(())
}

fn take_down(place: &Place, daemon: Daemon) -> Outcome {
    let crictl = Crictl::new(&place.socket());
    let pods = crictl.run(&["pods", "-q"])?;
    for pod in pods.lines() {
        crictl.run(&["rmp", "-f", pod])?;
    }
    if !pods.is_empty() {
        println!("critest left {} pods behind", pods.lines().count());
    }
    daemon.stop()?;
    remove(&place.root)?;
    remove(&place.state)?;
    // Cove's table outlives it, so that the pods of a daemon that is upgraded keep their network.
    let table = Command::new("nft").args(["list", "table", "inet", &place.instance]).output()?;
    if table.status.success() {
        Command::new("nft").args(["delete", "table", "inet", &place.instance]).status()?;
    }
    Ok(())
}

fn remove(directory: &Path) -> Outcome {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", directory.display()).into())
        }
        _ => Ok(()),
    }
}

/// Gomega's frame around an error is no part of it.
fn says_something(line: &str) -> bool {
    let line = line.trim();
    let is_frame = line.ends_with(['{', '}', ',']) || line == "Unexpected error:" || line.starts_with("<*");
    !line.is_empty() && !is_frame
}

/// Prints the result of a run; whether it is good.
fn tell(workers: u32, counts: &Counts, skips: Skips) -> bool {
    println!("{}", if workers == 1 { "one worker".into() } else { format!("{workers} workers") });
    for (state, word) in [(State::Skipped, "SKIPPED"), (State::Failed, "FAILED")] {
        for spec in counts.of(state) {
            println!("{word} {}", spec.name);
            for line in spec.reason.lines().filter(|line| says_something(line)).take(SHOWN_LINES) {
                println!("    {}", line.chars().take(SHOWN_WIDTH).collect::<String>());
            }
        }
    }
    let objections = critest::objections(counts, skips);
    for objection in &objections {
        println!("UNEXPECTED {objection}");
    }
    println!("{}", counts.line());
    objections.is_empty()
}
