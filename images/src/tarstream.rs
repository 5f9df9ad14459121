//! A tar stream read entry by entry, with a bound on everything that is held in memory.
//!
//! The `tar` crate decodes the fields of a header block; the walk from header to header is here, because long
//! names and pax headers must be bounded, sparse and unknown entries refused by name, and pax sizes honoured in
//! the one way. Nothing here touches a file system.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::error::LayerError;
use crate::pax;

/// Most bytes of long names and pax headers before one entry.
const EXTENSION_MAX: u64 = 1 << 20;
/// Size of a tar block.
const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
    CharDevice,
    BlockDevice,
}

/// One entry. Its content, if it has any, is read through the [`TarStream`].
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, 12 of them.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, i64),
    pub(crate) size: u64,
    /// Extended attributes, by name.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// pax keys that say something berth does not carry over.
    pub(crate) unknown: Vec<String>,
}

/// The walk through a stream.
pub(crate) struct TarStream<R> {
    inner: R,
    offset: u64,
    /// Bytes of the current entry's content not yet read.
    left: u64,
    padding: u64,
    done: bool,
}

/// What extension headers say of the next entry.
#[derive(Default)]
struct Extensions {
    used: u64,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<pax::Record>,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            offset: 0,
            left: 0,
            padding: 0,
            done: false,
        }
    }

    /// The reader below.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    fn bad(&self, problem: impl Into<String>) -> LayerError {
        LayerError::Tar {
            offset: self.offset.saturating_sub(BLOCK),
            problem: problem.into(),
        }
    }

    /// The next entry; `None` at the end of the archive. What was left of the one before is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        while !self.done {
            self.skip()?;
            let mut block = [0u8; BLOCK as usize];
            if !self.read_block(&mut block)? || block.iter().all(|b| *b == 0) {
                self.done = true;
                break;
            }
            let header = Header::from_byte_slice(&block);
            self.check_sum(&block, header)?;
            let size = header.entry_size().map_err(|error| self.bad(error.to_string()))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    extensions.path = Some(cut_nul(self.extension(size, &mut extensions.used)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(cut_nul(self.extension(size, &mut extensions.used)?));
                }
                EntryType::XHeader => {
                    let text = self.extension(size, &mut extensions.used)?;
                    extensions
                        .records
                        .extend(pax::parse(&text).map_err(|p| self.bad(format!("pax header: {p}")))?);
                }
                EntryType::XGlobalHeader => {
                    let text = self.extension(size, &mut extensions.used)?;
                    let records = pax::parse(&text).map_err(|p| self.bad(format!("pax header: {p}")))?;
                    if let Some((key, _)) = records.iter().find(|(key, _)| key != "comment") {
                        return Err(self.bad(format!("a global pax header with {key} is not supported")));
                    }
                }
                _ => return self.entry(header, size, extensions).map(Some),
            }
        }
        if extensions.used > 0 {
            return Err(self.bad("the archive ends after an extension header"));
        }
        Ok(None)
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, LayerError> {
        let number = |result: io::Result<u64>| result.map_err(|error| self.bad(error.to_string()));
        let id = |value: u64, what: &str| {
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.bad(format!("{what} {value}")))
        };
        let path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = self.kind(header.entry_type(), &path)?;
        let mut entry = Entry {
            path,
            link: extensions
                .link
                .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            kind,
            mode: header.mode().map_err(|error| self.bad(error.to_string()))? & 0o7777,
            uid: id(number(header.uid())?, "owner")?,
            gid: id(number(header.gid())?, "group")?,
            mtime: (i64::try_from(number(header.mtime())?).unwrap_or(0), 0),
            size,
            xattrs: Vec::new(),
            unknown: Vec::new(),
        };
        for (key, value) in extensions.records {
            let wrong = || self.bad(format!("pax {key}: {:?}", String::from_utf8_lossy(&value)));
            match key.as_str() {
                "path" => entry.path = value,
                "linkpath" => entry.link = value,
                "size" => entry.size = pax::decimal(&value).ok_or_else(wrong)?,
                "uid" => entry.uid = id(pax::decimal(&value).ok_or_else(wrong)?, "owner")?,
                "gid" => entry.gid = id(pax::decimal(&value).ok_or_else(wrong)?, "group")?,
                "mtime" => entry.mtime = pax::time(&value).ok_or_else(wrong)?,
                // Other times, names of owners (the numbers count), the writer's own book-keeping.
                "atime"
                | "ctime"
                | "uname"
                | "gname"
                | "comment"
                | "hdrcharset"
                | "charset"
                | "LIBARCHIVE.creationtime"
                | "SCHILY.dev"
                | "SCHILY.ino"
                | "SCHILY.nlink"
                | "SCHILY.realsize" => {}
                other if other.starts_with("GNU.sparse.") || other.starts_with("SCHILY.sparse") => {
                    return Err(self.bad(format!("a sparse file ({other}) is not supported")));
                }
                other => match other.strip_prefix("SCHILY.xattr.") {
                    Some(name) => entry.xattrs.push((name.to_string(), value)),
                    None => entry.unknown.push(key),
                },
            }
        }
        if entry.kind != Kind::File && entry.size > 0 {
            // Old writers give a hard link the size of its target, without content.
            if entry.kind != Kind::HardLink {
                return Err(self.bad(format!("{:?} with {} bytes of content", entry.kind, entry.size)));
            }
            entry.size = 0;
        }
        self.left = entry.size;
        self.padding = (BLOCK - entry.size % BLOCK) % BLOCK;
        Ok(entry)
    }

    fn kind(&self, of: EntryType, path: &[u8]) -> Result<Kind, LayerError> {
        Ok(match of {
            EntryType::Regular if path.ends_with(b"/") => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => Kind::CharDevice,
            EntryType::Block => Kind::BlockDevice,
            EntryType::GNUSparse => return Err(self.bad("a sparse file is not supported")),
            other => {
                let byte = char::from(other.as_byte());
                return Err(self.bad(format!("entry type {byte:?} is not supported")));
            }
        })
    }

    fn check_sum(&self, block: &[u8; BLOCK as usize], header: &Header) -> Result<(), LayerError> {
        let written = header.cksum().map_err(|error| self.bad(error.to_string()))?;
        let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
        let sum: u32 = (0..block.len()).map(|at| u32::from(counted(at))).sum();
        if sum == written {
            Ok(())
        } else {
            Err(self.bad("header checksum does not match: this is no tar header"))
        }
    }

    /// The content of an extension header.
    fn extension(&mut self, size: u64, used: &mut u64) -> Result<Vec<u8>, LayerError> {
        *used = used.saturating_add(size).saturating_add(1);
        if *used > EXTENSION_MAX {
            return Err(self.bad(format!(
                "more than {EXTENSION_MAX} bytes of long names and pax headers"
            )));
        }
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        let mut out = vec![0u8; usize::try_from(size).unwrap_or(usize::MAX)];
        let mut at = 0;
        while at < out.len() {
            at += self.read_content(&mut out[at..])?;
        }
        Ok(out)
    }

    /// Reads the current entry's content; 0 at its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let got = self.read(&mut buffer[..most])?;
        if got == 0 {
            return Err(self.cut_short());
        }
        self.left -= got as u64;
        Ok(got)
    }

    fn cut_short(&self) -> LayerError {
        LayerError::Read {
            offset: self.offset,
            source: io::ErrorKind::UnexpectedEof.into(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            match self.inner.read(buffer) {
                Ok(got) => {
                    self.offset += got as u64;
                    return Ok(got);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(LayerError::Read {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
    }

    /// Reads one block; `false` at the end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, LayerError> {
        let mut at = 0;
        while at < block.len() {
            match self.read(&mut block[at..])? {
                0 if at == 0 => return Ok(false),
                0 => return Err(self.cut_short()),
                got => at += got,
            }
        }
        Ok(true)
    }

    fn skip(&mut self) -> Result<(), LayerError> {
        let mut left = self.left.saturating_add(self.padding);
        let mut buffer = [0u8; 16 * 1024];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = self.read(&mut buffer[..most])?;
            if got == 0 {
                return Err(self.cut_short());
            }
            left -= got as u64;
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads on to the end of the stream, past the end of the archive.
    pub(crate) fn drain(&mut self) -> Result<(), LayerError> {
        let mut buffer = vec![0u8; 64 * 1024];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }
}

fn cut_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(path: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }

    fn walk(bytes: &[u8]) -> Result<Vec<Entry>, LayerError> {
        let mut stream = TarStream::new(bytes);
        let mut out = Vec::new();
        while let Some(entry) = stream.next_entry()? {
            out.push(entry);
        }
        stream.drain()?;
        Ok(out)
    }

    #[test]
    fn a_long_name_of_gigabytes_is_refused_before_it_is_held() {
        let mut bytes = header("x", EntryType::GNULongName, 8 << 30).as_bytes().to_vec();
        bytes.extend([0u8; 512]);
        let error = walk(&bytes).unwrap_err().to_string();
        assert!(error.contains("long names"), "{error}");
    }

    #[test]
    fn sparse_files_and_unknown_types_are_refused_by_name() {
        for (kind, part) in [(EntryType::GNUSparse, "sparse"), (EntryType::new(b'V'), "'V'")] {
            let error = walk(header("x", kind, 0).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_stream_cut_anywhere_inside_an_entry_is_refused() {
        let mut bytes = header("x", EntryType::Regular, 700).as_bytes().to_vec();
        bytes.extend([7u8; 1024]);
        assert_eq!(walk(&bytes).unwrap().len(), 1);
        for end in 1..bytes.len() {
            assert!(walk(&bytes[..end]).is_err() || end == 512 + 1024, "cut at {end}");
        }
    }

    #[test]
    fn a_changed_header_is_refused() {
        let mut bytes = header("x", EntryType::Regular, 0).as_bytes().to_vec();
        bytes[0] = b'y';
        assert!(walk(&bytes).unwrap_err().to_string().contains("checksum"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = walk(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..1536, to in any::<u8>(), fix in any::<bool>()) {
            let mut bytes = header("some/name", EntryType::XHeader, 12).as_bytes().to_vec();
            bytes.extend(b"12 path=abc\n");
            bytes.resize(1024, 0);
            bytes.extend(header("x", EntryType::Regular, 0).as_bytes());
            bytes[at] = to;
            if fix {
                for block in [0, 1024] {
                    let mut one = Header::from_byte_slice(&bytes[block..block + 512]).clone();
                    one.set_cksum();
                    bytes[block..block + 512].copy_from_slice(one.as_bytes());
                }
            }
            let _ = walk(&bytes);
        }
    }
}
