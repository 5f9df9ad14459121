//! Compiled filters kept in a folder: `DIR/DIGEST.bpf`.
//!
//! ```text
//! "berth-seccomp-1\n"   the version of the compiler and of this format
//! sha256 of what follows, 32 bytes
//! flags u32 · instructions, 8 bytes each (struct sock_filter, native order)
//! ```
//!
//! Invariants: folder and file belong to the effective user and nobody else may write them, or they are not believed;
//! a file is written whole under another name and renamed. A file that is not believed is a miss that names its
//! reason, never an error of the launch: the filter is compiled again and the file replaced. Filters with a NOTIFY
//! action are not kept. Compiling takes less than 0.1 ms, so this saves tens of microseconds.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{Filter, Insn, MAX_INSTRUCTIONS, Options, SeccompError, compile, digest};

/// Raised whenever the compiler may answer differently for the same section.
const MAGIC: &[u8; 16] = b"berth-seccomp-1\n";
const HEAD: usize = 16 + 32;
const MAX_FILE: usize = HEAD + 4 + 8 * MAX_INSTRUCTIONS;

/// A folder of compiled filters.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// Why the folder or a file in it is not believed.
#[derive(Debug, Error)]
pub enum CacheError {
    /// A file could not be read or written.
    #[error("seccomp cache {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error("seccomp cache {}: owner {owner}, mode {mode:o}: others may write it", path.display())]
    Writable {
        /// The folder or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// Another version, cut short, or changed.
    #[error("seccomp cache {}: not a whole file of this version", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

impl CacheError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Writable { path, .. } => Some(format!("chown root and chmod go-w {}", path.display())),
            Self::Content { path } => Some(format!("remove {}", path.display())),
            Self::File { .. } => None,
        }
    }
}

impl Cache {
    /// A cache in `dir`, made with mode 0700 where it is missing (its parent must be there).
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::File {
            path: dir.into(),
            source,
        };
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let meta = std::fs::symlink_metadata(dir).map_err(failed)?;
        if !meta.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        trusted(dir, &meta)?;
        Ok(Self { dir: dir.into() })
    }

    /// The filter of a section, from the folder or compiled and put there. The second value says why a file that was
    /// there was not believed, or why none could be written.
    pub fn get(
        &self,
        seccomp: &LinuxSeccomp,
        options: &Options,
    ) -> Result<(Filter, Option<CacheError>), SeccompError> {
        let digest = digest(seccomp, options);
        let path = self.dir.join(format!("{digest}.bpf"));
        let doubt = match read(&path) {
            Ok(Some((flags, program))) => {
                return Ok((
                    Filter {
                        program,
                        flags,
                        listener: None,
                    },
                    None,
                ));
            }
            Ok(None) => None,
            Err(e) => Some(e),
        };
        let filter = compile(seccomp, options)?;
        let written = if filter.listener.is_none() {
            write(&path, &filter)
        } else {
            Ok(())
        };
        Ok((filter, doubt.or(written.err())))
    }
}

fn trusted(path: &Path, meta: &std::fs::Metadata) -> Result<(), CacheError> {
    if meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(CacheError::Writable {
        path: path.into(),
        owner: meta.uid(),
        mode: meta.mode() & 0o7777,
    })
}

