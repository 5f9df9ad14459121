//! Files of the node that a workload mounts, labelled for one container or for several; and two tenants of agent and launcher in
//! their own domains.

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;

use super::bundle::denials;
use crate::devices::LIMIT;
use crate::on_guest;

fn workload(name: &str, source: &str, relabel: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  cpus: shared\n  \
         command: [\"/bin/sh\", \"-c\", \"while :; do sleep 0.2; done\"]\n  stop: {{signal: SIGKILL, grace: 1s}}\n  \
         mounts: [{{source: {source}, destination: /tmp{relabel}}}]\n---\n"
    )
}

/// What a container says of the file and the folder.
fn tries(vm: &mut Vm, name: &str) -> Result<String> {
    vm.sh(&format!(
        "berth exec {name} -- sh -c 'cat /tmp/file; echo x >/tmp/by-{name} && echo wrote' 2>&1 | cat"
    ))
}

fn label(vm: &mut Vm, path: &str) -> Result<String> {
    let line = vm.sh(&format!("/bin/ls -Zd {path}"))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

/// `relabel` of a mount. Agent and launcher run in their domains.
pub(super) fn relabel(vm: &mut Vm) -> Result<()> {
    vm.sh("dmesg -c >/dev/null; mkdir -p /srv/vol/below /srv/node && echo content >/srv/vol/file && ln -s /srv/node /srv/vol/link && chmod -R a+rwX /srv/vol && \
           chcon -R system_u:object_r:berth_shared_file_t:s0 /srv/vol && chcon -h system_u:object_r:berth_shared_file_t:s0 /srv/vol/link && \
           cp /etc/berth/launcher/policy.yaml /tmp/policy.kept && \
           echo 'mounts: [{path: /srv/vol, write: true}, {path: /srv/node, write: true}]' >>/etc/berth/launcher/policy.yaml")?;
    let own = workload("owner", "/srv/vol", ", relabel: private");
    let other = workload("other", "/srv/vol", "");
    on_guest::apply(vm, &own)?;
    on_guest::running(vm, "owner")?;
    let pid = on_guest::in_phase(vm, "owner", "running")?["pid"]
        .as_i64()
        .context("no pid")?;
    let context = vm.sh(&format!("tr -d '\\0' </proc/{pid}/attr/current"))?;
    let level = context
        .splitn(4, ':')
        .nth(3)
        .context("no level")?
        .trim()
        .to_owned();
    for path in ["/srv/vol", "/srv/vol/file", "/srv/vol/below", "/srv/vol/link"] {
        let found = label(vm, path)?;
        ensure!(
            found == format!("system_u:object_r:berth_container_file_t:{level}"),
            "{path} is {found}, the container {context}"
        );
    }
    // The link was labelled, not what it leads to.
    ensure!(label(vm, "/srv/node")?.contains("host_file_t"));
    let said = tries(vm, "owner")?;
    ensure!(
        said.contains("content") && said.contains("wrote"),
        "{said}\n{}",
        denials(vm)?
    );
    let nothing = denials(vm)?;
    ensure!(nothing.is_empty(), "to label them was denied:\n{nothing}");
    // Mounted by another without a word of labels: its pair does not fit.
    on_guest::apply(vm, &other)?;
    on_guest::running(vm, "other")?;
    let said = tries(vm, "other")?;
    ensure!(!said.contains("content") && !said.contains("wrote"), "{said}");
    on_guest::delete(vm, &(own.clone() + &other))?;
    on_guest::gone(vm, "owner")?;
    on_guest::gone(vm, "other")?;
    // Shared: both.
    let both = workload("owner", "/srv/vol", ", relabel: shared")
        + &workload("other", "/srv/vol", ", relabel: shared");
    on_guest::apply(vm, &both)?;
    for name in ["owner", "other"] {
        on_guest::running(vm, name)?;
        let said = tries(vm, name)?;
        ensure!(
            said.contains("content") && said.contains("wrote"),
            "{name}: {said}\n{}",
            denials(vm)?
        );
    }
    ensure!(label(vm, "/srv/vol/below")?.contains("berth_shared_file_t:s0"));
    on_guest::delete(vm, &both)?;
    // A folder of the node's keeps its label, and nothing is launched.
    let node = workload("taker", "/srv/node", ", relabel: private");
    on_guest::apply(vm, &node)?;
    vm.until("it is refused by name", "berth ps | grep -q 'to label'", LIMIT)?;
    ensure!(label(vm, "/srv/node")?.contains("host_file_t"));
    on_guest::delete(vm, &node)?;
    for name in ["owner", "other", "taker"] {
        on_guest::gone(vm, name)?;
    }
    vm.sh("cp /tmp/policy.kept /etc/berth/launcher/policy.yaml; rm -rf /srv/vol /srv/node /tmp/policy.kept")
        .map(drop)
}

/// Two tenants see nothing of each other, and root inside reaches nothing of berth.
pub(super) fn tenants(vm: &mut Vm) -> Result<()> {
    let traces = "echo word-of-right > /dev/shm/file-of-right; nc -l -p 7000 & while :; do sleep 0.2; done";
    let tenant = |name: &str, script: &str| {
        format!(
            "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  image: berth-sample-busybox:latest\n  cpus: shared\n  \
             command: [\"/bin/sh\", \"-c\", \"{script}\"]\n  stop: {{signal: SIGKILL, grace: 1s}}\n---\n"
        )
    };
    let both = tenant("left", "while :; do sleep 0.2; done") + &tenant("right", traces);
    on_guest::apply(vm, &both)?;
    on_guest::running(vm, "left")?;
    on_guest::running(vm, "right")?;
    let pid = on_guest::in_phase(vm, "right", "running")?["pid"]
        .as_i64()
        .context("no pid")?;
    let inside = |vm: &mut Vm, name: &str, script: &str| {
        vm.sh(&format!("berth exec {name} -- sh -c '{script}' 2>&1 | cat; true"))
    };
    let look = "find / -name \"*-of-right\" 2>/dev/null; grep -c \":1B58 \" /proc/net/tcp";
    vm.until(
        "it has left its traces",
        "berth exec right -- sh -c 'grep -q \":1B58 \" /proc/net/tcp /proc/net/tcp6 && test -e /dev/shm/file-of-right && echo there' 2>&1 | grep -q there",
        LIMIT,
    )?;
    let (own, other) = (inside(vm, "right", look)?, inside(vm, "left", look)?);
    ensure!(own.contains("file-of-right"), "{own}");
    ensure!(
        !other.contains("of-right") && other.trim().ends_with('0'),
        "{other}"
    );
    let of_berth = vm.sh("pidof berth; for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in berth-*) echo ${p#/proc/};; esac; done")?;
    let targets: Vec<&str> = of_berth.split_whitespace().collect();
    ensure!(targets.len() >= 4, "{of_berth}");
    let script = format!(
        "for p in {pid} {}; do kill -0 $p 2>/dev/null && echo reached; for f in environ mem root maps; do [ -e /proc/$p/$f ] && echo reached; done; done; \
         ls -d /run/berth /var/lib/berth /etc/berth 2>/dev/null; \
         for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name \"*.max\" 2>/dev/null); do echo 1 2>/dev/null >$f && echo wrote; done; \
         for m in /dev/mem /dev/kmem /dev/port /proc/kcore; do head -c 1 $m 2>/dev/null | grep -q . && echo memory; done; echo looked",
        targets.join(" ")
    );
    let said = inside(vm, "left", &script)?;
    ensure!(said.trim() == "looked", "{said}");
    on_guest::delete(vm, &both)?;
    on_guest::gone(vm, "left")?;
    on_guest::gone(vm, "right")
}
