//! Text from outside made safe for a terminal, a log file and a line of JSON.

use serde_json::Value;

/// Longest text of one field, bytes.
const TEXT_MAX: usize = 4096;

/// `text` without control characters, line separators and marks that turn the direction of writing: each is
/// written as `\u{..}`. What is longer than 4096 bytes is cut, and says so.
pub fn clean(text: &str) -> String {
    let unsafe_char = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}')
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
            || c == '\u{feff}'
    };
    let mut out = String::with_capacity(text.len().min(TEXT_MAX));
    for c in text.chars() {
        if out.len() >= TEXT_MAX {
            out.push_str(&format!("… ({} bytes)", text.len()));
            break;
        }
        if unsafe_char(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// [`clean`] for every text and key of a value.
pub fn clean_value(value: &mut Value) {
    match value {
        Value::String(text) => {
            let cleaned = clean(text);
            if cleaned != *text {
                *text = cleaned;
            }
        }
        Value::Array(list) => list.iter_mut().for_each(clean_value),
        Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut value) in old {
                clean_value(&mut value);
                map.insert(clean(&key), value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_long_text_is_cut() {
        assert_eq!(clean("plain ütf-8"), "plain ütf-8");
        assert_eq!(
            clean("a\x1b[2Jb\n\u{9b}\u{202e}"),
            "a\\u{1b}[2Jb\\u{a}\\u{9b}\\u{202e}"
        );
        let long = clean(&"x".repeat(10_000));
        assert!(
            long.len() < 4200 && long.ends_with("(10000 bytes)"),
            "{}",
            long.len()
        );
        let mut value = serde_json::json!({"a\n": ["b\0", {"c": "\u{7f}"}], "n": 1});
        clean_value(&mut value);
        let text = value.to_string();
        assert!(
            !text.chars().any(char::is_control) && text.contains("u{7f}"),
            "{text}"
        );
    }
}
