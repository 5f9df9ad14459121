//! SELinux in force (policies/selinux): what a container's label does, seen in the kernel's denials.
//!
//! Every container here has the rights of its namespaces, mounts and capabilities taken away as little as possible
//! (host pids, host folders bound, CAP_SYS_ADMIN), so that the label alone is what denies; and where it can be,
//! the same attempt is made with the label that allows it.

mod bundle;
mod daemons;
mod volumes;

use anyhow::{Context, Result, ensure};
use berth_tests::vm::Vm;
use serde_json::json;

use crate::boots::Guest;
use crate::lanes::Trial;
use bundle::{Bundle, denials, denied};

/// A pair of categories for most containers here, and another.
const ONE: &str = "s0:c1,c2";
const OTHER: &str = "s0:c3,c4";
const LAUNCHER: &str = "runcon system_u:system_r:berth_launcher_t:s0-s0:c0.c1023";

/// In order: the first prepares the guest for the others.
pub(crate) fn tests(guest: &Guest) -> Vec<Trial> {
    vec![
        guest.test("the policy is in force and labels are where they belong", node),
        guest.test("a container has its own context and pair", context),
        guest.test("two containers with different pairs", apart),
        guest.test("a container and the host", host),
        guest.test("a device of the node's, bound into a container", bound_device),
        guest.test("a container in a user namespace", user_namespace),
        guest.test("memory is not executed", memory),
        guest.test("a label that cannot be applied refuses the launch", refused),
        guest.test("the launcher's domain is enough, and no more", launcher),
        guest.test(
            "agent and launcher in their own domains: a pair for each container",
            daemons::daemons,
        ),
        guest.test(
            "the files of a mount are labelled for one container, or for several",
            volumes::relabel,
        ),
        guest.test(
            "two tenants see nothing of each other, nor of berth",
            volumes::tenants,
        ),
        guest.test(
            "a context that the policy lacks refuses the launch",
            daemons::unknown_to_the_policy,
        ),
        guest.test("nothing is left", nothing_left),
    ]
}

fn node(vm: &mut Vm) -> Result<()> {
    // Denials must not be lost to the limit on messages.
    vm.sh("echo 0 >/proc/sys/kernel/printk_ratelimit; mkdir -p /run/berth /etc/berth/launcher; \
           echo 'limits: {labels: [\"*\"]}' >/etc/berth/launcher/policy.yaml; restorecon -R /usr/bin/berth /var/lib/berth /etc/berth")?;
    ensure!(vm.sh("getenforce")?.trim() == "Enforcing");
    let log = vm.sh("dmesg | grep -i selinux")?;
    ensure!(log.contains("nnp_nosuid_transition=1"), "{log}");
    ensure!(
        !log.contains("not defined in policy"),
        "the policy lacks what the kernel has:\n{log}"
    );
    let labels = vm.sh(
        "tr -d '\\0' </proc/1/attr/current; echo; tr -d '\\0' </proc/2/attr/current; echo
         /bin/ls -Zd /usr/bin/berth /var/lib/berth /var/lib/berth/images /etc/berth /run/berth /run/udev /dev/null /dev/ttyS0 /etc/inittab",
    )?;
    for (path, label) in [
        ("host_t:s0-s0:c0.c1023", "system_u:system_r"),
        ("kernel_t:s0-s0:c0.c1023", "system_u:system_r"),
        ("/usr/bin/berth", "berth_exec_t"),
        ("/var/lib/berth", "berth_state_t"),
        ("/var/lib/berth/images", "berth_image_t"),
        ("/etc/berth", "berth_config_t"),
        ("/run/berth", "berth_run_t"),
        ("/run/udev", "host_udev_t"),
        ("/dev/null", "common_device_t"),
        ("/dev/ttyS0", "device_t"),
        ("/etc/inittab", "host_file_t"),
    ] {
        ensure!(
            labels.lines().any(|l| l.ends_with(path) && l.contains(label)),
            "{path} is not {label}:\n{labels}"
        );
    }
    let before = denials(vm)?;
    ensure!(
        before.is_empty(),
        "the node itself was denied something:\n{before}"
    );
    Ok(())
}

