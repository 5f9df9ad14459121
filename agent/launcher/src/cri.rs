//! The log format of the Kubernetes CRI: `TIMESTAMP stdout|stderr F|P text`, one entry a line.
//!
//! Invariants: output never waits for its newline: what has no newline yet is written at once as `P` (partial),
//! and the entry that ends the line is `F`; so no output is kept in memory, and joining entries up to each `F`
//! gives the container's bytes back. Pure: time comes in, bytes go out.

use std::io::Write;

/// Which pipe the output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl Stream {
    /// As the log file says it.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The writer's memory of one pipe: is a line begun?
#[derive(Debug)]
pub struct Encoder {
    stream: Stream,
    partial: bool,
}

impl Encoder {
    /// At the start of a line.
    pub fn new(stream: Stream) -> Encoder {
        Encoder {
            stream,
            partial: false,
        }
    }

    /// Appends entries for some of `data` to `out` until `out` holds `most` bytes or more; says how many bytes
    /// of `data` were taken. `now` is nanoseconds since the epoch.
    pub fn encode(&mut self, now: u64, data: &[u8], most: usize, out: &mut Vec<u8>) -> usize {
        let stamp = timestamp(now);
        let mut taken = 0;
        while taken < data.len() && out.len() < most {
            let rest = &data[taken..];
            let newline = rest.iter().position(|b| *b == b'\n');
            let text = &rest[..newline.unwrap_or(rest.len())];
            self.entry(&stamp, newline.is_some(), text, out);
            taken += text.len() + usize::from(newline.is_some());
        }
        taken
    }

    /// The end of the pipe: a line that was begun is ended.
    pub fn finish(&mut self, now: u64, out: &mut Vec<u8>) {
        if self.partial {
            self.entry(&timestamp(now), true, b"", out);
        }
    }

    /// Bytes were dropped: what comes next belongs to no begun line.
    pub fn dropped(&mut self) {
        self.partial = false;
    }

    fn entry(&mut self, stamp: &str, full: bool, text: &[u8], out: &mut Vec<u8>) {
        let _ = write!(
            out,
            "{stamp} {} {} ",
            self.stream.name(),
            if full { 'F' } else { 'P' }
        );
        out.extend_from_slice(text);
        out.push(b'\n');
        self.partial = !full;
    }
}

/// RFC 3339 in UTC with nanoseconds.
pub fn timestamp(now: u64) -> String {
    let (secs, nanos) = (now / 1_000_000_000, now % 1_000_000_000);
    let (year, month, day) = civil(secs / 86_400);
    let day_secs = secs % 86_400;
    let (hour, minute, second) = (day_secs / 3600, day_secs / 60 % 60, day_secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Days since 1970-01-01 as a date of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted in years that begin on the first of March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_475_713_029_669_794_202;
    const STAMP: &str = "2016-10-06T00:17:09.669794202Z";

    #[test]
    fn timestamps() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (NOW, STAMP),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (4_107_542_399_000_000_001, "2100-02-28T23:59:59.000000001Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
            (1_709_164_800_000_000_000, "2024-02-29T00:00:00.000000000Z"),
        ];
        for (now, text) in cases {
            assert_eq!(timestamp(now), text);
        }
    }

    #[test]
    fn entries() {
        let cases: [(&[&str], &str); 6] = [
            (&["a\n"], "F a\n"),
            (&["a", "b\n"], "P a\nF b\n"),
            (&["a\nb"], "F a\nP b\nF \n"),
            (&["\n\n"], "F \nF \n"),
            (&["a", "\n"], "P a\nF \n"),
            (&[""], ""),
        ];
        for (parts, expected) in cases {
            let mut encoder = Encoder::new(Stream::Stderr);
            let mut out = Vec::new();
            for part in parts {
                assert_eq!(
                    encoder.encode(NOW, part.as_bytes(), usize::MAX, &mut out),
                    part.len()
                );
            }
            encoder.finish(NOW, &mut out);
            let expected: String = expected
                .lines()
                .map(|l| format!("{STAMP} stderr {l}\n"))
                .collect();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{parts:?}");
        }
    }

    proptest! {
        #[test]
        fn joined_entries_are_the_bytes_that_went_in(
            parts in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..60), 0..8),
            most in 1usize..400,
        ) {
            let mut encoder = Encoder::new(Stream::Stdout);
            let mut log = Vec::new();
            for part in &parts {
                let mut done = 0;
                while done < part.len() {
                    let mut out = Vec::new();
                    let n = encoder.encode(NOW, &part[done..], most, &mut out);
                    prop_assert!(n > 0);
                    prop_assert!(out.len() <= most + 64 + part.len());
                    done += n;
                    log.extend(out);
                }
            }
            let whole: Vec<u8> = parts.concat();
            let mut joined = Vec::new();
            if !log.is_empty() {
                for line in log[..log.len() - 1].split(|b| *b == b'\n') {
                    let rest = line.strip_prefix(format!("{STAMP} stdout ").as_bytes()).unwrap();
                    joined.extend_from_slice(&rest[2..]);
                    if rest[0] == b'F' {
                        joined.push(b'\n');
                    }
                }
            }
            prop_assert_eq!(joined, whole);
        }
    }
}
