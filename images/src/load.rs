//! Loading an image: from a source into the store, or refused with the store as it was.
//!
//! Order: read and hash everything into `tmp/`, choose the manifest for this node, unpack the layers, check the
//! merged view, give the blobs their names (the manifest last), then replace index.json.

use std::path::Path;

use oci_spec::image::Descriptor;
use serde::Serialize;

use crate::digest::Digest;
use crate::disk::sync_dir;
use crate::document::{self, Kind};
use crate::error::ImageError;
use crate::limits::{Budget, Limits};
use crate::merged;
use crate::platform::{Platform, node_architecture};
use crate::reference::Reference;
use crate::source::{self, Opened, Source};
use crate::store::{REF_NAME, Store};
use crate::{crash, layer};

/// The annotation in which containerd and Docker keep the full reference.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Deepest nesting of indexes.
const INDEX_DEPTH: u32 = 4;
/// Most entries of all indexes together.
const MANIFESTS_MAX: u64 = 1000;

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions<'a> {
    /// The reference to store the image under, and to pick it by where the source has several. `None`: the one
    /// the source names.
    pub name: Option<&'a str>,
    /// The architecture in the names images use (`amd64`, `arm64`); `None`: this program's own.
    pub architecture: Option<&'a str>,
    /// Bounds on the image.
    pub limits: Limits,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Loaded {
    /// The reference it was stored under.
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// Layers of the image.
    pub layers: usize,
    /// Layers that were unpacked now; the others were there.
    pub unpacked: usize,
    /// Attributes that were left out when unpacking, as `path: attribute`.
    pub dropped: Vec<String>,
}

/// One image of a source.
struct Candidate {
    descriptor: Descriptor,
    platform: Platform,
}

impl Store {
    /// Loads an OCI archive file or an OCI layout folder for this node, under `name` or the source's own name.
    ///
    /// # Errors
    /// Whatever is wrong with the image (see [`ImageError`]); the store then is as it was. Waits for the lock.
    pub fn load(&self, path: &Path, name: Option<&str>) -> Result<Loaded, ImageError> {
        self.load_from(
            Source::Path(path),
            &LoadOptions {
                name,
                ..LoadOptions::default()
            },
        )
    }

    /// Loads from a file, a folder or a stream.
    ///
    /// # Errors
    /// As [`Store::load`].
    pub fn load_from(&self, source: Source<'_>, options: &LoadOptions<'_>) -> Result<Loaded, ImageError> {
        let wanted = options.name.map(str::parse::<Reference>).transpose()?;
        let _lock = self.lock()?;
        let mut fresh = Vec::new();
        let loaded = self.load_locked(source, wanted, options, &mut fresh);
        if loaded.is_err() && !crash::cut() {
            // Nothing names these layers: a refused image leaves nothing behind.
            self.discard_layers(&fresh)?;
        }
        self.clear_temp()?;
        loaded
    }

