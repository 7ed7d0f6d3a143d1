//! The cases. Each starts a daemon of its own, and ends with the machine as it was.
//!
//! `COVE_ENDPOINT=/run/containerd/containerd.sock` runs them against a runtime that runs already, to tell a fault of a
//! case from a fault of Cove; the checks of what is left behind are left out then.
//! `COVE_CASES=FILE` runs those that the file names, one a line; a name that no case has is a failure.
#![forbid(unsafe_code)]
#![allow(
    clippy::large_futures,
    reason = "requests with every field of a pod are large, and nobody counts here"
)]
#![allow(
    clippy::cloned_ref_to_slice_refs,
    reason = "the macro that compares takes references to whatever it is given"
)]

#[macro_use]
extern crate cove_e2e;

#[macro_use]
mod ensure;
mod world;

mod audit;
mod bad_input;
mod cdi;
mod cgroup;
mod cni;
mod cni_call;
mod cni_fault;
mod container;
mod crictl;
mod declared_volume;
mod demo;
mod device;
mod ending;
mod escape;
mod events;
mod exec;
mod exhausted;
mod hostile;
mod image;
mod image_command;
mod image_containerd;
mod image_credentials;
mod image_hostile;
mod image_limits;
mod image_pull;
mod image_volume;
mod label;
mod lifecycle;
mod limits;
mod network;
mod promises;
mod restart;
mod sandbox;
mod seccomp;
mod slow_client;
mod stats;
mod stream;
mod stream_protocol;
mod stream_tls;
mod stream_websocket;
mod sysctl;
mod target;
mod tour;
mod userns;
mod volume;
mod ways;

use libtest_mimic::{Arguments, Trial};

/// The rooms but that of escapes.
const ROOMS: &[(&str, &[world::Case])] = &[
    ("sandbox", sandbox::CASES),
    ("target", target::CASES),
    ("container", container::CASES),
    ("seccomp", seccomp::CASES),
    ("label", label::CASES),
    ("ending", ending::CASES),
    ("exec", exec::CASES),
    ("exhausted", exhausted::CASES),
    ("stream", stream::CASES),
    ("stream_protocol", stream_protocol::CASES),
    ("stream_websocket", stream_websocket::CASES),
    ("stream_tls", stream_tls::CASES),
    ("slow_client", slow_client::CASES),
    ("crictl", crictl::CASES),
    ("image", image::CASES),
    ("image_pull", image_pull::CASES),
    ("image_credentials", image_credentials::CASES),
    ("image_hostile", image_hostile::CASES),
    ("image_limits", image_limits::CASES),
    ("image_command", image_command::CASES),
    ("image_containerd", image_containerd::CASES),
    ("network", network::CASES),
    ("ways", ways::CASES),
    ("cni", cni::CASES),
    ("cni_call", cni_call::CASES),
    ("cni_fault", cni_fault::CASES),
    ("stats", stats::CASES),
    ("limits", limits::CASES),
    ("cgroup", cgroup::CASES),
    ("sysctl", sysctl::CASES),
    ("device", device::CASES),
    ("cdi", cdi::CASES),
    ("volume", volume::CASES),
    ("userns", userns::CASES),
    ("image_volume", image_volume::CASES),
    ("declared_volume", declared_volume::CASES),
    ("events", events::CASES),
    ("lifecycle", lifecycle::CASES),
    ("restart", restart::CASES),
    ("audit", audit::CASES),
    ("bad_input", bad_input::CASES),
    ("hostile", hostile::CASES),
    ("demo", demo::CASES),
    ("tour", tour::CASES),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // What is left behind is looked for on the whole machine, so cases run one after another.
    arguments.test_threads = Some(1);
    let mut trials: Vec<Trial> = Vec::new();
    for (room, cases) in ROOMS {
        trials.extend(cases.iter().map(|case| {
            Trial::test(format!("{room}::{}", case.name), move || world::run(case).map_err(Into::into))
        }));
    }
    trials.extend(escape::CASES.iter().copied().flatten().map(|case| {
        Trial::test(format!("escape::{}", case.name), move || world::run(case).map_err(Into::into))
    }));
    let names: Vec<String> = trials.iter().map(|trial| trial.name().to_owned()).collect();
    trials.push(Trial::test("promises::name_cases_that_exist", move || {
        promises::check(&names).map_err(|error| error.to_string().into())
    }));
    // Only against programs whose guards can be taken away: hack/escapes.
    let controls = std::env::var_os("COVE_CONTROLS").is_some();
    if controls {
        trials.extend(escape::CONTROLS.iter().copied().flatten().map(|case| {
            Trial::test(format!("control::{}", case.name), move || world::run(case).map_err(Into::into))
        }));
    }
    if let Some(file) = std::env::var_os("COVE_CASES") {
        match std::fs::read_to_string(&file) {
            Ok(list) => trials = listed(trials, &list),
            Err(error) => {
                eprintln!("COVE_CASES={}: {error}", file.display());
                std::process::exit(2);
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if controls {
        println!("{} passed, {} failed", conclusion.num_passed, conclusion.num_failed);
    }
    if let Err(error) = world::end_registry() {
        eprintln!("the registry of the cases is left: {error}");
    }
    conclusion.exit();
}

/// The trials that a list names.
fn listed(trials: Vec<Trial>, list: &str) -> Vec<Trial> {
    let mut names: std::collections::BTreeSet<&str> = list.lines().collect();
    let mut trials: Vec<Trial> = trials.into_iter().filter(|trial| names.remove(trial.name())).collect();
    for name in names {
        trials.push(Trial::test(name, || Err("there is no such case".into())));
    }
    trials
}
