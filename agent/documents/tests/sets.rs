//! Sets: merging, deleting, what changes, the state text, YAML out and in again.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure is the answer

use std::path::PathBuf;

use berth_documents::{
    Action, CpuRequest, Duration, Kind, Network, RestartPolicy, Run, STATE_VERSION, Set, SetError, Signal,
    Size, Source, StateError, check_sources,
};
use berth_rt::sched::Scheduler;
use proptest::prelude::*;

fn source(text: &str) -> [Source; 1] {
    [Source {
        name: PathBuf::from("x.yaml"),
        text: text.to_owned(),
    }]
}

fn read(text: &str) -> Set {
    check_sources(&source(text), &Set::default())
        .into_result()
        .unwrap()
}

fn workload(name: &str, spec: &str) -> String {
    format!("---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn rule(name: &str, workload: &str) -> String {
    format!(
        "---\napiVersion: berth/v1\nkind: HotplugRule\nmetadata: {{name: {name}}}\n\
         spec: {{match: KERNEL==\"x\", workload: {workload}}}\n"
    )
}

fn examples() -> Set {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    berth_documents::load(&[PathBuf::from(folder)]).unwrap()
}

#[test]
fn the_example_means_what_it_says() {
    let set = examples();
    let pump = &set.workloads["pump"].spec;
    assert_eq!(pump.cpus, CpuRequest::Whole(1.try_into().unwrap()));
    assert_eq!((pump.run, &pump.network), (Run::Always, &Network::None));
    assert_eq!(
        (pump.memory, pump.pids),
        (Some(Size::from_bytes(64 << 20)), Some(64))
    );
    assert_eq!(pump.stop.signal, Signal::TERM);
    assert_eq!(pump.stop.grace, Duration::from_secs(5));
    assert_eq!(pump.restart.policy, RestartPolicy::Always);
    let realtime = pump.realtime.as_ref().unwrap();
    assert_eq!(
        realtime.scheduler.as_ref().unwrap().to_kernel(),
        Scheduler::Fifo { priority: 50 }
    );
    assert_eq!(realtime.timer_slack.unwrap().as_nanos(), 1);
    assert_eq!(realtime.budget.unwrap().runtime.as_micros(), 100_000);
    assert!(pump.mounts[0].read_only);
    let sampler = set.workloads["sampler"].spec.realtime.as_ref().unwrap();
    assert_eq!(
        sampler.scheduler.as_ref().unwrap().to_kernel(),
        Scheduler::Deadline {
            runtime: 200_000,
            deadline: 1_000_000,
            period: 1_000_000
        }
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let set = read(&workload("a", "{image: a}"));
    let spec = &set.workloads["a"].spec;
    assert_eq!(&*spec.profile, berth_documents::DEFAULT_PROFILE);
    assert_eq!(spec.cpus, CpuRequest::Shared);
    assert_eq!(
        (spec.restart.limit, spec.restart.window),
        (5, Duration::from_secs(60))
    );
    assert_eq!(spec.stop.grace, Duration::from_secs(10));
    assert!(spec.command.is_none() && spec.realtime.is_none() && spec.memory.is_none());
}

#[test]
fn apply_merges_and_says_what_changes_field_by_field() {
    let old = read(&(workload("a", "{image: a, cpus: 1}") + &workload("b", "{image: b}")));
    let new = read(&(workload("a", "{image: a, cpus: shared, pids: 5}") + &workload("c", "{image: c}")));
    let (merged, changes) = old.apply(&new);
    assert_eq!(merged.workloads.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let told: Vec<_> = changes.iter().map(|c| (c.action, c.name.as_str())).collect();
    assert_eq!(told, [(Action::Change, "a"), (Action::Add, "c")]);
    let fields: Vec<String> = changes[0].fields.iter().map(ToString::to_string).collect();
    assert_eq!(fields, ["spec.cpus: 1 → \"shared\"", "spec.pids: (absent) → 5"]);
    assert!(merged.apply(&new).1.is_empty());
    let (rest, changes) = merged.delete(&[(Kind::Workload, "b".to_owned())]).unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].action, rest.len()), (Action::Remove, 2));
}

#[test]
fn a_workload_that_a_rule_uses_stays() {
    let set = read(&(workload("w", "{image: a, run: onDevice}") + &rule("r", "w")));
    let errors = set
        .delete(&[
            (Kind::Workload, "w".to_owned()),
            (Kind::HotplugRule, "s".to_owned()),
        ])
        .unwrap_err();
    assert!(
        matches!(&errors[1], SetError::Used { users, .. } if users == &["HotplugRule `r`"]),
        "{errors:?}"
    );
    assert!(
        matches!(
            &errors[0],
            SetError::Absent {
                kind: Kind::HotplugRule,
                ..
            }
        ),
        "{errors:?}"
    );
    let (rest, changes) = set.delete(&set.keys()).unwrap();
    assert!(rest.is_empty());
    let order: Vec<Kind> = changes.iter().map(|change| change.kind).collect();
    assert_eq!(
        order,
        [Kind::HotplugRule, Kind::Workload],
        "a rule goes before its workload"
    );
}

