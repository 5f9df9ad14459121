//! The hardware watchdog, /dev/watchdog* (Documentation/watchdog/watchdog-api.rst): a timer of the board that resets the
//! node unless it is kept alive. The agent keeps it alive from its own loop, and only while the launcher answers: a node
//! on which nobody can start or stop a container any more is reset.
//!
//! Invariants: opened before anything else is begun, because the device has no other guard than its open file; time-out
//! and pre-timeout are set and read back, and an agent that does not get what it was told does not start; the death of
//! the agent never stops the timer (a driver without magic close is refused); an orderly end does, and so does a start
//! that fails, unless the timer was running before it.
#![allow(unsafe_code)] // ioctl(2) of linux/watchdog.h: each call hands over one integer or one struct of ours

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge, Registry};

use super::metrics::register;

/// linux/watchdog.h
mod control {
    /// What the driver can do.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Info {
        pub options: u32,
        pub firmware_version: u32,
        pub identity: [u8; 32],
    }
    nix::ioctl_read!(support, b'W', 0, Info);
    nix::ioctl_read!(boot_status, b'W', 2, std::ffi::c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, std::ffi::c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, std::ffi::c_int);
    nix::ioctl_readwrite!(set_pretimeout, b'W', 8, std::ffi::c_int);
    nix::ioctl_read!(get_pretimeout, b'W', 9, std::ffi::c_int);
    /// WDIOF_CARDRESET
    pub(super) const CARDRESET: u32 = 0x20;
    /// WDIOF_SETTIMEOUT
    pub(super) const SETTIMEOUT: u32 = 0x80;
    /// WDIOF_MAGICCLOSE
    pub(super) const MAGICCLOSE: u32 = 0x100;
    /// WDIOF_PRETIMEOUT
    pub(super) const PRETIMEOUT: u32 = 0x200;
}

/// What the agent was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The device, `/dev/watchdog0`.
    pub device: PathBuf,
    /// Seconds without a keep-alive until the node is reset.
    pub timeout: u32,
    /// Seconds before the reset at which the kernel's pre-timeout governor acts; none: not asked for.
    pub pretimeout: Option<u32>,
}

/// Why the watchdog cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchdogError {
    /// It cannot be opened.
    #[error("{path}: {source}; {hint}", path = path.display(), hint = hint(source))]
    Open {
        /// The device.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The driver lacks something.
    #[error("{path} ({identity}): the driver has no {what}", path = path.display())]
    Lacks {
        /// The device.
        path: PathBuf,
        /// The driver's name for it.
        identity: String,
        /// What it lacks.
        what: &'static str,
    },
    /// A request was refused.
    #[error("{path} ({identity}): {request}: {source}", path = path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// The driver's name for it.
        identity: String,
        /// The request.
        request: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// What is read back is not what was set.
    #[error("{path} ({identity}): {what} is {actual} s, {wanted} s was set; name a value that the device has", path = path.display())]
    Differs {
        /// The device.
        path: PathBuf,
        /// The driver's name for it.
        identity: String,
        /// time-out or pre-timeout
        what: &'static str,
        /// Read back.
        actual: i32,
        /// Set.
        wanted: u32,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => "somebody else has it: systemd's RuntimeWatchdogSec=, or a watchdog daemon",
        Some(libc::ENOENT) => "load the driver of the board's watchdog, or name another device",
        _ => "name a device such as /dev/watchdog0",
    }
}

/// Metrics of the watchdog.
pub(crate) struct Metrics {
    pub keepalives: IntCounter,
    pub withheld: IntCounter,
    pub timeout: IntGauge,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Metrics> {
        Ok(Metrics {
            keepalives: register(
                registry,
                IntCounter::new(
                    "berth_watchdog_keepalives_total",
                    "Times the hardware watchdog was kept alive.",
                ),
            )?,
            withheld: register(
                registry,
                IntCounter::new(
                    "berth_watchdog_withheld_total",
                    "Times the hardware watchdog was not kept alive because the launcher did not answer.",
                ),
            )?,
            timeout: register(
                registry,
                IntGauge::new(
                    "berth_watchdog_timeout_seconds",
                    "Time-out of the hardware watchdog as read back; 0: none is used.",
                ),
            )?,
        })
    }
}

