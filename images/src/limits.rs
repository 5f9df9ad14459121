//! Bounds on an image, counted while its layers are unpacked.

use std::io::{self, Read};

use crate::error::LayerError;
use crate::layer::Found;

/// Bounds on one image, so that a small file cannot fill the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Layers of the image. Docker's own bound is 127.
    pub layers: usize,
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all uncompressed layers together; also of the archive.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 127,
            entries: 500_000,
            bytes: 8 << 30,
        }
    }
}

/// What is left of an image's limits while its layers are unpacked one by one.
pub(crate) struct Budget {
    pub(crate) limits: Limits,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: limits.entries,
            bytes: limits.bytes,
        }
    }

    /// Counts a layer that is unpacked already.
    pub(crate) fn take(&mut self, found: &Found) -> Result<(), LayerError> {
        let limit = |what, limit| LayerError::Limit {
            entry: "/".into(),
            what,
            limit,
        };
        let entries = self.entries.checked_sub(found.entries);
        self.entries = entries.ok_or_else(|| limit("entries", self.limits.entries))?;
        self.bytes = self
            .bytes
            .checked_sub(found.bytes)
            .ok_or_else(|| limit("bytes", self.limits.bytes))?;
        Ok(())
    }
}

/// A reader that gives an error instead of more than its bound.
pub(crate) struct Bounded<R> {
    pub(crate) inner: R,
    pub(crate) left: u64,
    pub(crate) exceeded: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        match self.left.checked_sub(got as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::other("more bytes than the limit"));
            }
        }
        Ok(got)
    }
}
