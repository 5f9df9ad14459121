//! Every field of the OCI runtime-spec 1.3 configuration schema for Linux and what this runtime does with it:
//! applied, or refused by name. Nothing is ignored.
//!
//! Invariants: [`FIELDS`] is sorted by path (it is searched by halving); `[]` stands for the elements of an array
//! and `{}` for the free keys of an object. A property that the schema does not have is no OCI field; the
//! specification forbids an error for it, so [`check`] reports it apart and the caller logs it.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// It takes effect, or its value is refused with a reason.
    Applied,
    /// A bundle that has it is refused, for this reason.
    Refused(&'static str),
}

use Field::{Applied as A, Refused};

const PLATFORM: &str = "it belongs to another platform than Linux containers";
const RDT: &str = "Intel RDT is not supported";
const PERSONALITY: &str = "the specification defines no personality flags";

/// One row for each field, sorted.
#[rustfmt::skip]
pub const FIELDS: &[(&str, Field)] = &[
    ("annotations", A),
    ("annotations.{}", A),
    ("domainname", A),
    ("freebsd", Refused(PLATFORM)),
    ("hooks", A),
    ("hooks.createContainer", A),
    ("hooks.createContainer[].args", A),
    ("hooks.createContainer[].env", A),
    ("hooks.createContainer[].path", A),
    ("hooks.createContainer[].timeout", A),
    ("hooks.createRuntime", A),
    ("hooks.createRuntime[].args", A),
    ("hooks.createRuntime[].env", A),
    ("hooks.createRuntime[].path", A),
    ("hooks.createRuntime[].timeout", A),
    ("hooks.poststart", A),
    ("hooks.poststart[].args", A),
    ("hooks.poststart[].env", A),
    ("hooks.poststart[].path", A),
    ("hooks.poststart[].timeout", A),
    ("hooks.poststop", A),
    ("hooks.poststop[].args", A),
    ("hooks.poststop[].env", A),
    ("hooks.poststop[].path", A),
    ("hooks.poststop[].timeout", A),
    ("hooks.prestart", A),
    ("hooks.prestart[].args", A),
    ("hooks.prestart[].env", A),
    ("hooks.prestart[].path", A),
    ("hooks.prestart[].timeout", A),
    ("hooks.startContainer", A),
    ("hooks.startContainer[].args", A),
    ("hooks.startContainer[].env", A),
    ("hooks.startContainer[].path", A),
    ("hooks.startContainer[].timeout", A),
    ("hostname", A),
    ("linux", A),
    ("linux.cgroupsPath", A),
    ("linux.devices", A),
    ("linux.devices[].fileMode", A),
    ("linux.devices[].gid", A),
    ("linux.devices[].major", A),
    ("linux.devices[].minor", A),
    ("linux.devices[].path", A),
    ("linux.devices[].type", A),
    ("linux.devices[].uid", A),
    ("linux.gidMappings", A),
    ("linux.gidMappings[].containerID", A),
    ("linux.gidMappings[].hostID", A),
    ("linux.gidMappings[].size", A),
    ("linux.intelRdt", Refused(RDT)),
    ("linux.intelRdt.closID", Refused(RDT)),
    ("linux.intelRdt.enableMonitoring", Refused(RDT)),
    ("linux.intelRdt.l3CacheSchema", Refused(RDT)),
    ("linux.intelRdt.memBwSchema", Refused(RDT)),
    ("linux.intelRdt.schemata", Refused(RDT)),
    ("linux.maskedPaths", A),
    ("linux.memoryPolicy", A),
    ("linux.memoryPolicy.flags", A),
    ("linux.memoryPolicy.mode", A),
    ("linux.memoryPolicy.nodes", A),
    ("linux.mountLabel", A),
    ("linux.namespaces", A),
    ("linux.namespaces[].path", A),
    ("linux.namespaces[].type", A),
    ("linux.netDevices", A),
    ("linux.netDevices.{}", A),
    ("linux.netDevices.{}.name", A),
    ("linux.personality", A),
    ("linux.personality.domain", A),
    ("linux.personality.flags", Refused(PERSONALITY)),
    ("linux.readonlyPaths", A),
    ("linux.resources", A),
    ("linux.resources.blockIO", A),
    ("linux.resources.blockIO.leafWeight", A),
    ("linux.resources.blockIO.throttleReadBpsDevice", A),
    ("linux.resources.blockIO.throttleReadBpsDevice[].major", A),
    ("linux.resources.blockIO.throttleReadBpsDevice[].minor", A),
    ("linux.resources.blockIO.throttleReadBpsDevice[].rate", A),
    ("linux.resources.blockIO.throttleReadIOPSDevice", A),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].major", A),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].minor", A),
    ("linux.resources.blockIO.throttleReadIOPSDevice[].rate", A),
    ("linux.resources.blockIO.throttleWriteBpsDevice", A),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].major", A),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].minor", A),
    ("linux.resources.blockIO.throttleWriteBpsDevice[].rate", A),
    ("linux.resources.blockIO.throttleWriteIOPSDevice", A),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].major", A),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].minor", A),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[].rate", A),
    ("linux.resources.blockIO.weight", A),
    ("linux.resources.blockIO.weightDevice", A),
    ("linux.resources.blockIO.weightDevice[].leafWeight", A),
    ("linux.resources.blockIO.weightDevice[].major", A),
    ("linux.resources.blockIO.weightDevice[].minor", A),
    ("linux.resources.blockIO.weightDevice[].weight", A),
    ("linux.resources.cpu", A),
    ("linux.resources.cpu.burst", A),
    ("linux.resources.cpu.cpus", A),
    ("linux.resources.cpu.idle", A),
    ("linux.resources.cpu.mems", A),
    ("linux.resources.cpu.period", A),
    ("linux.resources.cpu.quota", A),
    ("linux.resources.cpu.realtimePeriod", A),
    ("linux.resources.cpu.realtimeRuntime", A),
    ("linux.resources.cpu.shares", A),
    ("linux.resources.devices", A),
    ("linux.resources.devices[].access", A),
    ("linux.resources.devices[].allow", A),
    ("linux.resources.devices[].major", A),
    ("linux.resources.devices[].minor", A),
    ("linux.resources.devices[].type", A),
    ("linux.resources.hugepageLimits", A),
    ("linux.resources.hugepageLimits[].limit", A),
    ("linux.resources.hugepageLimits[].pageSize", A),
    ("linux.resources.memory", A),
    ("linux.resources.memory.checkBeforeUpdate", A),
    ("linux.resources.memory.disableOOMKiller", A),
    ("linux.resources.memory.kernel", A),
    ("linux.resources.memory.kernelTCP", A),
    ("linux.resources.memory.limit", A),
    ("linux.resources.memory.reservation", A),
    ("linux.resources.memory.swap", A),
    ("linux.resources.memory.swappiness", A),
    ("linux.resources.memory.useHierarchy", A),
    ("linux.resources.network", A),
    ("linux.resources.network.classID", A),
    ("linux.resources.network.priorities", A),
    ("linux.resources.network.priorities[].name", A),
    ("linux.resources.network.priorities[].priority", A),
    ("linux.resources.pids", A),
    ("linux.resources.pids.limit", A),
    ("linux.resources.rdma", A),
    ("linux.resources.rdma.{}", A),
    ("linux.resources.rdma.{}.hcaHandles", A),
    ("linux.resources.rdma.{}.hcaObjects", A),
    ("linux.resources.unified", A),
    ("linux.resources.unified.{}", A),
    ("linux.rootfsPropagation", A),
    ("linux.seccomp", A),
    ("linux.seccomp.architectures", A),
    ("linux.seccomp.defaultAction", A),
    ("linux.seccomp.defaultErrnoRet", A),
    ("linux.seccomp.flags", A),
    ("linux.seccomp.listenerMetadata", A),
    ("linux.seccomp.listenerPath", A),
    ("linux.seccomp.syscalls", A),
    ("linux.seccomp.syscalls[].action", A),
    ("linux.seccomp.syscalls[].args", A),
    ("linux.seccomp.syscalls[].args[].index", A),
    ("linux.seccomp.syscalls[].args[].op", A),
    ("linux.seccomp.syscalls[].args[].value", A),
    ("linux.seccomp.syscalls[].args[].valueTwo", A),
    ("linux.seccomp.syscalls[].errnoRet", A),
    ("linux.seccomp.syscalls[].names", A),
    ("linux.sysctl", A),
    ("linux.sysctl.{}", A),
    ("linux.timeOffsets", A),
    ("linux.timeOffsets.boottime", A),
    ("linux.timeOffsets.boottime.nanosecs", A),
    ("linux.timeOffsets.boottime.secs", A),
    ("linux.timeOffsets.monotonic", A),
    ("linux.timeOffsets.monotonic.nanosecs", A),
    ("linux.timeOffsets.monotonic.secs", A),
    ("linux.uidMappings", A),
    ("linux.uidMappings[].containerID", A),
    ("linux.uidMappings[].hostID", A),
    ("linux.uidMappings[].size", A),
    ("mounts", A),
    ("mounts[].destination", A),
    ("mounts[].gidMappings", A),
    ("mounts[].gidMappings[].containerID", A),
    ("mounts[].gidMappings[].hostID", A),
    ("mounts[].gidMappings[].size", A),
    ("mounts[].options", A),
    ("mounts[].source", A),
    ("mounts[].type", A),
    ("mounts[].uidMappings", A),
    ("mounts[].uidMappings[].containerID", A),
    ("mounts[].uidMappings[].hostID", A),
    ("mounts[].uidMappings[].size", A),
    ("ociVersion", A),
    ("process", A),
    ("process.apparmorProfile", A),
    ("process.args", A),
    ("process.capabilities", A),
    ("process.capabilities.ambient", A),
    ("process.capabilities.bounding", A),
    ("process.capabilities.effective", A),
    ("process.capabilities.inheritable", A),
    ("process.capabilities.permitted", A),
    ("process.commandLine", Refused(PLATFORM)),
    ("process.consoleSize", A),
    ("process.consoleSize.height", A),
    ("process.consoleSize.width", A),
    ("process.cwd", A),
    ("process.env", A),
    ("process.execCPUAffinity", A),
    ("process.execCPUAffinity.final", A),
    ("process.execCPUAffinity.initial", A),
    ("process.ioPriority", A),
    ("process.ioPriority.class", A),
    ("process.ioPriority.priority", A),
    ("process.noNewPrivileges", A),
    ("process.oomScoreAdj", A),
    ("process.rlimits", A),
    ("process.rlimits[].hard", A),
    ("process.rlimits[].soft", A),
    ("process.rlimits[].type", A),
    ("process.scheduler", A),
    ("process.scheduler.deadline", A),
    ("process.scheduler.flags", A),
    ("process.scheduler.nice", A),
    ("process.scheduler.period", A),
    ("process.scheduler.policy", A),
    ("process.scheduler.priority", A),
    ("process.scheduler.runtime", A),
    ("process.selinuxLabel", A),
    ("process.terminal", A),
    ("process.user", A),
    ("process.user.additionalGids", A),
    ("process.user.gid", A),
    ("process.user.uid", A),
    ("process.user.umask", A),
    ("process.user.username", Refused(PLATFORM)),
    ("root", A),
    ("root.path", A),
    ("root.readonly", A),
    ("solaris", Refused(PLATFORM)),
    ("vm", Refused(PLATFORM)),
    ("windows", Refused(PLATFORM)),
    ("zos", Refused(PLATFORM)),
];

