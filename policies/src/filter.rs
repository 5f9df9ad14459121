//! A system call filter as people write it: the OCI `seccomp` object, and what the default profiles of Docker,
//! containers-common and Kubernetes add to it.
//!
//! ```text
//! archMap                 the native architecture's line is taken, its sub-architectures with it
//! includes, excludes      caps (bounding set), arches (Go's names), minKernel: an entry counts or does not
//! errno, defaultErrno     an errno by name (containers-common)
//! name                    one call, in the place of `names` (before 2017)
//! comment                 for people
//! ```
//! Rules of that format: an entry counts when nothing of `excludes` is so and everything of `includes` is; `caps` of
//! `includes` must all be there, one of `excludes` suffices. A name that no architecture here knows is passed over,
//! but only in an entry that allows more than the default action does: elsewhere passing over it would weaken the
//! filter, and it is refused.
//!
//! Invariants: an unknown key, architecture, capability or errno is refused; [`Filter::section`] is pure.

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Problem;
use crate::names::{self, CAPABILITIES, is_syscall, nearest, nearest_syscall};
use crate::spec::{problem, unknown};

/// Go's names of architectures, as `includes.arches` and `excludes.arches` have them.
static ARCHES: [&str; 22] = [
    "386",
    "amd64",
    "arm",
    "arm64",
    "loong64",
    "loongarch64",
    "mips",
    "mips3l64n32",
    "mips64",
    "mips64n32",
    "mipsel",
    "mipsel64",
    "mipsel64n32",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv64",
    "s390",
    "s390x",
    "x32",
    "x86",
];

/// A whole filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// What happens to a call that no entry names.
    pub default_action: LinuxSeccompAction,
    /// Its errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Its errno by name, or as a number in text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno: Option<String>,
    /// Architectures; the native one alone where absent. Not beside `archMap`.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Architectures with those that run beside them.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub arch_map: Vec<ArchLine>,
    /// SECCOMP_FILTER_FLAG_*.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<LinuxSeccompFilterFlag>,
    /// Socket that takes the descriptor of SCMP_ACT_NOTIFY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_path: Option<std::path::PathBuf>,
    /// Sent along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_metadata: Option<String>,
    /// Calls by name.
    #[serde(default, deserialize_with = "list")]
    pub syscalls: Vec<Entry>,
}

/// One line of `archMap`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchLine {
    /// Native architecture (`SCMP_ARCH_…`).
    pub architecture: String,
    /// Those its kernels run beside it.
    #[serde(default, deserialize_with = "list")]
    pub sub_architectures: Vec<String>,
}

/// Calls that share one action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// One name, in the place of `names`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Their names.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// What happens.
    pub action: LinuxSeccompAction,
    /// Errno of SCMP_ACT_ERRNO and message of SCMP_ACT_TRACE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// The same by name, or as a number in text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// Comparisons, all of which must hold.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// It counts only where all of this is so.
    #[serde(
        default,
        deserialize_with = "absent",
        skip_serializing_if = "Condition::is_empty"
    )]
    pub includes: Condition,
    /// It does not count where any of this is so.
    #[serde(
        default,
        deserialize_with = "absent",
        skip_serializing_if = "Condition::is_empty"
    )]
    pub excludes: Condition,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argument {
    /// 0 to 5.
    pub index: usize,
    /// Compared with; of MASKED_EQ the mask.
    pub value: u64,
    /// Of MASKED_EQ: what must be left under the mask.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: LinuxSeccompOperator,
}

/// When an entry counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// Capabilities of the container's bounding set.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Go's names of native architectures.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub arches: Vec<String>,
    /// `MAJOR.MINOR` of the kernel, or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

/// Those files write `null` for an empty list.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn absent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Condition, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What the conditions of a filter are judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judge {
    /// Bounding set.
    pub capabilities: BTreeSet<&'static str>,
    /// `SCMP_ARCH_…` of the node.
    pub native: Arch,
    /// Release of the kernel: major, minor.
    pub kernel: (u32, u32),
}

impl Judge {
    /// For this machine's architecture and a kernel release such as `6.12.9-rt`; `None`: it does not begin with two
    /// numbers.
    pub fn here(capabilities: &BTreeSet<&'static str>, release: &str) -> Option<Self> {
        let native = if cfg!(target_arch = "aarch64") {
            Arch::ScmpArchAarch64
        } else {
            Arch::ScmpArchX86_64
        };
        Some(Self {
            capabilities: capabilities.clone(),
            native,
            kernel: kernel(release)?,
        })
    }

    /// Go's name of the architecture.
    fn arch(&self) -> &'static str {
        match self.native {
            Arch::ScmpArchAarch64 => "arm64",
            _ => "amd64",
        }
    }
}

/// The first two numbers of a release.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

