//! Sandboxes, containers, rootfs and cgroups, made out of the kernel's namespaces, cgroups and overlayfs.
//!
//! Knows Linux and the OCI runtime spec; knows nothing of gRPC, tokio or Kubernetes. The daemon links the library
//! (feature `lib`), the shim is its own binary (feature `shim`).
#![forbid(unsafe_code)]

#[cfg(feature = "lib")]
pub mod allocator;
pub mod build;
#[cfg(feature = "lib")]
pub mod cgroup;
pub mod descriptors;
pub mod memfd;
#[cfg(feature = "lib")]
pub mod mount_table;
#[cfg(feature = "lib")]
pub mod namespace;
pub mod process;
pub mod protocol;
#[cfg(feature = "lib")]
pub mod seccomp;
#[cfg(any(feature = "shim", test))]
pub mod shim;
pub mod socket;
#[cfg(feature = "lib")]
pub mod spec;
pub mod sysctl;
pub mod wire;
