//! Filters of profiles as the kernel would run them: the document read by a second, plain reading of the format's
//! rules, beside the compiled program run by an evaluator of classic BPF. Every system call of x86_64 and arm64,
//! arguments around every value that is compared with; the shipped profiles and the default profiles of Docker and
//! containers-common (of Debian's packages, unchanged; `.ci/setup test` lays them into target/public).

#![allow(unsafe_code)] // a child under a filter makes raw system calls

mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use berth_policies::{Filter, Judge, ProfileSpec, Seccomp, SeccompSpec, resolve, shipped_names};
use berth_runtime::seccomp::{Architecture, Options, compile, syscall_names, syscall_number};
use oci_spec::runtime::Arch;
use reference::{KILL_PROCESS, Node, Reference};
use serde_json::{Value, json};

/// What Docker and containers-common grant by default, beside nothing and everything.
const USUAL: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

impl Node {
    fn architecture(&self) -> Architecture {
        if self.arm {
            Architecture::Aarch64
        } else {
            Architecture::X86_64
        }
    }

    fn judge(&self) -> Judge {
        Judge {
            capabilities: self.caps.clone(),
            native: if self.arm {
                Arch::ScmpArchAarch64
            } else {
                Arch::ScmpArchX86_64
            },
            kernel: (self.kernel.0 as u32, self.kernel.1 as u32),
        }
    }
}

/// Every call of the node's architecture, and those of the ones beside it that have one number each.
fn agrees(what: &str, document: &Value, filter: &Filter, node: &Node) -> usize {
    let section = filter.section(&node.judge()).expect("section");
    let native = node.architecture();
    let compiled = compile(&section, &Options { native }).unwrap_or_else(|e| panic!("{what}: {e}"));
    let reference = Reference::of(document, node);
    let mut judged = 0;
    let mut known = BTreeSet::new();
    for name in syscall_names() {
        let Some(number) = syscall_number(native, name) else {
            continue;
        };
        known.insert(number);
        for args in reference.arguments(name) {
            let expected = reference.answer(name, &args);
            let answer = compiled.evaluate(native, number, &args);
            assert_eq!(answer, Some(expected), "{what}: {name}({args:x?}) on {native}");
            judged += 1;
        }
    }
    for number in (0..700).filter(|n| !known.contains(n)) {
        let answer = compiled.evaluate(native, number, &[0; 6]);
        assert_eq!(
            answer,
            Some(reference.default),
            "{what}: number {number} on {native}"
        );
    }
    let listed = section.architectures().clone().unwrap_or_default();
    let beside = if node.arm {
        [
            (Architecture::Arm, Arch::ScmpArchArm),
            (Architecture::Arm, Arch::ScmpArchArm),
        ]
    } else {
        [
            (Architecture::X86, Arch::ScmpArchX86),
            (Architecture::X32, Arch::ScmpArchX32),
        ]
    };
    for (arch, oci) in beside {
        for name in ["getpid", "openat", "mount", "bpf"] {
            let number = syscall_number(arch, name).expect("number");
            let expected = if listed.contains(&oci) {
                reference.answer(name, &[0; 6])
            } else {
                KILL_PROCESS
            };
            assert_eq!(
                compiled.evaluate(arch, number, &[0; 6]),
                Some(expected),
                "{what}: {name} on {arch}"
            );
        }
    }
    judged
}

/// Both architectures, an old and a new kernel, no, usual, all and each single capability.
fn nodes() -> Vec<Node> {
    let all = resolve("privileged", &BTreeMap::new())
        .expect("privileged")
        .capabilities;
    let mut sets: Vec<BTreeSet<&'static str>> =
        vec![BTreeSet::new(), USUAL.into_iter().collect(), all.clone()];
    sets.extend(all.into_iter().map(|one| [one].into()));
    let mut nodes = Vec::new();
    for caps in sets {
        for (arm, kernel) in [(false, (4, 4)), (false, (6, 12)), (true, (4, 8)), (true, (6, 12))] {
            nodes.push(Node {
                caps: caps.clone(),
                arm,
                kernel,
            });
        }
    }
    nodes
}

fn public(path: &str, least: usize) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/public")
        .join(path);
    let text =
        std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}: run `.ci/setup test`", file.display()));
    let document: Value = serde_json::from_slice(&text).expect("json");
    let mut profile = ProfileSpec {
        seccomp: serde_json::from_value(json!({"file": file})).expect("file"),
        ..ProfileSpec::default()
    };
    profile
        .inline(|path| std::fs::read(path))
        .expect("loads unchanged");
    let Some(SeccompSpec::Filter(filter)) = &profile.seccomp else {
        panic!("not in its place")
    };
    let judged: usize = nodes()
        .iter()
        .map(|node| agrees(path, &document, filter, node))
        .sum();
    assert!(judged > least, "{judged}");
    // What the agent writes for the launcher says the same.
    let written = serde_json::to_value(&profile).expect("json");
    let again: ProfileSpec = serde_json::from_value(written).expect("reads what it wrote");
    assert_eq!(again, profile);
    let resolved = resolve("p", &[("p".to_owned(), profile)].into()).expect("resolves");
    assert!(resolved.section().expect("section").is_some());
}

#[test]
fn containers_commons_default_profile() {
    public("usr/share/containers/seccomp.json", 100_000);
}

