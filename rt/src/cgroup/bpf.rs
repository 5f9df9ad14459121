//! bpf(2) for device programs of a v2 cgroup: load, attach in place of the one before, query and read back.
//!
//! Invariants: there is no moment without a program (BPF_F_REPLACE, Linux 5.6; before it the new one is attached
//! beside the old one, and both must allow); a program lives as long as its cgroup, not as long as this process.
#![allow(unsafe_code)] // bpf(2) has no safe wrapper

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use thiserror::Error;

use super::program::Instruction;

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
const F_REPLACE: u32 = 4;
/// More programs than the kernel lets one attach to a cgroup (64).
const MOST_PROGRAMS: usize = 128;

/// What bpf(2) refused.
#[derive(Debug, Error)]
#[error("bpf(2) cannot {action}: {source}{}{log}", if log.is_empty() { "" } else { ": " })]
pub struct BpfError {
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
    /// What the verifier said, where it refused.
    pub log: String,
}

impl BpfError {
    fn last(action: &'static str) -> BpfError {
        BpfError {
            action,
            source: io::Error::last_os_error(),
            log: String::new(),
        }
    }

    /// The setting to change, where the environment is at fault.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(
            match self.source.raw_os_error()? {
                libc::EPERM => {
                    "CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) are needed; before Linux 5.11 RLIMIT_MEMLOCK also limits \
                     programs; a parent cgroup may have a program attached that allows no other"
                }
                libc::ENOSYS => "the kernel needs CONFIG_BPF_SYSCALL",
                libc::EINVAL => "the kernel needs CONFIG_CGROUP_BPF, and the directory must be a cgroup v2 one",
                _ => return None,
            }
            .into(),
        )
    }
}

/// `union bpf_attr` as the commands below use it: the fields of each, in order, in 32-bit words.
#[repr(C, align(8))]
#[derive(Default)]
struct Attr([u32; 16]);

impl Attr {
    fn set_pointer(&mut self, word: usize, pointer: u64) {
        let bytes = pointer.to_ne_bytes();
        self.0[word] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.0[word + 1] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    }
}

/// Makes the call.
///
/// # Safety
/// Every pointer that the command reads from `attr` must be good for what the command does with it.
unsafe fn call(command: u32, attr: &mut Attr) -> Option<i32> {
    // SAFETY: `attr` is readable and writable for the size that is given; the pointers in it are the callers' to keep.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
    i32::try_from(answer).ok().filter(|answer| *answer >= 0)
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just made this descriptor for us (close-on-exec), and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Loads a program; the kernel's verifier has the last word.
pub(crate) fn load(program: &[Instruction]) -> Result<OwnedFd, BpfError> {
    let license = c"Apache-2.0";
    let mut log = Vec::new();
    let attempt = |log: &mut Vec<u8>| {
        let mut attr = Attr::default();
        attr.0[0] = PROG_TYPE_CGROUP_DEVICE;
        attr.0[1] = program.len() as u32;
        attr.set_pointer(2, program.as_ptr() as u64);
        attr.set_pointer(4, license.as_ptr() as u64);
        if !log.is_empty() {
            attr.0[6] = 1;
            attr.0[7] = log.len() as u32;
            attr.set_pointer(8, log.as_mut_ptr() as u64);
        }
        // Words 12 to 15 are the program's name, at most 15 bytes.
        for (word, bytes) in attr.0[12..]
            .iter_mut()
            .zip(b"berth_devices\0\0\0".chunks_exact(4))
        {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        // SAFETY: the instructions, the license and the log have the lengths given and outlive the call.
        unsafe { call(PROG_LOAD, &mut attr) }
            .map(owned)
            .ok_or_else(|| BpfError::last("load the device program"))
    };
    let mut error = match attempt(&mut log) {
        Ok(descriptor) => return Ok(descriptor),
        Err(error) => error,
    };
    if matches!(error.source.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) {
        log.resize(16 * 1024, 0);
        if let Ok(descriptor) = attempt(&mut log) {
            return Ok(descriptor);
        }
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        error.log = String::from_utf8_lossy(&log[..end]).trim().replace('\n', "; ");
    }
    Err(error)
}

/// A program as the kernel has it.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) id: u32,
    /// The kernel's digest of the instructions as they were loaded.
    pub(crate) tag: String,
    /// The instructions after the verifier.
    pub(crate) instructions: Vec<Instruction>,
    descriptor: OwnedFd,
}

/// The device programs attached to the cgroup itself, in the order in which they run.
pub(crate) fn attached(dir: &Path) -> Result<Vec<Attached>, BpfError> {
    let target = open(dir)?;
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut attr = Attr::default();
    attr.0[0] = target.as_raw_fd() as u32;
    attr.0[1] = CGROUP_DEVICE;
    attr.set_pointer(4, ids.as_mut_ptr() as u64);
    attr.0[6] = MOST_PROGRAMS as u32;
    // SAFETY: `ids` has room for as many numbers as word 6 says and outlives the call.
    unsafe { call(PROG_QUERY, &mut attr) }.ok_or_else(|| BpfError::last("query the attached programs"))?;
    ids.iter()
        .take(attr.0[6] as usize)
        .map(|id| inspect(*id))
        .collect()
}

fn inspect(id: u32) -> Result<Attached, BpfError> {
    let mut attr = Attr::default();
    attr.0[0] = id;
    // SAFETY: the command reads no pointer.
    let descriptor = unsafe { call(PROG_GET_FD_BY_ID, &mut attr) }
        .map(owned)
        .ok_or_else(|| BpfError::last("open the attached program"))?;
    let info = info(&descriptor, &mut [])?;
    let tag = info.0[2..4]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Attached {
        id,
        tag,
        instructions: instructions(&descriptor)?,
        descriptor,
    })
}

