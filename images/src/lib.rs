//! OCI images: a content-addressed store, loading from OCI archives and layouts, verification and unpacking.
//!
//! An image enters the store only through [`Store::load`]: every blob's size and sha256 digest is checked as it
//! is read, the manifest for this node's architecture is chosen, every layer is unpacked once into a folder of
//! its own (named by its diff_id, in overlayfs form), and the merged view is checked for mount points that a
//! link could lead out of the image. [`Store::image`] then gives the launcher the folders for an overlay mount.
//!
//! No thread is started here, and nothing is read from a network.

mod crash;
mod digest;
mod disk;
mod document;
mod entry;
mod error;
mod gc;
mod layer;
mod limits;
mod load;
mod merged;
mod pax;
mod platform;
mod preloaded;
mod reference;
mod remove;
mod source;
mod store;
mod tarstream;
#[cfg(test)]
mod tests;
mod tree;
mod unpack;
mod verify;

pub use digest::{Digest, DigestError};
pub use error::{ImageError, LayerError};
pub use gc::Freed;
pub use limits::Limits;
pub use load::{LoadOptions, Loaded};
pub use preloaded::{Listed, Stores, seal_of};
pub use reference::{Reference, ReferenceError};
pub use remove::remove_tree;
pub use source::Source;
pub use store::{Entry, Image, InspectedLayer, Inspection, Mode, Store};
pub use verify::Fault;

/// The OCI image types this crate's API speaks of, so that a caller needs no `oci-spec` version of its own.
pub use oci_spec::image::{Config, ImageConfiguration};
