//! The digest of an unpacked tree: what [`verify`](crate::Store::verify) compares with the layer's marker.
//!
//! Covered, in the order of names: path, kind, mode, owners, device number, link target, content, and the two
//! kinds of extended attributes that layers carry. Not covered: times, and attributes the host adds (labels).

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::digest::{Digest, Hasher, hash_all};

/// Attributes that belong to the layer.
const COVERED: [&str; 2] = ["security.capability", "trusted.overlay.opaque"];

/// The digest of everything below `root`, and of `root`'s own mode and owners.
pub(crate) fn digest(root: &Path) -> io::Result<Digest> {
    let mut hasher = Hasher::default();
    // A stack of its own: the depth of a hostile tree must not be that of the program's stack.
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path)?;
        let inside = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes();
        let kind = meta.file_type();
        field(&mut hasher, inside);
        for number in [
            meta.mode().into(),
            meta.uid().into(),
            meta.gid().into(),
            meta.rdev(),
        ] {
            field(&mut hasher, &u64::to_le_bytes(number));
        }
        if kind.is_symlink() {
            field(&mut hasher, fs::read_link(&path)?.as_os_str().as_bytes());
            continue;
        }
        if kind.is_file() || kind.is_dir() {
            for name in COVERED {
                if let Some(value) = xattr::get(&path, name)? {
                    field(&mut hasher, name.as_bytes());
                    field(&mut hasher, &value);
                }
            }
        }
        if kind.is_file() {
            let (content, size) = hash_all(File::open(&path)?)?;
            field(&mut hasher, &u64::to_le_bytes(size));
            field(&mut hasher, content.hex().as_bytes());
        } else if kind.is_dir() {
            let mut names = fs::read_dir(&path)?
                .map(|e| e.map(|e| e.path()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable_by(|a, b| b.cmp(a));
            field(&mut hasher, &u64::to_le_bytes(names.len() as u64));
            left.extend(names);
        } else if kind.is_block_device() || kind.is_socket() {
            return Err(io::Error::other(format!(
                "{}: a device or socket in a layer",
                path.display()
            )));
        }
    }
    Ok(hasher.finish())
}

/// Length first, so that two fields cannot be read as one.
fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
