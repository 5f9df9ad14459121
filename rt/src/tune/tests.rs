//! On a folder that stands for `/`: what the journal promises, without a kernel. The kernel's own files are tuned in guests.

use std::fs;
use std::path::Path;

use super::*;

const FILES: [(&str, &str); 4] = [
    ("/proc/sys/vm/swappiness", "60"),
    ("/proc/sys/vm/stat_interval", "1"),
    (
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "always [madvise] never",
    ),
    ("/proc/sys/kernel/random/boot_id", "boot-1"),
];

fn machine(root: &Path) -> Machine {
    for (path, text) in FILES {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    Machine::new(root)
}

fn change(knob: &str, path: &str, value: &str) -> Change {
    let target = Target::File { path: path.into() };
    Change {
        knob: knob.into(),
        target: target.clone(),
        value: value.into(),
        restore: vec![(target, String::new())],
    }
}

fn changes() -> Vec<Change> {
    vec![
        change("swappiness", FILES[0].0, "10"),
        change("stat-interval", FILES[1].0, "10"),
    ]
}

fn values(machine: &Machine) -> Vec<String> {
    FILES[..2]
        .iter()
        .map(|(path, _)| machine.read(path).unwrap())
        .collect()
}

#[test]
fn tuned_and_put_back() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("run/journal"));
    let applied = apply(&machine, &journal, &changes()).unwrap();
    assert_eq!(applied.made.len(), 2);
    assert_eq!(values(&machine), ["10", "10"]);
    // A second run on top of it; undo goes back to the first value.
    apply(&machine, &journal, &[change("swappiness", FILES[0].0, "20")]).unwrap();
    assert_eq!(Journal::status(&journal, "boot-1"), Some((3, false)));
    let undone = undo(&machine, &journal).unwrap();
    assert_eq!((undone.put_back, undone.untouched), (3, 0));
    assert_eq!(values(&machine), ["60", "1"]);
    assert!(!journal.exists());
    assert_eq!(undo(&machine, &journal).unwrap(), Undone::default());
}

#[test]
fn a_failing_write_puts_everything_of_its_run_back() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("journal"));
    apply(&machine, &journal, &[change("swappiness", FILES[0].0, "30")]).unwrap();
    // A folder cannot be written; a plain file takes any word, so what is read back is not what was selected.
    fs::create_dir_all(root.path().join("proc/sys/vm/folder")).unwrap();
    let mut all = changes();
    let mut bad = change("dirty-ratio", "/proc/sys/vm/folder", "10");
    bad.restore = vec![(
        Target::File {
            path: "/other".into(),
        },
        "1".into(),
    )];
    all.push(bad);
    let error = apply(&machine, &journal, &all).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/proc/sys/vm/folder: cannot be set to `10`"),
        "{text}"
    );
    assert!(text.contains("put back"), "{text}");
    assert!(
        error.hint().unwrap().contains("spec.memory.dirtyRatio"),
        "{:?}",
        error.hint()
    );
    // What the run before had done stays done.
    assert_eq!(values(&machine), ["30", "1"]);
    undo(&machine, &journal).unwrap();
    assert_eq!(values(&machine), ["60", "1"]);
}

#[test]
fn killed_between_any_two_steps() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("journal"));
    apply(&machine, &journal, &changes()).unwrap();
    let whole = fs::read(&journal).unwrap();
    undo(&machine, &journal).unwrap();
    // Cut at and around each end of a line and within lines, with as many writes done as lines are whole, or one less: the
    // kill was before the write.
    let ends = whole
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at);
    let cuts: Vec<usize> = ends
        .flat_map(|end| [end.saturating_sub(30), end - 1, end, end + 1, end + 2])
        .collect();
    for cut in cuts.into_iter().filter(|cut| *cut < whole.len()) {
        let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
        let told = lines.saturating_sub(2).min(2);
        for done in [told.saturating_sub(1), told] {
            for (path, text) in &FILES[..2] {
                fs::write(
                    root.path().join(path.trim_start_matches('/')),
                    format!("{text}\n"),
                )
                .unwrap();
            }
            for change in changes().iter().take(done) {
                write(&machine, &change.target, &change.value).unwrap();
            }
            fs::write(&journal, &whole[..cut]).unwrap();
            if cut % 2 == 0 {
                undo(&machine, &journal).unwrap();
                assert!(!journal.exists());
            } else {
                // The next tune puts it back first, and then does its own.
                apply(
                    &machine,
                    &journal,
                    &[change("transparent-hugepages", FILES[2].0, "never")],
                )
                .unwrap();
            }
            assert_eq!(
                values(&machine),
                ["60", "1"],
                "cut at {cut} with {done} writes done"
            );
            undo(&machine, &journal).unwrap();
        }
    }
}

