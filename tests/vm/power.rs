//! Power cuts: the smallest guest, its state on a disk of its own, loads and removes images, applies documents and
//! launches what they name until QEMU is killed at a random moment; then it is booted again with the same disk.
//!
//! What the guest says on its console (`TRY`, then `ACK`) is on the host before the command after it begins, so the
//! host knows what was promised when the power went. After each boot: every image verifies, an image that was loaded is
//! there and one that was removed is not, the documents are those of the last apply that was answered or of the one
//! under way, and each workload was started once. What QEMU was given before it died is on the disk: the cut loses the
//! guest's memory, its dirty pages among it, not a disk's own cache.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::vm::{Config, Shape, Vm, broken_by_the_emulator, make_disk, out};
use libtest_mimic::Failed;

use crate::boots::{BASE, BROKEN, LOG, Spec};
use crate::devices::LIMIT;
use crate::lanes::Trial;

/// The kernel that boots fastest, one CPU, nothing plugged, no udevd.
pub(crate) const POWER: Spec = Spec {
    name: "power",
    kernel: "linux-image-6.12-cloud-amd64",
    append: "rig.udevd=off",
    shape: Shape::Small,
    ..BASE
};

/// Cuts of one run; `BERTH_ROUNDS` multiplies them.
const CUTS: u32 = 20;
/// Guests at once, each with a disk of its own: they have one CPU each.
const LANES: u32 = 2;
/// Commands that are answered before the cut: fewer than this. A loaded machine takes longer, and cuts no earlier.
const ANSWERS: u64 = 6;
/// And from then to the cut, in milliseconds: less than this.
const LONGEST: u64 = 1000;

const DOCUMENTS: &str = r#"apiVersion: berth/v1
kind: Workload
metadata: {name: one}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "echo start $SEQ $(cat /proc/sys/kernel/random/boot_id); sleep 100000"]
  env: [{name: SEQ, value: "@SEQ@"}]
  profile: system
  cpus: shared
---
apiVersion: berth/v1
kind: Workload
metadata: {name: two}
spec:
  image: berth-sample-busybox:latest
  command: ["/bin/sh", "-c", "echo start 0 $(cat /proc/sys/kernel/random/boot_id); sleep 100000"]
  profile: system
  cpus: shared
"#;

/// Works until the power goes, from the sequence number $1 on.
const WORK: &str = r#"#!/bin/sh
say() { echo "$@" >/dev/console; }
try() { # try WORD COMMAND...
  word=$1; shift
  say TRY "$word" "$n"
  if "$@" >/run/out 2>&1; then say ACK "$word" "$n"; else say "FAILED $word $n: $(tr '\n' ' ' </run/out)"; fi
}
n=$1
while :; do
  n=$((n+1))
  try load berth image load /host/berth-sample-worker.tar --name "worker:n$n"
  sed "s/@SEQ@/$n/" /host/documents.yaml >/run/documents.yaml
  try apply berth apply /run/documents.yaml
  try rm berth image rm "worker:n$n"
done
"#;

/// The test of all cuts.
pub(crate) fn tests() -> Vec<Trial> {
    let name = "cuts during loads, applies and launches";
    vec![Trial::test(format!("power::{name}"), || {
        let rounds = std::env::var("BERTH_ROUNDS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        all(CUTS * std::cmp::max(1, rounds)).map_err(|e| Failed::from(format!("{e:#}")))
    })]
}

fn all(cuts: u32) -> Result<()> {
    let seed = match std::env::var("BERTH_SEED") {
        Ok(text) => text.parse().context("BERTH_SEED")?,
        Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
    };
    println!("power: {cuts} cuts, BERTH_SEED={seed}");
    let config = POWER.config()?;
    let dir = tempfile::Builder::new().prefix("power.").tempdir_in(out())?;
    let share = dir.path().join("share");
    std::fs::create_dir(&share)?;
    POWER.fill(&share)?;
    std::fs::write(share.join("documents.yaml"), DOCUMENTS)?;
    std::fs::write(share.join("work.sh"), WORK)?;
    let host = dir.path().join("host.ext4");
    make_disk(&host, &share, 64)?;
    let outcome = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|number| {
                let (config, host, dir) = (&config, &host, dir.path());
                scope.spawn(move || Lane::new(number, seed, config, host, dir)?.cuts(cuts.div_ceil(LANES)))
            })
            .collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")))
            .collect::<Result<Vec<Promised>>>()
    });
    match outcome {
        Ok(lanes) => {
            let acknowledged: u32 = lanes.iter().map(|lane| lane.acknowledged).sum();
            println!("power: {acknowledged} loads, applies and removals were answered before the cuts");
            // A run in which nothing was ever promised has shown nothing.
            ensure!(acknowledged > 0, "no command was ever answered");
            Ok(())
        }
        Err(e) => {
            let kept = dir.keep();
            Err(e.context(format!(
                "BERTH_SEED={seed}; disks and consoles are kept in {}",
                kept.display()
            )))
        }
    }
}

