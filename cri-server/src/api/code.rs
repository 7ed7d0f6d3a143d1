//! The one table from errors to gRPC codes.
//!
//! A kubelet decides by three of them (features.md D4): `NotFound`, `DeadlineExceeded`, `Unimplemented`; and it reads two
//! prefixes of PullImage only when the code is `Unknown` (D3). Every other code is for people and their tools.

use std::io;

use cove_netplugin::CniError;
use cove_netplugin::builtin::NetworkError;
use cove_runtime::cgroup::CgroupError;
use tonic::{Code, Status};

use crate::error::Error;
use crate::image::ImageError;
use crate::store::RecordError;

/// The longest message of a status, in bytes. It travels percent-encoded (up to three times as long) in one header,
/// and a client's default limit for all headers is 16 KiB (SETTINGS_MAX_HEADER_LIST_SIZE of grpc-go).
const MAX_MESSAGE: usize = 4 * 1024;

/// What a message begins with when an image volume cannot be mounted: a kubelet and others look for it (cri-api v0.37,
/// `ErrImageVolumeMountFailed`).
pub(super) const IMAGE_VOLUME: &str = "ImageVolumeMountFailed: ";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        if error.is_of_image_volume() {
            message.insert_str(0, IMAGE_VOLUME);
        }
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        Self::new(code(&error), message)
    }
}

/// The code of an error: that of the cause below every step.
pub(super) fn code(error: &Error) -> Code {
    match error.cause() {
        Error::InvalidArgument { .. } | Error::Ambiguous { .. } | Error::Spec(_) => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::NameTaken { .. } => Code::AlreadyExists,
        Error::WrongState { .. } | Error::Closing { .. } => Code::FailedPrecondition,
        Error::StillRunning { .. } | Error::TimedOut { .. } => Code::DeadlineExceeded,
        Error::Unavailable(_) | Error::NetworkNotReady(_) | Error::Interrupted { .. } => Code::Unavailable,
        Error::Unimplemented(_) => Code::Unimplemented,
        Error::Exhausted(_) => Code::ResourceExhausted,
        Error::Failure { errno, .. } => of_failure(*errno),
        Error::System { source, .. } => of_io(source),
        Error::Record(RecordError::Io { source, .. }) => of_io(source),
        Error::Record(RecordError::Corrupt { .. }) => Code::Internal,
        Error::Cgroup(error) => of_cgroup(error),
        Error::Network(error) => of_network(error),
        Error::Cni(error) => of_cni(error.first()),
        Error::Image(error) => of_image(error),
        // `cause` looks through these.
        Error::Step { .. } | Error::ImageVolume { .. } | Error::Joined(_) | Error::Both { .. } => {
            Code::Internal
        }
    }
}

/// A builder that refused without an errno, or because something is not there or cannot be used, speaks of what was
/// asked for: an unknown user, a command that does not exist. The rest is the node's fault.
fn of_failure(errno: i32) -> Code {
    use rustix::io::Errno;
    const ASKED: [Errno; 6] =
        [Errno::NOENT, Errno::ACCESS, Errno::NOTDIR, Errno::NOEXEC, Errno::LOOP, Errno::ISDIR];
    if errno == 0 || ASKED.iter().any(|asked| asked.raw_os_error() == errno) {
        Code::FailedPrecondition
    } else {
        of_io(&io::Error::from_raw_os_error(errno))
    }
}

fn of_io(error: &io::Error) -> Code {
    use rustix::io::Errno;
    const FULL: [Errno; 7] =
        [Errno::NOSPC, Errno::DQUOT, Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::USERS];
    let full = error.raw_os_error().is_some_and(|errno| FULL.iter().any(|full| full.raw_os_error() == errno));
    if full { Code::ResourceExhausted } else { Code::Internal }
}

fn of_cgroup(error: &CgroupError) -> Code {
    match error {
        CgroupError::Path { .. } | CgroupError::Limit { .. } => Code::InvalidArgument,
        CgroupError::System { source, .. } | CgroupError::Program { source, .. } => of_io(source),
        // A limit that the kernel does not take (a cpu that is not there, memory below what is used) was asked for.
        CgroupError::Value { source, .. } => match of_io(source) {
            Code::Internal => Code::FailedPrecondition,
            full => full,
        },
        CgroupError::NoController(_) => Code::FailedPrecondition,
        CgroupError::Mount { .. } | CgroupError::Content { .. } => Code::Internal,
    }
}

fn of_network(error: &NetworkError) -> Code {
    match error {
        NetworkError::Exhausted { .. } => Code::ResourceExhausted,
        NetworkError::System { source, .. } => of_io(source),
        NetworkError::Nft(_) | NetworkError::Name { .. } => Code::Internal,
        NetworkError::Range { .. } | NetworkError::Port { .. } | NetworkError::Another { .. } => {
            Code::FailedPrecondition
        }
    }
}

