//! Seccomp: the OCI `linux.seccomp` section compiled to a classic BPF program for seccomp(2).
//!
//! ```text
//! LinuxSeccomp --rules--> per architecture: number -> leaf --assemble--> [Insn] --load--> seccomp(2)
//!                table: name -> number                        eval: the same program, run in user space
//! ```
//!
//! The compiler is berth's own because launching waits for it: it needs well under a tenth of the time of
//! libseccomp, which the tests use as their oracle. What a section means is what runc and libseccomp make of it:
//!
//! - an entry whose action equals the default action says nothing and is left out;
//! - an entry without arguments decides its call for good, the first such entry wins over any entry with arguments;
//! - arguments of one entry must all match, except that an entry which compares one argument twice is read as one
//!   entry for each comparison (any may match);
//! - of several matching entries with arguments the strictest action wins, in the kernel's own order;
//! - on x86 the socket and System V IPC calls are decided for the direct call and for socketcall/ipc; there only
//!   the sub-call can be seen, so the first argument of the entry gives way to it;
//! - 32-bit architectures (x32 too) compare the low 32 bits of an argument;
//! - a name that another architecture knows is left out where it does not exist; a name nobody knows is refused
//!   (runc and crun pass over it in silence);
//! - a call of an architecture that is not listed kills the process, x32 calls on x86_64 included.
//!
//! The native architecture must be listed, or none at all (then it alone is meant).

mod arch;
mod assemble;
mod cache;
mod eval;
mod load;
mod rules;
mod table;

#[cfg(test)]
mod hard;
#[cfg(test)]
mod oracle;

pub use arch::Architecture;
pub use cache::{Cache, CacheError};
pub use load::{LoadError, load, supported};

use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most instructions of one program (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A compiled filter, ready for [`load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The program.
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*` bits for seccomp(2).
    pub flags: u32,
    /// Where the notification descriptor goes, when some action is NOTIFY.
    pub listener: Option<Listener>,
}

/// The receiver of seccomp notifications (`listenerPath`, `listenerMetadata`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Unix stream socket.
    pub path: PathBuf,
    /// Sent along.
    pub metadata: Option<String>,
}

/// How to compile.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The architecture of the node.
    pub native: Architecture,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            native: Architecture::NATIVE,
        }
    }
}

/// Why a seccomp section was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SeccompError {
    /// Nobody knows the name.
    #[error("linux.seccomp: unknown system call `{name}`{}", nearest.map(|n| format!(", did you mean `{n}`?")).unwrap_or_default())]
    UnknownSyscall {
        /// As written.
        name: String,
        /// The known name nearest to it.
        nearest: Option<&'static str>,
    },
    /// berth runs on x86_64 (with x86, x32) and aarch64 (with arm).
    #[error("linux.seccomp.architectures: {name} is not supported")]
    UnsupportedArchitecture {
        /// As written.
        name: String,
    },
    /// The filter would kill every call of this node.
    #[error("linux.seccomp.architectures does not list the native architecture {native}")]
    NativeMissing {
        /// The node's.
        native: Architecture,
    },
    /// A system call has six arguments.
    #[error("linux.seccomp.syscalls[{entry}]: argument index {index} is not 0 to 5")]
    ArgumentIndex {
        /// Which entry.
        entry: usize,
        /// As written.
        index: usize,
    },
    /// An errno where it has no meaning or is out of range.
    #[error("linux.seccomp{place}: {what}")]
    Errno {
        /// Which entry, or the default.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// NOTIFY where it cannot be.
    #[error("linux.seccomp: {what}")]
    Notify {
        /// What is wrong.
        what: String,
    },
    /// The program is larger than the kernel takes.
    #[error("linux.seccomp: the program has {got} instructions, the kernel takes {MAX_INSTRUCTIONS}")]
    TooLarge {
        /// Its length.
        got: usize,
    },
}

