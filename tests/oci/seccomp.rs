//! `linux.seccomp`.

use serde_json::{Value, json};

use crate::case::{Case, Mode, case};

/// What a shell, echo and the runtimes themselves call; not mkdir.
const USUAL: &str = "access arch_prctl bind brk capget capset chdir clock_gettime clone clone3 close close_range connect dup dup2 dup3 \
    epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve execveat exit exit_group faccessat faccessat2 fchdir fchown fcntl \
    fgetxattr fork fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpgrp getpid getppid getrandom getresgid \
    getresuid getrlimit getsockopt gettid getuid ioctl kill lseek lstat madvise memfd_create mmap mprotect mremap munmap \
    nanosleep newfstatat open openat openat2 pause pipe pipe2 poll ppoll prctl pread64 prlimit64 pselect6 pwrite64 read \
    readlink readlinkat readv recvfrom recvmsg restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait sched_getaffinity sched_yield seccomp select sendfile sendmsg sendto set_robust_list set_tid_address \
    setgid setgroups setpgid setresgid setresuid setsid setuid sigaltstack socket socketpair stat statfs statx sysinfo tgkill umask \
    uname unshare vfork wait4 waitid write writev";

fn rule(section: Value) -> Value {
    let mut all = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), section) {
        all.extend(more);
    }
    all
}

pub(crate) fn cases() -> Vec<Case> {
    let usual: Vec<&str> = USUAL.split_whitespace().collect();
    let mkdir = json!(["mkdir", "mkdirat"]);
    // kill(2): argument 1 is the signal; SIGUSR1 is 10, SIGUSR2 is 12.
    let kills = "trap '' USR1 USR2; kill -USR1 $$ || echo one denied; kill -USR2 $$ || echo two denied; true";
    let on_kill = |arg: Value| {
        rule(
            json!({"syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [arg]}]}),
        )
    };
    let mut all = vec![
        case(
            "the default action",
            &["linux.seccomp.defaultAction", "linux.seccomp.defaultErrnoRet"],
        )
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28,
                "syscalls": [{"names": usual, "action": "SCMP_ACT_ALLOW"}]}),
        )
        .sh("mkdir /tmp/x 2>&1; true")
        .want("No space left on device")
        .instead("linux.seccomp.defaultAction", json!("SCMP_ACT_ALLOW"))
        .instead("linux.seccomp.defaultErrnoRet", json!(1)),
        case(
            "a call that is denied",
            &[
                "linux.seccomp",
                "linux.seccomp.syscalls",
                "linux.seccomp.syscalls[].names",
                "linux.seccomp.syscalls[].action",
                "linux.seccomp.syscalls[].errnoRet",
            ],
        )
        .set(
            "/linux/seccomp",
            rule(json!({"syscalls": [{"names": mkdir, "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]})),
        )
        .sh("mkdir /tmp/x 2>&1; true")
        .want("No space left on device")
        .instead("linux.seccomp.syscalls[].names", json!(["swapon"]))
        .instead("linux.seccomp.syscalls[].action", json!("SCMP_ACT_ALLOW"))
        .instead("linux.seccomp.syscalls[].errnoRet", json!(1)),
        case(
            "a condition",
            &[
                "linux.seccomp.syscalls[].args",
                "linux.seccomp.syscalls[].args[].index",
                "linux.seccomp.syscalls[].args[].op",
                "linux.seccomp.syscalls[].args[].value",
            ],
        )
        .set(
            "/linux/seccomp",
            on_kill(json!({"index": 1, "value": 10, "op": "SCMP_CMP_EQ"})),
        )
        .sh(kills)
        .want("one denied")
        .lack("two denied")
        .instead("linux.seccomp.syscalls[].args[].index", json!(0))
        .instead("linux.seccomp.syscalls[].args[].op", json!("SCMP_CMP_NE"))
        .instead("linux.seccomp.syscalls[].args[].value", json!(12)),
        case(
            "a condition under a mask",
            &["linux.seccomp.syscalls[].args[].valueTwo"],
        )
        .set(
            "/linux/seccomp",
            on_kill(json!({"index": 1, "value": 6, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"})),
        )
        .sh(kills)
        .want("one denied")
        .lack("two denied"),
        case("flags", &["linux.seccomp.flags"])
            .set(
                "/linux/seccomp",
                rule(json!({"flags": ["SECCOMP_FILTER_FLAG_NONE_SUCH"]})),
            )
            .refused()
            .want("SECCOMP_FILTER_FLAG_NONE_SUCH")
            .not("runc", "1.1.5 refuses every flag, without its name"),
        case(
            "somebody answers notifications",
            &["linux.seccomp.listenerPath", "linux.seccomp.listenerMetadata"],
        )
        .set(
            "/linux/seccomp",
            rule(
                json!({"listenerPath": "{dir}/notify.sock", "listenerMetadata": "some words",
                "syscalls": [{"names": mkdir, "action": "SCMP_ACT_NOTIFY"}]}),
            ),
        )
        .sh("mkdir /tmp/x 2>&1; true")
        .want("some words")
        .want("seccompFd")
        .mode(Mode::Listener),
    ];
    if cfg!(target_arch = "x86_64") {
        all.push(
            case("calls of another architecture", &["linux.seccomp.architectures"])
                .set(
                    "/linux/seccomp",
                    rule(json!({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                        "syscalls": [{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}]})),
                )
                .set("/process/args", json!(["/bin/sh", "-c", "/data/old; echo $?"]))
                .set(
                    "/mounts/-",
                    json!({"destination": "/data", "type": "bind", "source": "{dir}/data", "options": ["bind"]}),
                )
                .before(&old_program())
                .want("77"),
        );
    }
    all
}

/// A program of i386 that ends with what getpgid(2) says, as a line of shell that writes it.
fn old_program() -> String {
    let code: &[u8] = &[
        0xb8, 132, 0, 0, 0, // mov eax, 132: getpgid
        0xbb, 0, 0, 0, 0, // mov ebx, 0
        0xcd, 0x80, // int 0x80
        0xf7, 0xd8, // neg eax
        0x89, 0xc3, // mov ebx, eax
        0xb8, 1, 0, 0, 0, // mov eax, 1: exit
        0xcd, 0x80, // int 0x80
    ];
    let base = 0x0804_8000u32;
    let size = 84 + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    let word = |file: &mut Vec<u8>, words: &[u32]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    half(&mut file, &[2, 3]); // ET_EXEC, EM_386
    word(&mut file, &[1, base + 84, 52, 0, 0]); // version, entry, program headers, section headers, flags
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    word(&mut file, &[1, 0, base, base, size, size, 5, 0x1000]); // PT_LOAD, readable and executable
    file.extend_from_slice(code);
    let octal: String = file.iter().map(|b| format!("\\{b:03o}")).collect();
    format!("printf '{octal}' > {{dir}}/data/old && chmod 755 {{dir}}/data/old")
}
