//! A route netlink socket (rtnetlink(7)): many requests in one message, each acknowledged.
//!
//! The kernel works on a request while it is being sent and queues its answers before `send` returns, so nothing here
//! ever waits.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::thread::LinkNameSpaceType;

use super::NetworkError;

/// What one read may hold: the kernel's own limit for a part of a dump (NLMSG_GOODSIZE is at most 32 KiB there).
const BUFFER: usize = 32 * 1024;

/// One request of a batch.
#[derive(Debug)]
pub(super) struct Request {
    /// What is asked.
    pub(super) message: RouteNetlinkMessage,
    /// `NLM_F_*` besides REQUEST and ACK.
    pub(super) flags: u16,
    /// For the error, with `object`.
    pub(super) doing: &'static str,
    /// For the error.
    pub(super) object: String,
    /// Answers that mean that it is done already.
    pub(super) done: &'static [Errno],
}

/// A socket in one network namespace.
#[derive(Debug)]
pub(super) struct Netlink(Socket);

impl Netlink {
    /// In the namespace of the calling thread.
    pub(super) fn here() -> Result<Self, NetworkError> {
        open().map(Self).map_err(|e| NetworkError::system("open a netlink socket in", "the host", e))
    }

    /// In another namespace: a socket belongs to the namespace that its maker was in, so a thread goes there and back.
    pub(super) fn inside(netns: BorrowedFd<'_>) -> Result<Self, NetworkError> {
        let enter = move || {
            rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            open()
        };
        let opened: io::Result<Socket> = thread::scope(|scope| {
            let entered = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter)?;
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        opened.map(Self).map_err(|e| NetworkError::system("open a netlink socket in", "the pod", e))
    }

    /// Sends all requests at once. The kernel works on each, also after one that it refused; the first refusal is the
    /// result. Else: what came in answer, besides the acknowledgements.
    pub(super) fn run(&self, requests: Vec<Request>) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        let mut bytes = Vec::new();
        let mut asked = Vec::new();
        for (sequence, request) in (1..).zip(requests) {
            append(&mut bytes, sequence, request.flags | NLM_F_REQUEST | NLM_F_ACK, request.message);
            asked.push((request.doing, request.object, request.done));
        }
        self.send(&bytes)?;
        let mut answers = Vec::new();
        let mut refused = None;
        let mut open = asked.len();
        while open > 0 {
            self.receive(|sequence, payload| {
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        open = open.saturating_sub(1);
                        let index = usize::try_from(sequence).unwrap_or_default().wrapping_sub(1);
                        if let (Some(code), Some(request)) = (error.code, asked.get(index)) {
                            refused = refused.take().or_else(|| refusal(code.get(), request));
                        }
                    }
                    // A future payload kind answers nothing that is asked here.
                    _ => {}
                }
                true
            })?;
        }
        refused.map_or(Ok(answers), Err)
    }

    /// Everything of a kind.
    pub(super) fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        let mut bytes = Vec::new();
        append(&mut bytes, 1, NLM_F_REQUEST | NLM_F_DUMP, message);
        self.send(&bytes)?;
        let (mut answers, mut ended, mut failed) = (Vec::new(), false, None);
        while !ended {
            self.receive(|_, payload| {
                match payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        failed = error.code.map(|code| Errno::from_raw_os_error(-code.get()));
                        ended = true;
                    }
                    NetlinkPayload::Done(_) => ended = true,
                    _ => {}
                }
                !ended
            })?;
        }
        failed.map_or(Ok(answers), |e| Err(NetworkError::system("list", "routes", e)))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetworkError> {
        match self.0.send(bytes, 0) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(NetworkError::system("send", "netlink requests", Errno::MSGSIZE)),
            Err(e) => Err(NetworkError::system("send", "netlink requests", e)),
        }
    }

    /// One read: hands on each message in it for as long as it is wanted.
    fn receive(
        &self,
        mut take: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>) -> bool,
    ) -> Result<(), NetworkError> {
        let failed = |e: io::Error| NetworkError::system("read", "netlink answers", e);
        let mut buffer = vec![0; BUFFER];
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (length, whole) =
            rustix::net::recv(&self.0, &mut buffer[..], flags).map_err(|e| failed(e.into()))?;
        if whole > length {
            return Err(failed(Errno::MSGSIZE.into()));
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(|e| failed(io::Error::other(e)))?;
            // Messages begin at multiples of four bytes (netlink(7)).
            let size = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            let (header, payload) = message.into_parts();
            if !take(header.sequence_number, payload) {
                break;
            }
            rest = rest.get(size..).unwrap_or_default();
        }
        Ok(())
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // An acknowledgement without a copy of its request is small: a batch's answers fit the receive buffer.
    socket.set_cap_ack(true)?;
    Ok(socket)
}

fn append(bytes: &mut Vec<u8>, sequence: u32, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

/// The error of a refused request; `None` where it is done already.
fn refusal(
    code: i32,
    (doing, object, done): &(&'static str, String, &'static [Errno]),
) -> Option<NetworkError> {
    let errno = Errno::from_raw_os_error(code.checked_neg().unwrap_or(i32::MAX));
    (!done.contains(&errno)).then(|| NetworkError::system(doing, object.as_str(), errno))
}
