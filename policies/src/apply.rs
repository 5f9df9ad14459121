//! A resolved profile written into an OCI document: every security field is overwritten, whatever stood there.

use oci_spec::runtime::{
    Capabilities, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxSeccomp, Mount, PosixRlimitBuilder, Spec,
};

use crate::error::ProfileError;
use crate::filter::Judge;
use crate::names;
use crate::profile::{Limit, Profile, Seccomp};

impl Profile {
    /// Overwrite: the five capability sets, noNewPrivileges, rlimits, SELinux and AppArmor labels, the read-only root,
    /// flags of every mount, namespaces (none joined), id mappings (none: who gives a range writes them), seccomp, masked and read-only paths, device
    /// nodes (none beyond the runtime's own) and device rules (deny all, then the profile's), sysctls (the profile's), root
    /// propagation and personality (none).
    ///
    /// What the profile's user is granted beyond it (a device, the host's network) is written after this.
    ///
    /// # Errors
    /// [`ProfileError`]: a section of the document is missing, or the node's limits cannot be read.
    pub fn apply(&self, spec: &mut Spec) -> Result<(), ProfileError> {
        let mut root = spec
            .root()
            .clone()
            .ok_or(ProfileError::Document { section: "root" })?;
        root.set_readonly(Some(self.readonly_root));
        spec.set_root(Some(root));
        let flags = self.mount_flags.iter().map(String::as_str).collect::<Vec<_>>();
        for mount in spec.mounts_mut().iter_mut().flatten() {
            lay(mount, &flags);
        }
        self.process(spec)?;
        self.linux(spec)
    }

    fn process(&self, spec: &mut Spec) -> Result<(), ProfileError> {
        let missing = ProfileError::Document { section: "process" };
        let process = spec.process_mut().as_mut().ok_or(missing)?;
        let set = |names: &std::collections::BTreeSet<&'static str>| -> Capabilities {
            names.iter().filter_map(|name| names::capability(name)).collect()
        };
        let capabilities = LinuxCapabilitiesBuilder::default()
            .bounding(set(self.bounding()))
            .permitted(set(self.permitted()))
            .effective(set(self.effective()))
            .inheritable(set(self.inheritable()))
            .ambient(set(&self.ambient))
            .build()
            .map_err(|_| ProfileError::Document {
                section: "process.capabilities",
            })?;
        process.set_capabilities(Some(capabilities));
        process.set_no_new_privileges(Some(self.no_new_privileges));
        process.set_selinux_label(self.selinux_label.clone());
        process.set_apparmor_profile(self.apparmor_profile.clone());
        let node = if self.rlimits.values().any(|l| l.up_to) {
            Some(Node::read()?)
        } else {
            None
        };
        let mut limits = Vec::with_capacity(self.rlimits.len());
        for (name, limit) in &self.rlimits {
            let Some(kind) = names::rlimit(name) else { continue };
            let limit = match &node {
                Some(node) if limit.up_to => node.cut(name, *limit)?,
                _ => *limit,
            };
            let built = PosixRlimitBuilder::default()
                .typ(kind)
                .soft(limit.soft)
                .hard(limit.hard)
                .build();
            limits.push(built.map_err(|_| ProfileError::Document {
                section: "process.rlimits",
            })?);
        }
        process.set_rlimits(Some(limits));
        Ok(())
    }

    fn linux(&self, spec: &mut Spec) -> Result<(), ProfileError> {
        let linux = spec
            .linux_mut()
            .as_mut()
            .ok_or(ProfileError::Document { section: "linux" })?;
        let mut namespaces = Vec::with_capacity(self.namespaces.len());
        for kind in self.namespaces.iter().filter_map(|name| names::namespace(name)) {
            let built = LinuxNamespaceBuilder::default().typ(kind).build();
            namespaces.push(built.map_err(|_| ProfileError::Document {
                section: "linux.namespaces",
            })?);
        }
        if self.own_users {
            let built = LinuxNamespaceBuilder::default()
                .typ(LinuxNamespaceType::User)
                .build();
            namespaces.push(built.map_err(|_| ProfileError::Document {
                section: "linux.namespaces",
            })?);
        }
        linux.set_namespaces(Some(namespaces));
        linux
            .set_uid_mappings(None)
            .set_gid_mappings(None)
            .set_sysctl((!self.sysctls.is_empty()).then(|| self.sysctls.clone().into_iter().collect()));
        linux
            .set_rootfs_propagation(None)
            .set_personality(None)
            .set_devices(None);
        linux.set_mount_label(self.mount_label.clone());
        linux.set_masked_paths(Some(self.masked_paths.clone()));
        linux.set_readonly_paths(Some(self.readonly_paths.clone()));
        linux.set_seccomp(self.section()?);
        let broken = |_| ProfileError::Document {
            section: "linux.resources.devices",
        };
        let deny = LinuxDeviceCgroupBuilder::default()
            .allow(false)
            .access("rwm")
            .build()
            .map_err(broken)?;
        let mut rules = vec![deny];
        for device in &self.devices {
            rules.push(device.to_oci().map_err(broken)?);
        }
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources.set_devices(Some(rules));
        linux.set_resources(Some(resources));
        Ok(())
    }
}