/// What the guest was told before its power went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Promised {
    /// The last apply that was answered.
    applied: u32,
    /// The last apply that was begun.
    begun: u32,
    /// An image that was loaded, and whose removal was not begun.
    image: Option<u32>,
    /// An image that was removed.
    removed: Option<u32>,
    /// Commands answered, over all rounds.
    acknowledged: u32,
}

impl Promised {
    /// Takes in what the console says of one round.
    fn read(&mut self, console: &str) -> Result<()> {
        for line in console.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [how, what, n] = words[..] else { continue };
            let Ok(n) = n.parse() else { continue };
            match (how, what) {
                ("TRY", "apply") => self.begun = n,
                ("ACK", "apply") => self.applied = n,
                ("ACK", "load") => self.image = Some(n),
                ("TRY", "rm") => self.image = None,
                ("ACK", "rm") => self.removed = Some(n),
                _ => {}
            }
            if how == "ACK" {
                self.acknowledged += 1;
            }
        }
        match console.lines().find(|line| line.starts_with("FAILED")) {
            Some(line) => bail!("{line}"),
            None => Ok(()),
        }
    }
}

/// One disk and its guests, one after the other.
struct Lane<'a> {
    number: u32,
    random: u64,
    config: Config,
    dir: &'a Path,
    data: PathBuf,
    promised: Promised,
}

