//! The daemon's own log: lines of text or JSON on standard error. Spans carry the objects of an operation into each of
//! its lines. One event is one line, whatever a container, an image or a client put into it.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Starts the log of this process. Once.
pub(crate) fn start(log: &Log) -> Result<(), Box<dyn std::error::Error>> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&log.level)?)
        .with_ansi(false)
        .with_writer(Lines);
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
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

/// Writes one event; `fmt` hands over each in one piece.
struct Line;

impl Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(one_line(event).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
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
