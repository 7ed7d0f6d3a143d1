//! PortForward: gives out the URL at which ports of a pod are reached. Takes no lock.

use crate::error::Error;
use crate::node::Node;
use crate::stream::{PortForward, Ticket};

/// Where a client reaches ports of a pod, once, within a minute.
pub async fn port_forward(node: &Node, id: &str, ports: Vec<u16>) -> Result<String, Error> {
    let sandbox = node.sandboxes.find(id, |sandbox| sandbox.view().is_some())?;
    // It must live.
    sandbox.adopted_shim().await?;
    node.streams.url(Ticket::PortForward(PortForward { sandbox: sandbox.id().to_owned(), ports }))
}
