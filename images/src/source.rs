//! Where an image comes from: an OCI archive (tar, plain or gzip) or an OCI layout folder.
//!
//! Whatever the form, blobs are handed on as files in the store's `tmp/`, written and synced there, with their
//! sha256 already compared with their name. Nothing is taken from a name that is not `oci-layout`, `index.json`
//! or `blobs/sha256/HEX`, and no link is followed in a layout folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use nix::fcntl::OFlag;

use crate::crash;
use crate::digest::{Digest, Hasher};
use crate::disk::io_error;
use crate::document::{self, DOCUMENT_MAX};
use crate::error::{ImageError, LayerError};
use crate::limits::Limits;
use crate::tarstream::{Kind, TarStream};

/// Most entries of an archive: blobs and folders.
const ARCHIVE_ENTRIES: u64 = 20_000;

/// Bytes of an archive that are no content.
const OVERHEAD: u64 = 256 << 20;

/// What to load from.
pub enum Source<'a> {
    /// An OCI archive file or an OCI layout folder.
    Path(&'a Path),
    /// An OCI archive as a stream, e.g. standard input; the text names it in errors.
    Stream(&'a str, &'a mut dyn Read),
}

/// A source opened: its index, and its blobs.
pub(crate) struct Opened {
    /// What errors call it.
    pub(crate) file: PathBuf,
    /// index.json.
    pub(crate) index: Vec<u8>,
    /// The layout's folder, where blobs are still to be copied from.
    layout: Option<PathBuf>,
    /// Where blobs are put, in the store's `tmp/`.
    staging: PathBuf,
    /// Blobs staged, with their sizes.
    staged: BTreeMap<Digest, u64>,
    limits: Limits,
}

/// Opens a source. An archive is read to its end and its blobs are staged; a folder's blobs are staged when asked for.
pub(crate) fn open(source: Source<'_>, staging: PathBuf, limits: Limits) -> Result<Opened, ImageError> {
    let start = |file: &Path| Opened {
        file: file.to_path_buf(),
        index: Vec::new(),
        layout: None,
        staging,
        staged: BTreeMap::new(),
        limits,
    };
    match source {
        Source::Path(path) => {
            let meta = fs::metadata(path).map_err(io_error("open", path))?;
            let mut opened = start(path);
            if meta.is_dir() {
                opened.folder(path)?;
            } else if meta.is_file() {
                let file = File::open(path).map_err(io_error("open", path))?;
                opened.archive(&mut BufReader::with_capacity(128 * 1024, file))?;
            } else {
                return Err(opened.not_oci("it is neither a file nor a folder", None));
            }
            Ok(opened)
        }
        Source::Stream(name, reader) => {
            let mut opened = start(Path::new(name));
            opened.archive(reader)?;
            Ok(opened)
        }
    }
}

impl Opened {
    fn not_oci(&self, problem: &str, hint: Option<&str>) -> ImageError {
        let (file, problem, hint) = (self.file.clone(), problem.to_string(), hint.map(str::to_string));
        ImageError::NotOci { file, problem, hint }
    }

