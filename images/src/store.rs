//! The image store on disk.
//!
//! ```text
//! ROOT/                      0700, root's
//!   oci-layout               {"imageLayoutVersion":"1.0.0"}: the store is itself an OCI image layout
//!   index.json               references -> manifests (annotation org.opencontainers.image.ref.name)
//!   blobs/sha256/HEX         manifests, configs and layers as they came, named by their sha256
//!   layers/HEX/fs/           one unpacked layer in overlayfs form, named by its diff_id
//!   layers/HEX/layer.json    written last: the layer is complete; the digest of its tree
//!   berth-store              format of the above
//!   lock                     flock, held by whoever changes anything
//!   tmp/                     work under way; emptied by the next writer
//! ```
//! Invariants. Everything gets its name by a rename from `tmp/` after its content is on disk, and the folder it
//! stands in is synced after: a power cut at any point leaves either the old or the new, and rubbish in `tmp/`.
//! Order of a load: layers, blobs, manifest, index.json. So what index.json names is complete.
//! Readers take no lock: they see one index.json or the other. gc deletes only what no reference and no image
//! named to it as in use needs.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType,
};
use serde::Serialize;

use crate::digest::Digest;
use crate::disk::{io_error, sync_dir};
use crate::document::{self, DOCUMENT_MAX};
use crate::error::ImageError;
use crate::merged::{self, Layer};
use crate::reference::Reference;
use crate::{crash, layer};

/// Content of `berth-store`.
const FORMAT: &str = "1\n";
/// The annotation that holds a reference.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Largest index.json in bytes.
const INDEX_MAX: u64 = 64 << 20;
/// References named in a [`ImageError::NotFound`].
const KNOWN_MAX: usize = 20;

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is created or changed.
    Read,
    /// The store is created where it is missing; each change takes the lock for itself.
    Write,
}

/// An image store. Cheap to open; holds no file open and no lock between calls.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    mode: Mode,
}

/// What the launcher needs of an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's digest.
    pub digest: Digest,
    /// The image's configuration: entrypoint, environment, user, ….
    pub config: ImageConfiguration,
    /// Unpacked layer folders in the order of overlayfs `lowerdir`: topmost first. Absolute if the store's root is.
    /// Never empty. To be mounted without `userxattr`: opaque folders carry `trusted.overlay.opaque`.
    pub layers: Vec<PathBuf>,
}

/// One line of a listing.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The reference.
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// `linux/amd64`.
    pub platform: String,
    /// Bytes of the manifest, the config and the layers as they came.
    pub size: u64,
    /// Number of layers.
    pub layers: usize,
    /// When the image was built, as its config says (RFC 3339).
    pub created: Option<String>,
    /// Why the image cannot be used, if so.
    pub problem: Option<String>,
}

/// Everything the store knows of an image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The manifest's digest.
    pub digest: Digest,
    /// All references to it.
    pub references: Vec<Reference>,
    /// The image's configuration as the image has it.
    pub config: ImageConfiguration,
    /// The layers, bottom first.
    pub layers: Vec<InspectedLayer>,
}

/// One layer of an [`Inspection`].
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InspectedLayer {
    /// sha256 of the uncompressed tar stream.
    pub diff_id: Digest,
    /// The blob.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Entries in the layer.
    pub entries: u64,
    /// Bytes of the uncompressed tar stream.
    pub unpacked_size: u64,
    /// Its unpacked folder.
    pub path: PathBuf,
    /// Attributes that were left out when unpacking, as `path: attribute`.
    pub dropped: Vec<String>,
}