#[test]
fn what_was_interrupted_is_settled_and_what_was_finished_stays() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("journal"));
    assert_eq!(settle(&machine, &journal).unwrap(), 0);
    apply(&machine, &journal, &changes()).unwrap();
    assert_eq!(settle(&machine, &journal).unwrap(), 0);
    assert_eq!(values(&machine), ["10", "10"]);
    // Its last line, `done`, was never written.
    let whole = fs::read_to_string(&journal).unwrap();
    let (begun, _) = whole.trim_end().rsplit_once('\n').unwrap();
    fs::write(&journal, format!("{begun}\n")).unwrap();
    assert_eq!(settle(&machine, &journal).unwrap(), 2);
    assert_eq!(values(&machine), ["60", "1"]);
    assert!(!journal.exists());
}

#[test]
fn a_journal_of_another_boot_is_thrown_away() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("journal"));
    apply(&machine, &journal, &changes()).unwrap();
    fs::write(root.path().join("proc/sys/kernel/random/boot_id"), "boot-2\n").unwrap();
    assert_eq!(Journal::status(&journal, "boot-2"), None);
    let undone = undo(&machine, &journal).unwrap();
    assert!(undone.other_boot && undone.put_back == 0 && !journal.exists());
    assert_eq!(values(&machine), ["10", "10"]);
}

#[test]
fn what_is_no_journal_is_left_alone_and_two_do_not_tune_at_once() {
    let root = tempfile::tempdir().unwrap();
    let (machine, journal) = (machine(root.path()), root.path().join("journal"));
    for text in [
        "something else\n",
        "{\"header\":{\"version\":2,\"bootId\":\"boot-1\"}}\n",
        "\"begin\"\n",
    ] {
        fs::write(&journal, text).unwrap();
        let error = undo(&machine, &journal).unwrap_err();
        assert!(error.to_string().contains("journal:1: "), "{error}");
        assert_eq!(fs::read_to_string(&journal).unwrap(), text);
    }
    fs::remove_file(&journal).unwrap();
    apply(&machine, &journal, &changes()).unwrap();
    let held = Journal::open(&journal, "boot-1").unwrap();
    assert!(matches!(
        apply(&machine, &journal, &changes()),
        Err(TuneError::Journal(JournalError::Busy { .. }))
    ));
    drop(held);
    undo(&machine, &journal).unwrap();
}

#[test]
fn the_next_thread_of_a_number_is_not_touched() {
    let machine = Machine::new(Path::new("/"));
    let own = std::process::id().cast_signed();
    let target = Target::Affinity {
        pid: own,
        start: 1,
        name: "another".into(),
    };
    assert_eq!(current(&machine, &target), None);
    let error = write(&machine, &target, "0").unwrap_err();
    assert!(gone(&error, &target), "{error}");
}

#[test]
fn values_agree_by_their_meaning() {
    for (actual, value, same) in [
        ("f", "0000000f", true),
        ("0-3", "0,1,2,3", true),
        ("60", "10", false),
        (
            r#"{"policy":"fifo","priority":11}"#,
            r#"{"priority":11,"policy":"fifo"}"#,
            true,
        ),
        (
            r#"{"policy":"fifo","priority":10}"#,
            r#"{"policy":"fifo","priority":11}"#,
            false,
        ),
        ("n/a", "n/a", true),
        ("-1", "-1", true),
    ] {
        assert_eq!(agrees(actual, value), same, "{actual} {value}");
    }
}
