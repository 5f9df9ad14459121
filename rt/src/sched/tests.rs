//! What is refused before the kernel is asked, and what the kernel gives back.

use super::*;

#[test]
fn parameters_out_of_range_are_named() {
    for (scheduler, part) in [
        (Scheduler::Other { nice: 20 }, "nice 20"),
        (Scheduler::Batch { nice: -21 }, "nice -21"),
        (Scheduler::Fifo { priority: 0 }, "priority 0"),
        (Scheduler::Rr { priority: 100 }, "priority 100"),
        (
            Scheduler::Deadline {
                runtime: 1000,
                deadline: 2000,
                period: 2000,
            },
            "below 1024",
        ),
        (
            Scheduler::Deadline {
                runtime: 5000,
                deadline: 4000,
                period: 6000,
            },
            "does not hold",
        ),
        (
            Scheduler::Deadline {
                runtime: 5000,
                deadline: 7000,
                period: 6000,
            },
            "does not hold",
        ),
    ] {
        let error = set(0, &scheduler, 0).unwrap_err();
        assert!(matches!(error, SchedError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(matches!(set_timer_slack(0), Err(SchedError::Invalid { .. })));
    assert!(matches!(
        set_affinity(0, &CpuSet::new()),
        Err(SchedError::Invalid { .. })
    ));
}

#[test]
fn documents_name_the_policy() {
    let parse = |text: &str| serde_json::from_str::<Scheduler>(text);
    assert_eq!(
        parse(r#"{"policy":"fifo","priority":50}"#).unwrap(),
        Scheduler::Fifo { priority: 50 }
    );
    assert_eq!(
        parse(r#"{"policy":"other"}"#).unwrap(),
        Scheduler::Other { nice: 0 }
    );
    assert_eq!(parse(r#"{"policy":"idle"}"#).unwrap(), Scheduler::Idle);
    assert!(parse(r#"{"policy":"fifo"}"#).is_err());
    assert!(parse(r#"{"policy":"fifo","priority":1,"nice":2}"#).is_err());
}

fn oci(json: &str) -> Result<(Scheduler, u64), String> {
    Scheduler::from_oci(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn oci_schedulers_are_taken_whole_or_refused() {
    assert_eq!(
        oci(r#"{"policy":"SCHED_FIFO","priority":10,"flags":["SCHED_RESET_ON_FORK"]}"#),
        Ok((Scheduler::Fifo { priority: 10 }, RESET_ON_FORK))
    );
    assert_eq!(
        oci(r#"{"policy":"SCHED_DEADLINE","runtime":2000,"deadline":4000,"period":8000}"#),
        Ok((
            Scheduler::Deadline {
                runtime: 2000,
                deadline: 4000,
                period: 8000
            },
            0
        ))
    );
    for (json, part) in [
        (r#"{"policy":"SCHED_ISO"}"#, "SCHED_ISO"),
        (r#"{"policy":"SCHED_FIFO"}"#, "priority 0"),
        (r#"{"policy":"SCHED_FIFO","priority":-4}"#, "priority -4"),
        (r#"{"policy":"SCHED_OTHER","priority":4}"#, "no meaning"),
        (r#"{"policy":"SCHED_FIFO","priority":4,"nice":3}"#, "no meaning"),
        (
            r#"{"policy":"SCHED_OTHER","runtime":4}"#,
            "belong to SCHED_DEADLINE",
        ),
        (
            r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_UTIL_CLAMP_MIN"]}"#,
            "no field for its value",
        ),
        (
            r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_KEEP_POLICY"]}"#,
            "not named",
        ),
    ] {
        let error = oci(json).unwrap_err();
        assert!(error.contains(part), "{json}: {error}");
    }
}

/// Runs `act` in a thread of its own, so that the test harness's threads keep their settings.
fn apart<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(act).join().unwrap()
}

#[test]
fn the_kernel_gives_back_what_was_set() {
    apart(|| {
        for scheduler in [
            Scheduler::Batch { nice: 3 },
            Scheduler::Idle,
            Scheduler::Other { nice: 5 },
        ] {
            set(0, &scheduler, RESET_ON_FORK).unwrap();
            assert_eq!(
                get(0).unwrap(),
                Attributes {
                    scheduler,
                    flags: RESET_ON_FORK
                }
            );
        }
    });
}

#[test]
fn affinity_is_set_and_read() {
    apart(|| {
        let before = affinity(0).unwrap();
        let one: CpuSet = before.iter().next_back().into_iter().collect();
        set_affinity(0, &one).unwrap();
        assert_eq!(affinity(0).unwrap(), one);
        let error = set_affinity(0, &[MAX_CPU].into_iter().collect()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert!(error.hint().unwrap().contains("online"));
    });
}

#[test]
fn timer_slack_is_read_from_proc() {
    let (tid, slack) = apart(|| {
        set_timer_slack(1234).unwrap();
        let tid = nix::unistd::gettid().as_raw();
        (tid, timer_slack(Path::new("/proc"), tid).unwrap())
    });
    assert_eq!(slack, 1234);
    let error = timer_slack(Path::new("/nowhere"), tid).unwrap_err();
    assert!(error.to_string().contains("timerslack_ns"), "{error}");
}

#[test]
fn a_thread_that_is_gone_is_named() {
    let error = get(i32::MAX).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ESRCH));
    assert!(error.to_string().contains(&i32::MAX.to_string()));
    assert_eq!(error.hint().as_deref(), Some("the thread has ended"));
}
