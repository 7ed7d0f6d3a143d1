//! The time of day as facts and log lines carry it. Reads the clock; never sets it, never asks for a time zone.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// Nanoseconds since the epoch; 0 on a machine whose clock stands before it.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// Writes times as RFC 3339 with nine digits of a second, in UTC: the form of CRI log lines. Each is later than the
/// one before, so that two equal lines never look like one that was sent twice.
#[derive(Debug)]
pub struct Stamper {
    last: i64,
    /// The second that `text` holds.
    second: i64,
    /// `2026-11-24T22:52:15.`
    text: [u8; 20],
}

impl Default for Stamper {
    fn default() -> Self {
        Self { last: -1, second: i64::MIN, text: [b'0'; 20] }
    }
}

impl Stamper {
    /// Appends the stamp of something that happened at `at`, in nanoseconds since the epoch.
    pub fn put(&mut self, at: i64, out: &mut Vec<u8>) {
        let at = at.max(self.last.saturating_add(1));
        self.last = at;
        let (second, mut fraction) = (at.div_euclid(NANOS), at.rem_euclid(NANOS));
        if second != self.second {
            self.second = second;
            self.text = date_and_time(second);
        }
        out.extend_from_slice(&self.text);
        let mut digits = *b"000000000Z";
        for digit in digits[..9].iter_mut().rev() {
            *digit = ascii(fraction % 10);
            fraction /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

/// Only ever called with 0 to 9.
fn ascii(digit: i64) -> u8 {
    b'0' + u8::try_from(digit).unwrap_or(0)
}

fn date_and_time(second: i64) -> [u8; 20] {
    let (year, month, day) = date(second.div_euclid(DAY));
    let time = second.rem_euclid(DAY);
    let mut text = *b"0000-00-00T00:00:00.";
    let fields = [(3, year, 4), (6, month, 2), (9, day, 2)];
    let clock = [(12, time / 3600, 2), (15, time / 60 % 60, 2), (18, time % 60, 2)];
    for (end, mut value, digits) in fields.into_iter().chain(clock) {
        for at in 0..digits {
            text[end - at] = ascii(value % 10);
            value /= 10;
        }
    }
    text
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts from 1 March of the year 0,
/// so that the leap day is the last of its year.
fn date(day: i64) -> (i64, i64, i64) {
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: i64 = 719_468;
    /// Days in 400 years, after which the calendar repeats.
    const CYCLE: i64 = 146_097;
    let days = day + EPOCH;
    let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    // A year has 365 days, plus one each 4 years, less one each 100, plus one each 400.
    let year = (day - day / 1460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, five months always have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(stamper: &mut Stamper, at: i64) -> String {
        let mut out = Vec::new();
        stamper.put(at, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_times() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400 * NANOS, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199 * NANOS + 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (1_795_560_735 * NANOS + 42, "2026-11-24T22:52:15.000000042Z"),
            (4_107_542_400 * NANOS, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(stamp(&mut Stamper::default(), at), text);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let leap = |y: i64| y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
        let (mut y, mut m, mut d) = (1970, 1, 1);
        for day in 0..200_000 {
            assert_eq!(date(day), (y, m, d));
            let last = match m {
                2 => 28 + i64::from(leap(y)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (y, m, d) = match (m, d == last) {
                (_, false) => (y, m, d + 1),
                (12, true) => (y + 1, 1, 1),
                (_, true) => (y, m + 1, 1),
            };
        }
    }

    #[test]
    fn times_increase_though_the_clock_does_not() {
        let mut stamper = Stamper::default();
        assert_eq!(stamp(&mut stamper, 5 * NANOS - 1), "1970-01-01T00:00:04.999999999Z");
        assert_eq!(stamp(&mut stamper, 7), "1970-01-01T00:00:05.000000000Z");
        assert_eq!(stamp(&mut stamper, 7), "1970-01-01T00:00:05.000000001Z");
    }
}