/// When the watchdog is kept alive: a decision, no device.
#[derive(Debug)]
struct Keeper {
    /// A quarter of the time-out.
    period: Duration,
    /// How long the launcher may be silent: the time-out.
    patience: Duration,
    next: Instant,
    answered: Instant,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing yet.
    Wait,
    /// Keep it alive.
    Keep,
    /// The launcher has been silent for too long.
    Withhold,
}

impl Keeper {
    fn new(timeout: Duration, now: Instant) -> Keeper {
        Keeper {
            period: timeout / 4,
            patience: timeout,
            next: now,
            answered: now,
        }
    }

    fn turn(&mut self, now: Instant) -> Turn {
        if now < self.next {
            return Turn::Wait;
        }
        self.next = now + self.period;
        if now.saturating_duration_since(self.answered) > self.patience {
            Turn::Withhold
        } else {
            Turn::Keep
        }
    }
}

/// An open watchdog. Dropped without [`Watchdog::disarm`], its timer runs on.
pub(crate) struct Watchdog {
    path: PathBuf,
    file: File,
    identity: String,
    /// The timer ran before this agent opened it.
    was_running: bool,
    keeper: Keeper,
    timeout: u32,
    withholding: bool,
}

impl Watchdog {
    /// Opens the device, which starts its timer, sets what is wanted and reads it back.
    ///
    /// # Errors
    /// [`WatchdogError`]; the timer is stopped again then, unless it was running before.
    pub(crate) fn open(wanted: &Wanted) -> Result<Watchdog, WatchdogError> {
        let path = wanted.device.clone();
        let was_running = sysfs(&path, "state").is_some_and(|state| state.trim() == "active");
        let failed = |source| WatchdogError::Open {
            path: path.clone(),
            source,
        };
        // Something else would be written to.
        if !fs::metadata(&path).map_err(failed)?.file_type().is_char_device() {
            return Err(failed(io::Error::other("not a character device")));
        }
        let file = File::options().write(true).open(&path).map_err(failed)?;
        let mut watchdog = Watchdog {
            path,
            file,
            identity: String::new(),
            was_running,
            keeper: Keeper::new(Duration::from_secs(wanted.timeout.into()), Instant::now()),
            timeout: wanted.timeout,
            withholding: false,
        };
        if let Err(error) = watchdog.set(wanted) {
            watchdog.start_failed();
            return Err(error);
        }
        Ok(watchdog)
    }