impl SeccompError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownSyscall { name, .. } => {
                format!("remove `{name}` from linux.seccomp.syscalls, or correct it")
            }
            Self::UnsupportedArchitecture { name } => {
                format!("remove {name} from linux.seccomp.architectures")
            }
            Self::NativeMissing { native } => {
                format!("add {} to linux.seccomp.architectures", native.oci_name())
            }
            Self::ArgumentIndex { entry, .. } => {
                format!("correct args[].index of linux.seccomp.syscalls[{entry}]")
            }
            Self::Errno { place, .. } => format!("correct the errno of linux.seccomp{place}"),
            Self::Notify { .. } => "correct listenerPath, flags or the NOTIFY entries".into(),
            Self::TooLarge { .. } => "list fewer architectures or fewer argument comparisons".into(),
        })
    }
}

/// Digest of a section for one native architecture: the key of [`Cache`].
pub fn digest(seccomp: &LinuxSeccomp, options: &Options) -> String {
    struct Feed(Sha256);
    impl std::io::Write for Feed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut feed = Feed(Sha256::new());
    feed.0.update(options.native.oci_name());
    let mut buffered = std::io::BufWriter::with_capacity(4096, &mut feed);
    // Neither the section (no maps with foreign keys) nor the writer can fail.
    let written = serde_json::to_writer(&mut buffered, seccomp);
    drop(buffered);
    debug_assert!(written.is_ok());
    hex(&feed.0.finalize())
}

/// Compile a section. Pure: nothing is read from the machine.
pub fn compile(seccomp: &LinuxSeccomp, options: &Options) -> Result<Filter, SeccompError> {
    let program = rules::Rules::collect(seccomp, options)?;
    let notify = program.notifies;
    let insns = assemble::assemble(&program);
    if insns.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLarge { got: insns.len() });
    }
    let flags = flags(seccomp, notify)?;
    let listener = listener(seccomp, notify)?;
    Ok(Filter {
        program: insns,
        flags,
        listener,
    })
}

fn flags(seccomp: &LinuxSeccomp, notify: bool) -> Result<u32, SeccompError> {
    let mut bits = 0u64;
    for flag in seccomp.flags().iter().flatten() {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                if !notify {
                    return Err(SeccompError::Notify {
                        what:
                            "the flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs an SCMP_ACT_NOTIFY entry"
                                .into(),
                    });
                }
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
        };
    }
    if notify {
        bits |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        if bits & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 {
            // Without it the two flags exclude each other: both want the return value.
            bits |= libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        }
    }
    Ok(bits as u32)
}

fn listener(seccomp: &LinuxSeccomp, notify: bool) -> Result<Option<Listener>, SeccompError> {
    match (notify, seccomp.listener_path()) {
        (true, Some(path)) => Ok(Some(Listener {
            path: path.clone(),
            metadata: seccomp.listener_metadata().clone(),
        })),
        (true, None) => Err(SeccompError::Notify {
            what: "SCMP_ACT_NOTIFY needs a listenerPath to send the descriptor to".into(),
        }),
        (false, Some(_)) => Ok(None),
        (false, None) if seccomp.listener_metadata().is_some() => Err(SeccompError::Notify {
            what: "listenerMetadata is given without a listenerPath".into(),
        }),
        (false, None) => Ok(None),
    }
}

/// Every system call name this version knows, sorted.
pub fn syscall_names() -> impl Iterator<Item = &'static str> {
    table::TABLE.iter().map(|row| row.0)
}

/// The number of a call on one architecture; `None`: no such call there, or no such name.
pub fn syscall_number(arch: Architecture, name: &str) -> Option<u32> {
    rules::lookup(name).and_then(|row| u32::try_from(row.1[arch as usize]).ok())
}

/// A filter's program as the bytes of `struct sock_filter`.
pub(crate) fn to_bytes(filter: &Filter) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(filter.program.len() * 8);
    for i in &filter.program {
        bytes.extend(i.code.to_ne_bytes());
        bytes.extend([i.jt, i.jf]);
        bytes.extend(i.k.to_ne_bytes());
    }
    bytes
}

/// Tells one program from another.
pub(crate) fn hash(filter: &Filter) -> u64 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&to_bytes(filter));
    hasher.finish()
}

/// A filter from those bytes.
pub(crate) fn from_bytes(flags: u32, program: &[u8]) -> Filter {
    let insn = |b: &[u8]| Insn {
        code: u16::from_ne_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
    };
    Filter {
        program: program.chunks_exact(8).map(insn).collect(),
        flags,
        listener: None,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}
