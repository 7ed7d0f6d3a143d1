//! Figures of a pod's links, from /proc/PID/net/dev of a process in its network namespace: proc_pid_net(5). The file is
//! opened for each reading, since an open one keeps the namespace alive.

use crate::error::Error;

/// Name of the link that a pod is attached by, in every network of Kubernetes.
pub(crate) const DEFAULT: &str = "eth0";
/// Not told: nothing of it leaves the pod.
const LOOPBACK: &str = "lo";

/// What went over a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Bytes, packets, errors, dropped packets that came in.
    pub received: [u64; 4],
    /// The same that went out.
    pub sent: [u64; 4],
}

impl Interface {
    /// The one that the pod is attached by.
    pub fn is_default(&self) -> bool {
        self.name == DEFAULT
    }
}

/// The links of the namespace that `pid` is in, but loopback; none if there is no such process. Blocking.
pub(super) fn links(pid: i32) -> Result<Vec<Interface>, Error> {
    let path = format!("/proc/{pid}/net/dev");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(Error::system("read", path, error)),
    }
}

/// A process that ended: no entry, or one that answers nothing.
fn is_gone(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
}

/// Two lines of heading, then `name: 8 numbers in, 8 numbers out`. What is no such line is no link.
fn parse(text: &str) -> Vec<Interface> {
    text.lines().filter_map(line).filter(|link| link.name != LOOPBACK).collect()
}

fn line(line: &str) -> Option<Interface> {
    let (name, numbers) = line.trim_start().split_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let part = |from: usize| numbers.get(from..from + 4)?.try_into().ok();
    Some(Interface { name: name.to_owned(), received: part(0)?, sent: part(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_links() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:   1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                    eth0: 100 2 3 4 0 0 0 0 200 10 11 12 0 0 0 0\nbad: 1 2\nworse: 1 x\n";
        let expected = Interface { name: "eth0".into(), received: [100, 2, 3, 4], sent: [200, 10, 11, 12] };
        assert_eq!(parse(text), [expected]);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_process_that_is_gone_has_no_links() {
        assert_eq!(links(i32::MAX).unwrap(), []);
        assert!(links(i32::try_from(std::process::id()).unwrap()).is_ok());
    }
}
