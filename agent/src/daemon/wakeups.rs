//! How long a workload's threads wait for their CPU.
//!
//! `schedstat`: the scheduler's own account, `/proc/PID/task/TID/schedstat` (CONFIG_SCHED_INFO), whose second and third numbers
//! are the nanoseconds a thread was runnable and did not run, and how often it was given the CPU. The kernel keeps sums, not
//! single waits: what is counted is the mean of each thread's waits since the last look, as often as there were waits. A
//! single long wait among many short ones is seen in the sum alone; `berth latency` sees it itself.
//!
//! `probe`: where the kernel keeps no account, or the document says so, what a probe beside the container counted
//! ([`berth_launcher::Wakeups`]): single wake-ups, ten a second, of the first thread behind the workload's own.
//!
//! Looked at when metrics are asked for, and only then. Which of the two it is stands at each line, and `berth inspect` says
//! why there is none.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_documents::Wakeups as Wanted;
use berth_launcher as launcher;
use berth_rt::latency::tally::{BOUNDS, Tally};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{IntGaugeVec, Opts, Registry};

use crate::core::State;

use super::metrics::register;

const NAME: &str = "berth_run_delay_seconds";
const HELP: &str = "Waits of a workload for its CPU. source=schedstat: of its runnable threads, the mean of each thread's waits \
                    since the last scrape, as often as there were waits. source=probe: single wake-ups of a thread of berth's \
                    beside it, one priority below.";
/// Most threads that are looked at for one scrape: the agent has other work too.
const THREADS: usize = 8192;

/// Where a line is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Schedstat,
    Probe,
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Source::Schedstat => "schedstat",
            Source::Probe => "probe",
        }
    }
}

/// One container.
struct Looked<'a> {
    workload: &'a str,
    id: &'a str,
    pid: i32,
    begun: u64,
}

/// A thread: its process's first thread, itself, and when the container began, so that a number used again is another.
type Thread = (i32, i32, u64);

#[derive(Debug, Default)]
struct Inner {
    tallies: BTreeMap<(String, Source), Tally>,
    /// Wait and times of each thread at the last look.
    seen: HashMap<Thread, (u64, u64)>,
    /// What the probe of each container had counted at the last look.
    probes: HashMap<String, Tally>,
}

/// The waits of every workload.
#[derive(Debug, Clone)]
pub(crate) struct Wakeups {
    inner: Arc<Mutex<Inner>>,
    desc: Desc,
    /// /proc.
    root: PathBuf,
    /// Where monitors write what their probes counted.
    run: PathBuf,
    /// Does the kernel keep an account?
    kept: bool,
}

/// Does the kernel keep an account of each thread's waits?
pub(super) fn kept(root: &Path) -> bool {
    account(&root.join("self/schedstat")).is_some()
}

/// Where the waits of a container are counted, in words; `None` before it runs.
pub(super) fn source(run: &Path, schedstat: bool, id: &str, wanted: Wanted, runs: bool) -> Option<String> {
    if !runs {
        return None;
    }
    let told = launcher::Wakeups::read(run, id);
    Some(match told {
        Some(launcher::Wakeups {
            failed: Some(why), ..
        }) => format!("none: {why}"),
        Some(probe) => format!("probe, {}", probe.scheduler),
        None if wanted == Wanted::Probe => "none: its probe is not there".into(),
        None if schedstat => "schedstat".into(),
        None => "none: the kernel keeps no account (CONFIG_SCHED_INFO)".into(),
    })
}

impl Wakeups {
    pub(super) fn new(registry: &Registry, run: &Path) -> prometheus::Result<Wakeups> {
        Wakeups::below(registry, Path::new("/proc"), run)
    }