impl Profile {
    /// The OCI seccomp section of this profile on this node.
    ///
    /// # Errors
    /// [`ProfileError`]: the kernel's release cannot be read, or a filter that was not validated.
    pub fn section(&self) -> Result<Option<LinuxSeccomp>, ProfileError> {
        let Seccomp::Filter(filter) = &self.seccomp else {
            return Ok(None);
        };
        let path = "/proc/sys/kernel/osrelease";
        let node = |message: String| ProfileError::Node {
            path: path.into(),
            message,
        };
        let release = if filter.asks_kernel() {
            std::fs::read_to_string(path).map_err(|e| node(e.to_string()))?
        } else {
            "0.0".to_owned()
        };
        let judge = Judge::here(self.bounding(), &release)
            .ok_or_else(|| node(format!("`{}` is no kernel release", release.trim())))?;
        let wrong = |problem| ProfileError::Field {
            name: self.name.clone(),
            problem,
        };
        filter.section(&judge).map(Some).map_err(wrong)
    }
}

/// Lay the flags on a mount and remove the words against them.
fn lay(mount: &mut Mount, flags: &[&str]) {
    let holds_devices = ["/dev", "/dev/pts"]
        .iter()
        .any(|d| mount.destination().as_os_str() == *d);
    let mut options = mount.options().clone().unwrap_or_default();
    for flag in flags.iter().filter(|flag| !(holds_devices && **flag == "nodev")) {
        let against = flag.trim_start_matches("no");
        options.retain(|o| o != against && o.strip_prefix('r') != Some(against));
        let recursive = format!("r{flag}");
        if !options.iter().any(|o| o == flag || *o == recursive) {
            options.push((*flag).to_owned());
        }
    }
    mount.set_options(Some(options));
}

/// The limits berth itself runs under, and whether it may raise them.
struct Node {
    limits: String,
    may_raise: bool,
}

impl Node {
    fn read() -> Result<Self, ProfileError> {
        let file = |path: &str| {
            std::fs::read_to_string(path).map_err(|e| ProfileError::Node {
                path: path.to_owned(),
                message: e.to_string(),
            })
        };
        const CAP_SYS_RESOURCE: u32 = 24;
        let status = file("/proc/self/status")?;
        let effective = status
            .lines()
            .find_map(|l| l.strip_prefix("CapEff:"))
            .map(str::trim);
        let may_raise = effective
            .and_then(|mask| u64::from_str_radix(mask, 16).ok())
            .is_some_and(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1);
        Ok(Self {
            limits: file("/proc/self/limits")?,
            may_raise,
        })
    }

    fn cut(&self, name: &str, limit: Limit) -> Result<Limit, ProfileError> {
        if self.may_raise {
            return Ok(limit);
        }
        let hard = hard_limit(&self.limits, name).ok_or_else(|| ProfileError::Node {
            path: "/proc/self/limits".into(),
            message: format!("{name} is not there"),
        })?;
        Ok(Limit {
            soft: limit.soft.min(hard),
            hard: limit.hard.min(hard),
            ..limit
        })
    }
}

/// The hard limit of one line of /proc/PID/limits.
fn hard_limit(text: &str, name: &str) -> Option<u64> {
    let title = match name {
        "RLIMIT_AS" => "Max address space",
        "RLIMIT_CORE" => "Max core file size",
        "RLIMIT_CPU" => "Max cpu time",
        "RLIMIT_DATA" => "Max data size",
        "RLIMIT_FSIZE" => "Max file size",
        "RLIMIT_LOCKS" => "Max file locks",
        "RLIMIT_MEMLOCK" => "Max locked memory",
        "RLIMIT_MSGQUEUE" => "Max msgqueue size",
        "RLIMIT_NICE" => "Max nice priority",
        "RLIMIT_NOFILE" => "Max open files",
        "RLIMIT_NPROC" => "Max processes",
        "RLIMIT_RSS" => "Max resident set",
        "RLIMIT_RTPRIO" => "Max realtime priority",
        "RLIMIT_RTTIME" => "Max realtime timeout",
        "RLIMIT_SIGPENDING" => "Max pending signals",
        "RLIMIT_STACK" => "Max stack size",
        _ => return None,
    };
    let rest = text.lines().find_map(|line| line.strip_prefix(title))?;
    match rest.split_ascii_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_cut_only_where_it_cannot_be_raised() {
        let limits = "Max realtime priority     0                    5                    \n\
                      Max locked memory         unlimited            unlimited            bytes     \n";
        let wanted = Limit {
            soft: 99,
            hard: 99,
            up_to: true,
        };
        let node = Node {
            limits: limits.into(),
            may_raise: false,
        };
        assert_eq!(
            node.cut("RLIMIT_RTPRIO", wanted),
            Ok(Limit {
                soft: 5,
                hard: 5,
                up_to: true
            })
        );
        assert_eq!(node.cut("RLIMIT_MEMLOCK", wanted), Ok(wanted));
        assert!(node.cut("RLIMIT_NOFILE", wanted).is_err());
        let node = Node {
            limits: limits.into(),
            may_raise: true,
        };
        assert_eq!(node.cut("RLIMIT_RTPRIO", wanted), Ok(wanted));
        let own = std::fs::read_to_string("/proc/self/limits").expect("limits");
        assert!(names::RLIMITS.iter().all(|name| hard_limit(&own, name).is_some()));
    }
}
