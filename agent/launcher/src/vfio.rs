//! PCI functions for a container through VFIO: bound to vfio-pci, and given back to their former drivers.
//!
//! Interface: Documentation/driver-api/vfio.rst. A function is used through its IOMMU group (/dev/vfio/GROUP, and the container
//! node /dev/vfio/vfio), and the group is usable only when no other driver has any of its functions; bridges do not
//! count. `driver_override` keeps every other driver off; `drivers_probe` finds the driver anew.
//!
//! ```text
//! RUN/vfio/ID     what was bound and who had it before, written before anything is bound
//! ```
//! Invariants: all of a request is bound or none of it; the record outlives the monitor, so that the launcher's sweep gives
//! back what a killed one could not; giving back goes on after an error and tells all of them; a function that has gone is no
//! error.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::paths::{self, Paths};
use crate::wire::{Refusal, VfioGrant};

/// The driver.
const DRIVER: &str = "vfio-pci";
/// Drivers that may have another function of a group: they touch no device memory.
const HARMLESS: [&str; 3] = [DRIVER, "pci-stub", "pcieport"];

/// What was bound for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    functions: Vec<Bound>,
}

/// One function, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    address: String,
    group: u32,
    driver: Option<String>,
    /// `driver_override`; empty: none.
    before: String,
}

/// One function as sysfs has it.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    address: String,
    driver: Option<String>,
    before: String,
    /// Group, and the others in it: address, driver.
    group: u32,
    others: Vec<(String, Option<String>)>,
}

fn no(message: String, hint: Option<&str>) -> Refusal {
    Refusal {
        stage: "vfio".into(),
        message,
        hint: hint.map(str::to_owned),
    }
}

/// `0000:03:00.0`: domain, bus, device, function, all hexadecimal.
pub(crate) fn is_address(text: &str) -> bool {
    let hex = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len())
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let mut parts = text.split(':');
    let (Some(domain), Some(bus), Some(rest), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some((device, function)) = rest.split_once('.') else {
        return false;
    };
    hex(domain, 4..=8)
        && hex(bus, 2..=2)
        && hex(device, 2..=2)
        && function.len() == 1
        && (b'0'..=b'7').contains(&function.as_bytes()[0])
}

/// Where it is read and written; a recorded tree in tests.
#[derive(Debug, Clone)]
pub(crate) struct Sys(PathBuf);

impl Default for Sys {
    fn default() -> Sys {
        Sys("/sys".into())
    }
}

impl Sys {
    fn folder(&self, address: &str) -> PathBuf {
        self.0.join("bus/pci/devices").join(address)
    }

    fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.folder(address).join("driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Refusal> {
        // Never made: a file that is not there is a kernel's that lacks it.
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|e| no(format!("{}: {text:?}: {e}", path.display()), None))
    }

    fn look(&self, address: &str) -> Result<Function, Refusal> {
        let folder = self.folder(address);
        if !folder.exists() {
            return Err(no(format!("there is no PCI function {address} (any more)"), None));
        }
        let link = fs::read_link(folder.join("iommu_group")).ok();
        let group = link.and_then(|l| l.file_name()?.to_str()?.parse::<u32>().ok());
        let Some(group) = group else {
            return Err(no(
                format!("{address} is in no IOMMU group: nothing would keep it off the host's memory"),
                Some(
                    "kernel arguments intel_iommu=on or amd_iommu=on, and the firmware's VT-d or AMD-Vi setting",
                ),
            ));
        };
        let members = fs::read_dir(self.0.join(format!("kernel/iommu_groups/{group}/devices")))
            .map_err(|e| no(format!("IOMMU group {group}: {e}"), None))?;
        let mut others: Vec<(String, Option<String>)> = members
            .flatten()
            .filter_map(|member| member.file_name().into_string().ok())
            .filter(|other| other != address && !self.is_bridge(other))
            .map(|other| (other.clone(), self.driver(&other)))
            .collect();
        others.sort();
        let before = fs::read_to_string(folder.join("driver_override")).unwrap_or_default();
        Ok(Function {
            driver: self.driver(address),
            before: match before.trim() {
                "(null)" => String::new(),
                other => other.to_owned(),
            },
            address: address.to_owned(),
            group,
            others,
        })
    }

    fn is_bridge(&self, address: &str) -> bool {
        fs::read_to_string(self.folder(address).join("class")).is_ok_and(|class| class.starts_with("0x06"))
    }

    /// What is to be bound for `wanted`; `allowed`: may this one be?
    fn plan(
        &self,
        wanted: &[VfioGrant],
        held: &BTreeSet<u32>,
        allowed: impl Fn(&str) -> Result<(), Refusal>,
    ) -> Result<Vec<Bound>, Refusal> {
        if !self.0.join("bus/pci/drivers").join(DRIVER).exists() {
            return Err(no(
                format!("this kernel has no driver {DRIVER}"),
                Some("modprobe vfio-pci, at boot by a file in /etc/modules-load.d"),
            ));
        }
        let mut plan: Vec<Bound> = Vec::new();
        let named = |address: &str| wanted.iter().any(|w| w.address == address);
        for grant in wanted {
            let function = self.look(&grant.address)?;
            if held.contains(&function.group) {
                return Err(no(
                    format!(
                        "IOMMU group {} of {} is another container's",
                        function.group, function.address
                    ),
                    Some("functions of one group go to one container"),
                ));
            }
            let strange = function.others.iter().filter(|(address, driver)| {
                !named(address)
                    && driver
                        .as_ref()
                        .is_some_and(|driver| !HARMLESS.contains(&driver.as_str()))
            });
            let strange: Vec<String> = strange
                .map(|(address, driver)| format!("{address} ({})", driver.as_deref().unwrap_or_default()))
                .collect();
            if !strange.is_empty() && !grant.whole_group {
                let text = format!(
                    "IOMMU group {} of {} has others that drivers of the host have: {}",
                    function.group,
                    function.address,
                    strange.join(", ")
                );
                return Err(no(text, Some("`vfio: {wholeGroup: true}` takes them too")));
            }
            let others = function.others.iter().filter(|_| grant.whole_group);
            let all: Vec<String> = std::iter::once(&function.address)
                .chain(others.map(|(address, _)| address))
                .cloned()
                .collect();
            for address in all {
                if plan.iter().any(|bound| bound.address == address) {
                    continue;
                }
                allowed(&address)?;
                let function = self.look(&address)?;
                plan.push(Bound {
                    address,
                    group: function.group,
                    driver: function.driver,
                    before: function.before,
                });
            }
        }
        Ok(plan)
    }

    fn bind(&self, one: &Bound) -> Result<(), Refusal> {
        let folder = self.folder(&one.address);
        if one.driver.as_deref() == Some(DRIVER) {
            return Ok(());
        }
        self.write(&folder.join("driver_override"), DRIVER)?;
        if one.driver.is_some() {
            self.write(&folder.join("driver/unbind"), &one.address)?;
        }
        self.write(&self.0.join("bus/pci/drivers_probe"), &one.address)?;
        match self.driver(&one.address) {
            Some(driver) if driver == DRIVER => Ok(()),
            other => Err(no(
                format!(
                    "{} was not bound to {DRIVER}: its driver is {}",
                    one.address,
                    other.as_deref().unwrap_or("none")
                ),
                Some("the kernel's log says why"),
            )),
        }
    }

    /// Back to the driver it had.
    fn unbind(&self, one: &Bound) -> Result<(), Refusal> {
        let folder = self.folder(&one.address);
        if one.driver.as_deref() == Some(DRIVER) || !folder.exists() {
            return Ok(());
        }
        let before = match one.before.as_str() {
            "" => "\n",
            name => name,
        };
        self.write(&folder.join("driver_override"), before)?;
        if self.driver(&one.address).as_deref() == Some(DRIVER) {
            self.write(&folder.join("driver/unbind"), &one.address)?;
        }
        if let Some(wanted) = &one.driver
            && self.driver(&one.address).as_ref() != Some(wanted)
        {
            self.write(&self.0.join("bus/pci/drivers_probe"), &one.address)?;
            let now = self.driver(&one.address);
            // It may have been pulled out meanwhile.
            if now.as_ref() != Some(wanted) && folder.exists() {
                let now = now.as_deref().unwrap_or("none");
                return Err(no(
                    format!("{} had the driver {wanted}, and has {now} now", one.address),
                    None,
                ));
            }
        }
        Ok(())
    }
}