fn context(vm: &mut Vm) -> Result<()> {
    let bundle = Bundle::new(
        "own",
        ONE,
        "cat /proc/self/attr/current; echo; echo mine >/made && cat /made; echo shm >/dev/shm/x && cat /dev/shm/x; \
         echo gone >/dev/null && echo null; ls -Z /made /dev/shm/x 2>/dev/null; grep NoNewPrivs /proc/self/status",
    );
    let output = bundle.good(vm)?;
    for line in ["mine", "shm", "null", "NoNewPrivs:\t1"] {
        ensure!(output.contains(line), "no {line:?} in\n{output}");
    }
    let own = format!("system_u:system_r:berth_container_t:{ONE}");
    ensure!(output.starts_with(&own), "not {own}:\n{output}");
    let nothing = denials(vm)?;
    ensure!(
        nothing.is_empty(),
        "a plain container was denied something:\n{nothing}"
    );

    // What it makes carries its pair, and nothing the runtime left open does.
    let bundle = Bundle::new(
        "labels",
        ONE,
        "echo x >/mnt/made; echo x >/dev/shm/made; sleep 1000",
    );
    bundle.install(vm)?;
    let look = vm.sh(
        "cd /srv/labels; (/usr/bin/berth oci --root /run/berth/oci run --bundle /srv/labels labels </dev/null 2>&1 | cat) & 
         i=0; until [ -e rootfs/mnt/made ] || [ $i -gt 200 ]; do usleep 100000; i=$((i+1)); done; usleep 300000
         p=$(cat /sys/fs/cgroup/berth-selinux/labels/cgroup.procs | head -n 1); tr -d '\\0' </proc/$p/attr/current; echo
         /bin/ls -Zd rootfs/mnt/made /proc/$p/root/dev /proc/$p/root/dev/shm/made /proc/$p/root/dev/null; grep ' /dev ' /proc/$p/mountinfo
         /usr/bin/berth oci --root /run/berth/oci delete --force labels; wait; rm -rf /srv/labels",
    )?;
    let pair = look.matches(&format!("berth_container_file_t:{ONE}")).count();
    ensure!(
        pair >= 5,
        "four files and the mount option should carry the pair:\n{look}"
    );
    ensure!(look.contains(&own), "{look}");
    Ok(())
}

/// What one container tries on another whose pid is $P, whose files are /other.
const ATTEMPTS: &str = "P=$(cat /pid); \
    cat /other/secret >/dev/null 2>&1 && echo READ; \
    echo x 2>/dev/null >>/other/secret && echo WROTE; \
    ls /other/mnt >/dev/null 2>&1 && echo LISTED; \
    cat /proc/$P/cmdline >/dev/null 2>&1 && echo SAW; \
    kill -0 $P 2>/dev/null && echo ASKED; \
    kill -CONT $P 2>/dev/null && echo SIGNALLED; \
    cat /proc/$P/environ >/dev/null 2>&1 && echo PEEKED; \
    echo done";

fn apart(vm: &mut Vm) -> Result<()> {
    let victim = Bundle::new("victim", ONE, "echo secret >/secret; touch /ready; sleep 1000");
    victim.install(vm)?;
    vm.sh(
        "(/usr/bin/berth oci --root /run/berth/oci run --bundle /srv/victim victim </dev/null 2>&1 | cat) >/run/victim.log &
         i=0; until [ -e /srv/victim/rootfs/ready ]; do [ $i -gt 200 ] && { cat /run/victim.log; exit 1; }; usleep 100000; i=$((i+1)); done
         head -n 1 /sys/fs/cgroup/berth-selinux/victim/cgroup.procs >/run/pid",
    )?;
    let attempt = |vm: &mut Vm, id: &str, level: &str| -> Result<String> {
        let bundle = Bundle::new(id, level, ATTEMPTS)
            .bind("/srv/victim/rootfs", "/other")
            .bind("/run/pid", "/pid");
        vm.sh(&format!(
            "chcon system_u:object_r:berth_container_file_t:{level} /run/pid"
        ))?;
        bundle.good(vm)
    };
    // The same pair: all of it works, so it is the pair that denies below.
    let same = attempt(vm, "same", ONE)?;
    for word in ["READ", "WROTE", "LISTED", "SAW", "ASKED", "SIGNALLED"] {
        ensure!(
            same.contains(word),
            "with the same pair, no {word}:\n{same}\n{}",
            denials(vm)?
        );
    }
    for (id, level) in [
        ("other", OTHER),
        ("overlap", "s0:c1,c4"),
        ("none", "s0"),
        ("more", "s0:c1,c2,c4"),
    ] {
        let output = attempt(vm, id, level)?;
        ensure!(output.trim() == "done", "{level} reached {ONE}:\n{output}");
        let (source, target) = (format!("berth_container_t:{level}"), format!(":{ONE}"));
        denied(
            vm,
            "search",
            "dir",
            &source,
            &format!("berth_container_file_t{target}"),
        )?;
        denied(
            vm,
            "signal",
            "process",
            &source,
            &format!("berth_container_t{target}"),
        )?;
        denied(
            vm,
            "search",
            "dir",
            &source,
            &format!("berth_container_t{target}"),
        )?;
    }
    vm.sh("/usr/bin/berth oci --root /run/berth/oci delete --force victim; rm -rf /srv/victim /run/pid /run/victim.log")
        .map(drop)
}

