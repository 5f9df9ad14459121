//! The daemon beside a launcher and monitors that are played by a thread: sockets, queue, metrics, answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use berth_documents::{Set, Source, check_sources};
use berth_hotplug::monitor::Source as EventSource;
use berth_launcher::socket;
use berth_launcher::wire::{Event as Wire, Exit, Refusal as WireRefusal, Reply};
use berth_runtime::proof::{Fact, Proof, Stage};
use tokio::sync::mpsc::UnboundedReceiver;

use super::settings::{Folders, LauncherBy};
use super::*;
use crate::api::{Answer, Changes, Container, Outcome};

const YAML: &str = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: a}\n\
                    spec: {image: img, cpus: shared, profile: privileged, restart: {delay: 10ms, limit: 1}}\n";

fn documents(yaml: &str) -> Set {
    let report = check_sources(
        &[Source {
            name: "t.yaml".into(),
            text: yaml.into(),
        }],
        &Set::default(),
    );
    assert!(report.faults.is_empty(), "{:?}", report.faults);
    report.set
}

fn agent(folder: &Path) -> (Agent, UnboundedReceiver<Input>) {
    let dir = |name: &str| {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        folder.join(name)
    };
    let folders = Folders {
        run: dir("run"),
        state: dir("state"),
        config: dir("config"),
        preloaded: folder.join("preloaded"),
    };
    let settings = Settings {
        folders,
        cgroup_parent: "x".into(),
        metrics: None,
        launcher: LauncherBy::Others,
        devices: EventSource::Kernel,
        device_buffer: 1 << 20,
        resync: Duration::from_secs(60),
        watchdog: None,
        on_missing: super::settings::OnMissing::Refuse,
        groups: super::roles::GroupNames {
            read: "1".into(),
            operate: "2".into(),
            admin: "3".into(),
        },
        audit_to: "none".into(),
        audit_bytes: 1 << 20,
    };
    let audit = Audit::open(
        &settings.folders.audit("agent"),
        1 << 20,
        berth_audit::Sink::none(),
    )
    .unwrap();
    let topology = Topology::read(Path::new("/sys")).unwrap();
    let support = Support::NodeOnly(None);
    let (queue, inputs) = mpsc::unbounded_channel();
    let node = start::node(&Set::default(), &topology, &support).unwrap();
    let agent = Agent {
        resync_at: Instant::now() + settings.resync,
        starving: Starving::new(),
        settings,
        state: State::new(node),
        desired: store::Desired::default(),
        rebuild: false,
        devices: Devices::open(EventSource::Kernel, 1 << 20, false).unwrap(),
        links: BTreeMap::new(),
        serial: 0,
        resolve: Box::new(|reference| match reference {
            "img" => Ok(format!("sha256:{}", "0".repeat(64))),
            other => Err(Refusal {
                stage: "image".into(),
                message: format!("no image {other}"),
                hint: None,
            }),
        }),
        in_flight: 0,
        launches: VecDeque::new(),
        events: Events::default(),
        audit,
        sandbox: None,
        launcher_pid: None,
        refused: None,
        metrics: Metrics::new(Path::new("/nonexistent")).unwrap(),
        metrics_at: None,
        waiters: Vec::new(),
        early: None,
        topology,
        support,
        queue,
        begun: Instant::now(),
        plugged: None,
        launcher_there: true,
    };
    (agent, inputs)
}

/// Takes inputs until `done`.
async fn until(agent: &mut Agent, inputs: &mut UnboundedReceiver<Input>, done: impl Fn(&Agent) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done(agent) {
        assert!(
            Instant::now() < deadline,
            "not within 20 s: {:?}",
            agent.state.instances
        );
        match tokio::time::timeout(Duration::from_millis(20), inputs.recv()).await {
            Ok(Some(input)) => agent.on_input(input),
            _ => agent.on_time(),
        }
    }
}

