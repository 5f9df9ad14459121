//! Architectures a filter can speak of, and how the kernel names them in `seccomp_data.arch` (audit.h).

use std::fmt;

use oci_spec::runtime::Arch;

/// An architecture as system call tables see it; the number is its column in the name table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// 64-bit x86.
    X86_64 = 0,
    /// 32-bit pointers on x86_64: its calls carry bit 30 and the audit value of x86_64.
    X32 = 1,
    /// 32-bit x86.
    X86 = 2,
    /// 64-bit Arm.
    Aarch64 = 3,
    /// 32-bit Arm, EABI.
    Arm = 4,
}

/// Bit 30 of an x32 call number (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// The one this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The one this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// From the OCI name; `None`: not supported. `SCMP_ARCH_NATIVE` is `native`.
    pub fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(native),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// The OCI name.
    pub fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::X32 => "SCMP_ARCH_X32",
            Self::X86 => "SCMP_ARCH_X86",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
        }
    }

    /// The value in `seccomp_data.arch`.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Does a filter see all 64 bits of an argument?
    pub(super) fn wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.oci_name())
    }
}