fn host(vm: &mut Vm) -> Result<()> {
    vm.sh("mkdir -p /srv/data && echo host >/srv/data/file && sleep 1000 & echo $! >/run/hostpid")?;
    let script = "P=$(cat /data/pid 2>/dev/null || cat /pid); \
        cat /data/file >/dev/null 2>&1 && echo READ; \
        echo x 2>/dev/null >/data/new && echo WROTE; \
        kill -9 $P 2>/dev/null && echo KILLED; \
        cat /proc/$P/environ >/dev/null 2>&1 && echo PEEKED; \
        mount -t tmpfs none /mnt 2>/dev/null && echo MOUNTED; \
        unshare -r true 2>/dev/null && echo NAMESPACE; \
        cat /proc/kallsyms >/dev/null 2>&1 && echo KERNEL; \
        echo 1 2>/dev/null >/proc/sys/vm/swappiness && echo SYSCTL; \
        echo 0 2>/dev/null >/sys/fs/selinux/enforce && echo POLICY; \
        echo done";
    let bundle = Bundle::new("host", ONE, script)
        .bind("/srv/data", "/data")
        .bind("/run/hostpid", "/pid");
    vm.sh(&format!(
        "chcon system_u:object_r:berth_container_file_t:{ONE} /run/hostpid"
    ))?;
    let output = bundle.good(vm)?;
    ensure!(output.trim() == "done", "a container reached the host:\n{output}");
    let own = format!("berth_container_t:{ONE}");
    denied(vm, "search", "dir", &own, "host_file_t")?;
    denied(vm, "sigkill", "process", &own, "host_t")?;
    denied(vm, "search", "dir", &own, "host_t")?;
    denied(vm, "mounton", "dir", &own, "berth_container_file_t")?;
    denied(vm, "create", "user_namespace", &own, &own)?;
    denied(vm, "read", "file", &own, "proc_private_t")?;
    denied(vm, "write", "file", &own, "sysctl_t")?;
    vm.sh("kill -0 $(cat /run/hostpid)")
        .context("the host's process is gone")?;
    // The files as the container's own are read; shared, several containers read and write them.
    for (label, level) in [
        (format!("berth_container_file_t:{ONE}"), ONE),
        ("berth_shared_file_t:s0".into(), ONE),
        ("berth_shared_file_t:s0".into(), OTHER),
    ] {
        vm.sh(&format!("chcon -R system_u:object_r:{label} /srv/data"))?;
        let script = "cat /data/file && echo x >/data/new && echo WROTE";
        let output = Bundle::new("own", level, script)
            .bind("/srv/data", "/data")
            .good(vm)?;
        ensure!(
            output.contains("host") && output.contains("WROTE"),
            "{label} at {level}:\n{output}"
        );
    }
    // A program of the host as the entrypoint.
    let mut bundle = Bundle::new("entry", ONE, "").bind("/usr/bin", "/hostbin");
    bundle.config["process"]["args"] = json!(["/hostbin/busybox", "true"]);
    let (code, output) = bundle.run(vm)?;
    ensure!(code != 0, "a host program was the entrypoint:\n{output}");
    let denials = denials(vm)?;
    ensure!(denials.contains("host_file_t"), "{output}\n{denials}");
    vm.sh("kill $(cat /run/hostpid); rm -rf /srv/data /run/hostpid")
        .map(drop)
}

