//! The daemon's own log: lines of text or JSON on standard error. Spans carry the objects of an operation into each of
//! its lines. One event is one line, whatever a container, an image or a client put into it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Starts the log of this process. Once.
pub(crate) fn start(log: &Log) -> Result<(), Box<dyn std::error::Error>> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&log.level)?)
        .with_ansi(false)
        .with_writer(Lines(log.format));
    match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic: {}", panic.payload_as_str().unwrap_or("of an unknown kind"));
    }));
    Ok(())
}

/// Standard error, a whole line at a time.
struct Lines(LogFormat);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { to: io::stderr(), format: self.0, lost: &LOST }
    }
}

/// Events that could not be written since the last that could.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes one event; `fmt` hands over each in one piece.
struct Line<W> {
    to: W,
    format: LogFormat,
    lost: &'static AtomicU64,
}

impl<W: Write> Write for Line<W> {
    /// Never fails: a disk that is full, or a journal that has gone, must not end the daemon. `fmt` would complain of it on
    /// the same standard error, by a panic.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut text = if lost > 0 { told(lost, self.format) } else { String::new() };
        text.push_str(&one_line(event));
        if self.to.write_all(text.as_bytes()).is_err() {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Standard error has no buffer.
        Ok(())
    }
}

/// What is said of lost events. It begins with a line end, since the last of them may be there in part.
fn told(lost: u64, format: LogFormat) -> String {
    let message = format!("{lost} lines of this log could not be written");
    match format {
        LogFormat::Text => format!("\nWARN cove::logging: {message}\n"),
        LogFormat::Json => {
            format!(
                "\n{}\n",
                serde_json::json!({"level": "WARN", "message": message, "target": "cove::logging"})
            )
        }
    }
}

/// Control characters within it are written as escapes: none can end the line or steer a terminal.
fn one_line(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(text.len() + 1);
    for letter in text.chars() {
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing while it is full.
    struct Disk {
        full: bool,
        text: Vec<u8>,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_that_cannot_be_written_harm_nobody_and_are_counted() {
        static LOST: AtomicU64 = AtomicU64::new(0);
        let mut disk = Disk { full: true, text: Vec::new() };
        let say = |disk: &mut Disk, text: &str| {
            let taken = Line { to: disk, format: LogFormat::Text, lost: &LOST }.write(text.as_bytes());
            assert_eq!(taken.unwrap(), text.len());
        };
        for _ in 0..2 {
            say(&mut disk, "lost\n");
        }
        disk.full = false;
        for _ in 0..2 {
            say(&mut disk, "kept\n");
        }
        let text = String::from_utf8(disk.text).unwrap();
        assert_eq!(text, "\nWARN cove::logging: 2 lines of this log could not be written\nkept\nkept\n");
        let json: serde_json::Value = serde_json::from_str(told(3, LogFormat::Json).trim()).unwrap();
        assert_eq!(json["message"], "3 lines of this log could not be written");
    }

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        let cases: [(&[u8], &str); 5] = [
            (b"started\n", "started\n"),
            (b"name=a\nERROR forged\n", "name=a\\nERROR forged\n"),
            (b"\x1b[2Jgone\n", "\\u{1b}[2Jgone\n"),
            ("c1 \u{9b}2J ü\n".as_bytes(), "c1 \\u{9b}2J ü\n"),
            (b"a\xffb", "a\u{fffd}b\n"),
        ];
        for (event, line) in cases {
            assert_eq!(one_line(event), line);
        }
    }
}
