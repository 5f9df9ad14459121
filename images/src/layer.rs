//! Unpacked layers: `layers/HEX/{fs,layer.json}`, HEX the layer's diff_id.
//!
//! Invariant: a folder below `layers/` got its name by one rename, after its content and its marker
//! (`layer.json`) were on disk. A folder without a valid marker is never used; the next load replaces it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, HashReader, hash_all};
use crate::disk::{io_error, sync_dir};
use crate::document::Compression;
use crate::error::{ImageError, LayerError};
use crate::limits::Budget;
use crate::store::Store;
use crate::unpack::{Unpacked, unpack};
use crate::{crash, tree};

/// Version of the marker and of the unpacked form.
const MARKER_VERSION: u32 = 1;
/// Largest marker in bytes.
const MARKER_MAX: u64 = 64 << 20;

/// `layer.json`: the unpacked layer is complete, and this is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// [`MARKER_VERSION`].
    pub(crate) version: u32,
    /// sha256 of the uncompressed tar stream.
    pub(crate) diff_id: Digest,
    /// Digest of the unpacked tree ([`tree::digest`]).
    pub(crate) tree: Digest,
    /// What unpacking found.
    #[serde(flatten)]
    pub(crate) found: Found,
}

/// The part of the marker that comes from the tar stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Found {
    /// Entries in the stream.
    pub(crate) entries: u64,
    /// Bytes of the stream.
    pub(crate) bytes: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Folders that the layer has only because something lies in them.
    pub(crate) implied: Vec<String>,
    /// Attributes that were left out, as `path: attribute`.
    pub(crate) dropped: Vec<String>,
}

/// Where a layer lies, whether it is there or not.
pub(crate) fn folder(root: &Path, diff_id: &Digest) -> PathBuf {
    root.join("layers").join(diff_id.hex())
}

/// Reads the marker of a layer; refuses one that is missing, of another version or of another layer.
pub(crate) fn marker(root: &Path, diff_id: &Digest) -> Result<Marker, ImageError> {
    let path = folder(root, diff_id).join("layer.json");
    let damaged = |problem: String| ImageError::Damaged {
        path: path.clone(),
        problem,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(format!("layer {diff_id} is not completely unpacked")));
        }
        Err(error) => return Err(io_error("open", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(MARKER_MAX)
        .read_to_end(&mut text)
        .map_err(io_error("read", &path))?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|e| damaged(format!("bad marker: {e}")))?;
    if marker.version != MARKER_VERSION {
        return Err(damaged(format!(
            "marker version {}, this version reads {MARKER_VERSION}",
            marker.version
        )));
    }
    if marker.diff_id != *diff_id {
        return Err(damaged(format!("the marker is that of {}", marker.diff_id)));
    }
    Ok(marker)
}

/// Reads the blob at `blob` as an uncompressed stream. A zstd blob under another name is told apart here.
pub(crate) fn stream(blob: &Path, compression: Compression) -> Result<Box<dyn Read>, LayerError> {
    let read = |source| LayerError::Read { offset: 0, source };
    let mut file = File::open(blob).map_err(read)?;
    let mut magic = [0u8; 4];
    let got = file.read(&mut magic).map_err(read)?;
    if magic[..got] == [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(LayerError::Zstd);
    }
    let file = BufReader::with_capacity(128 * 1024, File::open(blob).map_err(read)?);
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
    })
}

/// Whether the layer is there, complete and unaltered.
fn intact(root: &Path, diff_id: &Digest) -> Option<Marker> {
    let marker = marker(root, diff_id).ok()?;
    let found = tree::digest(&folder(root, diff_id).join("fs")).ok()?;
    (found == marker.tree).then_some(marker)
}

/// Makes sure that the layer in `blob` is unpacked; gives its marker, and whether it was unpacked now.
/// The caller holds the lock. `file` names the archive in errors.
pub(crate) fn ensure(
    store: &Store,
    file: &Path,
    blob: (&Path, Digest),
    compression: Compression,
    diff_id: Digest,
    budget: &mut Budget,
) -> Result<(Marker, bool), ImageError> {
    let refuse = |source| ImageError::Layer {
        file: file.to_path_buf(),
        digest: blob.1,
        source: Box::new(source),
    };
    let final_path = folder(store.root(), &diff_id);
    if let Some(marker) = intact(store.root(), &diff_id) {
        // Unpacked by an earlier load, perhaps from another blob: this one must still be what the config says.
        budget.take(&marker.found).map_err(refuse)?;
        let bounded = stream(blob.0, compression)
            .map_err(refuse)?
            .take(marker.found.bytes + 1);
        let (found, offset) =
            hash_all(bounded).map_err(|source| refuse(LayerError::Read { offset: 0, source }))?;
        if found != diff_id || offset != marker.found.bytes {
            return Err(refuse(LayerError::DiffId {
                expected: diff_id,
                found,
            }));
        }
        return Ok((marker, false));
    }
    if fs::symlink_metadata(&final_path).is_ok() {
        store.set_aside(&final_path)?;
    }
    let temp = store.temp_dir("layer")?;
    let fs_path = temp.join("fs");
    fs::create_dir(&fs_path).map_err(io_error("create", &fs_path))?;
    let mut reader = HashReader::new(stream(blob.0, compression).map_err(refuse)?);
    let unpacked = unpack(&mut reader, &fs_path, budget);
    let Unpacked { mut found } = unpacked.map_err(refuse)?;
    let (computed, bytes) = reader.finish();
    if computed != diff_id {
        return Err(refuse(LayerError::DiffId {
            expected: diff_id,
            found: computed,
        }));
    }
    found.bytes = bytes;
    let tree = tree::digest(&fs_path).map_err(io_error("read back", &fs_path))?;
    crash::point().map_err(io_error("unpack", &fs_path))?;
    let dir = File::open(&fs_path).map_err(io_error("open", &fs_path))?;
    nix::unistd::syncfs(&dir).map_err(|e| io_error("sync", &fs_path)(e.into()))?;
    let marker = Marker {
        version: MARKER_VERSION,
        diff_id,
        tree,
        found,
    };
    let marker_path = temp.join("layer.json");
    let text = serde_json::to_vec(&marker).map_err(|e| io_error("write", &marker_path)(e.into()))?;
    let mut out = File::create(&marker_path).map_err(io_error("create", &marker_path))?;
    out.write_all(&text)
        .and_then(|()| out.sync_all())
        .map_err(io_error("write", &marker_path))?;
    sync_dir(&temp)?;
    crash::point().map_err(io_error("unpack", &temp))?;
    fs::rename(&temp, &final_path).map_err(io_error("rename", &final_path))?;
    crash::point().map_err(io_error("unpack", &final_path))?;
    sync_dir(&store.root().join("layers"))?;
    Ok((marker, true))
}
