//! SPDY/3.1, the server's side, as far as Kubernetes' clients use it (SPDY Protocol, draft 3.1; moby/spdystream is the
//! client of kubelet, kubectl and crictl). The protocol's flow control windows are not kept: that client
//! neither honours nor announces them, and would stop after 64 KiB. What is not read is held back by TCP in both
//! directions, after a bounded queue.

mod connection;
mod frame;
mod headers;

pub use connection::{Kind, Stream, serve};
