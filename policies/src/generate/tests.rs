//! What each module says, and that the tools take it; a tool that is missing skips that half and says so.

use std::collections::BTreeMap;
use std::process::Command;

use super::*;

fn resolved(name: &str) -> Profile {
    crate::resolve(name, &BTreeMap::new()).unwrap()
}

fn mounted(destination: &str, read_only: bool, label: Option<&str>) -> Mounted {
    Mounted {
        destination: destination.into(),
        read_only,
        label: label.map(str::to_owned),
    }
}

fn wanted<'a>(profile: &'a Profile, mounts: &'a [Mounted]) -> Wanted<'a> {
    Wanted {
        workload: "pump-2",
        profile,
        mounts,
    }
}

/// Lines that are no comment.
fn rules(text: &str) -> Vec<&str> {
    text.lines().filter(|l| !l.starts_with(";;")).collect()
}

#[test]
fn strict_needs_a_domain_and_nothing_more() {
    let profile = resolved("strict");
    let text = selinux(&wanted(&profile, &[])).unwrap();
    assert_eq!(
        rules(&text),
        [
            "(type berth_pump_2_t)",
            "(roletype system_r berth_pump_2_t)",
            "(typeattributeset domain (berth_pump_2_t))",
            "(typeattributeset berth_container (berth_pump_2_t))",
        ]
    );
    assert!(text.contains("selinuxLabel: system_u:system_r:berth_pump_2_t"));
}

#[test]
fn what_a_document_gives_has_a_rule_of_its_own() {
    let profile = resolved("device-worker");
    let mounts = [
        mounted("/data", false, Some("berth_shared_file_t")),
        mounted("/etc/site", true, Some("host_etc_t")),
    ];
    let text = selinux(&wanted(&profile, &mounts)).unwrap();
    let more = &rules(&text)[4..];
    assert_eq!(more[0], "(allow berth_pump_2_t self (cap_userns (net_raw)))");
    assert!(
        more[1].contains("rawip_socket") && more[2].contains("packet_socket"),
        "{text}"
    );
    assert_eq!(more[3..].len(), 3, "{text}");
    assert!(more[3..].iter().all(|r| r.contains("host_etc_t look_")), "{text}");
    // Ids of the host's: the other class.
    let profile = resolved("network-function");
    let text = selinux(&wanted(&profile, &[])).unwrap();
    assert!(text.contains("self (capability (net_admin net_raw))"), "{text}");
    assert!(text.contains("netlink_route_socket"), "{text}");
}

#[test]
fn what_cannot_be_is_refused() {
    let strict = resolved("strict");
    let none = [mounted("/data", true, None)];
    let refused = selinux(&wanted(&strict, &none)).unwrap_err();
    assert_eq!(refused, GenerateError::Unlabelled("/data".into()));
    let host = [mounted("/data", false, Some("host_file_t"))];
    let refused = selinux(&wanted(&strict, &host)).unwrap_err();
    assert!(matches!(refused, GenerateError::NotShared { .. }) && refused.hint().is_some());
    let privileged = resolved("privileged");
    for refused in [
        selinux(&wanted(&privileged, &[])),
        apparmor(&wanted(&privileged, &[])),
    ] {
        assert_eq!(refused, Err(GenerateError::Privileged("privileged".into())));
    }
}

/// With berth's whole policy, as the node has it.
fn secilc(module: &str) -> Option<Result<(), String>> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("secilc");
    command.args(["-M", "true", "-c", "33", "-o", "/dev/null", "-f", "/dev/null"]);
    let categories = selinux_categories();
    let all = SELINUX_SOURCES
        .into_iter()
        .chain([("categories.cil", categories.as_str()), ("module.cil", module)]);
    for (name, text) in all {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        command.arg(path);
    }
    let Ok(done) = command.output() else {
        eprintln!("secilc is not here: the modules were not compiled");
        return None;
    };
    Some(match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    })
}

#[test]
fn modules_build_beside_the_policy_and_never_rules_hold() {
    for name in [
        "strict",
        "realtime",
        "device-worker",
        "network-function",
        "system",
    ] {
        let profile = resolved(name);
        let mounts = [mounted("/etc/site", true, Some("host_etc_t"))];
        let module = selinux(&wanted(&profile, &mounts)).unwrap();
        if let Some(Err(said)) = secilc(&module) {
            panic!("{name}: {said}\n{module}");
        }
    }
    // What no container may have is not left out: the policy's own neverallow refuses it.
    let mut greedy = resolved("strict");
    greedy.capabilities.insert("CAP_SYS_MODULE");
    let module = selinux(&wanted(&greedy, &[])).unwrap();
    if let Some(done) = secilc(&module) {
        assert!(done.unwrap_err().contains("neverallow"), "{module}");
    }
}

#[test]
fn apparmor_profiles_name_what_may_be_written_and_parse() {
    let strict = resolved("strict");
    let mounts = [mounted("/srv/a b", false, None), mounted("/ro", true, None)];
    let text = apparmor(&wanted(&strict, &mounts)).unwrap();
    assert!(!text.contains("capability "), "{text}");
    assert!(
        text.contains("\"/srv/a b/**\" wkl,") && !text.contains("\"/ro"),
        "{text}"
    );
    assert!(
        !text.contains("  /** wkl,") && text.contains("deny /proc/sys/** wkl,"),
        "{text}"
    );
    let system = apparmor(&wanted(&resolved("system"), &[])).unwrap();
    assert!(
        system.contains("capability setfcap,") && system.contains("  /** wkl,"),
        "{system}"
    );
    for text in [text, system] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profile");
        std::fs::write(&file, &text).unwrap();
        match Command::new("apparmor_parser")
            .args(["-Q", "-K"])
            .arg(&file)
            .output()
        {
            Ok(done) => assert!(
                done.status.success(),
                "{}\n{text}",
                String::from_utf8_lossy(&done.stderr)
            ),
            Err(_) => eprintln!("apparmor_parser is not here: the profiles were not parsed"),
        }
    }
}