    fn below(registry: &Registry, root: &Path, run: &Path) -> prometheus::Result<Wakeups> {
        let source = Opts::new(
            "berth_run_delay_source",
            "Where berth_run_delay_seconds is from unless a document says otherwise: schedstat, or a probe where the kernel \
             keeps no account.",
        );
        let source = register(registry, IntGaugeVec::new(source, &["source"]))?;
        let kept = kept(root);
        for (name, is) in [(Source::Schedstat, kept), (Source::Probe, !kept)] {
            source.with_label_values(&[name.as_str()]).set(i64::from(is));
        }
        let labels = vec!["workload".to_owned(), "source".to_owned()];
        register(
            registry,
            Ok(Wakeups {
                inner: Arc::default(),
                desc: Desc::new(NAME.into(), HELP.into(), labels, Default::default())?,
                root: root.to_path_buf(),
                run: run.to_path_buf(),
                kept,
            }),
        )
    }

    /// Looks at every container that runs.
    pub(crate) fn look(&self, state: &State) {
        let running = state.instances.values().filter(|i| i.phase.is_live());
        let first = running.filter_map(|i| {
            Some(Looked {
                workload: i.workload.name.as_str(),
                id: &i.id,
                pid: i.pid?,
                begun: i.start_time.unwrap_or(0),
            })
        });
        self.look_at(first);
    }

