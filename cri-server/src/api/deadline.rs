//! The deadline that a client sets for a call. tonic keeps it, but answers CANCELLED, where gRPC's own servers and clients
//! say DEADLINE_EXCEEDED: a kubelet takes the one for a probe that failed to run, the other for one that was too slow.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use tonic::codegen::http::HeaderMap;

/// Of `grpc-timeout`: `TimeoutValue` has at most 8 digits (gRPC over HTTP/2, Requests).
const LONGEST_VALUE: usize = 8;

/// When this call is over, if its client says so well-formed. tonic ignores what is not.
pub(super) fn of(headers: &HeaderMap) -> Option<Instant> {
    let timeout = parse(headers.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout)
}

/// `None` once the deadline is over. It sets no timer: tonic, around this, has one of the same length that began later,
/// and asks once more before it gives up.
pub(super) async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Pending if deadline.is_some_and(|deadline| deadline <= Instant::now()) => Poll::Ready(None),
        polled => polled.map(Some),
    })
    .await
}

fn parse(timeout: &str) -> Option<Duration> {
    let (value, unit) = timeout.split_at_checked(timeout.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > LONGEST_VALUE || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 60 * 60),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse("995m"), Some(Duration::from_millis(995)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "+1S", "1.5S", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
