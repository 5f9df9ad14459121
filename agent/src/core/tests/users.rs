//! Orders: stop, start, restart, kill, freeze, thaw, `berth run`.

use super::*;

fn names(name: &str) -> Vec<String> {
    vec![name.to_owned()]
}

#[test]
fn stopped_stays_stopped_until_started() {
    let yaml = workload("a", "cpus: 1");
    let (mut w, _) = World::ready(2, &yaml);
    w.up("a");
    let (answer, out) = w.ask(Ask::Stop(names("a")));
    assert_eq!((answer.unwrap(), out), (names("a"), vec!["stop a".to_owned()]));
    assert_eq!(w.down("a", 0), Vec::<String>::new());
    assert_eq!(w.phase("a"), "stopped");
    assert!(w.state.held().is_empty());
    assert_eq!(
        w.apply(&workload("a", "cpus: 1, memory: 64Mi")),
        Vec::<String>::new()
    );
    assert_eq!(w.phase("a"), "stopped");
    assert_eq!(w.ask(Ask::Start(names("a"))).1, ["launch a"]);
}

#[test]
fn one_instance_of_a_rule_is_stopped_by_its_name() {
    let yaml = workload("pump", "run: onDevice") + &rule("serial", "workload: pump");
    let (mut w, _) = World::ready(1, &yaml);
    w.plug("/d/tty1", "serial", "1");
    w.plug("/d/tty2", "serial", "1");
    assert_eq!(w.ask(Ask::Stop(names("pump-tty1"))).1, ["stop pump-tty1"]);
    w.down("pump-tty1", 0);
    assert_eq!(w.phase("pump-tty1"), "stopped");
    assert_eq!(w.ask(Ask::Stop(names("pump"))).1, ["stop pump-tty2"]);
    w.down("pump-tty2", 0);
    assert_eq!(
        w.ask(Ask::Start(names("pump"))).1,
        ["launch pump-tty1", "launch pump-tty2"]
    );
}

#[test]
fn restart_makes_a_new_one() {
    let (mut w, _) = World::ready(1, &workload("a", ""));
    w.up("a");
    assert_eq!(w.ask(Ask::Restart(names("a"))).1, ["stop a"]);
    assert_eq!(w.down("a", 0), ["launch a"]);
}

#[test]
fn orders_need_a_container_in_the_right_phase() {
    let (mut w, _) = World::ready(1, &workload("a", ""));
    assert!(matches!(
        w.ask(Ask::Freeze(names("a"))).0,
        Err(AskError::Phase { .. })
    ));
    assert!(matches!(
        w.ask(Ask::Kill(names("a"), 9)).0,
        Err(AskError::Phase { .. })
    ));
    assert!(matches!(
        w.ask(Ask::Stop(names("nobody"))).0,
        Err(AskError::Absent(_))
    ));
    w.up("a");
    assert_eq!(w.ask(Ask::Kill(names("a"), 10)).1, ["signal a 10"]);
    assert_eq!(w.ask(Ask::Freeze(names("a"))).1, ["freeze a"]);
    w.report("a", Report::Frozen(true));
    assert_eq!(w.phase("a"), "frozen");
    // A frozen one is thawed so that it can obey.
    assert_eq!(w.ask(Ask::Stop(names("a"))).1, ["thaw a", "stop a"]);
}

#[test]
fn stop_all_stops_pools_too() {
    let yaml = workload("a", "cpus: 1")
        + &workload("pump", "run: onDevice, cpus: 1")
        + &rule("serial", "workload: pump, armed: 1");
    let (mut w, _) = World::ready(3, &yaml);
    assert_eq!(w.ask(Ask::StopAll).1, ["stop a", "stop pump-armed-0"]);
}

#[test]
fn a_run_is_once_and_forgotten_when_its_caller_knows() {
    let (mut w, _) = World::ready(1, "");
    let once = documents(&workload("job", "restart: {policy: never}")).workloads["job"].clone();
    assert_eq!(w.step(Event::Once { workload: once }), ["launch job"]);
    w.up("job");
    w.down("job", 7);
    assert_eq!(w.phase("job"), "failed");
    assert_eq!(w.state.instances["job"].exit.unwrap().code, Some(7));
    assert!(w.ask(Ask::Forget("job".into())).0.is_ok());
    assert_eq!(w.phase("job"), "absent");
}

#[test]
fn an_armed_container_that_cannot_start_is_stopped_and_counts() {
    let yaml = workload("pump", "run: onDevice") + &rule("serial", "workload: pump, armed: 1");
    let (mut w, _) = World::ready(1, &yaml);
    w.report(
        "pump-armed-0",
        Report::Created {
            pid: 1,
            start_time: 1,
            takes: true,
        },
    );
    w.plug("/d/tty1", "serial", "1");
    assert_eq!(
        w.report("pump-armed-0", Report::Refused(refusal("request"))),
        ["stop pump-armed-0", "launch pump-armed-0-2"]
    );
    w.down("pump-armed-0", 0);
    assert_eq!(w.phase("pump-tty1"), "backoff");
}

#[test]
fn a_stop_that_comes_too_early_is_tried_again() {
    let (mut w, _) = World::ready(1, &workload("a", ""));
    assert_eq!(w.ask(Ask::Stop(names("a"))).1, ["stop a"]);
    assert_eq!(
        w.report("a", Report::Refused(refusal("stop"))),
        Vec::<String>::new()
    );
    assert_eq!(w.later(100), ["stop a"]);
}
