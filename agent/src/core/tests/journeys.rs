//! Workloads that always run: launch, end, restart policy, change of documents, monitors that die, launcher gone.

use berth_rt::starved::Starved;

use super::*;

#[test]
fn declared_runs_and_removed_stops() {
    let (mut w, out) = World::ready(2, &workload("a", "cpus: 1"));
    assert_eq!(out, ["launch a"]);
    assert_eq!(w.requests["a"].placement.cpus, "1");
    w.up("a");
    assert_eq!(w.apply(""), ["stop a"]);
    assert_eq!(w.phase("a"), "stopping");
    assert_eq!(w.down("a", 0), Vec::<String>::new());
    assert_eq!(w.phase("a"), "absent");
    assert!(w.state.held().is_empty());
}

#[test]
fn what_holds_it_is_kept_until_it_has_ended() {
    let (mut w, _) = World::ready(2, &workload("a", "cpus: 1"));
    w.up("a");
    assert_eq!(w.apply(""), ["stop a"]);
    let by = "process 7 (x, D in y)";
    let effects = w.state.step(
        w.now,
        Event::Report {
            id: "a".into(),
            report: Report::Held(by.into()),
        },
    );
    assert!(
        matches!(&effects[..], [Effect::Note(n)] if n.kind == NoticeKind::Held && n.text == by),
        "{effects:?}"
    );
    assert_eq!(
        (w.phase("a"), w.state.instances["a"].held.as_deref()),
        ("stopping", Some(by))
    );
    w.down("a", 0);
    assert_eq!(w.phase("a"), "absent");
}

#[test]
fn starved_kernel_threads_are_told_when_they_change() {
    let (mut w, _) = World::ready(2, &workload("a", "cpus: 1"));
    w.up("a");
    let told = |w: &mut World, pids: &[i32]| {
        let one = |pid: &i32| Starved {
            pid: *pid,
            name: "rcuc/1".into(),
            cpu: 1,
            waits_ms: 4000,
        };
        let event = Event::Report {
            id: "a".into(),
            report: Report::Starved(pids.iter().map(one).collect()),
        };
        let effects = w.state.step(w.now, event);
        let notes = effects.iter().map(|e| match e {
            Effect::Note(n) => (n.kind, n.text.clone()),
            other => panic!("{other:?}"),
        });
        notes.collect::<Vec<_>>()
    };
    let line = |pid: i32| format!("rcuc/1 (pid {pid}) has not run on CPU 1 for 4 s");
    assert_eq!(told(&mut w, &[7]), [(NoticeKind::Starved, line(7))]);
    assert_eq!(told(&mut w, &[7]), []);
    assert_eq!(
        told(&mut w, &[7, 8]),
        [(NoticeKind::Starved, format!("{}; {}", line(7), line(8)))]
    );
    assert_eq!(told(&mut w, &[]), [(NoticeKind::NotStarved, String::new())]);
    assert_eq!(told(&mut w, &[]), []);
    told(&mut w, &[7]);
    w.apply("");
    w.down("a", 0);
}

#[test]
fn nothing_starts_before_the_world_is_known() {
    let mut w = World::new(2, &workload("a", "cpus: 1"));
    assert_eq!(w.later(10), Vec::<String>::new());
    assert_eq!(w.step(Event::Ready), ["launch a"]);
}

#[test]
fn the_restart_policy_decides() {
    // (policy, exit code, what becomes of it)
    for (policy, code, phase) in [
        ("always", 0, "backoff"),
        ("always", 1, "backoff"),
        ("onFailure", 0, "completed"),
        ("onFailure", 1, "backoff"),
        ("never", 0, "completed"),
        ("never", 1, "failed"),
    ] {
        let (mut w, _) = World::ready(
            2,
            &workload("a", &format!("cpus: 1, restart: {{policy: {policy}, delay: 1s}}")),
        );
        w.up("a");
        w.down("a", code);
        assert_eq!(w.phase("a"), phase, "{policy} {code}");
        assert_eq!(w.later(999), Vec::<String>::new());
        let again: &[&str] = if phase == "backoff" { &["launch a"] } else { &[] };
        assert_eq!(w.later(1), again, "{policy} {code}");
        // Cores are kept over a restart, and given back otherwise.
        assert_eq!(w.state.held().len(), again.len());
    }
}