#[test]
fn new_documents_may_name_those_that_are_there() {
    let base = read(&workload("w", "{image: a, run: onDevice}"));
    assert!(check_sources(&source(&rule("r", "w")), &base).faults.is_empty());
    assert_eq!(
        check_sources(&source(&rule("r", "w")), &Set::default())
            .faults
            .len(),
        1
    );
    // And what they change must fit what is there.
    let both = base.apply(&check_sources(&source(&rule("r", "w")), &base).set).0;
    let report = check_sources(&source(&workload("w", "{image: a}")), &both);
    assert_eq!(report.faults.len(), 1);
    assert!(
        report.faults[0]
            .to_string()
            .contains("HotplugRule r, which is there already"),
        "{}",
        report.faults[0]
    );
}

#[test]
fn one_node_only() {
    let node = |name: &str| {
        format!("---\napiVersion: berth/v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{}}\n")
    };
    let base = read(&node("a"));
    assert!(check_sources(&source(&node("a")), &base).faults.is_empty());
    let report = check_sources(&source(&node("b")), &base);
    assert!(
        report.faults[0]
            .to_string()
            .contains("`a`, the node that is there (x.yaml:2:1)"),
        "{:?}",
        report.faults
    );
}

#[test]
fn the_state_text_is_canonical_and_strict() {
    let set = examples();
    let text = set.to_json().unwrap();
    let back = Set::from_json(&text).unwrap();
    assert_eq!(back.to_json().unwrap(), text);
    assert!(berth_documents::diff(&set, &back).is_empty());

    let newer = text.replacen(&format!("\"version\": {STATE_VERSION}"), "\"version\": 99", 1);
    assert!(matches!(
        Set::from_json(&newer),
        Err(StateError::Version { found: 99 })
    ));
    for bad in [
        text.replacen("\"version\"", "\"more\": 1, \"version\"", 1),
        text.replacen("\"image\"", "\"colour\": 1, \"image\"", 1),
        text.replacen("\"limit\": 5", "\"limit\": -5", 1),
        text[..text.len() / 2].to_owned(),
        String::new(),
        format!("{{\"version\": {STATE_VERSION}, \"documents\": {{\"workloads\": {{\"a\": 1, \"a\": 1}}}}}}"),
    ] {
        assert!(
            matches!(Set::from_json(&bad), Err(StateError::Syntax(_))),
            "{bad}"
        );
    }
    for bad in [
        text.replacen("\"priority\": 50", "\"priority\": 500", 1),
        text.replacen("\"name\": \"pump\"", "\"name\": \"pomp\"", 1),
        text.replacen("\"profile\": \"strict\"", "\"profile\": \"strickt\"", 1),
        text.replacen("\"run\": \"onDevice\"", "\"run\": \"always\"", 1),
    ] {
        assert_ne!(bad, text);
        assert!(
            matches!(Set::from_json(&bad), Err(StateError::Inconsistent(_))),
            "{bad}"
        );
    }
}

#[test]
fn yaml_out_is_read_in_again() {
    let set = examples();
    let back = read(&set.to_yaml().unwrap());
    assert!(berth_documents::diff(&set, &back).is_empty());
    assert_eq!(back.to_json().unwrap(), set.to_json().unwrap());
}

fn texts() -> impl Strategy<Value = String> {
    // Text that YAML could take for something else, and anything printable.
    prop_oneof![
        Just("yes".to_owned()),
        Just("null".to_owned()),
        Just("~".to_owned()),
        Just("0x10".to_owned()),
        Just("1e3".to_owned()),
        Just("- a: {b".to_owned()),
        Just(" # no comment".to_owned()),
        "\\PC{0,20}",
    ]
}

prop_compose! {
    fn workloads()(
        name in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        args in prop::collection::vec(texts(), 0..4),
        values in prop::collection::vec(texts(), 0..4),
        cpus in prop_oneof![Just("shared".to_owned()), (1..64_u32).prop_map(|n| n.to_string())],
        memory in 1024 * 1024..u64::from(u32::MAX),
        nanos in 1..i64::MAX as u64,
        priority in 1..=99_u32,
        signal in prop_oneof![Just("SIGTERM"), Just("SIGRTMIN+3"), Just("SIGUSR1")],
    ) -> String {
        let quoted = |text: &String| serde_json::to_string(text).unwrap();
        let args: Vec<String> = args.iter().map(quoted).collect();
        let env: Vec<String> =
            values.iter().enumerate().map(|(n, v)| format!("{{name: V{n}, value: {}}}", quoted(v))).collect();
        workload(&format!("\"{name}\""), &format!(
            "{{image: a, args: [{}], env: [{}], cpus: {cpus}, memory: {memory}, stop: {{signal: {signal}}}, \
             realtime: {{timerSlack: {nanos}ns, scheduler: {{policy: rr, priority: {priority}}}}}}}",
            args.join(", "), env.join(", "),
        ))
    }
}

