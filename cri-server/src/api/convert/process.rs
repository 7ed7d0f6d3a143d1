//! What runs: command, arguments, environment, and the request of ExecSync.

use std::time::Duration;

use super::super::wire;
use super::field::{id, no_nul};
use crate::error::Error;

/// The longest grace or timeout, 100 years: more than any node lives, and no clock overflows on it.
const LONGEST: i64 = 100 * 365 * 24 * 3600;

/// A request of ExecSync, checked.
#[derive(Debug)]
pub(in crate::api) struct ExecSync {
    /// Container.
    pub container: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// None: no limit.
    pub timeout: Option<Duration>,
}

/// Checks a request of ExecSync.
pub(in crate::api) fn exec_sync(request: wire::ExecSyncRequest) -> Result<ExecSync, Error> {
    let container = id("container_id", request.container_id)?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "must not be empty"));
    }
    strings("cmd", &request.cmd)?;
    let timeout = seconds("timeout", request.timeout)?;
    Ok(ExecSync { container, cmd: request.cmd, timeout: (!timeout.is_zero()).then_some(timeout) })
}

/// Seconds, not negative.
pub(in crate::api) fn seconds(field: &str, value: i64) -> Result<Duration, Error> {
    u64::try_from(value.min(LONGEST))
        .map(Duration::from_secs)
        .map_err(|_| Error::invalid(field, format!("{value} seconds: must not be negative")))
}

/// Strings for execve(2).
pub(super) fn strings(field: &str, values: &[String]) -> Result<(), Error> {
    values
        .iter()
        .enumerate()
        .try_for_each(|(index, value)| no_nul(&format!("{field}[{index}]"), value.as_bytes()))
}

/// Names and values; a value may be any bytes but NUL.
pub(super) fn environment(envs: Vec<wire::KeyValue>) -> Result<Vec<(String, Vec<u8>)>, Error> {
    envs.into_iter()
        .enumerate()
        .map(|(index, env)| {
            let field = format!("config.envs[{index}]");
            if env.key.is_empty() || env.key.contains('=') {
                return Err(Error::invalid(
                    format!("{field}.key"),
                    format!("{:?} is not a name: not empty, without '='", env.key),
                ));
            }
            no_nul(&format!("{field}.key"), env.key.as_bytes())?;
            no_nul(&format!("{field}.value"), &env.value)?;
            Ok((env.key, env.value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> wire::ExecSyncRequest {
        wire::ExecSyncRequest { container_id: "a".into(), cmd: vec!["true".into()], timeout: 3 }
    }

    #[test]
    fn exec_is_checked() {
        assert_eq!(exec_sync(request()).unwrap().timeout, Some(Duration::from_secs(3)));
        assert_eq!(exec_sync(wire::ExecSyncRequest { timeout: 0, ..request() }).unwrap().timeout, None);
        let cases = [
            (wire::ExecSyncRequest { container_id: String::new(), ..request() }, "container_id"),
            (wire::ExecSyncRequest { cmd: vec![], ..request() }, "cmd"),
            (wire::ExecSyncRequest { cmd: vec!["a".into(), "b\0".into()], ..request() }, "cmd[1]"),
            (wire::ExecSyncRequest { timeout: -1, ..request() }, "timeout"),
        ];
        for (request, field) in cases {
            let error = exec_sync(request).unwrap_err();
            assert!(
                matches!(&error, Error::InvalidArgument { field: found, .. } if found == field),
                "{error}"
            );
        }
    }

    #[test]
    fn endless_timeouts_do_not_overflow_a_clock() {
        let longest = seconds("f", i64::MAX).unwrap();
        assert!(std::time::Instant::now().checked_add(longest).is_some());
    }
}