/// Ids for which something is bound.
pub(crate) fn known(paths: &Paths) -> Vec<String> {
    let entries = fs::read_dir(paths.vfio("")).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn record(path: &Path) -> io::Result<Option<Record>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Binds what is wanted for the container `id`; the groups it may open then.
///
/// # Errors
/// What cannot be bound, and why; then nothing is.
pub(crate) fn bind(
    sys: &Sys,
    paths: &Paths,
    id: &str,
    wanted: &[VfioGrant],
    allowed: impl Fn(&str) -> Result<(), Refusal>,
) -> Result<Vec<u32>, Refusal> {
    let mut held = BTreeSet::new();
    for other in known(paths).iter().filter(|other| *other != id) {
        let other =
            record(&paths.vfio(other)).map_err(|e| no(format!("the record of {other}: {e}"), None))?;
        held.extend(
            other
                .iter()
                .flat_map(|record| record.functions.iter().map(|f| f.group)),
        );
    }
    let record = Record {
        functions: sys.plan(wanted, &held, allowed)?,
    };
    let path = paths.vfio(id);
    let bytes = serde_json::to_vec(&record).map_err(|e| no(e.to_string(), None))?;
    fs::write(&path, bytes).map_err(|e| no(format!("{}: {e}", path.display()), None))?;
    for one in &record.functions {
        if let Err(mut refused) = sys.bind(one) {
            for error in give_back(sys, paths, id) {
                refused.message = format!("{}; {error}", refused.message);
            }
            return Err(refused);
        }
    }
    let groups: BTreeSet<u32> = record.functions.iter().map(|f| f.group).collect();
    Ok(groups.into_iter().collect())
}

/// Gives back all that was bound for `id`. The record stays as long as something of it could not be.
pub(crate) fn give_back(sys: &Sys, paths: &Paths, id: &str) -> Vec<String> {
    let path = paths.vfio(id);
    let record = match record(&path) {
        Ok(Some(record)) => record,
        Ok(None) => return Vec::new(),
        Err(e) => return vec![format!("{}: {e}", path.display())],
    };
    let functions = record.functions.iter();
    let mut errors: Vec<String> = functions
        .filter_map(|one| sys.unbind(one).err())
        .map(|e| e.message)
        .collect();
    if errors.is_empty()
        && let Err(e) = paths::remove_file(&path)
    {
        errors.push(e.to_string());
    }
    errors
}

/// Number of a group's node: it is there once a function of the group is bound.
///
/// # Errors
/// It is not.
pub(crate) fn group_node(sys: &Sys, group: u32) -> Result<(u32, u32), Refusal> {
    let path = sys.0.join(format!("class/vfio/{group}/dev"));
    let text = fs::read_to_string(&path).map_err(|e| no(format!("{}: {e}", path.display()), None))?;
    let number = text.trim().split_once(':');
    number
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| no(format!("{}: {text:?} is no device number", path.display()), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree as a machine has it: 03:00.0 (nvme) and 03:00.1 (xhci) in group 7 behind a bridge, 04:00.0 alone in group 8
    /// without a driver, 05:00.0 in none.
    fn tree() -> (tempfile::TempDir, Sys, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        let devices = sys.join("bus/pci/devices");
        for driver in ["vfio-pci", "nvme", "xhci_hcd", "pcieport"] {
            let folder = sys.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("unbind"), "").unwrap();
        }
        fs::write(sys.join("bus/pci/drivers_probe"), "").unwrap();
        for (address, driver, group, class) in [
            ("0000:00:1c.0", "pcieport", Some(7), "0x060400"),
            ("0000:03:00.0", "nvme", Some(7), "0x010802"),
            ("0000:03:00.1", "xhci_hcd", Some(7), "0x0c0330"),
            ("0000:04:00.0", "", Some(8), "0x020000"),
            ("0000:05:00.0", "nvme", None, "0x010802"),
        ] {
            let folder = devices.join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("driver_override"), "(null)\n").unwrap();
            fs::write(folder.join("class"), format!("{class}\n")).unwrap();
            if !driver.is_empty() {
                symlink(format!("../../drivers/{driver}"), folder.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let members = sys.join(format!("kernel/iommu_groups/{group}/devices"));
                fs::create_dir_all(&members).unwrap();
                fs::write(members.join(address), "").unwrap();
                symlink(
                    format!("../../../../kernel/iommu_groups/{group}"),
                    folder.join("iommu_group"),
                )
                .unwrap();
            }
        }
        let paths = Paths {
            run: dir.path().join("run"),
            state: dir.path().join("state"),
            config: dir.path().join("etc"),
        };
        fs::create_dir_all(paths.vfio("")).unwrap();
        (dir, Sys(sys), paths)
    }

    fn grant(address: &str, whole_group: bool) -> Vec<VfioGrant> {
        vec![VfioGrant {
            address: address.into(),
            whole_group,
        }]
    }

    #[test]
    fn addresses() {
        for good in ["0000:03:00.0", "10000:ff:1f.7"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "03:00.0",
            "0000:03:00",
            "0000:03:00.8",
            "0000:03:00.0/..",
            "0000:0g:00.0",
            "0000:03:00.0:1",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn the_whole_group_is_looked_at() {
        let (_dir, sys, _) = tree();
        let plan = |address: &str, whole| {
            let plan = sys.plan(&grant(address, whole), &BTreeSet::from([9]), |_| Ok(()));
            plan.map(|all| all.into_iter().map(|b| b.address).collect::<Vec<_>>())
                .map_err(|e| e.message)
        };
        let refused = plan("0000:03:00.0", false).unwrap_err();
        assert!(
            refused.contains("0000:03:00.1 (xhci_hcd)") && !refused.contains("1c.0"),
            "{refused}"
        );
        assert_eq!(
            plan("0000:03:00.0", true).unwrap(),
            ["0000:03:00.0", "0000:03:00.1"]
        );
        assert_eq!(plan("0000:04:00.0", false).unwrap(), ["0000:04:00.0"]);
        assert!(
            plan("0000:05:00.0", false)
                .unwrap_err()
                .contains("in no IOMMU group")
        );
        assert!(
            plan("0000:06:00.0", false)
                .unwrap_err()
                .contains("no PCI function")
        );
        let held = sys.plan(&grant("0000:04:00.0", false), &BTreeSet::from([8]), |_| Ok(()));
        assert!(held.unwrap_err().message.contains("another container's"));
        let asked = |address: &str| Err(no(format!("{address} may not"), None));
        let not_allowed = sys.plan(&grant("0000:03:00.0", true), &BTreeSet::new(), asked);
        assert_eq!(not_allowed.unwrap_err().message, "0000:03:00.0 may not");
        fs::remove_dir_all(sys.0.join("bus/pci/drivers/vfio-pci")).unwrap();
        assert!(
            plan("0000:04:00.0", false)
                .unwrap_err()
                .contains("no driver vfio-pci")
        );
    }

    /// The tree is no kernel: nothing is bound by what is written. What was done is taken back, and told.
    #[test]
    fn what_cannot_be_bound_is_given_back() {
        let (_dir, sys, paths) = tree();
        let refused = bind(&sys, &paths, "c1", &grant("0000:04:00.0", false), |_| Ok(())).unwrap_err();
        assert!(
            refused
                .message
                .contains("0000:04:00.0 was not bound to vfio-pci: its driver is none"),
            "{}",
            refused.message
        );
        let folder = sys.folder("0000:04:00.0");
        assert_eq!(
            fs::read_to_string(folder.join("driver_override"))
                .unwrap()
                .chars()
                .next(),
            Some('\n')
        );
        assert_eq!(
            fs::read_to_string(sys.0.join("bus/pci/drivers_probe")).unwrap(),
            "0000:04:00.0"
        );
        assert!(known(&paths).is_empty(), "{:?}", known(&paths));
    }

    #[test]
    fn what_has_gone_is_given_back_without_a_word() {
        let (_dir, sys, paths) = tree();
        let gone = Record {
            functions: vec![Bound {
                address: "0000:0a:00.0".into(),
                group: 3,
                driver: Some("nvme".into()),
                before: String::new(),
            }],
        };
        fs::write(paths.vfio("c1"), serde_json::to_vec(&gone).unwrap()).unwrap();
        assert_eq!(known(&paths), ["c1"]);
        assert!(give_back(&sys, &paths, "c1").is_empty());
        assert!(known(&paths).is_empty());
    }
}
