//! The bombs of the attacker.
#![allow(unsafe_code)] // fork(2), inotify_init1(2) until they fail

use std::fs::File;
use std::time::Duration;

use crate::inside::{leak, say};

/// So many more than allowed would be seen.
const MANY: usize = 2000;

/// Children that wait, until there are no more to be had.
pub(crate) fn fork() {
    let mut children = Vec::new();
    for _ in 0..MANY {
        // SAFETY: one thread; the child calls only pause(2) and _exit(2).
        match unsafe { libc::fork() } {
            -1 => break,
            // SAFETY: both take no pointer.
            0 => unsafe {
                libc::pause();
                libc::_exit(0)
            },
            pid => children.push(pid),
        }
    }
    if children.len() >= 64 {
        leak(format!("{} children with a limit of 64", children.len()));
    }
    for pid in children {
        // SAFETY: numbers of children that were not waited for.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Every process forks for ever and ignores what can be ignored.
pub(crate) fn endless_fork() {
    // SAFETY: ignoring signals and forking touch no memory of others.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_IGN);
        }
        loop {
            libc::fork();
        }
    }
}

/// Four times the limit, every page touched.
pub(crate) fn memory() {
    say("GROWING");
    let mut blocks = Vec::new();
    for n in 0..512u32 {
        blocks.push(vec![n as u8 | 1; 1 << 20]);
    }
    say(&format!(
        "{}",
        blocks.iter().map(|b| usize::from(b[77])).sum::<usize>()
    ));
}

/// Open files until there are no more.
pub(crate) fn descriptors() {
    let files: Vec<File> = (0..100_000).map_while(|_| File::open("/").ok()).collect();
    if files.len() > 512 {
        leak(format!("{} open files with a limit of 512", files.len()));
    }
}

/// Take every inotify instance there is and hold them for a moment.
pub(crate) fn inotify() {
    let mut held = 0;
    // SAFETY: inotify_init1 takes no pointer.
    while held < 100_000 && unsafe { libc::inotify_init1(0) } >= 0 {
        held += 1;
    }
    say(&format!("HOLDING {held}"));
    std::thread::sleep(Duration::from_secs(60));
}
