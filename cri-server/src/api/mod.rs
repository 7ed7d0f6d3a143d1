//! Where wire types are born and die: nothing outside this room knows gRPC.
//!
//! A call passes `layer` (span, time, gate, panics), one of the two services (a few lines a method) and `convert`, which
//! refuses all that can be refused. What comes back is an `Error` until `code` gives it its gRPC code.

mod code;
mod convert;
mod deadline;
mod events;
mod image_service;
mod images;
mod layer;
mod listen;
mod node_status;
mod runtime_service;
mod server;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod tests;

pub(crate) use images::serve_images;
pub(crate) use listen::bind;
pub(crate) use server::serve;

/// The CRI's messages and service traits, generated from `proto/api.proto`.
mod wire {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        dead_code,
        missing_docs,
        reason = "generated from proto/api.proto"
    )]
    tonic::include_proto!("runtime.v1");

    /// Never shows what it holds.
    impl std::fmt::Debug for AuthConfig {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("AuthConfig(…)")
        }
    }
}

/// The messages, service and client of Cove's own command line, generated from `proto/images.proto`.
pub(crate) mod own {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        dead_code,
        missing_docs,
        missing_debug_implementations,
        reason = "generated from proto/images.proto"
    )]
    tonic::include_proto!("cove.images.v1");

    /// Never shows what it holds.
    impl std::fmt::Debug for PullRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "PullRequest({})", self.reference)
        }
    }

    /// Never shows what it holds.
    impl std::fmt::Debug for RepairRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "RepairRequest({})", self.id)
        }
    }
}