/// Set a boolean of the policy.
fn boolean(vm: &mut Vm, name: &str, on: bool) -> Result<()> {
    let on = u8::from(on);
    vm.sh(&format!(
        "cd /sys/fs/selinux; echo {on} >booleans/{name} && echo 1 >commit_pending_bools && grep -q '^{on}' booleans/{name}"
    ))
    .map(drop)
}

/// The node's own device node, bound by the bundle: the device cgroup lets it through, and the label does not, until
/// the node's administrator says otherwise.
fn bound_device(vm: &mut Vm) -> Result<()> {
    let bundle = || {
        let script = "sh -c ': </dev/port' 2>/dev/null && echo PORT; echo done";
        let mut bundle = Bundle::new("bound", ONE, script).bind("/dev/ttyS0", "/dev/port");
        bundle.config["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 4, "minor": 64, "access": "rw"}
        ]);
        bundle
    };
    let output = bundle().good(vm)?;
    ensure!(!output.contains("PORT"), "a bound device was opened:\n{output}");
    let own = format!("berth_container_t:{ONE}");
    denied(vm, "read", "chr_file", &own, "device_t")?;
    boolean(vm, "berth_bound_devices", true)?;
    let output = bundle().good(vm);
    boolean(vm, "berth_bound_devices", false)?;
    let output = output?;
    ensure!(
        output.contains("PORT"),
        "berth_bound_devices does nothing:\n{output}\n{}",
        denials(vm)?
    );
    Ok(())
}

fn user_namespace(vm: &mut Vm) -> Result<()> {
    let bundle = |script: &str| {
        let mut bundle = Bundle::new("mapped", ONE, script);
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let linux = &mut bundle.config["linux"];
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
        if let Some(namespaces) = linux["namespaces"].as_array_mut() {
            namespaces.extend([json!({"type": "user"}), json!({"type": "pid"})]);
        }
        linux["devices"] = json!([{"path": "/dev/ttyS0", "type": "c", "major": 4, "minor": 64}]);
        linux["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 4, "minor": 64, "access": "rw"}
        ]);
        bundle
    };
    let script = "cat /proc/self/attr/current; echo; cat /proc/self/uid_map; echo x >/dev/null && echo NULL; \
        echo x >/dev/shm/x && echo SHM; sh -c ': </dev/ttyS0' 2>/dev/null && echo PORT; echo done";
    vm.sh("chmod 666 /dev/ttyS0")?;
    let output = bundle(script).good(vm)?;
    for line in ["100000", "NULL", "SHM", "done"] {
        ensure!(output.contains(line), "no {line} in\n{output}\n{}", denials(vm)?);
    }
    // A node made for the container from outside, on its own /dev: what the device cgroup lets through it may open.
    vm.sh("chmod 660 /dev/ttyS0")?;
    ensure!(
        output.contains("PORT"),
        "its own device was not opened:\n{output}\n{}",
        denials(vm)?
    );
    Ok(())
}

fn memory(vm: &mut Vm) -> Result<()> {
    let script = "/data/true true 2>/dev/null && echo RAN; echo done";
    vm.sh("mkdir -p /srv/data && cp /bin/busybox /srv/data/true && chmod 755 /srv/data/true")?;
    for (label, runs) in [
        ("berth_shared_file_t:s0".to_string(), false),
        (format!("berth_container_memory_t:{ONE}"), false),
        (format!("berth_container_file_t:{ONE}"), true),
        ("berth_image_t:s0".into(), true),
    ] {
        vm.sh(&format!(
            "chcon system_u:object_r:{label} /srv/data/true; chcon system_u:object_r:berth_container_file_t:{ONE} /srv/data"
        ))?;
        let output = Bundle::new("memory", ONE, script)
            .bind("/srv/data", "/data")
            .good(vm)?;
        ensure!(
            output.contains("RAN") == runs,
            "{label}: runs should be {runs}:\n{output}\n{}",
            denials(vm)?
        );
    }
    vm.sh("rm -rf /srv/data").map(drop)
}

