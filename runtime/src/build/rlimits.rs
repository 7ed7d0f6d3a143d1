//! Resource limits, by the numbers that the kernel gives them. See setrlimit(2).

use rustix::process::{Resource, Rlimit as Pair, getrlimit, setrlimit};

use super::request::Rlimit;
use super::step::{At, refuse};
use crate::descriptors;
use crate::protocol::Failure;

const STEP: &str = "rlimits";

/// By number: asm-generic/resource.h, which x86_64 and aarch64 share.
const BY_NUMBER: [(&str, Resource); 16] = [
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_STACK", Resource::Stack),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
];

/// The number of a name of setrlimit(2), for example `RLIMIT_NOFILE`.
pub fn number(name: &str) -> Option<u32> {
    BY_NUMBER.iter().position(|(known, _)| *known == name).and_then(|number| u32::try_from(number).ok())
}

/// Sets each limit. Raising a hard limit needs CAP_SYS_RESOURCE: without it that is an error, not a lower limit.
/// What the shim raised for itself is not the container's.
pub(super) fn apply(limits: &[Rlimit]) -> Result<(), Failure> {
    descriptors::allow_usual().at(STEP, || "set RLIMIT_NOFILE to its usual value".to_owned())?;
    for limit in limits {
        let known = usize::try_from(limit.resource).ok().and_then(|number| BY_NUMBER.get(number));
        let Some((name, resource)) = known else {
            return refuse(STEP, format!("there is no resource {}", limit.resource));
        };
        let pair = Pair { current: finite(limit.soft), maximum: finite(limit.hard) };
        if getrlimit(*resource) == pair {
            continue;
        }
        setrlimit(*resource, pair)
            .at(STEP, || format!("set {name} to {} and {}", shown(limit.soft), shown(limit.hard)))?;
    }
    Ok(())
}

/// Raises the hard limits that must be higher than they are: in a user namespace nobody may.
pub(super) fn raise(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let known = usize::try_from(limit.resource).ok().and_then(|number| BY_NUMBER.get(number));
        // What is not known is told when it is applied.
        let Some((name, resource)) = known else { continue };
        let now = getrlimit(*resource);
        if now.maximum.is_some_and(|maximum| maximum < limit.hard) {
            setrlimit(*resource, Pair { maximum: finite(limit.hard), ..now })
                .at(STEP, || format!("raise {name} to {}", shown(limit.hard)))?;
        }
    }
    Ok(())
}

/// RLIM_INFINITY is all ones.
fn finite(value: u64) -> Option<u64> {
    if value == u64::MAX { None } else { Some(value) }
}

fn shown(value: u64) -> String {
    finite(value).map_or_else(|| "unlimited".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(number("RLIMIT_NOFILE"), Some(7));
        assert_eq!(number("RLIMIT_RTTIME"), Some(15));
        assert_eq!(number("RLIMIT_X"), None);
        for (number, (name, resource)) in BY_NUMBER.iter().enumerate() {
            assert_eq!(*resource as usize, number, "{name}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        let refused = apply(&[Rlimit { resource: 16, soft: 1, hard: 1 }]).unwrap_err();
        assert!(refused.detail.contains("no resource 16"), "{refused:?}");
    }
}
