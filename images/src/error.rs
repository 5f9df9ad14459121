//! What can go wrong with images: [`ImageError`] for the store and for loading, [`LayerError`] for one layer.
//!
//! Every error names the file, and the digest or the entry inside it; `hint` names the way out where there is one.

use std::io;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::reference::ReferenceError;

/// Why an operation on the store failed or an image was refused.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The kernel refused an operation on a file.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, e.g. `open`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no store at this place.
    #[error("{}: no image store", path.display())]
    Missing {
        /// The folder looked in.
        path: PathBuf,
    },
    /// The folder holds something else, or a store of another version.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A change was asked of a store opened with [`Mode::Read`](crate::Mode::Read).
    #[error("{}: the store was opened for reading", path.display())]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// A reference that cannot be parsed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A digest that cannot be parsed.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The store has no such image.
    #[error("no image {wanted} in {}", path.display())]
    NotFound {
        /// The store.
        path: PathBuf,
        /// The reference or digest asked for.
        wanted: String,
        /// References the store has, at most twenty.
        known: Vec<String>,
    },
    /// The image runs.
    #[error("image {reference} ({digest}) is in use")]
    InUse {
        /// The reference to be removed.
        reference: String,
        /// Its manifest.
        digest: Digest,
    },
    /// The file is no OCI archive or layout.
    #[error("{}: {problem}", file.display())]
    NotOci {
        /// The archive or folder.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The way out.
        hint: Option<String>,
    },
    /// A blob that a document names is not in the archive.
    #[error("{}: {role} {digest} is missing", file.display())]
    Absent {
        /// The archive or folder.
        file: PathBuf,
        /// `manifest`, `index`, `config` or `layer`.
        role: &'static str,
        /// The blob.
        digest: Digest,
    },
    /// A blob's content is not what its name says.
    #[error("{}: blob {digest} has been altered: its content is {found}", file.display())]
    Tampered {
        /// The archive, folder or blob file.
        file: PathBuf,
        /// What it should be.
        digest: Digest,
        /// What it is.
        found: Digest,
    },
    /// A blob's length is not what its descriptor says.
    #[error("{}: {role} {digest} has {found} bytes, its descriptor says {expected}", file.display())]
    WrongSize {
        /// The archive or folder.
        file: PathBuf,
        /// `manifest`, `index`, `config` or `layer`.
        role: &'static str,
        /// The blob.
        digest: Digest,
        /// Bytes promised.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A JSON document that is malformed or breaks the image specification.
    #[error("{}: {role}{}: {problem}", file.display(), digest.map(|d| format!(" {d}")).unwrap_or_default())]
    Document {
        /// The archive or folder.
        file: PathBuf,
        /// `index`, `manifest`, `config` or `oci-layout`.
        role: &'static str,
        /// The blob, where it is one.
        digest: Option<Digest>,
        /// What is wrong with it.
        problem: String,
    },
    /// A form of content that berth does not read.
    #[error("{}: {digest}: {what} is not supported", file.display())]
    Unsupported {
        /// The archive or folder.
        file: PathBuf,
        /// The blob.
        digest: Digest,
        /// The form, e.g. a media type.
        what: String,
    },
    /// No image for this node.
    #[error("{}: no image for {wanted}; there is {}", file.display(), present.join(", "))]
    Platform {
        /// The archive or folder.
        file: PathBuf,
        /// This node, e.g. `linux/amd64`.
        wanted: String,
        /// What the image is for.
        present: Vec<String>,
    },
    /// A layer that was refused.
    #[error("{}: layer {digest}: {source}", file.display())]
    Layer {
        /// The archive or folder.
        file: PathBuf,
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The image's `/dev`, `/proc` or `/sys` is no folder, so a mount on it could leave the image.
    #[error(
        "image {digest}: /{name} is {kind} in layer {layer}: refused, mounts there could leave the image"
    )]
    MountPoint {
        /// The manifest.
        digest: Digest,
        /// `dev`, `proc` or `sys`.
        name: &'static str,
        /// What it is, e.g. `a symbolic link`.
        kind: &'static str,
        /// The layer (diff_id) that has it.
        layer: Digest,
    },
    /// A layer brings a folder implicitly that stands for something else in a lower layer.
    #[error(
        "image {digest}: layer {layer} has no entry for the folder /{path}, and would hide {hidden} below it"
    )]
    Implied {
        /// The manifest.
        digest: Digest,
        /// The upper layer (diff_id).
        layer: Digest,
        /// The folder.
        path: String,
        /// What it would hide.
        hidden: String,
    },
    /// What the store holds is incomplete or has been altered.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The preloaded store is not what was built into the firmware.
    #[error("preloaded store {}: {problem}", path.display())]
    Sealed {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A bound was passed.
    #[error("{}: {what}: {found}, the limit is {limit}", file.display())]
    Limit {
        /// The archive or folder.
        file: PathBuf,
        /// What was counted.
        what: &'static str,
        /// How many there are (or at least are).
        found: u64,
        /// How many may be.
        limit: u64,
    },
}

