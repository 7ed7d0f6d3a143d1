//! When to ask again: a registry that is too busy says so (429, 503), and perhaps when to come back (RFC 9110 section
//! 10.2.3). How long it may make us wait is bounded.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;

/// How often a request is sent again.
const MAX_RETRIES: u32 = 4;

/// How long a registry that is busy may make a pull wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Patience {
    /// Before the first try after a refusal that names no time; doubled with each.
    pub(in crate::image) first: Duration,
    /// The longest wait before one try.
    pub(in crate::image) longest: Duration,
}

impl Patience {
    /// How long to wait before trying again after `tries` refusals, if at all.
    pub(super) fn wait(
        &self,
        tries: u32,
        status: StatusCode,
        retry_after: Option<&str>,
        now: SystemTime,
    ) -> Wait {
        const BUSY: [StatusCode; 2] = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if !BUSY.contains(&status) || tries >= MAX_RETRIES {
            return Wait::No;
        }
        match retry_after.and_then(|text| asked(text, now)) {
            Some(asked) if asked > self.longest => Wait::TooLong(asked),
            Some(asked) => Wait::For(asked),
            None => Wait::For(self.pause(tries)),
        }
    }

    /// The pause after `tries` failures in a row.
    pub(super) fn pause(&self, tries: u32) -> Duration {
        self.first.saturating_mul(1 << tries.min(16)).min(self.longest)
    }
}

/// Whether to try again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all: the answer stands.
    No,
    /// After this time.
    For(Duration),
    /// The registry wants this time, which is longer than it may.
    TooLong(Duration),
}

/// `Retry-After`: seconds, or a date.
fn asked(text: &str, now: SystemTime) -> Option<Duration> {
    match text.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // A date that has passed means now.
        Err(_) => Some(httpdate::parse_http_date(text.trim()).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_asked_for_within_bounds() {
        let patience = Patience { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        let now = httpdate::parse_http_date("Thu, 26 Nov 2026 19:00:00 GMT").unwrap();
        let seconds = |seconds| Wait::For(Duration::from_secs(seconds));
        let table = [
            (0, 429, Some("7"), seconds(7)),
            (0, 503, Some(" 60 "), seconds(60)),
            (0, 429, Some("61"), Wait::TooLong(Duration::from_secs(61))),
            (0, 429, Some("18446744073709551615"), Wait::TooLong(Duration::from_secs(u64::MAX))),
            (0, 503, Some("Thu, 26 Nov 2026 19:00:09 GMT"), seconds(9)),
            (0, 503, Some("Thu, 26 Nov 2026 18:00:00 GMT"), seconds(0)),
            (0, 503, Some("Thu, 26 Nov 2099 18:00:00 GMT"), Wait::No),
            (0, 429, Some("-1"), seconds(1)),
            (0, 429, Some("soon"), seconds(1)),
            (2, 429, None, seconds(4)),
            (4, 429, None, Wait::No),
            (0, 500, Some("1"), Wait::No),
            (0, 404, None, Wait::No),
        ];
        for (tries, status, retry_after, expected) in table {
            let found = patience.wait(tries, StatusCode::from_u16(status).unwrap(), retry_after, now);
            if retry_after.is_some_and(|text| text.contains("2099")) {
                assert!(matches!(found, Wait::TooLong(_)));
            } else {
                assert_eq!(found, expected, "{status} {retry_after:?} after {tries}");
            }
        }
        assert_eq!(patience.pause(40), Duration::from_secs(60));
    }
}
