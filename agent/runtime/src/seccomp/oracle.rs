//! The compiler against libseccomp: both programs are run on the same calls and must answer the same.
//!
//! libseccomp is driven the way runc drives it. Numbers: every one of the tables for the bench bundle's filter, those
//! of the filter's names and their neighbours for generated filters; arguments: around every value compared with.

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use proptest::prelude::*;

use super::eval::run;
use super::table::TABLE;
use super::{Architecture, Insn, Options, compile, hard, syscall_number};

const AUDITS: [u32; 5] = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 0x8000_0015];

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(1);
    match action {
        A::ScmpActKill | A::ScmpActKillThread => ScmpAction::KillThread,
        A::ScmpActKillProcess => ScmpAction::KillProcess,
        A::ScmpActTrap => ScmpAction::Trap,
        A::ScmpActErrno => ScmpAction::Errno(errno as i32),
        A::ScmpActNotify => ScmpAction::Notify,
        A::ScmpActTrace => ScmpAction::Trace(errno as u16),
        A::ScmpActLog => ScmpAction::Log,
        A::ScmpActAllow => ScmpAction::Allow,
    }
}

fn compare(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as O;
    let (op, value) = match arg.op() {
        O::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        O::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        O::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        O::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        O::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        O::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        O::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    ScmpArgCompare::new(arg.index() as u32, op, value)
}

/// libseccomp's program for a section.
pub(super) fn libseccomp(seccomp: &LinuxSeccomp) -> Vec<Insn> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret());
    let mut ctx = ScmpFilterContext::new(default).expect("init");
    ctx.set_act_badarch(ScmpAction::KillProcess).expect("badarch");
    for arch in seccomp.architectures().iter().flatten() {
        let arch = match arch {
            Arch::ScmpArchX86_64 => ScmpArch::X8664,
            Arch::ScmpArchX32 => ScmpArch::X32,
            Arch::ScmpArchX86 => ScmpArch::X86,
            Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
            Arch::ScmpArchArm => ScmpArch::Arm,
            other => panic!("{other}"),
        };
        ctx.add_arch(arch).expect("arch");
    }
    for call in seccomp.syscalls().iter().flatten() {
        let what = action(call.action(), call.errno_ret());
        if what == default {
            continue;
        }
        let args: Vec<ScmpArgCompare> = call.args().iter().flatten().map(compare).collect();
        let indices: BTreeSet<usize> = call.args().iter().flatten().map(LinuxSeccompArg::index).collect();
        for name in call.names() {
            let Ok(number) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if indices.len() == args.len() {
                ctx.add_rule_conditional(what, number, &args).expect("rule");
            } else {
                for arg in &args {
                    ctx.add_rule_conditional(what, number, &[*arg]).expect("rule");
                }
            }
        }
    }
    let fd: OwnedFd =
        nix::sys::memfd::memfd_create(c"bpf", nix::sys::memfd::MFdFlags::empty()).expect("memfd");
    let mut file = std::fs::File::from(fd);
    ctx.export_bpf(&file).expect("export");
    file.rewind().expect("rewind");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    bytes
        .chunks_exact(8)
        .map(|c| Insn {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect()
}

/// Argument vectors around the values a section compares with.
fn arguments(seccomp: &LinuxSeccomp) -> Vec<[u64; 6]> {
    let mut vectors = vec![[0; 6], [u64::MAX; 6]];
    for sub in 1..=24 {
        vectors.push([sub, 0, 0, 0, 0, 0]);
    }
    for arg in seccomp
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|c| c.args().iter().flatten())
    {
        for base in [arg.value(), arg.value_two().unwrap_or(0)] {
            for value in [
                base,
                base.wrapping_add(1),
                base.wrapping_sub(1),
                base ^ (1 << 32),
                base << 32,
                !base,
            ] {
                for fill in [0, 1] {
                    let mut vector = [fill; 6];
                    vector[arg.index()] = value;
                    vectors.push(vector);
                }
                vectors.push([value; 6]);
            }
        }
    }
    vectors.sort_unstable();
    vectors.dedup();
    vectors
}