    fn set(&mut self, wanted: &Wanted) -> Result<(), WatchdogError> {
        let fd = self.file.as_raw_fd();
        let mut info = control::Info::default();
        // SAFETY: WDIOC_GETSUPPORT fills the struct, which lives until the call returns.
        unsafe { control::support(fd, &raw mut info) }.map_err(|e| self.refused("WDIOC_GETSUPPORT", e))?;
        let end = info
            .identity
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(info.identity.len());
        self.identity = String::from_utf8_lossy(&info.identity[..end]).into_owned();
        for (flag, what) in [
            (control::SETTIMEOUT, "time-out that can be set"),
            (
                control::MAGICCLOSE,
                "magic close: the death of the agent would stop it",
            ),
        ] {
            if info.options & flag == 0 {
                return Err(self.lacks(what));
            }
        }
        let seconds = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let mut value = seconds(wanted.timeout);
        // SAFETY: WDIOC_SETTIMEOUT reads and writes one integer, which lives until the call returns.
        unsafe { control::set_timeout(fd, &raw mut value) }
            .map_err(|e| self.refused(&format!("WDIOC_SETTIMEOUT {} s", wanted.timeout), e))?;
        // SAFETY: WDIOC_GETTIMEOUT writes one integer, which lives until the call returns.
        unsafe { control::get_timeout(fd, &raw mut value) }
            .map_err(|e| self.refused("WDIOC_GETTIMEOUT", e))?;
        if value != seconds(wanted.timeout) {
            return Err(self.differs("the time-out", value, wanted.timeout));
        }
        if let Some(pretimeout) = wanted.pretimeout {
            if info.options & control::PRETIMEOUT == 0 {
                return Err(self.lacks("pre-timeout"));
            }
            let mut value = seconds(pretimeout);
            // SAFETY: WDIOC_SETPRETIMEOUT reads and writes one integer, which lives until the call returns.
            unsafe { control::set_pretimeout(fd, &raw mut value) }
                .map_err(|e| self.refused(&format!("WDIOC_SETPRETIMEOUT {pretimeout} s"), e))?;
            // SAFETY: WDIOC_GETPRETIMEOUT writes one integer, which lives until the call returns.
            unsafe { control::get_pretimeout(fd, &raw mut value) }
                .map_err(|e| self.refused("WDIOC_GETPRETIMEOUT", e))?;
            if value != seconds(pretimeout) {
                return Err(self.differs("the pre-timeout", value, pretimeout));
            }
        }
        let mut status = 0;
        // SAFETY: WDIOC_GETBOOTSTATUS writes one integer, which lives until the call returns.
        let known = unsafe { control::boot_status(fd, &raw mut status) }.is_ok();
        if known && status.cast_unsigned() & control::CARDRESET != 0 {
            tracing::warn!(
                device = %self.path.display(),
                "the last reset of this node was the hardware watchdog's"
            );
        }
        tracing::info!(
            device = %self.path.display(), identity = self.identity, timeout = wanted.timeout,
            pretimeout = wanted.pretimeout, running = self.was_running,
            "the hardware watchdog is kept alive"
        );
        if sysfs(&self.path, "nowayout").is_some_and(|text| text.trim() == "1") {
            tracing::warn!(
                "the hardware watchdog cannot be stopped again (nowayout): an orderly stop of the agent resets the node too"
            );
        }
        Ok(())
    }

    fn refused(&self, request: &str, source: nix::Error) -> WatchdogError {
        WatchdogError::Refused {
            path: self.path.clone(),
            identity: self.identity.clone(),
            request: request.to_owned(),
            source: source.into(),
        }
    }

    fn lacks(&self, what: &'static str) -> WatchdogError {
        WatchdogError::Lacks {
            path: self.path.clone(),
            identity: self.identity.clone(),
            what,
        }
    }

    fn differs(&self, what: &'static str, actual: i32, wanted: u32) -> WatchdogError {
        WatchdogError::Differs {
            path: self.path.clone(),
            identity: self.identity.clone(),
            what,
            actual,
            wanted,
        }
    }

    /// When [`Watchdog::tend`] wants to be called next.
    pub(crate) fn wake_at(&self) -> Instant {
        self.keeper.next
    }

    /// The launcher has answered.
    pub(crate) fn launcher_answered(&mut self) {
        self.keeper.answered = Instant::now();
    }

    /// One turn of the loop: keeps the timer alive when it is time and the launcher has answered. True when the launcher
    /// is to be asked again.
    pub(crate) fn tend(&mut self, metrics: &Metrics) -> bool {
        metrics.timeout.set(self.timeout.into());
        match self.keeper.turn(Instant::now()) {
            Turn::Wait => return false,
            Turn::Keep => {
                // One byte that is not the magic character is a keep-alive, as WDIOC_KEEPALIVE is.
                if let Err(error) = self.file.write_all(b"\0") {
                    tracing::error!(device = %self.path.display(), %error, "keep-alive");
                }
                metrics.keepalives.inc();
                if std::mem::take(&mut self.withholding) {
                    tracing::warn!("the launcher answers again: the hardware watchdog is kept alive");
                }
            }
            Turn::Withhold => {
                metrics.withheld.inc();
                if !std::mem::replace(&mut self.withholding, true) {
                    tracing::error!(
                        seconds = self.timeout,
                        "the launcher does not answer: the hardware watchdog is not kept alive"
                    );
                }
            }
        }
        true
    }

    /// Stops the timer: the agent ends as it was told to.
    pub(crate) fn disarm(mut self) {
        self.magic_close();
    }

    /// The agent does not come up. A timer that ran before goes on: what it guards is as dead as before.
    pub(crate) fn start_failed(mut self) {
        if !self.was_running {
            self.magic_close();
        }
    }

