//! Exec: gives out the URL at which a command is run. Takes no lock.

use super::exec::running;
use crate::error::Error;
use crate::node::Node;
use crate::stream::{Exec, Ticket, Wanted};

/// Where a client has the command run that is asked for, once, within a minute.
pub fn exec(node: &Node, id: &str, cmd: Vec<String>, streams: Wanted) -> Result<String, Error> {
    let container = node.containers.find(id, |container| container.view().is_some())?;
    running(&container)?;
    node.streams.url(Ticket::Exec(Exec { container: container.id().to_owned(), cmd, streams }))
}
