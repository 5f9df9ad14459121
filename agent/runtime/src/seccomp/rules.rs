//! From the OCI section to one decision for each call number of each architecture. Pure.
//!
//! Invariant: after [`Rules::collect`] every decision is final; the assembler only lays it out.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

use super::arch::{Architecture, X32_BIT};
use super::table::{MULTIPLEXED, Row, TABLE};
use super::{Options, SeccompError};

pub(super) const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// `EPERM`, what an ERRNO action without `errnoRet` returns (and the message of TRACE), as runc has it.
const EPERM: u32 = 1;
/// Largest errno a system call can return (`MAX_ERRNO` of the kernel).
const MAX_ERRNO: u32 = 4095;

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) index: usize,
    pub(super) op: Op,
    /// The value compared with.
    pub(super) value: u64,
    /// Laid over the argument first; all ones for every operator but MASKED_EQ.
    pub(super) mask: u64,
}

/// The four comparisons classic BPF needs; `negate` turns EQ into NE, GE into LT, GT into LE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Op {
    pub(super) kind: Kind,
    pub(super) negate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Eq,
    Gt,
    Ge,
}

/// All tests must hold, then `ret` is returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clause {
    pub(super) tests: Vec<Test>,
    pub(super) ret: u32,
}

/// What happens to one call number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaf {
    /// Return at once.
    Ret(u32),
    /// Try the clauses of that index in order, else the default.
    Clauses(usize),
}

/// Decisions of one audit architecture: from each number on, up to the next one, this leaf.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) audit: u32,
    pub(super) ranges: Vec<(u32, Leaf)>,
}

/// The whole filter, decided.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) default: u32,
    pub(super) groups: Vec<Group>,
    /// Clause lists with the width of their arguments (true: 64 bits).
    pub(super) clauses: Vec<(bool, Vec<Clause>)>,
    pub(super) notifies: bool,
}

/// One entry for one number of one architecture, before sorting.
#[derive(Clone, Copy)]
struct Item {
    nr: u32,
    entry: u32,
    /// Sub-call of a multiplexed call, which replaces the tests on argument 0.
    sub: Option<u32>,
}

struct Entry {
    ret: u32,
    clauses: Vec<Clause>,
}

pub(super) fn lookup(name: &str) -> Option<&'static Row> {
    TABLE
        .binary_search_by(|row| row.0.cmp(name))
        .ok()
        .map(|i| &TABLE[i])
}

impl Rules {
    pub(super) fn collect(seccomp: &LinuxSeccomp, options: &Options) -> Result<Self, SeccompError> {
        let default = action(seccomp.default_action(), seccomp.default_errno_ret(), &|| {
            ".defaultErrnoRet".into()
        })?;
        if default == NOTIFY {
            return Err(SeccompError::Notify {
                what: "SCMP_ACT_NOTIFY cannot be the default action".into(),
            });
        }
        let archs = architectures(seccomp, options)?;
        let mut items: [Vec<Item>; 5] = Default::default();
        let mut entries = Vec::new();
        let mut notifies = false;
        for (position, call) in seccomp.syscalls().iter().flatten().enumerate() {
            let ret = action(call.action(), call.errno_ret(), &|| {
                format!(".syscalls[{position}].errnoRet")
            })?;
            let clauses = clauses(call.args().as_deref().unwrap_or_default(), ret, position)?;
            let same_as_default = ret == default;
            let entry = entries.len() as u32;
            for name in call.names() {
                let row = lookup(name).ok_or_else(|| unknown(name))?;
                if ret == NOTIFY && name == "write" {
                    return Err(SeccompError::Notify {
                        what: "SCMP_ACT_NOTIFY on `write`: the runtime itself must write to hand the descriptor over"
                            .into(),
                    });
                }
                if same_as_default {
                    continue;
                }
                notifies |= ret == NOTIFY;
                for &arch in &archs {
                    let list = &mut items[arch as usize];
                    if let Ok(nr) = u32::try_from(row.1[arch as usize]) {
                        list.push(Item { nr, entry, sub: None });
                    }
                    if arch == Architecture::X86
                        && let Ok(i) = MULTIPLEXED.binary_search_by(|m| m.0.cmp(name))
                    {
                        list.push(Item {
                            nr: MULTIPLEXED[i].1,
                            entry,
                            sub: Some(MULTIPLEXED[i].2),
                        });
                    }
                }
            }
            entries.push(Entry { ret, clauses });
        }
        let mut rules = Self {
            default,
            groups: Vec::new(),
            clauses: Vec::new(),
            notifies,
        };
        rules.group(&archs, items, &entries);
        Ok(rules)
    }

