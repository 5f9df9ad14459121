//! The merged view of an image's layers, asked without mounting it.
//!
//! overlayfs shows, for each name, the topmost layer that has it; a character device 0/0 hides the name, and a
//! folder merges with the folders of the same name below. So the topmost layer that has `/dev` says what it is.
//! Invariant: an image whose /dev, /proc or /sys would be anything but a folder (or absent) is never given out:
//! a runtime that mounts or makes nodes there would do so wherever a link leads (CVE-2026-41579).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstatat};

use crate::digest::Digest;
use crate::disk::io_error;
use crate::error::ImageError;
use crate::layer::Marker;

/// Where the runtime mounts.
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// Mode of a folder that has no entry of its own.
pub(crate) const IMPLIED_MODE: u32 = 0o755;

/// One unpacked layer.
pub(crate) struct Layer {
    /// Its diff_id.
    pub(crate) diff_id: Digest,
    /// Its `fs` folder.
    pub(crate) path: PathBuf,
    /// Its marker.
    pub(crate) marker: Marker,
}

/// What a layer has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing: the layer below decides.
    Nothing,
    /// A whiteout: hidden.
    Whiteout,
    /// A folder with its mode (12 bits) and owners.
    Dir { mode: u32, uid: u32, gid: u32 },
    /// Anything else.
    Other(&'static str),
}

/// What a file of this kind is called.
fn kind(stat: &FileStat) -> Found {
    let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    match format {
        SFlag::S_IFDIR => Found::Dir {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        },
        SFlag::S_IFCHR if stat.st_rdev == 0 => Found::Whiteout,
        SFlag::S_IFLNK => Found::Other("a symbolic link"),
        SFlag::S_IFREG => Found::Other("a file"),
        SFlag::S_IFIFO => Found::Other("a pipe"),
        _ => Found::Other("a special file"),
    }
}

/// Looks a path up in one layer, following no link.
pub(crate) fn look(layer: &Path, path: &str) -> io::Result<Found> {
    let root = File::open(layer)?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stat = if parent.is_empty() {
        fstatat(&root, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    } else {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(root.as_fd(), parent, how).and_then(|dir| fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW))
    };
    match stat {
        Ok(stat) => Ok(kind(&stat)),
        Err(Errno::ENOENT) => Ok(Found::Nothing),
        Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(Found::Other("below something that is no folder")),
        Err(errno) => Err(errno.into()),
    }
}

/// Refuses an image whose mount points are links or files. `layers` are topmost first.
pub(crate) fn check_mount_points(digest: Digest, layers: &[Layer]) -> Result<(), ImageError> {
    for name in MOUNT_POINTS {
        for layer in layers {
            match look(&layer.path, name).map_err(io_error("look into", &layer.path))? {
                Found::Nothing if layer.marker.found.opaque_root => break,
                Found::Nothing => {}
                Found::Whiteout | Found::Dir { .. } => break,
                Found::Other(kind) => {
                    return Err(ImageError::MountPoint {
                        digest,
                        name,
                        kind,
                        layer: layer.diff_id,
                    });
                }
            }
        }
    }
    Ok(())
}

/// Refuses an image in which a folder that a layer brings only implicitly would stand before something else
/// of a lower layer: a link, or a folder with another mode or owner. `layers` are topmost first.
pub(crate) fn check_implied(digest: Digest, layers: &[Layer]) -> Result<(), ImageError> {
    for (at, upper) in layers.iter().enumerate() {
        for path in &upper.marker.found.implied {
            if let Some(hidden) = hidden_by(&layers[..at], &layers[at + 1..], path)? {
                return Err(ImageError::Implied {
                    digest,
                    layer: upper.diff_id,
                    path: path.clone(),
                    hidden,
                });
            }
        }
        if upper.marker.found.opaque_root {
            break;
        }
    }
    Ok(())
}

/// What the implied folder `path` hides in `below`, unless a layer above says itself what the path is.
fn hidden_by(above: &[Layer], below: &[Layer], path: &str) -> Result<Option<String>, ImageError> {
    let implied = |layer: &Layer| layer.marker.found.implied.iter().any(|one| one == path);
    let look = |layer: &Layer| look(&layer.path, path).map_err(io_error("look into", &layer.path));
    for layer in above {
        if look(layer)? != Found::Nothing {
            return Ok(None);
        }
    }
    for layer in below {
        match look(layer)? {
            Found::Nothing => {}
            Found::Whiteout => return Ok(None),
            Found::Dir { .. } if implied(layer) => {}
            Found::Dir {
                mode: IMPLIED_MODE,
                uid: 0,
                gid: 0,
            } => return Ok(None),
            Found::Dir { mode, uid, gid } => {
                return Ok(Some(format!("a folder with mode {mode:o}, owner {uid}:{gid}")));
            }
            // The upper layer was built on a folder here; a link or file in its place would be lost.
            Found::Other("below something that is no folder") => return Ok(None),
            Found::Other(kind) => return Ok(Some(kind.to_string())),
        }
        if layer.marker.found.opaque_root {
            return Ok(None);
        }
    }
    Ok(None)
}
