//! How many events of a device are passed on to the containers that hear of it. Pure.
//!
//! Each event that is passed on costs the container's monitor a namespace, two messages and the device's records; a
//! device whose contact is loose sends thousands a second. Invariants: of one device at most [`BURST`] events at once and
//! [`RATE`] a second go on; of those beyond it the latest goes on when its time has come, so that who listens ends with
//! what is true; how many were left out is counted, and told at most every [`TOLD_EVERY`].

use std::collections::BTreeMap;

/// Events of one device that are passed on at once.
pub(super) const BURST: u64 = 64;
/// Events of one device that are passed on each second then.
pub(super) const RATE: u64 = 32;
/// Milliseconds between two notices of one device.
const TOLD_EVERY: u64 = 10_000;
/// Milliseconds that one event costs.
const COST: u64 = 1_000 / RATE;

/// An event that waits: its action and properties.
pub(super) type Waiting = (&'static str, Vec<(String, String)>);

/// Of every device of which something was heard lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Storms {
    devices: BTreeMap<String, Device>,
    /// Events that were not passed on.
    pub(super) left_out: u64,
}

#[derive(Debug, Clone)]
struct Device {
    /// Milliseconds of quiet that it has saved up: [`COST`] of them for each event.
    saved: u64,
    /// When that was reckoned last.
    at: u64,
    latest: Option<Waiting>,
    /// Not passed on, and not told yet.
    left_out: u64,
    told: Option<u64>,
}

impl Device {
    fn reckon(&mut self, now: u64) {
        let quiet = now.saturating_sub(self.at);
        self.saved = self.saved.saturating_add(quiet).min(BURST * COST);
        self.at = now;
    }
}

/// What is due of one device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) key: String,
    /// To be passed on now.
    pub(super) event: Option<Waiting>,
    /// To be told: so many were left out.
    pub(super) left_out: Option<u64>,
}

impl Storms {
    /// An event of `key` has come: is it passed on at once? Else it waits, and is the latest of those that do.
    pub(super) fn admit(
        &mut self,
        now: u64,
        key: &str,
        action: &'static str,
        properties: &[(String, String)],
    ) -> bool {
        let device = self.devices.entry(key.to_owned()).or_insert(Device {
            saved: BURST * COST,
            at: now,
            latest: None,
            left_out: 0,
            told: None,
        });
        device.reckon(now);
        if device.latest.is_none() && device.saved >= COST {
            device.saved -= COST;
            return true;
        }
        if device.latest.replace((action, properties.to_vec())).is_some() {
            device.left_out += 1;
            self.left_out += 1;
        }
        false
    }

    /// When [`Storms::due`] has something to say.
    pub(super) fn next(&self) -> Option<u64> {
        let of = |device: &Device| {
            let event = device
                .latest
                .is_some()
                .then(|| device.at + COST.saturating_sub(device.saved));
            let told = (device.left_out > 0).then(|| device.told.map_or(device.at, |at| at + TOLD_EVERY));
            event.into_iter().chain(told).min()
        };
        self.devices.values().filter_map(of).min()
    }

    /// What waits and has its time, and what is to be told; devices that are quiet are forgotten.
    pub(super) fn due(&mut self, now: u64) -> Vec<Due> {
        let mut all = Vec::new();
        for (key, device) in &mut self.devices {
            device.reckon(now);
            let event = device.latest.take_if(|_| device.saved >= COST);
            if event.is_some() {
                device.saved -= COST;
            }
            let tell = device.left_out > 0 && device.told.is_none_or(|at| at + TOLD_EVERY <= now);
            let left_out = tell.then(|| std::mem::take(&mut device.left_out));
            if tell {
                device.told = Some(now);
            }
            if event.is_some() || left_out.is_some() {
                let key = key.clone();
                all.push(Due { key, event, left_out });
            }
        }
        self.devices.retain(|_, device| {
            let quiet = device.latest.is_none() && device.left_out == 0 && device.saved >= BURST * COST;
            !quiet || device.told.is_some_and(|at| at + TOLD_EVERY > now)
        });
        all
    }

    /// The device has gone.
    pub(super) fn forget(&mut self, key: &str) {
        self.devices.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that sends an event each millisecond for a minute.
    #[test]
    fn a_storm_is_bounded_and_its_last_event_passed_on() {
        let mut storms = Storms::default();
        let (mut passed, mut told, mut counted, mut last) = (0, 0, 0, None);
        let take = |storms: &mut Storms, now: u64| {
            let mut found = (0, 0, 0, None);
            for due in storms.due(now) {
                found.0 += u64::from(due.event.is_some());
                found.1 += u64::from(due.left_out.is_some());
                found.2 += due.left_out.unwrap_or(0);
                found.3 = due.event.map(|(_, words)| words[0].1.clone()).or(found.3);
            }
            found
        };
        for now in 0..60_000_u64 {
            let words = [("N".to_owned(), now.to_string())];
            passed += u64::from(storms.admit(now, "/d", "change", &words));
            let found = take(&mut storms, now);
            (passed, told, counted) = (passed + found.0, told + found.1, counted + found.2);
        }
        assert!(passed <= BURST + RATE * 61, "{passed}");
        assert!(passed >= RATE * 59, "{passed}");
        assert!((5..=7).contains(&told), "told {told} times");
        // It ends: the last of all is passed on, and all that were left out are told.
        let mut now = 60_000;
        while let Some(next) = storms.next() {
            assert!(next < now + 20_000, "{next}");
            now = now.max(next);
            let found = take(&mut storms, now);
            (passed, counted) = (passed + found.0, counted + found.2);
            last = found.3.or(last);
        }
        assert_eq!(last.as_deref(), Some("59999"));
        assert_eq!(passed + counted, 60_000);
        assert_eq!(storms.left_out, counted);
        storms.due(now + 20_000);
        assert!(storms.devices.is_empty(), "a quiet device is forgotten");
    }

    #[test]
    fn one_device_does_not_hold_up_another() {
        let mut storms = Storms::default();
        for _ in 0..1000 {
            storms.admit(0, "/loud", "change", &[]);
        }
        assert!(storms.admit(0, "/quiet", "change", &[]));
        storms.forget("/loud");
        assert_eq!(storms.next(), None);
    }
}
