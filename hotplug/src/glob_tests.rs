//! Globs against a table and against the C library.
#![allow(unsafe_code)] // fnmatch(3) is the oracle.

use proptest::prelude::*;

use super::*;

fn libc_says(pattern: &str, text: &str, flags: i32) -> bool {
    let pattern = std::ffi::CString::new(pattern).unwrap();
    let text = std::ffi::CString::new(text).unwrap();
    // SAFETY: both are NUL-terminated strings that live until the call returns.
    unsafe { libc::fnmatch(pattern.as_ptr(), text.as_ptr(), flags) == 0 }
}

#[test]
fn table() {
    for (pattern, text, want) in [
        ("ttyUSB*", "ttyUSB0", true),
        ("ttyUSB*", "ttyUSB", true),
        ("ttyUSB?*", "ttyUSB", false),
        ("*", "", true),
        ("?*", "", false),
        ("*/usb1/*", "/devices/pci/usb1/1-1", true),
        ("sd[a-z]", "sdb", true),
        ("sd[!a-z]", "sdb", false),
        ("sd[^a-z]", "sd1", true),
        ("sd[]a]", "sd]", true),
        ("[[:digit:]]x", "5x", true),
        ("[[:digit:]]x", "ax", false),
        ("[abc", "[abc", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("a\\", "a", false),
        ("*a*b*c*", "xxaxxbxxc", true),
        ("*a*b*c*", "xxaxxcxxb", false),
        ("[a-]", "-", true),
        ("a.b", "axb", false),
    ] {
        assert_eq!(Glob::new(pattern, false).matches(text), want, "{pattern} {text}");
        assert_eq!(
            libc_says(pattern, text, 0),
            want,
            "the C library: {pattern} {text}"
        );
    }
    assert!(Glob::new("FT*[D-F]x", true).matches("ftaaEX"));
    assert!(!Glob::new("FT*[D-F]x", false).matches("ftaaEX"));
}

#[test]
fn a_hostile_pattern_does_not_take_for_ever() {
    let pattern = "*a".repeat(1000);
    let text = "a".repeat(999) + "b";
    assert!(!Glob::new(&pattern, false).matches(&text));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_the_c_library(pattern in "[ab?*\\[\\]!^\\\\]{0,8}|[a-c]?\\[[!^]?[a-cA-C-]{1,4}\\][a-c*?]{0,3}",
                                 text in "[abcABC\\[\\]\\\\!^-]{0,6}") {
        // A range the wrong way round is an error to some C libraries and empty to others.
        prop_assume!(!backwards(&pattern));
        prop_assert_eq!(Glob::new(&pattern, false).matches(&text), libc_says(&pattern, &text, 0));
    }

    #[test]
    fn takes_anything(pattern in "\\PC{0,40}", text in "\\PC{0,40}", fold: bool) {
        Glob::new(&pattern, fold).matches(&text);
    }
}

fn backwards(pattern: &str) -> bool {
    pattern.as_bytes().windows(3).any(|w| w[1] == b'-' && w[0] > w[2])
}