/// The instructions of a program after the verifier: first their length, then themselves.
pub(crate) fn instructions(descriptor: &OwnedFd) -> Result<Vec<Instruction>, BpfError> {
    let length = info(descriptor, &mut [])?.0[5] as usize / size_of::<Instruction>();
    let mut instructions = vec![
        Instruction {
            code: 0,
            registers: 0,
            offset: 0,
            immediate: 0
        };
        length
    ];
    info(descriptor, &mut instructions)?;
    Ok(instructions)
}

/// The first 40 bytes of `struct bpf_prog_info`: type, id, tag (2), jited length, translated length, pointers (4).
fn info(descriptor: &OwnedFd, instructions: &mut [Instruction]) -> Result<Attr, BpfError> {
    let mut info = Attr::default();
    if !instructions.is_empty() {
        info.0[5] = size_of_val(instructions) as u32;
        info.set_pointer(8, instructions.as_mut_ptr() as u64);
    }
    let mut attr = Attr::default();
    attr.0[0] = descriptor.as_raw_fd() as u32;
    attr.0[1] = 40;
    attr.set_pointer(2, &raw mut info as u64);
    // SAFETY: `info` has more than the 40 bytes, `instructions` the bytes that word 5 of it says; both outlive the call.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attr) }
        .ok_or_else(|| BpfError::last("read the attached program"))?;
    Ok(info)
}

/// Attaches `program` to the cgroup in place of the one that is attached there.
pub(crate) fn attach(dir: &Path, program: &[Instruction]) -> Result<(), BpfError> {
    let target = open(dir)?;
    let loaded = load(program)?;
    let before = attached(dir)?;
    let Some(old) = before.first() else {
        return attachment(PROG_ATTACH, &target, &loaded, None, "attach the device program");
    };
    match attachment(
        PROG_ATTACH,
        &target,
        &loaded,
        Some(&old.descriptor),
        "replace the device program",
    ) {
        // A kernel without BPF_F_REPLACE: both at once, then the new one alone.
        Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => {
            attachment(PROG_ATTACH, &target, &loaded, None, "attach the device program")?;
            attachment(
                PROG_DETACH,
                &target,
                &old.descriptor,
                None,
                "detach the device program before",
            )
        }
        other => other,
    }
}

/// Attaches `program` (in place of `replaced`) to the cgroup `target`, or detaches it.
fn attachment(
    command: u32,
    target: &File,
    program: &OwnedFd,
    replaced: Option<&OwnedFd>,
    action: &'static str,
) -> Result<(), BpfError> {
    let mut attr = Attr::default();
    attr.0[0] = target.as_raw_fd() as u32;
    attr.0[1] = program.as_raw_fd() as u32;
    attr.0[2] = CGROUP_DEVICE;
    if command == PROG_ATTACH {
        attr.0[3] = F_ALLOW_MULTI;
    }
    if let Some(replaced) = replaced {
        attr.0[3] |= F_REPLACE;
        attr.0[4] = replaced.as_raw_fd() as u32;
    }
    // SAFETY: the commands read no pointer.
    unsafe { call(command, &mut attr) }
        .map(drop)
        .ok_or_else(|| BpfError::last(action))
}

fn open(dir: &Path) -> Result<File, BpfError> {
    File::open(dir).map_err(|source| BpfError {
        action: "open the cgroup",
        source,
        log: String::new(),
    })
}