/// `minKernel`: exactly two numbers.
fn min_kernel(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// How much an action lets through: the kernel's own order of precedence, stricter first.
fn leave(action: LinuxSeccompAction) -> u8 {
    use LinuxSeccompAction as A;
    match action {
        A::ScmpActKillProcess => 0,
        A::ScmpActKill | A::ScmpActKillThread => 1,
        A::ScmpActTrap => 2,
        A::ScmpActErrno => 3,
        A::ScmpActNotify => 4,
        A::ScmpActTrace => 5,
        A::ScmpActLog => 6,
        A::ScmpActAllow => 7,
    }
}

impl Condition {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn kernel_is(&self, judge: &Judge) -> Option<bool> {
        let least = min_kernel(self.min_kernel.as_deref()?)?;
        Some(judge.kernel >= least)
    }

    fn validate(&self, path: &str, found: &mut Vec<Problem>) {
        let caps = || CAPABILITIES.iter().copied();
        for (index, name) in self.caps.iter().enumerate() {
            if !CAPABILITIES.contains(&name.as_str()) {
                let path = format!("{path}.caps[{index}]");
                found.push(unknown(&path, "capability", name, nearest(name, caps())));
            }
        }
        for (index, name) in self.arches.iter().enumerate() {
            if !ARCHES.contains(&name.as_str()) {
                let path = format!("{path}.arches[{index}]");
                let near = nearest(name, ARCHES.iter().copied());
                found.push(unknown(&path, "architecture", name, near));
            }
        }
        if let Some(text) = self.min_kernel.as_deref().filter(|t| min_kernel(t).is_none()) {
            found.push(problem(
                &format!("{path}.minKernel"),
                format!("`{text}` is not MAJOR.MINOR"),
                Some("write the kernel as `4.8`".into()),
            ));
        }
    }
}

impl Entry {
    /// Its names, however they are written.
    pub fn all_names(&self) -> impl Iterator<Item = &String> {
        self.name.iter().chain(&self.names)
    }

    /// Does it count?
    pub fn counts(&self, judge: &Judge) -> bool {
        let has = |name: &String| judge.capabilities.contains(name.as_str());
        let here = |list: &[String]| list.iter().any(|name| name == judge.arch());
        let (yes, no) = (&self.includes, &self.excludes);
        let excluded = here(&no.arches) || no.caps.iter().any(has) || no.kernel_is(judge).unwrap_or(false);
        let included = (yes.arches.is_empty() || here(&yes.arches))
            && yes.caps.iter().all(has)
            && yes.kernel_is(judge).unwrap_or(true);
        included && !excluded
    }
}

/// The number of an errno in one of two spellings. `Err`: what is wrong.
fn errno(number: Option<u32>, text: Option<&str>) -> Result<Option<u32>, String> {
    let Some(text) = text.filter(|t| !t.is_empty()) else {
        return Ok(number);
    };
    let named = text.parse().ok().or_else(|| crate::errno::number(text));
    match (named, number) {
        (None, _) => Err(match nearest(text, crate::errno::names()) {
            Some(near) => format!("unknown errno `{text}`, did you mean `{near}`?"),
            None => format!("unknown errno `{text}`"),
        }),
        (Some(named), Some(number)) if named != number => Err(format!(
            "errno `{text}` is {named}, and {number} stands beside it"
        )),
        (named, _) => Ok(named),
    }
}

impl Filter {
    /// What is wrong with it on any node; paths start with `path`.
    pub(crate) fn validate(&self, path: &str, found: &mut Vec<Problem>) {
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            found.push(problem(
                &format!("{path}.archMap"),
                "`architectures` is there too".into(),
                Some("remove one of the two".into()),
            ));
        }
        for (index, name) in self.architectures.iter().enumerate() {
            if arch(name).is_none() {
                let known = [
                    "SCMP_ARCH_X86_64",
                    "SCMP_ARCH_X86",
                    "SCMP_ARCH_X32",
                    "SCMP_ARCH_AARCH64",
                    "SCMP_ARCH_ARM",
                ];
                let near = nearest(name, known);
                found.push(unknown(
                    &format!("{path}.architectures[{index}]"),
                    "architecture",
                    name,
                    near,
                ));
            }
        }
        if let Err(message) = errno(self.default_errno_ret, self.default_errno.as_deref()) {
            found.push(problem(&format!("{path}.defaultErrno"), message, None));
        }
        for (index, entry) in self.syscalls.iter().enumerate() {
            let path = format!("{path}.syscalls[{index}]");
            if entry.name.is_some() && !entry.names.is_empty() {
                found.push(problem(
                    &format!("{path}.name"),
                    "`names` is there too".into(),
                    Some("remove one of the two".into()),
                ));
            }
            if let Err(message) = errno(entry.errno_ret, entry.errno.as_deref()) {
                found.push(problem(&format!("{path}.errno"), message, None));
            }
            if let Some(wrong) = entry.args.iter().find(|a| a.index > 5) {
                found.push(problem(
                    &format!("{path}.args"),
                    format!("argument index {} is not 0 to 5", wrong.index),
                    None,
                ));
            }
            entry.includes.validate(&format!("{path}.includes"), found);
            entry.excludes.validate(&format!("{path}.excludes"), found);
            if leave(entry.action) > leave(self.default_action) {
                continue;
            }
            for (at, name) in entry.all_names().enumerate().filter(|(_, n)| !is_syscall(n)) {
                let path = format!("{path}.names[{at}]");
                found.push(unknown(&path, "system call", name, nearest_syscall(name)));
            }
        }
    }

    /// Names that are passed over because no architecture here has them, each with the nearest that is known.
    pub fn passed_over(&self) -> Vec<(&str, Option<&'static str>)> {
        let mut all: Vec<_> = self
            .syscalls
            .iter()
            .flat_map(Entry::all_names)
            .filter(|name| !is_syscall(name))
            .map(|name| (name.as_str(), nearest_syscall(name)))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Does any entry ask for the kernel's release?
    pub fn asks_kernel(&self) -> bool {
        let asks = |c: &Condition| c.min_kernel.is_some();
        self.syscalls
            .iter()
            .any(|e| asks(&e.includes) || asks(&e.excludes))
    }

    /// The OCI section for one container on one node.
    ///
    /// # Errors
    /// A [`Problem`] that `ProfileSpec::validate` finds too, of a filter that was not validated.
    pub fn section(&self, judge: &Judge) -> Result<LinuxSeccomp, Problem> {
        let path = "spec.seccomp";
        let wrong = |message: String| problem(path, message, None);
        let mut archs = Vec::new();
        for name in self.architectures.iter().map(String::as_str) {
            archs.push(arch(name).ok_or_else(|| wrong(format!("unknown architecture `{name}`")))?);
        }
        let line = self
            .arch_map
            .iter()
            .find(|l| arch(&l.architecture) == Some(judge.native));
        for name in line
            .into_iter()
            .flat_map(|l| std::iter::once(&l.architecture).chain(&l.sub_architectures))
        {
            archs.push(arch(name).ok_or_else(|| wrong(format!("unknown architecture `{name}`")))?);
        }
        let mut calls = Vec::with_capacity(self.syscalls.len());
        for entry in self.syscalls.iter().filter(|e| e.counts(judge)) {
            let names: Vec<String> = entry.all_names().filter(|n| is_syscall(n)).cloned().collect();
            if !names.is_empty() {
                calls.push(call(entry, names).map_err(wrong)?);
            }
        }
        let mut built = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .syscalls(calls)
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        built.set_default_errno_ret(
            errno(self.default_errno_ret, self.default_errno.as_deref()).map_err(wrong)?,
        );
        built.set_architectures((!archs.is_empty()).then_some(archs));
        built.set_flags((!self.flags.is_empty()).then(|| self.flags.clone()));
        built.set_listener_path(self.listener_path.clone());
        built.set_listener_metadata(self.listener_metadata.clone());
        Ok(built)
    }
}

fn call(entry: &Entry, names: Vec<String>) -> Result<LinuxSyscall, String> {
    let mut built = LinuxSyscallBuilder::default()
        .names(names)
        .action(entry.action)
        .build()
        .map_err(|e| e.to_string())?;
    built.set_errno_ret(errno(entry.errno_ret, entry.errno.as_deref())?);
    let mut args: Vec<LinuxSeccompArg> = Vec::with_capacity(entry.args.len());
    for a in &entry.args {
        let mut arg = LinuxSeccompArgBuilder::default()
            .index(a.index)
            .value(a.value)
            .op(a.op);
        if a.op == LinuxSeccompOperator::ScmpCmpMaskedEq {
            arg = arg.value_two(a.value_two);
        }
        args.push(arg.build().map_err(|e| e.to_string())?);
    }
    built.set_args((!args.is_empty()).then_some(args));
    Ok(built)
}

/// An architecture by its OCI name.
fn arch(name: &str) -> Option<Arch> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// As [`names::nearest`], for the keys of a filter: what a misspelt one meant.
pub(crate) fn read(value: serde_json::Value) -> Result<Filter, String> {
    serde_json::from_value(value).map_err(|e| {
        let text = e.to_string();
        let key = text
            .strip_prefix("unknown field `")
            .and_then(|t| t.split('`').next());
        let known = text.split('`').skip(3).step_by(2);
        match key.and_then(|key| names::nearest(key, known)) {
            Some(near) => format!("{text}: did you mean `{near}`?"),
            None => text.clone(),
        }
    })
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