/// What [`check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Refused fields that are present, with the reason.
    pub refused: Vec<(String, &'static str)>,
    /// Properties that are not in the schema at all.
    pub unknown: Vec<String>,
}

/// The row of a path such as `mounts[].options`.
pub fn field(path: &str) -> Option<Field> {
    FIELDS
        .binary_search_by(|(p, _)| (*p).cmp(path))
        .ok()
        .map(|at| FIELDS[at].1)
}

/// Walk the raw text of a config.json. A field whose value is `null` counts as absent.
///
/// # Errors
/// The text is not JSON.
pub fn check(text: &[u8]) -> Result<Findings, serde_json::Error> {
    let mut walk = Walk {
        path: String::with_capacity(64),
        findings: Findings::default(),
    };
    let mut json = serde_json::Deserializer::from_slice(text);
    Step(&mut walk).deserialize(&mut json)?;
    json.end()?;
    Ok(walk.findings)
}

struct Walk {
    path: String,
    findings: Findings,
}

/// Visits one value at `Walk::path`.
struct Step<'a>(&'a mut Walk);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let walk = self.0;
        let length = walk.path.len();
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if length > 0 {
                walk.path.push('.');
            }
            let at = walk.path.len();
            walk.path.push_str(&key);
            let mut found = field(&walk.path);
            if found.is_none() {
                walk.path.truncate(at);
                walk.path.push_str("{}");
                found = field(&walk.path);
            }
            match found {
                Some(Field::Applied) => map.next_value_seed(Step(walk))?,
                Some(Field::Refused(why)) => {
                    if map.next_value::<Option<IgnoredAny>>()?.is_some() {
                        walk.findings.refused.push((walk.path.clone(), why));
                    }
                }
                None => {
                    walk.path.truncate(at);
                    walk.path.push_str(&key);
                    walk.findings.unknown.push(walk.path.clone());
                    map.next_value::<IgnoredAny>()?;
                }
            }
            walk.path.truncate(length);
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
        let walk = self.0;
        let length = walk.path.len();
        walk.path.push_str("[]");
        while seq.next_element_seed(Step(walk))?.is_some() {}
        walk.path.truncate(length);
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = include_str!("../tests/data/oci-1.3-linux-fields.txt");

    #[test]
    fn the_table_is_sorted_and_has_exactly_the_fields_of_the_schema() {
        assert!(FIELDS.is_sorted_by(|a, b| a.0 < b.0));
        let mut schema: Vec<&str> = SCHEMA.lines().collect();
        schema.sort_unstable();
        let table: Vec<&str> = FIELDS.iter().map(|(p, _)| *p).collect();
        assert_eq!(table, schema);
    }

    /// The smallest document that has one field, whatever its type.
    fn document(path: &str) -> String {
        let mut text = String::new();
        let mut close = Vec::new();
        for part in path.split('.') {
            let (key, array) = part.strip_suffix("[]").map_or((part, false), |k| (k, true));
            let key = if key == "{}" { "anything" } else { key };
            text += &format!("{{\"{key}\": {}", if array { "[" } else { "" });
            close.push(if array { "]}" } else { "}" });
        }
        text += "1";
        close.iter().rev().for_each(|c| text += c);
        text
    }

    #[test]
    fn every_refused_field_is_refused_by_name_and_every_applied_one_is_not() {
        for (path, what) in FIELDS {
            let findings = check(document(path).as_bytes()).unwrap();
            assert!(findings.unknown.is_empty(), "{path}: {findings:?}");
            match what {
                Field::Applied => assert!(findings.refused.is_empty(), "{path}: {findings:?}"),
                Field::Refused(_) => {
                    let [(named, _)] = &findings.refused[..] else {
                        panic!("{path}: {findings:?}")
                    };
                    assert!(path.starts_with(named.as_str()), "{path}: {named}");
                }
            }
        }
    }

    #[test]
    fn unknown_properties_are_reported_apart_and_null_is_absent() {
        let found = check(br#"{"process": {"noNewPrivilege": true, "args": ["a"]}, "x": {"y": 1}}"#).unwrap();
        assert_eq!(found.unknown, ["process.noNewPrivilege", "x"]);
        assert!(check(br#"{"vm": null}"#).unwrap().refused.is_empty());
        assert!(check(b"{} trailing").is_err());
    }

    #[test]
    fn what_is_refused() {
        for path in ["linux.intelRdt", "linux.personality.flags", "process.commandLine"] {
            assert!(matches!(field(path), Some(Refused(_))), "{path}");
        }
    }
}
