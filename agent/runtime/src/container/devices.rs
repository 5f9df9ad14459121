//! Devices and network interfaces that come and go while the container is there.
//!
//! Invariants: a device is allowed before its node is made and denied before the node is taken away; the promise
//! follows, so that the next proof asks for what is true now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_rt::cgroup::{Access, DeviceKind, DeviceRule};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::{Container, ContainerError};
use crate::net;
use crate::plan::Interface;
use crate::proof::InterfacePromise;
use crate::recipe::{Node, NodeKind, Users};
use crate::report::Failure;

/// A device to be put into a running or armed container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Block, or character.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Path inside, absolute.
    pub path: PathBuf,
    /// Some of `r`, `w`, `m`.
    pub access: String,
    /// File mode, 0 to 7777 octal.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

impl Device {
    fn node(&self) -> Node {
        Node {
            path: self.path.clone(),
            kind: if self.block {
                NodeKind::Block
            } else {
                NodeKind::Char
            },
            major: self.major,
            minor: self.minor,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        }
    }

    fn rule(&self, allow: bool, access: Access) -> DeviceRule {
        let kind = if self.block {
            DeviceKind::Block
        } else {
            DeviceKind::Char
        };
        DeviceRule::device(allow, kind, self.major, self.minor, access)
    }

    fn word(&self) -> String {
        let ordered: String = "rwm".chars().filter(|c| self.access.contains(*c)).collect();
        format!(
            "{} {}:{} {ordered}",
            if self.block { 'b' } else { 'c' },
            self.major,
            self.minor
        )
    }
}

impl Container {
    pub(super) fn root(&self) -> Result<OwnedFd, ContainerError> {
        if !self.alive() {
            return Err(self.not_running());
        }
        let path = format!("/proc/{}/root", self.record.pid);
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty()).map_err(|errno| match errno {
            // It has ended since it was asked: its root went before its pidfd says so.
            Errno::ENOENT | Errno::ESRCH => self.not_running(),
            errno => Failure::new("open", &path, errno).into(),
        })
    }

    /// Give the container a device: permission in its cgroup, then the node in its /dev.
    ///
    /// # Errors
    /// Permission or node cannot be made; the permission is taken back when the node fails.
    pub fn inject_device(&mut self, device: &Device) -> Result<(), ContainerError> {
        let bad = |reason: &str| ContainerError::BadDevice {
            path: device.path.clone(),
            reason: reason.to_owned(),
        };
        if !device.path.starts_with("/dev/") || device.path.components().any(|c| c.as_os_str() == "..") {
            return Err(bad("the path must lie below /dev"));
        }
        let access: Access = device.access.parse().map_err(|e: String| bad(&e))?;
        let root = self.root()?;
        self.group()?.allow_device(&device.rule(true, access))?;
        // Made from outside on a file system of the host's users, with the host's ids of its owner.
        let promise = &self.record.promise;
        let users = match (&promise.uid_map, &promise.gid_map) {
            (Some(uids), Some(gids)) => Some(Users {
                uids: uids.clone(),
                gids: gids.clone(),
                idmap_root: false,
            }),
            _ => None,
        };
        if let Err(failure) = crate::dev::inject(root.as_fd(), &device.node(), users.as_ref()) {
            self.group()?.deny_device(&device.rule(false, access))?;
            return Err(failure.into());
        }
        if let Some(devices) = &mut self.record.promise.devices {
            devices.push(device.word());
        }
        Ok(())
    }

    /// Make links to a device's node: `links` are paths below the container's /dev. One whose name is taken is left out.
    ///
    /// # Errors
    /// A link cannot be made for another reason.
    pub fn link_device(&self, node: &Path, links: &[String]) -> Result<(), ContainerError> {
        let root = self.root()?;
        for link in links {
            crate::dev::link(root.as_fd(), &Path::new("/dev").join(link), node)?;
        }
        Ok(())
    }

    /// Take those links away that are still links to the node.
    pub fn unlink_device(&self, node: &Path, links: &[String]) {
        // A container that has ended took them with it.
        let Ok(root) = self.root() else { return };
        for link in links {
            crate::dev::unlink(root.as_fd(), &Path::new("/dev").join(link), node);
        }
    }

    /// Take a device away: the permission, then the node if it is still that device.
    ///
    /// # Errors
    /// Both are tried; the first error is returned.
    pub fn eject_device(&mut self, device: &Device) -> Result<(), ContainerError> {
        let access: Access = device
            .access
            .parse()
            .map_err(|reason| ContainerError::BadDevice {
                path: device.path.clone(),
                reason,
            })?;
        let denied = self.group()?.deny_device(&device.rule(false, access));
        if denied.is_ok()
            && let Some(devices) = &mut self.record.promise.devices
            && let Some(at) = devices.iter().position(|d| *d == device.word())
        {
            devices.remove(at);
        }
        let removed = match self.root() {
            Ok(root) => crate::dev::eject(root.as_fd(), &device.node())
                .map(drop)
                .map_err(ContainerError::from),
            Err(ContainerError::NotRunning { .. }) => Ok(()), // the node went with its mount namespace
            Err(e) => Err(e),
        };
        denied?;
        removed
    }

    /// Move a network interface of the caller's namespace into the container's, rename it there and bring it up.
    ///
    /// # Errors
    /// `NetError` with the interface's name.
    pub fn move_interface_in(&mut self, interface: &Interface) -> Result<(), ContainerError> {
        if !self.alive() {
            return Err(self.not_running());
        }
        let namespace = net::namespace_of(Pid::from_raw(self.record.pid))?;
        let promise = net::move_into(interface, namespace.as_fd())?;
        self.record.promise.interfaces.push(promise);
        Ok(())
    }

    /// The interfaces it was given and still has.
    pub fn interfaces(&self) -> &[InterfacePromise] {
        &self.record.promise.interfaces
    }

    /// An interface has gone from the container's network namespace: it is promised no longer. `index`: inside.
    pub fn forget_interface(&mut self, index: u32) {
        self.record.promise.interfaces.retain(|i| i.index != index);
    }

    /// Move interfaces that it was given back into the caller's namespace, under the names and with the MTU they had
    /// there; VLANs are deleted. `outside`: those with these names outside; all where absent. One that has gone is no
    /// error. `namespace`: the container's, which may have ended.
    pub fn give_interfaces_back(
        &mut self,
        namespace: BorrowedFd<'_>,
        outside: Option<&[&str]>,
    ) -> Vec<crate::NetError> {
        let goes = |i: &InterfacePromise| outside.is_none_or(|names| names.contains(&i.outside.as_str()));
        let (go, stay) = std::mem::take(&mut self.record.promise.interfaces)
            .into_iter()
            .partition(goes);
        self.record.promise.interfaces = stay;
        let go: Vec<InterfacePromise> = go;
        net::give_back(namespace, &go)
    }

    /// Name and index of every interface in the container's network namespace.
    ///
    /// # Errors
    /// `NetError`.
    pub fn interfaces_inside(&self) -> Result<Vec<(String, u32)>, ContainerError> {
        if !self.alive() {
            return Err(self.not_running());
        }
        Ok(net::list_inside(Pid::from_raw(self.record.pid))?)
    }
}