fn refused(vm: &mut Vm) -> Result<()> {
    let with = |label: &str| {
        let mut bundle = Bundle::new("refused", ONE, "echo RAN");
        bundle.config["process"]["selinuxLabel"] = json!(label);
        bundle
    };
    let launched = |vm: &mut Vm, bundle: Bundle, prefix: &str, why: &str| -> Result<String> {
        let (code, output) = bundle.below("/run/berth").run_behind(vm, prefix)?;
        ensure!(
            code != 0 && !output.contains("RAN"),
            "{why}: it was launched:\n{output}"
        );
        let left =
            vm.sh("ls /run/berth/oci /sys/fs/cgroup/berth-selinux 2>/dev/null | grep refused || true")?;
        ensure!(left.is_empty(), "{why}: something is left: {left}");
        Ok(output)
    };
    // The policy does not know it.
    for label in [
        "system_u:system_r:nobody_t:s0:c1,c2",
        "system_u:system_r:berth_container_t:s0:c1024",
        "x",
    ] {
        let output = launched(vm, with(label), "", label)?;
        ensure!(
            output.contains("process.selinuxLabel"),
            "{label}: the field is not named:\n{output}"
        );
    }
    // It knows it, and does not allow it: a range for a container, a domain that is no container's.
    let range = "system_u:system_r:berth_container_t:s0-s0:c0.c1023";
    launched(vm, with(range), "", range)?;
    denied(vm, "transition", "process", "host_t", range)?;
    let agent = "system_u:system_r:berth_agent_t:s0";
    launched(vm, with(agent), LAUNCHER, agent)?;
    denied(
        vm,
        "nnp_transition",
        "process2",
        "berth_launcher_t",
        "berth_agent_t",
    )?;
    let shell = "system_u:system_r:host_t:s0";
    let mut bundle = with(shell);
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    launched(vm, bundle, LAUNCHER, shell)?;
    denied(vm, "transition", "process", "berth_launcher_t", "host_t")?;
    // A mount label that cannot be one.
    let mut bundle = Bundle::new("refused", ONE, "echo RAN");
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:nobody_t:s0");
    launched(vm, bundle, "", "linux.mountLabel").map(drop)
}

fn launcher(vm: &mut Vm) -> Result<()> {
    for user in [false, true] {
        let script = "cat /proc/self/attr/current; echo; echo x >/dev/shm/x && echo SHM; echo x >/dev/null && echo done";
        let mut bundle = Bundle::new("launched", OTHER, script).below("/run/berth");
        if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "pid"}));
            if user {
                namespaces.push(json!({"type": "user"}));
                let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
                bundle.config["linux"]["uidMappings"] = map.clone();
                bundle.config["linux"]["gidMappings"] = map;
            }
        }
        let (code, output) = bundle.run_behind(vm, LAUNCHER)?;
        let denials = denials(vm)?;
        ensure!(
            code == 0 && output.contains("done") && output.contains(&format!("berth_container_t:{OTHER}")),
            "user namespace {user}: exit {code}:\n{output}\n{denials}"
        );
        ensure!(
            denials.is_empty(),
            "user namespace {user}: the launcher was denied something:\n{denials}"
        );
    }
    // It runs no program of the node, nor does the agent.
    for domain in ["berth_launcher_t", "berth_agent_t"] {
        let (code, output) = vm.run(&format!(
            "dmesg -c >/dev/null; runcon system_u:system_r:{domain}:s0-s0:c0.c1023 /usr/bin/busybox true"
        ))?;
        ensure!(code != 0, "{domain} ran a program of the node:\n{output}");
        denied(vm, "entrypoint", "file", domain, "host_file_t")?;
    }
    Ok(())
}

fn nothing_left(vm: &mut Vm) -> Result<()> {
    let left = vm.sh(
        "rmdir /sys/fs/cgroup/berth-selinux; ls -A /run/berth/oci /srv; for p in /proc/[0-9]*; do { tr '\\0' '\\n' <$p/attr/current; } 2>/dev/null | grep berth_; done; true",
    )?;
    let left: Vec<&str> = left
        .lines()
        .filter(|l| !l.is_empty() && !l.ends_with(':'))
        .collect();
    ensure!(left.is_empty(), "left: {left:?}");
    let (_, kernel) = vm.run("dmesg | grep -iE 'BUG|WARNING|Oops'")?;
    ensure!(kernel.is_empty(), "{kernel}");
    Ok(())
}
