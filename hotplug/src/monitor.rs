//! The uevent socket: the kernel's multicast group, or udevd's.
//!
//! Interface: netlink(7) `NETLINK_KOBJECT_UEVENT`, group 1 (kernel) or group 2 (udevd, udevd.rs). Invariants: never
//! blocks; only what root sent to the group is taken, of group 1 only what the kernel itself sent; a full buffer (ENOBUFS) or a cut message is [`MonitorError::Overflow`]
//! and never silence. Events of network devices reach only the namespace that the socket was opened in.
//!
//! After an overflow: [`Monitor::drain`], then enumerate, then [`crate::inventory::Inventory::resync`]. What
//! is left in the buffer is older than what was lost, so events must not be applied after the overflow.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    UnixCredentials, sockopt,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::device::SYS_ROOT;
use crate::event::{Event, EventError};
use crate::{sysfs, udevd};

/// udevd listens here where it runs.
pub const UDEV_CONTROL: &str = "/run/udev/control";
/// Receive buffer to ask for, in bytes: as udevd itself does. The kernel only fills it when needed.
pub const RECEIVE_BUFFER: usize = 128 * 1024 * 1024;
/// The kernel's multicast group.
const GROUP_KERNEL: u32 = 1;
/// udevd's.
const GROUP_UDEV: u32 = 2;
/// Longest message read; the kernel's are below 4 KiB, udevd's have what its rules add.
const MESSAGE_MAX: usize = 64 * 1024;

/// Where events come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// udevd where `/run/udev/control` is there, else the kernel.
    #[default]
    Auto,
    /// udevd: properties from its rules and hardware database.
    Udev,
    /// The kernel.
    Kernel,
}

impl Source {
    /// What `Auto` means on this machine now: `Udev` or `Kernel`.
    pub fn resolve(self) -> Source {
        match self {
            Source::Auto if Path::new(UDEV_CONTROL).exists() => Source::Udev,
            Source::Auto => Source::Kernel,
            source => source,
        }
    }
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        match text {
            "auto" => Ok(Source::Auto),
            "udev" => Ok(Source::Udev),
            "kernel" => Ok(Source::Kernel),
            _ => Err("expected auto, udev or kernel".to_owned()),
        }
    }
}

/// Why the socket cannot be opened.
#[derive(Debug, Error)]
#[error("cannot open the {source_name} event socket: {step}: {source}")]
pub struct OpenError {
    /// `kernel` or `udev`.
    pub source_name: &'static str,
    /// The call that failed.
    pub step: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl OpenError {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        (self.source.raw_os_error() == Some(libc::EAFNOSUPPORT)
            || self.source.raw_os_error() == Some(libc::EPROTONOSUPPORT))
        .then(|| {
            "AF_NETLINK is forbidden: see RestrictAddressFamilies= of the unit or its seccomp filter"
                .to_owned()
        })
    }
}

/// Why there is no next event.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// Events were lost: drain, enumerate, resync.
    #[error("the receive buffer of the event socket overflowed: events were lost")]
    Overflow,
    /// The socket is broken.
    #[error("cannot read the event socket: {0}")]
    Socket(#[source] io::Error),
}

impl MonitorError {
    /// What to change.
    pub fn hint(&self) -> Option<String> {
        matches!(self, MonitorError::Overflow)
            .then(|| "grant CAP_NET_ADMIN (SO_RCVBUFFORCE) or raise net.core.rmem_max".to_owned())
    }
}

/// What a monitor has counted since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Events handed out.
    pub events: u64,
    /// Times that the buffer overflowed (each may stand for many lost events).
    pub overflows: u64,
    /// Messages dropped because they did not come from the kernel or root.
    pub untrusted: u64,
    /// Messages dropped because they made no sense.
    pub malformed: u64,
}

/// An open event socket.
pub struct Monitor {
    source: Source,
    socket: OwnedFd,
    buffer: Vec<u8>,
    control: Vec<u8>,
    sys_root: Arc<Path>,
    counters: Counters,
    last_malformed: Option<EventError>,
    /// Events up to this number are older than the last enumeration.
    stale: u64,
}

impl Monitor {
    /// Opens the socket in the calling thread's network namespace. `receive_buffer`: bytes to ask for
    /// ([`RECEIVE_BUFFER`]), forced where the capability allows, else as much as the kernel grants.
    ///
    /// # Errors
    /// [`OpenError`] with the call that failed.
    pub fn open(source: Source, receive_buffer: usize) -> Result<Monitor, OpenError> {
        let (source, name, group) = match source.resolve() {
            Source::Udev => (Source::Udev, "udev", GROUP_UDEV),
            _ => (Source::Kernel, "kernel", GROUP_KERNEL),
        };
        let socket = open_group(group).map_err(failed(name, "socket"))?;
        let monitor = Monitor::on(source, socket);
        let fd = monitor.as_fd();
        if socket::setsockopt(&fd, sockopt::RcvBufForce, &receive_buffer).is_err() {
            socket::setsockopt(&fd, sockopt::RcvBuf, &receive_buffer)
                .map_err(|e| failed(name, "setsockopt SO_RCVBUF")(e.into()))?;
        }
        Ok(monitor)
    }

    /// Takes over a socket that another process opened with [`Monitor::open`] (kernel source), e.g. in a
    /// container's network namespace.
    pub fn from_kernel_socket(socket: OwnedFd) -> Monitor {
        Monitor::on(Source::Kernel, socket)
    }

