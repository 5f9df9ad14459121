//! Guests side by side. A lane takes the next guest's tests and runs them in order; the harness waits for what each says. A
//! guest alone leaves much of two cores idle: it waits for its own sleeps, and half of its boot is one virtual CPU.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use libtest_mimic::{Arguments, Failed};

/// Mebibytes of memory that one lane takes: a guest, QEMU, and what builds its image.
const MEMORY: u64 = 2304;

/// What is run in a lane: a test's name, the test, and where its answer goes.
type Planned = (String, Body, Sender<Result<(), Failed>>);
type Body = Box<dyn FnOnce() -> Result<(), Failed> + Send>;

/// A test, to be run in the lane of its guest.
pub(crate) struct Trial {
    name: String,
    body: Body,
}

impl Trial {
    pub(crate) fn test(
        name: impl Into<String>,
        body: impl FnOnce() -> Result<(), Failed> + Send + 'static,
    ) -> Trial {
        Trial {
            name: name.into(),
            body: Box::new(body),
        }
    }
}

/// How many guests at once: `BERTH_LANES`, else two where cores and memory suffice.
pub(crate) fn lanes(memory: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fit = usize::try_from(memory / MEMORY).unwrap_or(1);
    let asked = std::env::var("BERTH_LANES").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(fit.min(cores).min(2)).max(1)
}

/// Is this test run? As the harness decides.
fn wanted(arguments: &Arguments, name: &str) -> bool {
    let fits = |word: &String| {
        if arguments.exact {
            name == word
        } else {
            name.contains(word.as_str())
        }
    };
    arguments.filter.as_ref().is_none_or(&fits) && !arguments.skip.iter().any(fits)
}

/// The harness's tests of these suites; those that are run are begun at once, `lanes` suites at a time.
pub(crate) fn begin(
    arguments: &Arguments,
    suites: Vec<Vec<Trial>>,
    lanes: usize,
) -> Vec<libtest_mimic::Trial> {
    let mut queue = VecDeque::new();
    let mut trials = Vec::new();
    for suite in suites {
        let mut planned = Vec::new();
        for test in suite {
            let (said, answer) = channel();
            if !arguments.list && wanted(arguments, &test.name) {
                planned.push((test.name.clone(), test.body, said));
            }
            trials.push(libtest_mimic::Trial::test(test.name, move || {
                answer
                    .recv()
                    .unwrap_or_else(|_| Err("its lane ended before it".into()))
            }));
        }
        if !planned.is_empty() {
            queue.push_back(planned);
        }
    }
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..lanes.min(queue.lock().map_or(0, |queue| queue.len())) {
        let queue = queue.clone();
        std::thread::spawn(move || {
            while let Some(suite) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                run(suite);
            }
        });
    }
    trials
}

/// One guest's tests, in order; how long each took is printed when the last has ended.
fn run(suite: Vec<Planned>) {
    let begun = Instant::now();
    let mut table = String::new();
    let mut all = String::new();
    for (name, body, said) in suite {
        let one = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err("it panicked".into()));
        let (suite, test) = name.split_once("::").unwrap_or(("", &name));
        suite.clone_into(&mut all);
        table += &format!("  {:5.0} s  {test}\n", one.elapsed().as_secs_f64());
        // Nobody waits any more where the run was broken off.
        let _ = said.send(done);
    }
    println!("{all}: {:.0} s\n{table}", begun.elapsed().as_secs_f64());
}
