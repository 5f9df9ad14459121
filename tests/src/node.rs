//! Hardware without hardware: loop devices and virtual Ethernet pairs give real kernel events.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

mod control {
    //! linux/loop.h
    #![allow(missing_docs)]
    nix::ioctl_write_int_bad!(add, 0x4C80);
    nix::ioctl_write_int_bad!(remove, 0x4C81);
}

/// A loop device (block device with a devtmpfs node), plugged by making it and unplugged by removing it.
pub struct Loop {
    number: i32,
    plugged: bool,
}

impl Loop {
    /// A device number for later; nothing is plugged yet.
    pub fn number(number: i32) -> Loop {
        Loop {
            number,
            plugged: false,
        }
    }

    /// Make the device: the kernel sends `add`.
    pub fn plug(&mut self) -> Result<()> {
        let node = File::open("/dev/loop-control")?;
        // SAFETY: LOOP_CTL_ADD takes a plain integer and touches no memory of ours.
        #[allow(unsafe_code)]
        unsafe { control::add(node.as_raw_fd(), self.number) }
            .with_context(|| format!("add loop{}", self.number))?;
        self.plugged = true;
        Ok(())
    }

    /// Remove it: the kernel sends `remove`. Somebody who holds it open (udevd, a container) makes this EBUSY, so
    /// it is tried for a while.
    pub fn unplug(&mut self) -> Result<()> {
        let node = File::open("/dev/loop-control")?;
        for attempt in 0..500 {
            // SAFETY: LOOP_CTL_REMOVE takes a plain integer and touches no memory of ours.
            #[allow(unsafe_code)]
            match unsafe { control::remove(node.as_raw_fd(), self.number) } {
                Ok(_) => break,
                Err(nix::Error::EBUSY) if attempt < 499 => {
                    std::thread::sleep(std::time::Duration::from_millis(20))
                }
                Err(e) => return Err(e).with_context(|| format!("remove loop{}", self.number)),
            }
        }
        self.plugged = false;
        Ok(())
    }

    /// Its sysfs path.
    pub fn syspath(&self) -> PathBuf {
        format!("/sys/devices/virtual/block/loop{}", self.number).into()
    }

    /// Its kernel name.
    pub fn name(&self) -> String {
        format!("loop{}", self.number)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.plugged {
            let _ = self.unplug();
        }
    }
}

/// One end of a virtual Ethernet pair, named; the other end is `<name>p`.
pub struct Veth {
    /// Interface name.
    pub name: String,
}

impl Veth {
    /// Make the pair.
    pub fn plug(name: &str) -> Result<Veth> {
        ip(&[
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            &format!("{name}p"),
        ])?;
        Ok(Veth { name: name.into() })
    }

    /// Delete the pair by its peer, wherever the end itself has gone.
    pub fn unplug(&mut self) -> Result<()> {
        ip(&["link", "delete", &format!("{}p", self.name)])
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &format!("{}p", self.name)])
            .output();
    }
}

/// Run `ip`.
pub fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("ip: install iproute2")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
