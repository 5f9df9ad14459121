//! Making text that comes from a device harmless.
//!
//! Source: USB and HID string descriptors, disk serials and labels reach properties and attributes as the
//! device sent them. Invariant: nothing from here on prints, executes or names a file after such a text
//! without one of these functions.

use thiserror::Error;

/// Longest value of a property or attribute that is kept, in bytes. The kernel's own uevent buffer is 2 KiB
/// and a sysfs attribute one page; udevd's properties are the only ones that come near.
pub const VALUE_MAX: usize = 8 * 1024;
/// Longest name of a property, in bytes.
pub const NAME_MAX: usize = 255;
/// Most properties kept for one device.
pub const PROPERTIES_MAX: usize = 1024;
/// Longest text that a template may give to an environment variable, an argument or a label, in bytes.
pub const TEXT_MAX: usize = 4096;

/// Why a text cannot be handed to a container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unsafe {
    /// A control character (NUL, newline, escape, DEL, C1 …) or a Unicode line separator.
    #[error("has the control character {character:?} at byte {offset}")]
    Control {
        /// The character.
        character: char,
        /// Byte offset of it.
        offset: usize,
    },
    /// Longer than [`TEXT_MAX`].
    #[error("is {length} bytes long, {max} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        max: usize,
    },
}

/// Is this a character that may change the meaning of a line or of a terminal: control characters, the line
/// and paragraph separators, and the bidirectional overrides.
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Refuses a text that must not become an environment value, an argument or a label.
///
/// # Errors
/// [`Unsafe`] with the first reason found.
pub fn text(value: &str) -> Result<(), Unsafe> {
    if value.len() > TEXT_MAX {
        return Err(Unsafe::TooLong {
            length: value.len(),
            max: TEXT_MAX,
        });
    }
    match value.char_indices().find(|(_, c)| is_control(*c)) {
        Some((offset, character)) => Err(Unsafe::Control { character, offset }),
        None => Ok(()),
    }
}

/// A text fit to be shown on a terminal or in a log line: control characters escaped, at most `max`
/// characters, the rest counted.
pub fn show(value: &str, max: usize) -> String {
    let mut out = String::with_capacity(value.len().min(max + 32));
    for (n, c) in value.chars().enumerate() {
        if n == max {
            let left = value.chars().count() - max;
            out.push_str(&format!("… ({left} more)"));
            break;
        }
        if is_control(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// One safe component of a path or an identifier: letters, digits and `+-.=@_` stay, everything else (path
/// separators, spaces, control characters) becomes `_`; never empty, never `.` or `..`, never a leading dot,
/// at most 64 bytes. Different inputs can give the same output: it is a name, not an identity.
pub fn component(value: &str) -> String {
    let mut out: String = value
        .chars()
        .take(64)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "+-.=@_".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    if out.is_empty() {
        out.push('_');
    }
    if out.starts_with('.') {
        out.replace_range(0..1, "_");
    }
    out
}

/// Is this a name the kernel takes for a network interface (`dev_valid_name`): 1 to 15 bytes, not `.` or
/// `..`, no `/`, `:` or white space; here also no control character.
pub fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 15
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || is_control(c))
}

/// Is this an absolute, normalised path without control characters: no empty, `.` or `..` component, at most
/// 4095 bytes.
pub fn is_plain_path(path: &str) -> bool {
    path.len() < 4096
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..")
        })
        && !path.chars().any(is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_must_not_pass() {
        for bad in [
            "a\nb",
            "a\0b",
            "\x1b[2J",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{202e}evil",
        ] {
            assert!(matches!(text(bad), Err(Unsafe::Control { .. })), "{bad:?}");
        }
        assert!(matches!(
            text(&"x".repeat(100_000)),
            Err(Unsafe::TooLong { length: 100_000, .. })
        ));
        for good in ["", "FT232R USB UART", "größe", "/dev/ttyUSB0", "a/../b"] {
            assert_eq!(text(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn shown_text_is_one_bounded_line() {
        assert_eq!(show("a\nb\x1b", 10), "a\\u{a}b\\u{1b}");
        assert_eq!(show("abcdef", 3), "abc… (3 more)");
        assert!(show(&"x".repeat(100_000), 80).len() < 120);
    }

    #[test]
    fn components_never_leave_their_folder() {
        for (value, want) in [
            ("../../etc/passwd", "_._.._etc_passwd"),
            ("..", "_."),
            (".", "_"),
            ("", "_"),
            ("a b\n", "a_b_"),
            ("A1+x=2@z", "A1+x=2@z"),
        ] {
            assert_eq!(component(value), want, "{value:?}");
        }
        assert_eq!(component(&"/".repeat(100_000)).len(), 64);
    }

    #[test]
    fn interface_names_and_paths() {
        for (name, ok) in [
            ("eth0", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a:1", false),
            ("a b", false),
        ] {
            assert_eq!(is_interface_name(name), ok, "{name:?}");
        }
        assert!(!is_interface_name("sixteen-letters0"));
        for (path, ok) in [
            ("/devices/virtual/net/lo", true),
            ("/", false),
            ("devices", false),
            ("/a//b", false),
            ("/a/../b", false),
            ("/a/./b", false),
            ("/a\n", false),
            ("/a/", false),
        ] {
            assert_eq!(is_plain_path(path), ok, "{path:?}");
        }
    }
}
