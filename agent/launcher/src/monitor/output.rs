//! The container's stdout and stderr: pipes → log file.
//!
//! Invariants: the pipes are always read, whatever the disk does; what the disk refuses, and what gathered while
//! it was slow, is dropped and counted, and the count is told once a second at most; one stream that never ends
//! does not keep the loop from the rest ([`ROUND`] bytes a turn).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::cri::{Encoder, Stream};
use crate::log::{LogFile, Written};
use crate::{paths, socket};

/// Bytes asked for: half a second of 2 MB/s.
const PIPE_BYTES: i32 = 1 << 20;
/// Bytes read in one turn of the loop from one pipe.
const ROUND: usize = 64 * 1024;
/// Bytes read at once, and bytes of entries written at once.
const CHUNK: usize = 8 * 1024;
/// Between two words about drops.
const TELL: Duration = Duration::from_secs(1);

struct Pipe {
    file: File,
    encoder: Encoder,
}

/// Both pipes and the file.
pub(crate) struct Output {
    pipes: [Option<Pipe>; 2],
    log: LogFile,
    dropped: u64,
    told: u64,
    told_at: Option<Instant>,
}

/// The container's ends of the pipes.
pub(crate) struct Ends {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Output {
    /// Opens the log and makes the pipes.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> io::Result<(Output, Ends)> {
        let log = LogFile::open(path, max_bytes)?;
        let (out, stdout) = pipe()?;
        let (err, stderr) = pipe()?;
        let reader = |fd: OwnedFd, stream| {
            Some(Pipe {
                file: File::from(fd),
                encoder: Encoder::new(stream),
            })
        };
        let pipes = [reader(out, Stream::Stdout), reader(err, Stream::Stderr)];
        Ok((
            Output {
                pipes,
                log,
                dropped: 0,
                told: 0,
                told_at: None,
            },
            Ends { stdout, stderr },
        ))
    }

    /// Bytes dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The pipes that are still open, by number.
    pub(crate) fn fds(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.pipes
            .iter()
            .enumerate()
            .filter_map(|(n, p)| p.as_ref().map(|p| (n, p.file.as_fd())))
    }

    /// Bytes dropped since this was last asked; 0 when the last answer is younger than a second.
    pub(crate) fn tell(&mut self, at_once: bool) -> u64 {
        let new = self.dropped - self.told;
        if new == 0 || (!at_once && self.told_at.is_some_and(|at| at.elapsed() < TELL)) {
            return 0;
        }
        self.told = self.dropped;
        self.told_at = Some(Instant::now());
        new
    }

    /// When a word about drops that is held back is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.dropped > self.told).then(|| self.told_at.map_or_else(Instant::now, |at| at + TELL))
    }

    /// Reads one pipe.
    pub(crate) fn read(&mut self, n: usize) {
        let mut chunk = [0; CHUNK];
        let mut taken = 0;
        while taken < ROUND {
            let Some(pipe) = &mut self.pipes[n] else { return };
            match pipe.file.read(&mut chunk) {
                Ok(0) => return self.end(n),
                Ok(got) => {
                    taken += got;
                    self.write(n, &chunk[..got]);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(n),
            }
        }
    }

    /// The container has ended: takes what is left in both pipes, and closes them even where a process that got
    /// away still holds the other end.
    pub(crate) fn finish(&mut self) {
        for n in 0..self.pipes.len() {
            // No pipe holds more than its size; a writer that is still there cannot keep us here.
            for _ in 0..=(PIPE_BYTES as usize / ROUND) {
                self.read(n);
            }
            self.end(n);
        }
    }

    fn write(&mut self, n: usize, mut data: &[u8]) {
        let mut entries = Vec::with_capacity(CHUNK + 256);
        while !data.is_empty() {
            let Some(pipe) = &mut self.pipes[n] else { return };
            entries.clear();
            let taken = pipe.encoder.encode(paths::now(), data, CHUNK, &mut entries);
            match self.log.write(&entries) {
                Ok(Written::Well) => {}
                Ok(Written::Slowly) => self.drain(),
                Err(_) => {
                    self.dropped += data.len() as u64;
                    pipe.encoder.dropped();
                    return;
                }
            }
            data = &data[taken..];
        }
    }

    /// Throws away what gathered while the disk was slow, so that the container does not wait for it.
    fn drain(&mut self) {
        let mut chunk = [0; CHUNK];
        for pipe in self.pipes.iter_mut().flatten() {
            let mut most = PIPE_BYTES as usize;
            while most > 0 {
                match pipe.file.read(&mut chunk) {
                    Ok(got) if got > 0 => {
                        self.dropped += got as u64;
                        pipe.encoder.dropped();
                        most = most.saturating_sub(got);
                    }
                    _ => break,
                }
            }
        }
    }

    fn end(&mut self, n: usize) {
        if let Some(mut pipe) = self.pipes[n].take() {
            let mut entries = Vec::new();
            pipe.encoder.finish(paths::now(), &mut entries);
            // An end of line that cannot be written loses no byte of the container's.
            let _ = self.log.write(&entries);
        }
    }
}

/// A pipe whose reading end does not block, as large as the kernel lets it be.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    socket::set_nonblocking(&reader, true)?;
    let mut size = PIPE_BYTES;
    while size > 64 * 1024 && fcntl(&reader, FcntlArg::F_SETPIPE_SZ(size)).is_err() {
        size /= 2;
    }
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn text_of(log: &str) -> Vec<String> {
        log.lines()
            .map(|l| l.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn both_streams_reach_the_log() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.log");
        let (mut output, ends) = Output::open(&path, 1 << 20).unwrap();
        File::from(ends.stdout).write_all(b"one\ntwo").unwrap();
        let mut err = File::from(ends.stderr);
        err.write_all(b"oops\n").unwrap();
        output.read(0);
        output.read(1);
        output.finish();
        let log = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text_of(&log),
            ["stdout F one", "stdout P two", "stdout F ", "stderr F oops"]
        );
        assert_eq!(output.dropped(), 0);
        assert_eq!(output.fds().count(), 0, "closed although a writer is left");
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted_and_never_half_written() {
        let temp = tempfile::tempdir().unwrap();
        let small = temp.path().join("small");
        std::fs::create_dir(&small).unwrap();
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        if mount(
            Some("none"),
            &small,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=16k"),
        )
        .is_err()
        {
            assert!(!nix::unistd::geteuid().is_root(), "root can mount");
            return;
        }
        let (mut output, ends) = Output::open(&small.join("a.log"), 1 << 30).unwrap();
        let mut out = File::from(ends.stdout);
        let line = [b'x'; 99];
        for _ in 0..400 {
            out.write_all(&line).unwrap();
            out.write_all(b"\n").unwrap();
        }
        output.read(0);
        let log = std::fs::read_to_string(small.join("a.log")).unwrap();
        // Text of an entry is behind its third blank; a full one stands for its newline too.
        let bytes = |l: &str| {
            let (head, text) = l.split_at(l.match_indices(' ').nth(2).unwrap().0);
            text.len() - 1 + usize::from(head.ends_with('F'))
        };
        let kept: usize = log.lines().map(bytes).sum();
        let told = (output.tell(false), output.tell(false));
        drop(output);
        umount2(&small, MntFlags::MNT_DETACH).unwrap();
        assert!(log.ends_with('\n') && kept > 2000);
        assert_eq!(told.0 + kept as u64, 400 * 100);
        assert_eq!(told.1, 0, "told once");
    }
}