    fn magic_close(&mut self) {
        if let Err(error) = self.file.write_all(b"V") {
            tracing::error!(device = %self.path.display(), %error, "the hardware watchdog is not stopped");
        }
    }
}

/// A file of the device's folder in sysfs.
fn sysfs(device: &Path, name: &str) -> Option<String> {
    fs::read_to_string(
        Path::new("/sys/class/watchdog")
            .join(device.file_name()?)
            .join(name),
    )
    .ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_kept_alive_while_the_launcher_answers() {
        let start = Instant::now();
        let mut keeper = Keeper::new(8 * SECOND, start);
        assert_eq!(keeper.turn(start), Turn::Keep);
        assert_eq!(keeper.turn(start + SECOND), Turn::Wait);
        assert_eq!(keeper.turn(start + 2 * SECOND), Turn::Keep);
        // The launcher is silent: for as long as the time-out that is a restart of it, then it is not.
        assert_eq!(keeper.turn(start + 8 * SECOND), Turn::Keep);
        assert_eq!(keeper.turn(start + 10 * SECOND), Turn::Withhold);
        assert_eq!(keeper.turn(start + 11 * SECOND), Turn::Wait);
        assert_eq!(keeper.turn(start + 12 * SECOND), Turn::Withhold);
        keeper.answered = start + 13 * SECOND;
        assert_eq!(keeper.turn(start + 14 * SECOND), Turn::Keep);
    }

    fn on_a_file(was_running: bool) -> (Watchdog, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watchdog = Watchdog {
            path: file.path().into(),
            file: file.reopen().unwrap(),
            identity: "a file".into(),
            was_running,
            keeper: Keeper::new(SECOND, Instant::now()),
            timeout: 1,
            withholding: false,
        };
        (watchdog, file)
    }

    #[test]
    fn what_is_written() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let written = |file: &tempfile::NamedTempFile| fs::read(file.path()).unwrap();
        let (mut watchdog, file) = on_a_file(false);
        assert!(watchdog.tend(&metrics));
        assert!(!watchdog.tend(&metrics));
        assert_eq!(written(&file), b"\0");
        watchdog.disarm();
        assert_eq!(written(&file), b"\0V");
        assert_eq!((metrics.keepalives.get(), metrics.timeout.get()), (1, 1));
        // Dropped: the timer runs on. A failed start stops it only where it was this agent that started it.
        let (watchdog, file) = on_a_file(true);
        drop(watchdog);
        assert_eq!(written(&file), b"");
        for (was_running, bytes) in [(true, &b""[..]), (false, b"V")] {
            let (watchdog, file) = on_a_file(was_running);
            watchdog.start_failed();
            assert_eq!(written(&file), bytes);
        }
        moves_everything(&metrics);
        assert_eq!((metrics.keepalives.get(), metrics.withheld.get()), (2, 1));
    }

    /// Kept alive once, and once not.
    pub(crate) fn moves_everything(metrics: &Metrics) {
        let (mut watchdog, file) = on_a_file(false);
        assert!(watchdog.tend(metrics));
        watchdog.keeper.next = Instant::now();
        watchdog.keeper.answered -= 10 * SECOND;
        assert!(watchdog.tend(metrics));
        assert_eq!(fs::read(file.path()).unwrap(), b"\0");
    }

    #[test]
    fn what_is_no_watchdog_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let wanted = |device: &Path| Wanted {
            device: device.into(),
            timeout: 10,
            pretimeout: None,
        };
        let Err(error) = Watchdog::open(&wanted(file.path())) else {
            panic!("a file is no watchdog");
        };
        assert!(error.to_string().contains("not a character device"), "{error}");
        assert_eq!(fs::read(file.path()).unwrap(), b"");
        let Err(error) = Watchdog::open(&wanted(Path::new("/dev/null"))) else {
            panic!("/dev/null is no watchdog");
        };
        assert!(error.to_string().contains("WDIOC_GETSUPPORT"), "{error}");
        let Err(error) = Watchdog::open(&wanted(Path::new("/nowhere/watchdog0"))) else {
            panic!("nothing is no watchdog");
        };
        assert!(error.to_string().contains("load the driver"), "{error}");
    }
}