fn agree(seccomp: &LinuxSeccomp, numbers: &BTreeSet<u32>) {
    let ours = compile(seccomp, &Options::default()).expect("compile").program;
    let theirs = libseccomp(seccomp);
    let vectors = arguments(seccomp);
    for audit in AUDITS {
        for &nr in numbers {
            for args in &vectors {
                let (a, b) = (run(&ours, audit, nr, args), run(&theirs, audit, nr, args));
                assert!(
                    a.is_some(),
                    "our program ran off its end: arch {audit:#x} nr {nr} args {args:x?}"
                );
                assert_eq!(a, b, "arch {audit:#x} nr {nr:#x} args {args:x?} of {seccomp:?}");
            }
        }
    }
}

fn every_number() -> BTreeSet<u32> {
    let low = 0..=480u32;
    let x32 = low.clone().map(|n| n | 0x4000_0000);
    let arm = 0xf_0000..0xf_0008;
    low.chain(x32)
        .chain(arm)
        .chain([0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX])
        .collect()
}

fn numbers_of(seccomp: &LinuxSeccomp) -> BTreeSet<u32> {
    let mut numbers: BTreeSet<u32> = [0x4000_0000, 0x7fff_ffff, u32::MAX, 102, 117].into();
    for name in seccomp.syscalls().iter().flatten().flat_map(|c| c.names()) {
        for arch in [0, 1, 2, 3, 4] {
            if let Some(row) = super::rules::lookup(name)
                && let Ok(nr) = u32::try_from(row.1[arch])
            {
                numbers.extend([nr.saturating_sub(1), nr, nr + 1]);
            }
        }
    }
    numbers
}

/// The machine's own tables may be older than ours: names it lacks are not compared.
fn resolved(arch: ScmpArch, name: &str) -> Option<i32> {
    ScmpSyscall::from_name_by_arch(name, arch).ok().map(i32::from)
}