    fn on(source: Source, socket: OwnedFd) -> Monitor {
        Monitor {
            source,
            socket,
            buffer: vec![0; MESSAGE_MAX],
            control: nix::cmsg_space!(UnixCredentials),
            sys_root: Path::new(SYS_ROOT).into(),
            counters: Counters::default(),
            last_malformed: None,
            stale: 0,
        }
    }

    /// `Udev` or `Kernel`.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Size of the receive buffer as the kernel has it, in bytes (it doubles what was asked for).
    pub fn receive_buffer(&self) -> usize {
        socket::getsockopt(&self.as_fd(), sockopt::RcvBuf).unwrap_or(0)
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why the last malformed message was dropped; for a log line.
    pub fn last_malformed(&mut self) -> Option<EventError> {
        self.last_malformed.take()
    }

    /// The next event; `None`: there is none now, poll the descriptor.
    ///
    /// # Errors
    /// [`MonitorError::Overflow`]: events were lost. [`MonitorError::Socket`]: open a new one.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Event>, MonitorError> {
        loop {
            match self.receive() {
                Received::Event(event) if event.seqnum <= self.stale && event.seqnum > 0 => {}
                Received::Event(event) => {
                    self.counters.events += 1;
                    return Ok(Some(*event));
                }
                Received::Malformed(error) => {
                    self.counters.malformed += 1;
                    self.last_malformed = Some(error);
                }
                Received::Untrusted => self.counters.untrusted += 1,
                Received::Failed(Errno::EINTR) => {}
                Received::Failed(Errno::EAGAIN) => return Ok(None),
                Received::Failed(Errno::ENOBUFS) => {
                    self.counters.overflows += 1;
                    return Err(MonitorError::Overflow);
                }
                Received::Failed(errno) => return Err(MonitorError::Socket(errno.into())),
            }
        }
    }

    /// Throws away what is in the buffer, further overflows included; call it before the enumeration that
    /// follows an overflow. From the kernel at most `limit` messages are read now, so that a storm cannot hold
    /// the caller; what is older than this call and still comes is thrown away by [`Monitor::next`]. Returns how
    /// many messages went.
    ///
    /// That is safe because the kernel takes a device's links and `uevent` file away before it sends `remove`,
    /// and udevd writes its database before it sends anything.
    ///
    /// # Errors
    /// [`MonitorError::Socket`].
    pub fn drain(&mut self, limit: usize) -> Result<usize, MonitorError> {
        let (newest, limit) = match self.source() {
            // udevd may still be busy with older numbers: only what it has sent is stale. It sends slower than
            // this reads.
            Source::Udev => (None, usize::MAX),
            _ => (newest_seqnum(&self.sys_root), limit),
        };
        let mut dropped = 0;
        while dropped < limit {
            match self.next() {
                Ok(None) => break,
                Ok(Some(event)) => {
                    dropped += 1;
                    if newest.is_some_and(|newest| event.seqnum > newest) {
                        break;
                    }
                }
                Err(MonitorError::Overflow) => dropped += 1,
                Err(error) => return Err(error),
            }
        }
        self.stale = newest.unwrap_or(0);
        Ok(dropped)
    }
}

/// The number of the last event the kernel sent.
fn newest_seqnum(sys_root: &Path) -> Option<u64> {
    let text = sysfs::read_bounded(&sys_root.join("kernel/uevent_seqnum"))?;
    std::str::from_utf8(&text).ok()?.trim().parse().ok()
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

fn failed(source_name: &'static str, step: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError {
        source_name,
        step,
        source,
    }
}

fn open_group(group: u32) -> io::Result<OwnedFd> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    socket::setsockopt(&socket, sockopt::PassCred, &true)?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, group))?;
    Ok(socket)
}

enum Received {
    Event(Box<Event>),
    Malformed(EventError),
    Untrusted,
    Failed(Errno),
}

impl Monitor {
    fn receive(&mut self) -> Received {
        let mut iov = [IoSliceMut::new(&mut self.buffer)];
        let (fd, control) = (self.socket.as_raw_fd(), Some(&mut self.control[..]));
        let message = socket::recvmsg::<NetlinkAddr>(fd, &mut iov, control, MsgFlags::MSG_DONTWAIT);
        let (length, trusted) = match message {
            Err(errno) => return Received::Failed(errno),
            // A cut message is a lost one.
            Ok(m) if m.flags.contains(MsgFlags::MSG_TRUNC) => return Received::Failed(Errno::ENOBUFS),
            Ok(m) => {
                let from = m.address.is_some_and(|a| match self.source {
                    // To the group: anybody may send to a port.
                    Source::Udev => a.groups() == GROUP_UDEV,
                    _ => a.pid() == 0,
                });
                let by_root = m.cmsgs().is_ok_and(|mut all| {
                    all.any(|c| matches!(c, ControlMessageOwned::ScmCredentials(c) if c.uid() == 0))
                });
                (m.bytes, from && by_root)
            }
        };
        if !trusted {
            return Received::Untrusted;
        }
        let message = &self.buffer[..length];
        let parsed = match self.source {
            Source::Udev => udevd::parse(message, &self.sys_root),
            _ => Event::parse_kernel(message, &self.sys_root),
        };
        match parsed {
            Ok(event) => Received::Event(Box::new(event)),
            Err(error) => Received::Malformed(error),
        }
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
