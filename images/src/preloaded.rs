//! A read-only store below the writable one: images that came with the firmware.
//!
//! ```text
//! DIR/         a store as Store lays it out, made when the firmware was built, on a read-only file system
//! DIR.seal     one line: the digest Store::seal gave then
//! MARKS/HEX    this boot has verified the image with manifest HEX: boot id and seal (below /run, so gone at boot)
//! ```
//! Invariants. A name in the writable store wins: that is how an image of the firmware is updated. No image is
//! handed out from below before its manifest, its config, every layer's record and every layer's tree were hashed in
//! this boot and found to be what the seal says; the first launch of each pays for that. A preloaded store without
//! its seal, or of another seal, gives nothing at all. The seal says that the store is the one that was built; that
//! nobody wrote a new store with a new seal is what the file system below must hold (dm-verity, a signed image).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::{Digest, Hasher};
use crate::disk::io_error;
use crate::error::ImageError;
use crate::store::{Entry, Image, Inspection, Mode, Store};
use crate::tree;
use crate::verify::Fault;

/// Largest seal or mark in bytes.
const LINE_MAX: usize = 256;

impl Store {
    /// The digest of everything that says what the store holds: index.json, and every layer's record with the digest
    /// of its tree. Together with [`Store::verify`] it tells any change of the store.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn seal(&self) -> Result<Digest, ImageError> {
        let mut hasher = Hasher::default();
        let mut add = |path: PathBuf| {
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
            Ok::<_, ImageError>(())
        };
        add(self.root().join("index.json"))?;
        let layers: BTreeSet<String> = self.names("layers")?.into_iter().map(|(_, name)| name).collect();
        for name in layers {
            add(self.root().join("layers").join(name).join("layer.json"))?;
        }
        Ok(hasher.finish())
    }

    /// Hashes one image whole: manifest, config, and the tree of every layer against its record.
    ///
    /// # Errors
    /// [`ImageError::Tampered`] or [`ImageError::Damaged`] with the file; [`ImageError::NotFound`].
    pub fn verify_image(&self, digest: &Digest) -> Result<(), ImageError> {
        for one in self.layers(&self.parts(digest)?.diff_ids)? {
            let found = tree::digest(&one.path).map_err(io_error("read", &one.path))?;
            if found != one.marker.tree {
                let problem = format!(
                    "altered: the tree is {found}, it was unpacked as {}",
                    one.marker.tree
                );
                return Err(ImageError::Damaged {
                    path: one.path,
                    problem,
                });
            }
        }
        Ok(())
    }
}

/// The writable store, and the preloaded one below it where there is one.
#[derive(Debug)]
pub struct Stores {
    own: PathBuf,
    /// Opened already; one that was not there is looked for again each time.
    opened: Option<Store>,
    below: Option<Preloaded>,
}

/// Where the preloaded store lies, and what is known of it.
#[derive(Debug)]
struct Preloaded {
    store: Store,
    /// `DIR.seal`.
    seal: PathBuf,
    /// The folder of this boot's marks, and the boot id; `None`: nothing is verified, nothing handed out whole.
    marks: Option<(PathBuf, String)>,
}

/// An entry of both stores' listing.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The image.
    #[serde(flatten)]
    pub entry: Entry,
    /// It came with the firmware.
    pub preloaded: bool,
}