#[test]
fn a_crash_loop_ends_at_the_limit() {
    let yaml = workload("a", "restart: {policy: always, delay: 1s, limit: 3, window: 1m}");
    let (mut w, _) = World::ready(1, &yaml);
    for _ in 0..3 {
        w.up("a");
        w.down("a", 1);
        assert_eq!(w.later(1000), ["launch a"]);
    }
    w.up("a");
    w.down("a", 1);
    assert_eq!(w.phase("a"), "failed");
    assert_eq!(w.later(3_600_000), Vec::<String>::new());
    // By hand, or by another document, it gets another chance.
    assert_eq!(w.ask(Ask::Start(vec!["a".into()])).1, ["launch a"]);
    w.up("a");
    w.down("a", 1);
    assert_eq!(w.phase("a"), "backoff");
}

#[test]
fn restarts_outside_the_window_do_not_count() {
    let (mut w, _) = World::ready(1, &workload("a", "restart: {delay: 1s, limit: 1, window: 10s}"));
    for _ in 0..5 {
        w.up("a");
        w.now += 20_000;
        w.down("a", 1);
        assert_eq!(w.later(1000), ["launch a"]);
    }
}

#[test]
fn a_refused_launch_counts_and_an_unreachable_launcher_does_not() {
    let (mut w, _) = World::ready(1, &workload("a", "restart: {delay: 1s, limit: 2}"));
    for _ in 0..10 {
        w.report(
            "a",
            Report::NotLaunched {
                refusal: refusal("launcher"),
                reached: false,
            },
        );
        assert_eq!(w.phase("a"), "backoff");
        assert_eq!(w.later(1000), ["launch a"]);
    }
    w.report(
        "a",
        Report::NotLaunched {
            refusal: refusal("launcher"),
            reached: false,
        },
    );
    assert_eq!(w.step(Event::LauncherBack), ["launch a"]);
    for _ in 0..2 {
        w.report(
            "a",
            Report::NotLaunched {
                refusal: refusal("image"),
                reached: true,
            },
        );
        assert_eq!(w.later(1000), ["launch a"]);
    }
    w.report(
        "a",
        Report::NotLaunched {
            refusal: refusal("image"),
            reached: true,
        },
    );
    assert_eq!(w.phase("a"), "failed");
}

#[test]
fn a_failed_proof_is_released_and_tried_again() {
    let (mut w, _) = World::ready(1, &workload("a", "restart: {delay: 1s}"));
    assert_eq!(w.report("a", Report::Failed(refusal("prove"))), ["release a"]);
    assert_eq!(w.report("a", Report::Closed), Vec::<String>::new());
    assert_eq!(w.later(1000), ["launch a"]);
}

#[test]
fn a_change_that_needs_it_makes_a_new_container_and_others_do_not() {
    let (mut w, _) = World::ready(2, &workload("a", "cpus: 1"));
    w.up("a");
    assert_eq!(
        w.apply(&workload("a", "cpus: 1, restart: {policy: never}")),
        Vec::<String>::new()
    );
    assert_eq!(w.phase("a"), "running");
    assert_eq!(w.apply(&workload("a", "cpus: 1, memory: 64Mi")), ["stop a"]);
    assert_eq!(w.down("a", 143), ["launch a"]);
    assert_eq!(w.requests["a"].memory_bytes, Some(64 << 20));
    // The stop was ours: it is no restart of the policy's.
    assert_eq!(w.state.history.values().map(|h| h.total).sum::<u64>(), 0);
}

#[test]
fn a_dead_monitor_is_swept_before_the_id_is_used_again() {
    let (mut w, _) = World::ready(2, &workload("a", "cpus: 1, restart: {delay: 1s}"));
    w.up("a");
    assert_eq!(w.report("a", Report::Closed), ["sweep a"]);
    assert_eq!(
        w.state.held().len(),
        1,
        "nothing is given away before it is known to be free"
    );
    assert_eq!(
        w.report("a", Report::Swept(Err(refusal("sweep")))),
        Vec::<String>::new()
    );
    assert_eq!(w.later(1000), ["sweep a"]);
    assert_eq!(w.report("a", Report::Swept(Ok(()))), Vec::<String>::new());
    assert_eq!(w.phase("a"), "backoff");
    assert_eq!(w.later(1000), ["launch a"]);
}

