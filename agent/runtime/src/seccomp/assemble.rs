//! Decided rules laid out as classic BPF.
//!
//! The program is written from its end to its beginning: jumps go forwards only, so every target is there before
//! the jump to it, and each distance is known. Conditional jumps reach 255 instructions; where a target is further
//! away a `ja` (32 bits) is laid between. A position is counted from the end.

use super::Insn;
use super::rules::{Clause, Group, KILL_PROCESS, Kind, Leaf, Rules, Test};

const LD_W_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Farthest conditional jump.
const REACH: usize = 255;
/// A return instruction nearer than this is used again instead of written again.
const SHARE: usize = 200;

/// Index of an instruction, counted from the end of the program.
type At = usize;

struct Backwards<'a> {
    rules: &'a Rules,
    program: Vec<Insn>,
    /// The latest return of each value.
    returns: Vec<(u32, At)>,
    /// The latest code of each clause list.
    clauses: Vec<Option<At>>,
}

/// The program for `rules`.
pub(super) fn assemble(rules: &Rules) -> Vec<Insn> {
    let mut out = Backwards {
        rules,
        program: Vec::with_capacity(512),
        returns: Vec::with_capacity(8),
        clauses: vec![None; rules.clauses.len()],
    };
    let entries: Vec<(u32, At)> = rules
        .groups
        .iter()
        .rev()
        .map(|group| (group.audit, out.group(group)))
        .collect();
    let mut next = out.ret(KILL_PROCESS);
    for (audit, at) in entries {
        next = out.branch(JEQ, audit, at, next);
    }
    out.load(ARCH, next);
    out.program.reverse();
    out.program
}

impl Backwards<'_> {
    fn push(&mut self, code: u16, jt: usize, jf: usize, k: u32) -> At {
        self.program.push(Insn {
            code,
            jt: jt as u8,
            jf: jf as u8,
            k,
        });
        self.program.len() - 1
    }

    /// A place from which `target` is reached by a conditional jump, with `slack` instructions to come between.
    fn near(&mut self, target: At, slack: usize) -> At {
        let distance = self.program.len() - 1 - target;
        if distance + slack <= REACH {
            target
        } else {
            self.push(JA, 0, 0, distance as u32)
        }
    }

    fn branch(&mut self, code: u16, k: u32, holds: At, fails: At) -> At {
        let fails = self.near(fails, 1);
        let holds = self.near(holds, 0);
        let last = self.program.len() - 1;
        self.push(code, last - holds, last - fails, k)
    }

    /// Load a word, then go on at `next`.
    fn load(&mut self, offset: u32, next: At) -> At {
        let distance = self.program.len() - 1 - next;
        if distance > 0 {
            self.push(JA, 0, 0, distance as u32);
        }
        self.push(LD_W_ABS, 0, 0, offset)
    }

    fn ret(&mut self, value: u32) -> At {
        let end = self.program.len();
        let known = self.returns.iter_mut().find(|r| r.0 == value);
        if let Some(&mut (_, at)) = known
            && end - at <= SHARE
        {
            return at;
        }
        match known {
            Some(known) => known.1 = end,
            None => self.returns.push((value, end)),
        }
        self.push(RET, 0, 0, value)
    }

    fn group(&mut self, group: &Group) -> At {
        let top = self.tree(&group.ranges);
        self.load(NR, top)
    }

    /// Binary search: the ranges cover every number from the first one's start on.
    fn tree(&mut self, ranges: &[(u32, Leaf)]) -> At {
        if let [(_, leaf)] = ranges {
            return match *leaf {
                Leaf::Ret(value) => self.ret(value),
                Leaf::Clauses(list) => self.clauses(list),
            };
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let above = self.tree(high);
        let below = self.tree(low);
        self.branch(JGE, high[0].0, above, below)
    }

    fn clauses(&mut self, list: usize) -> At {
        if let Some(at) = self.clauses[list]
            && self.program.len() - at <= SHARE
        {
            return at;
        }
        let rules = self.rules;
        let (wide, clauses) = &rules.clauses[list];
        let mut next = self.ret(rules.default);
        for clause in clauses.iter().rev() {
            next = self.clause(clause, *wide, next);
        }
        self.clauses[list] = Some(next);
        next
    }

    fn clause(&mut self, clause: &Clause, wide: bool, otherwise: At) -> At {
        let mut next = self.ret(clause.ret);
        for test in clause.tests.iter().rev() {
            let (holds, fails) = if test.op.negate {
                (otherwise, next)
            } else {
                (next, otherwise)
            };
            next = self.test(test, wide, holds, fails);
        }
        next
    }

    fn test(&mut self, test: &Test, wide: bool, holds: At, fails: At) -> At {
        let low_offset = ARGS + 8 * test.index as u32;
        let high_offset = low_offset + 4;
        let code = match test.op.kind {
            Kind::Eq => JEQ,
            Kind::Gt => JGT,
            Kind::Ge => JGE,
        };
        let branch = self.branch(code, test.value as u32, holds, fails);
        let low = self.masked(low_offset, test.mask as u32, branch);
        if !wide {
            return low;
        }
        let value = (test.value >> 32) as u32;
        let equal = match test.op.kind {
            Kind::Eq => self.branch(JEQ, value, low, fails),
            Kind::Gt | Kind::Ge => {
                let not_above = self.branch(JEQ, value, low, fails);
                self.branch(JGT, value, holds, not_above)
            }
        };
        self.masked(high_offset, (test.mask >> 32) as u32, equal)
    }

    fn masked(&mut self, offset: u32, mask: u32, next: At) -> At {
        let next = if mask == u32::MAX {
            next
        } else {
            self.push(AND_K, 0, 0, mask)
        };
        self.load(offset, next)
    }
}
