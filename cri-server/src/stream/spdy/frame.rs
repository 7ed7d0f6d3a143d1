//! Frames: their bytes. Lengths on the wire are checked before anything is set aside for them.

/// Bytes of every frame's head.
pub const HEAD: usize = 8;
/// The longest control frame. Headers of a stream take some hundred bytes; this is what HTTP servers take.
pub const MAX_CONTROL: usize = 64 * 1024;
/// Status codes of RST_STREAM.
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;
const FIN: u8 = 1;
/// The version in control frames.
const VERSION: u16 = 0x8003;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Bytes of a stream: this many follow.
    Data {
        /// The stream.
        stream: u32,
        /// They are the last.
        last: bool,
        /// At most 16 MiB, by the width of the field. Never set aside at once.
        length: usize,
    },
    /// A control frame with a body of this many bytes, at most [`MAX_CONTROL`].
    Control {
        /// Its type.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Of its body.
        length: usize,
    },
}

/// A control frame that matters to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// The client opens a stream.
    Open {
        /// Its number.
        stream: u32,
        /// The client sends nothing on it.
        last: bool,
        /// Compressed.
        headers: &'a [u8],
    },
    /// Compressed headers that say nothing to us, but belong to the compressor's state.
    Headers {
        /// Their stream.
        stream: u32,
        /// The client sends nothing more on it.
        last: bool,
        /// Compressed.
        headers: &'a [u8],
    },
    /// The client breaks a stream off.
    Reset(u32),
    /// To be answered with the same.
    Ping(u32),
    /// The client opens no more streams.
    GoAway,
    /// Settings, windows, and what is not known: to be passed over.
    Nothing,
}

/// The peer does not speak this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not SPDY/3.1: {0}")]
pub struct NotSpdy(pub &'static str);

fn word(bytes: &[u8], at: usize) -> Result<u32, NotSpdy> {
    let word = bytes.get(at..at + 4).ok_or(NotSpdy("a control frame is too short"))?;
    Ok(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}

impl Head {
    /// Reads the head of a frame.
    pub fn parse(bytes: [u8; HEAD]) -> Result<Self, NotSpdy> {
        let length = usize::from(bytes[5]) << 16 | usize::from(bytes[6]) << 8 | usize::from(bytes[7]);
        let flags = bytes[4];
        if bytes[0] & 0x80 == 0 {
            return Ok(Self::Data { stream: word(&bytes, 0)?, last: flags & FIN != 0, length });
        }
        if u16::from_be_bytes([bytes[0], bytes[1]]) != VERSION {
            return Err(NotSpdy("another version"));
        }
        if length > MAX_CONTROL {
            return Err(NotSpdy("a control frame is too long"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([bytes[2], bytes[3]]), flags, length })
    }
}

impl<'a> Control<'a> {
    /// Reads the body of a control frame.
    pub fn parse(kind: u16, flags: u8, body: &'a [u8]) -> Result<Self, NotSpdy> {
        let stream = |at| word(body, at).map(|word| word & 0x7fff_ffff);
        let last = flags & FIN != 0;
        let rest = |at| body.get(at..).ok_or(NotSpdy("a control frame is too short"));
        Ok(match kind {
            1 => Self::Open { stream: stream(0)?, last, headers: rest(10)? },
            2 | 8 => Self::Headers { stream: stream(0)?, last, headers: rest(4)? },
            3 => Self::Reset(stream(0)?),
            6 => Self::Ping(word(body, 0)?),
            7 => Self::GoAway,
            _ => Self::Nothing,
        })
    }
}

fn control(kind: u16, flags: u8, words: &[u32], rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(words.len() * 4 + rest.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEAD + words.len() * 4 + rest.len());
    frame.extend_from_slice(&VERSION.to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.push(flags);
    frame.extend_from_slice(&length.to_be_bytes()[1..]);
    words.iter().for_each(|word| frame.extend_from_slice(&word.to_be_bytes()));
    frame.extend_from_slice(rest);
    frame
}

/// The head of a data frame of `length` bytes, below 16 MiB.
pub fn data(stream: u32, last: bool, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [a, b, c, d, u8::from(last), x, y, z]
}

/// A stream is accepted.
pub fn reply(stream: u32, headers: &[u8]) -> Vec<u8> {
    control(2, 0, &[stream], headers)
}

/// A stream is broken off.
pub fn cancel(stream: u32) -> Vec<u8> {
    control(3, 0, &[stream, CANCEL], &[])
}

/// A stream is not accepted.
pub fn refuse(stream: u32) -> Vec<u8> {
    control(3, 0, &[stream, REFUSED_STREAM], &[])
}

/// The answer to a ping.
pub fn ping(id: u32) -> Vec<u8> {
    control(6, 0, &[id], &[])
}

/// No further streams are taken; the session is over when those that are open end.
pub fn go_away(last_stream: u32) -> Vec<u8> {
    control(7, 0, &[last_stream, 0], &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_are_told_apart() {
        let data = data(5, true, 0x0001_0203);
        assert_eq!(Head::parse(data), Ok(Head::Data { stream: 5, last: true, length: 0x0001_0203 }));
        let ping = ping(7);
        let head = Head::parse(ping[..HEAD].try_into().unwrap());
        assert_eq!(head, Ok(Head::Control { kind: 6, flags: 0, length: 4 }));
        assert_eq!(Control::parse(6, 0, &ping[HEAD..]), Ok(Control::Ping(7)));
        assert!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err());
        assert!(Head::parse([0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_are_harmful(head: [u8; HEAD], body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Head::Control { length, .. }) = Head::parse(head) {
                prop_assert!(length <= MAX_CONTROL);
            }
            let _ = Control::parse(u16::from(head[3] % 10), head[4], &body);
        }
    }
}
