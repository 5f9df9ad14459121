//! What a cgroup v2 hierarchy without controllers can show: device programs, freezing, killing, refusals. The node's v2 mount
//! is looked at alone, as if the node had nothing else.

#![allow(clippy::unwrap_used)] // a test may end at the first surprise

mod common;

use berth_rt::cgroup::{
    Access, ApplyError, BudgetError, Cgroup, Controller, CreateError, DeviceKind, DeviceRule, DeviceRules,
    Extras, RtBudget, Wanted, prune,
};
use common::{Own, Sleeper, on_v2, succeeds_in};
use oci_spec::runtime::LinuxResources;

const READ_ZERO: &str = "head -c1 /dev/zero >/dev/null";

fn char_device(allow: bool, minor: u32, access: Access) -> DeviceRule {
    DeviceRule::device(allow, DeviceKind::Char, 1, minor, access)
}

#[test]
fn a_device_program_decides_and_is_read_back_from_the_kernel() {
    let Some(v2) = on_v2() else { return };
    let own = Own::new(&v2.hierarchy, "devices", &Wanted::new());
    assert_eq!(
        own.cgroup.device_rules().unwrap(),
        DeviceRules {
            default_allow: true,
            rules: vec![]
        }
    );
    let resources: LinuxResources = serde_json::from_str(
        r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
                       {"allow":true,"type":"c","major":136,"access":"rw"},{"allow":true,"type":"b","access":"m"}]}"#,
    )
    .unwrap();
    own.cgroup.apply(&resources, &Extras::default()).unwrap();
    let text = "deny a *:* rwm, allow c 1:3 rw, allow c 136:* rw, allow b *:* m";
    assert_eq!(own.cgroup.device_rules().unwrap().to_string(), text);
    assert!(succeeds_in(&own.cgroup, "echo x > /dev/null"));
    assert!(!succeeds_in(&own.cgroup, READ_ZERO));
    own.cgroup
        .allow_device(&char_device(true, 5, Access::READ))
        .unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        format!("{text}, allow c 1:5 r")
    );
    assert!(succeeds_in(&own.cgroup, READ_ZERO));
    assert!(
        !succeeds_in(&own.cgroup, "echo x > /dev/zero"),
        "read is allowed, write is not"
    );
    own.cgroup
        .deny_device(&char_device(false, 5, Access::ALL))
        .unwrap();
    assert_eq!(
        own.cgroup.device_rules().unwrap().to_string(),
        text,
        "the list does not grow with plugging"
    );
    assert!(!succeeds_in(&own.cgroup, READ_ZERO));
}

/// What cgroup v1 would ignore in silence: a denial inside a wider permission, and read and write from two rules.
#[test]
fn the_last_rule_decides_for_each_kind_of_access() {
    let Some(v2) = on_v2() else { return };
    let own = Own::new(&v2.hierarchy, "last", &Wanted::new());
    let wide = DeviceRule {
        minor: None,
        ..char_device(true, 0, Access::ALL)
    };
    own.cgroup
        .set_device_rules(&DeviceRules::of(&[wide, char_device(false, 5, Access::READ)]))
        .unwrap();
    assert!(succeeds_in(&own.cgroup, "echo x > /dev/zero"));
    assert!(!succeeds_in(&own.cgroup, READ_ZERO));
    let both = [
        char_device(true, 5, Access::READ),
        DeviceRule {
            minor: None,
            ..char_device(true, 0, Access::WRITE)
        },
    ];
    own.cgroup.set_device_rules(&DeviceRules::of(&both)).unwrap();
    assert!(succeeds_in(&own.cgroup, "exec 3<>/dev/zero"));
    assert!(!succeeds_in(&own.cgroup, "exec 3<>/dev/full"));
}

#[test]
fn a_new_list_replaces_the_program_before() {
    let Some(v2) = on_v2() else { return };
    let own = Own::new(&v2.hierarchy, "replace", &Wanted::new());
    own.cgroup
        .set_device_rules(&DeviceRules::of(&[DeviceRule::everything(true)]))
        .unwrap();
    assert_eq!(own.cgroup.device_rules().unwrap().to_string(), "allow a *:* rwm");
    own.cgroup.set_device_rules(&DeviceRules::of(&[])).unwrap();
    assert_eq!(own.cgroup.device_rules().unwrap().to_string(), "deny a *:* rwm");
    assert!(!succeeds_in(&own.cgroup, READ_ZERO));
}

#[test]
fn freeze_kill_and_clone_into() {
    let Some(v2) = on_v2() else { return };
    let own = Own::new(&v2.hierarchy, "kill", &Wanted::new());
    let sleeper = Sleeper::new();
    own.cgroup.attach(sleeper.pid()).unwrap();
    assert_eq!(own.cgroup.procs().unwrap(), [sleeper.pid()]);
    assert!(own.cgroup.dir_fd().unwrap().is_some());
    own.cgroup.freeze().unwrap();
    assert!(own.cgroup.frozen().unwrap());
    own.cgroup.thaw().unwrap();
    assert!(!own.cgroup.frozen().unwrap());
    own.cgroup.freeze().unwrap();
    std::fs::create_dir(own.dir(Controller::Freezer).join("below")).unwrap();
    own.cgroup.kill().unwrap();
    assert!(own.cgroup.procs().unwrap().is_empty());
    assert!(own.cgroup.stats().unwrap().cpu_us.is_some());
    own.cgroup.remove().unwrap();
    assert!(Cgroup::open(&v2.hierarchy, own.cgroup.path()).is_err());
    prune(&v2.hierarchy, own.parent()).unwrap();
    assert!(Cgroup::open(&v2.hierarchy, own.parent()).is_err());
}

#[test]
fn what_v2_lacks_is_refused_by_name() {
    let Some(v2) = on_v2() else { return };
    let wanted = Wanted::for_resources(
        Some(&serde_json::from_str(r#"{"network":{"classID":1}}"#).unwrap()),
        &Extras::default(),
    );
    let error = Own::try_new(&v2.hierarchy, "v1only", &wanted).err().unwrap();
    assert!(
        matches!(error, CreateError::Missing(_)) && error.to_string().contains("exists only in cgroup v1"),
        "{error}"
    );
    let own = Own::new(&v2.hierarchy, "refused", &Wanted::new());
    for (json, part) in [
        (
            r#"{"unified":{"cgroup.freeze":"1"}}"#,
            "linux.resources.unified.cgroup.freeze",
        ),
        (
            r#"{"unified":{"nothing.there":"1"}}"#,
            "nothing.there is not there",
        ),
    ] {
        let error = own
            .cgroup
            .apply(&serde_json::from_str(json).unwrap(), &Extras::default())
            .unwrap_err();
        assert!(
            matches!(error, ApplyError::Unsupported { .. }) && error.to_string().contains(part),
            "{json}: {error}"
        );
    }
    let unified = r#"{"unified":{"pids.max":"5"}}"#;
    if v2.hierarchy.tree(Controller::Pids).is_none() {
        assert!(
            own.cgroup
                .apply(&serde_json::from_str(unified).unwrap(), &Extras::default())
                .is_err()
        );
        let budget = RtBudget {
            runtime_us: 1,
            period_us: 10,
        };
        assert!(matches!(
            own.cgroup.set_rt_budget(budget),
            Err(BudgetError::Missing(_) | BudgetError::NoKnob { .. })
        ));
    }
}
