//! Progress for people: on a terminal a bar of every layer, which moves; elsewhere a line whenever the state of a layer changes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::tcgetwinsize;

use crate::api::own::{Layer, LayerState, Progress};

/// How many digits of an id or a digest are shown, as crictl does.
const DIGITS: usize = 13;
/// Letters of a bar.
const BAR: usize = 20;
/// Of a terminal that does not say what it has.
const USUAL: (u16, u16) = (24, 80);

/// What was shown last.
#[derive(Debug)]
pub(in crate::cli) struct Bars {
    is_terminal: bool,
    /// How many lines are there to be drawn over.
    drawn: usize,
    last: Option<Progress>,
}

impl Bars {
    /// For standard error.
    pub(in crate::cli) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), drawn: 0, last: None }
    }

    /// Shows what is new.
    pub(in crate::cli) fn show(&mut self, now: &Progress) -> io::Result<()> {
        let text = if self.is_terminal {
            let size = tcgetwinsize(io::stderr()).map_or(USUAL, |size| (size.ws_row, size.ws_col));
            // Who made the terminal may not have said.
            let size = if size.0 == 0 || size.1 == 0 { USUAL } else { size };
            let (text, drawn) = drawn(now, self.last.as_ref(), self.drawn, size);
            self.drawn = drawn;
            text
        } else {
            changes(now, self.last.as_ref())
        };
        // A rate needs some time between two looks.
        let is_later = |last: &Progress| {
            now.milliseconds >= last.milliseconds + 500 || last.layers.len() != now.layers.len()
        };
        if !self.is_terminal || self.last.as_ref().is_none_or(is_later) {
            self.last = Some(now.clone());
        }
        io::stderr().write_all(text.as_bytes())
    }
}

/// The lines over those that are there, and how many there are then.
fn drawn(
    now: &Progress,
    last: Option<&Progress>,
    before: usize,
    (rows, columns): (u16, u16),
) -> (String, usize) {
    let room = usize::from(rows).saturating_sub(1).max(1);
    let is_over = |layer: &&Layer| matches!(layer.state(), LayerState::Done | LayerState::Present);
    // What moves is what people look at.
    let mut shown: Vec<&Layer> = now.layers.iter().filter(|layer| !is_over(layer)).collect();
    if now.layers.len() <= room {
        shown = now.layers.iter().collect();
    }
    shown.truncate(room);
    let mut text = if before == 0 { String::new() } else { format!("\x1b[{before}A") };
    for layer in &shown {
        let rate = rate(layer, now.milliseconds, last);
        let line: String = bar(layer, rate).chars().take(usize::from(columns).saturating_sub(1)).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}\x1b[K");
    }
    // Lines that are needed no more are emptied.
    text.push_str("\x1b[J");
    (text, shown.len())
}

fn bar(layer: &Layer, rate: Option<u64>) -> String {
    let is_over = matches!(layer.state(), LayerState::Done | LayerState::Present);
    let part = |of: u64| layer.bytes.min(layer.size).saturating_mul(of) / layer.size.max(1);
    let full = if is_over { BAR } else { usize::try_from(part(BAR as u64)).unwrap_or(BAR) };
    let is_at = rate.map_or_else(|| state(layer).to_owned(), |rate| format!("{}/s", bytes(rate)));
    format!(
        "{:<DIGITS$}  [{:<BAR$}]  {:>8} of {:>8}  {is_at}",
        short(&layer.name),
        "=".repeat(full),
        bytes(if is_over { layer.size } else { layer.bytes }),
        bytes(layer.size),
    )
}

/// A line for each layer whose state has changed.
fn changes(now: &Progress, last: Option<&Progress>) -> String {
    let mut text = String::new();
    for (number, layer) in now.layers.iter().enumerate() {
        let before = last.and_then(|last| last.layers.get(number)).map(Layer::state);
        if before == Some(layer.state()) || layer.state() == LayerState::Waiting {
            continue;
        }
        let _ = writeln!(text, "{}: {}, {}", layer.name, bytes(layer.size), state(layer));
    }
    text
}

