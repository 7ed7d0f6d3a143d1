//! Black-box tests over the CRI socket, and the logic behind the scripts in `hack/`.
//!
//! Never depends on package `cove`: what is tested here is what a kubelet sees. Bindings are `k8s-cri`, not ours.
#![forbid(unsafe_code)]

pub mod archive;
pub mod attacker;
pub mod audit;
pub mod bulk;
pub mod cache;
pub mod certificate;
pub mod cgroup;
pub mod client;
pub mod cni;
pub mod containerd;
pub mod crictl;
pub mod critest;
pub mod daemon;
mod ensure;
pub mod image;
pub mod kubelet;
pub mod leak;
pub mod outside;
pub mod peer;
pub mod pod;
pub mod process;
pub mod proxy;
pub mod random;
pub mod registry;
pub mod relay;
pub mod residue;
pub mod server;
pub mod spdy;
pub mod sysctl;
pub mod token;
pub mod tree;
pub mod wait;
pub mod websocket;

/// What a case or a step of a tool comes to. Any error fails it, with its text.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
