//! The program does what the rules say (run by a small interpreter, on any rules), is read back as the same rules, and is
//! taken and given back unchanged by the kernel of this machine.

use super::*;
use crate::cgroup::bpf;
use proptest::prelude::*;

/// Runs a program of the few instructions that are used; `None` for anything else or an endless one.
fn run(program: &[Instruction], context: [u32; 3]) -> Option<u64> {
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    for _ in 0..10_000 {
        let now = program.get(at)?;
        let destination = usize::from(now.registers & 0xf);
        let source = usize::from(now.registers >> 4);
        let immediate = i64::from(now.immediate) as u64;
        at += 1;
        match now.code {
            LOAD_U32 => {
                registers[destination] = u64::from(*context.get(usize::try_from(now.offset).ok()? / 4)?)
            }
            MOVE_REGISTER => registers[destination] = registers[source],
            MOVE => registers[destination] = immediate,
            AND => registers[destination] &= immediate,
            SHIFT_RIGHT => registers[destination] >>= immediate,
            JUMP_NOT_EQUAL if registers[destination] != immediate => {
                at = at.checked_add_signed(now.offset.into())?
            }
            JUMP_EQUAL if registers[destination] == immediate => {
                at = at.checked_add_signed(now.offset.into())?
            }
            JUMP_NOT_EQUAL | JUMP_EQUAL => {}
            EXIT => return Some(registers[0]),
            _ => return None,
        }
    }
    None
}

fn allows(program: &[Instruction], kind: DeviceKind, major: u32, minor: u32, access: u8) -> Option<bool> {
    let kind = if kind == DeviceKind::Block { 1 } else { 2 };
    run(program, [u32::from(access) << 16 | kind, major, minor]).map(|answer| answer == 1)
}

fn rule() -> impl Strategy<Value = DeviceRule> {
    let kind = prop_oneof![
        Just(DeviceKind::All),
        Just(DeviceKind::Block),
        Just(DeviceKind::Char)
    ];
    let number = || proptest::option::of(0u32..3);
    (any::<bool>(), kind, number(), number(), 1u8..=7).prop_map(|(allow, kind, major, minor, access)| {
        let access = Access::from_bits(access).unwrap();
        DeviceRule {
            allow,
            kind,
            major,
            minor,
            access,
        }
    })
}

/// What the rules mean, said as plainly as possible and apart from the lists that drop rules.
fn meaning(rules: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32, access: u8) -> bool {
    [1u8, 2, 4]
        .into_iter()
        .filter(|bit| access & bit != 0)
        .all(|bit| {
            let mut allowed = false;
            for rule in rules {
                let device = (rule.kind == DeviceKind::All || rule.kind == kind)
                    && rule.major.is_none_or(|number| number == major)
                    && rule.minor.is_none_or(|number| number == minor);
                if device && rule.access.bits() & bit != 0 {
                    allowed = rule.allow;
                }
            }
            allowed
        })
}

proptest! {
    #[test]
    fn the_program_means_what_the_rules_mean(rules in proptest::collection::vec(rule(), 0..10)) {
        let list = DeviceRules::of(&rules);
        let program = assemble(&list);
        prop_assert_eq!(decode(&program), Some(list.clone()));
        for kind in [DeviceKind::Block, DeviceKind::Char] {
            for (major, minor) in (0..4).flat_map(|major| (0..4).map(move |minor| (major, minor))) {
                for access in 1..=7u8 {
                    let expected = meaning(&rules, kind, major, minor, access);
                    prop_assert_eq!(allows(&program, kind, major, minor, access), Some(expected));
                    let access = Access::from_bits(access).unwrap();
                    prop_assert_eq!(list.allows(kind, major, minor, access), expected);
                }
            }
        }
    }

    #[test]
    fn other_programs_are_not_taken_for_ours(at in 0usize..20, code in any::<u8>(), immediate in any::<i32>()) {
        let device = DeviceRule::device(true, DeviceKind::Char, 1, 3, Access::ALL);
        let mut program = assemble(&DeviceRules::of(&[device, DeviceRule { allow: false, minor: None, ..device }, device]));
        let length = program.len();
        program[at % length].code = code;
        program[at % length].immediate = immediate;
        if let Some(rules) = decode(&program) {
            prop_assert_eq!(assemble(&rules), program);
        }
    }
}

#[test]
fn the_kernel_takes_the_program_and_gives_it_back_unchanged() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..200 {
        let rules = proptest::collection::vec(rule(), 0..10)
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let program = assemble(&DeviceRules::of(&rules));
        let loaded = bpf::load(&program).unwrap_or_else(|error| panic!("{rules:?}: {error}"));
        assert_eq!(bpf::instructions(&loaded).unwrap(), program, "{rules:?}");
    }
    let endless = [Instruction {
        code: 0x05,
        registers: 0,
        offset: -1,
        immediate: 0,
    }];
    let error = bpf::load(&endless).unwrap_err();
    assert!(!error.log.is_empty(), "{error}");
}
