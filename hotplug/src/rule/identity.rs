//! What makes a device the same one again: its serial number, its path, its slot or its hardware address.
//!
//! Interface: udev's properties where udevd runs (ID_SERIAL_SHORT, ID_SERIAL, ID_PATH, ID_USB_INTERFACE_NUM), else the
//! attributes of the device and of what it hangs on (`serial`, `address`, `bInterfaceNumber`). Invariant: two devices
//! of one piece of hardware (the ports of an adapter, the partitions of a disk) are told apart by what follows the
//! first part. Text of the device: for a file or container name use [`safe::component`](crate::safe::component).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::safe;

/// How a device is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// By its serial number, wherever it is plugged in.
    Serial,
    /// By the path of buses and ports that leads to it, whatever is plugged in there.
    Path,
    /// By the slot or port that its hardware sits in (`0000:01:00.0`, `1-1.2`).
    Slot,
    /// By the permanent address of a network interface.
    Mac,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Identity::Serial => "serial",
            Identity::Path => "path",
            Identity::Slot => "slot",
            Identity::Mac => "mac",
        })
    }
}

/// Buses whose devices have a place of their own.
const PLACES: &[&str] = &[
    "usb", "pci", "platform", "mmc", "virtio", "i2c", "spi", "sdio", "scsi",
];

impl Identity {
    /// The identity of `device`.
    ///
    /// # Errors
    /// Says what the device lacks, and what else would do.
    pub fn of(self, device: &Device) -> Result<String, String> {
        let found = match self {
            Identity::Serial => serial(device).map(|serial| with_parts(device, &serial)),
            Identity::Path => Some(path(device)),
            Identity::Slot => slot(device).map(|slot| with_parts(device, &slot)),
            Identity::Mac => mac(device),
        };
        let Some(text) = found else {
            let instead = match self {
                Identity::Mac => "identity: mac is for network interfaces with an address of their own",
                _ => "identity: path needs neither serial number nor slot",
            };
            return Err(format!("{device} has no {self} to be known by ({instead})"));
        };
        match safe::text(&text) {
            Ok(()) => Ok(format!("{self}:{text}")),
            Err(why) => Err(format!(
                "{device}: its {self} {:?} {why} (identity: path does not depend on what a device says of itself)",
                safe::show(&text, 80)
            )),
        }
    }
}

fn serial(device: &Device) -> Option<String> {
    let stated = |text: &String| !text.trim().is_empty();
    for name in ["ID_SERIAL_SHORT", "ID_SERIAL"] {
        if let Some(serial) = device.property(name).map(str::to_owned).filter(stated) {
            return Some(serial);
        }
    }
    // A root hub's `serial` is the name of its controller: not that far.
    let above = device.parents();
    let chain = std::iter::once(device).chain(above.iter());
    let own = chain.take_while(|one| one.attribute("bDeviceClass").as_deref() != Some("09"));
    own.filter_map(|one| one.attribute("serial").or_else(|| one.attribute("device/serial")))
        .find(stated)
        .map(|serial| serial.trim().to_owned())
}

fn slot(device: &Device) -> Option<String> {
    let above = device.parents();
    let mut chain = std::iter::once(device).chain(above.iter());
    let sits = |one: &&Device| {
        one.subsystem() == Some("pci")
            || one.subsystem() == Some("usb") && one.devtype() == Some("usb_device")
    };
    chain.find(sits).map(Device::sysname)
}

fn path(device: &Device) -> String {
    let subsystem = device.subsystem().unwrap_or("unknown").to_owned();
    if let Some(path) = device.property("ID_PATH") {
        return format!("{subsystem}:{path}");
    }
    let above = device.parents();
    let place = above
        .iter()
        .find(|one| one.subsystem().is_some_and(|s| PLACES.contains(&s)));
    match place {
        Some(place) => format!("{subsystem}:{}{}", place.devpath(), parts(device)),
        None => format!("{subsystem}:{}", device.devpath()),
    }
}

fn mac(device: &Device) -> Option<String> {
    let address = device
        .attribute("address")
        .filter(|_| device.subsystem() == Some("net"))?;
    address.bytes().any(|b| b != b'0' && b != b':').then_some(address)
}

fn with_parts(device: &Device, first: &str) -> String {
    let subsystem = device.subsystem().unwrap_or("unknown");
    format!("{first}:{subsystem}{}", parts(device))
}

/// What tells the devices of one piece of hardware apart.
fn parts(device: &Device) -> String {
    let mut text = String::new();
    let above = device.parents();
    let chain = || std::iter::once(device).chain(above.iter());
    let usb_interface = device
        .property("ID_USB_INTERFACE_NUM")
        .map(str::to_owned)
        .or_else(|| chain().find_map(|one| one.attribute("bInterfaceNumber")));
    for (sign, value) in [
        ("i", usb_interface),
        ("p", chain().take(2).find_map(|one| one.attribute("port_number"))),
        ("d", device.attribute("dev_port").filter(|port| port != "0")),
        ("part", device.attribute("partition")),
        ("ns", device.attribute("nsid")),
    ] {
        if let Some(value) = value {
            text += &format!(":{sign}{}", value.trim());
        }
    }
    text
}
