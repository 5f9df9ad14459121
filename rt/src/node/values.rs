//! Values of a `Node` document that are written as text: shares of a second, spans, page sizes, frequencies, latencies
//! and choices of CPUs. Each prints what it parses back to the same value; parsing is strict.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuSet;

/// `TryFrom<String>` and `Into<String>` by way of `FromStr` and `Display`, which is how serde takes these values.
macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<$type, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )*};
}

as_text!(
    PerSecond,
    Share,
    Seconds,
    PageSize,
    KiloHertz,
    ResumeLatency,
    CpuChoice,
    Queues
);

/// A number and the unit behind it; `None` where the text does not begin with digits or the number is too large.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// A share of each second in microseconds, written `900ms`, `900000us` or `1s`; above 0, at most a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PerSecond(u64);

impl PerSecond {
    /// Microseconds of each second.
    #[must_use]
    pub fn us(self) -> u64 {
        self.0
    }
}

impl FromStr for PerSecond {
    type Err = String;

    fn from_str(text: &str) -> Result<PerSecond, String> {
        let bad = || format!("`{text}` is not a share of a second: expected such as 900ms, 900000us or 1s");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            _ => return Err(bad()),
        };
        let us = number.checked_mul(factor).ok_or_else(bad)?;
        if us == 0 || us > 1_000_000 {
            return Err(format!("`{text}` is not above 0 and at most 1s"));
        }
        Ok(PerSecond(us))
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us if us % 1_000_000 == 0 => write!(f, "{}s", us / 1_000_000),
            us if us % 1_000 == 0 => write!(f, "{}ms", us / 1_000),
            us => write!(f, "{us}us"),
        }
    }
}

/// `off`, or a share of each second: of real-time throttling and of the fair server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Share {
    /// `off`
    Off,
    /// A share.
    Of(PerSecond),
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        if text == "off" {
            return Ok(Share::Off);
        }
        text.parse().map(Share::Of).map_err(|_: String| {
            format!("`{text}` is not `off` and no share of a second above 0 and at most 1s, such as 950ms")
        })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Off => f.write_str("off"),
            Share::Of(share) => share.fmt(f),
        }
    }
}

/// Whole seconds, written `10s` or `10m`; at most a day. 0 is written `off` where the kernel takes 0 for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seconds(u32);

impl Seconds {
    /// Seconds; 0 is off.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    pub(crate) const fn of(seconds: u32) -> Seconds {
        Seconds(seconds)
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seconds, String> {
        if text == "off" {
            return Ok(Seconds(0));
        }
        let bad =
            || format!("`{text}` is neither `off` nor whole seconds such as 10s or 10m, from 1s to 24h");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(bad()),
        };
        match number.checked_mul(factor) {
            Some(seconds @ 1..=86_400) => Ok(Seconds(seconds as u32)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("off"),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

/// The size of a page as the kernel writes it on its command line: `4k`, `64k`, `2M`, `1G`; a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PageSize(u64);

impl PageSize {
    /// KiB, as in the folder names `hugepages-2048kB`.
    #[must_use]
    pub fn kib(self) -> u64 {
        self.0
    }

    /// That many KiB; `None` where that is no size of a page.
    #[must_use]
    pub fn of_kib(kib: u64) -> Option<PageSize> {
        (kib.is_power_of_two() && (4..=16 << 20).contains(&kib)).then_some(PageSize(kib))
    }
}

impl FromStr for PageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<PageSize, String> {
        let bad =
            || format!("`{text}` is not the size of a page: expected such as 64k, 2M or 1G, a power of two");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit {
            "k" | "K" => 1,
            "m" | "M" => 1 << 10,
            "g" | "G" => 1 << 20,
            _ => return Err(bad()),
        };
        match number.checked_mul(factor) {
            Some(kib) if kib.is_power_of_two() && (4..=16 << 20).contains(&kib) => Ok(PageSize(kib)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            kib if kib >= 1 << 20 => write!(f, "{}G", kib >> 20),
            kib if kib >= 1 << 10 => write!(f, "{}M", kib >> 10),
            kib => write!(f, "{kib}k"),
        }
    }
}

/// A CPU frequency: `2400MHz`, `2GHz`, `2400000kHz`, or a number of kHz as in `scaling_max_freq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KiloHertz(u64);

impl KiloHertz {
    /// kHz.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// That many kHz; `None` beyond what is accepted.
    #[must_use]
    pub fn new(khz: u64) -> Option<KiloHertz> {
        (1..=100_000_000).contains(&khz).then_some(KiloHertz(khz))
    }
}

impl FromStr for KiloHertz {
    type Err = String;

    fn from_str(text: &str) -> Result<KiloHertz, String> {
        let bad =
            || format!("`{text}` is not a frequency: expected such as 2400MHz, 2GHz or a number of kHz");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit {
            "" | "kHz" => 1,
            "MHz" => 1_000,
            "GHz" => 1_000_000,
            _ => return Err(bad()),
        };
        number
            .checked_mul(factor)
            .and_then(KiloHertz::new)
            .ok_or_else(bad)
    }
}

impl fmt::Display for KiloHertz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            khz if khz % 1_000 == 0 => write!(f, "{}MHz", khz / 1_000),
            khz => write!(f, "{khz}kHz"),
        }
    }
}

