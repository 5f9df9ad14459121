//! The berth binary: command line, daemon, and the door to the launcher and to the OCI runtime.
//!
//! Invariants: `berth oci …` and `berth launcher` are reached before anything could have started a thread; `oci` is
//! looked for before the command line is parsed at all, because it is started once for each step of a container. For
//! the same reason the C library calls this file's `main` itself: what Rust's own start does besides (reading all of
//! /proc/self/maps for the place of the stack, to explain an overflow that the kernel's guard pages stop anyway) takes
//! as long as many a command; what berth needs of it is done here. Only glibc gives the arguments to the standard library
//! before that; with any other C library the start is Rust's.
#![cfg_attr(all(not(test), target_env = "gnu"), no_main)]
#![allow(unsafe_code)] // `main` by its C name, and two calls with numbers alone

mod api;
mod cli;
mod core;
mod daemon;

use std::process::ExitCode;

/// Descriptors 0 to 2 are open, on /dev/null where they were not: what is opened later must not get their numbers.
/// A write to a closed pipe is an error, not the end.
#[cfg_attr(any(test, not(target_env = "gnu")), allow(dead_code))]
fn begin() {
    let open = |fd: i32| {
        // SAFETY: fcntl(2) with numbers alone; it tells an open descriptor from a closed one.
        unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
    };
    while let Some(fd) = (0..3).find(|fd| !open(*fd)) {
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null");
        // The lowest free number is this one; standard streams are inherited by what is executed.
        let made = null.map(std::os::fd::IntoRawFd::into_raw_fd);
        // SAFETY: fcntl(2) with numbers alone, on the descriptor that was just opened.
        if made.ok() != Some(fd) || unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
            std::process::abort();
        }
    }
    // SAFETY: no handler is installed; nothing else runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

#[cfg_attr(test, allow(dead_code))]
fn run() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|word| word == "oci") {
        let code = berth_runtime::oci::main(args);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    cli::main()
}

/// Called by the C library; it has given argc and argv to the standard library before.
#[cfg(all(not(test), target_env = "gnu"))]
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    begin();
    let code = run();
    let number = (0..=u8::MAX).find(|n| ExitCode::from(*n) == code);
    // Writes out what standard output still holds.
    std::process::exit(number.map_or(1, i32::from))
}

#[cfg(all(not(test), not(target_env = "gnu")))]
fn main() -> ExitCode {
    run()
}
