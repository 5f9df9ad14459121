//! Sets of CPU or memory-node numbers in the kernel's list form (`0-3,8`), as in `cpuset.cpus`,
//! `/sys/devices/system/cpu/online`, `Cpus_allowed_list` and `smp_affinity_list`.
//!
//! Invariants: what [`CpuSet`] prints, it parses back to the same set; parsing is strict (no blanks, no
//! empty items, no falling ranges, no number twice, no number above [`MAX_CPU`]). The empty string is the
//! empty set, as in an empty `cpuset.cpus`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// The highest CPU or node number that is accepted: the largest `NR_CPUS` of any Linux port is 8192.
pub const MAX_CPU: u32 = 8191;

/// A set of CPU numbers (or of memory-node numbers).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(BTreeSet<u32>);

/// Why a text is not a CPU list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseCpuSetError {
    /// An item between two commas is empty.
    #[error("`{list}`: empty item, expected a number or a range such as 0-3")]
    Empty {
        /// The whole text.
        list: String,
    },
    /// An item is neither a number nor a range.
    #[error("`{list}`: `{item}` is not a number or a range such as 0-3 (0 to {MAX_CPU}, digits only)")]
    Item {
        /// The whole text.
        list: String,
        /// The item that is wrong.
        item: String,
    },
    /// A range runs downwards.
    #[error("`{list}`: the range `{item}` runs downwards")]
    Falling {
        /// The whole text.
        list: String,
        /// The range that is wrong.
        item: String,
    },
    /// A number is given twice.
    #[error("`{list}`: {cpu} is given twice")]
    Twice {
        /// The whole text.
        list: String,
        /// The number that is there twice.
        cpu: u32,
    },
}

impl CpuSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> CpuSet {
        CpuSet::default()
    }

    /// The numbers, rising.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many numbers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `cpu` is one of them.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// The lowest number.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// The highest number.
    #[must_use]
    pub fn last(&self) -> Option<u32> {
        self.0.last().copied()
    }

    /// Adds `cpu`; false when it was there already.
    pub fn insert(&mut self, cpu: u32) -> bool {
        self.0.insert(cpu)
    }

    /// Takes `cpu` away; false when it was not there.
    pub fn remove(&mut self, cpu: u32) -> bool {
        self.0.remove(&cpu)
    }

    /// Every number of either set.
    #[must_use]
    pub fn union(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 | &other.0)
    }

    /// The numbers of this set that the other lacks.
    #[must_use]
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 - &other.0)
    }

    /// The numbers of both sets.
    #[must_use]
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 & &other.0)
    }

    /// Whether every number of this set is in the other.
    #[must_use]
    pub fn is_subset(&self, other: &CpuSet) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether the sets share no number.
    #[must_use]
    pub fn is_disjoint(&self, other: &CpuSet) -> bool {
        self.0.is_disjoint(&other.0)
    }

    /// The set of a hexadecimal mask: words of up to 8 digits, highest first, divided by commas; `None` where it is none.
    #[must_use]
    pub fn from_mask(mask: &str) -> Option<CpuSet> {
        let words: Vec<&str> = mask.trim().split(',').collect();
        let mut set = CpuSet::new();
        for (index, word) in words.iter().rev().enumerate() {
            let plain =
                !word.is_empty() && word.len() <= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let bits = u32::from_str_radix(word, 16).ok().filter(|_| plain)?;
            let base = u32::try_from(index).ok()?.checked_mul(32)?;
            for bit in (0..32).filter(|bit| bits & (1 << bit) != 0) {
                let cpu = base.checked_add(bit).filter(|cpu| *cpu <= MAX_CPU)?;
                set.insert(cpu);
            }
        }
        Some(set)
    }

    /// The set as the kernel's hexadecimal mask (`smp_affinity`, workqueue `cpumask`): words of 32 bits,
    /// highest first, separated by commas. The empty set is `00000000`.
    #[must_use]
    pub fn to_mask(&self) -> String {
        let words = self.last().map_or(1, |last| last / 32 + 1);
        let mut mask = String::new();
        for word in (0..words).rev() {
            let bits = (0..32)
                .filter(|bit| self.contains(word * 32 + bit))
                .fold(0u32, |bits, bit| bits | 1 << bit);
            if !mask.is_empty() {
                mask.push(',');
            }
            mask.push_str(&format!("{bits:08x}"));
        }
        mask
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> CpuSet {
        CpuSet(numbers.into_iter().collect())
    }
}