    fn group(&mut self, archs: &[Architecture], mut items: [Vec<Item>; 5], entries: &[Entry]) {
        let x32 = archs.contains(&Architecture::X32);
        for &arch in archs.iter().filter(|&&a| a != Architecture::X32) {
            let mut ranges = vec![(0, Leaf::Ret(self.default))];
            self.decide(arch, &mut items[arch as usize], entries, &mut ranges);
            if arch == Architecture::X86_64 {
                if x32 {
                    self.decide(
                        Architecture::X32,
                        &mut items[Architecture::X32 as usize],
                        entries,
                        &mut ranges,
                    );
                } else {
                    // -1 is what a tracer writes to skip a call: not an x32 call.
                    push(&mut ranges, X32_BIT, Leaf::Ret(KILL_PROCESS));
                    push(&mut ranges, u32::MAX, Leaf::Ret(self.default));
                }
            }
            self.groups.push(Group {
                audit: arch.audit(),
                ranges,
            });
        }
    }

    /// Append the decisions of one architecture's numbers to `ranges`, in rising order.
    fn decide(
        &mut self,
        arch: Architecture,
        items: &mut [Item],
        entries: &[Entry],
        ranges: &mut Vec<(u32, Leaf)>,
    ) {
        items.sort_by_key(|item| (item.nr, item.entry)); // stable: sub-calls stay in the order given
        for same in items.chunk_by(|a, b| a.nr == b.nr) {
            let whole = same
                .iter()
                .find(|i| i.sub.is_none() && entries[i.entry as usize].clauses.is_empty());
            let leaf = match whole {
                Some(item) => Leaf::Ret(entries[item.entry as usize].ret),
                None => self.clause_list(arch, same, entries),
            };
            push(ranges, same[0].nr, leaf);
            push(ranges, same[0].nr.wrapping_add(1), Leaf::Ret(self.default));
        }
    }

    fn clause_list(&mut self, arch: Architecture, items: &[Item], entries: &[Entry]) -> Leaf {
        let mut list: Vec<Clause> = Vec::new();
        for item in items {
            let entry = &entries[item.entry as usize];
            match item.sub {
                None => list.extend(entry.clauses.iter().cloned()),
                Some(sub) => {
                    let op = Op {
                        kind: Kind::Eq,
                        negate: false,
                    };
                    let first = Test {
                        index: 0,
                        op,
                        value: u64::from(sub),
                        mask: u64::MAX,
                    };
                    let bare = [Clause {
                        tests: Vec::new(),
                        ret: entry.ret,
                    }];
                    let clauses = if entry.clauses.is_empty() {
                        &bare[..]
                    } else {
                        &entry.clauses[..]
                    };
                    list.extend(clauses.iter().map(|clause| {
                        let rest = clause.tests.iter().filter(|t| t.index != 0).copied();
                        Clause {
                            tests: std::iter::once(first).chain(rest).collect(),
                            ret: clause.ret,
                        }
                    }));
                }
            }
        }
        list.sort_by_key(|clause| severity(clause.ret));
        let list = (arch.wide(), list);
        let index = self
            .clauses
            .iter()
            .position(|known| *known == list)
            .unwrap_or_else(|| {
                self.clauses.push(list);
                self.clauses.len() - 1
            });
        Leaf::Clauses(index)
    }
}

/// From `nr` on this leaf; nothing is added where it is in force already, and what began there is replaced.
fn push(ranges: &mut Vec<(u32, Leaf)>, nr: u32, leaf: Leaf) {
    if ranges.last().is_some_and(|last| last.0 == nr) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.1 != leaf) {
        ranges.push((nr, leaf));
    }
}

/// The kernel's order of precedence: smaller is stricter.
fn severity(ret: u32) -> i32 {
    (ret & 0xffff_0000) as i32
}

