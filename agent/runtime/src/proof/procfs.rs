//! Reading /proc/PID: each file once, parsed by hand.
//!
//! Everything goes through one descriptor of /proc/PID, opened on a file system that statfs(2) says is procfs: a
//! pid that is used again gives ESRCH, and a forged /proc (CVE-2025-52881) is refused.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berth_rt::cpu::CpuSet;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::{CapabilitySets, FileId, IdMap};

/// One process below a procfs mount.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    dir: OwnedFd,
    path: PathBuf,
}

impl Process {
    /// `Ok(None)`: `proc_root` is not procfs.
    pub(super) fn open(proc_root: &Path, pid: i32) -> io::Result<Option<Self>> {
        let path = proc_root.join(pid.to_string());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let dir = openat(AT_FDCWD, &path, flags, Mode::empty())?;
        Ok((fstatfs(&dir)?.filesystem_type() == PROC_SUPER_MAGIC).then_some(Self { pid, dir, path }))
    }

    /// The path of a file, for the source of a fact.
    pub(super) fn source(&self, name: &str) -> String {
        format!("{}/{name}", self.path.display())
    }

    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        let fd = openat(&self.dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut bytes = vec![0; 4096];
        let mut len = 0;
        loop {
            match nix::unistd::read(&fd, &mut bytes[len..])? {
                0 => break,
                got => len += got,
            }
            if len == bytes.len() {
                bytes.resize(2 * len, 0);
            }
        }
        bytes.truncate(len);
        String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    pub(super) fn link(&self, name: &str) -> io::Result<String> {
        let target = readlinkat(&self.dir, name)?;
        target
            .into_string()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The file a magic link leads to.
    pub(super) fn stat(&self, name: &str) -> io::Result<FileId> {
        let stat: FileStat = fstatat(&self.dir, name, nix::fcntl::AtFlags::empty())?;
        Ok(FileId {
            dev: stat.st_dev,
            ino: stat.st_ino,
        })
    }

    /// The file a magic link leads to, opened with O_PATH.
    pub(super) fn file(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(openat(
            &self.dir,
            name,
            OFlag::O_PATH | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// The process's root directory, as a place to resolve paths in.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.dir, "root", flags, Mode::empty())?)
    }

    /// Thread ids, rising.
    pub(super) fn threads(&self) -> io::Result<Vec<i32>> {
        self.numbers("task")
    }

    /// Open descriptors.
    pub(super) fn descriptors(&self) -> io::Result<Vec<i32>> {
        self.numbers("fd")
    }

    fn numbers(&self, folder: &str) -> io::Result<Vec<i32>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.dir, folder, flags, Mode::empty())?;
        let mut found = Vec::new();
        for entry in dir.iter() {
            if let Some(number) = entry?.file_name().to_str().ok().and_then(|n| n.parse().ok()) {
                found.push(number);
            }
        }
        Ok(found)
    }
}

/// What /proc/TID/status says of the things a promise is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) uid: [u32; 4],
    pub(super) gid: [u32; 4],
    pub(super) groups: Vec<u32>,
    pub(super) capabilities: CapabilitySets,
    pub(super) no_new_privs: bool,
    pub(super) seccomp: u32,
    /// `None`: the kernel (before 5.9) does not say.
    pub(super) filters: Option<u32>,
    pub(super) cpus: CpuSet,
    pub(super) mems: CpuSet,
}

/// `Err`: the first field that is missing or not as proc(5) says.
pub(super) fn status(text: &str) -> Result<Status, &'static str> {
    fn ids(value: &str) -> Option<[u32; 4]> {
        let mut out = [0; 4];
        let mut words = value.split_ascii_whitespace();
        for slot in &mut out {
            *slot = words.next()?.parse().ok()?;
        }
        Some(out)
    }
    let mask = |value: &str| u64::from_str_radix(value, 16).ok();
    let mut out = Status::default();
    let mut seen = 0u32;
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim_ascii();
        let caps = &mut out.capabilities;
        macro_rules! field {
            ($bit:expr, $slot:expr, $parsed:expr) => {{
                $slot = $parsed.ok_or(FIELDS[$bit])?;
                seen |= 1 << $bit;
            }};
        }
        match key {
            "Uid" => field!(0, out.uid, ids(value)),
            "Gid" => field!(1, out.gid, ids(value)),
            "Groups" => {
                let list: Result<_, _> = value.split_ascii_whitespace().map(str::parse).collect();
                field!(2, out.groups, list.ok());
                out.groups.sort_unstable();
            }
            "CapInh" => field!(3, caps.inheritable, mask(value)),
            "CapPrm" => field!(4, caps.permitted, mask(value)),
            "CapEff" => field!(5, caps.effective, mask(value)),
            "CapBnd" => field!(6, caps.bounding, mask(value)),
            "CapAmb" => field!(7, caps.ambient, mask(value)),
            "NoNewPrivs" => field!(8, out.no_new_privs, value.parse::<u8>().ok().map(|v| v == 1)),
            "Seccomp" => field!(9, out.seccomp, value.parse().ok()),
            "Seccomp_filters" => out.filters = Some(value.parse().map_err(|_| "Seccomp_filters")?),
            "Cpus_allowed_list" => field!(10, out.cpus, value.parse().ok()),
            "Mems_allowed_list" => field!(11, out.mems, value.parse().ok()),
            _ => {}
        }
    }
    match (0..FIELDS.len()).find(|bit| seen & (1 << bit) == 0) {
        Some(bit) => Err(FIELDS[bit]),
        None => Ok(out),
    }
}

