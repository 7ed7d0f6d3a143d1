//! The signal that Stop sends: as asked for, else as the image says, else SIGTERM.

use crate::container::config::ContainerConfig;
use crate::error::Error;
use crate::image::ImageConfig;

/// See signal(7): the numbers are those of every architecture that Cove runs on (x86, ARM).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// SIGTERM.
const TERM: i32 = 15;
/// The first and the last real-time signal that programs may use: glibc keeps two below.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of the signal.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32, Error> {
    match config.stop_signal {
        Some(signal) if (1..=RTMAX).contains(&signal) => Ok(signal),
        Some(signal) => Err(Error::invalid("config.stop_signal", format!("{signal} is no signal"))),
        None if image.stop_signal.is_empty() => Ok(TERM),
        None => parse(&image.stop_signal).ok_or_else(|| {
            Error::invalid("config.image", format!("its stop signal {:?} is no signal", image.stop_signal))
        }),
    }
}

/// `15`, `TERM`, `SIGTERM`, `RTMIN+3`, `SIGRTMAX-1`.
fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(place) = SIGNALS.iter().position(|known| *known == name) {
        return i32::try_from(place + 1).ok();
    }
    let offset = |rest: &str, sign| match rest.strip_prefix(sign) {
        Some(number) => number.parse::<u8>().ok().map(i32::from),
        None => rest.is_empty().then_some(0),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN + offset(rest, '+')?,
        (None, Some(rest)) => RTMAX - offset(rest, '-')?,
        (None, None) => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_signal() {
        let table = [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigquit", Some(3)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIGNOPE", None),
        ];
        for (text, number) in table {
            assert_eq!(parse(text), number, "{text}");
        }
    }

    #[test]
    fn the_request_goes_before_the_image() {
        let mut config = crate::container::spec::tests::config();
        let mut image = ImageConfig::default();
        assert_eq!(stop_signal(&config, &image).unwrap(), 15);
        image.stop_signal = "SIGINT".into();
        assert_eq!(stop_signal(&config, &image).unwrap(), 2);
        config.stop_signal = Some(10);
        assert_eq!(stop_signal(&config, &image).unwrap(), 10);
        config.stop_signal = Some(99);
        assert!(stop_signal(&config, &image).is_err());
    }
}
