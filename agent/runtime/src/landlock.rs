//! Landlock for the workload (landlock(7)): a domain that the process and all its children can never leave.
//!
//! It is entered inside the container's root, before user and capabilities change: the rules' paths are the
//! container's, and root may open them all. What is in force cannot be read from outside: no file of procfs shows a
//! domain. So it is tried, inside, right after it was entered and before any system call filter could answer in its
//! place: a domain with file rules refuses every mount(2) with EPERM, to root too; and a folder that no rule lets
//! read must not open, one that a rule covers must. A domain is part of the credentials and survives exec; only more
//! restrictions can follow.
//!
//! Invariants: what the rules need and the kernel lacks is refused before anything is made (`missing`), or left out
//! where the user wrote that ([`Landlock::skip`]), and then the proof says so.
#![allow(unsafe_code)] // the three system calls have no wrapper

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::report::{Failure, Step};

/// Rights on files, as the kernel numbers them (linux/landlock.h).
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
/// Remove folders (4) and files (5); make folders (7), files (8), sockets (9), FIFOs (10), symbolic links (12).
const MAKE: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12;
const MAKE_DEVICES: u64 = 1 << 6 | 1 << 11;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// What can be granted on a file that is no folder.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
/// Everything of the third version.
const FILES: u64 = (1 << 15) - 1;

/// One right, or a handful that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Read files, list folders.
    Read,
    /// Execute files.
    Execute,
    /// Write and truncate files that are there.
    Write,
    /// Make, remove, rename and link files, folders, sockets, FIFOs and symbolic links.
    Make,
    /// Make device nodes.
    MakeDevices,
    /// ioctl(2) on device nodes. Refused everywhere else as soon as one rule grants it.
    Ioctl,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Self::Read => READ_FILE | READ_DIR,
            Self::Execute => EXECUTE,
            Self::Write => WRITE_FILE | TRUNCATE,
            Self::Make => MAKE | REFER,
            Self::MakeDevices => MAKE_DEVICES,
            Self::Ioctl => IOCTL_DEV,
        }
    }
}

/// What is granted below one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathRule {
    /// A file, or a folder with everything below it; inside the container, absolute.
    pub path: PathBuf,
    /// What is granted.
    pub access: Vec<Access>,
    /// A path that is not there is passed over; else the launch fails.
    #[serde(default)]
    pub optional: bool,
}

/// What a domain keeps apart beside files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// No connection to abstract Unix sockets made outside the domain.
    AbstractSockets,
    /// No signal to processes outside the domain.
    Signals,
}

/// A domain: everything of the kinds it handles is refused but what a rule grants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Landlock {
    /// Files. Empty: files are not handled.
    pub paths: Vec<PathRule>,
    /// TCP ports that may be bound; `None`: not handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_tcp: Option<Vec<u16>>,
    /// TCP ports that may be connected to; `None`: not handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_tcp: Option<Vec<u16>>,
    /// What else is kept apart.
    pub scope: Vec<Scope>,
    /// What the kernel lacks is left out, and the proof says so.
    pub skip: bool,
}

#[repr(C)]
struct Attributes {
    files: u64,
    net: u64,
    scope: u64,
}

impl Landlock {
    fn attributes(&self) -> Attributes {
        let granted = self
            .paths
            .iter()
            .flat_map(|p| &p.access)
            .fold(0, |bits, a| bits | a.bits());
        let files = if self.paths.is_empty() {
            0
        } else {
            FILES | granted & IOCTL_DEV
        };
        let net = u64::from(self.bind_tcp.is_some()) | u64::from(self.connect_tcp.is_some()) << 1;
        let scope = self.scope.iter().fold(0, |bits, s| bits | 1 << (*s as u64));
        Attributes { files, net, scope }
    }

    /// The first version of the interface that has all of it, the kernel that brought it, and what needs it.
    fn needs(&self) -> (i64, &'static str, &'static str) {
        let a = self.attributes();
        if a.scope != 0 {
            (6, "6.12", "scope")
        } else if a.files & IOCTL_DEV != 0 {
            (5, "6.10", "access: [ioctl]")
        } else if a.net != 0 {
            (4, "6.7", "bindTcp and connectTcp")
        } else {
            (3, "6.2", "write (truncating files)")
        }
    }
}

impl Attributes {
    /// What of it a version of the interface has.
    fn of_version(self, abi: i64) -> Self {
        let files = match abi {
            ..=0 => 0,
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => u64::MAX,
        };
        Self {
            files: self.files & files,
            net: if abi >= 4 { self.net } else { 0 },
            scope: if abi >= 6 { self.scope } else { 0 },
        }
    }
}