fn architectures(seccomp: &LinuxSeccomp, options: &Options) -> Result<Vec<Architecture>, SeccompError> {
    let mut archs = Vec::new();
    for &arch in seccomp.architectures().iter().flatten() {
        let known = Architecture::from_oci(arch, options.native).ok_or_else(|| {
            SeccompError::UnsupportedArchitecture {
                name: arch.to_string(),
            }
        })?;
        if !archs.contains(&known) {
            archs.push(known);
        }
    }
    if archs.is_empty() {
        archs.push(options.native);
    }
    // First in the dispatch: the native architecture takes one comparison.
    let native = archs
        .iter()
        .position(|&a| a == options.native)
        .ok_or(SeccompError::NativeMissing {
            native: options.native,
        })?;
    archs.swap(0, native);
    Ok(archs)
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    place: &dyn Fn() -> String,
) -> Result<u32, SeccompError> {
    use LinuxSeccompAction as A;
    let (base, limit) = match action {
        A::ScmpActErrno => (ERRNO, MAX_ERRNO),
        A::ScmpActTrace => (TRACE, 0xffff),
        other => {
            if let Some(errno) = errno {
                let what = format!("{errno} is given, but {other} returns no errno");
                return Err(SeccompError::Errno { place: place(), what });
            }
            return Ok(match other {
                A::ScmpActKill | A::ScmpActKillThread => KILL_THREAD,
                A::ScmpActKillProcess => KILL_PROCESS,
                A::ScmpActTrap => TRAP,
                A::ScmpActNotify => NOTIFY,
                A::ScmpActLog => LOG,
                A::ScmpActAllow => ALLOW,
                A::ScmpActErrno => ERRNO,
                A::ScmpActTrace => TRACE,
            });
        }
    };
    let errno = errno.unwrap_or(EPERM);
    if errno > limit {
        return Err(SeccompError::Errno {
            place: place(),
            what: format!("{errno} is over {limit}"),
        });
    }
    Ok(base | errno)
}

fn clauses(args: &[LinuxSeccompArg], ret: u32, entry: usize) -> Result<Vec<Clause>, SeccompError> {
    let mut tests = Vec::with_capacity(args.len());
    let mut seen = [false; 6];
    let mut twice = false;
    for arg in args {
        let index = arg.index();
        let slot = seen
            .get_mut(index)
            .ok_or(SeccompError::ArgumentIndex { entry, index })?;
        twice |= std::mem::replace(slot, true);
        tests.push(test(arg));
    }
    Ok(match (tests.is_empty(), twice) {
        (true, _) => Vec::new(),
        (false, false) => vec![Clause { tests, ret }],
        (false, true) => tests
            .into_iter()
            .map(|t| Clause { tests: vec![t], ret })
            .collect(),
    })
}

fn test(arg: &LinuxSeccompArg) -> Test {
    use LinuxSeccompOperator as O;
    let (kind, negate) = match arg.op() {
        O::ScmpCmpNe => (Kind::Eq, true),
        O::ScmpCmpLt => (Kind::Ge, true),
        O::ScmpCmpLe => (Kind::Gt, true),
        O::ScmpCmpEq | O::ScmpCmpMaskedEq => (Kind::Eq, false),
        O::ScmpCmpGe => (Kind::Ge, false),
        O::ScmpCmpGt => (Kind::Gt, false),
    };
    let (value, mask) = match arg.op() {
        O::ScmpCmpMaskedEq => (arg.value_two().unwrap_or(0), arg.value()),
        _ => (arg.value(), u64::MAX),
    };
    Test {
        index: arg.index(),
        op: Op { kind, negate },
        value,
        mask,
    }
}

fn unknown(name: &str) -> SeccompError {
    let nearest = TABLE
        .iter()
        .map(|row| (distance(name, row.0), row.0))
        .min()
        .filter(|&(d, known)| d <= 1 + known.len() / 4)
        .map(|(_, known)| known);
    SeccompError::UnknownSyscall {
        name: name.into(),
        nearest,
    }
}

/// Edit distance (insert, delete, replace).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_the_multiplexed_names_are_in_it() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(MULTIPLEXED.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(MULTIPLEXED.iter().all(|m| lookup(m.0).is_some()));
    }

    #[test]
    fn ranges_never_repeat_a_leaf() {
        let mut ranges = vec![(0, Leaf::Ret(1))];
        for (nr, leaf) in [(0, 2), (1, 1), (1, 2), (2, 1), (5, 1), (6, 2), (7, 1)] {
            push(&mut ranges, nr, Leaf::Ret(leaf));
        }
        let expected = [
            (0, Leaf::Ret(2)),
            (2, Leaf::Ret(1)),
            (6, Leaf::Ret(2)),
            (7, Leaf::Ret(1)),
        ];
        assert_eq!(ranges, expected);
    }

    #[test]
    fn a_misspelt_name_gets_its_neighbour() {
        let table = [
            ("opnat", Some("openat")),
            ("sched_setatr", Some("sched_setattr")),
            ("zzzzzzzzzzzz", None),
        ];
        for (name, nearest) in table {
            assert_eq!(
                unknown(name),
                SeccompError::UnknownSyscall {
                    name: name.into(),
                    nearest
                }
            );
        }
    }
}
