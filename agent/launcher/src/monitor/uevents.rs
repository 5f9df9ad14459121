//! Device events and records for the programs of the container ([`crate::uevent`]).
//!
//! Invariants: only devices that the container was given are told of; a record is there before its `add` is told and until
//! its `remove`; the socket lives for one event, for it pins the network namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType,
    UnixCredentials,
};

use super::Monitor;
use super::links::inside;
use crate::uevent::{self, Device};
use crate::wire::{DeviceGrant, Phase, Refusal};

/// udevd's multicast group.
const GROUP_UDEV: u32 = 2;

/// By block or not, major and minor.
type Number = (bool, u32, u32);

/// What was told of inside.
#[derive(Debug, Default)]
pub(super) struct Heard {
    devices: BTreeMap<Number, Device>,
}

fn number(device: &DeviceGrant) -> Number {
    (device.block, device.major, device.minor)
}

fn refusal(message: String, hint: Option<&str>) -> Refusal {
    Refusal {
        stage: "uevent".into(),
        message,
        hint: hint.map(str::to_owned),
    }
}

impl Monitor<'_> {
    fn udev_folder(&self) -> PathBuf {
        self.paths.udev(&self.request.id).join("data")
    }

    /// Writes the records of devices that it is given. Nothing is told yet.
    pub(super) fn note_devices(&mut self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        if !devices.iter().any(|device| device.uevents) {
            return Ok(());
        }
        if !self.request.udev {
            let message =
                "events of a device for a container that was made without a place for them".to_owned();
            return Err(refusal(message, None));
        }
        let folder = self.udev_folder();
        for grant in devices.iter().filter(|device| device.uevents) {
            let failed = |e: io::Error| refusal(format!("{}: {e}", grant.path), None);
            let (block, major, minor) = number(grant);
            let links = !grant.links.is_empty();
            let device = Device::read(block, major, minor, links, monotonic()).map_err(failed)?;
            for (name, text) in &device.records {
                uevent::write(&folder.join(name), text).map_err(failed)?;
            }
            self.heard.devices.insert(number(grant), device);
        }
        Ok(())
    }

    /// Tells the program that devices have come.
    pub(super) fn tell_added(&mut self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        for grant in devices.iter().filter(|device| device.uevents) {
            if let Some(device) = self.heard.devices.get(&number(grant)) {
                self.tell_event(device, "add", &[])?;
            }
        }
        Ok(())
    }

    /// Takes the records away and tells the program that devices have gone.
    pub(super) fn tell_removed(&mut self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        let mut failed = None;
        for grant in devices {
            let Some(device) = self.heard.devices.remove(&number(grant)) else {
                continue;
            };
            let folder = self.udev_folder();
            // Those of what it hangs on may be another device's too.
            for (name, _) in &device.records {
                let kept = |other: &Device| other.records.iter().any(|(same, _)| same == name);
                if !self.heard.devices.values().any(kept)
                    && let Err(e) = crate::paths::remove_file(&folder.join(name))
                {
                    failed.get_or_insert(refusal(e.to_string(), None));
                }
            }
            if let Err(e) = self.tell_event(&device, "remove", &[]) {
                failed.get_or_insert(e);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Something happened to a device that it has.
    pub(super) fn pass_on(
        &mut self,
        of: Number,
        action: &str,
        words: &[(String, String)],
    ) -> Result<(), Refusal> {
        if !matches!(self.phase, Phase::Running | Phase::Frozen | Phase::Stopping) {
            // Nobody is there who could hear it; what starts later finds the record.
            return Ok(());
        }
        if !uevent::ACTIONS.contains(&action) || matches!(action, "add" | "remove") {
            return Err(refusal(format!("{action:?} is nothing that is passed on"), None));
        }
        let Some(grant) = self.request.devices.iter().find(|d| d.uevents && number(d) == of) else {
            let (block, major, minor) = of;
            let kind = if block { 'b' } else { 'c' };
            return Err(refusal(
                format!("{kind} {major}:{minor} is no device whose events it was given"),
                None,
            ));
        };
        let grant = grant.clone();
        if self.node_is_there(&grant).is_err() {
            // Gone meanwhile: that is told when it is taken.
            return Ok(());
        }
        // The record first: who hears of it looks there.
        self.note_devices(std::slice::from_ref(&grant))?;
        match self.heard.devices.get(&of) {
            Some(device) => self.tell_event(device, action, &device.own_words(words)),
            None => Ok(()),
        }
    }

    fn tell_event(&self, device: &Device, action: &str, words: &[(String, String)]) -> Result<(), Refusal> {
        let Some(pid) = self.pid else { return Ok(()) };
        let failed = |step: &'static str| {
            move |e: io::Error| {
                let hint = match e.raw_os_error() {
                    Some(libc::EPERM) => {
                        Some("the launcher needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_SETUID")
                    }
                    _ => None,
                };
                refusal(format!("telling {action} inside: {step}: {e}"), hint)
            }
        };
        let root = |map: &str| first_id(&format!("/proc/{pid}/{map}"));
        let (uid, gid) = (
            root("uid_map").map_err(failed("uid_map"))?,
            root("gid_map").map_err(failed("gid_map"))?,
        );
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(failed("its network namespace"))?;
        let socket = inside(&namespace, open)
            .and_then(|opened| opened)
            .map_err(failed("socket"))?;
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let who = UnixCredentials::from(libc::ucred { pid: own, uid, gid });
        tell_kernel(&socket, &device.kernel_message(action, words), who).map_err(failed("the kernel"))?;
        let seqnum = std::fs::read_to_string("/sys/kernel/uevent_seqnum").map_err(failed("its number"))?;
        let seqnum = seqnum.trim().parse().unwrap_or(1);
        let message = device.udev_message(action, words, seqnum);
        match send(&socket, &message, NetlinkAddr::new(0, GROUP_UDEV), who) {
            // Nobody listens.
            Ok(()) | Err(Errno::ECONNREFUSED) => Ok(()),
            Err(e) => Err(failed("group 2")(e.into())),
        }
    }
}

/// Microseconds since boot.
fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(1, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// The id outside of who is 0 inside.
fn first_id(map: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(Path::new(map))?;
    let line = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("0"))
            .then(|| words.next()?.parse().ok())
            .flatten()
    });
    line.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nobody is root inside"))
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, bytes: &[u8], to: NetlinkAddr, who: UnixCredentials) -> Result<(), Errno> {
    let parts = [IoSlice::new(bytes)];
    let control = [ControlMessage::ScmCredentials(&who)];
    let sent = socket::sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(Errno::EMSGSIZE)
    }
}

/// Sends the kernel what it gives out as its own, and reads its answer.
fn tell_kernel(socket: &OwnedFd, payload: &[u8], who: UnixCredentials) -> io::Result<()> {
    const HEADER: usize = 16;
    const SEND: u16 = 16; // NLMSG_MIN_TYPE: below are control messages, which are not taken
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const ERROR: u16 = 2;
    let length = u32::try_from(HEADER + payload.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(SEND.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(payload);
    send(socket, &message, NetlinkAddr::new(0, 0), who)?;
    // The kernel has answered before sendmsg(2) returns.
    let mut answer = [0u8; 4096];
    let n = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    let kind = answer.get(4..6).filter(|_| n >= HEADER + 4);
    let code = answer[HEADER..HEADER + 4].try_into().map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(kind), Ok(0)) if kind == ERROR.to_ne_bytes() => Ok(()),
        (Some(kind), Ok(code)) if kind == ERROR.to_ne_bytes() => {
            Err(io::Error::from_raw_os_error(code.wrapping_neg()))
        }
        _ => Err(io::Error::other("no answer: Linux 4.18 is needed")),
    }
}
