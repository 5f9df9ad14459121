//! CPU time: shares, bandwidth, idle (`cpu.shares`, `cpu.cfs_*_us`, `cpu.idle` in v1; `cpu.weight`, `cpu.max`,
//! `cpu.max.burst`, `cpu.idle` in v2).

use oci_spec::runtime::LinuxCpu;

use super::resources::optional;
use super::{ApplyError, Cgroup, Controller, RtBudget, Version};

/// Whether a field of it needs the cpu controller.
pub(crate) fn needs_controller(cpu: &LinuxCpu) -> bool {
    cpu.shares().is_some_and(|shares| shares != 0)
        || cpu.quota().is_some()
        || cpu.period().is_some()
        || cpu.burst().is_some()
        || cpu.idle().is_some()
        || cpu.realtime_runtime().is_some()
        || cpu.realtime_period().is_some()
}

/// v2's weight (1 to 10000) for v1's shares (2 to 262144): a curve through 2 → 1, 1024 → 100 and 262144 → 10000, the
/// one that the other OCI runtimes use since 2025.
pub fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = log2(shares);
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The subtraction keeps 1024, which is exactly 100, from being rounded up to 101.
    ((power_of_10(exponent) - 1e-9).ceil() as u64).clamp(1, 10_000)
}

// The mathematical library would be loaded at every start for these two alone.

/// Base-2 logarithm of a number from 1 on: the exponent, and the series of artanh for the mantissa in [1, 2).
fn log2(number: u64) -> f64 {
    let exponent = number.ilog2();
    let mantissa = number as f64 / (1u64 << exponent) as f64;
    let z = (mantissa - 1.0) / (mantissa + 1.0);
    let (mut power, mut sum) = (z, 0.0);
    for odd in (1..40).step_by(2) {
        sum += power / f64::from(odd);
        power *= z * z;
    }
    f64::from(exponent) + 2.0 * sum / std::f64::consts::LN_2
}

/// 10 to a power in -1..5: the series of the exponential function for a sixteenth of it, squared four times.
fn power_of_10(exponent: f64) -> f64 {
    let x = exponent * std::f64::consts::LN_10 / 16.0;
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..20 {
        term *= x / f64::from(n);
        sum += term;
    }
    (0..4).fold(sum, |value, _| value * value)
}

/// The budget that the OCI fields ask for, if they do.
pub(crate) fn rt_budget(cpu: &LinuxCpu) -> Result<Option<RtBudget>, ApplyError> {
    let Some(runtime) = cpu.realtime_runtime() else {
        return match cpu.realtime_period() {
            None => Ok(None),
            Some(_) => Err(ApplyError::Invalid {
                field: "linux.resources.cpu.realtimePeriod".into(),
                reason: "it has no meaning without realtimeRuntime".into(),
            }),
        };
    };
    let runtime_us = u64::try_from(runtime).map_err(|_| ApplyError::Invalid {
        field: "linux.resources.cpu.realtimeRuntime".into(),
        reason: format!("{runtime} us: an unlimited budget is not given to a container"),
    })?;
    if runtime_us == 0 {
        // A new group has none.
        return Ok(None);
    }
    Ok(Some(RtBudget {
        runtime_us,
        period_us: cpu.realtime_period().unwrap_or(1_000_000),
    }))
}

impl Cgroup {
    /// Sets everything of `cpu` but the cpuset and the real-time budget.
    pub(crate) fn apply_cpu(&self, cpu: &LinuxCpu) -> Result<(), ApplyError> {
        let field = |name: &str| format!("linux.resources.cpu.{name}");
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            match self.need(&field("shares"), Controller::Cpu)?.0 {
                Version::V1 => self.put(
                    &field("shares"),
                    Controller::Cpu,
                    "cpu.shares",
                    &shares.to_string(),
                )?,
                Version::V2 => self.put(
                    &field("shares"),
                    Controller::Cpu,
                    "cpu.weight",
                    &weight(shares).to_string(),
                )?,
            }
        }
        if let Some(period) = cpu.period().filter(|period| *period != 0) {
            match self.need(&field("period"), Controller::Cpu)?.0 {
                Version::V1 => self.put(
                    &field("period"),
                    Controller::Cpu,
                    "cpu.cfs_period_us",
                    &period.to_string(),
                )?,
                Version::V2 if cpu.quota().is_none() => {
                    self.put(
                        &field("period"),
                        Controller::Cpu,
                        "cpu.max",
                        &format!("max {period}"),
                    )?;
                }
                Version::V2 => {}
            }
        }
        if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
            match self.need(&field("quota"), Controller::Cpu)?.0 {
                Version::V1 => self.put(
                    &field("quota"),
                    Controller::Cpu,
                    "cpu.cfs_quota_us",
                    &quota.max(-1).to_string(),
                )?,
                Version::V2 => {
                    let quota = if quota < 0 {
                        "max".to_owned()
                    } else {
                        quota.to_string()
                    };
                    let value = match cpu.period().filter(|period| *period != 0) {
                        Some(period) => format!("{quota} {period}"),
                        None => quota,
                    };
                    self.put(&field("quota"), Controller::Cpu, "cpu.max", &value)?;
                }
            }
        }
        if let Some(burst) = cpu.burst() {
            let name = match self.need(&field("burst"), Controller::Cpu)?.0 {
                Version::V1 => "cpu.cfs_burst_us",
                Version::V2 => "cpu.max.burst",
            };
            optional(
                self.put(&field("burst"), Controller::Cpu, name, &burst.to_string()),
                burst == 0,
            )?;
        }
        if let Some(idle) = cpu.idle() {
            optional(
                self.put(&field("idle"), Controller::Cpu, "cpu.idle", &idle.to_string()),
                idle == 0,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn shares_become_weights_on_the_agreed_curve() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (300_000, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            assert!(weight(shares) >= last, "{shares}");
            let log = (shares as f64).log2();
            let exact = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0);
            assert!(exact < 1.0 || (super::power_of_10(exact.log10()) / exact - 1.0).abs() < 1e-12);
            assert_eq!(
                weight(shares),
                ((exact - 1e-9).ceil() as u64).clamp(1, 10_000),
                "{shares}"
            );
            last = weight(shares);
        }
    }
}
