//! The kernel calls of the worker: clock_nanosleep(2), sched_getattr(2), prctl(2), mlockall(2), packet(7).
#![allow(unsafe_code)] // The worker depends on libc alone, to stay small: its calls have no safe form there.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

/// Set by SIGTERM and SIGINT.
static END: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    END.store(true, Ordering::Relaxed);
}

/// Whether the worker was asked to end.
pub(crate) fn asked_to_end() -> bool {
    END.load(Ordering::Relaxed)
}

/// SIGTERM and SIGINT end the loop; with `ignore_term` SIGTERM is ignored. As process 1 of a container the worker
/// gets no signal it has no handler for, so these handlers are needed there.
pub(crate) fn catch_signals(ignore_term: bool) {
    let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    let term = if ignore_term { libc::SIG_IGN } else { handler };
    // SAFETY: the handler only stores to an atomic, which a signal handler may; `action` is a valid sigaction
    // (zeroed: no flags, so that sleeps end with EINTR).
    unsafe {
        for (signal, disposition) in [
            (libc::SIGTERM, term),
            (libc::SIGINT, handler),
            (libc::SIGPIPE, libc::SIG_IGN),
        ] {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = disposition;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Keeps the worker's memory resident. `true`, or why not.
pub(crate) fn lock_memory() -> Value {
    // SAFETY: takes flags only.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } {
        0 => Value::Bool(true),
        _ => Value::String(io::Error::last_os_error().to_string()),
    }
}

/// The errno of each system call by number, 0 where it succeeds, with every argument all ones: no pointer, no descriptor. A call
/// that takes no argument does what it does.
pub(crate) fn calls(numbers: &[i64]) -> Value {
    let answer = |number: &i64| {
        // SAFETY: the kernel reads and writes nothing at the last address; who names the numbers leaves out what ends or
        // halts the caller.
        let done =
            unsafe { libc::syscall(*number as libc::c_long, -1i64, -1i64, -1i64, -1i64, -1i64, -1i64) };
        let errno = if done == -1 {
            io::Error::last_os_error().raw_os_error().unwrap_or(0)
        } else {
            0
        };
        (number.to_string(), Value::from(errno))
    };
    Value::Object(numbers.iter().map(answer).collect())
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec to write to; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sleeps until a time of CLOCK_MONOTONIC, or until asked to end.
pub(crate) fn sleep_until(ns: u64) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(ns % 1_000_000_000).unwrap_or(0),
    };
    while !asked_to_end() {
        // SAFETY: `time` is a valid timespec; with TIMER_ABSTIME the remainder is not written.
        let result = unsafe {
            libc::clock_nanosleep(
                libc::CLOCK_MONOTONIC,
                libc::TIMER_ABSTIME,
                &raw const time,
                std::ptr::null_mut(),
            )
        };
        if result != libc::EINTR {
            return;
        }
    }
}

/// `struct sched_attr` of the kernel, its first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// What the kernel says of this thread: policy, priority, cores, timer slack.
pub(crate) fn scheduling() -> Value {
    let mut attr = SchedAttr::default();
    // SAFETY: `attr` is as long as the size passed, and the kernel writes no more than that.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attr,
            size_of::<SchedAttr>(),
            0,
        )
    };
    if result != 0 {
        return json!({ "problem": io::Error::last_os_error().to_string() });
    }
    let policy = match attr.policy {
        0 => "other",
        1 => "fifo",
        2 => "rr",
        3 => "batch",
        5 => "idle",
        6 => "deadline",
        _ => "unknown",
    };
    // SAFETY: takes no pointer.
    let slack = unsafe { libc::prctl(libc::PR_GET_TIMERSLACK) };
    // SAFETY: takes no pointer.
    let cpu = unsafe { libc::sched_getcpu() };
    let mut state = json!({
        "policy": policy, "priority": attr.priority, "nice": attr.nice, "cpus": affinity(), "cpu": cpu,
        "timerSlackNs": slack,
    });
    if policy == "deadline" {
        state["runtimeNs"] = attr.runtime.into();
        state["deadlineNs"] = attr.deadline.into();
        state["periodNs"] = attr.period.into();
    }
    state
}

/// The cores this thread may run on, in the kernel's list form.
fn affinity() -> String {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: `set` is as long as the size passed.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return String::new();
    }
    let mut cpus = Vec::new();
    for cpu in 0..size_of::<libc::cpu_set_t>() * 8 {
        // SAFETY: `cpu` is below the number of bits of the set.
        if unsafe { libc::CPU_ISSET(cpu, &set) } {
            cpus.push(cpu);
        }
    }
    list(&cpus)
}

/// `0-3,8` from numbers in rising order.
fn list(cpus: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < cpus.len() {
        let mut end = at;
        while end + 1 < cpus.len() && cpus[end + 1] == cpus[end] + 1 {
            end += 1;
        }
        parts.push(if end == at {
            cpus[at].to_string()
        } else {
            format!("{}-{}", cpus[at], cpus[end])
        });
        at = end + 1;
    }
    parts.join(",")
}

/// Whether an interface is up (SIOCGIFFLAGS: works without /sys and without any right).
pub(crate) fn interface_up(name: &str) -> io::Result<bool> {
    // SAFETY: takes no pointer.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::other("no interface name"));
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    // SAFETY: `request` is a valid ifreq with a terminated name.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_UP != 0)
}

/// A raw packet socket bound to an interface; needs CAP_NET_RAW.
pub(crate) fn packet_socket(name: &str) -> io::Result<OwnedFd> {
    let terminated = CString::new(name)?;
    // SAFETY: `terminated` is a terminated string.
    let index = unsafe { libc::if_nametoindex(terminated.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointer. Protocol 0: nothing is queued for a reader that does not read.
    let socket = owned(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: an all-zero sockaddr_ll is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index).unwrap_or(0);
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or(0);
    // SAFETY: `address` is a valid sockaddr_ll of the length passed.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Sends one broadcast frame of the ethertype for local experiments (IEEE 802: 0x88B5) through a socket of
/// [`packet_socket`].
pub(crate) fn send_frame(socket: &OwnedFd) -> io::Result<()> {
    let mut frame = [0u8; 60];
    frame[..6].fill(0xff);
    // The source: a locally administered address of nobody.
    frame[6] = 0x02;
    frame[12..14].copy_from_slice(&0x88B5_u16.to_be_bytes());
    // SAFETY: `frame` is readable for the length passed.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to the caller, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores() {
        assert_eq!(list(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(list(&[5]), "5");
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn the_kernel_answers_about_this_thread() {
        let state = scheduling();
        assert!(state["problem"].is_null(), "{state}");
        assert!(!state["cpus"].as_str().unwrap().is_empty());
        assert!(interface_up("lo").is_ok());
        assert!(interface_up("no-such-0").is_err());
    }
}
