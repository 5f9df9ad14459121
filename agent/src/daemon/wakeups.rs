//! How long a workload's threads wait for their CPU, from the scheduler's own account: `/proc/PID/task/TID/schedstat`
//! (CONFIG_SCHED_INFO), whose second and third numbers are the nanoseconds a thread was runnable and did not run, and
//! how often it was given the CPU.
//!
//! The kernel keeps sums, not single waits: what is counted is the mean of each thread's waits since the last look, as often
//! as there were waits. A single long wait among many short ones is seen in the sum alone; `berth latency` sees it itself.
//! Looked at when metrics are asked for, and only then. Nothing is counted where the kernel keeps no account, and that is
//! said by `berth_run_delay_source`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{IntGaugeVec, Opts, Registry};

use crate::core::State;

use super::metrics::register;

const NAME: &str = "berth_run_delay_seconds";
const HELP: &str = "Waits of a workload's runnable threads for their CPU: the mean of each thread's waits since the last \
                    scrape, as often as there were waits.";
/// Upper bounds of the buckets, nanoseconds.
const BOUNDS: [u64; 14] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    100_000_000,
];
/// Most threads that are looked at for one scrape: the agent has other work too.
const THREADS: usize = 8192;

/// One workload's waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tally {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum_ns: u64,
}

impl Tally {
    /// `times` waits that took `ns` together.
    fn add(&mut self, ns: u64, times: u64) {
        let Some(mean) = ns.checked_div(times) else { return };
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            if mean <= bound {
                *bucket += times;
            }
        }
        self.count += times;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }
}

/// A thread: its process's first thread, itself, and when the container began, so that a number used again is another.
type Thread = (i32, i32, u64);

#[derive(Debug, Default)]
struct Inner {
    tallies: BTreeMap<String, Tally>,
    /// Wait and times of each thread at the last look.
    seen: HashMap<Thread, (u64, u64)>,
}

/// The waits of every workload.
#[derive(Debug, Clone)]
pub(crate) struct Wakeups {
    inner: Arc<Mutex<Inner>>,
    desc: Desc,
    root: PathBuf,
    /// Does the kernel keep an account?
    kept: bool,
}

impl Wakeups {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Wakeups> {
        Wakeups::below(registry, Path::new("/proc"))
    }

    fn below(registry: &Registry, root: &Path) -> prometheus::Result<Wakeups> {
        let source = Opts::new(
            "berth_run_delay_source",
            "Where berth_run_delay_seconds is from: schedstat, or none where the kernel keeps no account.",
        );
        let source = register(registry, IntGaugeVec::new(source, &["source"]))?;
        let kept = account(&root.join("self/schedstat")).is_some();
        for (name, is) in [("schedstat", kept), ("none", !kept)] {
            source.with_label_values(&[name]).set(i64::from(is));
        }
        let labels = vec!["workload".to_owned(), "source".to_owned()];
        register(
            registry,
            Ok(Wakeups {
                inner: Arc::default(),
                desc: Desc::new(NAME.into(), HELP.into(), labels, Default::default())?,
                root: root.to_path_buf(),
                kept,
            }),
        )
    }

    /// Looks at every container that runs.
    pub(crate) fn look(&self, state: &State) {
        let running = state.instances.values().filter(|i| i.phase.is_live());
        let first = running.filter_map(|i| {
            let workload = i.workload.name.as_str();
            Some((workload, i.pid?, i.start_time.unwrap_or(0)))
        });
        self.look_at(first);
    }

    fn look_at<'a>(&self, containers: impl Iterator<Item = (&'a str, i32, u64)>) {
        if !self.kept {
            return;
        }
        let mut inner = self.lock();
        let mut before = std::mem::take(&mut inner.seen);
        let mut kept = BTreeMap::new();
        for (workload, first, begun) in containers {
            let mut tally = match kept.remove(workload) {
                Some(tally) => tally,
                None => inner.tallies.remove(workload).unwrap_or_default(),
            };
            let room = THREADS.saturating_sub(inner.seen.len());
            for (process, thread) in threads(&self.root, first, room) {
                let path = self.root.join(format!("{process}/task/{thread}/schedstat"));
                // It may have ended meanwhile.
                let Some((wait, times)) = account(&path) else {
                    continue;
                };
                let key = (process, thread, begun);
                let (old_wait, old_times) = before.remove(&key).unwrap_or_default();
                // Less than before is another thread of the same number.
                match (wait.checked_sub(old_wait), times.checked_sub(old_times)) {
                    (Some(wait), Some(times)) => tally.add(wait, times),
                    _ => tally.add(wait, times),
                }
                inner.seen.insert(key, (wait, times));
            }
            kept.insert(workload.to_owned(), tally);
        }
        // A workload without a container has no line.
        inner.tallies = kept;
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
            .map(|(workload, tally)| {
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
                let mut metric =
                    Metric::from_label(vec![label("source", "schedstat"), label("workload", workload)]);
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
        let wakeups = Wakeups::below(&registry, root.path()).unwrap();
        (root, registry, wakeups)
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
        wakeups.look_at([("web", 10, 7)].into_iter());
        let first = text(&registry);
        for line in [
            "berth_run_delay_source{source=\"schedstat\"} 1",
            "berth_run_delay_source{source=\"none\"} 0",
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
        wakeups.look_at([("web", 10, 7)].into_iter());
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
    fn a_kernel_without_an_account_is_said() {
        let (root, registry, wakeups) = made(false);
        fs::create_dir_all(root.path().join("10/task/10")).unwrap();
        wakeups.look_at([("web", 10, 7)].into_iter());
        let text = text(&registry);
        assert!(
            text.contains("berth_run_delay_source{source=\"none\"} 1"),
            "{text}"
        );
        assert!(!text.contains("berth_run_delay_seconds_count"), "{text}");
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
