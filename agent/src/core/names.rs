//! Names of instances and ids of containers. Pure.

/// Longest id built here, so that a number can still be put behind it: the name of a monitor's socket takes 80.
const LONGEST: usize = 72;

/// A text as part of a container id: `[a-z0-9._-]`, everything else becomes `-`.
pub(crate) fn plain(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
                c
            } else {
                '-'
            }
        })
        .take(LONGEST)
        .collect();
    if plain.is_empty() { "-".to_owned() } else { plain }
}

/// `workload-sysname`.
pub(crate) fn of_device(workload: &str, sysname: &str) -> String {
    let mut name = format!("{workload}-{}", plain(sysname));
    name.truncate(LONGEST);
    name
}

/// `wanted`, or with the first number from 2 for which `taken` says no.
pub(crate) fn unique(wanted: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(wanted) {
        return wanted.to_owned();
    }
    (2_u32..)
        .map(|n| format!("{wanted}-{n}"))
        .find(|name| !taken(name))
        .unwrap_or_else(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ids() {
        for (sysname, want) in [
            ("ttyUSB0", "pump-ttyusb0"),
            ("cciss!c0d0", "pump-cciss-c0d0"),
            ("../../etc", "pump-..-..-etc"),
            ("", "pump--"),
            ("ä", "pump--"),
        ] {
            assert_eq!(of_device("pump", sysname), want, "{sysname}");
        }
        assert_eq!(of_device("pump", &"x".repeat(4000)).len(), LONGEST);
    }

    #[test]
    fn unique_counts_on() {
        assert_eq!(unique("a", |_| false), "a");
        assert_eq!(unique("a", |n| n == "a" || n == "a-2"), "a-3");
    }
}
