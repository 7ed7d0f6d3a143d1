//! Tables for people: columns as wide as they must be.

use std::fmt::Write as _;

/// The heads and the rows below them; what is empty is a dash.
pub(super) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let rows: Vec<_> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let cell = if cell.is_empty() { "-" } else { cell };
            // Names are somebody else's, and it is a terminal that they are shown on.
            let plain: String = cell.chars().filter(|letter| !letter.is_control()).collect();
            // Writing to a String cannot fail.
            let _ = write!(line, "{plain:<width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
