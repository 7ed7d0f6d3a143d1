//! The streams of a command, whatever carries them: stdin, stdout, stderr, the terminal's size, and the one on which a
//! client is told how it ended.

use std::time::Duration;

use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::spdy::Stream;
use super::transport::{Gone, Input, Output};

/// How long a client may take to open all its streams, as other servers give (cri-streaming: 30 s).
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// The most bytes of one message about the terminal's size: it has two numbers.
const MAX_SIZE_MESSAGE: usize = 1024;

/// Which streams were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The client writes.
    pub stdin: bool,
    /// The client reads.
    pub stdout: bool,
    /// The client reads; never with a terminal, which has one output.
    pub stderr: bool,
    /// They are a terminal.
    pub tty: bool,
}

/// A client that is ready.
#[derive(Debug)]
pub struct Session {
    /// What it types.
    pub stdin: Option<Input>,
    /// What it reads.
    pub stdout: Option<Output>,
    /// See `stdout`.
    pub stderr: Option<Output>,
    /// How large its terminal is.
    pub sizes: Option<Sizes>,
    /// How it is told the end.
    pub error: Report,
    /// Drop with the session: streams hold their places until then.
    pub _held: Vec<Stream>,
}

impl Session {
    /// Ends all streams, and says how it ended. A client that is gone is told nothing.
    pub async fn finish(self, ended: &Ended) {
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            if output.end().await.is_err() {
                return;
            }
        }
        // See above.
        let _ = self.error.send(ended).await;
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// It did not run, or what became of it is not known.
    Failed(String),
}

/// The stream that says how it ended.
#[derive(Debug)]
pub struct Report {
    /// Where it goes.
    pub output: Output,
    /// Version 4 and later say it in JSON, earlier ones in words, and nothing when all went well.
    pub json: bool,
}

impl Report {
    /// Says how it ended, and ends.
    pub async fn send(self, ended: &Ended) -> Result<(), Gone> {
        let text = if self.json { status(ended).to_string() } else { words(ended) };
        if !text.is_empty() {
            self.output.write(Bytes::from(text)).await?;
        }
        self.output.end().await
    }
}

fn words(ended: &Ended) -> String {
    match ended {
        Ended::Code(0) => String::new(),
        Ended::Code(code) => format!("command terminated with exit code {code}"),
        Ended::Failed(why) => why.clone(),
    }
}

/// A `metav1.Status`, as clients look for it (`remotecommand/v4.go` of client-go).
fn status(ended: &Ended) -> serde_json::Value {
    match ended {
        Ended::Code(0) => json!({"metadata": {}, "status": "Success"}),
        Ended::Code(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Ended::Failed(why) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {why}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": why}]},
            "code": 500,
        }),
    }
}

/// Takes the streams that a SPDY client opens, until all that were asked for are there. None if they do not come, or
/// others do.
pub async fn collect(streams: &mut mpsc::Receiver<Stream>, wanted: Wanted, version: u8) -> Option<Session> {
    let until = Instant::now() + OPEN_LIMIT;
    let mut found: [Option<Stream>; 5] = Default::default();
    let resize = wanted.tty && version >= 3;
    let expected = [true, wanted.stdin, wanted.stdout, wanted.stderr, resize];
    while (0..5).any(|at| expected[at] && found[at].is_none()) {
        let stream = timeout_at(until, streams.recv()).await.ok()??;
        let at = ["error", "stdin", "stdout", "stderr", "resize"]
            .iter()
            .position(|kind| stream.header("streamtype") == Some(kind))?;
        if !expected[at] || found[at].replace(stream).is_some() {
            return None;
        }
    }
    let output = |at: usize| found[at].as_ref().map(|stream| stream.bytes.output.clone());
    let (stdout, stderr, error) = (output(2), output(3), output(0)?);
    let mut input = |at: usize| {
        let (_, closed) = mpsc::channel(1);
        found[at].as_mut().map(|stream| std::mem::replace(&mut stream.bytes.input, closed))
    };
    Some(Session {
        stdin: input(1),
        sizes: input(4).map(Sizes::new),
        stdout,
        stderr,
        error: Report { output: error, json: version >= 4 },
        _held: found.into_iter().flatten().collect(),
    })
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Lines.
    pub height: u16,
}

/// The sizes that a client's terminal takes: JSON objects, one after another, cut anywhere.
#[derive(Debug)]
pub struct Sizes {
    input: Input,
    pending: Vec<u8>,
}

impl Sizes {
    /// Read from this channel.
    pub fn new(input: Input) -> Self {
        Self { input, pending: Vec::new() }
    }

    /// The next one that is a size at all. None at the end, or when what comes is something else.
    pub async fn next(&mut self) -> Option<Size> {
        loop {
            while let Some(size) = self.take()? {
                // What a client sends that has no terminal.
                if size.width > 0 && size.height > 0 {
                    return Some(size);
                }
            }
            let bytes = self.input.recv().await?;
            if self.pending.len() + bytes.len() > MAX_SIZE_MESSAGE * 64 {
                return None;
            }
            self.pending.extend_from_slice(&bytes);
        }
    }

    /// One size out of what has come: `Some(None)` if it is not whole yet, none if it is no size.
    fn take(&mut self) -> Option<Option<Size>> {
        let mut values = serde_json::Deserializer::from_slice(&self.pending).into_iter::<Size>();
        match values.next() {
            Some(Ok(size)) => {
                let used = values.byte_offset();
                self.pending.drain(..used);
                Some(Some(size))
            }
            Some(Err(error)) if error.is_eof() && self.pending.len() <= MAX_SIZE_MESSAGE => Some(None),
            None => Some(None),
            Some(Err(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_clients_read_them() {
        assert_eq!(words(&Ended::Code(0)), "");
        assert_eq!(status(&Ended::Code(0))["status"], "Success");
        let failure = status(&Ended::Code(3));
        assert_eq!((&failure["status"], &failure["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failure["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        let failure = status(&Ended::Failed("no such file".into()));
        assert_eq!((&failure["reason"], &failure["code"]), (&json!("InternalError"), &json!(500)));
    }

    #[tokio::test]
    async fn sizes_come_cut_anywhere() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":0,\"Height\":0}{\"Width\":132,\"Height\":50}";
        for cut in 1..text.len() {
            let (sender, input) = mpsc::channel(4);
            sender.send(Bytes::from_static(&text[..cut])).await.unwrap();
            sender.send(Bytes::from_static(&text[cut..])).await.unwrap();
            drop(sender);
            let mut sizes = Sizes::new(input);
            assert_eq!(sizes.next().await, Some(Size { width: 80, height: 24 }));
            assert_eq!(sizes.next().await, Some(Size { width: 132, height: 50 }));
            assert_eq!(sizes.next().await, None);
        }
    }

    #[tokio::test]
    async fn what_is_no_size_ends_it() {
        for text in ["[1]", "{\"Width\":70000,\"Height\":1}", "x"] {
            let (sender, input) = mpsc::channel(4);
            sender.send(Bytes::from_static(text.as_bytes())).await.unwrap();
            assert_eq!(Sizes::new(input).next().await, None, "{text}");
        }
        let (sender, input) = mpsc::channel(1);
        let flood =
            tokio::spawn(
                async move { while sender.send(Bytes::from_static(b"{\"Width\":")).await.is_ok() {} },
            );
        assert_eq!(Sizes::new(input).next().await, None);
        flood.await.unwrap();
    }
}
