//! Skipped tests: each is printed with its reason and must stand in tests/skips.txt, and what stands there for
//! this machine must really be skipped. A run whose skips differ from the list fails.

use std::collections::BTreeSet;
use std::sync::Mutex;

static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Note that `test` was not run on this machine, and why.
pub fn skip(test: &str, reason: &str) {
    println!("SKIP {test}: {reason}");
    if let Ok(mut seen) = SEEN.lock() {
        seen.insert(test.to_string());
    }
}

/// Compare with the committed list. `suite` is the first word of the list's lines: `SUITE TEST: REASON`.
///
/// # Errors
/// The differences, a line each.
pub fn check(suite: &str, list: &str) -> Result<(), Vec<String>> {
    let listed: BTreeSet<String> = list
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .filter_map(|line| {
            line.strip_prefix(suite)?
                .strip_prefix(' ')?
                .split(':')
                .next()
                .map(String::from)
        })
        .collect();
    let seen = SEEN.lock().map(|s| s.clone()).unwrap_or_default();
    let mut wrong: Vec<String> = Vec::new();
    wrong.extend(
        seen.difference(&listed)
            .map(|t| format!("{t} was skipped but is not in tests/skips.txt")),
    );
    wrong.extend(
        listed
            .difference(&seen)
            .map(|t| format!("{t} is in tests/skips.txt but was not skipped")),
    );
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}
