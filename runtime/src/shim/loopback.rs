//! Sets the loopback interface of a new network namespace up: one message of rtnetlink(7).

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

/// lo is the first interface of every namespace.
const LOOPBACK: i32 = 1;
/// From linux/rtnetlink.h, linux/netlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// struct nlmsghdr and struct ifinfomsg: 16 bytes each.
const MESSAGE: u32 = 32;

/// In the network namespace of the caller.
pub fn up() -> rustix::io::Result<()> {
    // NETLINK_ROUTE is protocol 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sendto(&socket, &message(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    // The kernel answers within sendto(2) itself: an answer that is not there never comes.
    let mut answer = [0; 64];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    verdict(&answer[..length.min(answer.len())])
}

fn message() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(MESSAGE.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, padding, type
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // which flags to change
    message
}

/// struct nlmsgerr after the header: 0, or a negative errno.
fn verdict(answer: &[u8]) -> rustix::io::Result<()> {
    let kind = answer.get(4..6).and_then(|raw| raw.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(16..20).and_then(|raw| raw.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw_os_error(error.saturating_neg())),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lo_comes_up_in_a_new_namespace() {
        // A thread of its own: unshare is a thread's matter, and the namespace ends with it.
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let refused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:1");
            assert!(refused.is_err());
            up().unwrap();
            up().unwrap();
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:1").unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn refusals_are_told() {
        let mut answer = [0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(verdict(&answer), Ok(()));
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(verdict(&answer), Err(Errno::PERM));
        assert_eq!(verdict(&answer[..10]), Err(Errno::BADMSG));
    }
}
