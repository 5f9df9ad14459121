//! Tests of the store as a whole. Images are put together here, byte by byte, so that each can be wrong in one way.

mod hostile;
mod loading;
mod power;
mod preloaded;
mod unpacking;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::{Digest, ImageError, LoadOptions, Mode, Source, Store};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A tar stream being written, with names as they are: hostile ones too.
#[derive(Default, Clone)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn raw(
        mut self,
        path: &[u8],
        kind: EntryType,
        mode: u32,
        link: &[u8],
        content: &[u8],
    ) -> Self {
        for (name, long) in [(path, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            if name.len() > 100 {
                let mut header = Header::new_gnu();
                header.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
                header.set_entry_type(long);
                self = self.block(header, name);
            }
        }
        let mut header = Header::new_gnu();
        let (short, target) = (&path[..path.len().min(100)], &link[..link.len().min(100)]);
        header.as_mut_bytes()[..short.len()].copy_from_slice(short);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        header.set_entry_type(kind);
        header.set_mode(mode);
        self.block(header, content)
    }

    fn block(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (body..).find(|n| n.to_string().len() + body == *n).unwrap();
            text.extend(format!("{length} {key}=").bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        self.block(header, &text)
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.raw(
            path.as_bytes(),
            EntryType::Regular,
            0o644,
            b"",
            content.as_bytes(),
        )
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(path.as_bytes(), EntryType::Directory, 0o755, b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), EntryType::Symlink, 0o777, target.as_bytes(), b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), EntryType::Link, 0o644, target.as_bytes(), b"")
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0u8; 1024]);
        self.0
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// An OCI archive being put together.
#[derive(Clone)]
pub(crate) struct Archive {
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
    pub(crate) top: Vec<Value>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            blobs: Vec::new(),
            top: Vec::new(),
        }
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        if !self.blobs.iter().any(|(one, _)| *one == digest) {
            self.blobs.push((digest, bytes.to_vec()));
        }
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// A manifest for `arch` of these layers (uncompressed tars), each gzipped.
    pub(crate) fn manifest(&mut self, arch: &str, layers: &[Vec<u8>]) -> Value {
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|tar| self.blob(LAYER_GZIP, &gzip(tar)))
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|tar| Digest::of(tar).to_string()).collect();
        self.manifest_of(arch, descriptors, &diff_ids)
    }

    pub(crate) fn manifest_of(&mut self, arch: &str, layers: Vec<Value>, diff_ids: &[String]) -> Value {
        let config = json!({"architecture": arch, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.blob(MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = json!({"os": "linux", "architecture": arch});
        descriptor
    }

    /// One image named `name` for this test's architecture.
    pub(crate) fn image(name: &str, layers: &[Vec<u8>]) -> Self {
        let mut archive = Self::new();
        let mut descriptor = archive.manifest("amd64", layers);
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        archive.top.push(descriptor);
        archive
    }

    pub(crate) fn index(&self) -> Vec<u8> {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.top})
            .to_string()
            .into_bytes()
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = Tar::default()
            .file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
            .dir("blobs/sha256/");
        for (digest, bytes) in &self.blobs {
            let path = format!("blobs/sha256/{}", digest.hex());
            tar = tar.raw(path.as_bytes(), EntryType::Regular, 0o644, b"", bytes);
        }
        tar.raw(b"index.json", EntryType::Regular, 0o644, b"", &self.index())
            .end()
    }

    pub(crate) fn layout(&self, into: &Path) {
        fs::create_dir_all(into.join("blobs/sha256")).unwrap();
        fs::write(into.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(into.join("index.json"), self.index()).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(into.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        }
    }
}

/// A small sound layer.
pub(crate) fn base() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("dev/")
        .dir("proc/")
        .dir("sys/")
        .dir("bin/")
        .file("bin/sh", "shell")
        .end()
}

/// A store of its own, gone at the end of the test.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("images"), Mode::Write).unwrap();
        Self { dir, store }
    }

    pub(crate) fn load(&self, archive: &Archive) -> Result<crate::Loaded, ImageError> {
        self.load_bytes(&archive.tar())
    }

    pub(crate) fn load_bytes(&self, bytes: &[u8]) -> Result<crate::Loaded, ImageError> {
        let options = LoadOptions {
            architecture: Some("amd64"),
            ..LoadOptions::default()
        };
        self.store
            .load_from(Source::Stream("test.tar", &mut &bytes[..]), &options)
    }

    /// The refusal of an image; afterwards the store must be as empty as before.
    pub(crate) fn refusal(&self, archive: &Archive) -> String {
        self.refusal_of(&archive.tar())
    }

    pub(crate) fn refusal_of(&self, bytes: &[u8]) -> String {
        let before = self.listing();
        let error = self.load_bytes(bytes).expect_err("must be refused");
        assert_eq!(self.listing(), before, "a refused image left something: {error}");
        format!("{error} [{}]", error.hint().unwrap_or_default())
    }

    /// Every name in the store.
    pub(crate) fn listing(&self) -> Vec<PathBuf> {
        let mut out = Vec::new();
        for folder in ["blobs/sha256", "layers", "tmp"] {
            out.extend(
                self.store
                    .names(folder)
                    .unwrap()
                    .into_iter()
                    .map(|(path, _)| path),
            );
        }
        out
    }
}
