//! Channels of a network interface: `ETHTOOL_GCHANNELS` and `ETHTOOL_SCHANNELS` of `ioctl(SIOCETHTOOL)`
//! (linux/ethtool.h). Needs CAP_NET_ADMIN to change.
#![allow(unsafe_code)] // ioctl(2) takes a pointer to a structure that itself points to another.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const GET: u32 = 0x3c;
const SET: u32 = 0x3d;
const SIOCETHTOOL: u64 = 0x8946;

/// How many combined channels there are and can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// At most.
    pub max_combined: u32,
    /// Now.
    pub combined: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Raw {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

fn call(interface: &str, raw: &mut Raw) -> io::Result<()> {
    let bytes = interface.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: plain system call; the answer is checked before it becomes an owned descriptor.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *raw).cast();
    // SAFETY: the kernel reads and writes one ethtool_channels through ifru_data, which lives through the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn get(interface: &str) -> io::Result<Raw> {
    let mut raw = Raw {
        cmd: GET,
        ..Raw::default()
    };
    call(interface, &mut raw)?;
    Ok(raw)
}

/// The channels of an interface.
///
/// # Errors
/// EOPNOTSUPP where its driver has none, ENODEV where it is not there.
pub fn channels(interface: &str) -> io::Result<Channels> {
    let raw = get(interface)?;
    Ok(Channels {
        max_combined: raw.max_combined,
        combined: raw.combined,
    })
}

/// Sets the combined channels and leaves the others.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN, EINVAL for more than there can be, EBUSY where the driver cannot now.
pub fn set_combined(interface: &str, combined: u32) -> io::Result<()> {
    let mut raw = get(interface)?;
    raw.cmd = SET;
    raw.combined = combined;
    call(interface, &mut raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_no_channels() {
        let error = channels("lo").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(
            channels("no-such-0").unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert_eq!(channels("").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
