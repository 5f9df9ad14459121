//! Hashing the whole store again.

use std::fs::File;
use std::path::PathBuf;

use serde::Serialize;

use crate::digest::{Digest, hash_all};
use crate::disk::io_error;
use crate::document;
use crate::error::ImageError;
use crate::store::Store;
use crate::{layer, tree};

/// Something in the store is not as it was stored.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl Store {
    /// Hashes every blob and every unpacked layer, and opens every image that index.json names. An empty answer
    /// means that the store is what was loaded. Reads everything: minutes for a large store.
    ///
    /// # Errors
    /// Only when the store's folders cannot be read; what is wrong inside is in the answer.
    pub fn verify(&self) -> Result<Vec<Fault>, ImageError> {
        let mut faults = Vec::new();
        for (path, name) in self.names("blobs/sha256")? {
            let Some(digest) = Digest::from_hex(&name) else {
                faults.push(Fault {
                    path,
                    problem: "the name is no sha256 digest".into(),
                });
                continue;
            };
            match File::open(&path).and_then(hash_all) {
                Ok((found, _)) if found == digest => {}
                Ok((found, _)) => faults.push(Fault {
                    path,
                    problem: format!("altered: its content is {found}"),
                }),
                Err(error) => faults.push(Fault {
                    path,
                    problem: error.to_string(),
                }),
            }
        }
        for (path, name) in self.names("layers")? {
            let Some(diff_id) = Digest::from_hex(&name) else {
                faults.push(Fault {
                    path,
                    problem: "the name is no sha256 digest".into(),
                });
                continue;
            };
            let marker = match layer::marker(self.root(), &diff_id) {
                Ok(marker) => marker,
                Err(error) => {
                    faults.push(Fault {
                        path,
                        problem: error.to_string(),
                    });
                    continue;
                }
            };
            let fs_path = path.join("fs");
            match tree::digest(&fs_path) {
                Ok(found) if found == marker.tree => {}
                Ok(found) => {
                    let problem = format!("altered: the tree is {found}, it was unpacked as {}", marker.tree);
                    faults.push(Fault {
                        path: fs_path,
                        problem,
                    });
                }
                Err(error) => faults.push(Fault {
                    path: fs_path,
                    problem: error.to_string(),
                }),
            }
        }
        for (key, descriptor) in self.read_index()? {
            let opened = document::digest(&descriptor)
                .map_err(|problem| ImageError::Damaged {
                    path: self.root().join("index.json"),
                    problem,
                })
                .and_then(|digest| {
                    self.image(&digest)?;
                    for one in self.parts(&digest)?.manifest.layers() {
                        if let Ok(blob) = document::digest(one) {
                            let path = self.blob_path(&blob);
                            path.metadata().map_err(io_error("read", &path))?;
                        }
                    }
                    Ok(())
                });
            if let Err(error) = opened {
                faults.push(Fault {
                    path: self.root().join("index.json"),
                    problem: format!("{key}: {error}"),
                });
            }
        }
        Ok(faults)
    }
}
