//! Signals by name, as in signal(7), with the numbers that x86_64 and arm64 share.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names that may be written, in the order of [`NUMBERS`].
const NAMES: &[&str] = &[
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];
/// glibc's and musl's first real-time signal that programs may use, and the last.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

const EXPECTED: &str = "a signal's name, such as `SIGTERM` or `SIGRTMIN+3`";

/// A signal, 1 to 31 or 34 (`SIGRTMIN`) to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

impl Signal {
    /// `SIGTERM`.
    pub const TERM: Self = Self(15);
    /// `SIGKILL`.
    pub const KILL: Self = Self(9);

    /// The kernel's number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// From a name; `None` where no such signal is known.
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some(index) = NAMES.iter().position(|known| *known == name) {
            return Some(Self(index as i32 + 1));
        }
        let above = match name.strip_prefix("SIGRTMIN")? {
            "" => 0,
            tail => tail
                .strip_prefix('+')
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?
                .parse()
                .ok()?,
        };
        (0..=RT_MAX - RT_MIN)
            .contains(&above)
            .then_some(Self(RT_MIN + above))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RT_MIN => f.write_str("SIGRTMIN"),
            number if number > RT_MIN => write!(f, "SIGRTMIN+{}", number - RT_MIN),
            number => f.write_str(NAMES.get(number as usize - 1).unwrap_or(&"SIGKILL")),
        }
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SignalVisitor;
        impl Visitor<'_> for SignalVisitor {
            type Value = Signal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Signal, E> {
                Err(E::invalid_value(Unexpected::Unsigned(number), &EXPECTED))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Signal, E> {
                Signal::from_name(name).ok_or_else(|| E::unknown_variant(name, NAMES))
            }
        }
        deserializer.deserialize_any(SignalVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (name, number) in [
            ("SIGHUP", libc::SIGHUP),
            ("SIGKILL", libc::SIGKILL),
            ("SIGUSR1", libc::SIGUSR1),
            ("SIGTERM", libc::SIGTERM),
            ("SIGCHLD", libc::SIGCHLD),
            ("SIGSTOP", libc::SIGSTOP),
            ("SIGWINCH", libc::SIGWINCH),
            ("SIGIO", libc::SIGIO),
            ("SIGSYS", libc::SIGSYS),
            ("SIGRTMIN", libc::SIGRTMIN()),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("SIGRTMIN+30", libc::SIGRTMAX()),
        ] {
            let signal = Signal::from_name(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(signal.number(), number, "{name}");
            assert_eq!(signal.to_string(), name);
        }
        for bad in [
            "TERM",
            "sigterm",
            "SIGRTMIN+31",
            "SIGRTMIN-1",
            "SIGRTMIN++1",
            "15",
            "SIGRTMIN+",
        ] {
            assert_eq!(Signal::from_name(bad), None, "{bad}");
        }
    }
}
