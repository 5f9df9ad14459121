//! The filter of the launch benchmarks, built here: an allow list of every known call but the privileged ones, with
//! argument rules on clone and personality, for one architecture or three.

use oci_spec::runtime::{Arch, LinuxSeccomp};
use serde_json::json;

pub(super) const THREE: [Arch; 3] = [Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
pub(super) const NATIVE: [Arch; 1] = [Arch::ScmpArchX86_64];

const DENIED: &str = "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff mount \
    umount2 pivot_root open_by_handle_at bpf perf_event_open ptrace process_vm_readv process_vm_writev setns unshare \
    acct iopl ioperm quotactl quotactl_fd add_key request_key keyctl lookup_dcookie nfsservctl personality \
    settimeofday clock_settime clock_adjtime adjtimex syslog userfaultfd move_pages mbind set_mempolicy \
    get_mempolicy fsopen fsmount fsconfig fspick move_mount open_tree mount_setattr io_uring_setup io_uring_enter \
    io_uring_register vhangup create_module query_module get_kernel_syms uselib ustat sysfs _sysctl clone clone3 \
    chroot sethostname setdomainname migrate_pages kcmp fanotify_init pidfd_getfd";

/// The section for these architectures.
pub(super) fn section(archs: &[Arch]) -> LinuxSeccomp {
    let denied: Vec<&str> = DENIED.split_whitespace().collect();
    let allowed: Vec<&str> = super::table::TABLE
        .iter()
        .filter(|row| row.1[0] >= 0 && row.1[0] < 457 && row.0 != "uretprobe" && !denied.contains(&row.0))
        .map(|row| row.0)
        .collect();
    let value = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": archs,
        "syscalls": [
            {"names": allowed, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2_114_060_288u64, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}]
    });
    serde_json::from_value(value).expect("section")
}

#[test]
fn cost() {
    use super::{Options, compile, digest, oracle};
    let best = |work: &mut dyn FnMut()| {
        (0..50)
            .map(|_| {
                let start = std::time::Instant::now();
                work();
                start.elapsed()
            })
            .min()
            .expect("rounds")
    };
    for archs in [&THREE[..], &NATIVE[..]] {
        let section = section(archs);
        let options = Options::default();
        let ours = compile(&section, &options).expect("compile").program.len();
        let theirs = oracle::libseccomp(&section).len();
        let compiled = best(&mut || drop(compile(&section, &options)));
        let digested = best(&mut || drop(digest(&section, &options)));
        let dir = std::env::temp_dir().join(format!("berth-seccomp-cost-{}", std::process::id()));
        let cache = super::Cache::open(&dir).expect("cache");
        let cached = best(&mut || drop(cache.get(&section, &options)));
        std::fs::remove_dir_all(&dir).expect("remove");
        let other = best(&mut || drop(oracle::libseccomp(&section)));
        println!(
            "{} architectures: berth {compiled:?} of which digest {digested:?}, cached {cached:?}, {ours} instructions; \
             libseccomp {other:?}, {theirs} instructions",
            archs.len()
        );
        assert!(ours < theirs, "{ours} instructions, libseccomp {theirs}");
    }
}
