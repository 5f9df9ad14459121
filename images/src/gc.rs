//! Removing references, and what no image needs any more.
//!
//! Invariant: when it cannot be told what an image needs (a manifest that cannot be read), nothing is deleted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::Digest;
use crate::disk::{io_error, sync_dir};
use crate::document;
use crate::error::ImageError;
use crate::layer;
use crate::reference::Reference;
use crate::store::Store;

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Blobs: manifests, configs, compressed layers.
    pub blobs: u64,
    /// Unpacked layers.
    pub layers: u64,
    /// Bytes on disk, both together.
    pub bytes: u64,
}

impl Store {
    /// Removes a reference, then everything no other reference and no image in `in_use` (manifest digests of
    /// running or armed containers) needs.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::InUse`] when the reference is the last one of an image in `in_use`.
    pub fn remove(&self, reference: &str, in_use: &[Digest]) -> Result<Freed, ImageError> {
        let _lock = self.lock()?;
        let digest = self.resolve(reference)?;
        let index = self.read_index()?;
        let key = match reference
            .parse::<Reference>()
            .ok()
            .and_then(|parsed| parsed.key())
        {
            Some(key) if index.contains_key(&key) => Some(key),
            _ => None,
        };
        // By digest all its references go, by name only that one.
        let goes = |name: &String, of: &Digest| match &key {
            Some(key) => name == key,
            None => *of == digest,
        };
        let mut kept = Vec::new();
        let mut still_named = false;
        for (name, descriptor) in index {
            let of = document::digest(&descriptor).map_err(|problem| ImageError::Document {
                file: self.root().join("index.json"),
                role: "index",
                digest: None,
                problem,
            })?;
            if !goes(&name, &of) {
                still_named |= of == digest;
                kept.push((name, descriptor));
            }
        }
        if !still_named && in_use.contains(&digest) {
            return Err(ImageError::InUse {
                reference: reference.to_string(),
                digest,
            });
        }
        self.write_index(&kept)?;
        self.sweep(in_use)
    }

    /// Deletes every blob and unpacked layer that no reference and no image in `in_use` needs.
    ///
    /// # Errors
    /// A manifest or config that cannot be read: nothing is deleted then.
    pub fn gc(&self, in_use: &[Digest]) -> Result<Freed, ImageError> {
        let _lock = self.lock()?;
        self.sweep(in_use)
    }

    fn sweep(&self, in_use: &[Digest]) -> Result<Freed, ImageError> {
        let mut blobs = BTreeSet::new();
        let mut layers = BTreeSet::new();
        let mut images: BTreeSet<Digest> = in_use.iter().copied().collect();
        images.extend(
            self.read_index()?
                .values()
                .filter_map(|one| document::digest(one).ok()),
        );
        for digest in images {
            let parts = self.parts(&digest)?;
            blobs.extend([digest, parts.config_digest]);
            blobs.extend(
                parts
                    .manifest
                    .layers()
                    .iter()
                    .filter_map(|one| document::digest(one).ok()),
            );
            layers.extend(parts.diff_ids);
        }
        let mut freed = Freed::default();
        for (path, name) in self.names("blobs/sha256")? {
            if Digest::from_hex(&name).is_some_and(|digest| blobs.contains(&digest)) {
                continue;
            }
            freed.blobs += 1;
            freed.bytes += disk_size(&path);
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        for (path, name) in self.names("layers")? {
            if Digest::from_hex(&name).is_some_and(|diff_id| layers.contains(&diff_id)) {
                continue;
            }
            freed.layers += 1;
            freed.bytes += disk_size(&path);
            self.set_aside(&path)?;
        }
        sync_dir(&self.root().join("blobs/sha256"))?;
        self.clear_temp()?;
        Ok(freed)
    }

    /// Takes unpacked layers away again that a refused load has left. The caller holds the lock.
    pub(crate) fn discard_layers(&self, diff_ids: &[Digest]) -> Result<(), ImageError> {
        for diff_id in diff_ids {
            self.set_aside(&layer::folder(self.root(), diff_id))?;
        }
        self.clear_temp()
    }

    /// The entries of a folder of the store, sorted.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<(PathBuf, String)>, ImageError> {
        let path = self.root().join(folder);
        let mut out = Vec::new();
        for entry in fs::read_dir(&path).map_err(io_error("read", &path))? {
            let entry = entry.map_err(io_error("read", &path))?;
            out.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
        }
        out.sort();
        Ok(out)
    }
}

/// Bytes on disk of everything below a path; what cannot be read counts nothing.
fn disk_size(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            bytes += disk_size(&entry.path());
        }
    }
    bytes
}
