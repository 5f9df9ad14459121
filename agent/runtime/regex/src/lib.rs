//! The crate `regex` as oci-spec uses it, carried out by regex-lite.
//!
//! oci-spec checks one field (`process.execCPUAffinity`) with one pattern, and for that the whole engine with its Unicode
//! tables would be linked: a ninth of the binary's file, and half of the addresses that the dynamic loader writes each time
//! `berth` is started. Invariant: the pattern means the same to both, digits of other scripts apart, which the kernel
//! does not read either.

pub use regex_lite::*;

#[cfg(test)]
mod tests {
    use super::Regex;

    #[test]
    fn the_pattern_of_oci_spec() {
        let list = Regex::new(r"^(\d+(-\d+)?)(,\d+(-\d+)?)*$").unwrap();
        for good in ["0", "0-3", "0-3,7", "1,2,3-5"] {
            assert!(list.is_match(good), "{good}");
        }
        for bad in ["", "a", "0-", ",", "0,,1", "0-3-5", " 0", "0\n1", "٣"] {
            assert!(!list.is_match(bad), "{bad}");
        }
    }
}
