//! Devices for the core: the event socket, the inventory, the rules, and what is read from sysfs for a match.
//!
//! Invariants: the socket is open before the first enumeration; start-up, overflow, changed rules and the
//! periodic check all run [`Devices::resync`]; only subsystems that some rule names are looked at; the core
//! hears of devices that match a rule (or did).

use std::os::fd::AsFd;
use std::path::PathBuf;

use berth_hotplug::enumerate::{EnumerateError, Filter, enumerate_from};
use berth_hotplug::monitor::{Monitor, MonitorError, OpenError, Source};
use prometheus::{IntCounter, IntGauge, Registry};

use crate::core::NoticeKind;

use super::matcher::{Found, Matcher};
use super::metrics::register;

/// Messages thrown away at most before the enumeration that follows an overflow.
const DRAIN: usize = 100_000;
/// Events taken before others get their turn.
const BATCH: usize = 256;

/// Counters of device events.
pub(crate) struct Metrics {
    events: IntCounter,
    overflows: IntCounter,
    resyncs: IntCounter,
    dropped: IntCounter,
    devices: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        let gauge = |name, help| register(registry, IntGauge::new(name, help));
        Ok(Metrics {
            events: counter("berth_uevents_total", "Device events read.")?,
            overflows: counter(
                "berth_uevent_overflows_total",
                "Times that device events were lost.",
            )?,
            resyncs: counter(
                "berth_device_resyncs_total",
                "Enumerations: start, overflow, new rules, period.",
            )?,
            dropped: counter(
                "berth_uevents_dropped_total",
                "Device events dropped: malformed, or not from the kernel.",
            )?,
            devices: gauge("berth_devices", "Devices in the inventory.")?,
        })
    }
}

#[cfg(test)]
impl Metrics {
    /// As if events had been read, dropped and lost.
    pub(super) fn pretend_events(&self) {
        self.events.inc();
        self.overflows.inc();
        self.dropped.inc();
        self.devices.set(1);
    }
}

/// Everything about devices.
pub(crate) struct Devices {
    monitor: Monitor,
    matcher: Matcher,
    sys_root: PathBuf,
    /// Bytes of receive buffer that were asked for.
    asked: usize,
}

impl Devices {
    /// Opens the event socket.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(crate) fn open(source: Source, buffer: usize, numa: bool) -> Result<Devices, OpenError> {
        Ok(Devices {
            monitor: Monitor::open(source, buffer)?,
            asked: buffer,
            matcher: Matcher::new(numa),
            sys_root: PathBuf::from(berth_hotplug::device::SYS_ROOT),
        })
    }

    /// `udev` or `kernel`.
    pub(crate) fn source(&self) -> &'static str {
        match self.monitor.source() {
            Source::Udev => "udev",
            _ => "kernel",
        }
    }

    /// The receive buffer that was had, and what to change where it is less than was asked for.
    pub(crate) fn buffer(&self) -> String {
        let had = self.monitor.receive_buffer();
        // The kernel counts its own overhead in: it doubles what is asked for.
        if had / 2 >= self.asked {
            return format!("receive buffer {} bytes", had / 2);
        }
        format!(
            "receive buffer {} bytes of {} asked for (CAP_NET_ADMIN forces it; net.core.rmem_max bounds the others)",
            had / 2,
            self.asked
        )
    }

    /// Inventory and rules.
    pub(crate) fn matcher(&mut self) -> &mut Matcher {
        &mut self.matcher
    }

    /// To poll.
    pub(crate) fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.monitor.as_fd()
    }

    /// Reads what the socket has.
    pub(crate) fn read(&mut self, metrics: &Metrics) -> Found {
        let mut found = Found::default();
        for _ in 0..BATCH {
            match self.monitor.next() {
                Ok(None) => return found,
                Ok(Some(event)) => {
                    metrics.events.inc();
                    self.matcher.apply(event, &mut found);
                }
                Err(MonitorError::Overflow) => {
                    metrics.overflows.inc();
                    let text = MonitorError::Overflow.to_string();
                    found.note(NoticeKind::Overflow, self.source(), text);
                    if let Err(error) = self.monitor.drain(DRAIN) {
                        found.note(NoticeKind::Overflow, self.source(), error.to_string());
                    }
                    self.resync(metrics, &mut found);
                }
                Err(error) => {
                    found.note(NoticeKind::Overflow, self.source(), error.to_string());
                    return found;
                }
            }
            let counters = self.monitor.counters();
            let dropped = counters.malformed + counters.untrusted;
            metrics
                .dropped
                .inc_by(dropped.saturating_sub(metrics.dropped.get()));
            metrics
                .devices
                .set(i64::try_from(self.matcher.len()).unwrap_or(i64::MAX));
        }
        found.more = true;
        found
    }

    /// Enumerates, and tells the core what differs and, of what is there, what matches now.
    pub(crate) fn resync(&mut self, metrics: &Metrics, found: &mut Found) {
        metrics.resyncs.inc();
        let filter = Filter {
            subsystems: self.matcher.subsystems().cloned(),
        };
        let devices = match enumerate_from(self.monitor.source(), &self.sys_root, &filter) {
            Ok(devices) => devices,
            Err(error) => {
                let text = with_hint(&error);
                found.note(NoticeKind::Refused, "devices", text);
                return;
            }
        };
        self.matcher.resync(devices, found);
        metrics
            .devices
            .set(i64::try_from(self.matcher.len()).unwrap_or(i64::MAX));
    }
}

fn with_hint(error: &EnumerateError) -> String {
    match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}