/// A manifest with its config, read from the store.
pub(crate) struct Parts {
    pub(crate) manifest: ImageManifest,
    pub(crate) manifest_size: u64,
    pub(crate) config: ImageConfiguration,
    pub(crate) config_digest: Digest,
    /// diff_ids, bottom first; as many as the manifest has layers.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Store {
    /// Opens the store at `root`. With [`Mode::Write`] a missing one is created (and a half-created one completed).
    ///
    /// # Errors
    /// [`ImageError::Missing`] when reading where there is none, [`ImageError::Format`] for a folder that holds
    /// something else or a store of another version.
    pub fn open(root: impl Into<PathBuf>, mode: Mode) -> Result<Self, ImageError> {
        let store = Self {
            root: root.into(),
            mode,
        };
        let format = store.root.join("berth-store");
        match fs::read_to_string(&format) {
            Ok(text) if text == FORMAT => {}
            Ok(text) => {
                let text: String = text.chars().take(40).collect();
                let problem = format!("store format {text:?}, this version reads {FORMAT:?}");
                return Err(ImageError::Format {
                    path: format,
                    problem,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode == Mode::Read => {
                return Err(ImageError::Missing { path: store.root });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create()?,
            Err(error) => return Err(io_error("read", &format)(error)),
        }
        Ok(store)
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self) -> Result<(), ImageError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&self.root)
            .map_err(io_error("create", &self.root))?;
        let _lock = self.lock()?;
        // Created in this order: `berth-store` is last, so a folder that has something else in it, and not
        // `berth-store`, is either a store being created or not ours.
        let known = [
            "lock",
            "tmp",
            "layers",
            "blobs",
            "oci-layout",
            "index.json",
            "berth-store",
            "lost+found",
        ];
        for entry in fs::read_dir(&self.root).map_err(io_error("read", &self.root))? {
            let name = entry.map_err(io_error("read", &self.root))?.file_name();
            if !known.iter().any(|known| name == *known) {
                let problem = format!("not an image store: it holds {name:?}");
                return Err(ImageError::Format {
                    path: self.root.clone(),
                    problem,
                });
            }
        }
        for name in ["tmp", "layers", "blobs/sha256"] {
            let path = self.root.join(name);
            builder.create(&path).map_err(io_error("create", &path))?;
            crash::point().map_err(io_error("create", &path))?;
        }
        if !self.root.join("index.json").exists() {
            self.write_index(&[])?;
        }
        self.write_file(
            &self.root.join("oci-layout"),
            b"{\"imageLayoutVersion\":\"1.0.0\"}",
        )?;
        sync_dir(&self.root.join("blobs"))?;
        self.write_file(&self.root.join("berth-store"), FORMAT.as_bytes())?;
        if let Some(parent) = self.root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        Ok(())
    }

    /// The digest a reference stands for: `name[:tag]`, `name[:tag]@sha256:…` or `sha256:…`.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] with the references there are; a malformed reference; an unreadable index.
    pub fn resolve(&self, reference: &str) -> Result<Digest, ImageError> {
        let index = self.read_index()?;
        let not_found = || ImageError::NotFound {
            path: self.root.clone(),
            wanted: reference.to_string(),
            known: index.keys().take(KNOWN_MAX).cloned().collect(),
        };
        if reference.starts_with("sha256:") {
            let digest: Digest = reference.parse()?;
            return index
                .values()
                .any(|one| document::digest(one) == Ok(digest))
                .then_some(digest)
                .ok_or_else(not_found);
        }
        let wanted: Reference = reference.parse()?;
        for (key, descriptor) in &index {
            let digest = document::digest(descriptor).map_err(|problem| self.bad_index(problem))?;
            let name_fits = match wanted.key() {
                Some(wanted) => *key == wanted,
                None => key
                    .rsplit_once(':')
                    .is_some_and(|(name, _)| name == wanted.name()),
            };
            if name_fits && wanted.digest().is_none_or(|pinned| pinned == digest) {
                return Ok(digest);
            }
        }
        Err(not_found())
    }

    /// An image by its manifest's digest: its config, and its layers as overlayfs takes them.
    ///
    /// Manifest and config are hashed again (they are small), every layer must have its marker, and the mount
    /// points are looked at again. Layer contents are not hashed: that is [`Store::verify`].
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Tampered`], [`ImageError::Damaged`], [`ImageError::MountPoint`].
    pub fn image(&self, digest: &Digest) -> Result<Image, ImageError> {
        let parts = self.parts(digest)?;
        let layers = self.layers(&parts.diff_ids)?;
        merged::check_mount_points(*digest, &layers)?;
        // overlayfs does not honour an opaque root of a lower layer: what such a layer hides is left out here.
        let hidden_from = layers
            .iter()
            .position(|one| one.marker.found.opaque_root)
            .map_or(layers.len(), |at| at + 1);
        let layers = layers.into_iter().take(hidden_from).map(|one| one.path).collect();
        Ok(Image {
            digest: *digest,
            config: parts.config,
            layers,
        })
    }

    /// All references, in the order of their names. An image that cannot be used is listed with its problem.
    ///
    /// # Errors
    /// An unreadable index.
    pub fn list(&self) -> Result<Vec<Entry>, ImageError> {
        let mut entries = Vec::new();
        for (key, descriptor) in self.read_index()? {
            let reference = key.parse()?;
            let digest = document::digest(&descriptor).map_err(|problem| self.bad_index(problem))?;
            let mut entry = Entry {
                reference,
                digest,
                platform: String::new(),
                size: 0,
                layers: 0,
                created: None,
                problem: None,
            };
            match self.parts(&digest) {
                Ok(parts) => {
                    entry.platform = format!("{}/{}", parts.config.os(), parts.config.architecture());
                    entry.size = parts.manifest_size
                        + parts.manifest.config().size()
                        + parts.manifest.layers().iter().map(Descriptor::size).sum::<u64>();
                    entry.layers = parts.diff_ids.len();
                    entry.created.clone_from(parts.config.created());
                    entry.problem = self.layers(&parts.diff_ids).err().map(|error| error.to_string());
                }
                Err(error) => entry.problem = Some(error.to_string()),
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Everything about one image.
    ///
    /// # Errors
    /// As [`Store::resolve`] and [`Store::image`].
    pub fn inspect(&self, reference: &str) -> Result<Inspection, ImageError> {
        let digest = self.resolve(reference)?;
        let parts = self.parts(&digest)?;
        let mut references = Vec::new();
        for (key, descriptor) in self.read_index()? {
            if document::digest(&descriptor) == Ok(digest) {
                references.push(key.parse()?);
            }
        }
        let mut layers = Vec::new();
        for (descriptor, diff_id) in parts.manifest.layers().iter().zip(&parts.diff_ids) {
            let marker = layer::marker(&self.root, diff_id)?;
            layers.push(InspectedLayer {
                diff_id: *diff_id,
                digest: document::digest(descriptor).map_err(|problem| self.bad_index(problem))?,
                media_type: descriptor.media_type().to_string(),
                size: descriptor.size(),
                entries: marker.found.entries,
                unpacked_size: marker.found.bytes,
                path: layer::folder(&self.root, diff_id).join("fs"),
                dropped: marker.found.dropped,
            });
        }
        Ok(Inspection {
            digest,
            references,
            config: parts.config,
            layers,
        })
    }

    /// Path of a blob.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A small blob, hashed.
    pub(crate) fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let known = self.read_index()?.into_keys().take(KNOWN_MAX).collect();
                return Err(ImageError::NotFound {
                    path: self.root.clone(),
                    wanted: digest.to_string(),
                    known,
                });
            }
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(DOCUMENT_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(ImageError::Tampered {
                file: path,
                digest: *digest,
                found,
            });
        }
        Ok(bytes)
    }

    pub(crate) fn parts(&self, digest: &Digest) -> Result<Parts, ImageError> {
        let path = self.blob_path(digest);
        let bytes = self.document(digest)?;
        let bad = |role, digest| {
            let file = path.clone();
            move |problem| ImageError::Document {
                file,
                role,
                digest: Some(digest),
                problem,
            }
        };
        let manifest = document::manifest(&bytes).map_err(bad("manifest", *digest))?;
        let config_digest = document::digest(manifest.config()).map_err(bad("manifest", *digest))?;
        let config = self.document(&config_digest)?;
        let (config, diff_ids) = document::config(&config).map_err(bad("config", config_digest))?;
        if diff_ids.len() != manifest.layers().len() || diff_ids.is_empty() {
            let problem = format!(
                "{} diff_ids for {} layers",
                diff_ids.len(),
                manifest.layers().len()
            );
            return Err(bad("config", config_digest)(problem));
        }
        Ok(Parts {
            manifest,
            manifest_size: bytes.len() as u64,
            config,
            config_digest,
            diff_ids,
        })
    }

    /// The unpacked layers, topmost first; `diff_ids` are bottom first.
    pub(crate) fn layers(&self, diff_ids: &[Digest]) -> Result<Vec<Layer>, ImageError> {
        let unpacked = |diff_id: &Digest| {
            let marker = layer::marker(&self.root, diff_id)?;
            let path = layer::folder(&self.root, diff_id).join("fs");
            Ok(Layer {
                diff_id: *diff_id,
                path,
                marker,
            })
        };
        diff_ids.iter().rev().map(unpacked).collect()
    }

    fn bad_index(&self, problem: String) -> ImageError {
        ImageError::Document {
            file: self.root.join("index.json"),
            role: "index",
            digest: None,
            problem,
        }
    }

    /// References and their descriptors.
    pub(crate) fn read_index(&self) -> Result<BTreeMap<String, Descriptor>, ImageError> {
        let path = self.root.join("index.json");
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(io_error("open", &path))?;
        file.take(INDEX_MAX)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        let index = document::index(&bytes).map_err(|problem| self.bad_index(problem))?;
        let mut out = BTreeMap::new();
        for descriptor in index.manifests() {
            let key = descriptor
                .annotations()
                .as_ref()
                .and_then(|all| all.get(REF_NAME));
            let key =
                key.ok_or_else(|| self.bad_index(format!("{} has no reference", descriptor.digest())))?;
            key.parse::<Reference>()
                .map_err(|error| self.bad_index(error.to_string()))?;
            if out.insert(key.clone(), descriptor.clone()).is_some() {
                return Err(self.bad_index(format!("{key} stands there twice")));
            }
        }
        Ok(out)
    }

    /// Replaces index.json. The caller holds the lock.
    pub(crate) fn write_index(&self, entries: &[(String, Descriptor)]) -> Result<(), ImageError> {
        let mut manifests = Vec::new();
        for (key, descriptor) in entries {
            let mut descriptor = descriptor.clone();
            descriptor.set_annotations(Some(HashMap::from([(REF_NAME.to_string(), key.clone())])));
            manifests.push(descriptor);
        }
        let index: ImageIndex = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()
            .map_err(|error| self.bad_index(error.to_string()))?;
        let text = serde_json::to_vec(&index).map_err(|error| self.bad_index(error.to_string()))?;
        self.write_file(&self.root.join("index.json"), &text)
    }
}
