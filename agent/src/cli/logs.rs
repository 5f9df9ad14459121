//! `berth logs`: reads the CRI log files of a container, ID.log.1 and ID.log, and follows the turn from one to
//! the next.
//!
//! Format of a line: `TIME STREAM TAG CONTENT`, TAG `F` for a whole line and `P` for a part of one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::api::{Details, Op};
use crate::daemon::settings::Folders;

use super::client::ask;
use super::{DONE, Outcome};

/// Between two looks at a file that is followed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Container (or a workload with one)
    name: String,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
}

pub(super) fn main(folders: &Folders, args: &LogsArgs) -> Outcome {
    let path = find(folders, &args.name)?;
    let mut reader = Reader::new(path, args.timestamps);
    // A file or a pipe gets the bytes as they were written.
    reader.safe = io::stdout().is_terminal();
    let mut out = io::stdout().lock();
    reader.print(&mut out)?;
    if args.follow {
        // Until Ctrl-C: the container may be started again.
        loop {
            std::thread::sleep(LOOK);
            reader.print(&mut out)?;
        }
    }
    reader.finish(&mut out)?;
    Ok(DONE)
}

/// The log file of the container `name`: by the agent, else one that is still there.
fn find(folders: &Folders, name: &str) -> anyhow::Result<PathBuf> {
    match ask::<Vec<Details>>(
        folders,
        Op::Inspect {
            name: name.to_owned(),
        },
    ) {
        Ok(found) => match found.as_slice() {
            [one] => Ok(PathBuf::from(&one.log)),
            [] => anyhow::bail!("`{name}` has no container"),
            many => {
                let names: Vec<&str> = many.iter().map(|d| d.container.name.as_str()).collect();
                anyhow::bail!(
                    "`{name}` has {} containers: name one of {}",
                    many.len(),
                    names.join(", ")
                )
            }
        },
        Err(error) => {
            let left = folders.log(name);
            if !name.contains('/') && left.is_file() {
                Ok(left)
            } else {
                Err(error)
            }
        }
    }
}

/// Reads one container's log from its beginning, through rotations.
pub(super) struct Reader {
    path: PathBuf,
    file: Option<(BufReader<File>, u64)>,
    begun: bool,
    timestamps: bool,
    /// A line whose end has not been written yet.
    rest: Vec<u8>,
    /// The last entry was a part of a line.
    open_line: bool,
    /// Shows control characters instead of sending them: what a container writes must not steer a terminal.
    safe: bool,
}

impl Reader {
    pub(super) fn new(path: PathBuf, timestamps: bool) -> Reader {
        Reader {
            path,
            file: None,
            begun: false,
            timestamps,
            rest: Vec::new(),
            open_line: false,
            safe: false,
        }
    }

    /// Prints what is there now.
    pub(super) fn print(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            let older = PathBuf::from(format!("{}.1", self.path.display()));
            self.file = open(&older)?;
        }
        loop {
            let mut file = self.file.take();
            if let Some((file, _)) = &mut file {
                while file.read_until(b'\n', &mut self.rest)? > 0 {
                    if self.rest.ends_with(b"\n") {
                        let line = std::mem::take(&mut self.rest);
                        self.entry(&line, out)?;
                    }
                }
            }
            self.file = file;
            // Another file under the name: this one has been read to its end.
            let now = std::fs::metadata(&self.path).ok().map(|m| m.ino());
            if now.is_none() || now == self.file.as_ref().map(|(_, inode)| *inode) {
                return out.flush();
            }
            self.rest.clear();
            self.file = open(&self.path)?;
        }
    }

    /// A part of a line that nobody ended gets its end.
    pub(super) fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::take(&mut self.open_line) {
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    fn entry(&mut self, line: &[u8], out: &mut impl Write) -> io::Result<()> {
        let Some((time, whole, content)) = parse(line) else {
            return Ok(());
        };
        if self.timestamps && !self.open_line {
            out.write_all(time)?;
            out.write_all(b" ")?;
        }
        if self.safe {
            out.write_all(visible(content).as_bytes())?;
        } else {
            out.write_all(content)?;
        }
        if whole {
            out.write_all(b"\n")?;
        }
        self.open_line = !whole;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Option<(BufReader<File>, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((BufReader::new(file), inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Text without anything a terminal obeys: control characters of C0 and C1 but the tabulator, and what is not UTF-8,
/// are shown as `\\x1b`; marks that turn the direction of writing as `\\u{202e}`.
fn visible(content: &[u8]) -> String {
    let mut text = String::with_capacity(content.len());
    for chunk in content.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => text.push(c),
                '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    text.extend(c.escape_unicode());
                }
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Time, whole line?, content.
fn parse(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, _stream, tag, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((time, tag == b"F", content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader) -> String {
        let mut out = Vec::new();
        reader.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_no_commands() {
        let shown = visible(b"a\tb \x1b]0;title\x07 \x1b[2J \xc2\x9b31m \xff \xe2\x80\xae \xc3\xa4\r");
        assert_eq!(
            shown,
            "a\tb \\x1b]0;title\\x07 \\x1b[2J \\x9b31m \\xff \\u{202e} \u{e4}\\x0d"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "t stdout F \x1b[31mred\n").unwrap();
        let mut reader = Reader::new(path, false);
        reader.safe = true;
        assert_eq!(read(&mut reader), "\\x1b[31mred\n");
    }

    #[test]
    fn follows_parts_and_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let older = folder.path().join("a.log.1");
        std::fs::write(&older, "t stdout F zero\n").unwrap();
        std::fs::write(&path, "t stdout F one\nt stdout P tw").unwrap();
        let mut reader = Reader::new(path.clone(), false);
        assert_eq!(read(&mut reader), "zero\none\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"o\nt stderr F  words  \n").unwrap();
        assert_eq!(read(&mut reader), "two words  \n");
        std::fs::rename(&path, &older).unwrap();
        file.write_all(b"t stdout F last of the old\n").unwrap();
        std::fs::write(&path, "t stdout F first of the new\n").unwrap();
        assert_eq!(read(&mut reader), "last of the old\nfirst of the new\n");
        assert_eq!(read(&mut reader), "");
    }
}