impl Stores {
    /// Opens the writable store at `own` (with [`Mode::Read`] it may be missing: it is empty then), and the preloaded one at `below` if that folder is there. `marks` is where
    /// this boot remembers what it verified, with the boot id; without it [`Stores::image`] gives nothing from below.
    ///
    /// # Errors
    /// As [`Store::open`], for either.
    pub fn open(
        own: impl Into<PathBuf>,
        mode: Mode,
        below: &Path,
        marks: Option<(PathBuf, String)>,
    ) -> Result<Self, ImageError> {
        let own = own.into();
        let opened = present(Store::open(&own, mode))?;
        let below = match fs::symlink_metadata(below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("read", below)(error)),
            Ok(_) => Some(Preloaded {
                store: Store::open(below, Mode::Read)?,
                seal: seal_of(below),
                marks,
            }),
        };
        Ok(Self { own, opened, below })
    }

    /// Everything about one image, from whichever store has it.
    ///
    /// # Errors
    /// As [`Store::inspect`].
    pub fn inspect(&self, reference: &str) -> Result<Inspection, ImageError> {
        match (
            self.own()?
                .map_or_else(|| Err(self.absent(reference)), |own| own.inspect(reference)),
            &self.below,
        ) {
            (Err(ImageError::NotFound { .. }), Some(below)) => below.store.inspect(reference),
            (answer, _) => answer,
        }
    }

    /// The writable store, if it is there.
    fn own(&self) -> Result<Option<Store>, ImageError> {
        match &self.opened {
            Some(store) => Ok(Some(store.clone())),
            None => present(Store::open(&self.own, Mode::Read)),
        }
    }

    fn absent(&self, wanted: &str) -> ImageError {
        ImageError::NotFound {
            path: self.own.clone(),
            wanted: wanted.to_string(),
            known: Vec::new(),
        }
    }

    /// The digest a reference stands for: in the writable store, else in the preloaded one.
    ///
    /// # Errors
    /// As [`Store::resolve`]; [`ImageError::NotFound`] names the references of both.
    pub fn resolve(&self, reference: &str) -> Result<Digest, ImageError> {
        let first = self
            .own()?
            .map_or_else(|| Err(self.absent(reference)), |own| own.resolve(reference));
        let (Err(ImageError::NotFound { path, wanted, known }), Some(below)) = (&first, &self.below) else {
            return first;
        };
        match below.store.resolve(reference) {
            Err(ImageError::NotFound { known: more, .. }) => Err(ImageError::NotFound {
                path: path.clone(),
                wanted: wanted.clone(),
                known: known.iter().cloned().chain(more).collect(),
            }),
            other => other,
        }
    }

    /// An image by its manifest's digest, from whichever store has it; one of the preloaded store only after it was
    /// hashed in this boot.
    ///
    /// # Errors
    /// As [`Store::image`]; [`ImageError::Sealed`] for a preloaded store that is not what was built, or an image of it
    /// that is not.
    pub fn image(&self, digest: &Digest) -> Result<Image, ImageError> {
        let first = match &self.opened {
            Some(own) => own.image(digest),
            None => self
                .own()?
                .map_or_else(|| Err(self.absent(&digest.to_string())), |own| own.image(digest)),
        };
        match (first, &self.below) {
            (Err(ImageError::NotFound { .. }), Some(below)) => below.image(digest),
            (answer, _) => answer,
        }
    }

    /// Hashes both stores whole ([`Store::verify`]), and the preloaded one against its seal.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify(&self) -> Result<Vec<Fault>, ImageError> {
        let mut faults = self.own()?.map_or_else(|| Ok(Vec::new()), |own| own.verify())?;
        if let Some(below) = &self.below {
            if let Err(error) = below.sealed() {
                faults.push(Fault {
                    path: below.store.root().to_path_buf(),
                    problem: error.to_string(),
                });
            }
            faults.extend(below.store.verify()?);
        }
        Ok(faults)
    }

    /// Both listings; of a name that both have, the writable store's alone.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn list(&self) -> Result<Vec<Listed>, ImageError> {
        let mut all = Vec::new();
        for entry in self.own()?.map_or_else(|| Ok(Vec::new()), |own| own.list())? {
            all.push(Listed {
                entry,
                preloaded: false,
            });
        }
        if let Some(below) = &self.below {
            let wrong = below.sealed().err().map(|error| error.to_string());
            for mut entry in below.store.list()? {
                if all.iter().any(|one| one.entry.reference == entry.reference) {
                    continue;
                }
                entry.problem = entry.problem.or_else(|| wrong.clone());
                all.push(Listed {
                    entry,
                    preloaded: true,
                });
            }
        }
        Ok(all)
    }
}

impl Preloaded {
    fn image(&self, digest: &Digest) -> Result<Image, ImageError> {
        // Asked first: a digest that is not here is not found, whatever the seal.
        let image = self.store.image(digest)?;
        let Some((marks, boot)) = &self.marks else {
            return Err(self.refuse("this process may not verify a preloaded image".into()));
        };
        let mark = marks.join(digest.hex());
        let seal = self.expected()?;
        let line = format!("{boot} {seal}\n");
        if fs::read_to_string(&mark).is_ok_and(|text| text == line) {
            return Ok(image);
        }
        self.sealed()?;
        self.store
            .verify_image(digest)
            .map_err(|error| self.refuse(error.to_string()))?;
        // A mark that cannot be written costs the next launch the same work, and is no reason to refuse this one:
        // what it would say was just found to be true.
        let _ = fs::write(&mark, line);
        Ok(image)
    }

    /// What the seal's file says.
    fn expected(&self) -> Result<Digest, ImageError> {
        let text = match fs::read_to_string(&self.seal) {
            Ok(text) if text.len() <= LINE_MAX => text,
            Ok(_) => return Err(self.refuse(format!("{} is no seal: too long", self.seal.display()))),
            Err(error) => return Err(self.refuse(format!("its seal {}: {error}", self.seal.display()))),
        };
        text.trim()
            .parse()
            .map_err(|error| self.refuse(format!("its seal {}: {error}", self.seal.display())))
    }

    fn sealed(&self) -> Result<(), ImageError> {
        let (expected, found) = (self.expected()?, self.store.seal()?);
        if expected == found {
            return Ok(());
        }
        Err(self.refuse(format!(
            "it was altered: its seal is {found}, {} says {expected}",
            self.seal.display()
        )))
    }

    fn refuse(&self, problem: String) -> ImageError {
        ImageError::Sealed {
            path: self.store.root().to_path_buf(),
            problem,
        }
    }
}

/// A store that is missing is none.
fn present(opened: Result<Store, ImageError>) -> Result<Option<Store>, ImageError> {
    match opened {
        Ok(store) => Ok(Some(store)),
        Err(ImageError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file that holds the seal of a preloaded store: its folder's name with `.seal` behind it.
pub fn seal_of(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".seal");
    PathBuf::from(name)
}
