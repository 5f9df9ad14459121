//! Who may change a container's state folder: the holder of an exclusive flock(2) on it.
//!
//! Its creator holds it from the folder's making until the container is whole or undone, who deletes it from the first
//! kill until the folder is gone. The lock goes with its holder's death, so a creation that is under way and one that
//! was cut off can be told apart.
//!
//! Invariants: a folder belongs to who holds the lock *and* wrote [`super::CGROUP`] into it (O_EXCL, by descriptor); a
//! lock counts only while its path still leads to the same folder. The new process of a container holds no copy.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fstat};

/// How long a deletion waits for who holds the folder.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// The folder, held.
pub(crate) type Held = Flock<OwnedFd>;

/// What came of asking for it.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is held, and the path leads to it.
    Held(Held),
    /// There is no such folder any more.
    Gone,
    /// The path leads to another container's folder: this one was freed.
    Another,
    /// Somebody held it all the time; the descriptor is given back.
    Busy(OwnedFd),
}

/// Open a state folder.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Make the folder, hold it, and note the cgroup's path in it. That it did not exist reserves the id.
///
/// # Errors
/// `AlreadyExists`: the id is in use. `NotFound`: the folder was deleted while it was being made.
pub(crate) fn make(path: &Path, cgroup: &str) -> io::Result<Held> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            builder.create(path)?;
        }
        other => other?,
    }
    // Who deletes may have come in between: the file tells whose folder this is.
    let held = Flock::lock(open(path)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(
        held.as_fd(),
        super::CGROUP,
        flags,
        Mode::from_bits_truncate(0o600),
    )?;
    fs::File::from(file).write_all(cgroup.as_bytes())?;
    Ok(held)
}

/// Does the path still lead to this folder? `None`: it leads nowhere.
fn leads_to(path: &Path, folder: &OwnedFd) -> io::Result<Option<bool>> {
    let own = fstat(folder)?;
    match fs::metadata(path) {
        Ok(there) => Ok(Some((there.dev(), there.ino()) == (own.st_dev, own.st_ino))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Hold the folder, as soon as nobody else does.
///
/// # Errors
/// The kernel refuses the lock, or the path cannot be looked at.
pub(crate) fn take(mut folder: OwnedFd, path: &Path, patience: Duration) -> io::Result<Taken> {
    let end = Instant::now() + patience;
    loop {
        let outcome = Flock::lock(folder, FlockArg::LockExclusiveNonblock);
        let held = match outcome {
            Ok(held) => Ok(held),
            Err((folder, Errno::EWOULDBLOCK | Errno::EINTR)) => Err(folder),
            Err((_, errno)) => return Err(errno.into()),
        };
        let there = leads_to(path, held.as_deref().unwrap_or_else(|folder| folder))?;
        match (held, there) {
            (_, None) => return Ok(Taken::Gone),
            (_, Some(false)) => return Ok(Taken::Another),
            (Ok(held), Some(true)) => return Ok(Taken::Held(held)),
            (Err(fd), Some(true)) if Instant::now() > end => return Ok(Taken::Busy(fd)),
            (Err(fd), Some(true)) => folder = fd,
        }
        std::thread::sleep(PAUSE);
    }
}

/// The process that holds a folder, as /proc/locks says; `None`: nobody, or nobody this process can see.
pub(crate) fn holder(folder: &OwnedFd) -> Option<i32> {
    let own = fstat(folder).ok()?;
    let (major, minor) = (
        nix::sys::stat::major(own.st_dev),
        nix::sys::stat::minor(own.st_dev),
    );
    let place = format!("{major:02x}:{minor:02x}:{}", own.st_ino);
    find(&fs::read_to_string("/proc/locks").ok()?, &place)
}

/// `1: FLOCK  ADVISORY  WRITE 4711 00:1a:42 0 EOF`; who waits has `->` behind the number (proc_pid_locks(5)).
fn find(locks: &str, place: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, "WRITE", pid, at, ..] if at == place => pid.parse().ok(),
            _ => None,
        }
    })
}

/// `process 4711 (berth), whose children are 4712 (sleep)`, as far as procfs says it.
pub(crate) fn describe(pid: Option<i32>) -> String {
    let Some(pid) = pid else {
        return "another process".into();
    };
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<String> = children
        .split_ascii_whitespace()
        .map(|child| format!("{child} ({})", name(child).trim()))
        .collect();
    let mut text = format!("process {pid} ({})", name(&pid.to_string()).trim());
    if !children.is_empty() {
        text += &format!(", whose children are {}", children.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_and_not_who_waits() {
        let text = "1: POSIX  ADVISORY  WRITE 9 00:1a:42 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 8 00:1a:42 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 7 00:1a:42 0 EOF\n";
        assert_eq!(find(text, "00:1a:42"), Some(7));
        assert_eq!(find(text, "00:1a:4"), None);
        assert_eq!(find("nonsense\n", "00:1a:42"), None);
    }

    #[test]
    fn one_holder_at_a_time_and_only_of_what_is_there() {
        let root = std::env::temp_dir().join(format!("berth-claim-{}", std::process::id()));
        let path = root.join("deeper/x");
        let held = make(&path, "/x").unwrap();
        assert_eq!(
            make(&path, "/x").unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let asked = || take(open(&path).unwrap(), &path, Duration::ZERO).unwrap();
        let Taken::Busy(folder) = asked() else {
            panic!("two hold it");
        };
        assert_eq!(holder(&folder), Some(std::process::id() as i32));
        assert!(describe(holder(&folder)).starts_with(&format!("process {} (", std::process::id())));
        drop(held);
        assert!(matches!(asked(), Taken::Held(_)));
        fs::remove_dir_all(&path).unwrap();
        assert!(matches!(
            take(folder, &path, Duration::ZERO).unwrap(),
            Taken::Gone
        ));
        // Another of the same name: what was opened before is not it.
        let first = make(&path, "/x").unwrap().unlock().unwrap();
        fs::remove_dir_all(&path).unwrap();
        let _second = make(&path, "/x").unwrap();
        assert!(matches!(
            take(first, &path, Duration::ZERO).unwrap(),
            Taken::Another
        ));
        fs::remove_dir_all(&root).unwrap();
    }
}
