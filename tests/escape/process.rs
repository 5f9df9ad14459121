//! Other processes of the node: their sockets, keys, memory and signals.
#![allow(unsafe_code)] // add_key(2) and keyctl(2) have no wrapper in libc

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context, Result, ensure};

use crate::Row;
use crate::lab::{Lab, Verdict};
use berth_tests::runtime::Runtime;

pub(crate) const ATTACKS: &[Row] = &[
    ("abstract-socket", "CVE-2020-15257", abstract_socket),
    ("session-keyring", "keys of the caller's session", session_keyring),
    (
        "other-containers",
        "ptrace, signals, pidfd, /proc of another container",
        other_container,
    ),
];

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;

/// A socket of the host without a path is another network namespace's.
fn abstract_socket(runtime: &Runtime) -> Result<Verdict> {
    let name = format!("berth-escape-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let lab = Lab::new(runtime, "abstract", &[&name])?;
    let done = lab.run()?;
    lab.judge(&done)
}

/// The caller's session has a key: the container must have a session of its own.
fn session_keyring(runtime: &Runtime) -> Result<Verdict> {
    let name = format!("berth-escape-{}", std::process::id());
    let text = std::ffi::CString::new(name.clone())?;
    // SAFETY: both calls read C strings and a buffer that outlive them; the key goes with the session's keyring,
    // which is this process's own from the first call on.
    let key = unsafe {
        if libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) < 0 {
            return Ok(Verdict::NotHere("the kernel has no keyrings".into()));
        }
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            text.as_ptr(),
            c"secret".as_ptr(),
            6usize,
            KEY_SPEC_SESSION_KEYRING,
        )
    };
    ensure!(key > 0, "add_key: {}", std::io::Error::last_os_error());
    let lab = Lab::new(runtime, "keys", &[&name, &key.to_string()])?;
    let done = lab.run()?;
    lab.judge(&done)
}

/// One container against another, whose number on the host it knows.
fn other_container(runtime: &Runtime) -> Result<Verdict> {
    let victim = Lab::new(runtime, "sleep", &[])?;
    let created = victim.create()?;
    if !created.good || !victim.call(&["start", &victim.id])?.good {
        return Ok(Verdict::Failed(created.text));
    }
    let pid = victim.pid()?;
    let lab = Lab::new(runtime, "foreign", &[&pid.to_string()])?;
    let done = lab.run()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the victim is gone")?;
    if stat
        .rsplit(')')
        .next()
        .is_some_and(|rest| rest.trim_start().starts_with(['Z', 'T', 't']))
    {
        return Ok(Verdict::Broken("the other container was stopped".into()));
    }
    lab.judge(&done)
}