/// Pieces of documents, put together in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("apiVersion: berth/v1\n"),
        Just("kind: Workload\n"),
        Just("kind: HotplugRule\n"),
        Just("kind: Node\n"),
        Just("metadata: {name: a}\n"),
        Just("metadata:\n"),
        Just("  name: b\n"),
        Just("spec:\n"),
        Just("spec: {"),
        Just("  image: a\n"),
        Just("  realtime: {scheduler: {policy: fifo, priority: 120}}\n"),
        Just("---\n"),
        Just("  - "),
        Just("[a, "),
        Just("]"),
        Just("}\n"),
        Just("&a "),
        Just("*a"),
        Just("!t "),
        Just("? "),
        Just("\"x"),
        Just("'"),
        Just("|\n"),
        Just(">-\n"),
        Just("<<: "),
        Just("\t"),
        Just(": "),
        Just("...\n"),
        Just("%TAG ! x\n"),
        Just("  match: KERNEL==\"x\"\n"),
        Just("  workload: a\n"),
        Just("  armed: 3\n"),
        Just("  env: [{name: A}]\n"),
        Just("  cpus: {housekeeping: 0}\n"),
        Just("\r\n"),
        Just("\u{feff}"),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_sources(&source(&text), &Set::default());
    }

    #[test]
    fn any_pieces_are_answered_within_the_text(text in pieces()) {
        let report = check_sources(&source(&text), &Set::default());
        let lines = text.split('\n').count() + text.matches('\r').count();
        for fault in report.faults.iter().chain(&report.warnings) {
            prop_assert!((1..=lines + 1).contains(&fault.line) && fault.column >= 1, "{fault}");
            prop_assert!(!fault.message.is_empty());
        }
    }

    #[test]
    fn what_is_good_survives_json_and_yaml(text in workloads()) {
        let set = read(&text);
        let json = set.to_json().unwrap();
        let back = Set::from_json(&json).unwrap();
        prop_assert_eq!(back.to_json().unwrap(), json.clone());
        prop_assert!(berth_documents::diff(&set, &back).is_empty());
        prop_assert_eq!(read(&set.to_yaml().unwrap()).to_json().unwrap(), json);
    }

    #[test]
    fn durations_and_sizes_round_trip(nanos in 0..i64::MAX as u64, bytes in 1..i64::MAX as u64) {
        let duration = Duration::from_nanos(nanos);
        prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        let size = Size::from_bytes(bytes);
        prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
    }
}

#[test]
fn line_breaks_of_other_alphabets_are_text() {
    let text = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: a}\nspec: {image: a, args: [\"x\u{2028}y\", \"\u{85}\", \"\u{2029}z\"], cpus: shared}\n";
    let set = read(text);
    let again = read(&set.to_yaml().unwrap());
    assert_eq!(again.to_json().unwrap(), set.to_json().unwrap());
}

#[test]
fn a_filter_in_a_file_is_read_with_its_document() {
    let temp = tempfile::tempdir().unwrap();
    let document = temp.path().join("p.yaml");
    let profile = |file: &str| {
        let text = format!(
            "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {{name: p}}\nspec:\n  seccomp: {{file: {file}}}\n"
        );
        std::fs::write(&document, text).unwrap();
        berth_documents::check(&[temp.path().to_owned()], &Set::default())
    };
    let filter = |name: &str, call: &str| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "archMap": null, "syscalls": [{{"names": ["{call}"], "action": "SCMP_ACT_ERRNO"}}]}}"#
        );
        std::fs::write(temp.path().join(name), text).unwrap();
    };
    filter("good.json", "mount");
    let set = profile("good.json").into_result().unwrap();
    let text = serde_json::to_string(&set.profiles["p"].spec).unwrap();
    assert!(text.contains("mount") && !text.contains("good.json"), "{text}");
    filter("bad.json", "muont");
    for (file, word) in [
        ("none.json", "No such file"),
        ("bad.json", "did you mean `mount`"),
    ] {
        let report = profile(file);
        let [only] = &report.faults[..] else {
            panic!("{:?}", report.faults)
        };
        let text = only.to_string();
        assert!(text.contains("p.yaml:5:") && text.contains(word), "{text}");
    }
}
