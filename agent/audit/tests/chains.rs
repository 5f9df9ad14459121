//! Chains: what `verify` finds, what rotation keeps, what power cuts leave, many writers.

#![allow(clippy::unwrap_used)] // tests

use std::fs;
use std::path::Path;

use berth_audit::{Chain, Entry, Limits, Sink, records, seals, verify};
use proptest::prelude::*;

fn chain(folder: &Path) -> Chain {
    Chain::open(folder, Limits::default(), Sink::none()).unwrap()
}

fn filled(folder: &Path, n: u64) -> Chain {
    let chain = chain(folder);
    for i in 1..=n {
        chain
            .append(Entry::new("test", &format!("s{i}"), "text"))
            .unwrap();
    }
    chain
}

fn lines(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("current.log")).unwrap();
    text.lines().map(|l| format!("{l}\n")).collect()
}

fn faults(folder: &Path) -> Vec<(&'static str, u64)> {
    let found = verify(folder, &[]).unwrap();
    found.faults.iter().map(|f| (f.fault, f.seq)).collect()
}

#[test]
fn a_whole_chain_has_no_fault() {
    let temp = tempfile::tempdir().unwrap();
    filled(temp.path(), 20);
    let found = verify(temp.path(), &[]).unwrap();
    assert_eq!((found.records, found.first, found.last), (20, 1, 20));
    assert!(found.faults.is_empty(), "{found:?}");
    assert!(verify(&temp.path().join("none"), &[]).unwrap().faults.is_empty());
}

#[test]
fn each_kind_of_hand_is_found_with_the_record() {
    let temp = tempfile::tempdir().unwrap();
    filled(temp.path(), 9);
    let good = lines(temp.path());
    let with = |lines: Vec<String>| {
        fs::write(temp.path().join("current.log"), lines.concat()).unwrap();
        faults(temp.path())
    };
    // A change of one letter.
    let mut changed = good.clone();
    changed[3] = changed[3].replace("s4", "s5");
    assert_eq!(with(changed), [("changed", 4)]);
    // A change whose own hash was made anew, but not the rest of the chain.
    let forged = tempfile::tempdir().unwrap();
    let other = chain(forged.path());
    for i in 1..=4 {
        other
            .append(Entry::new("test", &format!("other{i}"), "text"))
            .unwrap();
    }
    let mut one = good.clone();
    one[3].clone_from(&lines(forged.path())[3]);
    assert_eq!(with(one).first(), Some(&("changed", 4)));
    // One taken out, two swapped, one twice, the first ones away.
    let mut out = good.clone();
    out.remove(4);
    assert_eq!(with(out), [("missing", 5)]);
    let mut swapped = good.clone();
    swapped.swap(2, 3);
    assert!(with(swapped).contains(&("order", 3)));
    let mut twice = good.clone();
    twice.insert(5, good[4].clone());
    assert!(with(twice).contains(&("order", 5)));
    assert_eq!(with(good[2..].to_vec()), [("missing", 1)]);
    // A cut at the end: by whole records, in the middle of one, all of it.
    assert_eq!(with(good[..7].to_vec()), [("cut", 8)]);
    let mut torn = good.clone();
    torn[8].truncate(30);
    assert!(with(torn).contains(&("changed", 9)));
    assert_eq!(with(Vec::new()), [("cut", 1)]);
    assert!(with(good).is_empty());
    // The head gone, or that of another time.
    fs::write(temp.path().join("head"), "").unwrap();
    assert_eq!(faults(temp.path()), [("head", 9)]);
}

#[test]
fn a_cut_with_its_head_is_found_by_the_seal_in_the_other_chain() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b) = (temp.path().join("agent"), temp.path().join("launcher"));
    let agent = filled(&a, 5);
    let early = (
        fs::read(a.join("current.log")).unwrap(),
        fs::read(a.join("head")).unwrap(),
    );
    agent.append(Entry::new("test", "evil", "done")).unwrap();
    let launcher = chain(&b);
    launcher
        .append(Entry::seal("agent", &agent.head().unwrap()))
        .unwrap();
    let held = seals(&b).unwrap();
    let found = verify(&a, &held).unwrap();
    assert_eq!((found.seals, found.faults.len()), (1, 0));
    fs::write(a.join("current.log"), early.0).unwrap();
    fs::write(a.join("head"), early.1).unwrap();
    assert!(
        verify(&a, &[]).unwrap().faults.is_empty(),
        "by itself it looks whole"
    );
    let found = verify(&a, &held).unwrap();
    assert_eq!(found.faults[0].fault, "seal");
    // Written on by somebody who has something to hide: another record with that number.
    agent.append(Entry::new("test", "harmless", "done")).unwrap();
    assert_eq!(verify(&a, &held).unwrap().faults[0].fault, "seal");
}

