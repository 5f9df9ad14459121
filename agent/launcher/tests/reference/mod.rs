//! A second, plain reading of a seccomp document (the JSON of Docker, containers-common and Kubernetes): what it says to a call
//! with its arguments on a node. It shares no line with the compiler that it is compared with.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;

/// A node, as far as a filter asks for it.
pub(crate) struct Node {
    pub(crate) caps: BTreeSet<&'static str>,
    pub(crate) arm: bool,
    pub(crate) kernel: (u64, u64),
}

fn words(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Does an entry count on this node?
fn counts(entry: &Value, node: &Node) -> bool {
    let arch = if node.arm { "arm64" } else { "amd64" };
    let new_enough = |text: &Value| {
        let text = text.as_str().expect("kernel");
        let (major, minor) = text.split_once('.').expect("two numbers");
        node.kernel >= (major.parse().expect("major"), minor.parse().expect("minor"))
    };
    let (yes, no) = (&entry["includes"], &entry["excludes"]);
    if words(&no["arches"]).contains(&arch) || words(&no["caps"]).iter().any(|c| node.caps.contains(c)) {
        return false;
    }
    if !no["minKernel"].is_null() && new_enough(&no["minKernel"]) {
        return false;
    }
    (words(&yes["arches"]).is_empty() || words(&yes["arches"]).contains(&arch))
        && words(&yes["caps"]).iter().all(|c| node.caps.contains(c))
        && (yes["minKernel"].is_null() || new_enough(&yes["minKernel"]))
}

fn action(action: &Value, errno: &Value, named: &Value) -> u32 {
    let number = match (errno.as_u64(), named.as_str()) {
        (Some(n), _) => n as u32,
        (None, Some("ENOSYS")) => 38,
        _ => 1,
    };
    match action.as_str().expect("action") {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | number,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_KILL" => 0,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        other => panic!("{other}"),
    }
}

fn holds(test: &Value, args: &[u64; 6]) -> bool {
    let arg = args[test["index"].as_u64().expect("index") as usize];
    let value = test["value"].as_u64().expect("value");
    match test["op"].as_str().expect("op") {
        "SCMP_CMP_EQ" => arg == value,
        "SCMP_CMP_NE" => arg != value,
        "SCMP_CMP_LT" => arg < value,
        "SCMP_CMP_LE" => arg <= value,
        "SCMP_CMP_GT" => arg > value,
        "SCMP_CMP_GE" => arg >= value,
        "SCMP_CMP_MASKED_EQ" => arg & value == test["valueTwo"].as_u64().unwrap_or(0),
        other => panic!("{other}"),
    }
}

/// What a document says by call name, for one node.
pub(crate) struct Reference<'a> {
    pub(crate) default: u32,
    entries: BTreeMap<&'a str, Vec<(&'a Value, u32)>>,
}

impl<'a> Reference<'a> {
    pub(crate) fn of(document: &'a Value, node: &Node) -> Self {
        let default = action(
            &document["defaultAction"],
            &document["defaultErrnoRet"],
            &document["defaultErrno"],
        );
        let mut entries: BTreeMap<&str, Vec<(&Value, u32)>> = BTreeMap::new();
        for entry in document["syscalls"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| counts(e, node))
        {
            let what = action(&entry["action"], &entry["errnoRet"], &entry["errno"]);
            for name in words(&entry["names"]).into_iter().chain(entry["name"].as_str()) {
                if what != default {
                    entries.entry(name).or_default().push((&entry["args"], what));
                }
            }
        }
        Self { default, entries }
    }

    pub(crate) fn answer(&self, name: &str, args: &[u64; 6]) -> u32 {
        let tests = |v: &'a Value| v.as_array().map(Vec::as_slice).unwrap_or_default();
        let mine = self.entries.get(name).map(Vec::as_slice).unwrap_or_default();
        if let Some((_, what)) = mine.iter().find(|(list, _)| tests(list).is_empty()) {
            return *what;
        }
        // The strictest of those that match, in the kernel's order.
        let matching = mine.iter().filter(|(list, _)| {
            let list = tests(list);
            let indices: BTreeSet<_> = list.iter().map(|t| t["index"].as_u64()).collect();
            if indices.len() == list.len() {
                list.iter().all(|t| holds(t, args))
            } else {
                list.iter().any(|t| holds(t, args))
            }
        });
        matching
            .map(|(_, what)| *what)
            .min_by_key(|what| *what as i32)
            .unwrap_or(self.default)
    }

    /// Argument vectors around every value that a call is compared with.
    pub(crate) fn arguments(&self, name: &str) -> Vec<[u64; 6]> {
        let mut all = vec![[0; 6], [u64::MAX; 6]];
        for (list, _) in self.entries.get(name).into_iter().flatten() {
            let mut together = [0; 6];
            for test in list.as_array().into_iter().flatten() {
                let index = test["index"].as_u64().expect("index") as usize;
                let value = test["value"].as_u64().expect("value");
                let two = test["valueTwo"].as_u64().unwrap_or(0);
                together[index] = if test["op"] == "SCMP_CMP_MASKED_EQ" {
                    two
                } else {
                    value
                };
                for v in [
                    value,
                    value.wrapping_add(1),
                    value.wrapping_sub(1),
                    two,
                    two | !value,
                    value & value.wrapping_neg(),
                ] {
                    let mut args = [0; 6];
                    args[index] = v;
                    all.push(args);
                }
            }
            all.push(together);
        }
        all
    }
}
