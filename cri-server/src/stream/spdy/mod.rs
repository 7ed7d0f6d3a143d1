//! SPDY/3.1, the server's side, as far as Kubernetes' clients use it (SPDY Protocol, draft 3.1; moby/spdystream is the
//! client of kubelet, kubectl and crictl). Flow control windows are not kept: that client neither honours nor
//! announces them. What a client does not read is held back by TCP.

mod connection;
mod frame;
mod headers;

pub use connection::{Stream, serve};