    fn folder(&mut self, path: &Path) -> Result<(), ImageError> {
        let read = |name: &str| -> Result<Option<Vec<u8>>, ImageError> {
            let path = path.join(name);
            let file = match File::options()
                .read(true)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&path)
            {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(io_error("open", &path)(error)),
            };
            let mut bytes = Vec::new();
            file.take(DOCUMENT_MAX + 1)
                .read_to_end(&mut bytes)
                .map_err(io_error("read", &path))?;
            Ok(Some(bytes))
        };
        let layout = read("oci-layout")?;
        let index = read("index.json")?;
        self.check_layout(layout, index, false)?;
        self.layout = Some(path.to_path_buf());
        Ok(())
    }

    fn archive(&mut self, reader: &mut dyn Read) -> Result<(), ImageError> {
        let mut magic = [0u8; 6];
        let mut got = 0;
        while got < magic.len() {
            match reader.read(&mut magic[got..]) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("read", &self.file)(error)),
            }
        }
        let whole = Cursor::new(magic[..got].to_vec()).chain(reader);
        match magic {
            [0x1f, 0x8b, ..] => self.tar(MultiGzDecoder::new(whole)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(self.not_oci(
                "zstd compression is not supported",
                Some("unpack it with `zstd -d` first"),
            )),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Err(self.not_oci(
                "xz compression is not supported",
                Some("unpack it with `xz -d` first"),
            )),
            [b'B', b'Z', b'h', ..] => Err(self.not_oci(
                "bzip2 compression is not supported",
                Some("unpack it with `bzip2 -d` first"),
            )),
            _ if got == 0 => Err(self.not_oci("it is empty", None)),
            _ => self.tar(whole),
        }
    }

    fn tar(&mut self, reader: impl Read) -> Result<(), ImageError> {
        let file = self.file.clone();
        let bad = |error: LayerError| {
            let hint = match &error {
                LayerError::Read { .. } => {
                    "the archive is cut short or damaged: copy it again from its source"
                }
                _ => "expected an OCI archive, as `skopeo copy … oci-archive:FILE` writes it",
            };
            ImageError::NotOci {
                file: file.clone(),
                problem: error.to_string(),
                hint: Some(hint.into()),
            }
        };
        let limit = |what, found, limit| ImageError::Limit {
            file: file.clone(),
            what,
            found,
            limit,
        };
        // Documents, headers and padding come on top of what the limit counts.
        let mut stream = TarStream::new(reader.take(self.limits.bytes.saturating_add(OVERHEAD)));
        let (mut layout, mut index, mut docker) = (None, None, false);
        let (mut entries, mut bytes) = (0u64, 0u64);
        while let Some(entry) = stream.next_entry().map_err(bad)? {
            entries += 1;
            bytes = bytes.saturating_add(entry.size);
            if entries > ARCHIVE_ENTRIES {
                return Err(limit("entries of the archive", entries, ARCHIVE_ENTRIES));
            }
            if bytes > self.limits.bytes {
                return Err(limit("bytes of the archive", bytes, self.limits.bytes));
            }
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_string();
            if entry.kind == Kind::Dir {
                continue;
            }
            let slot = match name.as_str() {
                "oci-layout" => Some(&mut layout),
                "index.json" => Some(&mut index),
                _ => None,
            };
            if let Some(slot) = slot {
                if entry.kind != Kind::File || slot.is_some() {
                    return Err(self.not_oci(&format!("{name} is no file, or stands there twice"), None));
                }
                if entry.size > DOCUMENT_MAX {
                    return Err(limit("bytes of a document", entry.size, DOCUMENT_MAX));
                }
                let mut content = Vec::new();
                read_all(&mut stream, &mut content).map_err(bad)?;
                *slot = Some(content);
                continue;
            }
            docker |= name == "manifest.json";
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                let digest = Digest::from_hex(hex);
                let digest = digest
                    .ok_or_else(|| self.not_oci(&format!("{name}: the name is no sha256 digest"), None))?;
                if entry.kind != Kind::File {
                    return Err(self.not_oci(&format!("{name} is no plain file"), None));
                }
                let mut input = |buffer: &mut [u8]| stream.read_content(buffer).map_err(bad);
                self.stage(digest, &mut input)?;
            }
        }
        // To the end: only there does gzip say whether all of it was right.
        stream.drain().map_err(bad)?;
        self.check_layout(layout, index, docker)
    }

    fn check_layout(
        &mut self,
        layout: Option<Vec<u8>>,
        index: Option<Vec<u8>>,
        docker: bool,
    ) -> Result<(), ImageError> {
        let hint = "write it as an OCI archive: `skopeo copy docker-archive:FILE oci-archive:NEW`";
        let Some(layout) = layout else {
            return Err(match docker {
                true => self.not_oci("it is a `docker save` archive without an OCI layout", Some(hint)),
                false => self.not_oci(
                    "it has no oci-layout file",
                    Some("expected an OCI archive or layout folder"),
                ),
            });
        };
        let document = |role| {
            let file = self.file.clone();
            move |problem| ImageError::Document {
                file,
                role,
                digest: None,
                problem,
            }
        };
        document::layout(&layout).map_err(document("oci-layout"))?;
        self.index = index.ok_or_else(|| self.not_oci("it has no index.json", None))?;
        Ok(())
    }

    /// Writes a blob into the staging folder and compares its digest.
    fn stage(
        &mut self,
        digest: Digest,
        input: &mut dyn FnMut(&mut [u8]) -> Result<usize, ImageError>,
    ) -> Result<(), ImageError> {
        let path = self.path(&digest);
        let mut out = match File::create_new(&path) {
            Ok(out) => out,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(self.not_oci(&format!("blob {digest} stands there twice"), None));
            }
            Err(error) => return Err(io_error("create", &path)(error)),
        };
        let mut hasher = Hasher::default();
        let mut buffer = vec![0u8; 128 * 1024];
        let mut size = 0u64;
        loop {
            let got = input(&mut buffer)?;
            if got == 0 {
                break;
            }
            size += got as u64;
            if size > self.limits.bytes {
                let (what, limit) = ("bytes of a blob", self.limits.bytes);
                return Err(ImageError::Limit {
                    file: self.file.clone(),
                    what,
                    found: size,
                    limit,
                });
            }
            hasher.update(&buffer[..got]);
            out.write_all(&buffer[..got]).map_err(io_error("write", &path))?;
        }
        let found = hasher.finish();
        if found != digest {
            return Err(ImageError::Tampered {
                file: self.file.clone(),
                digest,
                found,
            });
        }
        crash::point().map_err(io_error("write", &path))?;
        out.sync_all().map_err(io_error("sync", &path))?;
        self.staged.insert(digest, size);
        Ok(())
    }

    /// Path of a staged blob.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.staging.join(digest.hex())
    }

    /// Makes sure that a blob is staged and as long as its descriptor says.
    pub(crate) fn blob(
        &mut self,
        role: &'static str,
        digest: Digest,
        expected: u64,
    ) -> Result<PathBuf, ImageError> {
        if let (false, Some(layout)) = (self.staged.contains_key(&digest), &self.layout) {
            let path = layout.join("blobs/sha256").join(digest.hex());
            let mut file = match File::options()
                .read(true)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&path)
            {
                Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => file,
                Ok(_) => return Err(self.not_oci(&format!("blob {digest} is no plain file"), None)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ImageError::Absent {
                        file: self.file.clone(),
                        role,
                        digest,
                    });
                }
                Err(error) => return Err(io_error("open", &path)(error)),
            };
            let mut input = |buffer: &mut [u8]| loop {
                match file.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => return other.map_err(io_error("read", &path)),
                }
            };
            self.stage(digest, &mut input)?;
        }
        match self.staged.get(&digest) {
            None => Err(ImageError::Absent {
                file: self.file.clone(),
                role,
                digest,
            }),
            Some(found) if *found != expected => Err(ImageError::WrongSize {
                file: self.file.clone(),
                role,
                digest,
                expected,
                found: *found,
            }),
            Some(_) => Ok(self.path(&digest)),
        }
    }

    /// A document: staged, of the right size, and in memory.
    pub(crate) fn document(
        &mut self,
        role: &'static str,
        digest: Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if size > DOCUMENT_MAX {
            let (what, limit) = ("bytes of a document", DOCUMENT_MAX);
            return Err(ImageError::Limit {
                file: self.file.clone(),
                what,
                found: size,
                limit,
            });
        }
        let path = self.blob(role, digest, size)?;
        fs::read(&path).map_err(io_error("read", &path))
    }
}

fn read_all(stream: &mut TarStream<impl Read>, into: &mut Vec<u8>) -> Result<(), LayerError> {
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        let got = stream.read_content(&mut buffer)?;
        if got == 0 {
            return Ok(());
        }
        into.extend(&buffer[..got]);
    }
}