    fn look_at<'a>(&self, containers: impl Iterator<Item = Looked<'a>>) {
        let mut inner = self.lock();
        let mut before = std::mem::take(&mut inner.seen);
        let mut counted = std::mem::take(&mut inner.probes);
        let mut kept = BTreeMap::new();
        for of in containers {
            let probe = launcher::Wakeups::read(&self.run, of.id);
            let source = match &probe {
                Some(_) => Source::Probe,
                None if self.kept => Source::Schedstat,
                None => continue,
            };
            let key = (of.workload.to_owned(), source);
            let mut tally = match kept.remove(&key) {
                Some(tally) => tally,
                None => inner.tallies.remove(&key).unwrap_or_default(),
            };
            match probe {
                Some(probe) => {
                    let old = counted.remove(of.id).unwrap_or_default();
                    tally.merge(&probe.tally.since(&old));
                    inner.probes.insert(of.id.to_owned(), probe.tally);
                }
                None => self.account(&of, &mut before, &mut inner, &mut tally),
            }
            kept.insert(key, tally);
        }
        // A workload without a container has no line.
        inner.tallies = kept;
    }

    /// The waits of a container's threads since the last look.
    fn account(
        &self,
        of: &Looked<'_>,
        before: &mut HashMap<Thread, (u64, u64)>,
        inner: &mut Inner,
        tally: &mut Tally,
    ) {
        let room = THREADS.saturating_sub(inner.seen.len());
        for (process, thread) in threads(&self.root, of.pid, room) {
            let path = self.root.join(format!("{process}/task/{thread}/schedstat"));
            // It may have ended meanwhile.
            let Some((wait, times)) = account(&path) else {
                continue;
            };
            let key = (process, thread, of.begun);
            let (old_wait, old_times) = before.remove(&key).unwrap_or_default();
            // Less than before is another thread of the same number.
            match (wait.checked_sub(old_wait), times.checked_sub(old_times)) {
                (Some(wait), Some(times)) => tally.add(wait, times),
                _ => tally.add(wait, times),
            }
            inner.seen.insert(key, (wait, times));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Numbers only: what a panic left half counted is still numbers.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Wakeups {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let label = |name: &str, value: &str| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let metrics: Vec<Metric> = self
            .lock()
            .tallies
            .iter()
            .map(|((workload, source), tally)| {
                let buckets = tally.buckets.iter().zip(BOUNDS).map(|(count, bound)| {
                    let mut bucket = Bucket::default();
                    bucket.set_cumulative_count(*count);
                    bucket.set_upper_bound(bound as f64 / 1e9);
                    bucket
                });
                let mut histogram = Histogram::default();
                histogram.set_bucket(buckets.collect());
                histogram.set_sample_count(tally.count);
                histogram.set_sample_sum(tally.sum_ns as f64 / 1e9);
                let mut metric = Metric::from_label(vec![
                    label("source", source.as_str()),
                    label("workload", workload),
                ]);
                metric.set_histogram(histogram);
                metric
            })
            .collect();
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(NAME.into());
        family.set_help(HELP.into());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(metrics);
        vec![family]
    }
}

/// Wait in nanoseconds and times of one thread.
fn account(path: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let (_, wait, times) = (
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
    );
    Some((wait, times))
}

/// Process and thread of all threads of `first` and its descendants (those of `first` alone on a kernel without
/// CONFIG_PROC_CHILDREN), at most `most`.
fn threads(root: &Path, first: i32, most: usize) -> Vec<(i32, i32)> {
    let mut found = Vec::new();
    let mut processes = vec![first];
    while let Some(process) = processes.pop() {
        let tasks = root.join(process.to_string()).join("task");
        let Ok(entries) = fs::read_dir(&tasks) else {
            continue;
        };
        for thread in entries.flatten() {
            let Some(number) = thread.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            if found.len() == most {
                return found;
            }
            found.push((process, number));
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            processes.extend(children.split_whitespace().filter_map(|n| n.parse::<i32>().ok()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(root: &Path, process: i32, thread: i32, schedstat: &str, children: &str) {
        let dir = root.join(format!("{process}/task/{thread}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("schedstat"), schedstat).unwrap();
        fs::write(dir.join("children"), children).unwrap();
    }

    fn made(kept: bool) -> (tempfile::TempDir, Registry, Wakeups) {
        let root = tempfile::tempdir().unwrap();
        if kept {
            fs::create_dir(root.path().join("self")).unwrap();
            fs::write(root.path().join("self/schedstat"), "1 2 3\n").unwrap();
        }
        let registry = Registry::new();
        let wakeups = Wakeups::below(&registry, root.path(), &root.path().join("run")).unwrap();
        (root, registry, wakeups)
    }

    fn web() -> std::vec::IntoIter<Looked<'static>> {
        let web = Looked {
            workload: "web",
            id: "web-1",
            pid: 10,
            begun: 7,
        };
        vec![web].into_iter()
    }

    fn probed(root: &Path, count: u64, failed: Option<&str>) {
        let mut tally = Tally::default();
        tally.add(3_000 * count, count);
        let told = launcher::Wakeups {
            version: 1,
            scheduler: berth_rt::sched::Scheduler::Fifo { priority: 49 },
            failed: failed.map(str::to_owned),
            tally,
        };
        let path = launcher::Wakeups::path(&root.join("run"), "web-1");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, serde_json::to_vec(&told).unwrap()).unwrap();
    }

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn waits_are_counted_once_for_all_threads_of_all_processes() {
        let (root, registry, wakeups) = made(true);
        thread(root.path(), 10, 10, "900 30000 10\n", "20 ");
        thread(root.path(), 10, 11, "900 4000000 2\n", "");
        thread(root.path(), 20, 20, "900 1000 1\n", "");
        wakeups.look_at(web());
        let first = text(&registry);
        for line in [
            "berth_run_delay_source{source=\"schedstat\"} 1",
            "berth_run_delay_source{source=\"probe\"} 0",
            "berth_run_delay_seconds_bucket{source=\"schedstat\",workload=\"web\",le=\"0.000001\"} 1",
            "berth_run_delay_seconds_bucket{source=\"schedstat\",workload=\"web\",le=\"0.000005\"} 11",
            "berth_run_delay_seconds_bucket{source=\"schedstat\",workload=\"web\",le=\"0.002\"} 13",
            "berth_run_delay_seconds_bucket{source=\"schedstat\",workload=\"web\",le=\"+Inf\"} 13",
            "berth_run_delay_seconds_count{source=\"schedstat\",workload=\"web\"} 13",
        ] {
            assert!(first.lines().any(|l| l == line), "{line}\n{first}");
        }
        // Only what is new; a thread that ended takes nothing away, a number used again counts from its own start.
        fs::remove_dir_all(root.path().join("10/task/11")).unwrap();
        thread(root.path(), 10, 10, "900 30500 11\n", "20 ");
        thread(root.path(), 20, 20, "900 800 1\n", "");
        wakeups.look_at(web());
        let second = text(&registry);
        assert!(
            second.contains("berth_run_delay_seconds_count{source=\"schedstat\",workload=\"web\"} 15"),
            "{second}"
        );
        wakeups.look_at(std::iter::empty());
        assert!(
            !text(&registry).contains("berth_run_delay_seconds_count"),
            "{}",
            text(&registry)
        );
    }

    #[test]
    fn without_an_account_a_probe_is_counted_and_named() {
        let (root, registry, wakeups) = made(false);
        thread(root.path(), 10, 10, "", "");
        wakeups.look_at(web());
        let none = text(&registry);
        assert!(
            none.contains("berth_run_delay_source{source=\"probe\"} 1"),
            "{none}"
        );
        assert!(!none.contains("berth_run_delay_seconds_count"), "{none}");
        let run = root.path().join("run");
        let told = |wanted, runs| source(&run, false, "web-1", wanted, runs);
        assert_eq!(
            told(Wanted::Auto, true).as_deref(),
            Some("none: the kernel keeps no account (CONFIG_SCHED_INFO)")
        );
        probed(root.path(), 4, None);
        wakeups.look_at(web());
        probed(root.path(), 9, None);
        wakeups.look_at(web());
        let nine = text(&registry);
        for line in [
            "berth_run_delay_seconds_bucket{source=\"probe\",workload=\"web\",le=\"0.000002\"} 0",
            "berth_run_delay_seconds_bucket{source=\"probe\",workload=\"web\",le=\"0.000005\"} 9",
            "berth_run_delay_seconds_count{source=\"probe\",workload=\"web\"} 9",
        ] {
            assert!(nine.lines().any(|l| l == line), "{line}\n{nine}");
        }
        assert_eq!(told(Wanted::Auto, true).as_deref(), Some("probe, SCHED_FIFO 49"));
        assert_eq!(told(Wanted::Auto, false), None);
        // The next container of the workload begins at nothing; what was counted stays.
        probed(root.path(), 2, Some("sched_setattr(2): Operation not permitted"));
        wakeups.look_at(web());
        assert!(
            text(&registry).contains("workload=\"web\"} 11"),
            "{}",
            text(&registry)
        );
        assert_eq!(
            told(Wanted::Auto, true).as_deref(),
            Some("none: sched_setattr(2): Operation not permitted")
        );
    }

    #[test]
    fn a_probe_that_was_asked_for_is_all_that_is_counted() {
        let (root, registry, wakeups) = made(true);
        thread(root.path(), 10, 10, "900 30000 10\n", "");
        probed(root.path(), 1, None);
        wakeups.look_at(web());
        let text = text(&registry);
        assert!(
            text.contains("berth_run_delay_source{source=\"schedstat\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("_count{source=\"probe\",workload=\"web\"} 1")
                && !text.contains("_count{source=\"schedstat\""),
            "{text}"
        );
        let run = root.path().join("run");
        let gone = source(&run, true, "web-2", Wanted::Probe, true);
        assert_eq!(gone.as_deref(), Some("none: its probe is not there"));
        assert_eq!(
            source(&run, true, "web-2", Wanted::Auto, true).as_deref(),
            Some("schedstat")
        );
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        (1..=9).for_each(|n| thread(root.path(), 5, n, "0 0 0", ""));
        assert_eq!(threads(root.path(), 5, 100).len(), 9);
        assert_eq!(threads(root.path(), 5, 4).len(), 4);
        assert!(threads(root.path(), 6, 4).is_empty());
    }
}
