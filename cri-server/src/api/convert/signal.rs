//! The CRI's enumeration of signals against the numbers of Linux (signal(7); the same on x86-64 and arm64).

use super::super::wire::Signal;
use super::field;
use crate::error::Error;

/// The number; none for "whatever the image or the runtime says".
pub(super) fn number(value: i32) -> Result<Option<i32>, Error> {
    let signal: Signal = field::known("config.stop_signal", value)?;
    let realtime = |first: Signal| value - i32::from(first);
    Ok(match signal {
        Signal::RuntimeDefault => None,
        // 34 and 64: what glibc and musl leave of the kernel's 32 to 64.
        _ if value >= i32::from(Signal::Sigrtmaxminus14) => Some(50 + realtime(Signal::Sigrtmaxminus14)),
        _ if value >= i32::from(Signal::Sigrtmin) => Some(34 + realtime(Signal::Sigrtmin)),
        _ => NUMBERS.iter().find(|(name, _)| *name == signal).map(|(_, number)| *number),
    })
}

/// The CRI's name of a number.
pub(super) fn name(number: i32) -> Signal {
    let realtime = match number {
        34..=49 => Signal::try_from(i32::from(Signal::Sigrtmin) + number - 34).ok(),
        50..=64 => Signal::try_from(i32::from(Signal::Sigrtmaxminus14) + number - 50).ok(),
        _ => None,
    };
    let plain = || NUMBERS.iter().find(|(_, other)| *other == number).map(|(name, _)| *name);
    realtime.or_else(plain).unwrap_or(Signal::RuntimeDefault)
}

/// Where a number has two names, the one that `name` gives stands first.
const NUMBERS: [(Signal, i32); 34] = [
    (Signal::Sighup, 1),
    (Signal::Sigint, 2),
    (Signal::Sigquit, 3),
    (Signal::Sigill, 4),
    (Signal::Sigtrap, 5),
    (Signal::Sigabrt, 6),
    (Signal::Sigiot, 6),
    (Signal::Sigbus, 7),
    (Signal::Sigfpe, 8),
    (Signal::Sigkill, 9),
    (Signal::Sigusr1, 10),
    (Signal::Sigsegv, 11),
    (Signal::Sigusr2, 12),
    (Signal::Sigpipe, 13),
    (Signal::Sigalrm, 14),
    (Signal::Sigterm, 15),
    (Signal::Sigstkflt, 16),
    (Signal::Sigchld, 17),
    (Signal::Sigcld, 17),
    (Signal::Sigcont, 18),
    (Signal::Sigstop, 19),
    (Signal::Sigtstp, 20),
    (Signal::Sigttin, 21),
    (Signal::Sigttou, 22),
    (Signal::Sigurg, 23),
    (Signal::Sigxcpu, 24),
    (Signal::Sigxfsz, 25),
    (Signal::Sigvtalrm, 26),
    (Signal::Sigprof, 27),
    (Signal::Sigwinch, 28),
    (Signal::Sigio, 29),
    (Signal::Sigpoll, 29),
    (Signal::Sigpwr, 30),
    (Signal::Sigsys, 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_number_and_every_number_a_name() {
        let mut numbers = std::collections::BTreeSet::new();
        for value in 1..=65 {
            let number = number(value).unwrap().expect("a number");
            numbers.insert(number);
            let back = i32::from(name(number));
            assert_eq!(super::number(back).unwrap(), Some(number), "{value}");
        }
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), (1..=31).chain(34..=64).collect::<Vec<_>>());
        assert_eq!(number(0).unwrap(), None);
        assert!(number(66).is_err() && number(-1).is_err());
        assert_eq!(number(i32::from(Signal::Sigrtmax)).unwrap(), Some(64));
        assert_eq!(number(i32::from(Signal::Sigrtminplus15)).unwrap(), Some(49));
        assert_eq!(name(0), Signal::RuntimeDefault);
    }
}