#[test]
fn our_numbers_are_libseccomps() {
    let mut compared = 0;
    for (name, numbers) in TABLE {
        let archs = [
            ScmpArch::X8664,
            ScmpArch::X32,
            ScmpArch::X86,
            ScmpArch::Aarch64,
            ScmpArch::Arm,
        ];
        for (arch, &ours) in archs.into_iter().zip(numbers) {
            let Some(theirs) = resolved(arch, name) else {
                continue;
            };
            let multiplexed = arch == ScmpArch::X86 && (-300..=-101).contains(&theirs);
            if !multiplexed && (theirs >= 0 || ours < 424) {
                assert_eq!(ours, theirs.max(-1), "{name} on {arch:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 2000, "only {compared} numbers compared");
    assert_eq!(syscall_number(Architecture::X32, "execve"), Some(0x4000_0208));
    assert_eq!(syscall_number(Architecture::Aarch64, "open"), None);
}

#[test]
fn the_bench_filter_agrees_on_every_number() {
    for archs in [&hard::THREE[..], &hard::NATIVE[..]] {
        agree(&hard::section(archs), &every_number());
    }
}

#[test]
fn arm_agrees_too() {
    // libseccomp always adds the node's own architecture: so does this section.
    let archs = [
        Arch::ScmpArchNative,
        Arch::ScmpArchAarch64,
        Arch::ScmpArchArm,
        Arch::ScmpArchX86,
        Arch::ScmpArchX86_64,
    ];
    let mut section = hard::section(&archs);
    let known: Vec<Arch> = archs[1..].to_vec();
    section.set_architectures(Some(known));
    agree(&section, &every_number());
}

const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "close",
    "socket",
    "accept",
    "accept4",
    "bind",
    "send",
    "recvmmsg",
    "semop",
    "shmat",
    "semtimedop",
    "msgget",
    "execve",
    "clone",
    "personality",
    "ioctl",
    "set_tls",
    "chown32",
    "mq_open",
    "futex",
    "sendmmsg",
    "openat2",
];

fn any_action() -> impl Strategy<Value = (LinuxSeccompAction, Option<u32>)> {
    use LinuxSeccompAction as A;
    prop_oneof![
        Just((A::ScmpActAllow, None)),
        Just((A::ScmpActLog, None)),
        Just((A::ScmpActTrap, None)),
        Just((A::ScmpActKill, None)),
        Just((A::ScmpActKillThread, None)),
        Just((A::ScmpActKillProcess, None)),
        (0u32..200).prop_map(|e| (A::ScmpActErrno, Some(e))),
        (0u32..200).prop_map(|e| (A::ScmpActTrace, Some(e))),
        Just((A::ScmpActErrno, None)),
    ]
}

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(0x7fff_ffff),
        Just(0xffff_ffff),
        Just(0x1_0000_0000),
        Just(u64::MAX),
        Just(2_114_060_288),
        any::<u64>(),
    ]
}

fn any_arg() -> impl Strategy<Value = LinuxSeccompArg> {
    use LinuxSeccompOperator as O;
    let op = prop_oneof![
        Just(O::ScmpCmpNe),
        Just(O::ScmpCmpLt),
        Just(O::ScmpCmpLe),
        Just(O::ScmpCmpEq),
        Just(O::ScmpCmpGe),
        Just(O::ScmpCmpGt),
        Just(O::ScmpCmpMaskedEq),
    ];
    (0usize..6, any_value(), any_value(), op).prop_map(|(index, value, two, op)| {
        // A masked value with bits outside of its mask is a contradiction (see the table test).
        let two = if op == O::ScmpCmpMaskedEq {
            two & value
        } else {
            two
        };
        LinuxSeccompArgBuilder::default()
            .index(index)
            .value(value)
            .value_two(two)
            .op(op)
            .build()
            .expect("arg")
    })
}

fn any_entry() -> impl Strategy<Value = LinuxSyscall> {
    let names = proptest::sample::subsequence(&NAMES[..], 1..6);
    let args = prop_oneof![Just(Vec::new()), proptest::collection::vec(any_arg(), 1..4)];
    (names, any_action(), args).prop_map(|(names, (action, errno), args)| {
        let mut entry = LinuxSyscallBuilder::default()
            .names(names.into_iter().map(String::from).collect::<Vec<_>>())
            .action(action)
            .args(args)
            .build()
            .expect("entry");
        entry.set_errno_ret(errno);
        entry
    })
}

fn any_section() -> impl Strategy<Value = LinuxSeccomp> {
    let archs = proptest::sample::subsequence(
        &[Arch::ScmpArchX32, Arch::ScmpArchX86, Arch::ScmpArchArm][..],
        0..=3,
    );
    (any_action(), archs, proptest::collection::vec(any_entry(), 0..8)).prop_map(
        |((default, errno), mut archs, entries)| {
            archs.push(if cfg!(target_arch = "x86_64") {
                Arch::ScmpArchX86_64
            } else {
                Arch::ScmpArchAarch64
            });
            let mut section = LinuxSeccompBuilder::default()
                .default_action(default)
                .architectures(archs)
                .syscalls(entries)
                .build()
                .expect("section");
            section.set_default_errno_ret(errno);
            section
        },
    )
}

/// The part of a section on which libseccomp 2.5 can be trusted: two comparisons of one argument (of one entry or of
/// two entries of one call) that are not plain equality get lost in its tree, and overlapping entries with different
/// actions are answered by whichever came to lie first. Calls that an architecture lacks, or x86 has behind
/// a multiplexer only, make it forget to load the call number when they come first (the bench bundle's filter has such
/// calls further down, where they are right).
fn within_libseccomp(mut section: LinuxSeccomp) -> LinuxSeccomp {
    let mut seen: HashMap<String, (LinuxSeccompAction, Option<u32>)> = HashMap::new();
    let mut compared: BTreeSet<(String, usize)> = BTreeSet::new();
    let x86 = section
        .architectures()
        .iter()
        .flatten()
        .any(|a| *a == Arch::ScmpArchX86);
    let entries = section
        .syscalls()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .map(|mut entry| {
            let what = (entry.action(), entry.errno_ret());
            let args = entry.args().clone().unwrap_or_default();
            let plain = args.iter().all(|a| a.op() == LinuxSeccompOperator::ScmpCmpEq);
            let distinct = args.iter().map(|a| a.index()).collect::<BTreeSet<_>>().len() == args.len();
            let mut names = entry.names().clone();
            names.retain(|name| {
                syscall_number(Architecture::NATIVE, name).is_some()
                    && !(x86 && ["accept", "send", "semop", "semtimedop"].contains(&name.as_str()))
                    && *seen.entry(name.clone()).or_insert(what) == what
                    && (plain || distinct && args.iter().all(|a| compared.insert((name.clone(), a.index()))))
            });
            entry.set_names(names);
            entry
        });
    let entries = entries.collect();
    section.set_syscalls(Some(entries));
    section
}

/// The reading of the module's header, word for word, for x86_64 and x32 calls: no tables of decisions, no tree.
fn reference(seccomp: &LinuxSeccomp, x32: bool, nr: u32, args: &[u64; 6]) -> u32 {
    use LinuxSeccompOperator as O;
    let default = action_value(seccomp.default_action(), seccomp.default_errno_ret());
    let arch = if x32 {
        Architecture::X32
    } else {
        Architecture::X86_64
    };
    let mine = |call: &&LinuxSyscall| {
        call.names()
            .iter()
            .any(|name| syscall_number(arch, name) == Some(nr))
    };
    let mut best: Option<u32> = None;
    for call in seccomp.syscalls().iter().flatten().filter(mine) {
        let ret = action_value(call.action(), call.errno_ret());
        if ret == default {
            continue;
        }
        let tests: Vec<bool> = call
            .args()
            .iter()
            .flatten()
            .map(|a| {
                let cut = |v: u64| if x32 { v & 0xffff_ffff } else { v };
                let (arg, value) = (cut(args[a.index()]), cut(a.value()));
                match a.op() {
                    O::ScmpCmpNe => arg != value,
                    O::ScmpCmpLt => arg < value,
                    O::ScmpCmpLe => arg <= value,
                    O::ScmpCmpEq => arg == value,
                    O::ScmpCmpGe => arg >= value,
                    O::ScmpCmpGt => arg > value,
                    O::ScmpCmpMaskedEq => arg & value == cut(a.value_two().unwrap_or(0)),
                }
            })
            .collect();
        if tests.is_empty() {
            return ret;
        }
        let indices: BTreeSet<usize> = call.args().iter().flatten().map(LinuxSeccompArg::index).collect();
        let holds = if indices.len() == tests.len() {
            tests.iter().all(|&t| t)
        } else {
            tests.iter().any(|&t| t)
        };
        if holds && best.is_none_or(|b| (ret as i32 >> 16) < (b as i32 >> 16)) {
            best = Some(ret);
        }
    }
    best.unwrap_or(default)
}

/// Only the entries without arguments.
fn without_arguments(seccomp: &LinuxSeccomp) -> LinuxSeccomp {
    let mut section = seccomp.clone();
    let bare = seccomp
        .syscalls()
        .iter()
        .flatten()
        .filter(|c| c.args().iter().flatten().next().is_none());
    section.set_syscalls(Some(bare.cloned().collect()));
    section
}

/// Does some entry speak of the call with another action than the default?
fn decided(seccomp: &LinuxSeccomp, x32: bool, nr: u32) -> bool {
    let default = action_value(seccomp.default_action(), seccomp.default_errno_ret());
    let arch = if x32 {
        Architecture::X32
    } else {
        Architecture::X86_64
    };
    seccomp.syscalls().iter().flatten().any(|call| {
        action_value(call.action(), call.errno_ret()) != default
            && call
                .names()
                .iter()
                .any(|name| syscall_number(arch, name) == Some(nr))
    })
}

fn action_value(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    action.as_u32(errno)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_filters_agree(section in any_section()) {
        let section = within_libseccomp(section);
        agree(&section, &numbers_of(&section));
    }

    #[test]
    fn generated_filters_mean_what_they_say(section in any_section()) {
        let filter = compile(&section, &Options { native: Architecture::X86_64 });
        prop_assume!(filter.is_ok());
        let program = filter.expect("compile").program;
        let x32 = section.architectures().iter().flatten().any(|a| *a == Arch::ScmpArchX32);
        let vectors = arguments(&section);
        for nr in numbers_of(&section) {
            let is_x32 = (0x4000_0000..u32::MAX).contains(&nr);
            if is_x32 && !x32 {
                continue;
            }
            // A whole entry wins wherever it stands, so it is looked for first.
            let whole = without_arguments(&section);
            for args in &vectors {
                let expected = match reference(&whole, is_x32, nr, args) {
                    ret if decided(&whole, is_x32, nr) => ret,
                    _ => reference(&section, is_x32, nr, args),
                };
                prop_assert_eq!(run(&program, AUDITS[0], nr, args), Some(expected), "nr {:#x} args {:x?}", nr, args);
            }
        }
    }
}