/// The version of the interface; 0: the kernel was built or started without Landlock.
pub fn version() -> i64 {
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION (1) no pointer is read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            1u32,
        )
    };
    answer.max(0)
}

/// What the kernel lacks for this domain, in words; `None`: nothing.
pub(crate) fn missing(landlock: &Landlock, abi: i64) -> Option<String> {
    let (needed, kernel, what) = landlock.needs();
    if abi >= needed {
        return None;
    }
    Some(match abi {
        0 => "this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and `landlock` in lsm=)".to_owned(),
        _ => format!(
            "{what} needs version {needed} of Landlock (Linux {kernel}), this kernel has version {abi}"
        ),
    })
}

/// What was found inside: promised and actual, in the same words.
pub(crate) struct Found {
    pub(crate) promised: String,
    pub(crate) actual: String,
}

/// Enter the domain and try it. The process stands in the container's root, holds CAP_SYS_ADMIN in its user
/// namespace, and no filter of the container's is in force yet.
pub(crate) fn enter(landlock: &Landlock) -> Result<Found, Failure> {
    let abi = version();
    if let Some(missing) = missing(landlock, abi) {
        if !landlock.skip {
            return Err(Failure::refused("landlock", "", &missing));
        }
        if abi == 0 {
            let text = format!("left out as the profile says: {missing}");
            return Ok(Found {
                promised: text.clone(),
                actual: text,
            });
        }
    }
    let attributes = landlock.attributes().of_version(abi);
    // An older kernel takes a longer structure only when what it does not know is zero.
    let ruleset = create(&attributes)?;
    for rule in &landlock.paths {
        add_path(&ruleset, rule, attributes.files)?;
    }
    for (bit, ports) in [(1, &landlock.bind_tcp), (2, &landlock.connect_tcp)] {
        for port in ports.iter().flatten().filter(|_| attributes.net & bit != 0) {
            add_port(&ruleset, bit, *port)?;
        }
    }
    // SAFETY: a descriptor and a number.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    Errno::result(answer).step("landlock_restrict_self", "")?;
    Ok(attempt(landlock, &attributes))
}

/// Enters a domain for the calling thread, outside any container: no_new_privs is set, and the paths are the
/// caller's. With [`Landlock::skip`] what the kernel's version lacks is left out; a kernel without Landlock is
/// refused all the same. The version that is in force.
///
/// # Errors
/// What the kernel refused or lacks.
pub fn restrict(landlock: &Landlock) -> Result<i64, Failure> {
    let abi = version();
    if let Some(missing) = missing(landlock, abi)
        && (abi == 0 || !landlock.skip)
    {
        return Err(Failure::refused("landlock", "", &missing));
    }
    let attributes = landlock.attributes().of_version(abi);
    let ruleset = create(&attributes)?;
    for rule in &landlock.paths {
        add_path(&ruleset, rule, attributes.files)?;
    }
    // SAFETY: a descriptor and a number.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) };
    Errno::result(answer).step("landlock_restrict_self", "")?;
    Ok(abi)
}

fn create(attributes: &Attributes) -> Result<OwnedFd, Failure> {
    // SAFETY: the kernel reads the structure; all of it is plain data.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<Attributes>(),
            0u32,
        )
    };
    let fd = Errno::result(answer).step("landlock_create_ruleset", "")?;
    // SAFETY: the kernel has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn add_path(ruleset: &OwnedFd, rule: &PathRule, handled: u64) -> Result<(), Failure> {
    #[repr(C, packed)]
    struct PathBeneath {
        access: u64,
        parent: i32,
    }
    let parent = match nix::fcntl::open(&rule.path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR) if rule.optional => return Ok(()),
        other => other.step("landlock rule", &rule.path)?,
    };
    let folder = crate::rootfs::is_dir(&nix::sys::stat::fstat(&parent).step("landlock rule", &rule.path)?);
    let mut access = rule.access.iter().fold(0, |bits, a| bits | a.bits()) & handled;
    if !folder {
        access &= OF_FILES;
    }
    if access == 0 {
        return Err(Failure::refused(
            "landlock rule",
            &rule.path,
            "nothing that it grants applies to a file",
        ));
    }
    let beneath = PathBeneath {
        access,
        parent: parent.as_raw_fd(),
    };
    // SAFETY: LANDLOCK_RULE_PATH_BENEATH (1) reads the packed structure.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            1u32,
            std::ptr::from_ref(&beneath),
            0u32,
        )
    };
    Errno::result(answer).step("landlock rule", &rule.path).map(drop)
}