/// How long a CPU may take to leave idle: `any`, or microseconds (`0us` keeps it from sleeping at all).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ResumeLatency {
    /// No limit.
    Any,
    /// At most so many microseconds.
    Us(u32),
}

impl ResumeLatency {
    /// As `power/pm_qos_resume_latency_us` has it: there `0` is no limit and `n/a` is no latency at all.
    #[must_use]
    pub fn as_kernel(self) -> String {
        match self {
            ResumeLatency::Any => "0".into(),
            ResumeLatency::Us(0) => "n/a".into(),
            ResumeLatency::Us(us) => us.to_string(),
        }
    }
}

impl FromStr for ResumeLatency {
    type Err = String;

    fn from_str(text: &str) -> Result<ResumeLatency, String> {
        if text == "any" {
            return Ok(ResumeLatency::Any);
        }
        let bad = || format!("`{text}` is neither `any` nor a latency such as 0us, 3us or 1ms, at most 1s");
        let (number, unit) = split(text).ok_or_else(bad)?;
        let factor = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            _ => return Err(bad()),
        };
        match number.checked_mul(factor) {
            Some(us @ 0..=1_000_000) => Ok(ResumeLatency::Us(us as u32)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ResumeLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResumeLatency::Any => f.write_str("any"),
            ResumeLatency::Us(us) => write!(f, "{us}us"),
        }
    }
}

/// `housekeeping`, `all`, or a CPU list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CpuChoice {
    /// The housekeeping CPUs, and the shared ones.
    Housekeeping,
    /// Every CPU.
    All,
    /// These.
    These(CpuSet),
}

impl CpuChoice {
    /// The CPUs of this choice; `None` where it is all of them.
    #[must_use]
    pub fn limited(&self, parts: &crate::cmdline::Parts) -> Option<CpuSet> {
        match self {
            CpuChoice::Housekeeping => Some(parts.housekeeping.clone()),
            CpuChoice::All => None,
            CpuChoice::These(cpus) => Some(cpus.clone()),
        }
    }
}

impl FromStr for CpuChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuChoice, String> {
        match text {
            "housekeeping" => Ok(CpuChoice::Housekeeping),
            "all" => Ok(CpuChoice::All),
            "" => Err("no CPU at all: expected `housekeeping`, `all` or a list such as 0-1".into()),
            list => list
                .parse()
                .map(CpuChoice::These)
                .map_err(|error| format!("{error}; or `housekeeping`, or `all`")),
        }
    }
}

impl fmt::Display for CpuChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuChoice::Housekeeping => f.write_str("housekeeping"),
            CpuChoice::All => f.write_str("all"),
            CpuChoice::These(cpus) => cpus.fmt(f),
        }
    }
}

