//! Tokens: what stands in a stream's URL and is worth one stream, once, for a minute.
//!
//! Any process on the node's network may try to guess one, so it is 256 random bits, and it is looked up by its
//! digest: how long that takes says nothing about any token.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::error::Error;

/// How long a token can be used. A kubelet uses it at once; this is what all runtimes give (cri-streaming's cache).
const LIFE: Duration = Duration::from_secs(60);
/// How many may wait to be used, as in cri-streaming's cache: a kubelet answers 429 above it.
const MAX_PENDING: usize = 1000;
/// Random bytes of a token.
const BYTES: usize = 32;

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's whole id.
    pub container: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// Which streams, and a terminal or not.
    pub streams: super::remote_command::Wanted,
}

/// A running container's own streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's whole id.
    pub container: String,
    /// Which streams, and a terminal or not.
    pub streams: super::remote_command::Wanted,
}

/// Ports of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// The sandbox's whole id.
    pub sandbox: String,
    /// What a client that cannot name ports itself is given, in this order.
    pub ports: Vec<u16>,
}

/// What a token is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ticket {
    /// See [`Exec`].
    Exec(Exec),
    /// See [`Attach`].
    Attach(Attach),
    /// See [`PortForward`].
    PortForward(PortForward),
}

impl Ticket {
    /// The streams of a command; none for ports.
    pub fn streams(&self) -> Option<super::remote_command::Wanted> {
        match self {
            Self::Exec(exec) => Some(exec.streams),
            Self::Attach(attach) => Some(attach.streams),
            Self::PortForward(_) => None,
        }
    }

    /// The first part of the URL's path.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

type Key = [u8; 32];

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    until: Instant,
}

/// Tokens that wait to be used.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<Key, Pending>>);

impl Tokens {
    /// A new token. Refused when too many wait.
    pub fn issue(&self, ticket: Ticket) -> Result<String, Error> {
        let token = random()
            .map_err(|errno| Error::system("draw random bytes for", "a stream's token".to_owned(), errno))?;
        let (now, mut pending) = (Instant::now(), self.0.lock().unwrap_or_else(PoisonError::into_inner));
        pending.retain(|_, pending| pending.until > now);
        if pending.len() >= MAX_PENDING {
            return Err(Error::Exhausted("too many streams were asked for and not begun"));
        }
        pending.insert(key(&token), Pending { ticket, until: now + LIFE });
        Ok(token)
    }

    /// Uses a token up. None if there is no such token, its time is over, or it is for something else; for whatever
    /// it was, it is gone then.
    pub fn take(&self, verb: &str, token: &str) -> Option<Ticket> {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(token))?;
        (pending.until > Instant::now() && pending.ticket.verb() == verb).then_some(pending.ticket)
    }

    /// The token's ticket, which stays.
    pub fn look(&self, verb: &str, token: &str) -> Option<Ticket> {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = pending.get(&key(token))?;
        (pending.until > Instant::now() && pending.ticket.verb() == verb).then(|| pending.ticket.clone())
    }
}

fn key(token: &str) -> Key {
    Sha256::digest(token.as_bytes()).into()
}

fn random() -> rustix::io::Result<String> {
    let mut bytes = [0_u8; BYTES];
    // Up to 256 bytes come whole once the pool is initialised (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().fold(String::with_capacity(2 * BYTES), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket::PortForward(PortForward { sandbox: "a".into(), ports: vec![80] })
    }

    #[tokio::test]
    async fn a_token_is_worth_one_stream_of_its_kind() {
        let tokens = Tokens::default();
        let token = tokens.issue(ticket()).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(tokens.look("portforward", &token), Some(ticket()));
        assert_eq!(tokens.look("exec", &token), None);
        assert_eq!(tokens.take("portforward", &token), Some(ticket()));
        assert_eq!(tokens.take("portforward", &token), None);

        let token = tokens.issue(ticket()).unwrap();
        assert_eq!(tokens.take("exec", &token), None);
        assert_eq!(tokens.take("portforward", &token), None, "a token that was tried elsewhere is gone");
        assert_eq!(tokens.take("portforward", ""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_a_minute_and_makes_room_then() {
        let tokens = Tokens::default();
        let token = tokens.issue(ticket()).unwrap();
        for _ in 1..MAX_PENDING {
            tokens.issue(ticket()).unwrap();
        }
        assert!(matches!(tokens.issue(ticket()), Err(Error::Exhausted(_))));
        tokio::time::advance(LIFE).await;
        assert_eq!(tokens.look("portforward", &token), None);
        assert_eq!(tokens.take("portforward", &token), None);
        tokens.issue(ticket()).unwrap();
    }
}
