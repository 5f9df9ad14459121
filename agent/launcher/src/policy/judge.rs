//! A request beside the policy. Pure, but for the host's disks, which are looked at when a disk is asked for.

use std::path::Path;
use std::str::FromStr;

use berth_policies::Profile;
use berth_rt::cpu::CpuSet;
use berth_rt::sched::Scheduler;

use super::device::Wanted;
use super::{Disks, Policy, profile};
use crate::wire::{BindMount, DeviceGrant, InterfaceGrant, LaunchRequest, Network, Refusal};

/// A refusal of the stage `policy`; `setting` is the field of the policy that would have to say otherwise.
pub(super) fn no(message: impl Into<String>, setting: &str) -> Refusal {
    Refusal {
        stage: "policy".into(),
        message: message.into(),
        hint: Some(format!(
            "`{setting}` in the launcher's policy, /etc/berth/launcher/policy.yaml, decides"
        )),
    }
}

/// Is the name one of these, or does it begin as one that ends in `*`?
fn named(rules: &[String], name: &str) -> bool {
    rules.iter().any(|rule| match rule.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => rule == name,
    })
}

impl Policy {
    /// May `request` be launched, with the profile it names as it was resolved?
    ///
    /// # Errors
    /// The first thing that may not be asked for.
    pub fn judge(&self, request: &LaunchRequest, resolved: &Profile) -> Result<(), Refusal> {
        profile::judge(self, resolved)?;
        if let Some(images) = &self.images
            && !images.contains(&request.image)
        {
            return Err(no(
                format!("image {} is not among those that may run", request.image),
                "images",
            ));
        }
        self.cores(&request.placement.cpus)?;
        self.scheduling(request.scheduler.as_ref())?;
        if request.network == Network::Host && !self.host_network {
            return Err(no("the host's network may not be asked for", "hostNetwork"));
        }
        if let Some(cni) = &request.cni
            && !named(&self.networks, &cni.network)
        {
            let what = format!("network {} may not be asked for", cni.network);
            return Err(no(what, "networks"));
        }
        let ports = request.cni.iter().flat_map(|cni| &cni.ports);
        for port in ports {
            if !self.ports.iter().any(|word| word.covers(port)) {
                let at = port.address.map_or(String::new(), |a| format!(" of {a}"));
                let what = format!("port {}/{}{at} may not be asked for", port.host, port.protocol);
                return Err(no(what, "ports"));
            }
        }
        self.devices(&request.devices)?;
        self.interfaces(&request.interfaces)?;
        request
            .vfio
            .iter()
            .try_for_each(|one| self.function(&one.address))?;
        request.mounts.iter().try_for_each(|mount| self.mount(mount))
    }

    fn cores(&self, cpus: &str) -> Result<(), Refusal> {
        let Some(allowed) = self.cpus.as_deref().and_then(|text| CpuSet::from_str(text).ok()) else {
            return Ok(());
        };
        match CpuSet::from_str(cpus) {
            Ok(wanted) if wanted.is_subset(&allowed) => Ok(()),
            _ => Err(no(
                format!("CPUs {cpus} may not be asked for, only {allowed}"),
                "cpus",
            )),
        }
    }

    fn scheduling(&self, scheduler: Option<&Scheduler>) -> Result<(), Refusal> {
        match scheduler {
            Some(Scheduler::Fifo { priority } | Scheduler::Rr { priority })
                if *priority > self.realtime_priority =>
            {
                Err(no(
                    format!(
                        "real-time priority {priority}: {} at most",
                        self.realtime_priority
                    ),
                    "realtimePriority",
                ))
            }
            Some(Scheduler::Deadline { .. }) if !self.deadline => {
                Err(no("SCHED_DEADLINE may not be asked for", "deadline"))
            }
            _ => Ok(()),
        }
    }

    /// Devices, at launch or with `start`.
    ///
    /// # Errors
    /// The first that may not be asked for.
    pub fn devices(&self, devices: &[DeviceGrant]) -> Result<(), Refusal> {
        let mut disks = None;
        for device in devices {
            let wanted = Wanted {
                block: device.block,
                major: Some(device.major),
                minor: Some(device.minor),
                access: &device.access,
            };
            self.numbers(&wanted)?;
            if !device.block || self.devices.host_disks {
                continue;
            }
            let disks = match &disks {
                Some(disks) => disks,
                None => {
                    let found = Disks::of_host(Path::new("/"));
                    disks.insert(found.map_err(|e| {
                        no(
                            format!("the host's disks cannot be told: {e}"),
                            "devices.hostDisks",
                        )
                    })?)
                }
            };
            if disks.uses(device.major, device.minor) {
                return Err(no(
                    format!(
                        "b {}:{} is a disk that the host itself uses",
                        device.major, device.minor
                    ),
                    "devices.hostDisks",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn numbers(&self, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if wanted.block { 'b' } else { 'c' };
        let shown = format!(
            "{kind} {}:{} {}",
            number(wanted.major),
            number(wanted.minor),
            wanted.access
        );
        if let Some(word) = self.devices.deny.iter().find(|word| word.touches(wanted)) {
            return Err(no(
                format!("device {shown} is denied by {word:?}", word = word.to_string()),
                "devices.deny",
            ));
        }
        if !self.devices.allow.iter().any(|word| word.covers(wanted)) {
            return Err(no(
                format!("device {shown} may not be asked for"),
                "devices.allow",
            ));
        }
        Ok(())
    }

    /// Interfaces, at launch or with `start`.
    ///
    /// # Errors
    /// The first that may not be asked for.
    pub fn interfaces(&self, interfaces: &[InterfaceGrant]) -> Result<(), Refusal> {
        for interface in interfaces {
            if !named(&self.interfaces, &interface.name) {
                return Err(no(
                    format!("interface {} may not be asked for", interface.name),
                    "interfaces",
                ));
            }
        }
        Ok(())
    }

    /// A PCI function that is to be bound to vfio-pci.
    ///
    /// # Errors
    /// It may not be asked for, or a disk that the host uses hangs on it.
    pub fn function(&self, address: &str) -> Result<(), Refusal> {
        let matches = |rule: &String| match rule.strip_suffix('*') {
            Some(start) => address.starts_with(start),
            None => rule == address,
        };
        if !self.vfio.iter().any(matches) {
            return Err(no(format!("PCI function {address} may not be asked for"), "vfio"));
        }
        if self.devices.host_disks {
            return Ok(());
        }
        let root = Path::new("/");
        let disks = Disks::of_host(root).map_err(|e| {
            no(
                format!("the host's disks cannot be told: {e}"),
                "devices.hostDisks",
            )
        })?;
        if disks.any_below(root, &root.join("sys/bus/pci/devices").join(address)) {
            return Err(no(
                format!("a disk that the host itself uses hangs on PCI function {address}"),
                "devices.hostDisks",
            ));
        }
        Ok(())
    }

    fn mount(&self, mount: &BindMount) -> Result<(), Refusal> {
        let shown = mount.source.display();
        let mut below = self
            .mounts
            .iter()
            .filter(|rule| mount.source.starts_with(&rule.path))
            .peekable();
        if below.peek().is_none() {
            return Err(no(format!("mount source {shown} may not be asked for"), "mounts"));
        }
        if (!mount.read_only || mount.relabel.is_some()) && !below.any(|rule| rule.write) {
            return Err(no(
                format!("mount source {shown} may be asked for read-only alone"),
                "mounts",
            ));
        }
        Ok(())
    }
}