fn of_cni(error: &CniError) -> Code {
    /// "Try again later" and the two of a plugin that is not available (CNI spec 1.1.0, "Error").
    const LATER: [u64; 3] = [11, 50, 51];
    match error {
        CniError::TimedOut { .. } => Code::DeadlineExceeded,
        CniError::Asked { .. } => Code::InvalidArgument,
        CniError::Refused { code, .. } if LATER.contains(code) => Code::Unavailable,
        CniError::Conflist { .. } | CniError::Missing { .. } | CniError::Cancelled { .. } => {
            Code::FailedPrecondition
        }
        CniError::System { source, .. } => of_io(source),
        CniError::Refused { .. }
        | CniError::Failed { .. }
        | CniError::Answer { .. }
        | CniError::Flood { .. }
        // `first` looks through this.
        | CniError::Both { .. } => Code::Internal,
    }
}

fn of_image(error: &ImageError) -> Code {
    match error {
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::Ambiguous { .. }
        | ImageError::InvalidReference { .. }
        | ImageError::InvalidAuth { .. } => Code::InvalidArgument,
        // The one that a kubelet reads by its prefix.
        ImageError::RegistryUnavailable { .. } => Code::Unknown,
        ImageError::Registry { status, .. } => of_registry(*status),
        // What the registry holds is not usable, and the same request would find it so again.
        ImageError::Content { .. } | ImageError::Layer { .. } | ImageError::ArchiveLayer { .. }
            if error.is_disk_full() =>
        {
            Code::ResourceExhausted
        }
        ImageError::Hosts { .. }
        | ImageError::Content { .. }
        | ImageError::Layer { .. }
        | ImageError::Archive { .. }
        | ImageError::ArchiveLayer { .. }
        | ImageError::Damaged { .. }
        | ImageError::Export { .. } => Code::FailedPrecondition,
        ImageError::Store { source, .. } => of_io(source),
    }
}

fn of_registry(status: u16) -> Code {
    match status {
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        429 => Code::ResourceExhausted,
        500.. => Code::Unavailable,
        _ => Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn every_error_has_its_code() {
        let kind = Kind::Container;
        let io = |errno: i32| io::Error::from_raw_os_error(errno);
        let cases = [
            (Error::invalid("config", "is missing"), Code::InvalidArgument),
            (Error::NotFound { kind, id: "a".into() }, Code::NotFound),
            (Error::Ambiguous { kind, prefix: "a".into(), count: 2 }, Code::InvalidArgument),
            (Error::NameTaken { kind, name: "a".into(), id: "b".into() }, Code::AlreadyExists),
            (
                Error::WrongState { kind, id: "a".into(), state: "exited", needed: "it must run" },
                Code::FailedPrecondition,
            ),
            (
                Error::Closing { operation: "Start", kind, id: "a".into(), step: "spawn" },
                Code::FailedPrecondition,
            ),
            (
                Error::TimedOut { operation: "ExecSync", object: "a".into(), limit: Duration::from_secs(1) },
                Code::DeadlineExceeded,
            ),
            (Error::Unavailable("later"), Code::Unavailable),
            (Error::NetworkNotReady("no file".into()), Code::Unavailable),
            (
                CniError::Missing { kind: "bridge".into(), directories: "/x".into() }.into(),
                Code::FailedPrecondition,
            ),
            (Error::Exhausted("too many"), Code::ResourceExhausted),
            (Error::Unimplemented("Attach"), Code::Unimplemented),
            (
                Error::Failure { step: "identity".into(), detail: "no user x".into(), errno: 0 },
                Code::FailedPrecondition,
            ),
            (Error::Failure { step: "exec".into(), detail: "x".into(), errno: 2 }, Code::FailedPrecondition),
            (
                Error::Failure { step: "mounts".into(), detail: "x".into(), errno: 28 },
                Code::ResourceExhausted,
            ),
            (Error::Failure { step: "mounts".into(), detail: "x".into(), errno: 22 }, Code::Internal),
            (Error::system("create directory", "/x", io(28)), Code::ResourceExhausted),
            (Error::system("create directory", "/x", io(5)), Code::Internal),
            (ImageError::NotFound { reference: "a".into() }.into(), Code::NotFound),
            (
                NetworkError::Exhausted { cidr: "10.0.0.0/24".into(), leased: 254 }.into(),
                Code::ResourceExhausted,
            ),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            assert_eq!(code(&error), expected, "{text}");
            let status = Status::from(Error::Joined(Arc::new(error)).at("Network", "sandbox a"));
            assert_eq!(status.code(), expected, "{text} below a step");
            assert!(status.message().contains(&text), "{}", status.message());
        }
    }

    #[test]
    fn an_image_volume_is_told_by_how_the_message_begins() {
        let missing = Error::from(ImageError::NotFound { reference: "a".into() });
        let error = Error::ImageVolume { mount: "config.mounts[0]".into(), source: Box::new(missing) };
        let status = Status::from(Error::Joined(Arc::new(error.at("resolve", "container a"))));
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().starts_with("ImageVolumeMountFailed: step resolve"), "{}", status.message());
    }

    #[test]
    fn long_messages_are_cut() {
        let status = Status::from(Error::invalid("config", "é".repeat(MAX_MESSAGE)));
        assert!(status.message().len() <= MAX_MESSAGE + '…'.len_utf8());
    }
}
