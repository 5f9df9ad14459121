//! A descriptor that tokio polls for reading: the event socket and pidfds.
#![allow(unsafe_code)] // AsyncFd::register wants a promise about the descriptor

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Its own duplicate of a descriptor, registered.
pub(crate) struct Readable(AsyncFd<Own>);

struct Own(OwnedFd);

impl AsRawFd for Own {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Readable {
    /// Registers a duplicate of `fd` with the running reactor.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Readable> {
        let own = Own(fd.try_clone_to_owned()?);
        // SAFETY: `Own` owns its descriptor, gives out the same number for its whole life, and nobody else
        // can close it: it is a private field, dropped by AsyncFd after it was taken out of the reactor.
        let registered = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        Ok(Readable(registered?))
    }

    /// Waits until it is readable, as the kernel says now.
    ///
    /// # Errors
    /// The reactor is gone.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            if is_readable(self.0.get_ref()) {
                guard.retain_ready();
                return Ok(());
            }
            guard.clear_ready();
        }
    }
}

fn is_readable(fd: &Own) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut one = [PollFd::new(fd.0.as_fd(), PollFlags::POLLIN)];
    poll(&mut one, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}