impl ImageError {
    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc_errno::ENOSPC | libc_errno::EDQUOT) => {
                    "free space: `berth image rm` what is not needed, then `berth image gc`".to_string()
                }
                Some(libc_errno::EACCES | libc_errno::EPERM) => {
                    "the store is root's: run as root, with CAP_CHOWN, CAP_FOWNER, CAP_SETFCAP and CAP_SYS_ADMIN".into()
                }
                Some(libc_errno::EROFS) => "choose a writable --state-dir".into(),
                _ => return None,
            },
            Self::Missing { .. } => "`berth image load FILE` makes it, or choose another --state-dir".into(),
            Self::Format { .. } => "choose another --state-dir, or load the images again into a new one".into(),
            Self::NotFound { known, .. } if known.is_empty() => "the store is empty: `berth image load FILE`".into(),
            Self::NotFound { known, .. } => format!("`berth image load FILE`; the store has {}", known.join(", ")),
            Self::InUse { .. } => "stop the workloads that use it first".into(),
            Self::NotOci { hint, .. } => return hint.clone(),
            Self::Absent { .. } => "the archive is incomplete: write it again with all platforms it names".into(),
            Self::Tampered { .. } | Self::WrongSize { .. } => "copy the file again from its source".into(),
            Self::Unsupported { what, .. } if what.contains("zstd") => {
                "write the layers with gzip: `skopeo copy --dest-compress-format gzip`".into()
            }
            Self::Unsupported { .. } => "write it as an OCI image: `skopeo copy --format oci`".into(),
            Self::Platform { wanted, .. } => format!("build or export the image for {wanted}"),
            Self::Layer { source, .. } => return source.hint(),
            Self::MountPoint { name, .. } => format!("make /{name} an empty folder in the image"),
            Self::Implied { path, .. } => format!("give the layer an entry for {path}/ with its mode and owner"),
            Self::Damaged { .. } => "`berth image verify`, then load the image again".into(),
            Self::Sealed { .. } => {
                "write the firmware anew, or `berth image load FILE`: an image of the node's own store goes first".into()
            }
            Self::ReadOnly { .. } | Self::Reference(_) | Self::Digest(_) | Self::Document { .. } => return None,
            Self::Limit { .. } => "an image of this size must be loaded with higher limits".into(),
        };
        Some(text)
    }
}

/// The few errno values the hints know.
mod libc_errno {
    use nix::errno::Errno;
    pub(super) const ENOSPC: i32 = Errno::ENOSPC as i32;
    pub(super) const EDQUOT: i32 = Errno::EDQUOT as i32;
    pub(super) const EACCES: i32 = Errno::EACCES as i32;
    pub(super) const EPERM: i32 = Errno::EPERM as i32;
    pub(super) const EROFS: i32 = Errno::EROFS as i32;
}

/// Why one layer was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream itself is malformed.
    #[error("bad tar at byte {offset}: {problem}")]
    Tar {
        /// Position of the header in the uncompressed stream.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The stream ended or could not be decompressed.
    #[error("reading the layer at byte {offset}: {source}")]
    Read {
        /// Position in the uncompressed stream.
        offset: u64,
        /// The error below.
        source: io::Error,
    },
    /// An entry that must not be unpacked.
    #[error("entry {entry:?}: {problem}")]
    Entry {
        /// Path in the archive.
        entry: String,
        /// Why.
        problem: String,
    },
    /// The kernel refused to create an entry.
    #[error("entry {entry:?}: {doing}: {source}")]
    Create {
        /// Path in the archive.
        entry: String,
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The uncompressed layer is not the one the image's config names.
    #[error("unpacks to {found}, but the config's diff_id is {expected}")]
    DiffId {
        /// What the config says.
        expected: Digest,
        /// What was found.
        found: Digest,
    },
    /// A bound was passed: entries or bytes.
    #[error("entry {entry:?}: more than {limit} {what}")]
    Limit {
        /// Path in the archive.
        entry: String,
        /// `entries` or `bytes`.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// zstd where gzip or plain tar was named or expected.
    #[error("zstd compression is not supported")]
    Zstd,
}

impl LayerError {
    /// What to do about it, where that can be said.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => {
                "the layer is cut short or damaged: copy the file again from its source".into()
            }
            Self::Limit { .. } => "if the image is meant to be this large, load it with higher limits".into(),
            Self::Zstd => "write the layers with gzip: `skopeo copy --dest-compress-format gzip`".into(),
            Self::DiffId { .. } => "the image was put together wrongly or altered: build it again".into(),
            Self::Create { source, .. } if source.raw_os_error() == Some(libc_errno::ENOSPC) => {
                "free space: `berth image rm` what is not needed, then `berth image gc`".into()
            }
            Self::Create { source, .. } if source.raw_os_error() == Some(libc_errno::EPERM) => {
                "unpacking needs CAP_CHOWN, CAP_FOWNER, CAP_DAC_OVERRIDE, CAP_SETFCAP and CAP_SYS_ADMIN"
                    .into()
            }
            Self::Tar { .. } | Self::Entry { .. } | Self::Create { .. } => return None,
        })
    }
}
