//! Exec and Attach: give out the URL at which a command is run, or a container's own streams are. Takes no lock.

use super::exec::running;
use crate::error::Error;
use crate::node::Node;
use crate::stream::{Attach, Exec, Ticket, Wanted};

/// Where a client has the command run that is asked for, once, within a minute.
pub fn exec(node: &Node, id: &str, cmd: Vec<String>, streams: Wanted) -> Result<String, Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    running(&container)?;
    node.streams.url(Ticket::Exec(Exec { container: container.id().to_owned(), cmd, streams }))
}

/// Where a client is given the streams of a container, once, within a minute. They are a terminal if the container
/// was made with one.
pub fn attach(node: &Node, id: &str, streams: Wanted) -> Result<String, Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    running(&container)?;
    if streams.tty != container.identity.config.terminal {
        let reason =
            if streams.tty { "the container has no terminal" } else { "the container has a terminal" };
        return Err(Error::invalid("tty", reason));
    }
    if streams.stdin && !container.identity.config.stdin {
        return Err(Error::invalid("stdin", "the container was made without stdin"));
    }
    node.streams.url(Ticket::Attach(Attach { container: container.id().to_owned(), streams }))
}
