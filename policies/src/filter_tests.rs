//! The format's rules, each by a small filter of its own.

use serde_json::json;

use super::*;

fn filter(value: serde_json::Value) -> Filter {
    let filter = read(value).expect("filter");
    let mut found = Vec::new();
    filter.validate("spec.seccomp", &mut found);
    assert_eq!(found, []);
    filter
}

fn judge(caps: &[&'static str], native: Arch, kernel: (u32, u32)) -> Judge {
    Judge {
        capabilities: caps.iter().copied().collect(),
        native,
        kernel,
    }
}

const X86: Arch = Arch::ScmpArchX86_64;
const ARM: Arch = Arch::ScmpArchAarch64;

/// The names that are allowed without arguments.
fn allowed(filter: &Filter, judge: &Judge) -> Vec<String> {
    let section = filter.section(judge).expect("section");
    let calls = section.syscalls().clone().unwrap_or_default();
    calls.iter().flat_map(|c| c.names().clone()).collect()
}

#[test]
fn conditions_of_an_entry() {
    // (includes, excludes) -> on which of the four nodes it counts
    let nodes = [
        judge(&[], X86, (4, 4)),
        judge(&["CAP_SYS_ADMIN"], X86, (6, 1)),
        judge(&["CAP_SYS_ADMIN", "CAP_BPF"], ARM, (6, 12)),
        judge(&["CAP_BPF"], ARM, (4, 8)),
    ];
    let table = [
        (json!({}), json!({}), [true, true, true, true]),
        (
            json!({"caps": ["CAP_SYS_ADMIN"]}),
            json!({}),
            [false, true, true, false],
        ),
        (
            json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}),
            json!({}),
            [false, false, true, false],
        ),
        (
            json!({}),
            json!({"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}),
            [true, false, false, false],
        ),
        (
            json!({"arches": ["amd64", "x32", "x86"]}),
            json!({}),
            [true, true, false, false],
        ),
        (
            json!({"arches": ["s390x"]}),
            json!({}),
            [false, false, false, false],
        ),
        (
            json!({}),
            json!({"arches": ["arm64"]}),
            [true, true, false, false],
        ),
        (json!({"minKernel": "4.8"}), json!({}), [false, true, true, true]),
        (json!({}), json!({"minKernel": "6.2"}), [true, true, false, true]),
        (
            json!({"caps": ["CAP_BPF"], "arches": ["arm64"]}),
            json!({"minKernel": "6.0"}),
            [false, false, false, true],
        ),
        (
            json!({"caps": null, "arches": []}),
            json!(null),
            [true, true, true, true],
        ),
    ];
    for (includes, excludes, expected) in table {
        let text = format!("{includes} {excludes}");
        let filter = filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": includes, "excludes": excludes}]}));
        let counts = nodes.each_ref().map(|node| !allowed(&filter, node).is_empty());
        assert_eq!(counts, expected, "{text}");
    }
}

#[test]
fn architectures_come_from_the_natives_line() {
    let map = json!([
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_OF_TOMORROW", "subArchitectures": null}]);
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "archMap": map, "syscalls": null}));
    let archs = |native| {
        filter
            .section(&judge(&[], native, (6, 1)))
            .expect("section")
            .architectures()
            .clone()
    };
    assert_eq!(archs(X86), Some(vec![X86, Arch::ScmpArchX86, Arch::ScmpArchX32]));
    assert_eq!(archs(ARM), Some(vec![ARM, Arch::ScmpArchArm]));
}

#[test]
fn errnos_by_name_and_number() {
    let filter = filter(
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS", "defaultErrnoRet": 38, "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM"},
        {"names": ["umount2"], "action": "SCMP_ACT_ERRNO", "errno": "22", "errnoRet": 22},
        {"name": "bpf", "action": "SCMP_ACT_ERRNO", "errnoRet": 7}]}),
    );
    let section = filter.section(&judge(&[], X86, (6, 1))).expect("section");
    assert_eq!(section.default_errno_ret(), Some(38));
    let errnos: Vec<_> = section
        .syscalls()
        .iter()
        .flatten()
        .map(|c| c.errno_ret())
        .collect();
    assert_eq!(errnos, [Some(1), Some(22), Some(7)]);
}

#[test]
fn a_name_nobody_knows() {
    let of = |default: &str, action: &str| {
        let filter = read(
            json!({"defaultAction": default, "syscalls": [{"names": ["read", "opneat"], "action": action}]}),
        );
        let filter = filter.expect("filter");
        let mut found = Vec::new();
        filter.validate("spec.seccomp", &mut found);
        (found.into_iter().next().map(|p| p.message), filter)
    };
    let (wrong, filter) = of("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW");
    assert_eq!(wrong, None);
    assert_eq!(allowed(&filter, &judge(&[], X86, (6, 1))), ["read"]);
    assert_eq!(filter.passed_over(), [("opneat", Some("openat"))]);
    for (default, action) in [
        ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"),
        ("SCMP_ACT_LOG", "SCMP_ACT_KILL"),
        ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"),
        ("SCMP_ACT_ERRNO", "SCMP_ACT_ERRNO"),
    ] {
        let message = of(default, action)
            .0
            .unwrap_or_else(|| panic!("{default} {action}"));
        assert!(message.contains("did you mean `openat`"), "{message}");
    }
}

#[test]
fn what_is_wrong_is_told() {
    let entry = |more: serde_json::Value| {
        let mut entry = json!({"names": ["read"], "action": "SCMP_ACT_ALLOW"});
        entry
            .as_object_mut()
            .expect("object")
            .extend(more.as_object().expect("object").clone());
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [entry]})
    };
    let table = [
        (
            entry(json!({"includes": {"caps": ["CAP_SYS_ADMN"]}})),
            "includes.caps[0]",
            "CAP_SYS_ADMIN",
        ),
        (
            entry(json!({"excludes": {"arches": ["amd46"]}})),
            "excludes.arches[0]",
            "amd64",
        ),
        (
            entry(json!({"includes": {"minKernel": "4"}})),
            "includes.minKernel",
            "MAJOR.MINOR",
        ),
        (entry(json!({"errno": "EPREM"})), "errno", "EPERM"),
        (
            entry(json!({"errno": "EPERM", "errnoRet": 2})),
            "errno",
            "stands beside",
        ),
        (entry(json!({"name": "write"})), "name", "names"),
        (
            entry(json!({"args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
            "args",
            "0 to 5",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_46"]}),
            "architectures[0]",
            "SCMP_ARCH_X86_64",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}),
            "archMap",
            "architectures",
        ),
    ];
    for (value, path, word) in table {
        let filter = read(value.clone()).expect("filter");
        let mut found = Vec::new();
        filter.validate("f", &mut found);
        let [only] = &found[..] else {
            panic!("{value}: {found:?}")
        };
        assert!(
            only.path.ends_with(path) && only.message.contains(word),
            "{only:?}"
        );
    }
    for (value, word) in [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}),
            "syscalls",
        ),
        (entry(json!({"arg": []})), "args"),
        (entry(json!({"include": {}})), "includes"),
        (entry(json!({"includes": {"capabilities": []}})), "caps"),
    ] {
        let message = read(value.clone()).expect_err("refused");
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn releases() {
    for (text, expected) in [
        ("6.12.9-rt", Some((6, 12))),
        ("6.1-rc3", Some((6, 1))),
        ("5.10", Some((5, 10))),
        ("x", None),
    ] {
        assert_eq!(kernel(text), expected, "{text}");
    }
}
