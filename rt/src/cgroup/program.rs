//! Device rules as an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, and back.
//!
//! The kernel calls the program with `struct bpf_cgroup_dev_ctx { u32 access_type, major, minor }` (access in the upper
//! half of `access_type`, kind in the lower) for each open and mknod; 1 allows, 0 denies. The program takes the rules
//! from the last to the first and strikes out of r2 the kinds of access that an allowing rule has decided:
//!
//! ```text
//! r2 = access  r3 = kind  r4 = major  r5 = minor
//! rule:  if r3 != KIND goto next; if r4 != MAJOR goto next; if r5 != MINOR goto next     (what the rule names)
//!        allow:  r2 &= ~ACCESS;           if r2 != 0 goto next;  r0 = 1; exit
//!        deny:   r6 = r2; r6 &= ACCESS;   if r6 == 0 goto next;  r0 = 0; exit
//! end:   r0 = DEFAULT; exit
//! ```
//!
//! [`DeviceRules`] drops rules that can never decide, so the verifier finds no dead branch to rewrite, and
//! [`decode`] can read the very instructions back that the kernel reports.

use super::rules::{Access, DeviceKind, DeviceRule, DeviceRules};

/// One eBPF instruction, as `struct bpf_insn` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination register in the lower half, source in the upper.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

pub(crate) const LOAD_U32: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
pub(crate) const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
pub(crate) const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
pub(crate) const AND: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
pub(crate) const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
pub(crate) const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
pub(crate) const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate,
    }
}

const PROLOGUE: [Instruction; 6] = [
    instruction(LOAD_U32, 2, 1, 0, 0),
    instruction(MOVE_REGISTER, 3, 2, 0, 0),
    instruction(AND, 3, 0, 0, 0xffff),
    instruction(SHIFT_RIGHT, 2, 0, 0, 16),
    instruction(LOAD_U32, 4, 1, 4, 0),
    instruction(LOAD_U32, 5, 1, 8, 0),
];

/// BPF's numbers for the kinds (`BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`).
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// The program that decides as `rules` do.
pub(crate) fn assemble(rules: &DeviceRules) -> Vec<Instruction> {
    let mut program = PROLOGUE.to_vec();
    for rule in rules.rules.iter().rev() {
        let kind = match rule.kind {
            DeviceKind::All => None,
            DeviceKind::Block => Some(BLOCK),
            DeviceKind::Char => Some(CHAR),
        };
        // Numbers are below 2^20, so they are themselves as immediates.
        let tests: Vec<(u8, i32)> = [
            (3, kind),
            (4, rule.major.map(|n| n as i32)),
            (5, rule.minor.map(|n| n as i32)),
        ]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
        let access = i32::from(rule.access.bits());
        let decision: Vec<Instruction> = if rule.allow {
            vec![
                instruction(AND, 2, 0, 0, !access),
                instruction(JUMP_NOT_EQUAL, 2, 0, 2, 0),
            ]
        } else {
            vec![
                instruction(MOVE_REGISTER, 6, 2, 0, 0),
                instruction(AND, 6, 0, 0, access),
                instruction(JUMP_EQUAL, 6, 0, 2, 0),
            ]
        };
        for (position, (register, value)) in tests.iter().enumerate() {
            let to_next = tests.len() - position - 1 + decision.len() + 2;
            program.push(instruction(JUMP_NOT_EQUAL, *register, 0, to_next as i16, *value));
        }
        program.extend(decision);
        program.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE, 0, 0, 0, i32::from(rules.default_allow)));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// The rules of a program that [`assemble`] could have made; `None` for any other.
pub(crate) fn decode(program: &[Instruction]) -> Option<DeviceRules> {
    let mut rest = program.strip_prefix(&PROLOGUE)?;
    let mut rules = Vec::new();
    let default_allow = loop {
        if let [result, exit] = rest
            && exit.code == EXIT
        {
            break result.immediate == 1;
        }
        let mut rule = DeviceRule {
            kind: DeviceKind::All,
            ..DeviceRule::everything(false)
        };
        while let Some(test) = rest.first().filter(|test| test.code == JUMP_NOT_EQUAL) {
            match (test.registers, test.immediate) {
                (3, BLOCK) => rule.kind = DeviceKind::Block,
                (3, CHAR) => rule.kind = DeviceKind::Char,
                (4, major) => rule.major = Some(u32::try_from(major).ok()?),
                (5, minor) => rule.minor = Some(u32::try_from(minor).ok()?),
                _ => return None,
            }
            rest = &rest[1..];
        }
        let (access, length) = match rest {
            [and, ..] if and.code == AND => (u8::try_from(!and.immediate).ok()?, 4),
            [_, and, ..] => (u8::try_from(and.immediate).ok()?, 5),
            _ => return None,
        };
        rule.allow = length == 4;
        rule.access = Access::from_bits(access)?;
        rest = rest.get(length..)?;
        rules.push(rule);
    };
    rules.reverse();
    let rules = DeviceRules { default_allow, rules };
    // Only what assembles to the same instructions has been understood.
    (assemble(&rules) == program).then_some(rules)
}

#[cfg(test)]
mod tests;
