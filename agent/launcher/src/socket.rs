//! unix(7) stream sockets: a listener for root alone, peer credentials, and SCM_RIGHTS.
//!
//! Invariants: every descriptor is close-on-exec from its first moment; a socket address never depends on the
//! length of the folder's path, because sockets are bound and reached through `/proc/self/fd/DIR/NAME`
//! (`sun_path` holds 107 bytes); received descriptors are owned before anything can fail.
#![allow(unsafe_code)] // recvmsg(2) gives plain numbers: they become owned here, in one place

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};

/// Most descriptors taken from one message.
pub const MAX_DESCRIPTORS: usize = 8;

/// The longest container id whose socket can be named (see the head of this file):
/// `/proc/self/fd/NNNN/ID.sock` fits 107 bytes.
pub const MAX_ID: usize = 80;

fn address(folder: &Path, name: &str) -> io::Result<(File, UnixAddr)> {
    let dir = File::open(folder)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
    Ok((dir, UnixAddr::new(&path)?))
}

/// Listens on `folder/name`, mode 0600, non-blocking. A socket left there by a process that died is replaced.
///
/// # Errors
/// `AddrInUse` while another process listens there; else the kernel's.
pub fn listen(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    if connect(folder, name).is_ok() {
        return Err(io::Error::from_raw_os_error(Errno::EADDRINUSE as i32));
    }
    match std::fs::remove_file(folder.join(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_dir, at) = address(folder, name)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Nobody can connect before listen(2), so the mode is right before the first caller.
    socket::bind(fd.as_raw_fd(), &at)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.join(name), mode)?;
    socket::listen(&fd, Backlog::new(64).unwrap_or(Backlog::MAXCONN))?;
    Ok(fd)
}

/// Connects to `folder/name`; the socket blocks.
///
/// # Errors
/// `NotFound` where there is no such socket, `ConnectionRefused` where nobody listens any more.
pub fn connect(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let (_dir, at) = address(folder, name)?;
    let fd = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    socket::connect(fd.as_raw_fd(), &at)?;
    Ok(fd)
}

/// The next connection, non-blocking; `None` where nobody waits.
///
/// # Errors
/// The kernel's, `EMFILE` among them.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match socket::accept4(
        listener.as_raw_fd(),
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    ) {
        // SAFETY: accept4 has just made this descriptor; nobody else holds it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Who is at the other end: (pid, uid), as the kernel noted them at connect(2) or listen(2).
///
/// # Errors
/// The kernel's.
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<(i32, u32)> {
    let credentials = socket::getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok((credentials.pid(), credentials.uid()))
}

/// Who is at the other end: user, group and process, as the kernel noted them when it connected.
///
/// # Errors
/// The kernel's.
pub fn who(fd: BorrowedFd<'_>) -> io::Result<berth_audit::Who> {
    let credentials = socket::getsockopt(&fd, sockopt::PeerCredentials)?;
    Ok(berth_audit::Who {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
        role: None,
    })
}

/// The supplementary groups of the other end, as they were when it connected (SO_PEERGROUPS).
///
/// # Errors
/// The kernel's.
pub fn groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX of the kernel is 65536; most processes have a few.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let size = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes to the buffer, which is that long, and the length back.
        let done = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        match Errno::result(done) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It says how long it must be.
            Err(Errno::ERANGE) if count > groups.len() => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sends some of `bytes`, with `fds` beside the first of them. Never raises SIGPIPE.
///
/// # Errors
/// The kernel's; `WouldBlock` where a non-blocking socket is full (nothing was sent then).
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match socket::sendmsg::<()>(
            fd.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(sent) => return Ok(sent),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives into `bytes`; 0 is the end. Descriptors that came along are added to `fds`.
///
/// # Errors
/// The kernel's; `InvalidData` where more than [`MAX_DESCRIPTORS`] came at once (those received are closed).
pub fn receive(fd: BorrowedFd<'_>, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    // u64: control messages are aligned like size_t. Room for one message of MAX_DESCRIPTORS.
    let mut space = [0u64; 2 + MAX_DESCRIPTORS.div_ceil(2)];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a valid msghdr: no name, no parts, no control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&space) as _;
    let read = loop {
        // SAFETY: `message` points to `part` and `space`, which outlive the call and hold the lengths it names.
        let read = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match Errno::result(read) {
            Ok(read) => break read as usize,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    let before = fds.len();
    // SAFETY: the kernel wrote whole control messages into `space` and their total length into `message`; the
    // CMSG macros stay within it, and the descriptors have just been installed for us alone. (A wrapper that
    // gives up on a truncated message would lose those that did arrive.)
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = control.as_ref() {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(control);
                #[allow(clippy::unnecessary_cast)] // 32 bits wide with some C libraries
                let length = header.cmsg_len as usize - (data as usize - control as usize);
                for n in 0..length / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.cast::<RawFd>().add(n).read_unaligned()));
                }
            }
            control = libc::CMSG_NXTHDR(&raw const message, control);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        fds.truncate(before);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors than a message may carry",
        ));
    }
    Ok(read)
}

/// A pidfd of `pid`, close-on-exec.
///
/// # Errors
/// `ESRCH` where there is no such process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` where it is gone.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) with a null siginfo touches no memory of ours.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// Makes a descriptor non-blocking or blocking.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let fd = fd.as_fd();
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_socket_lives_in_a_folder_of_any_depth_and_is_roots_alone() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let name = format!("{}.sock", "x".repeat(MAX_ID));
        let listener = listen(&deep, &name).unwrap();
        assert_eq!(
            std::fs::metadata(deep.join(&name)).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(listen(&deep, &name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let client = connect(&deep, &name).unwrap();
        while accept(listener.as_fd()).unwrap().is_some() {}
        assert_eq!(peer(client.as_fd()).unwrap().0, std::process::id() as i32);
        drop((listener, client));
        assert_eq!(
            connect(&deep, &name).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        listen(&deep, &name).expect("a dead socket is replaced");
    }

    #[test]
    fn descriptors_arrive_with_the_bytes_they_were_sent_with() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert_eq!(send(a.as_fd(), b"x", &[writer.as_fd()]).unwrap(), 1);
        drop(writer);
        let mut fds = Vec::new();
        let mut buffer = [0; 16];
        assert_eq!(receive(b.as_fd(), &mut buffer, &mut fds).unwrap(), 1);
        let mut got = File::from(fds.pop().unwrap());
        assert!(fds.is_empty());
        got.write_all(b"hi").unwrap();
        drop(got);
        let mut text = String::new();
        io::Read::read_to_string(&mut File::from(reader), &mut text).unwrap();
        assert_eq!(text, "hi");
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); MAX_DESCRIPTORS + 2];
        send(a.as_fd(), b"x", &many).unwrap();
        let mut fds = Vec::new();
        let error = receive(b.as_fd(), &mut [0; 4], &mut fds).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(fds.is_empty());
    }
}
