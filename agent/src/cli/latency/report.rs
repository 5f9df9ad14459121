//! What `berth latency` says: JSON, text and a picture of the same rounds.

use berth_rt::latency::compare::{self, Ratio};
use berth_rt::latency::probe::Measured;
use berth_rt::latency::{Histogram, plot};
use berth_rt::sched::Scheduler;
use serde::Serialize;

use crate::cli::table;

use super::awake::IdleStates;

/// The quantiles that are held against each other.
const COMPARED: [f64; 2] = [0.5, 0.99];

/// Everything.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub interval_ns: u64,
    /// Of one round.
    pub duration_ns: u64,
    /// /proc/loadavg's averages before the first round.
    pub load_before: String,
    /// After the last.
    pub load_after: String,
    pub idle_states: IdleStates,
    pub sides: Vec<Side>,
    pub ratios: Vec<Compared>,
}

/// Where rounds were measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Side {
    pub name: String,
    pub rounds: Vec<Measured>,
}

/// A ratio of two sides.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Compared {
    pub of: String,
    #[serde(flatten)]
    pub ratio: Ratio,
}

impl Side {
    pub(super) fn new(name: &str, rounds: Vec<Measured>) -> Side {
        Side {
            name: name.to_owned(),
            rounds,
        }
    }

    fn by_round(&self) -> Vec<Histogram> {
        self.rounds.iter().map(Measured::all).collect()
    }

    fn all(&self) -> Histogram {
        let mut sum = Histogram::new();
        self.by_round().iter().for_each(|round| sum.merge(round));
        sum
    }
}

/// Every side but the first against the first.
pub(super) fn ratios(sides: &[Side]) -> Vec<Compared> {
    let Some((first, others)) = sides.split_first() else {
        return Vec::new();
    };
    let base = first.by_round();
    let mut all = Vec::new();
    for side in others {
        let rounds = side.by_round();
        for quantile in COMPARED {
            if let Some(ratio) = compare::ratio(&rounds, &base, quantile) {
                all.push(Compared {
                    of: format!("{} : {}", side.name, first.name),
                    ratio,
                });
            }
        }
    }
    all
}

impl Report {
    /// The histograms of all rounds, a curve for each side.
    pub(super) fn svg(&self) -> String {
        let curves: Vec<(String, Histogram)> = self.sides.iter().map(|s| (s.name.clone(), s.all())).collect();
        plot::svg(&self.title(), &curves)
    }

    fn title(&self) -> String {
        let rounds = self.sides.first().map_or(0, |side| side.rounds.len());
        format!(
            "wake-up every {} µs, {rounds} × {:.1} s, load {} before, {} after",
            micros(self.interval_ns),
            self.duration_ns as f64 / 1e9,
            self.load_before,
            self.load_after
        )
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        println!("{}; times in µs", self.title());
        match &self.idle_states.why {
            None => println!("idle states kept out (/dev/cpu_dma_latency held at 0)\n"),
            Some(why) => println!("idle states as they are ({why}): leaving one is in every time\n"),
        }
        let mut rows = Vec::new();
        for side in &self.sides {
            for at in 0..side.rounds.first().map_or(0, |round| round.cpus.len()) {
                let of_cpu: Vec<_> = side.rounds.iter().filter_map(|r| r.cpus.get(at)).collect();
                let mut all = Histogram::new();
                of_cpu.iter().for_each(|of| all.merge(&of.latency));
                let Some(first) = of_cpu.first() else { continue };
                let missed: u64 = of_cpu.iter().map(|of| of.missed).sum();
                let quantiles = [0.5, 0.9, 0.99, 0.999].map(|q| micros(all.quantile(q)));
                let mut row = vec![
                    side.name.clone(),
                    first.cpu.to_string(),
                    policy(&first.scheduler),
                    slack(&first.scheduler, first.slack_ns),
                    all.count().to_string(),
                    micros(all.min()),
                ];
                row.extend(quantiles);
                row.extend([micros(all.max()), missed.to_string()]);
                rows.push(row);
            }
        }
        let head = [
            "SIDE", "CPU", "POLICY", "SLACK", "COUNT", "MIN", "P50", "P90", "P99", "P99.9", "MAX", "MISSED",
        ];
        table::print(&head, &rows)?;
        if !self.ratios.is_empty() {
            println!();
            let rows: Vec<Vec<String>> = self.ratios.iter().map(row).collect();
            table::print(&["RATIO", "OF", "IS", "95 %"], &rows)?;
        }
        for side in &self.sides {
            if let Some(why) = side.rounds.iter().find_map(|round| round.not_locked.as_ref()) {
                println!("\n{}: memory was not locked: {why}", side.name);
            }
        }
        Ok(())
    }
}

