//! A compiled filter run in user space: what the kernel would answer, without asking it.
//!
//! Understands the instructions of classic BPF that seccomp programs use (loads from `seccomp_data`, `and`, jumps,
//! returns); anything else, and running off the end, is `None`.

use super::{Architecture, Filter, Insn};

/// `SECCOMP_RET_*` with its data for one call; `None`: not a seccomp program.
pub(super) fn run(program: &[Insn], audit: u32, nr: u32, args: &[u64; 6]) -> Option<u32> {
    let mut at = 0usize;
    let mut acc = 0u32;
    loop {
        let insn = program.get(at)?;
        at += 1;
        let jump = |holds: bool| usize::from(if holds { insn.jt } else { insn.jf });
        match insn.code {
            0x20 => {
                acc = match insn.k {
                    0 => nr,
                    4 => audit,
                    8 | 12 => 0,
                    k if k < 64 && k % 4 == 0 => {
                        let word = args[(k as usize - 16) / 8];
                        if k % 8 == 0 {
                            word as u32
                        } else {
                            (word >> 32) as u32
                        }
                    }
                    _ => return None,
                }
            }
            0x54 => acc &= insn.k,
            0x05 => at += insn.k as usize,
            0x15 => at += jump(acc == insn.k),
            0x25 => at += jump(acc > insn.k),
            0x35 => at += jump(acc >= insn.k),
            0x45 => at += jump(acc & insn.k != 0),
            0x06 => return Some(insn.k),
            _ => return None,
        }
    }
}

impl Filter {
    /// What the kernel answers to call `nr` of `arch` with `args`: a `SECCOMP_RET_*` value with its data in the low
    /// 16 bits. `None`: the program is not one that the compiler of this module makes.
    pub fn evaluate(&self, arch: Architecture, nr: u32, args: &[u64; 6]) -> Option<u32> {
        run(&self.program, arch.audit(), nr, args)
    }
}
