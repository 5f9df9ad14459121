//! Block devices (`blkio.*` in v1, `io.*` in v2) and huge pages (`hugetlb.*`).
//!
//! Weights belong to an I/O scheduler: BFQ's file is taken where it is there, else the generic one. OCI's weight runs
//! from 10 to 1000, v2's generic one from 1 to 10000.

use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxThrottleDevice};

use super::resources::or_max;
use super::{ApplyError, Cgroup, Controller, Version};

const CONTROLLER: Controller = Controller::Io;

fn field(name: &str) -> String {
    format!("linux.resources.blockIO.{name}")
}

/// v2's weight (1 to 10000) for OCI's (10 to 1000).
fn generic_weight(weight: u16) -> u32 {
    1 + (u32::from(weight) - 10) * 9999 / 990
}

fn checked_weight(name: &str, weight: u16) -> Result<u16, ApplyError> {
    if (10..=1000).contains(&weight) {
        return Ok(weight);
    }
    Err(ApplyError::Invalid {
        field: field(name),
        reason: format!("weight {weight} is not between 10 and 1000"),
    })
}

impl Cgroup {
    pub(crate) fn apply_io(&self, io: &LinuxBlockIo) -> Result<(), ApplyError> {
        let (version, _) = self.need("linux.resources.blockIO", CONTROLLER)?;
        let devices = io.weight_device().as_deref().unwrap_or_default();
        if io.leaf_weight().is_some_and(|weight| weight != 0)
            || devices.iter().any(|device| device.leaf_weight().is_some())
        {
            return Err(ApplyError::Unsupported {
                field: field("leafWeight"),
                reason: "it belonged to the CFQ scheduler, which Linux 5.0 removed".into(),
            });
        }
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            let weight = checked_weight("weight", weight)?;
            self.put_weight(version, "weight", weight, "")?;
        }
        for device in devices {
            let weight = device.weight().ok_or_else(|| ApplyError::Invalid {
                field: field("weightDevice"),
                reason: format!("{}:{} has no weight", device.major(), device.minor()),
            })?;
            let weight = checked_weight("weightDevice", weight)?;
            self.put_weight(
                version,
                "weightDevice",
                weight,
                &format!("{}:{} ", device.major(), device.minor()),
            )?;
        }
        self.throttle(
            version,
            "throttleReadBpsDevice",
            "read_bps",
            "rbps",
            io.throttle_read_bps_device(),
        )?;
        self.throttle(
            version,
            "throttleWriteBpsDevice",
            "write_bps",
            "wbps",
            io.throttle_write_bps_device(),
        )?;
        self.throttle(
            version,
            "throttleReadIOPSDevice",
            "read_iops",
            "riops",
            io.throttle_read_iops_device(),
        )?;
        self.throttle(
            version,
            "throttleWriteIOPSDevice",
            "write_iops",
            "wiops",
            io.throttle_write_iops_device(),
        )
    }

    /// Writes BFQ's weight file where it is there, else the generic one. `device` is empty or `MAJOR:MINOR `.
    fn put_weight(&self, version: Version, name: &str, weight: u16, device: &str) -> Result<(), ApplyError> {
        let own = !device.is_empty();
        let (bfq, generic, value) = match version {
            Version::V1 if own => (
                "blkio.bfq.weight_device",
                "blkio.weight_device",
                u32::from(weight),
            ),
            Version::V1 => ("blkio.bfq.weight", "blkio.weight", u32::from(weight)),
            Version::V2 => ("io.bfq.weight", "io.weight", generic_weight(weight)),
        };
        let prefix = if own {
            device
        } else if version == Version::V2 {
            "default "
        } else {
            ""
        };
        match self.put(&field(name), CONTROLLER, bfq, &format!("{device}{weight}")) {
            Err(ApplyError::Unsupported { .. }) => {
                self.put(&field(name), CONTROLLER, generic, &format!("{prefix}{value}"))
            }
            other => other,
        }
    }

    fn throttle(
        &self,
        version: Version,
        name: &str,
        v1: &str,
        v2: &str,
        devices: &Option<Vec<LinuxThrottleDevice>>,
    ) -> Result<(), ApplyError> {
        for device in devices.iter().flatten() {
            let (major, minor, rate) = (device.major(), device.minor(), device.rate());
            match version {
                Version::V1 => {
                    let file = format!("blkio.throttle.{v1}_device");
                    self.put(
                        &field(name),
                        CONTROLLER,
                        &file,
                        &format!("{major}:{minor} {rate}"),
                    )?;
                }
                Version::V2 => {
                    // 0 is "no limit" in v1 and OCI; v2 says so with `max`.
                    let rate = if rate == 0 { "max".into() } else { rate.to_string() };
                    self.put(
                        &field(name),
                        CONTROLLER,
                        "io.max",
                        &format!("{major}:{minor} {v2}={rate}"),
                    )?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn apply_hugetlb(&self, limit: &LinuxHugepageLimit) -> Result<(), ApplyError> {
        let (size, bytes) = (limit.page_size(), limit.limit());
        let field = format!("linux.resources.hugepageLimits.{size}");
        let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        if !matches!(&size[digits.len()..], "KB" | "MB" | "GB") || digits.parse::<u32>().is_err() {
            return Err(ApplyError::Invalid {
                field,
                reason: "it is not a page size such as 2MB".into(),
            });
        }
        let (file, reserved, value) = match self.need(&field, Controller::Hugetlb)?.0 {
            Version::V1 => (
                format!("hugetlb.{size}.limit_in_bytes"),
                format!("hugetlb.{size}.rsvd.limit_in_bytes"),
                bytes.to_string(),
            ),
            Version::V2 => (
                format!("hugetlb.{size}.max"),
                format!("hugetlb.{size}.rsvd.max"),
                or_max(bytes),
            ),
        };
        self.put(&field, Controller::Hugetlb, &file, &value)?;
        // Reservations too: a reservation beyond the limit would end in SIGBUS instead of an error of mmap. Linux 5.7.
        match self.put(&field, Controller::Hugetlb, &reserved, &value) {
            Err(ApplyError::Unsupported { .. }) => Ok(()),
            other => other,
        }
    }
}
