//! Exec, Attach and PortForward: a call is answered with a URL, and whoever comes there within a minute is given the
//! stream, once.
//!
//! Never waits for a client with anything but that client's own session: what a client does not read stays in a
//! bounded queue, and what fills it waits.

mod attach;
mod connection;
mod copy;
mod exec;
mod handshake;
mod hang_up;
mod idle;
mod port_forward;
mod remote_command;
mod server;
mod spdy;
mod terminal;
mod tls;
mod token;
mod transport;
mod websocket;

pub use remote_command::Wanted;
pub use server::{Streams, start};
pub use terminal::open as open_terminal;
pub use token::{Attach, Exec, PortForward, Ticket};
