//! A network namespace that plays a machine outside: linked to the host, without any route to pods.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::thread::LinkNameSpaceType;

use crate::Outcome;
use crate::cni::run;

/// The host's address on the link (TEST-NET-2 of RFC 5737).
pub const HOST: &str = "198.51.100.1";
/// The outside's.
pub const OUTSIDE: &str = "198.51.100.2";
/// Name of the link on the host.
const LINK: &str = "e2eout";
/// Name of the namespace.
const NAME: &str = "e2e-outside";

/// The machine outside; gone when dropped.
#[derive(Debug)]
pub struct Outside(());

impl Outside {
    /// Makes it.
    pub fn new() -> Outcome<Self> {
        run("ip", &["netns", "add", NAME])?;
        let outside = Self(());
        let make = format!("link add {LINK} type veth peer name eth0 netns {NAME}");
        for line in [
            make,
            format!("addr add {HOST}/24 dev {LINK}"),
            format!("link set {LINK} up"),
            format!("-n {NAME} addr add {OUTSIDE}/24 dev eth0"),
            format!("-n {NAME} link set eth0 up"),
            format!("-n {NAME} link set lo up"),
        ] {
            run("ip", &line.split(' ').collect::<Vec<_>>())?;
        }
        Ok(outside)
    }

    /// Does something out there.
    pub fn act<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Outcome<T> {
        within(&PathBuf::from("/run/netns").join(NAME), act)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The namespace and the link go with each other; the kernel takes its time for the former.
        for line in [&["link", "del", LINK][..], &["netns", "del", NAME]] {
            if let Err(error) = run("ip", line) {
                eprintln!("{error}");
            }
        }
    }
}

/// Does something on a thread in a network namespace. Sockets that it makes stay there.
pub fn within<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> Outcome<T> {
    let netns = File::open(netns).map_err(|error| format!("{}: {error}", netns.display()))?;
    std::thread::scope(|scope| {
        let enter = || {
            let network = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns.as_fd(), network).map(|()| act())
        };
        Ok(scope.spawn(enter).join().map_err(|_| "a thread in a namespace panicked")??)
    })
}
