//! Profiles and the kernel arguments that the operator's rules give for them, by architecture and maker.

use super::*;
use crate::cmdline::{Arch, Parts, Platform, Vendor, arguments};

const INTEL: Platform = platform(Arch::X86, Vendor::Intel);
const AMD: Platform = platform(Arch::X86, Vendor::Amd);
const ARM: Platform = platform(Arch::Arm64, Vendor::Other);

const fn platform(arch: Arch, vendor: Vendor) -> Platform {
    Platform {
        arch,
        vendor,
        pmu_name: None,
        realtime: false,
    }
}

fn profile(json: &str) -> PerformanceProfileSpec {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The arguments, sorted but for the pairs of huge pages.
fn given(json: &str, platform: &Platform) -> Vec<String> {
    let spec = profile(json).to_node(&BTreeMap::new()).effective();
    let parts = Parts {
        housekeeping: spec
            .cpus
            .housekeeping
            .clone()
            .unwrap()
            .union(&spec.cpus.shared.clone().unwrap_or_default()),
        isolated: spec.cpus.isolated.clone().unwrap(),
    };
    let (pages, mut rest): (Vec<String>, Vec<String>) = arguments(&spec, &parts, platform)
        .into_iter()
        .map(|argument| argument.text)
        .partition(|text| text.contains("hugepages"));
    rest.sort();
    rest.into_iter().chain(pages).collect()
}

fn assert_same(json: &str, platform: &Platform, parts: &[&str]) {
    let line = parts.join(" ");
    let (pages, mut wanted): (Vec<&str>, Vec<&str>) = line
        .split_whitespace()
        .partition(|text| text.contains("hugepages"));
    wanted.sort_unstable();
    wanted.extend(pages);
    assert_eq!(given(json, platform), wanted, "{json} on {platform:?}");
}

/// What every profile of isolated 2-3 and reserved 0-1 gives.
const ALWAYS: &str =
    "nohz=on rcu_nocbs=2-3 tuned.non_isolcpus=00000003 systemd.cpu_affinity=0,1 nohz_full=2-3 skew_tick=1";
const MANAGED: &str = "isolcpus=managed_irq,2-3";
const REALTIME: &str = "nosoftlockup rcutree.kthread_prio=11";
const REALTIME_X86: &str = "tsc=reliable nmi_watchdog=0 mce=off";
const INTEL_IOMMU: &str = "intel_iommu=on iommu=pt";
const CPUS: &str = r#""cpu":{"isolated":"2-3","reserved":"0-1"}"#;

#[test]
fn real_time_is_on_unless_it_is_said_off() {
    for hints in [
        "",
        r#","workloadHints":{}"#,
        r#","workloadHints":{"realTime":true}"#,
    ] {
        let json = format!("{{{CPUS}{hints}}}");
        assert_same(
            &json,
            &INTEL,
            &[
                ALWAYS,
                MANAGED,
                REALTIME,
                REALTIME_X86,
                INTEL_IOMMU,
                "intel_pstate=disable",
            ],
        );
        assert_same(
            &json,
            &AMD,
            &[
                ALWAYS,
                MANAGED,
                REALTIME,
                REALTIME_X86,
                "iommu=pt amd_pstate=guided",
            ],
        );
        assert_same(&json, &ARM, &[ALWAYS, MANAGED, REALTIME]);
    }
    let json = format!(r#"{{{CPUS},"workloadHints":{{"realTime":false}}}}"#);
    assert_same(
        &json,
        &INTEL,
        &[ALWAYS, MANAGED, INTEL_IOMMU, "intel_pstate=disable"],
    );
    assert_same(&json, &AMD, &[ALWAYS, MANAGED, "iommu=pt amd_pstate=guided"]);
    assert_same(&json, &ARM, &[ALWAYS, MANAGED]);
}

#[test]
fn intel_pstate_is_active_since_ice_lake() {
    let json = format!(r#"{{{CPUS},"workloadHints":{{"realTime":false}}}}"#);
    for (name, mode) in [
        ("skylake", "disable"),
        ("broadwell", "disable"),
        ("icelake", "active"),
        ("sapphire_rapids", "active"),
    ] {
        let platform = Platform {
            pmu_name: Some(name.into()),
            ..INTEL
        };
        assert_same(
            &json,
            &platform,
            &[ALWAYS, MANAGED, INTEL_IOMMU, &format!("intel_pstate={mode}")],
        );
    }
}

#[test]
fn power_hints_and_frequencies() {
    let high = format!(r#"{{{CPUS},"workloadHints":{{"highPowerConsumption":true,"realTime":false}}}}"#);
    assert_same(
        &high,
        &INTEL,
        &[
            ALWAYS,
            MANAGED,
            INTEL_IOMMU,
            "intel_pstate=disable processor.max_cstate=1 intel_idle.max_cstate=0",
        ],
    );
    assert_same(
        &high,
        &AMD,
        &[
            ALWAYS,
            MANAGED,
            "iommu=pt amd_pstate=guided processor.max_cstate=1",
        ],
    );
    assert_same(&high, &ARM, &[ALWAYS, MANAGED]);
    let both = format!(r#"{{{CPUS},"workloadHints":{{"highPowerConsumption":true}}}}"#);
    assert_same(
        &both,
        &AMD,
        &[
            ALWAYS,
            MANAGED,
            REALTIME,
            REALTIME_X86,
            "iommu=pt amd_pstate=guided processor.max_cstate=1 idle=poll",
        ],
    );
    let per_pod = format!(r#"{{{CPUS},"workloadHints":{{"perPodPowerManagement":true,"realTime":false}}}}"#);
    assert_same(
        &per_pod,
        &INTEL,
        &[ALWAYS, MANAGED, INTEL_IOMMU, "intel_pstate=passive"],
    );
    assert_same(&per_pod, &AMD, &[ALWAYS, MANAGED, "iommu=pt amd_pstate=passive"]);
    let tuned = format!(
        r#"{{{CPUS},"workloadHints":{{"realTime":false}},"hardwareTuning":{{"isolatedCpuFreq":2500000,"reservedCpuFreq":2800000}}}}"#
    );
    assert_same(
        &tuned,
        &INTEL,
        &[ALWAYS, MANAGED, INTEL_IOMMU, "intel_pstate=active"],
    );
    let node = profile(&tuned).to_node(&BTreeMap::new());
    let max = |of: &FrequencyOf| of.max.map(KiloHertz::get);
    assert_eq!(
        (max(&node.frequency.isolated), max(&node.frequency.housekeeping)),
        (Some(2_500_000), Some(2_800_000))
    );
}

#[test]
fn isolation_by_the_scheduler_shared_cpus_and_dpdk() {
    let json = r#"{"cpu":{"isolated":"2-3","reserved":"0-1","balanceIsolated":false}}"#;
    assert_same(json, &ARM, &[ALWAYS, "isolcpus=domain,managed_irq,2-3", REALTIME]);
    let json =
        r#"{"cpu":{"isolated":"4-7","reserved":"0,2","shared":"1,3"},"workloadHints":{"mixedCpus":true}}"#;
    assert_same(
        json,
        &ARM,
        &[
            "nohz=on rcu_nocbs=4-7 tuned.non_isolcpus=0000000f systemd.cpu_affinity=0,1,2,3 nohz_full=4-7 skew_tick=1",
            "isolcpus=managed_irq,4-7",
            REALTIME,
        ],
    );
    let json = r#"{"cpu":{"isolated":"2-3","reserved":"0-1","ovsDpdk":"4-5"}}"#;
    assert_same(
        json,
        &ARM,
        &[
            "nohz=on rcu_nocbs=2-5 tuned.non_isolcpus=00000003 systemd.cpu_affinity=0,1 nohz_full=2-5 skew_tick=1",
            "isolcpus=managed_irq,2-5 irqaffinity=0-3",
            REALTIME,
        ],
    );
}

#[test]
fn huge_pages() {
    let with =
        |pages: &str| format!(r#"{{{CPUS},"workloadHints":{{"realTime":false}},"hugepages":{pages}}}"#);
    for (pages, wanted) in [
        (
            r#"{"defaultHugepagesSize":"1G","pages":[{"size":"1G","count":4},{"size":"2M","count":128}]}"#,
            "default_hugepagesz=1G hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=128",
        ),
        // Those of a node are not for the command line; the kernel is made to have files for 2M.
        (
            r#"{"defaultHugepagesSize":"1G","pages":[{"size":"1G","count":1,"node":0},{"size":"2M","count":128}]}"#,
            "default_hugepagesz=1G hugepagesz=2M hugepages=128",
        ),
        (
            r#"{"defaultHugepagesSize":"1G","pages":[{"size":"1G","count":4},{"size":"2M","count":128,"node":0}]}"#,
            "default_hugepagesz=1G hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=0",
        ),
        (
            r#"{"defaultHugepagesSize":"2M","pages":[{"size":"2M","count":128,"node":0}]}"#,
            "default_hugepagesz=2M",
        ),
        (r#"{"defaultHugepagesSize":"2M"}"#, "default_hugepagesz=2M"),
        (
            r#"{"defaultHugepagesSize":"512M","pages":[{"size":"512M","count":2}]}"#,
            "default_hugepagesz=512M hugepagesz=512M hugepages=2",
        ),
    ] {
        assert_same(&with(pages), &ARM, &[ALWAYS, MANAGED, wanted]);
    }
}

#[test]
fn additional_arguments_stand_once() {
    let json = format!(r#"{{{CPUS},"additionalKernelArgs":["audit=0","nmi_watchdog=0","idle=poll"]}}"#);
    assert_same(
        &json,
        &INTEL,
        &[
            ALWAYS,
            MANAGED,
            REALTIME,
            REALTIME_X86,
            INTEL_IOMMU,
            "intel_pstate=disable audit=0 idle=poll",
        ],
    );
}

#[test]
fn what_the_operator_refuses_is_refused() {
    for (json, path) in [
        (r#"{}"#.to_owned(), "spec.cpu.reserved"),
        (
            r#"{"cpu":{"isolated":"","reserved":"0"}}"#.to_owned(),
            "spec.cpu.isolated",
        ),
        (
            format!(r#"{{{CPUS},"hugepages":{{"pages":[{{"size":"2M","count":1}}]}}}}"#),
            "spec.hugepages",
        ),
        (
            format!(r#"{{{CPUS},"hugepages":{{"defaultHugepagesSize":"512M"}}}}"#),
            "spec.hugepages.defaultHugepagesSize",
        ),
        (
            format!(r#"{{{CPUS},"kernelPageSize":"64k","hugepages":{{"defaultHugepagesSize":"1G"}}}}"#),
            "spec.hugepages.defaultHugepagesSize",
        ),
        (
            format!(r#"{{{CPUS},"kernelPageSize":"16k"}}"#),
            "spec.kernelPageSize",
        ),
        (
            format!(r#"{{{CPUS},"kernelPageSize":"64k","realTimeKernel":{{"enabled":true}}}}"#),
            "spec.kernelPageSize",
        ),
        (
            format!(r#"{{{CPUS},"hardwareTuning":{{"isolatedCpuFreq":2500000}}}}"#),
            "spec.hardwareTuning.reservedCpuFreq",
        ),
        (
            r#"{"cpu":{"isolated":"2-3","reserved":"0-1","ovsDpdk":"3"}}"#.to_owned(),
            "spec.cpu.ovsDpdk",
        ),
    ] {
        let paths: Vec<String> = profile(&json)
            .validate()
            .into_iter()
            .map(|problem| problem.path)
            .collect();
        assert!(paths.iter().any(|found| found == path), "{json}: {paths:?}");
    }
    // What the node it becomes finds, by the profile's own field.
    for (json, path) in [
        (
            r#"{"cpu":{"isolated":"1-3","reserved":"0-1"}}"#.to_owned(),
            "spec.cpu.isolated",
        ),
        (
            format!(
                r#"{{{CPUS},"workloadHints":{{"highPowerConsumption":true,"perPodPowerManagement":true}}}}"#
            ),
            "spec.workloadHints.perPodPowerManagement",
        ),
        (
            format!(r#"{{{CPUS},"workloadHints":{{"mixedCpus":true}}}}"#),
            "spec.workloadHints.mixedCpus",
        ),
        (
            format!(r#"{{{CPUS},"workloadHints":{{"realTime":false}},"realTimeKernel":{{"enabled":true}}}}"#),
            "spec.workloadHints.realTime",
        ),
        (
            format!(r#"{{{CPUS},"net":{{"devices":[{{"deviceID":"0x1000"}}]}}}}"#),
            "spec.net.devices[0].device",
        ),
    ] {
        let spec = profile(&json);
        assert_eq!(spec.validate(), [], "{json}");
        let found = spec.to_node(&BTreeMap::new()).validate(None);
        let paths: Vec<String> = found.iter().map(|problem| field_of(&problem.path)).collect();
        assert_eq!(paths, [path], "{json}");
    }
}

#[test]
fn steering_and_queues() {
    let json =
        format!(r#"{{{CPUS},"net":{{"userLevelNetworking":true,"devices":[{{"interfaceName":"ens*"}}]}}}}"#);
    let annotations = BTreeMap::from([(
        "performance.openshift.io/enable-rps".to_owned(),
        "enable".to_owned(),
    )]);
    let network = profile(&json).to_node(&annotations).network;
    assert_eq!(
        (network.queues, network.rps),
        (Some(Queues::Housekeeping), Some(CpuChoice::Housekeeping))
    );
    assert_eq!(network.devices[0].interface.as_deref(), Some("ens*"));
    assert_eq!(profile(&json).to_node(&BTreeMap::new()).network.rps, None);
}