impl Extend<u32> for CpuSet {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, numbers: I) {
        self.0.extend(numbers);
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut numbers = self.iter().peekable();
        let mut separator = "";
        while let Some(start) = numbers.next() {
            let mut end = start;
            while numbers.peek() == Some(&(end + 1)) {
                end += 1;
                numbers.next();
            }
            if start == end {
                write!(f, "{separator}{start}")?;
            } else {
                write!(f, "{separator}{start}-{end}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    fn from_str(list: &str) -> Result<CpuSet, ParseCpuSetError> {
        let mut set = CpuSet::new();
        if list.is_empty() {
            return Ok(set);
        }
        for item in list.split(',') {
            if item.is_empty() {
                return Err(ParseCpuSetError::Empty { list: list.into() });
            }
            let bad = || ParseCpuSetError::Item {
                list: list.into(),
                item: item.into(),
            };
            let (start, end) = match item.split_once('-') {
                Some((start, end)) => (number(start).ok_or_else(bad)?, number(end).ok_or_else(bad)?),
                None => {
                    let only = number(item).ok_or_else(bad)?;
                    (only, only)
                }
            };
            if end < start {
                return Err(ParseCpuSetError::Falling {
                    list: list.into(),
                    item: item.into(),
                });
            }
            for cpu in start..=end {
                if !set.insert(cpu) {
                    return Err(ParseCpuSetError::Twice {
                        list: list.into(),
                        cpu,
                    });
                }
            }
        }
        Ok(set)
    }
}

/// A decimal number of digits only, 0 to [`MAX_CPU`].
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&number| number <= MAX_CPU)
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpuSet, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(list: &str) -> CpuSet {
        list.parse().unwrap()
    }

    #[test]
    fn lists_are_read_and_printed_as_the_kernel_does() {
        for (text, printed, len) in [
            ("", "", 0),
            ("0", "0", 1),
            ("0-3,8", "0-3,8", 5),
            ("8,0-3", "0-3,8", 5),
            ("0,1,2", "0-2", 3),
            ("8191", "8191", 1),
        ] {
            let set = set(text);
            assert_eq!(set.to_string(), printed, "{text}");
            assert_eq!(set.len(), len, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_list_is_refused_with_the_item() {
        for (text, part) in [
            (" 0", "` 0`"),
            ("0\n", "not a number"),
            ("0,", "empty item"),
            (",", "empty item"),
            ("1-", "`1-`"),
            ("-1", "`-1`"),
            ("+1", "`+1`"),
            ("0x1", "`0x1`"),
            ("3-1", "runs downwards"),
            ("0-3,2", "2 is given twice"),
            ("8192", "`8192`"),
            ("0-4294967295", "`0-4294967295`"),
            ("0-7:2/4", "`0-7:2/4`"),
        ] {
            let error = text.parse::<CpuSet>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn masks_are_words_of_32_bits_highest_first() {
        for (list, mask) in [
            ("", "00000000"),
            ("0", "00000001"),
            ("0-3,8", "0000010f"),
            ("32,63", "80000001,00000000"),
        ] {
            assert_eq!(set(list).to_mask(), mask, "{list}");
            assert_eq!(CpuSet::from_mask(mask), Some(set(list)), "{mask}");
        }
        assert_eq!(CpuSet::from_mask("f"), Some(set("0-3")));
        for bad in ["", ",f", "0x1", "g", "123456789", "+1"] {
            assert_eq!(CpuSet::from_mask(bad), None, "{bad}");
        }
    }

    #[test]
    fn serde_uses_the_list_form() {
        assert_eq!(serde_json::to_string(&set("0-1,4")).unwrap(), "\"0-1,4\"");
        assert_eq!(serde_json::from_str::<CpuSet>("\"0-1,4\"").unwrap(), set("0-1,4"));
        assert!(serde_json::from_str::<CpuSet>("\"1-0\"").is_err());
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(numbers in proptest::collection::btree_set(0..=MAX_CPU, 0..64)) {
            let set: CpuSet = numbers.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }

        #[test]
        fn any_text_is_read_or_refused_and_reading_is_stable(text in "[0-9,\\- +x]{0,12}") {
            if let Ok(set) = text.parse::<CpuSet>() {
                prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
            }
        }

        #[test]
        fn set_algebra(a in proptest::collection::btree_set(0..256u32, 0..32), b in proptest::collection::btree_set(0..256u32, 0..32)) {
            let (a, b): (CpuSet, CpuSet) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.intersection(&b).is_subset(&b));
            prop_assert!(a.difference(&b).is_disjoint(&b));
        }

        #[test]
        fn a_mask_has_exactly_the_bits_of_the_set(numbers in proptest::collection::btree_set(0..256u32, 0..32)) {
            let set: CpuSet = numbers.into_iter().collect();
            let words: Vec<u32> = set.to_mask().split(',').map(|word| u32::from_str_radix(word, 16).unwrap()).collect();
            let back: CpuSet = (0..words.len() as u32 * 32)
                .filter(|cpu| words[words.len() - 1 - (cpu / 32) as usize] >> (cpu % 32) & 1 == 1)
                .collect();
            prop_assert_eq!(back, set);
        }
    }
}