#[test]
fn without_place_it_waits_and_says_who_has_it() {
    let yaml = workload("a", "cpus: 1") + &workload("b", "cpus: 1");
    let (mut w, out) = World::ready(2, &yaml);
    assert_eq!(out, ["launch a"]);
    let Phase::Waiting { why } = &w.state.instances["b"].phase else {
        panic!("b does not wait")
    };
    assert!(why.contains("a has 1"), "{why}");
    w.up("a");
    assert_eq!(w.apply(&workload("b", "cpus: 1")), ["stop a"]);
    assert_eq!(w.down("a", 0), ["launch b"]);
    assert_eq!(w.requests["b"].placement.cpus, "1");
}

#[test]
fn the_budget_is_one_for_the_node() {
    let realtime =
        "realtime: {scheduler: {policy: fifo, priority: 10}, budget: {runtime: 600ms, period: 1s}}";
    let yaml =
        workload("a", &format!("cpus: 1, {realtime}")) + &workload("b", &format!("cpus: 1, {realtime}"));
    let (w, out) = World::ready(4, &yaml);
    assert_eq!(out, ["launch a"]);
    assert_eq!(w.requests["a"].rt_budget.unwrap().runtime_us, 600_000);
    let Phase::Waiting { why } = &w.state.instances["b"].phase else {
        panic!("b does not wait")
    };
    assert!(why.contains("350000 us") && why.contains("a has 600000"), "{why}");
}

#[test]
fn fifo_without_a_budget_gets_the_stated_one() {
    let yaml = workload(
        "a",
        "cpus: 1, realtime: {scheduler: {policy: fifo, priority: 10}}",
    );
    let (w, _) = World::ready(2, &yaml);
    assert_eq!(w.requests["a"].rt_budget.unwrap().runtime_us, 100_000);
}

#[test]
fn adopted_containers_are_not_touched() {
    let yaml = workload("a", "cpus: 1");
    let (mut before, _) = World::ready(2, &yaml);
    before.up("a");
    let mut w = World::new(2, &yaml);
    w.requests = before.requests.clone();
    let status = w.status("a", wire::Phase::Running);
    assert_eq!(
        w.step(Event::Adopt {
            status: Box::new(status)
        }),
        Vec::<String>::new()
    );
    assert_eq!(w.step(Event::Ready), Vec::<String>::new());
    assert_eq!(w.phase("a"), "running");
    assert_eq!(w.state.held()[0].cpus.to_string(), "1");
}

#[test]
fn adopted_but_ended_reports_its_exit_and_restarts() {
    let yaml = workload("a", "restart: {delay: 1s}");
    let (before, _) = World::ready(1, &yaml);
    let mut w = World::new(1, &yaml);
    w.requests = before.requests.clone();
    let mut status = w.status("a", wire::Phase::Exited);
    status.exit = Some(Exit {
        code: Some(3),
        signal: None,
        oom: false,
        at: 1,
    });
    assert_eq!(
        w.step(Event::Adopt {
            status: Box::new(status)
        }),
        ["release a"]
    );
    assert_eq!(w.step(Event::Ready), Vec::<String>::new());
    w.report("a", Report::Closed);
    assert_eq!(w.later(1000), ["launch a"]);
    assert_eq!(
        w.state.history.values().next().unwrap().exit.unwrap().code,
        Some(3)
    );
}

#[test]
fn adopted_without_a_document_is_stopped_and_without_notes_left_alone() {
    let (before, _) = World::ready(1, &workload("a", ""));
    for (notes, out) in [(true, &["stop a"][..]), (false, &[])] {
        let mut w = World::new(1, "");
        w.requests = before.requests.clone();
        let mut status = w.status("a", wire::Phase::Running);
        if !notes {
            status.request.notes.clear();
        }
        w.step(Event::Adopt {
            status: Box::new(status),
        });
        assert_eq!(w.step(Event::Ready), out);
        if !notes {
            w.down("a", 0);
            assert_eq!(w.phase("a"), "absent");
        }
    }
}