fn fact(holds: bool) -> Fact {
    Fact {
        name: "x".into(),
        promised: "1".into(),
        actual: "2".into(),
        source: "here".into(),
        holds,
    }
}

fn proof() -> Proof {
    Proof {
        pid: 1,
        stage: Stage::ExecStop,
        at: 1,
        facts: vec![fact(true)],
    }
}

fn say(stream: &mut UnixStream, event: Wire) {
    let mut line = serde_json::to_vec(&Reply::Event(Box::new(event))).unwrap();
    line.push(b'\n');
    stream.write_all(&line).unwrap();
}

/// A launcher that takes one connection after the other: the n-th is handled by the n-th closure.
fn launcher(run: &Path, acts: Vec<Box<dyn FnOnce(UnixStream) + Send>>) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::from(socket::listen(run, "launcher.sock").unwrap());
    listener.set_nonblocking(false).unwrap();
    std::thread::spawn(move || {
        for act in acts {
            let (stream, _) = listener.accept().unwrap();
            act(stream);
        }
    })
}

fn line(stream: &UnixStream) -> serde_json::Value {
    let mut text = String::new();
    BufReader::new(stream.try_clone().unwrap())
        .read_line(&mut text)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

fn started(mut stream: UnixStream) -> UnixStream {
    let request = line(&stream);
    assert_eq!(
        (request["op"].as_str(), request["id"].as_str()),
        (Some("launch"), Some("a"))
    );
    say(
        &mut stream,
        Wire::Created {
            pid: 1,
            start_time: 1,
            proof: None,
            takes: true,
        },
    );
    say(
        &mut stream,
        Wire::Started {
            proof: proof(),
            timing: vec![("exec".into(), 1)],
            started_at: 4711,
        },
    );
    stream
}

/// Every metric that is registered is moved by a named event of this script.
fn root() -> berth_audit::Who {
    berth_audit::Who {
        uid: 0,
        gid: 0,
        pid: 1,
        role: Some("admin".into()),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn every_metric_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (mut agent, mut inputs) = agent(folder.path());
    let run = agent.settings.folders.run.clone();
    let played = launcher(
        &run,
        vec![
            // Runs, drifts, recovers, loses output, ends by itself.
            Box::new(|stream| {
                let mut stream = started(stream);
                say(
                    &mut stream,
                    Wire::Drift {
                        facts: vec![fact(false)],
                        answer: Default::default(),
                    },
                );
                say(&mut stream, Wire::Restored);
                say(&mut stream, Wire::Dropped { bytes: 7 });
                say(
                    &mut stream,
                    Wire::Exited(Exit {
                        code: Some(3),
                        signal: None,
                        oom: false,
                        at: 1,
                    }),
                );
                assert_eq!(line(&stream)["op"], "release");
            }),
            // Runs again, drifts, and its monitor dies.
            Box::new(|stream| {
                let mut stream = started(stream);
                say(
                    &mut stream,
                    Wire::Drift {
                        facts: vec![fact(false)],
                        answer: Default::default(),
                    },
                );
                std::thread::sleep(Duration::from_millis(300));
            }),
            Box::new(|mut stream| {
                assert_eq!(line(&stream)["op"], "sweep");
                stream.write_all(b"{\"reply\":\"done\"}\n").unwrap();
            }),
        ],
    );
    agent.feed(Event::Ready);
    // A device event read at this moment.
    agent.plugged = Some(Instant::now());
    agent
        .apply(&Changes {
            set: documents(YAML),
            delete: Vec::new(),
        })
        .unwrap();
    agent.plugged = None;
    let drifting = |a: &Agent| {
        a.state
            .instances
            .get("a")
            .is_some_and(|i| !i.drift.is_empty() && i.pid.is_some())
    };
    until(&mut agent, &mut inputs, |a| {
        drifting(a) && a.state.history.values().any(|h| h.total == 1)
    })
    .await;
    let starved = berth_rt::starved::Starved {
        pid: 7,
        name: "rcuc/1".into(),
        cpu: 1,
        waits_ms: 2000,
    };
    agent.feed(Event::Report {
        id: "a".into(),
        report: crate::core::Report::Starved(vec![starved]),
    });
    agent.state.pretend_a_storm();
    agent.metrics.containers.levels(&agent.state);
    let mut moved: BTreeMap<String, f64> = BTreeMap::new();
    let mut look = |agent: &Agent| {
        for (name, value) in agent.metrics.samples() {
            let most = moved.entry(name).or_default();
            *most = most.max(value);
        }
    };
    look(&agent);
    // The limit of one restart is reached.
    until(&mut agent, &mut inputs, |a| {
        a.state.instances["a"].phase.as_str() == "failed"
    })
    .await;
    // Launches that are refused, a place that is not there, whole cores and budget.
    let cpus = agent.state.node.pool.isolated.len();
    agent.state.node.rt_groups = true;
    let realtime = "realtime: {scheduler: {policy: fifo, priority: 1}}";
    let more = format!(
        "{YAML}---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: b}}\nspec: {{image: none, cpus: 1, {realtime}}}\n\
         ---\napiVersion: berth/v1\nkind: Workload\nmetadata: {{name: c}}\nspec: {{image: none, cpus: {}}}\n",
        cpus + 1
    );
    agent.support = Support::PerGroup(berth_rt::cgroup::RtBudget {
        runtime_us: 950_000,
        period_us: 1_000_000,
    });
    if cpus > 0 {
        agent
            .apply(&Changes {
                set: documents(&more),
                delete: Vec::new(),
            })
            .unwrap();
    } else {
        // A machine with one core gives none away: the gauges are moved by a place that is made up.
        let mut place = berth_rt::placement::reserve(
            &agent.state.node.pool,
            &[],
            &berth_rt::placement::Request {
                owner: "a".into(),
                cpus: berth_rt::placement::Cpus::Shared,
                near_node: None,
                rt_budget: None,
            },
        )
        .unwrap();
        place.rt_runtime_us = 1;
        agent.state.node.pool.isolated = place.cpus.clone();
        agent.state.instances.get_mut("a").unwrap().place = Some(place);
        agent.note(NoticeKind::Waiting, "a", "");
    }
    agent.metrics.containers.levels(&agent.state);
    agent.note(NoticeKind::Adopted, "a", "running");
    agent.on_input(Input::Launcher(LauncherNews::Started(1)));
    agent.on_input(Input::Launcher(LauncherNews::Gone(1)));
    agent.on_input(Input::Api(server::News::Opened));
    agent.on_input(Input::Api(server::News::Refused(
        root(),
        "version",
        String::new(),
    )));
    let (reply, _answers) = mpsc::channel(8);
    agent.on_input(Input::Asked {
        op: Box::new(Op::Ps),
        who: root(),
        role: Role::Admin,
        conn: 1,
        reply,
    });
    let (reply, text) = oneshot::channel();
    agent.on_input(Input::Metrics {
        status: "200 OK",
        reply,
    });
    assert!(
        String::from_utf8(text.await.unwrap())
            .unwrap()
            .contains("# TYPE berth_containers gauge")
    );
    std::fs::write(agent.settings.folders.config.join("bad.yaml"), "nonsense: [\n").unwrap();
    agent.reload();
    agent.resync("test");
    std::fs::remove_dir_all(agent.settings.folders.audit("agent")).unwrap();
    agent.note(NoticeKind::Refused, "a", "not recorded");
    agent.metrics.devices.pretend_events();
    watchdog::tests::moves_everything(&agent.metrics.watchdog);
    look(&agent);
    played.join().unwrap();
    let still: Vec<&String> = moved
        .iter()
        .filter(|(_, value)| **value == 0.0)
        .map(|(name, _)| name)
        .collect();
    assert!(still.is_empty(), "nothing moves {still:?}");
    // A family without a sample is not gathered at all: every one that is declared was.
    assert_eq!(moved.len(), 38, "{:?}", moved.keys());
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_refused_changes_nothing_and_a_plan_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut agent, _inputs) = agent(folder.path());
    agent.feed(Event::Ready);
    let outcome: Outcome = agent
        .plan(&Changes {
            set: documents(YAML),
            delete: Vec::new(),
        })
        .unwrap();
    assert_eq!(outcome.documents.len(), 1);
    assert_eq!(outcome.containers[0].action, "launch");
    assert!(agent.state.instances.is_empty() && !agent.settings.folders.desired().exists());
    let node = "apiVersion: berth/v1\nkind: Node\nmetadata: {name: n}\nspec: {cpus: {isolated: \"4000\"}}\n";
    let fault = agent
        .apply(&Changes {
            set: documents(node),
            delete: Vec::new(),
        })
        .unwrap_err();
    assert!(fault.message.contains("4000"), "{}", fault.message);
    let gone = (berth_documents::Kind::Workload, "nobody".to_owned());
    assert!(
        agent
            .apply(&Changes {
                set: Set::default(),
                delete: vec![gone]
            })
            .is_err()
    );
    assert!(agent.desired.effective().is_empty() && !agent.settings.folders.desired().exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_refused_launch_is_told_in_ps_and_a_stop_is_answered_when_it_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (mut agent, mut inputs) = agent(folder.path());
    let run = agent.settings.folders.run.clone();
    let played = launcher(
        &run,
        vec![
            Box::new(|mut stream| {
                line(&stream);
                let refusal = WireRefusal {
                    stage: "profile".into(),
                    message: "no such".into(),
                    hint: None,
                };
                let mut text = serde_json::to_vec(&Reply::Refused(refusal)).unwrap();
                text.push(b'\n');
                stream.write_all(&text).unwrap();
            }),
            Box::new(|stream| {
                let mut stream = started(stream);
                assert_eq!(line(&stream)["op"], "stop");
                say(
                    &mut stream,
                    Wire::Exited(Exit {
                        code: None,
                        signal: Some(15),
                        oom: false,
                        at: 1,
                    }),
                );
                assert_eq!(line(&stream)["op"], "release");
            }),
        ],
    );
    agent.feed(Event::Ready);
    agent
        .apply(&Changes {
            set: documents(YAML),
            delete: Vec::new(),
        })
        .unwrap();
    until(&mut agent, &mut inputs, |a| {
        a.state.instances["a"].phase.as_str() == "backoff"
    })
    .await;
    let shown = agent.containers();
    assert_eq!(shown[0].reason.as_deref(), Some("profile: no such"));
    until(&mut agent, &mut inputs, |a| {
        a.state.instances["a"].phase.as_str() == "running"
    })
    .await;
    let (reply, mut answers) = mpsc::channel(8);
    agent.on_input(Input::Asked {
        op: Box::new(Op::Stop {
            names: vec!["a".into()],
            all: false,
        }),
        who: root(),
        role: Role::Admin,
        conn: 1,
        reply,
    });
    assert!(answers.try_recv().is_err(), "answered before it has stopped");
    until(&mut agent, &mut inputs, |a| {
        a.state.instances["a"].phase.as_str() == "stopped"
    })
    .await;
    let answer: Answer<Vec<Container>> = serde_json::from_slice(&answers.try_recv().unwrap()).unwrap();
    let Answer::Ok(containers) = answer else {
        panic!("refused")
    };
    assert_eq!(
        (containers[0].phase.as_str(), containers[0].exit.unwrap().signal),
        ("stopped", Some(15))
    );
    // Over a restart of the agent too.
    let kept = store::Desired::load(&agent.settings.folders.desired())
        .unwrap()
        .unwrap();
    assert!(kept.stopped.contains("a"));
    played.join().unwrap();
}
