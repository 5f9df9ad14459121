//! The launcher makes itself hard before it listens.
//!
//! - It runs from a sealed copy of its own executable in a memfd: a container that reaches /proc/PID/exe of the
//!   launcher, of a monitor or of its own first process before exec finds nothing it can write (CVE-2019-5736).
//!   Whether that has been done is read from the seals of /proc/self/exe; no environment variable says so, so
//!   none can lie about it or be inherited.
//! - It closes every descriptor above 2 that it was started with, and reads from /dev/null.
//! - It is not dumpable: no core file, and nobody without CAP_SYS_PTRACE looks into it. Its forks inherit that
//!   until they exec.
//! - Its oom_score_adj is lowered, and each container gets its own back.
//! - no_new_privs is *not* set here: it is inherited by everything the launcher ever starts and cannot be taken
//!   back. A profile decides over it for its containers; one that keeps it off (file capabilities of an image, an
//!   SELinux transition without nnp_transition) could not be kept, and its proof would fail. For the same
//!   reason no seccomp filter and no Landlock rules are put on the launcher: filters are inherited, and under
//!   any Landlock rules mount(2) is refused.
//! - It is a subreaper, so that what a dead monitor leaves behind comes here to be reaped.
#![allow(unsafe_code)] // close_range(2), memfd_create(2) with MFD_EXEC and mallopt(3) have no safe wrapper

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::prctl;

/// Name of the launcher in /proc/PID/comm.
pub const NAME: &std::ffi::CStr = c"berth-launcher";

/// oom_score_adj of launcher and monitors, where the kernel allows it.
const OOM_SCORE_ADJ: i32 = -900;

/// A step of making the launcher hard that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct HardenError {
    /// What was done.
    pub step: &'static str,
    /// The kernel's word.
    pub source: io::Error,
}

impl HardenError {
    /// The setting to change, where the environment is at fault.
    pub fn hint(&self) -> Option<String> {
        let denied = matches!(self.source.raw_os_error(), Some(libc::EACCES | libc::EPERM));
        (denied && self.step.contains("memfd"))
            .then(|| "vm.memfd_noexec of 2 forbids executable memfds: set it to 1 or 0".into())
    }
}

fn step(step: &'static str) -> impl Fn(io::Error) -> HardenError {
    move |source| HardenError { step, source }
}

/// What is true after [`harden`], for the log.
#[derive(Debug)]
pub struct Hardened {
    /// oom_score_adj now.
    pub oom_score_adj: i32,
    /// What did not work and is no danger, in words.
    pub remarks: Vec<String>,
}

/// Does all of the above. Comes back in the sealed copy: the first call replaces the process.
///
/// # Errors
/// Any step that failed; the launcher does not serve then.
pub fn harden() -> Result<Hardened, HardenError> {
    // SAFETY: closes descriptors by number; nothing was opened yet by this program that it keeps.
    Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, 0) })
        .map_err(|e| step("closing inherited descriptors")(e.into()))?;
    reexec()?;
    let null = File::open("/dev/null").map_err(step("opening /dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(|e| step("/dev/null as stdin")(e.into()))?;
    drop(null);
    prctl::set_dumpable(false).map_err(|e| step("PR_SET_DUMPABLE 0")(e.into()))?;
    if prctl::get_dumpable().map_err(|e| step("PR_GET_DUMPABLE")(e.into()))? {
        return Err(step("PR_SET_DUMPABLE 0 had no effect")(io::Error::from(
            io::ErrorKind::Other,
        )));
    }
    prctl::set_child_subreaper(true).map_err(|e| step("PR_SET_CHILD_SUBREAPER")(e.into()))?;
    prctl::set_name(NAME).map_err(|e| step("PR_SET_NAME")(e.into()))?;
    let mut remarks = Vec::new();
    if let Err(e) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ.to_string()) {
        remarks.push(format!(
            "oom_score_adj stays as it is: {e} (CAP_SYS_RESOURCE lowers it)"
        ));
    }
    let oom_score_adj = std::fs::read_to_string("/proc/self/oom_score_adj")
        .map_err(step("/proc/self/oom_score_adj"))?
        .trim()
        .parse()
        .map_err(|_| step("/proc/self/oom_score_adj")(io::Error::from(io::ErrorKind::InvalidData)))?;
    // SAFETY: mallopt(3) sets numbers of the allocator; one thread runs.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
    Ok(Hardened {
        oom_score_adj,
        remarks,
    })
}