    fn load_locked(
        &self,
        source: Source<'_>,
        wanted: Option<Reference>,
        options: &LoadOptions<'_>,
        fresh: &mut Vec<Digest>,
    ) -> Result<Loaded, ImageError> {
        let node = Platform::of_node(options.architecture.unwrap_or(node_architecture()));
        let mut opened = source::open(source, self.temp_dir("load")?, options.limits)?;
        let (reference, tops) = choose_name(&opened, wanted)?;
        let mut candidates = Vec::new();
        let mut seen = 0;
        for descriptor in tops {
            collect(&mut opened, descriptor, 0, &mut seen, &mut candidates)?;
        }
        let Some(chosen) = candidates.iter().find(|one| one.platform.runs_on(&node)) else {
            return Err(no_platform(
                &opened,
                &node,
                candidates.iter().map(|one| &one.platform),
            ));
        };
        let descriptor = chosen.descriptor.clone();
        let digest = sha256(&opened, "manifest", &descriptor)?;
        if let Some(pinned) = reference.digest().filter(|pinned| *pinned != digest) {
            return Err(ImageError::Tampered {
                file: opened.file,
                digest: pinned,
                found: digest,
            });
        }
        let bad = |file: &Path, role, digest| {
            let file = file.to_path_buf();
            move |problem| ImageError::Document {
                file,
                role,
                digest: Some(digest),
                problem,
            }
        };

        let bytes = opened.document("manifest", digest, descriptor.size())?;
        let manifest = document::manifest(&bytes).map_err(bad(&opened.file, "manifest", digest))?;
        let config_digest = sha256(&opened, "config", manifest.config())?;
        let bytes = opened.document("config", config_digest, manifest.config().size())?;
        let (config, diff_ids) =
            document::config(&bytes).map_err(bad(&opened.file, "config", config_digest))?;
        let own = Platform::new(config.os(), config.architecture(), config.variant().as_ref());
        if !own.runs_on(&node) {
            return Err(no_platform(&opened, &node, std::iter::once(&own)));
        }
        let count = manifest.layers().len();
        if diff_ids.len() != count {
            let problem = format!("{} diff_ids for {count} layers of the manifest", diff_ids.len());
            return Err(bad(&opened.file, "config", config_digest)(problem));
        }
        if count == 0 {
            return Err(bad(&opened.file, "manifest", digest)(
                "the image has no layer".into(),
            ));
        }
        if count > options.limits.layers {
            let (found, limit) = (count as u64, options.limits.layers as u64);
            return Err(ImageError::Limit {
                file: opened.file,
                what: "layers",
                found,
                limit,
            });
        }

        let mut budget = Budget::new(options.limits);
        let mut blobs = Vec::new();
        let mut dropped = Vec::new();
        for (one, diff_id) in manifest.layers().iter().zip(&diff_ids) {
            let blob = sha256(&opened, "layer", one)?;
            let compression =
                document::compression(one.media_type()).map_err(|what| ImageError::Unsupported {
                    file: opened.file.clone(),
                    digest: blob,
                    what,
                })?;
            let path = opened.blob("layer", blob, one.size())?;
            let (marker, unpacked) = layer::ensure(
                self,
                &opened.file,
                (&path, blob),
                compression,
                *diff_id,
                &mut budget,
            )?;
            if unpacked {
                fresh.push(*diff_id);
            }
            dropped.extend(marker.found.dropped);
            blobs.push(blob);
        }
        let layers = self.layers(&diff_ids)?;
        merged::check_mount_points(digest, &layers)?;
        merged::check_implied(digest, &layers)?;

        blobs.push(config_digest);
        // One blob can be named twice; it is moved once.
        blobs.sort_unstable();
        blobs.dedup();
        for blob in &blobs {
            self.publish(&opened.path(blob), &self.blob_path(blob))?;
        }
        self.publish(&opened.path(&digest), &self.blob_path(&digest))?;
        sync_dir(&self.root().join("blobs/sha256"))?;

        let key = reference
            .key()
            .unwrap_or_else(|| format!("{}:latest", reference.name()));
        let mut index = self.read_index()?;
        index.insert(key.clone(), descriptor);
        self.write_index(&index.into_iter().collect::<Vec<_>>())?;
        let unpacked = std::mem::take(fresh).len();
        Ok(Loaded {
            reference: key.parse()?,
            digest,
            layers: count,
            unpacked,
            dropped,
        })
    }
}

fn sha256(opened: &Opened, role: &'static str, descriptor: &Descriptor) -> Result<Digest, ImageError> {
    document::digest(descriptor).map_err(|problem| ImageError::Document {
        file: opened.file.clone(),
        role,
        digest: None,
        problem,
    })
}

fn no_platform<'a>(
    opened: &Opened,
    node: &Platform,
    present: impl Iterator<Item = &'a Platform>,
) -> ImageError {
    let mut present: Vec<String> = present.map(Platform::to_string).collect();
    present.sort();
    present.dedup();
    if present.is_empty() {
        present.push("no image at all".into());
    }
    ImageError::Platform {
        file: opened.file.clone(),
        wanted: node.to_string(),
        present,
    }
}

