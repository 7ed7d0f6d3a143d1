//! The sequence of a further process in a running container.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use cove_guard::Guard;
use cove_path::Root;

use super::create::{begin, open_proc, read_spec};
use super::line::Line;
use super::process::{self, Process};
use super::report::Report;
use super::request::ProcessSpec;
use super::step::At;
use super::{Work, identity, namespaces, rlimits};
use crate::protocol::Failure;

/// See [`super::join`].
pub(super) fn run(work: Work, target: OwnedFd, line: &Line) -> Result<Infallible, Failure> {
    let Work { single, spec, gate0, stdio, terminal, user, void } = work;
    drop(void);
    begin(gate0)?;
    let spec: ProcessSpec = read_spec(spec)?;
    let proc = open_proc(&spec)?;

    let outside = Guard::BuilderOutside.holds();
    if !outside {
        process::clone_at_once(single, target.as_fd(), line)?;
    }
    namespaces::enter_container(target.as_fd())?;
    drop(target);
    let root = Root::of_process().at("namespaces", || "open the container's root".to_owned())?;
    let who = identity::resolve(&root, &spec.user)?;
    // A clone may not say it any more.
    if outside {
        line.say(&Report::User(who.user.clone()));
    }
    if let Some(user) = user {
        user.check(&who.user)?;
        user.give_stdio(&stdio, &who.user)?;
        rlimits::raise(&spec.rlimits)?;
        user.enter()?;
    }

    let clone = outside.then_some(single);
    Process { spec: &spec, who: &who, stdio, terminal, proc, clone }.run(root, line)
}