#[test]
fn dockers_default_profile() {
    public(
        "usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
        100_000,
    );
}

#[test]
fn every_call_of_every_shipped_profile() {
    for name in shipped_names() {
        let profile = resolve(name, &BTreeMap::new()).expect(name);
        let Seccomp::Filter(filter) = &profile.seccomp else {
            assert_eq!(name, "privileged");
            continue;
        };
        let document = serde_json::to_value(filter).expect("json");
        for arm in [false, true] {
            let caps = profile.capabilities.clone();
            assert!(
                agrees(
                    name,
                    &document,
                    filter,
                    &Node {
                        caps,
                        arm,
                        kernel: (6, 1)
                    }
                ) > 300
            );
        }
    }
}

#[test]
fn conditions_decide_what_a_container_may_call() {
    let document = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
        "syscalls": [
            {"names": ["read", "exit_group"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]},
             "args": [{"index": 0, "value": 2_114_060_288u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]});
    let filter: Filter = serde_json::from_value(document.clone()).expect("filter");
    for node in nodes() {
        agrees("conditions", &document, &filter, &node);
    }
    let old = Node {
        caps: BTreeSet::new(),
        arm: false,
        kernel: (4, 4),
    };
    let reference = Reference::of(&document, &old);
    // A reading that allowed or refused everything would agree with itself.
    let of = |name: &str, first: u64| reference.answer(name, &[first, 0, 0, 0, 0, 0]);
    assert_eq!(
        [of("read", 0), of("mount", 0), of("ptrace", 0)],
        [0x7fff_0000, 0x0005_0001, 0x0005_0026]
    );
    assert_eq!(
        [of("personality", 8), of("personality", 9)],
        [0x7fff_0000, 0x0005_0026]
    );
    assert_eq!(
        [of("clone", 17), of("clone", 0x1000_0000)],
        [0x7fff_0000, 0x0005_0026]
    );
}

/// Calls that a filter refuses, made for real under it: number and the errno that the document says.
fn denied(reference: &Reference<'_>) -> Vec<(i64, i32)> {
    let native = Architecture::NATIVE;
    let refused = |name: &'static str| {
        let args = [u64::MAX; 6];
        let answer = reference.answer(name, &args);
        let number = syscall_number(native, name)?;
        (answer >> 16 == 5).then_some((i64::from(number), (answer & 0xffff) as i32))
    };
    // The kernel lets uretprobe past every filter (Linux 6.14): it serves a trampoline of its own, and kills whoever else
    // calls it.
    syscall_names()
        .filter(|name| *name != "uretprobe")
        .filter_map(refused)
        .collect()
}

#[test]
fn what_a_shipped_profile_refuses_the_kernel_refuses() {
    for name in shipped_names() {
        let profile = resolve(name, &BTreeMap::new()).expect(name);
        let Seccomp::Filter(filter) = &profile.seccomp else {
            continue;
        };
        let document = serde_json::to_value(filter).expect("json");
        let node = Node {
            caps: profile.capabilities.clone(),
            arm: cfg!(target_arch = "aarch64"),
            kernel: (6, 1),
        };
        let calls = denied(&Reference::of(&document, &node));
        assert!(calls.len() > 80, "{name}: {}", calls.len());
        let section = profile.section().expect("section").expect("filter");
        let compiled = compile(&section, &Options::default()).expect("compiles");
        let wrong = under(&compiled, &calls);
        assert_eq!(wrong, None, "{name}: number, errno expected, errno found");
    }
}

/// The first call in a child under the filter that is not answered as expected.
fn under(filter: &berth_runtime::seccomp::Filter, calls: &[(i64, i32)]) -> Option<(i64, i32, i32)> {
    let (read, write) = nix::unistd::pipe().expect("pipe");
    // SAFETY: the child makes plain system calls on what was made before the fork, and ends.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            let mut found = [0i64; 3];
            // SAFETY: no pointer is valid among the arguments: a call that is not refused reads and writes nothing.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            if berth_runtime::seccomp::load(filter).is_err() {
                // SAFETY: nothing may be called without the filter.
                unsafe { libc::_exit(1) }
            }
            for (number, errno) in calls {
                // SAFETY: as above.
                let answer = unsafe { libc::syscall(*number, -1i64, -1i64, -1i64, -1i64, -1i64, -1i64) };
                // SAFETY: errno of this thread.
                let error = unsafe { *libc::__errno_location() };
                let got = if answer == -1 { error } else { 0 };
                if got != *errno && found == [0; 3] {
                    found = [*number + 1, i64::from(*errno), i64::from(got)];
                }
            }
            // SAFETY: both calls are allowed by every profile.
            unsafe {
                libc::write(std::os::fd::AsRawFd::as_raw_fd(&write), found.as_ptr().cast(), 24);
                libc::_exit(0)
            }
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(write);
            let mut bytes = [0u8; 24];
            std::io::Read::read_exact(&mut std::fs::File::from(read), &mut bytes).expect("an answer");
            nix::sys::wait::waitpid(child, None).expect("wait");
            let word = |n: usize| i64::from_ne_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight"));
            (bytes != [0; 24]).then(|| (word(0) - 1, word(1) as i32, word(2) as i32))
        }
    }
}