/// The reference an entry of index.json is annotated with. A bare tag is no name.
fn annotated(descriptor: &Descriptor) -> Option<Reference> {
    let all = descriptor.annotations().as_ref()?;
    if let Some(full) = all.get(CONTAINERD_NAME) {
        return full.parse().ok();
    }
    all.get(REF_NAME)
        .filter(|name| name.contains([':', '/']))
        .and_then(|name| name.parse().ok())
}

/// Which entries of index.json are meant, and under which reference.
fn choose_name(
    opened: &Opened,
    wanted: Option<Reference>,
) -> Result<(Reference, Vec<Descriptor>), ImageError> {
    let bad = |problem| ImageError::Document {
        file: opened.file.clone(),
        role: "index",
        digest: None,
        problem,
    };
    let index = document::index(&opened.index).map_err(bad)?;
    let mut names: Vec<Reference> = index.manifests().iter().filter_map(annotated).collect();
    names.sort();
    names.dedup();
    let listed = || {
        names
            .iter()
            .map(Reference::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let refuse = |problem: String, hint: &str| {
        Err(ImageError::NotOci {
            file: opened.file.clone(),
            problem,
            hint: Some(hint.into()),
        })
    };
    let all = || index.manifests().clone();
    let named = |name: &Reference| {
        index
            .manifests()
            .iter()
            .filter(|one| annotated(one).as_ref() == Some(name))
            .cloned()
            .collect()
    };
    match wanted {
        Some(name) if names.len() < 2 => Ok((name, all())),
        Some(name) if names.contains(&name) => {
            let entries = named(&name);
            Ok((name, entries))
        }
        Some(name) => refuse(
            format!("it has no image {name}; it has {}", listed()),
            "name one of these",
        ),
        None if names.len() == 1 => Ok((names[0].clone(), all())),
        None if names.is_empty() => refuse(
            "it does not name its image".into(),
            "give a name: `--name NAME:TAG`",
        ),
        None => refuse(
            format!("it has several images: {}", listed()),
            "name one of these: `--name NAME:TAG`",
        ),
    }
}

/// Adds the images an entry leads to, through nested indexes. `seen` counts entries of any kind: an index that
/// names another a thousand times over must end too.
fn collect(
    opened: &mut Opened,
    from: Descriptor,
    depth: u32,
    seen: &mut u64,
    out: &mut Vec<Candidate>,
) -> Result<(), ImageError> {
    let file = opened.file.clone();
    *seen += 1;
    if *seen > MANIFESTS_MAX {
        return Err(ImageError::Limit {
            file,
            what: "entries of indexes",
            found: *seen,
            limit: MANIFESTS_MAX,
        });
    }
    let bad = |role, digest, problem| ImageError::Document {
        file: file.clone(),
        role,
        digest: Some(digest),
        problem,
    };
    let digest = sha256(opened, "index", &from)?;
    let kind = document::kind(&from).map_err(|what| ImageError::Unsupported {
        file: file.clone(),
        digest,
        what,
    })?;
    if kind == Kind::Index {
        if depth == INDEX_DEPTH {
            return Err(bad(
                "index",
                digest,
                format!("indexes are nested deeper than {INDEX_DEPTH}"),
            ));
        }
        let bytes = opened.document("index", digest, from.size())?;
        let index = document::index(&bytes).map_err(|problem| bad("index", digest, problem))?;
        for descriptor in index.manifests() {
            collect(opened, descriptor.clone(), depth + 1, seen, out)?;
        }
        return Ok(());
    }
    let platform = match from.platform() {
        Some(platform) => Platform::new(
            platform.os(),
            platform.architecture(),
            platform.variant().as_ref(),
        ),
        None => {
            // Only the config says what this image is for.
            let bytes = opened.document("manifest", digest, from.size())?;
            let manifest = document::manifest(&bytes).map_err(|problem| bad("manifest", digest, problem))?;
            let config = sha256(opened, "config", manifest.config())?;
            let bytes = opened.document("config", config, manifest.config().size())?;
            let (parsed, _) = document::config(&bytes).map_err(|problem| bad("config", config, problem))?;
            Platform::new(parsed.os(), parsed.architecture(), parsed.variant().as_ref())
        }
    };
    out.push(Candidate {
        descriptor: from,
        platform,
    });
    Ok(())
}
