//! The image of the probe: this program and the libraries it runs with, in one layer, made from what the dynamic linker
//! has in memory. No registry, no compiler, no file of the host mounted into the container: the launcher's policy
//! for mounts is not touched.
//!
//! Invariants: the same program gives the same bytes and so the same image; its name carries the digest; it is taken away
//! again unless it was there before or is to be kept. With a static program the layer has that one file.
#![allow(unsafe_code)] // dl_iterate_phdr(3): nothing else tells the names that the linker looks for

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use berth_images::{Digest, LoadOptions, Mode, Source, Store};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::daemon::settings::Folders;

/// The program in the image.
const PROGRAM: &str = "/berth";
/// Folders that a container wants.
const FOLDERS: [&str; 4] = ["dev", "proc", "sys", "tmp"];

/// An image in the store.
pub(super) struct Loaded {
    store: Store,
    reference: String,
    remove: bool,
}

impl Loaded {
    /// Loads the image, unless the store has it.
    pub(super) fn make(folders: &Folders, keep: bool) -> anyhow::Result<Loaded> {
        let files = files().context("this program's own files")?;
        let layer = layer(&files)?;
        let diff_id = Digest::of(&layer);
        let reference = format!("berth-latency:{}", diff_id.short());
        let store = Store::open(folders.images(), Mode::Write)?;
        if store.resolve(&reference).is_ok() {
            return Ok(Loaded {
                store,
                reference,
                remove: false,
            });
        }
        let layout = folders.run.join(format!("latency-{}", std::process::id()));
        let made = write(&layout, layer, diff_id, &libraries(&files)).and_then(|()| {
            let options = LoadOptions {
                name: Some(&reference),
                ..LoadOptions::default()
            };
            store
                .load_from(Source::Path(&layout), &options)
                .context("the image of the probe")
        });
        let removed = match fs::remove_dir_all(&layout) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        made?;
        removed.with_context(|| layout.display().to_string())?;
        Ok(Loaded {
            store,
            reference,
            remove: !keep,
        })
    }

    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// Takes it away, where it was not there before.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        if self.remove {
            self.store.remove(&self.reference, &[])?;
        }
        Ok(())
    }
}

/// Where each file goes, and its bytes.
fn files() -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::from([(PathBuf::from(PROGRAM), fs::read("/proc/self/exe")?)]);
    for library in loaded_objects() {
        let content = fs::read(&library)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", library.display())))?;
        files.insert(library, content);
    }
    Ok(files)
}

/// The shared objects and the linker, by the paths under which the linker found them; none for a static program.
fn loaded_objects() -> BTreeSet<PathBuf> {
    extern "C" fn each(info: *mut libc::dl_phdr_info, _: libc::size_t, found: *mut c_void) -> c_int {
        // SAFETY: `found` is the set that was handed to dl_iterate_phdr below, and nobody else uses it meanwhile.
        let found = unsafe { &mut *found.cast::<BTreeSet<PathBuf>>() };
        // SAFETY: the linker gives a valid structure for the length of this call.
        let name = unsafe { (*info).dlpi_name };
        if !name.is_null() {
            // SAFETY: a name that is there is a C string of the linker's.
            let name = unsafe { CStr::from_ptr(name) };
            let path = Path::new(OsStr::from_bytes(name.to_bytes()));
            // The program has no name, the vDSO no path.
            if path.is_absolute() {
                found.insert(path.to_path_buf());
            }
        }
        0
    }
    let mut found = BTreeSet::new();
    // SAFETY: `each` neither panics nor keeps what it is given, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut found).cast()) };
    found
}

/// The folders of the libraries, for the linker.
fn libraries(files: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let folders: BTreeSet<&Path> = files
        .keys()
        .filter(|path| *path != Path::new(PROGRAM))
        .filter_map(|path| path.parent())
        .collect();
    let folders: Vec<String> = folders.iter().map(|path| path.display().to_string()).collect();
    folders.join(":")
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn layer(files: &BTreeMap<PathBuf, Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut folders: BTreeSet<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    let inside = |path: &Path| path.strip_prefix("/").map(Path::to_path_buf).unwrap_or_default();
    for path in files.keys() {
        let above = inside(path);
        folders.extend(above.ancestors().skip(1).map(Path::to_path_buf));
    }
    let mut tar = Builder::new(Vec::new());
    for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
        tar.append_data(&mut header(EntryType::Directory, 0o755, 0), folder, io::empty())?;
    }
    for (path, content) in files {
        let mut header = header(EntryType::Regular, 0o755, content.len() as u64);
        tar.append_data(&mut header, inside(path), content.as_slice())?;
    }
    tar.into_inner()
}

/// Writes the OCI layout folder.
fn write(layout: &Path, layer: Vec<u8>, diff_id: Digest, libraries: &str) -> anyhow::Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;
    let put = |bytes: &[u8], digest: Digest| -> anyhow::Result<Value> {
        let path = blobs.join(digest.hex());
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        Ok(json!({"digest": digest.to_string(), "size": bytes.len()}))
    };
    let kind = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
        descriptor
    };
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let env: Vec<String> = match libraries {
        "" => Vec::new(),
        folders => vec![format!("LD_LIBRARY_PATH={folders}")],
    };
    let config = serde_json::to_vec(&json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"User": "0:0", "Env": env, "Entrypoint": [PROGRAM], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
    }))?;
    let layer = kind(put(&layer, diff_id)?, "layer.v1.tar");
    let config = kind(put(&config, Digest::of(&config))?, "config.v1+json");
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    }))?;
    let mut manifest = kind(put(&manifest, Digest::of(&manifest))?, "manifest.v1+json");
    manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_objects_are_found_and_the_layer_is_the_same_twice() {
        let objects = loaded_objects();
        assert!(objects.iter().all(|path| path.is_absolute()), "{objects:?}");
        if !cfg!(target_feature = "crt-static") {
            let named = |word: &str| objects.iter().any(|path| path.to_string_lossy().contains(word));
            assert!(named("libc.") && named("ld-"), "{objects:?}");
        }
        let files = BTreeMap::from([
            (PathBuf::from(PROGRAM), b"program".to_vec()),
            (PathBuf::from("/lib/x/libc.so.6"), b"library".to_vec()),
        ]);
        assert_eq!(libraries(&files), "/lib/x");
        let made = layer(&files).unwrap();
        assert_eq!(made, layer(&files).unwrap());
        let mut archive = tar::Archive::new(made.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        for expected in ["lib/", "lib/x/", "proc/", "berth", "lib/x/libc.so.6"] {
            assert!(
                paths
                    .iter()
                    .any(|p| p.trim_end_matches('/') == expected.trim_end_matches('/')),
                "{expected} in {paths:?}"
            );
        }
    }
}