/// How many queues a network interface has: `housekeeping` for as many as there are housekeeping CPUs, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Queues {
    /// As many as there are housekeeping CPUs.
    Housekeeping,
    /// So many.
    Number(u32),
}

impl FromStr for Queues {
    type Err = String;

    fn from_str(text: &str) -> Result<Queues, String> {
        match text {
            "housekeeping" => Ok(Queues::Housekeeping),
            text => match text.parse() {
                Ok(number @ 1..=4096) => Ok(Queues::Number(number)),
                _ => Err(format!(
                    "`{text}` is neither `housekeeping` nor a number of queues from 1 to 4096"
                )),
            },
        }
    }
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Queues::Housekeeping => f.write_str("housekeeping"),
            Queues::Number(number) => number.fmt(f),
        }
    }
}

/// A real-time priority, 1 to 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Priority(u8);

impl Priority {
    /// 1 to 99.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }

    pub(crate) const fn of(priority: u8) -> Priority {
        Priority(priority)
    }
}

impl TryFrom<i64> for Priority {
    type Error = String;

    fn try_from(number: i64) -> Result<Priority, String> {
        match number {
            1..=99 => Ok(Priority(number as u8)),
            _ => Err(format!(
                "{number} is no real-time priority: expected 1 to 99, where 99 is the highest"
            )),
        }
    }
}

impl From<Priority> for i64 {
    fn from(priority: Priority) -> i64 {
        i64::from(priority.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round<T: FromStr<Err = String> + fmt::Display>(texts: &[(&str, &str)]) {
        for (text, printed) in texts {
            match text.parse::<T>() {
                Ok(value) => assert_eq!(value.to_string(), *printed, "{text}"),
                Err(error) => panic!("{text}: {error}"),
            }
        }
    }

    fn bad<T: FromStr<Err = String> + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert!(text.is_empty() || error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_is_printed_is_what_was_read() {
        round::<PerSecond>(&[
            ("900ms", "900ms"),
            ("900000us", "900ms"),
            ("1s", "1s"),
            ("1us", "1us"),
        ]);
        round::<Share>(&[("off", "off"), ("950000us", "950ms")]);
        round::<Seconds>(&[("10s", "10s"), ("10m", "600s"), ("off", "off")]);
        round::<PageSize>(&[
            ("64k", "64k"),
            ("2048K", "2M"),
            ("2m", "2M"),
            ("1024M", "1G"),
            ("16G", "16G"),
        ]);
        round::<KiloHertz>(&[
            ("2400MHz", "2400MHz"),
            ("2GHz", "2000MHz"),
            ("2500001", "2500001kHz"),
        ]);
        round::<ResumeLatency>(&[("any", "any"), ("0us", "0us"), ("1ms", "1000us")]);
        round::<CpuChoice>(&[("housekeeping", "housekeeping"), ("all", "all"), ("0-1", "0-1")]);
        round::<Queues>(&[("housekeeping", "housekeeping"), ("4", "4")]);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        bad::<PerSecond>(&["0ms", "2s", "900", "ms", "1.5ms", "-1ms"]);
        bad::<Share>(&["none", "0ms", "2s", "-1"]);
        bad::<Seconds>(&["0s", "25h", "1.5s", "10", "", "99999999999999999999s"]);
        bad::<PageSize>(&["3M", "2", "32G", "1k", "G", "1T"]);
        bad::<KiloHertz>(&["0", "2.4GHz", "fast", "1000GHz"]);
        bad::<ResumeLatency>(&["0", "-1us", "2s"]);
        bad::<CpuChoice>(&["3-1", "isolated"]);
        bad::<Queues>(&["0", "5000", "all"]);
        for number in [-1, 0, 100] {
            assert!(Priority::try_from(number).unwrap_err().contains("1 to 99"));
        }
    }

    #[test]
    fn no_latency_at_all_is_not_the_kernels_zero() {
        assert_eq!(ResumeLatency::Any.as_kernel(), "0");
        assert_eq!(ResumeLatency::Us(0).as_kernel(), "n/a");
        assert_eq!(ResumeLatency::Us(3).as_kernel(), "3");
    }
}