/// What is being done with a layer.
pub(super) fn state(layer: &Layer) -> &'static str {
    match layer.state() {
        LayerState::Waiting => "waiting",
        LayerState::Arriving => "arriving",
        LayerState::Done => "done",
        LayerState::Present => "not needed",
        LayerState::Reading => "reading",
    }
}

/// Bytes in a second since an earlier look.
pub(super) fn rate(layer: &Layer, milliseconds: u64, earlier: Option<&Progress>) -> Option<u64> {
    let earlier = earlier?;
    let passed = milliseconds.checked_sub(earlier.milliseconds).filter(|passed| *passed > 0)?;
    let before = earlier.layers.iter().find(|before| before.name == layer.name)?;
    let is_moving = matches!(layer.state(), LayerState::Arriving | LayerState::Reading);
    let come = layer.bytes.checked_sub(before.bytes).filter(|_| is_moving)?;
    Some(come.saturating_mul(1000) / passed)
}

/// The first digits of a digest or an id, or the beginning of a name.
pub(super) fn short(name: &str) -> String {
    name.strip_prefix("sha256:").unwrap_or(name).chars().take(DIGITS).collect()
}

/// Bytes as people read them: decimal, as crictl has them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut whole, mut tenths, mut unit) = (count, 0, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        tenths = whole % 1000 / 100;
        whole /= 1000;
        unit += 1;
    }
    if unit == 0 { format!("{whole} B") } else { format!("{whole}.{tenths} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64, layers: &[(&str, u64, u64, LayerState)]) -> Progress {
        let layer = |(name, size, bytes, state): &(&str, u64, u64, LayerState)| Layer {
            name: (*name).to_owned(),
            size: *size,
            bytes: *bytes,
            state: (*state).into(),
        };
        Progress { subject: "x".into(), milliseconds, layers: layers.iter().map(layer).collect() }
    }

    #[test]
    fn bars_move_over_what_was_drawn() {
        let first = at(0, &[("a", 100, 0, LayerState::Waiting), ("b", 100, 100, LayerState::Present)]);
        let (text, lines) = drawn(&first, None, 0, (24, 80));
        assert_eq!(lines, 2);
        assert!(
            !text.contains("\x1b[2A") && text.contains("waiting") && text.contains("not needed"),
            "{text}"
        );
        let second = at(500, &[("a", 1000, 500, LayerState::Arriving), ("b", 100, 100, LayerState::Present)]);
        let (text, lines) = drawn(&second, Some(&first), lines, (24, 80));
        assert_eq!(lines, 2);
        assert!(text.starts_with("\x1b[2A") && text.contains(&format!("[{}", "=".repeat(10))), "{text}");
        assert!(text.contains("1.0 kB/s"), "{text}");
        let (text, lines) = drawn(&second, None, 2, (2, 20));
        assert_eq!(lines, 1, "what moves is shown where there is room for one line");
        assert!(text.lines().all(|line| line.len() < 40), "{text}");
    }

    #[test]
    fn lines_tell_changes_once() {
        let first = at(0, &[("a", 100, 0, LayerState::Waiting)]);
        let second = at(1, &[("a", 100, 5, LayerState::Arriving)]);
        let third = at(2, &[("a", 100, 50, LayerState::Arriving)]);
        assert_eq!(changes(&first, None), "");
        assert_eq!(changes(&second, Some(&first)), "a: 100 B, arriving\n");
        assert_eq!(changes(&third, Some(&second)), "");
    }

    #[test]
    fn sizes_are_decimal() {
        let table = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (1_260_000, "1.2 MB"),
            (u64::MAX, "18446744.0 TB"),
        ];
        for (count, text) in table {
            assert_eq!(bytes(count), text);
        }
    }
}