fn row(compared: &Compared) -> Vec<String> {
    let r = &compared.ratio;
    vec![
        compared.of.clone(),
        format!("p{}", r.quantile * 100.0),
        format!("{:.3}", r.ratio),
        format!("{:.3}–{:.3}", r.low, r.high),
    ]
}

fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1000.0)
}

fn policy(scheduler: &Scheduler) -> String {
    match scheduler {
        Scheduler::Fifo { priority } => format!("fifo {priority}"),
        Scheduler::Rr { priority } => format!("rr {priority}"),
        other => other.name().to_owned(),
    }
}

fn slack(scheduler: &Scheduler, ns: u64) -> String {
    match ns {
        _ if scheduler.is_realtime() => table::NONE.to_owned(),
        ns if ns % 1000 == 0 => format!("{} µs", ns / 1000),
        ns => format!("{ns} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_rt::latency::probe::OfCpu;

    fn side(name: &str, ns: u64) -> Side {
        let round = |more: u64| {
            let mut latency = Histogram::new();
            (0..100).for_each(|i| latency.add(ns + more + i));
            let scheduler = Scheduler::Fifo { priority: 7 };
            let of = OfCpu {
                cpu: 1,
                scheduler,
                slack_ns: 0,
                missed: 2,
                latency,
            };
            Measured {
                not_locked: Some("EPERM".into()),
                cpus: vec![of],
            }
        };
        Side::new(name, vec![round(0), round(10), round(20)])
    }

    #[test]
    fn each_side_is_held_against_the_first() {
        let sides = vec![
            side("host", 1000),
            side("container", 2000),
            side("host again", 1000),
        ];
        let ratios = ratios(&sides);
        let named: Vec<(&str, f64)> = ratios.iter().map(|r| (r.of.as_str(), r.ratio.quantile)).collect();
        let expected = [
            ("container : host", 0.5),
            ("container : host", 0.99),
            ("host again : host", 0.5),
            ("host again : host", 0.99),
        ];
        assert_eq!(named, expected);
        assert!((1.8..2.1).contains(&ratios[0].ratio.ratio), "{ratios:?}");
        assert_eq!(ratios[2].ratio.ratio, 1.0);
        assert!(super::ratios(&sides[..1]).is_empty());
        let report = Report {
            interval_ns: 1_000_000,
            duration_ns: 5_000_000_000,
            load_before: "1".into(),
            load_after: "2".into(),
            idle_states: IdleStates {
                held: true,
                why: None,
            },
            sides,
            ratios,
        };
        assert!(report.svg().contains("host again: p50"));
        assert_eq!(
            serde_json::to_value(&report).unwrap()["ratios"][0]["of"],
            "container : host"
        );
        report.print().unwrap();
    }

    #[test]
    fn words() {
        assert_eq!(policy(&Scheduler::Other { nice: 0 }), "SCHED_OTHER");
        assert_eq!(slack(&Scheduler::Other { nice: 0 }, 50_000), "50 µs");
        assert_eq!(slack(&Scheduler::Other { nice: 0 }, 1), "1 ns");
        assert_eq!(slack(&Scheduler::Fifo { priority: 1 }, 1), "-");
    }
}