fn read(path: &Path) -> Result<Option<(u32, Vec<Insn>)>, CacheError> {
    let failed = |source| CacheError::File {
        path: path.into(),
        source,
    };
    let mut file = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let meta = file.metadata().map_err(failed)?;
    trusted(path, &meta)?;
    let content = || CacheError::Content { path: path.into() };
    let size = usize::try_from(meta.len())
        .ok()
        .filter(|&len| meta.is_file() && len <= MAX_FILE)
        .ok_or_else(content)?;
    let mut bytes = Vec::with_capacity(size + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    decode(&bytes).ok_or_else(content).map(Some)
}

fn decode(bytes: &[u8]) -> Option<(u32, Vec<Insn>)> {
    let (head, body) = bytes.split_at_checked(HEAD)?;
    let whole = head[..16] == MAGIC[..] && head[16..] == Sha256::digest(body)[..];
    let (flags, insns) = body.split_first_chunk::<4>().filter(|_| whole)?;
    let (insns, rest) = insns.as_chunks::<8>();
    let program = insns
        .iter()
        .map(|&[a, b, jt, jf, k0, k1, k2, k3]| Insn {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect();
    (rest.is_empty() && !insns.is_empty()).then_some((u32::from_ne_bytes(*flags), program))
}

fn write(path: &Path, filter: &Filter) -> Result<(), CacheError> {
    let mut body = Vec::with_capacity(4 + 8 * filter.program.len());
    body.extend_from_slice(&filter.flags.to_ne_bytes());
    for insn in &filter.program {
        body.extend_from_slice(&insn.code.to_ne_bytes());
        body.extend_from_slice(&[insn.jt, insn.jf]);
        body.extend_from_slice(&insn.k.to_ne_bytes());
    }
    let new = path.with_extension(format!("new.{}", std::process::id()));
    let written = (|| -> io::Result<()> {
        // A power cut may leave an empty file under the final name: the checksum tells.
        let mut file: File = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&[&MAGIC[..], &Sha256::digest(&body)[..], &body].concat())?;
        std::fs::rename(&new, path)
    })();
    written.map_err(|source| {
        // The half-written file is the lesser evil: the first error is the one to tell.
        let _ = std::fs::remove_file(&new);
        CacheError::File {
            path: path.into(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::hard;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn folder(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("berth-seccomp-{name}-{}", std::process::id()));
        Folder(dir)
    }

    #[test]
    fn a_file_is_believed_only_whole_and_own() {
        let dir = folder("file");
        let cache = Cache::open(&dir.0).expect("open");
        let section = hard::section(&hard::THREE);
        let options = Options::default();
        let ask = || cache.get(&section, &options).expect("filter");
        let (compiled, doubt) = ask();
        assert!(doubt.is_none(), "{doubt:?}");
        let path = dir.0.join(format!("{}.bpf", digest(&section, &options)));
        let good = std::fs::read(&path).expect("file");
        assert_eq!(ask().0, compiled);
        // The file is what is used: another program under a right checksum comes back as it is.
        let other = Filter {
            program: vec![Insn {
                code: 6,
                jt: 0,
                jf: 0,
                k: 0,
            }],
            ..compiled.clone()
        };
        write(&path, &other).expect("write");
        assert_eq!(ask().0, other);
        let mut flipped = good.clone();
        flipped[HEAD + 9] ^= 1;
        let mut version = good.clone();
        version[14] ^= 1;
        for bad in [&flipped[..], &version, &good[..good.len() - 8], &good[..10], b""] {
            std::fs::write(&path, bad).expect("write");
            let (filter, doubt) = ask();
            assert_eq!(filter, compiled);
            assert!(matches!(doubt, Some(CacheError::Content { .. })), "{doubt:?}");
            assert_eq!(std::fs::read(&path).expect("file"), good, "replaced");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).expect("chmod");
        assert!(matches!(ask().1, Some(CacheError::Writable { .. })));
        assert!(ask().1.is_none(), "replaced");
        let left: Vec<_> = std::fs::read_dir(&dir.0).expect("dir").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn another_architecture_or_section_is_another_file() {
        let section = hard::section(&hard::NATIVE);
        let digests = [
            digest(
                &section,
                &Options {
                    native: super::super::Architecture::X86_64,
                },
            ),
            digest(
                &section,
                &Options {
                    native: super::super::Architecture::Aarch64,
                },
            ),
            digest(&hard::section(&hard::THREE), &Options::default()),
        ];
        assert!(digests[0] != digests[1] && digests[0] != digests[2] && digests[1] != digests[2]);
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let dir = folder("dir");
        std::fs::create_dir(&dir.0).expect("mkdir");
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(matches!(Cache::open(&dir.0), Err(CacheError::Writable { .. })));
    }
}
