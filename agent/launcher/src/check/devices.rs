//! Devices, file systems and PCI functions of a request.

use std::path::Path;

use super::{has_control, inside, limit, refuse};
use crate::wire::{DeviceGrant, FilesystemGrant, Refusal, VfioGrant};

/// Devices granted at launch or with `start`.
///
/// # Errors
/// The first that is wrong.
pub fn devices(devices: &[DeviceGrant]) -> Result<(), Refusal> {
    limit("devices", devices.len())?;
    for (n, device) in devices.iter().enumerate() {
        let path = Path::new(&device.path);
        inside("device path", path)?;
        if device.uevents && device.mount.is_some() {
            return Err(refuse(format!(
                "uevents of the file system at {}: of a node alone",
                device.path
            )));
        }
        if let Some(mount) = &device.mount {
            filesystem(device, mount)?;
        } else if !path.starts_with("/dev") || path == Path::new("/dev") {
            return Err(refuse(format!("device path {}: below /dev", device.path)));
        }
        const OWN: [&str; 4] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];
        if let Some(own) = OWN.iter().find(|own| path.starts_with(own)) {
            return Err(refuse(format!(
                "device path {}: {own} is the container's own",
                device.path
            )));
        }
        let letters = &device.access;
        let twice = letters.chars().enumerate().any(|(i, c)| letters[..i].contains(c));
        if letters.is_empty() || twice || !letters.chars().all(|c| "rwm".contains(c)) {
            return Err(refuse(format!(
                "access {letters:?} of {}: any of r, w and m, each once",
                device.path
            )));
        }
        if device.mode > 0o777 {
            return Err(refuse(format!(
                "mode {:o} of {}: 0 to 777",
                device.mode, device.path
            )));
        }
        if device.major > 0xfff || device.minor > 0xf_ffff {
            return Err(refuse(format!(
                "{}: no device has number {}:{}",
                device.path, device.major, device.minor
            )));
        }
        if device.uid == u32::MAX || device.gid == u32::MAX {
            return Err(refuse(format!("{}: {} is no owner", device.path, u32::MAX)));
        }
        limit("device links", device.links.len())?;
        for link in &device.links {
            let path = Path::new("/dev").join(link);
            inside("device link", &path)?;
            if link.is_empty() || link.starts_with('/') || OWN.iter().any(|own| path.starts_with(own)) {
                return Err(refuse(format!("device link {link:?}: a path below /dev")));
            }
        }
        if devices[..n].iter().any(|d| d.path == device.path) {
            return Err(refuse(format!("device path {} is given twice", device.path)));
        }
    }
    Ok(())
}

/// PCI functions.
pub(super) fn vfio(functions: &[VfioGrant], armed: bool) -> Result<(), Refusal> {
    limit("vfio", functions.len())?;
    if armed && !functions.is_empty() {
        return Err(refuse(
            "vfio of an armed container: a function is bound at launch alone",
        ));
    }
    for (n, function) in functions.iter().enumerate() {
        let address = &function.address;
        if !crate::vfio::is_address(address) {
            return Err(refuse(format!(
                "vfio {address:?}: a PCI address such as 0000:03:00.0"
            )));
        }
        if functions[..n].iter().any(|f| f.address == *address) {
            return Err(refuse(format!("vfio {address} is given twice")));
        }
    }
    Ok(())
}

/// A file system that is mounted of a block device.
fn filesystem(device: &DeviceGrant, mount: &FilesystemGrant) -> Result<(), Refusal> {
    let path = Path::new(&device.path);
    let own = ["/proc", "/sys", "/dev"].iter().any(|own| path.starts_with(own));
    if !device.block || own || path == Path::new("/") {
        return Err(refuse(format!(
            "filesystem at {}: of a block device, not at /, /proc, /sys, /dev or below",
            device.path
        )));
    }
    let known = |t: &String| berth_runtime::FILESYSTEMS.contains(&t.as_str());
    if mount.types.is_empty() || !mount.types.iter().all(known) {
        return Err(refuse(format!(
            "filesystem at {}: types {:?}, some of {}",
            device.path,
            mount.types,
            berth_runtime::FILESYSTEMS.join(", ")
        )));
    }
    if mount
        .label
        .as_ref()
        .is_some_and(|l| l.is_empty() || l.len() > 255 || has_control(l))
    {
        return Err(refuse(format!(
            "filesystem at {}: a label of 1 to 255 bytes",
            device.path
        )));
    }
    Ok(())
}
