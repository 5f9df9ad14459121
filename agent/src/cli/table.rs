//! Text for people: columns, times, errors.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// A cell that has nothing to say.
pub(super) const NONE: &str = "-";

/// Wider cells stand out of their column instead of widening it for all.
const WIDEST: usize = 44;

/// Prints rows under a head, each column as wide as its widest cell; the last one is not filled.
pub(super) fn print(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            let long = cell.chars().count();
            if long <= WIDEST {
                *width = (*width).max(long);
            }
        }
    }
    let mut out = io::stdout().lock();
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Prints JSON, readable.
pub(super) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// A text that may be absent.
pub(super) fn or_none<T: ToString>(value: &Option<T>) -> String {
    value
        .as_ref()
        .map_or_else(|| NONE.to_owned(), ToString::to_string)
}

/// How long ago, in the largest fitting unit.
pub(super) fn ago(ns: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let seconds = now.saturating_sub(ns / 1_000_000_000);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// An error, one cause a line.
pub(super) fn complain(error: &anyhow::Error) {
    eprintln!("berth: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !last.contains(&text) {
            eprintln!("  because {text}");
        }
        last = text;
    }
}

/// An error with the setting to change behind it.
pub(super) fn with_hint(error: impl std::fmt::Display, hint: Option<String>) -> anyhow::Error {
    match hint {
        Some(hint) => anyhow::anyhow!("{error}\n  hint: {hint}"),
        None => anyhow::anyhow!("{error}"),
    }
}
