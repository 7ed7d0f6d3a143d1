//! The one error type of the daemon. `api/code.rs` maps it to gRPC codes; nothing else does.

use std::time::Duration;

/// What kind of object an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod's sandbox.
    Sandbox,
    /// A container.
    Container,
    /// An image.
    Image,
    /// A runtime handler.
    RuntimeHandler,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sandbox => "sandbox",
            Self::Container => "container",
            Self::Image => "image",
            Self::RuntimeHandler => "runtime handler",
        })
    }
}

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request cannot be honoured.
    #[error("{field}: {reason}")]
    InvalidArgument {
        /// Path of the field in the request message.
        field: String,
        /// What is wrong with its value, and what would be right.
        reason: String,
    },
    /// No such object.
    #[error("{kind} {id:?} does not exist")]
    NotFound {
        /// Kind of object.
        kind: Kind,
        /// As asked for.
        id: String,
    },
    /// A prefix that more than one id begins with.
    #[error("{kind} id {prefix:?} is ambiguous: {count} ids begin with it; give more digits")]
    Ambiguous {
        /// Kind of object.
        kind: Kind,
        /// As asked for.
        prefix: String,
        /// How many match.
        count: usize,
    },
    /// The name belongs to a live object that was asked for with another configuration.
    #[error(
        "{kind} name {name} belongs to {id}, which was asked for with another configuration: stop and remove it first"
    )]
    NameTaken {
        /// Kind of object.
        kind: Kind,
        /// The name, in readable form.
        name: String,
        /// Its owner.
        id: String,
    },
    /// The object is not in the state that the operation needs.
    #[error("{kind} {id} is {state}: {needed}")]
    WrongState {
        /// Kind of object.
        kind: Kind,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
        /// What the operation needs.
        needed: &'static str,
    },
    /// The operation gave up because its object is being stopped or removed.
    #[error("{operation} of {kind} {id} gave up at step {step}: it is being stopped or removed")]
    Closing {
        /// Run, create or start.
        operation: &'static str,
        /// Kind of object.
        kind: Kind,
        /// Its id.
        id: String,
        /// Where it gave up.
        step: &'static str,
    },
    /// The caller's time is nearly over, and the work goes on.
    #[error(
        "{operation} of {object} is at step {step} for {age:?}; it goes on, and the same request joins it"
    )]
    StillRunning {
        /// The operation.
        operation: &'static str,
        /// What it works on.
        object: String,
        /// Where it is.
        step: &'static str,
        /// How long it has been there.
        age: Duration,
    },
    /// A time limit was reached and the work was ended.
    #[error("{operation} of {object} took longer than {limit:?} and was ended")]
    TimedOut {
        /// The operation.
        operation: &'static str,
        /// What it worked on.
        object: String,
        /// The limit.
        limit: Duration,
    },
    /// A step of an operation failed.
    #[error("step {step} of {object}: {source}")]
    Step {
        /// The step.
        step: &'static str,
        /// Kind and id of the object.
        object: String,
        /// Why.
        source: Box<Error>,
    },
    /// The shim or the builder refused or failed.
    #[error("{step}: {detail}{}", errno_text(*errno, detail))]
    Failure {
        /// The builder's step.
        step: String,
        /// What it was doing, on which path.
        detail: String,
        /// The kernel's answer, or 0.
        errno: i32,
    },
    /// A system call failed.
    #[error("{doing} {object}: {source}")]
    System {
        /// What was being done ("create directory").
        doing: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An image volume cannot be mounted.
    #[error("{mount}: {source}")]
    ImageVolume {
        /// Path of the field in the request message, or the container.
        mount: String,
        /// Why.
        source: Box<Error>,
    },
    /// The operation that this call joined failed; everyone who waited for it is told.
    #[error(transparent)]
    Joined(std::sync::Arc<Error>),
    /// An operation was ended with the daemon, or by a fault of the daemon.
    #[error("{operation} of {object} was ended before it was done")]
    Interrupted {
        /// The operation.
        operation: &'static str,
        /// What it worked on.
        object: String,
    },
    /// Several things went wrong while the same thing was undone; each is worth knowing.
    #[error("{first}; then {then}")]
    Both {
        /// What went wrong first, and decides the code.
        first: Box<Error>,
        /// What went wrong after it.
        then: Box<Error>,
    },
    /// A record on disk is not what was written.
    #[error(transparent)]
    Record(#[from] crate::store::RecordError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] cove_runtime::cgroup::CgroupError),
    /// The pod network.
    #[error(transparent)]
    Network(#[from] cove_netplugin::builtin::NetworkError),
    /// CNI plugins.
    #[error(transparent)]
    Cni(#[from] cove_netplugin::CniError),
    /// No pod can be attached to a network now.
    #[error("network is not ready: {0}")]
    NetworkNotReady(String),
    /// Something that was asked for is not in this version's OCI spec.
    #[error(transparent)]
    Spec(#[from] cove_runtime::spec::SpecError),
    /// Images.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// There are as many already as there may be.
    #[error("{0}")]
    Exhausted(&'static str),
    /// The daemon is not ready for this yet.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Not built.
    #[error("{0} is not implemented by this version of Cove")]
    Unimplemented(&'static str),
}

/// The kernel's answer in words, unless the detail has them already.
fn errno_text(errno: i32, detail: &str) -> String {
    let words = std::io::Error::from_raw_os_error(errno).to_string();
    if errno == 0 || detail.contains(&words) { String::new() } else { format!(": {words}") }
}

impl From<cove_runtime::protocol::Failure> for Error {
    fn from(failure: cove_runtime::protocol::Failure) -> Self {
        let cove_runtime::protocol::Failure { step, errno, detail } = failure;
        Self::Failure { step, detail, errno }
    }
}

impl Error {
    /// A field of the request cannot be honoured.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field: field.into(), reason: reason.into() }
    }

    /// A system call failed.
    pub fn system(doing: &'static str, object: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System { doing, object: object.into(), source: source.into() }
    }

    /// Both failures; the first decides the code.
    #[must_use]
    pub fn then(self, then: Self) -> Self {
        Self::Both { first: Box::new(self), then: Box::new(then) }
    }

    /// What the code of an answer depends on: the error below every step, join and pair.
    pub fn cause(&self) -> &Self {
        match self {
            Self::Step { source, .. } | Self::ImageVolume { source, .. } => source.cause(),
            Self::Joined(error) => error.cause(),
            Self::Both { first, .. } => first.cause(),
            other => other,
        }
    }

    /// Whether it is an image volume that failed, below every step, join and pair.
    pub fn is_of_image_volume(&self) -> bool {
        match self {
            Self::ImageVolume { .. } => true,
            Self::Step { source, .. } => source.is_of_image_volume(),
            Self::Joined(error) => error.is_of_image_volume(),
            Self::Both { first, .. } => first.is_of_image_volume(),
            _ => false,
        }
    }

    /// The same error as the failure of a step.
    #[must_use]
    pub fn at(self, step: &'static str, object: impl Into<String>) -> Self {
        Self::Step { step, object: object.into(), source: Box::new(self) }
    }
}