#[test]
fn rotation_keeps_the_chain_and_the_bound() {
    let temp = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 64 << 10 };
    let chain = Chain::open(temp.path(), limits, Sink::none()).unwrap();
    for i in 0..1000 {
        chain
            .append(Entry::new("test", &format!("s{i}"), "x".repeat(200)))
            .unwrap();
    }
    let found = verify(temp.path(), &[]).unwrap();
    assert!(found.faults.is_empty(), "{found:?}");
    assert!(found.first > 1 && found.last == 1000);
    let bytes: u64 = fs::read_dir(temp.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes < (64 << 10) + 4096, "{bytes}");
    // A whole file in the middle taken away.
    let mut old: Vec<_> = fs::read_dir(temp.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    old.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with('0'));
    old.sort();
    fs::remove_file(&old[2]).unwrap();
    assert_eq!(faults(temp.path())[0].0, "missing");
}

#[test]
fn what_a_power_cut_tore_is_cut_off_and_told() {
    let temp = tempfile::tempdir().unwrap();
    let chain = filled(temp.path(), 6);
    let good = lines(temp.path());
    // The head reached the disk, the last two records did not, and half of one did.
    fs::write(
        temp.path().join("current.log"),
        [good[..4].concat(), good[4][..40].to_owned()].concat(),
    )
    .unwrap();
    chain.append(Entry::new("test", "next", "text")).unwrap();
    let found = verify(temp.path(), &[]).unwrap();
    assert_eq!(
        found.faults.iter().map(|f| (f.fault, f.seq)).collect::<Vec<_>>(),
        [("gap", 5)]
    );
    assert!(found.faults[0].text.contains("2 records after 4"), "{found:?}");
    assert_eq!(found.last, 6);
    // The records reached the disk, the head did not: nothing is lost, and nothing is told.
    let head = fs::read(temp.path().join("head")).unwrap();
    chain.append(Entry::new("test", "late", "text")).unwrap();
    fs::write(temp.path().join("head"), head).unwrap();
    chain.append(Entry::new("test", "later", "text")).unwrap();
    assert_eq!(faults(temp.path()), [("gap", 5)]);
    // Neither head nor a whole record.
    fs::write(temp.path().join("head"), "").unwrap();
    fs::write(temp.path().join("current.log"), "\0\0\0\0\0").unwrap();
    chain.append(Entry::new("test", "after", "text")).unwrap();
    assert_eq!(records(temp.path()).unwrap().count(), 2);
    assert_eq!(faults(temp.path()), [("gap", 1)]);
}

#[test]
fn many_writers_make_one_chain() {
    let temp = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for w in 0..4 {
            let folder = temp.path();
            scope.spawn(move || {
                let chain = chain(folder);
                for i in 0..50 {
                    chain
                        .append(Entry::new("test", &format!("{w}.{i}"), "text"))
                        .unwrap();
                }
            });
        }
    });
    let found = verify(temp.path(), &[]).unwrap();
    assert_eq!((found.records, found.faults.len()), (200, 0));
}

#[test]
fn a_link_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("chain");
    let chain = chain(&folder);
    fs::write(temp.path().join("victim"), "").unwrap();
    std::os::unix::fs::symlink("../victim", folder.join("current.log")).unwrap();
    assert!(chain.append(Entry::new("x", "y", "z")).is_err());
    assert_eq!(fs::read(temp.path().join("victim")).unwrap(), b"");
}

proptest! {
    #[test]
    fn any_text_is_kept_and_any_flipped_bit_is_found(
        texts in proptest::collection::vec("\\PC{0,40}|[\\x00-\\x1f]{0,8}", 1..8), at in any::<prop::sample::Index>(), bit in 0u8..8
    ) {
        let temp = tempfile::tempdir().unwrap();
        let chain = chain(temp.path());
        for text in &texts {
            chain.append(Entry::new(text, text, text.clone())).unwrap();
        }
        prop_assert!(faults(temp.path()).is_empty());
        let path = temp.path().join("current.log");
        let mut bytes = fs::read(&path).unwrap();
        prop_assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), texts.len());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        prop_assert!(!faults(temp.path()).is_empty());
    }
}
