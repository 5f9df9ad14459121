//! AppArmor in force, as Debian's kernels boot with it: the profile that `berth profile generate` writes, loaded, a
//! container held by it, what it denies, and a profile that is not loaded.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use berth_tests::agent::binary;
use berth_tests::vm::{Vm, out};

use crate::boots::Guest;
use crate::lanes::Trial;
use crate::on_guest;

const DOCUMENTS: &str = "apiVersion: berth/v1\nkind: SecurityProfile\nmetadata: {name: fenced}\nspec: {apparmorProfile: berth-fence}\n---\n\
     apiVersion: berth/v1\nkind: Workload\nmetadata: {name: fence}\nspec:\n  image: berth-sample-busybox:latest\n  \
     command: [\"/bin/sh\", \"-c\", \"while :; do sleep 1; done\"]\n  profile: fenced\n  stop: {signal: SIGKILL}\n  \
     restart: {limit: 100, delay: 500ms}\n";

pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![guest.test(
        "AppArmor: refused without the profile, confined and proven with it",
        confined,
    )]
}

/// Debian's apparmor_parser, and the profile as this berth writes it, for `share`.
pub(crate) fn share(share: &Path) -> Result<()> {
    let cache = out().join("cache/amd64");
    let package = || -> Result<Option<std::path::PathBuf>> {
        let found = std::fs::read_dir(&cache)?.flatten().map(|e| e.path());
        let mine = |p: &std::path::PathBuf| {
            p.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with("apparmor_"))
        };
        Ok(found.into_iter().find(mine))
    };
    if package()?.is_none() {
        let mut apt = Command::new("apt-get");
        apt.args([
            "download",
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "apparmor:amd64",
        ]);
        let done = apt.current_dir(&cache).output().context("apt-get")?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let package = package()?.context("no package apparmor")?;
    let all = tempfile::tempdir()?;
    let done = Command::new("dpkg-deb")
        .arg("-x")
        .arg(&package)
        .arg(all.path())
        .output()
        .context("dpkg-deb")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let parser = ["sbin/apparmor_parser", "usr/sbin/apparmor_parser"].map(|p| all.path().join(p));
    let Some(parser) = parser.iter().find(|p| p.exists()) else {
        bail!("{} has no apparmor_parser", package.display());
    };
    std::fs::copy(parser, share.join("apparmor_parser"))?;
    std::fs::copy(
        all.path().join("etc/apparmor.d/abi/3.0"),
        share.join("apparmor-abi"),
    )?;
    let documents = all.path().join("fence.yaml");
    std::fs::write(&documents, DOCUMENTS)?;
    let mut generate = Command::new(binary());
    generate.args([
        "profile",
        "generate",
        "fence",
        "--lsm",
        "apparmor",
        "--unchecked",
        "-f",
    ]);
    let done = generate.arg(documents).output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::write(share.join("fence.aa"), done.stdout)?;
    Ok(std::fs::write(share.join("setup"), SETUP)?)
}

/// What the guest does with it before the folder goes.
const SETUP: &str = "mkdir -p /etc/apparmor.d/abi /etc/apparmor && cp /host/fence.aa /root && cp /host/apparmor_parser /usr/sbin && \
     cp /host/apparmor-abi /etc/apparmor.d/abi/3.0 && : >/etc/apparmor/parser.conf";

fn confined(vm: &mut Vm) -> Result<()> {
    let on = vm.sh("mount -t securityfs securityfs /sys/kernel/security 2>/dev/null; cat /sys/module/apparmor/parameters/enabled")?;
    ensure!(on.trim() == "Y", "AppArmor is off: {on}");
    on_guest::agent(vm)?;
    vm.sh("mkdir -p /etc/berth/launcher && echo 'limits: {labels: [berth-fence]}' >/etc/berth/launcher/policy.yaml")?;
    on_guest::apply(vm, DOCUMENTS)?;
    // Nobody has loaded it yet.
    let refused = "berth events | grep launch-failed | grep -q 'process.apparmorProfile'";
    vm.until(
        "the missing profile refuses the launch",
        refused,
        crate::devices::LIMIT,
    )?;
    vm.sh("apparmor_parser -r /root/fence.aa && grep -q '^berth-fence (enforce)' /sys/kernel/security/apparmor/profiles")?;
    on_guest::running(vm, "fence")?;
    let proof = vm.sh("berth prove fence | grep lsm.label")?;
    ensure!(proof.matches("berth-fence (enforce)").count() == 2, "{proof}");
    let inside = vm.sh("berth exec fence cat /proc/self/attr/current")?;
    ensure!(inside.trim() == "berth-fence (enforce)", "berth exec: {inside}");
    vm.sh("berth exec fence sh -c 'echo x >/dev/shm/a && cat /dev/shm/a'")?;
    // The same without the one line: what is not allowed is denied, and the kernel says so.
    vm.sh("sed '/^  .dev.\\*\\* wkl,$/d' /root/fence.aa >/tmp/less.aa && ! cmp -s /root/fence.aa /tmp/less.aa && apparmor_parser -r /tmp/less.aa && dmesg -c >/dev/null")?;
    let (code, said) = vm.run("berth exec fence sh -c 'echo x >/dev/shm/b' 2>&1")?;
    ensure!(code != 0 && said.contains("Permission denied"), "{code}: {said}");
    let told = vm.sh("dmesg | grep DENIED | grep berth-fence")?;
    ensure!(told.contains("/dev/shm/b"), "{told}");
    on_guest::delete(vm, DOCUMENTS)?;
    on_guest::gone(vm, "fence")?;
    vm.sh("rm /etc/berth/launcher/policy.yaml; apparmor_parser -R /root/fence.aa")
        .map(drop)
}