impl<'a> Lane<'a> {
    fn new(number: u32, seed: u64, config: &Config, host: &Path, dir: &'a Path) -> Result<Lane<'a>> {
        let empty = dir.join(format!("empty{number}"));
        std::fs::create_dir(&empty)?;
        let data = dir.join(format!("data{number}.ext4"));
        make_disk(&data, &empty, 96)?;
        let mut config = config.clone();
        config.memory = 512;
        config.host = Some(host.into());
        config.data = Some(data.clone());
        Ok(Lane {
            number,
            random: seed.wrapping_add(u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            config,
            dir,
            data,
            promised: Promised::default(),
        })
    }

    /// splitmix64
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn cuts(mut self, cuts: u32) -> Result<Promised> {
        for round in 0..=cuts {
            self.round(round, cuts).with_context(|| {
                format!(
                    "guest {}, after {round} cuts, with {:?}, disk {}",
                    self.number,
                    self.promised,
                    self.data.display()
                )
            })?;
        }
        Ok(self.promised)
    }

    /// A boot, a look, and (but after the last cut) work until the power goes.
    fn round(&mut self, round: u32, cuts: u32) -> Result<()> {
        let dir = self.dir.join(format!("guest-{}-{round}", self.number));
        let (mut vm, looked) = self.boot_and_look(&dir, round)?;
        if looked.is_err() {
            // Console, the agent's log and the disk are kept; the error says where.
            let log = vm.run(LOG).map(|answer| answer.1).unwrap_or_default();
            std::fs::write(vm.keep().join("guest.log"), log)?;
        }
        looked?;
        if round == cuts {
            return Ok(());
        }
        vm.sh(&format!(
            "setsid sh /host/work.sh {} >/dev/null 2>&1 </dev/null & true",
            self.promised.begun
        ))?;
        let (answers, then) = (self.random(ANSWERS), self.random(LONGEST));
        let begun = Instant::now();
        // A kernel that the emulator broke has had its cut.
        while vm.console().matches("ACK ").count() < usize::try_from(answers)? && !vm.broken_by_the_emulator()
        {
            ensure!(
                begun.elapsed() < LIMIT,
                "not {answers} answers within {LIMIT:?}:\n{}",
                vm.console()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(then));
        vm.keep();
        let console = vm.cut()?;
        self.promised.read(&console)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }

    /// What is seen after a boot. A guest that the emulator broke before anything was asked of it is booted once more.
    fn boot_and_look(&mut self, dir: &Path, round: u32) -> Result<(Vm, Result<()>)> {
        for last in [false, true] {
            let booted = Vm::boot(&self.config, dir).map(|mut vm| {
                let looked = self.look(&mut vm, round);
                (vm, looked)
            });
            let failed = !matches!(booted, Ok((_, Ok(()))));
            if last || !failed || !broken_by_the_emulator(dir) {
                return booted;
            }
            println!("power: {BROKEN}");
            drop(booted);
            // Gone with it, or kept by a boot that failed.
            let _ = std::fs::remove_dir_all(dir);
        }
        bail!("not booted")
    }

    fn look(&mut self, vm: &mut Vm, round: u32) -> Result<()> {
        let mut script = String::from(
            "ln -sf /host/berth /usr/bin/berth; grep -q ' /var/lib/berth ' /proc/mounts || exit 9\n",
        );
        if round == 0 {
            script +=
                "for i in busybox worker; do berth image load /host/berth-sample-$i.tar || exit 8; done\n";
        }
        write!(
            script,
            "berth image verify || exit 7
             berth image ls
             setsid berth agent --metrics off >>/run/berth-agent.log 2>&1 </dev/null &
             i=0; until berth ps >/run/ps 2>&1; do i=$((i+1)); [ $i -gt 300 ] && {{ cat /run/berth-agent.log; exit 6; }}; sleep 0.1; done\n"
        )?;
        if round == 0 {
            script += "sed s/@SEQ@/0/ /host/documents.yaml >/run/documents.yaml; berth apply /run/documents.yaml || exit 5\n";
        }
        let images = vm.sh(&script)?;
        for (n, there) in [(self.promised.image, true), (self.promised.removed, false)] {
            if let Some(n) = n {
                let listed = images.lines().any(|line| line.contains(&format!("worker:n{n} ")));
                ensure!(
                    listed == there,
                    "worker:n{n} is{} there:\n{images}",
                    if listed { "" } else { " not" }
                );
            }
        }
        // Each runs, and was started once since the boot.
        let starts = vm.until(
            "both workloads run",
            "b=$(cat /proc/sys/kernel/random/boot_id)
             for w in one two; do berth logs $w 2>/dev/null | grep \"start .* $b\" | sed \"s/.*start/$w start/\"; done >/run/starts
             grep -q ^one /run/starts && grep -q ^two /run/starts && cat /run/starts || { berth ps; tail -n 20 /run/berth-agent.log; exit 1; }",
            Duration::from_secs(150),
        )?;
        let starts: Vec<&str> = starts.lines().collect();
        ensure!(starts.len() == 2, "not one start for each workload: {starts:?}");
        let sequence: u32 = starts
            .iter()
            .find(|line| line.starts_with("one"))
            .and_then(|line| line.split_whitespace().nth(2)?.parse().ok())
            .context("no sequence number")?;
        ensure!(
            (self.promised.applied..=self.promised.begun).contains(&sequence),
            "the documents of apply {sequence} are in force"
        );
        // What was under way is settled now.
        self.promised.applied = sequence;
        let aside = vm.sh("ls /var/lib/berth/state")?;
        ensure!(!aside.contains("corrupt"), "an unreadable state file:\n{aside}");
        Ok(())
    }
}