/// Gives freed memory back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim(3) works on the allocator's own lists; one thread runs.
    unsafe { libc::malloc_trim(0) };
}

/// Takes the pages of program text off this process's page tables: those of the start and of the last launch are
/// not needed while nothing happens, and come back from the page cache when they are. Nothing of it is ever
/// private: text that can be written, or was relocated, is not mapped `r-xp`.
pub fn unmap_text() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (from, to) in maps.lines().filter_map(text) {
        // SAFETY: a read-only mapping of a file: MADV_DONTNEED drops pages that the next access maps again with
        // the same content.
        unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
    }
}

/// The addresses of one line of /proc/self/maps, where it is text of a file.
fn text(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let (mode, path) = (fields.next()?, fields.nth(3)?);
    let address = |text| usize::from_str_radix(text, 16).ok();
    (mode == "r-xp" && path.starts_with('/')).then_some((address(from)?, address(to)?))
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Is this process running from a sealed memfd?
pub fn sealed() -> io::Result<bool> {
    let exe = File::open("/proc/self/exe")?;
    match fcntl(&exe, FcntlArg::F_GET_SEALS) {
        Ok(seals) => Ok(SealFlag::from_bits_retain(seals).contains(SEALS)),
        // What is no memfd and no tmpfs file has no seals.
        Err(Errno::EINVAL) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn reexec() -> Result<(), HardenError> {
    if sealed().map_err(step("reading the seals of /proc/self/exe"))? {
        return Ok(());
    }
    let copy = memfd().map_err(|e| step("memfd_create")(e.into()))?;
    let mut from = File::open("/proc/self/exe").map_err(step("/proc/self/exe"))?;
    let mut copy = File::from(copy);
    io::copy(&mut from, &mut copy).map_err(step("copying the executable to a memfd"))?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).map_err(|e| step("sealing the memfd")(e.into()))?;
    let seals =
        fcntl(&copy, FcntlArg::F_GET_SEALS).map_err(|e| step("reading the memfd's seals")(e.into()))?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(step("sealing the memfd had no effect")(io::Error::from(
            io::ErrorKind::Other,
        )));
    }
    let words = |list: Vec<Vec<u8>>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let args = words(std::env::args_os().map(OsStringExt::into_vec).collect());
    let env = words(
        std::env::vars_os()
            .map(|(k, v)| [k.as_bytes(), b"=", v.as_bytes()].concat())
            .collect(),
    );
    let (Ok(args), Ok(env)) = (args, env) else {
        return Err(step("arguments")(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    let empty = CString::default();
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(&copy, &empty, &args, &env, flags) {
        Err(e) => Err(step("executing the memfd copy")(e.into())),
        Ok(never) => match never {},
    }
}

/// An executable memfd that can be sealed. MFD_EXEC is asked for where the kernel knows it (6.3).
fn memfd() -> nix::Result<OwnedFd> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let name = CString::new(OsStr::new("berth").as_bytes()).unwrap_or_default();
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    for flags in [flags | MFD_EXEC, flags] {
        // SAFETY: the name is a C string that outlives the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        match Errno::result(fd) {
            // SAFETY: the kernel has just made this descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) }),
            Err(Errno::EINVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_files() {
        let line = |rest: &str| format!("7f00-8f00 {rest}");
        let file = "00001000 00:01 1055 /memfd:berth (deleted)";
        assert_eq!(text(&line(&format!("r-xp {file}"))), Some((0x7f00, 0x8f00)));
        for mode in ["r--p", "rw-p", "rwxp", "r-xs"] {
            assert_eq!(text(&line(&format!("{mode} {file}"))), None, "{mode}");
        }
        assert_eq!(text(&line("r-xp 00000000 00:00 0 [vdso]")), None);
        assert_eq!(text(&line("r-xp 00000000 00:00 0")), None);
        unmap_text();
    }
}
