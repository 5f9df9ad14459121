//! The worker's command line.

/// Printed after a wrong argument.
pub(crate) const USAGE: &str = "usage: device-worker [--device PATH | --interface NAME] [--period TIME] [--cycles N] \
[--exit-code N] [--look-once] [--ignore-term]\n       \
device-worker --calls N,N,…\n  TIME: a number with ns, us, ms or s; from 50us to 10s (default 1ms)";

/// What the worker was told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// Device node to open.
    pub(crate) device: Option<String>,
    /// Network interface to look at.
    pub(crate) interface: Option<String>,
    /// Length of a cycle in nanoseconds, 50 us to 10 s.
    pub(crate) period_ns: u64,
    /// Ends after so many cycles.
    pub(crate) cycles: Option<u64>,
    /// Exit code when it ends by itself or by a signal.
    pub(crate) exit_code: u8,
    /// The device is looked at once, at the start. (Opening the node of a loop device that has gone makes a new one.)
    pub(crate) look_once: bool,
    /// SIGTERM is ignored, as a workload that hangs would.
    pub(crate) ignore_term: bool,
    /// Numbers of system calls: each is made once, with no argument that means anything, and the worker ends.
    pub(crate) calls: Option<Vec<i64>>,
}

pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        device: None,
        interface: None,
        period_ns: 1_000_000,
        cycles: None,
        exit_code: 0,
        look_once: false,
        ignore_term: false,
        calls: None,
    };
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (word, None),
        };
        if name == "--ignore-term" && inline.is_none() {
            args.ignore_term = true;
            continue;
        }
        if name == "--look-once" && inline.is_none() {
            args.look_once = true;
            continue;
        }
        const VALUED: [&str; 6] = [
            "--device",
            "--interface",
            "--period",
            "--cycles",
            "--exit-code",
            "--calls",
        ];
        if !VALUED.contains(&name.as_str()) {
            return Err(format!("unknown argument {name:?}"));
        }
        let value = inline
            .or_else(|| words.next())
            .ok_or_else(|| format!("{name} needs a value"))?;
        let wrong = || format!("{name}: {value:?} is out of range or no number");
        match name.as_str() {
            "--device" => args.device = Some(value),
            "--interface" => args.interface = Some(value),
            "--period" => args.period_ns = time(&value).ok_or_else(wrong)?,
            "--calls" => {
                let numbers = value.split(',').map(str::parse);
                args.calls = Some(numbers.collect::<Result<_, _>>().map_err(|_| wrong())?);
            }
            "--cycles" => args.cycles = Some(value.parse().map_err(|_| wrong())?),
            _ => args.exit_code = value.parse().map_err(|_| wrong())?,
        }
    }
    if args.device.is_some() && args.interface.is_some() {
        return Err("--device and --interface exclude each other".into());
    }
    Ok(args)
}

/// A time with its unit, 50 us to 10 s.
fn time(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    number
        .checked_mul(unit)
        .filter(|ns| (50_000..=10_000_000_000).contains(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Args, String> {
        parse(words.iter().map(ToString::to_string))
    }

    #[test]
    fn arguments() {
        let args = of(&[
            "--device=/dev/loop0",
            "--period",
            "250us",
            "--cycles",
            "9",
            "--exit-code",
            "3",
        ])
        .unwrap();
        assert_eq!(args.device.as_deref(), Some("/dev/loop0"));
        assert_eq!(
            (args.period_ns, args.cycles, args.exit_code, args.ignore_term),
            (250_000, Some(9), 3, false)
        );
        assert_eq!(of(&["--calls", "1,39"]).unwrap().calls, Some(vec![1, 39]));
        for bad in [
            &["--period", "1"][..],
            &["--calls", "1,,2"],
            &["--period", "1us"],
            &["--period", "99999999999999s"],
            &["--cycles"],
            &["--exit-code", "256"],
            &["--frob"],
            &["--ignore-term=yes"],
            &["--look-once=yes"],
            &["--device", "a", "--interface", "b"],
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