const FIELDS: [&str; 12] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Cpus_allowed_list",
    "Mems_allowed_list",
];

/// Field 22 of /proc/PID/stat; the name (field 2) may hold anything, so fields are counted from its last `)`.
pub(super) fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// /proc/PID/uid_map or gid_map, sorted.
pub(super) fn id_map(text: &str) -> Option<Vec<IdMap>> {
    let mut maps = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().map(|w| w.parse::<u32>().ok());
        maps.push(IdMap {
            inside: words.next()??,
            outside: words.next()??,
            count: words.next()??,
        });
    }
    maps.sort_unstable();
    Some(maps)
}

/// (soft, hard) of one limit in /proc/PID/limits; `u64::MAX` is unlimited.
pub(super) fn rlimit(text: &str, oci_name: &str) -> Option<(u64, u64)> {
    let title = match oci_name {
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
    let value = |word: &str| {
        if word == "unlimited" {
            Some(u64::MAX)
        } else {
            word.parse().ok()
        }
    };
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(title).filter(|rest| rest.starts_with(' ')))?;
    let mut words = line.split_ascii_whitespace();
    Some((value(words.next()?)?, value(words.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) R 1 (b) S {}", fields.join(" "));
        assert_eq!(start_time(&stat), Some(22));
        assert_eq!(start_time("7 (a"), None);
    }

    #[test]
    fn own_files_are_understood() {
        let me = Process::open(Path::new("/proc"), std::process::id() as i32)
            .expect("open")
            .expect("procfs");
        let text = me.read("status").expect("status");
        let parsed = status(&text).expect("parsed");
        assert!(!parsed.cpus.is_empty());
        assert!(text.contains(&format!("{:016x}", parsed.capabilities.bounding)));
        let without = text.replace("CapBnd:", "CapXxx:");
        assert_eq!(status(&without), Err("CapBnd"));
        let limits = me.read("limits").expect("limits");
        let mut words: Vec<&str> = Vec::new();
        for line in limits.lines().skip(1) {
            words.push(line);
        }
        let named = [
            "AS",
            "CORE",
            "CPU",
            "DATA",
            "FSIZE",
            "LOCKS",
            "MEMLOCK",
            "MSGQUEUE",
            "NICE",
            "NOFILE",
            "NPROC",
            "RSS",
            "RTPRIO",
            "RTTIME",
            "SIGPENDING",
            "STACK",
        ];
        assert_eq!(named.len(), words.len());
        for name in named {
            assert!(rlimit(&limits, &format!("RLIMIT_{name}")).is_some(), "{name}");
        }
        assert_eq!(rlimit(&limits, "RLIMIT_NOSUCH"), None);
        assert!(me.threads().expect("threads").contains(&me.pid));
    }

    #[test]
    fn a_folder_is_not_procfs() {
        assert!(Process::open(Path::new("/"), 1).is_err());
        let dir = std::env::temp_dir().join(format!("berth-proof-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("1")).expect("mkdir");
        let opened = Process::open(&dir, 1).map(|p| p.is_some());
        std::fs::remove_dir_all(&dir).expect("rmdir");
        assert!(matches!(opened, Ok(false)));
    }
}