fn add_port(ruleset: &OwnedFd, access: u64, port: u16) -> Result<(), Failure> {
    #[repr(C)]
    struct NetPort {
        access: u64,
        port: u64,
    }
    let net = NetPort {
        access,
        port: u64::from(port),
    };
    // SAFETY: LANDLOCK_RULE_NET_PORT (2) reads the structure.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            2u32,
            std::ptr::from_ref(&net),
            0u32,
        )
    };
    Errno::result(answer)
        .step("landlock rule", port.to_string())
        .map(drop)
}

/// Folders every container has: is each refused that no rule lets read?
const TRIED: [&str; 4] = ["/", "/proc", "/sys", "/dev"];

fn attempt(landlock: &Landlock, attributes: &Attributes) -> Found {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut word = |is: &str, found: String| all.push((is.to_owned(), found));
    if attributes.files != 0 {
        // Changes nothing of a mount namespace that is the container's own, should it not be refused.
        let mounted = nix::mount::mount(
            None::<&str>,
            "/",
            None::<&str>,
            nix::mount::MsFlags::MS_PRIVATE,
            None::<&str>,
        );
        word(
            "mount refused",
            match mounted {
                Err(Errno::EPERM) => "mount refused".into(),
                Err(errno) => format!("mount: {}", errno.desc()),
                Ok(()) => "mount allowed".into(),
            },
        );
        for folder in TRIED {
            let covered = landlock
                .paths
                .iter()
                .any(|r| r.access.contains(&Access::Read) && Path::new(folder).starts_with(&r.path));
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let opened = match nix::fcntl::open(folder, flags, Mode::empty()) {
                Ok(_) => "readable",
                Err(Errno::EACCES) => "refused",
                Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
                Err(_) => "not readable",
            };
            word(
                &format!("{folder} {}", if covered { "readable" } else { "refused" }),
                format!("{folder} {opened}"),
            );
        }
    }
    if attributes.net & 2 != 0 {
        // No rule can name port 0, and a port nobody may connect to is refused before anything is sent.
        let free = (1..=u16::MAX).find(|p| !landlock.connect_tcp.iter().flatten().any(|q| q == p));
        if let Some(port) = free {
            word(&format!("connect to port {port} refused"), connect(port));
        }
    }
    let left_out = missing(landlock, version()).filter(|_| landlock.skip);
    if let Some(missing) = left_out {
        word(
            &format!("the rest left out: {missing}"),
            format!("the rest left out: {missing}"),
        );
    }
    if all.is_empty() {
        all.push(("entered".into(), "entered".into()));
    }
    let (promised, actual): (Vec<String>, Vec<String>) = all.into_iter().unzip();
    Found {
        promised: promised.join(", "),
        actual: actual.join(", "),
    }
}

fn connect(port: u16) -> String {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
    let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let tried = socket(AddressFamily::Inet, SockType::Stream, kind, None)
        .and_then(|s| connect(s.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)));
    match tried {
        Err(Errno::EACCES) => format!("connect to port {port} refused"),
        Err(errno) => format!("connect to port {port}: {}", errno.desc()),
        Ok(()) => format!("connected to port {port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_the_kernels() {
        let all = [
            Access::Read,
            Access::Execute,
            Access::Write,
            Access::Make,
            Access::MakeDevices,
        ];
        let bits = all.iter().fold(0, |bits, a| {
            assert_eq!(bits & a.bits(), 0, "{a:?} has a right of another");
            bits | a.bits()
        });
        assert_eq!(bits, FILES, "every right of version 3 is in exactly one word");
    }

    #[test]
    fn what_a_kernel_lacks_is_named() {
        let files = |access| Landlock {
            paths: vec![PathRule {
                path: "/".into(),
                access: vec![access],
                optional: false,
            }],
            ..Landlock::default()
        };
        let table = [
            (files(Access::Read), 3, "6.2"),
            (files(Access::Ioctl), 5, "6.10"),
            (
                Landlock {
                    bind_tcp: Some(vec![80]),
                    ..Landlock::default()
                },
                4,
                "6.7",
            ),
            (
                Landlock {
                    scope: vec![Scope::Signals],
                    ..Landlock::default()
                },
                6,
                "6.12",
            ),
        ];
        for (landlock, needed, kernel) in table {
            assert_eq!(missing(&landlock, needed), None);
            let text = missing(&landlock, needed - 1).expect("missing");
            assert!(text.contains(kernel), "{text}");
            assert!(
                missing(&landlock, 0)
                    .expect("missing")
                    .contains("CONFIG_SECURITY_LANDLOCK")
            );
        }
        let a = files(Access::Ioctl).attributes();
        assert_eq!(a.files, FILES | IOCTL_DEV);
        assert_eq!(a.of_version(1).files, (1 << 13) - 1);
    }
}
