//! What is asked for with a stream: Exec, Attach, PortForward.

use super::super::wire;
use super::field::id;
use super::process::strings;
use crate::error::Error;
use crate::stream::Wanted;

/// A request of Exec, checked.
#[derive(Debug)]
pub(in crate::api) struct Exec {
    /// Container.
    pub container: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Which streams.
    pub streams: Wanted,
}

/// A request of PortForward, checked.
#[derive(Debug)]
pub(in crate::api) struct PortForward {
    /// Sandbox.
    pub sandbox: String,
    /// Ports; a client of SPDY names its own.
    pub ports: Vec<u16>,
}

/// Checks a request of Exec.
pub(in crate::api) fn exec(request: wire::ExecRequest) -> Result<Exec, Error> {
    let wire::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let container = id("container_id", container_id)?;
    if cmd.is_empty() {
        return Err(Error::invalid("cmd", "must not be empty"));
    }
    strings("cmd", &cmd)?;
    let streams = wanted(Wanted { stdin, stdout, stderr, tty })?;
    Ok(Exec { container, cmd, streams })
}

/// A terminal has one output, and somebody must want something.
fn wanted(streams: Wanted) -> Result<Wanted, Error> {
    if streams.tty && streams.stderr {
        return Err(Error::invalid("stderr", "must not be asked for with tty: a terminal has one output"));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Error::invalid("stdin", "one of stdin, stdout and stderr must be asked for"));
    }
    Ok(streams)
}

/// A request of Attach, checked.
#[derive(Debug)]
pub(in crate::api) struct Attach {
    /// Container.
    pub container: String,
    /// Which streams.
    pub streams: Wanted,
}

/// Checks a request of Attach.
pub(in crate::api) fn attach(request: wire::AttachRequest) -> Result<Attach, Error> {
    let wire::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    let container = id("container_id", container_id)?;
    Ok(Attach { container, streams: wanted(Wanted { stdin, stdout, stderr, tty })? })
}

/// Checks a request of PortForward.
pub(in crate::api) fn port_forward(request: wire::PortForwardRequest) -> Result<PortForward, Error> {
    let sandbox = id("pod_sandbox_id", request.pod_sandbox_id)?;
    let ports = request
        .port
        .iter()
        .enumerate()
        .map(|(index, port)| {
            u16::try_from(*port).ok().filter(|port| *port > 0).ok_or_else(|| {
                Error::invalid(format!("port[{index}]"), format!("{port}: must be from 1 to 65535"))
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(PortForward { sandbox, ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_is_refused() {
        let good = || wire::ExecRequest {
            container_id: "a".into(),
            cmd: vec!["sh".into()],
            tty: false,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        assert!(exec(good()).is_ok());
        assert!(exec(wire::ExecRequest { tty: true, stderr: false, ..good() }).is_ok());
        let bad = [
            wire::ExecRequest { container_id: String::new(), ..good() },
            wire::ExecRequest { cmd: vec![], ..good() },
            wire::ExecRequest { cmd: vec!["a\0b".into()], ..good() },
            wire::ExecRequest { tty: true, ..good() },
            wire::ExecRequest { stdin: false, stdout: false, stderr: false, ..good() },
        ];
        for request in bad {
            assert!(matches!(exec(request), Err(Error::InvalidArgument { .. })));
        }
        let ports = |port| wire::PortForwardRequest { pod_sandbox_id: "a".into(), port };
        assert_eq!(port_forward(ports(vec![1, 65535])).unwrap().ports, [1, 65535]);
        for port in [0, -1, 65536] {
            assert!(port_forward(ports(vec![port])).is_err());
        }
    }
}
