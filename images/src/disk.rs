//! How the store writes: whole files, durable names, one writer at a time.
//!
//! Kernel interface: fsync(2) of a file before rename(2), fsync of the folder after; flock(2) for writers.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::crash;
use crate::error::ImageError;
use crate::store::{Mode, Store};

/// Turns an I/O error into an [`ImageError`] with the file and what was being done.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_path_buf();
    move |source| ImageError::Io { doing, path, source }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", path))
}

impl Store {
    /// Writes a file so that it is there whole or not at all.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let temp = self.temp_path("file");
        let mut file = File::create_new(&temp).map_err(io_error("create", &temp))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(io_error("write", &temp))?;
        self.publish(&temp, path)
    }

    /// Gives a synced file its name and makes the name durable.
    pub(crate) fn publish(&self, temp: &Path, path: &Path) -> Result<(), ImageError> {
        crash::point().map_err(io_error("rename", path))?;
        fs::rename(temp, path).map_err(io_error("rename", path))?;
        crash::point().map_err(io_error("sync", path))?;
        sync_dir(path.parent().unwrap_or(self.root()))
    }

    /// Takes the writers' lock (waits for it) and empties `tmp/`. Released when dropped.
    pub(crate) fn lock(&self) -> Result<File, ImageError> {
        if self.mode() == Mode::Read {
            return Err(ImageError::ReadOnly {
                path: self.root().to_path_buf(),
            });
        }
        let path = self.root().join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        self.clear_temp()?;
        Ok(file)
    }

    /// Empties `tmp/`. The caller holds the lock.
    pub(crate) fn clear_temp(&self) -> Result<(), ImageError> {
        if crash::cut() {
            return Ok(());
        }
        let path = self.root().join("tmp");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        for entry in entries {
            let path = entry.map_err(io_error("read", &path))?.path();
            let is_dir = fs::symlink_metadata(&path)
                .map_err(io_error("stat", &path))?
                .is_dir();
            let removed = if is_dir {
                crate::remove::remove_tree(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    /// A new name in `tmp/`.
    pub(crate) fn temp_path(&self, what: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.root()
            .join("tmp")
            .join(format!("{what}-{}-{number}", std::process::id()))
    }

    /// A new folder in `tmp/`.
    pub(crate) fn temp_dir(&self, what: &str) -> Result<PathBuf, ImageError> {
        let path = self.temp_path(what);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(io_error("create", &path))?;
        Ok(path)
    }

    /// Moves something damaged or unneeded into `tmp/`, where the next writer deletes it.
    pub(crate) fn set_aside(&self, path: &Path) -> Result<(), ImageError> {
        let aside = self.temp_path("aside");
        fs::rename(path, &aside).map_err(io_error("move aside", path))?;
        sync_dir(path.parent().unwrap_or(self.root()))
    }
}
