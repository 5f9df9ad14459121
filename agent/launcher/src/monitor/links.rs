//! Interfaces that were moved into the container: are they still there?
//!
//! An rtnetlink(7) socket that belongs to the container's network namespace and is subscribed to link changes:
//! the kernel sends RTM_DELLINK there when a device is removed or moved on, and nothing of other namespaces. A
//! kobject uevent socket in that namespace would tell the same, and would wake every monitor for each plug of
//! any other device on the host (uevents without a network tag reach every namespace), which a real-time node
//! does not want.
//!
//! Invariants: this process is back in its own network namespace whenever a function of this file returns
//! (or it ends: a monitor in a foreign namespace serves nobody); the socket pins the namespace, so it is closed
//! before the container's end is told.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
const RTMGRP_LINK: u32 = 1;

/// The socket and the interfaces watched.
pub(crate) struct Links {
    socket: OwnedFd,
    namespace: File,
    watched: Vec<(u32, String)>,
}

impl Links {
    /// Watches `names` in the network namespace of process `pid`.
    pub(crate) fn open(pid: i32, names: &[String]) -> io::Result<Links> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let made = inside(&namespace, || -> io::Result<_> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkRoute,
            )?;
            socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK))?;
            let mut watched = Vec::new();
            for name in names {
                watched.push((if_nametoindex(name.as_str())?, name.clone()));
            }
            Ok((fd, watched))
        })?;
        let (socket, watched) = made?;
        Ok(Links {
            socket,
            namespace,
            watched,
        })
    }

    /// The namespace it watches.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Watches these indexes no longer.
    pub(crate) fn forget(&mut self, indexes: &[u32]) {
        self.watched.retain(|(index, _)| !indexes.contains(index));
    }

    /// Watches more.
    pub(crate) fn add(&mut self, names: &[String]) -> io::Result<()> {
        let found = inside(&self.namespace, || {
            names
                .iter()
                .map(|n| Ok((if_nametoindex(n.as_str())?, n.clone())))
                .collect::<io::Result<Vec<_>>>()
        })?;
        self.watched.extend(found?);
        Ok(())
    }

    /// Reads what came; gives the indexes and names that are gone.
    pub(crate) fn read(&mut self) -> Vec<(u32, String)> {
        let mut gone = Vec::new();
        let mut bytes = [0u8; 8192];
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return gone,
                Ok(n) => {
                    for change in changes(&bytes[..n]) {
                        self.apply(&change, &mut gone);
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ENOBUFS) => self.look(&mut gone),
                Err(_) => return gone,
            }
        }
    }

    fn apply(&mut self, change: &Change, gone: &mut Vec<(u32, String)>) {
        let Some(at) = self.watched.iter().position(|(index, _)| *index == change.index) else {
            return;
        };
        if change.removed {
            gone.push(self.watched.swap_remove(at));
        } else if let Some(name) = &change.name {
            self.watched[at].1.clone_from(name);
        }
    }

    /// Messages were lost: asks the namespace itself.
    fn look(&mut self, gone: &mut Vec<(u32, String)>) {
        let watched = std::mem::take(&mut self.watched);
        let there = inside(&self.namespace, || {
            watched
                .iter()
                .map(|(index, _)| nix::net::if_::if_indextoname(*index).is_ok())
                .collect::<Vec<_>>()
        });
        let there = there.unwrap_or_else(|_| vec![true; watched.len()]);
        for ((index, name), there) in watched.into_iter().zip(there) {
            if there {
                self.watched.push((index, name));
            } else {
                gone.push((index, name));
            }
        }
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Runs `work` in another network namespace.
pub(super) fn inside<T>(namespace: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    let own = File::open("/proc/self/ns/net")?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    if let Err(e) = setns(&own, CloneFlags::CLONE_NEWNET) {
        eprintln!("berth monitor: cannot go back to its own network namespace: {e}");
        std::process::abort();
    }
    Ok(result)
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    removed: bool,
    index: u32,
    name: Option<String>,
}

/// The link changes in one datagram. Pure; bytes that are no whole message end it.
fn changes(mut bytes: &[u8]) -> Vec<Change> {
    const HEADER: usize = 16;
    const INFO: usize = 16;
    let mut found = Vec::new();
    while let Some(length) = u32_at(bytes, 0).map(|n| n as usize) {
        if length < HEADER || length > bytes.len() {
            break;
        }
        let message = &bytes[..length];
        let kind = u16_at(message, 4).unwrap_or(0);
        // Family AF_UNSPEC: the link itself; AF_BRIDGE tells of ports.
        if (kind == RTM_NEWLINK || kind == RTM_DELLINK) && length >= HEADER + INFO && message[HEADER] == 0 {
            let index = u32_at(message, HEADER + 4).unwrap_or(0);
            let name = name(&message[HEADER + INFO..]);
            found.push(Change {
                removed: kind == RTM_DELLINK,
                index,
                name,
            });
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn name(mut attributes: &[u8]) -> Option<String> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        if length < 4 || length > attributes.len() {
            return None;
        }
        if kind == IFLA_IFNAME {
            let text = attributes[4..length]
                .split(|b| *b == 0)
                .next()
                .unwrap_or_default();
            return String::from_utf8(text.to_vec()).ok();
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, family: u8, index: u32, name: &str) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        body.extend((4 + name.len() as u16 + 1).to_ne_bytes());
        body.extend(IFLA_IFNAME.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        let length = 16 + body.len() as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn link_changes() {
        let mut bytes = message(RTM_DELLINK, 0, 7, "eth0");
        bytes.extend(message(RTM_DELLINK, 7, 8, "port"));
        bytes.extend(message(RTM_NEWLINK, 0, 9, "wan"));
        bytes.extend(message(24, 0, 10, "route"));
        let change = |removed, index, name: &str| Change {
            removed,
            index,
            name: Some(name.into()),
        };
        assert_eq!(
            changes(&bytes),
            [change(true, 7, "eth0"), change(false, 9, "wan")]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            changes(&bytes);
            name(&bytes);
        }
    }
}
