//! Kernel arguments of documents and profiles, and how they stand in a command line that is there.

use super::format::{extlinux, grub, joined, u_boot, yocto};
use super::*;

fn argument(text: &str) -> Argument {
    Argument {
        text: text.into(),
        knob: "kernel-arguments",
    }
}

fn state(wanted: &str, line: &str) -> Vec<InForce> {
    let wanted: Vec<Argument> = wanted.split(' ').map(argument).collect();
    compare(&wanted, line)
        .into_iter()
        .map(|one| one.in_force)
        .collect()
}

#[test]
fn quotes_hold_words_together() {
    assert_eq!(split("a  b=\"c d\" \"e=f g\"\n"), ["a", "b=\"c d\"", "\"e=f g\""]);
    assert_eq!(split("").len(), 0);
    let compared = compare(&[argument("e=\"f g\"")], "\"e=f g\"");
    assert_eq!(compared[0].in_force, InForce::Yes);
}

#[test]
fn arguments_are_compared_as_the_kernel_reads_them() {
    use InForce::{Other, Pending, Yes};
    for (wanted, line, expected) in [
        ("nohz_full=2-3", "nohz-full=2,3", Yes),
        ("nohz_full=2-3", "nohz_full=1-3", Other),
        ("nohz_full=2-3", "nohz_full=2-3 nohz_full=1", Other),
        ("nohz_full=2-3", "quiet", Pending),
        ("systemd.cpu_affinity=0,1", "systemd.cpu_affinity=0-1", Yes),
        (
            "isolcpus=domain,managed_irq,2-3",
            "isolcpus=managed_irq,domain,2,3",
            Yes,
        ),
        ("isolcpus=domain,2-3", "isolcpus=2-3", Yes),
        ("isolcpus=managed_irq,2-3", "isolcpus=2-3", Other),
        ("nosoftlockup", "nosoftlockup", Yes),
        ("rcutree.kthread_prio=11", "rcutree.kthread-prio=11", Yes),
        ("idle=poll", "idle=halt", Other),
    ] {
        assert_eq!(state(wanted, line), [expected], "{wanted} on `{line}`");
    }
}

#[test]
fn counts_belong_to_the_size_before_them() {
    use InForce::{Other, Pending, Yes};
    let wanted = "hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=8";
    assert_eq!(
        state(wanted, "hugepagesz=2M hugepages=8 hugepagesz=1G hugepages=4"),
        [Yes; 4]
    );
    assert_eq!(
        state(wanted, "hugepagesz=1G hugepages=8"),
        [Yes, Other, Pending, Pending]
    );
    assert_eq!(state(wanted, "hugepages=4"), [Pending; 4]);
}

#[test]
fn loaders_get_what_they_take() {
    let current = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 quiet nohz_full=1 initrd=a";
    let compared = compare(&[argument("nohz_full=2-3"), argument("x=\"a $b\"")], current);
    assert_eq!(joined(&compared), "nohz_full=2-3 x=\"a $b\"");
    assert_eq!(
        grub(&compared),
        r#"GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX nohz_full=2-3 x=\"a \$b\"""#
    );
    assert_eq!(yocto(&compared), r#"APPEND:append = " nohz_full=2-3 x=\"a $b\"""#);
    assert_eq!(
        extlinux(&compared, current),
        r#"APPEND root=/dev/sda1 quiet nohz_full=2-3 x="a $b""#
    );
    let quoted = compare(&[argument("x=it's")], "ro");
    assert_eq!(u_boot(&quoted, "ro"), r"setenv bootargs 'ro x=it'\''s'");
}

#[test]
fn nodes_of_pages_are_asked_for_at_boot() {
    let spec: NodeSpec = serde_json::from_str(
        r#"{"hugepages":{"pages":[{"size":"1G","count":2,"node":0},{"size":"1G","count":3,"node":1},{"size":"2M","count":9,"boot":false}]}}"#,
    )
    .unwrap();
    let platform = Platform {
        arch: Arch::Arm64,
        vendor: Vendor::Other,
        pmu_name: None,
        realtime: true,
    };
    let texts: Vec<String> = arguments(&spec, &Parts::default(), &platform)
        .into_iter()
        .map(|argument| argument.text)
        .collect();
    assert_eq!(texts, ["hugepagesz=1G", "hugepages=0:2,1:3"]);
}

#[test]
fn every_argument_names_a_knob() {
    let spec: NodeSpec = serde_json::from_str(
        r#"{"hints":{"realTime":true,"highPowerConsumption":true},"frequency":{"driver":"recommended"},"interrupts":{"threaded":true},
            "kernel":{"iommuPassthrough":true,"arguments":["a"]},"hugepages":{"defaultSize":"2M","pages":[{"size":"2M","count":1}]},
            "realtime":{"preemption":"full"}}"#,
    )
    .unwrap();
    let parts = Parts {
        housekeeping: "0".parse().unwrap(),
        isolated: "1".parse().unwrap(),
    };
    let platform = Platform {
        arch: Arch::X86,
        vendor: Vendor::Intel,
        pmu_name: Some("icelake".into()),
        realtime: false,
    };
    let all = arguments(&spec.effective(), &parts, &platform);
    assert!(all.len() > 20, "{all:?}");
    for argument in all {
        assert!(crate::knob::find(argument.knob).is_some(), "{argument:?}");
    }
}
