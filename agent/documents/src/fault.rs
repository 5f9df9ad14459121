//! What is wrong with a document, and where; and the nearest thing that would have been right.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How bad a [`Fault`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The documents are refused.
    Error,
    /// The documents are taken, but this is probably not what was meant.
    Warning,
}

/// One fault of one document.
///
/// Its `Display` is one line: `file:line:column: path: message; expected …; hint`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The file as it was named to berth.
    pub file: PathBuf,
    /// From 1; 0 where the fault is of the file as a whole.
    pub line: usize,
    /// From 1, in characters; 0 where the fault is of the file as a whole.
    pub column: usize,
    /// The field, as `spec.mounts[0].source`; empty for a fault of the text.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What may stand there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Error or warning.
    pub severity: Severity,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if self.severity == Severity::Warning {
            write!(f, " warning:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.message)?;
        if let Some(expected) = &self.expected {
            write!(f, "; expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault of a typed document, before it has a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field from the document's root, as `spec.mounts[0].source`.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What may stand there.
    pub expected: Option<String>,
    /// What to change.
    pub hint: Option<String>,
    /// Line and column inside that field's text, from 1, where it has a grammar of its own.
    pub inside: Option<(u32, u32)>,
    /// Other fields that the judgement rests on: where one of those is itself faulty, this one is not told.
    pub rests_on: Vec<String>,
}

impl Problem {
    /// A problem of the field at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            expected: None,
            hint: None,
            inside: None,
            rests_on: Vec::new(),
        }
    }

    /// With what may stand there.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// With what to change.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the other fields that the judgement rests on.
    #[must_use]
    pub fn rests_on(mut self, paths: &[&str]) -> Self {
        self.rests_on.extend(paths.iter().map(|path| (*path).to_owned()));
        self
    }
}

/// Letters and digits in lower case: `timer_slack`, `TimerSlack` and `timerSlack` are one.
fn folded(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// The candidate that `text` was probably meant to be; `None` where none is near.
pub(crate) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance costs length × length: nothing that long is a slip of the pen.
    if text.len() > 64 {
        return None;
    }
    let wanted = folded(text);
    candidates
        .into_iter()
        .map(|candidate| {
            let known = folded(candidate);
            let mut distance = strsim::damerau_levenshtein(&wanted, &known);
            if distance > 0
                && wanted.len() >= 3
                && (known.starts_with(&wanted) || known.ends_with(&wanted) || wanted.starts_with(&known))
            {
                distance = 1;
            }
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count();
            *distance <= (length / 3).max(1) && *distance < length.max(wanted.chars().count())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
        .filter(|candidate| !candidate.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let known = ["timerSlack", "scheduler", "budget", "cpus", "fifo", "SIGTERM"];
        for (text, want) in [
            ("timer_slack", Some("timerSlack")),
            ("timerslak", Some("timerSlack")),
            ("sheduler", Some("scheduler")),
            ("cpu", Some("cpus")),
            ("FIFO", Some("fifo")),
            ("TERM", Some("SIGTERM")),
            ("volumes", None),
            ("x", None),
        ] {
            assert_eq!(nearest(text, known), want, "{text}");
        }
        assert_eq!(nearest(&"a".repeat(100_000), known), None);
    }
}
