//! Devices given to and taken from the container, before its first instruction and while it runs.
//!
//! Invariants: all that is given together goes in, or none of it; what is taken is tried to the end.

use super::Monitor;
use crate::compose::chain;
use crate::vfio::{self, Sys};
use crate::wire::{DeviceGrant, InterfaceGrant, Phase, Refusal};

/// Number of /dev/vfio/vfio (include/linux/miscdevice.h).
const MISC: u32 = 10;
const VFIO_MINOR: u32 = 196;

fn refusal(stage: &str, message: String, hint: Option<String>) -> Refusal {
    Refusal {
        stage: stage.into(),
        message,
        hint,
    }
}

impl Monitor<'_> {
    /// udev's links to the nodes that are there.
    pub(super) fn link_devices(&mut self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        let Some(container) = &self.container else {
            return Ok(());
        };
        for device in devices
            .iter()
            .filter(|d| d.mount.is_none() && !d.links.is_empty())
        {
            container
                .link_device(device.path.as_ref(), &device.links)
                .map_err(|e| refusal("device", chain(&e), e.hint()))?;
        }
        Ok(())
    }

    /// PCI functions: bound, and the nodes of their groups put inside.
    pub(super) fn give_functions(&mut self) -> Result<(), Refusal> {
        if self.request.vfio.is_empty() {
            return Ok(());
        }
        let (sys, id) = (Sys::default(), self.request.id.clone());
        let allowed = |address: &str| self.policy.function(address);
        let groups = vfio::bind(&sys, &self.paths, &id, &self.request.vfio, allowed)?;
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        let node = |path: String, major, minor| berth_runtime::Device {
            block: false,
            major,
            minor,
            path: path.into(),
            access: "rw".into(),
            mode: 0o660,
            uid: 0,
            gid: 0,
        };
        let mut nodes = Vec::new();
        // The profile may have it already.
        let own = format!("/proc/{}/root/dev/vfio/vfio", container.pid());
        if std::path::Path::new(&own).symlink_metadata().is_err() {
            nodes.push(node("/dev/vfio/vfio".into(), MISC, VFIO_MINOR));
        }
        for group in groups {
            let (major, minor) = vfio::group_node(&sys, group)?;
            nodes.push(node(format!("/dev/vfio/{group}"), major, minor));
        }
        for node in &nodes {
            container
                .inject_device(node)
                .map_err(|e| refusal("vfio", chain(&e), e.hint()))?;
        }
        self.mark("vfio");
        Ok(())
    }

    /// The file systems of devices.
    pub(super) fn mount_devices(&mut self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        for wanted in devices.iter().filter_map(crate::compose::filesystem) {
            let hint =
                "types and label: `filesystem` of the rule; the folder must be in the image".to_owned();
            container
                .mount_device(&wanted)
                .map_err(|e| refusal("mount", chain(&e), e.hint().or(Some(hint))))?;
        }
        Ok(())
    }

    /// Gives a running container devices: all or none.
    pub(super) fn give(
        &mut self,
        devices: Vec<DeviceGrant>,
        interfaces: Vec<InterfaceGrant>,
    ) -> Result<(), Refusal> {
        self.living("inject", &[Phase::Running, Phase::Frozen])?;
        let had = |request: &crate::wire::LaunchRequest, device: &DeviceGrant| {
            request.devices.iter().any(|d| d.path == device.path)
        };
        if let Some(twice) = devices.iter().find(|device| had(&self.request, device)) {
            let message = format!("{} is there already", twice.path);
            return Err(refusal("inject", message, None));
        }
        for device in &devices {
            self.node_is_there(device).map_err(|e| Refusal {
                stage: "inject".into(),
                ..e
            })?;
        }
        let mut given = self.inject(&devices, &interfaces);
        if given.is_ok() {
            given = self.tell_added(&devices);
        }
        if let Err(error) = given {
            // What went in before it failed goes out again; what never went in is no loss.
            let left = self.take(&devices, &interfaces).err();
            let message = match left {
                Some(left) => format!("{}; could not be undone: {}", error.message, left.message),
                None => error.message,
            };
            return Err(Refusal {
                stage: "inject".into(),
                message,
                ..error
            });
        }
        self.request.devices.extend(devices);
        self.request.interfaces.extend(interfaces);
        Ok(())
    }

    /// A device that has gone since its event came is not given: its number may be another's by now.
    pub(super) fn node_is_there(&self, device: &DeviceGrant) -> Result<(), Refusal> {
        let kind = if device.block { "block" } else { "char" };
        let path = format!("/sys/dev/{kind}/{}:{}", device.major, device.minor);
        match std::path::Path::new(&path).symlink_metadata() {
            Ok(_) => Ok(()),
            Err(e) => Err(refusal(
                "device",
                format!("{} has gone: {path}: {e}", device.path),
                None,
            )),
        }
    }

    /// Takes devices back: every one is tried, the first error is told.
    pub(super) fn take(
        &mut self,
        devices: &[DeviceGrant],
        interfaces: &[InterfaceGrant],
    ) -> Result<(), Refusal> {
        let back = self.take_interfaces(interfaces);
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        let mut failed = None;
        for device in devices {
            if let Some(mounted) = crate::compose::filesystem(device) {
                if let Err(e) = container.unmount_device(&mounted) {
                    failed.get_or_insert(refusal("eject", chain(&e), e.hint()));
                }
                continue;
            }
            container.unlink_device(device.path.as_ref(), &device.links);
            if let Err(e) = container.eject_device(&crate::compose::device(device)) {
                failed.get_or_insert(refusal("eject", chain(&e), e.hint()));
            }
        }
        if let Err(e) = self.tell_removed(devices) {
            failed.get_or_insert(e);
        }
        let same = |a: &DeviceGrant, b: &DeviceGrant| {
            a.path == b.path && (a.block, a.major, a.minor) == (b.block, b.major, b.minor)
        };
        self.request
            .devices
            .retain(|had| !devices.iter().any(|gone| same(had, gone)));
        failed.map_or(back, Err)
    }

    pub(super) fn inject(
        &mut self,
        devices: &[DeviceGrant],
        interfaces: &[InterfaceGrant],
    ) -> Result<(), Refusal> {
        for device in devices {
            self.node_is_there(device)?;
        }
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        for device in devices.iter().filter(|d| d.mount.is_none()) {
            container
                .inject_device(&crate::compose::device(device))
                .map_err(|e| refusal("device", chain(&e), e.hint()))?;
        }
        self.link_devices(devices)?;
        self.note_devices(devices)?;
        self.mount_devices(devices)?;
        let Some(container) = &mut self.container else {
            return Ok(());
        };
        for interface in interfaces {
            container
                .move_interface_in(&crate::compose::interface(interface))
                .map_err(|e| refusal("interface", chain(&e), e.hint()))?;
        }
        self.watch_links(interfaces)
    }
}
