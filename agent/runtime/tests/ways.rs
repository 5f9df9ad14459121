//! The ways of making and entering a container that a caller asks for: without pivot_root, with its own keyring, into a
//! group below the container's; clocks, memory nodes, the order of mounts. On the real kernel, as root.
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use common::Bundle;
use serde_json::{Value, json};

fn text(out: &Output) -> String {
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout.clone()).unwrap()
}

/// What its program has said, once it is so many lines.
fn said(b: &Bundle, lines: usize) -> String {
    for _ in 0..1000 {
        let text = fs::read_to_string(b.dir.join("out")).unwrap();
        if text.lines().count() >= lines {
            return text;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{:?}", fs::read_to_string(b.dir.join("out")));
}

/// Created and started, its program asleep.
fn up(b: &Bundle, options: &[&str]) -> String {
    let args = [&["create"], options, &[b.id.as_str()]].concat();
    let status = b
        .command(&args)
        .stdout(fs::File::create(b.dir.join("out")).unwrap())
        .status();
    assert!(status.unwrap().success());
    assert!(b.oci(&["start", &b.id]).status.success());
    b.state()["pid"].to_string()
}

fn down(b: &Bundle) {
    assert!(b.oci(&["delete", "--force", &b.id]).status.success());
    b.assert_nothing_left();
}

#[test]
fn without_pivot_root_the_root_lies_over_the_namespaces() {
    let mut b = Bundle::new("exec sleep 1000");
    fs::write(b.rootfs().join("etc/marker"), "the container's\n").unwrap();
    b.set("/linux/seccomp", json!(null));
    let pid = up(&b, &["--no-pivot"]);
    assert_eq!(
        text(&b.oci(&["exec", &b.id, "cat", "/etc/marker"])),
        "the container's\n"
    );
    // Who enters the namespace by its file, and who climbs, meets the container's root too.
    let look = "cat /etc/marker; ls /.. | grep -c berth; ls -d /proc/1";
    let entered = std::process::Command::new("nsenter")
        .args(["-t", &pid, "-m", "/bin/busybox", "sh", "-c", look])
        .output()
        .unwrap();
    assert_eq!(text_of(&entered), "the container's\n0\n/proc/1\n");
    let inside = text(&b.oci(&["exec", &b.id, "cat", "/proc/self/mountinfo"]));
    assert!(!inside.contains(" /sys/fs/cgroup "), "{inside}");
    down(&b);
    let caps = json!(["CAP_SYS_ADMIN"]);
    for set in ["bounding", "effective", "permitted"] {
        b.set(&format!("/process/capabilities/{set}"), caps.clone());
    }
    let out = b.oci(&["run", "--no-pivot", &b.id]);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        message.contains("--no-pivot is refused") && message.contains("CAP_SYS_ADMIN"),
        "{message}"
    );
    b.assert_nothing_left();
}

/// grep -c of nothing ends with 1.
fn text_of(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

#[test]
fn a_user_namespace_without_pivot_root() {
    let mut b = Bundle::new("cat /etc/marker; grep -c ' /proc ' /proc/self/mountinfo");
    fs::write(b.rootfs().join("etc/marker"), "the container's\n").unwrap();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    b.set("/linux/namespaces/-", json!({"type": "user"}));
    b.set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    assert_eq!(
        text(&b.oci(&["run", "--no-pivot", &b.id])),
        "the container's\n1\n"
    );
    b.assert_nothing_left();
}

#[test]
fn the_callers_keyring_is_kept_where_that_is_asked() {
    // An id of its own for each: the kernel frees a keyring that nobody has any more a while later.
    let counts = || {
        let mut b = Bundle::new("true");
        let count = format!("grep -c _berth.{} /proc/keys; true", b.id);
        b.config["process"]["args"] = json!(["/bin/sh", "-c", count]);
        b
    };
    assert_eq!(counts().output(), "1\n");
    let b = counts();
    assert_eq!(text(&b.oci(&["run", "--no-new-keyring", &b.id])), "0\n");
    let b = Bundle::new("exec sleep 1000");
    up(&b, &["--no-new-keyring"]);
    let name = format!("_berth.{}", b.id);
    let out = b.oci(&["exec", &b.id, "grep", "-c", &name, "/proc/keys"]);
    assert_eq!(text_of(&out), "0\n");
    down(&b);
}

/// The container's group in the hierarchy that counts tasks.
fn group(b: &Bundle) -> PathBuf {
    let all = b.cgroups();
    let pids = all.iter().find(|p| p.join("pids.max").exists());
    pids.unwrap_or_else(|| panic!("{all:?}")).clone()
}

#[test]
fn who_joins_goes_into_a_group_below_the_containers() {
    let b = Bundle::new("exec sleep 1000");
    up(&b, &[]);
    fs::create_dir(group(&b).join("sub")).unwrap();
    let exec = |to: &str| b.oci(&["exec", "--cgroup", to, &b.id, "cat", "/proc/self/cgroup"]);
    assert!(text(&exec("sub")).lines().any(|l| l.ends_with(":/sub")));
    assert!(!text(&exec("/")).contains("/sub"));
    for (to, why) in [
        ("..", "leads out"),
        ("none", "no such group"),
        ("wat:/", "no such group"),
    ] {
        let out = exec(to);
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && message.contains(why), "{to}: {message}");
    }
    down(&b);
}

#[test]
fn one_that_was_moved_between_create_and_start_starts_where_it_was_promised_to_be() {
    let b = Bundle::new("exec sleep 1000");
    assert!(b.create().0);
    let own = group(&b);
    let other = own.with_file_name(format!("other-{}", b.id));
    fs::create_dir(&other).unwrap();
    let pid = b.state()["pid"].to_string();
    fs::write(other.join("cgroup.procs"), &pid).unwrap();
    let out = b.oci(&["start", &b.id]);
    let back = fs::read_to_string(own.join("cgroup.procs")).unwrap();
    down(&b);
    fs::remove_dir(&other).unwrap(); // nobody else's is taken away
    assert!(out.status.success(), "{out:?}");
    assert!(back.lines().any(|l| l == pid), "{back}");
}

#[test]
fn clocks_inside_are_ahead() {
    let mut b = Bundle::new("exec sleep 1000");
    b.set("/linux/namespaces/-", json!({"type": "time"}));
    b.set(
        "/linux/timeOffsets",
        json!({"boottime": {"secs": 100_000_000, "nanosecs": 7}, "monotonic": {"secs": 5}}),
    );
    up(&b, &[]);
    let uptime = text(&b.oci(&["exec", &b.id, "cat", "/proc/uptime"]));
    let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    assert!(seconds > 100_000_000.0, "{uptime}");
    let offsets = text(&b.oci(&["exec", &b.id, "cat", "/proc/self/timens_offsets"]));
    let words: Vec<&str> = offsets.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "5", "0", "boottime", "100000000", "7"]);
    down(&b);
    for (offsets, why) in [
        (json!({"realtime": {"secs": 1}}), "neither monotonic nor boottime"),
        (
            json!({"boottime": {"nanosecs": 1_000_000_000u32}}),
            "a second or more",
        ),
        (
            json!({"boottime": {"secs": -1_000_000_000i64}}),
            "linux.timeOffsets",
        ),
    ] {
        b.set("/linux/timeOffsets", offsets);
        let message = b.refusal();
        assert!(message.contains(why), "{message}");
    }
    b.set("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
    b.config["linux"]["namespaces"].as_array_mut().unwrap().pop();
    assert!(b.refusal().contains("no new time namespace"));
}

#[test]
fn memory_comes_from_the_nodes_that_are_named() {
    let show = "grep -m1 -o 'bind[^ ]*' /proc/self/numa_maps";
    let mut b = Bundle::new(show);
    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    b.set("/linux/memoryPolicy", policy);
    assert_eq!(b.output(), "bind=static:0\n");
    let Value::Array(args) = &mut b.config["process"]["args"] else {
        panic!()
    };
    args[2] = json!("exec sleep 1000");
    up(&b, &[]);
    let joined = b.oci(&[
        "exec",
        &b.id,
        "grep",
        "-m1",
        "-o",
        "bind[^ ]*",
        "/proc/self/numa_maps",
    ]);
    assert_eq!(text(&joined), "bind=static:0\n");
    down(&b);
    b.set("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "77"}));
    let message = b.refusal();
    assert!(
        message.contains("linux.memoryPolicy") && message.contains("a node is not there"),
        "{message}"
    );
    b.set("/linux/memoryPolicy", json!({"mode": "MPOL_INTERLEAVE"}));
    assert!(b.refusal().contains("without nodes"));
}

#[test]
fn mounts_stand_in_their_order_with_users_of_its_own_too() {
    let mut b = Bundle::new("cut -d' ' -f5 /proc/self/mountinfo");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    b.set("/linux/namespaces/-", json!({"type": "user"}));
    b.set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let out = b.output();
    let wanted = ["/proc", "/dev", "/sys", "/tmp"];
    let found: Vec<&str> = out.lines().filter(|l| wanted.contains(l)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn what_has_no_effect_on_a_bind_mount_is_told_and_passed_over() {
    let mut b = Bundle::new("ls -d /tmp/etc/passwd");
    let options = json!(["bind", "ro", "mode=755", "size=1k"]);
    b.set(
        "/mounts/-",
        json!({"destination": "/tmp/etc", "source": "/etc", "options": options}),
    );
    let out = b.run();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(text(&out), "/tmp/etc/passwd\n");
    for option in ["mode=755", "size=1k"] {
        let line = format!("warning: mount `/tmp/etc`: option \"{option}\" has no effect");
        assert!(told.contains(&line), "{told}");
    }
    b.config["mounts"][4]["options"] = json!(["bind", "nosuit"]);
    assert!(b.refusal().contains("\"nosuit\" has no effect on a bind mount"));
}

#[test]
fn a_hook_inside_has_the_containers_environment_unless_it_names_its_own() {
    let hook = |name: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo $GREETING$OWN >> /tmp/{name}")]});
    let mut b = Bundle::new("cat /tmp/a /tmp/b");
    let mut own = hook("b");
    own["env"] = json!(["OWN=mine"]);
    b.set("/hooks", json!({"startContainer": [hook("a"), own]}));
    assert_eq!(b.output(), "hello\nmine\n");
}

/// `unshare` with these options, asleep; killed when dropped.
struct Namespace(std::process::Child);

impl Namespace {
    fn new(command: &mut std::process::Command, kind: &str) -> Self {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let made = Self(command.spawn().unwrap());
        for _ in 0..1000 {
            let comm = fs::read_to_string(format!("/proc/{}/comm", made.0.id())).unwrap();
            if fs::read_link(made.path(kind)).unwrap() != own && comm == "sleep\n" {
                return made;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("no {kind} namespace");
    }

    fn users() -> Self {
        Self::new(
            std::process::Command::new("unshare").args(["-U", "sleep", "1000"]),
            "user",
        )
    }

    fn map(&self, text: &str) {
        for name in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{name}", self.0.id()), text).unwrap();
        }
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_user_namespace_is_joined_by_its_path() {
    let users = Namespace::users();
    users.map("0 100000 5000\n");
    let mut b = Bundle::new(
        "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; hostname; echo x > /dev/null; exec sleep 1000",
    );
    b.set(
        "/linux/namespaces/-",
        json!({"type": "user", "path": users.path("user")}),
    );
    let pid = up(&b, &[]);
    let ns = |path: &str| fs::read_link(path).unwrap().to_string_lossy().into_owned();
    let own = ns(&users.path("user"));
    assert_eq!(ns(&format!("/proc/{pid}/ns/user")), own);
    assert!(text(&b.oci(&["exec", &b.id, "readlink", "/proc/self/ns/user"])).contains(&own));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains("Uid:\t100000\t100000\t100000\t100000\n"),
        "{status}"
    );
    let out = said(&b, 4);
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "5000", own.as_str(), "edge"]);
    // Its other namespaces belong to it: who is root there may set their names.
    let entered = std::process::Command::new("nsenter")
        .args(["-t", &pid, "-U", "-u", "--setuid", "0", "hostname", "renamed"])
        .output()
        .unwrap();
    assert!(entered.status.success(), "{entered:?}");
    down(&b);
    // Its maps may stand in the configuration too.
    let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 5000}]);
    b.config["process"]["args"][2] = json!("true");
    b.set("/linux/uidMappings", map(100_000))
        .set("/linux/gidMappings", map(100_000));
    b.output();
    b.set("/linux/gidMappings", map(7000));
    assert!(b.refusal().contains("linux.gidMappings"));
}

#[test]
fn a_user_namespace_of_others_is_not_joined() {
    use std::os::unix::process::CommandExt;
    let mut b = Bundle::new("true");
    b.set("/linux/namespaces/-", json!({"type": "user"}));
    let mut refusal = |path: String| {
        b.config["linux"]["namespaces"][6]["path"] = json!(path);
        b.refusal()
    };
    let unmapped = Namespace::users();
    assert!(refusal(unmapped.path("user")).contains("it has no maps yet"));
    let mut unshare = std::process::Command::new("unshare");
    let others = Namespace::new(unshare.args(["-U", "sleep", "1000"]).uid(1000).gid(1000), "user");
    others.map("0 100000 5000\n");
    let message = refusal(others.path("user"));
    assert!(message.contains("user 1000 made it"), "{message}");
    let mut nested = std::process::Command::new("unshare");
    let nested = Namespace::new(nested.args(["-r", "unshare", "-r", "sleep", "1000"]), "user");
    assert!(refusal(nested.path("user")).contains("not made in the runtime's own"));
    assert!(refusal("/proc/self/ns/user".into()).contains("the runtime's own"));
    assert!(refusal("/proc/self/ns/uts".into()).contains("no user namespace"));
}

#[test]
fn a_mount_namespace_is_joined_by_its_path_and_given_back() {
    let mounts = Namespace::new(
        std::process::Command::new("unshare").args(["-m", "sleep", "1000"]),
        "mnt",
    );
    let look = |file: &str| {
        let out = std::process::Command::new("nsenter")
            .arg(format!("-m{}", mounts.path("mnt")))
            .args(["/bin/sh", "-c", file])
            .output();
        text_of(&out.unwrap())
    };
    let mut b = Bundle::new("cat /etc/marker /tmp/x/marker; exec sleep 1000");
    fs::write(b.rootfs().join("etc/marker"), "the container's\n").unwrap();
    b.set("/linux/seccomp", json!(null));
    b.config["linux"]["namespaces"][1]["path"] = json!(mounts.path("mnt"));
    b.set(
        "/mounts/-",
        json!({"destination": "/tmp/x", "source": b.rootfs().join("etc"), "options": ["bind", "ro"]}),
    );
    let before = look("grep -c . /proc/self/mountinfo");
    let roots = fs::read_link(format!("/proc/{}/root", mounts.0.id())).unwrap();
    let pid = up(&b, &[]);
    let ns = |path: &str| fs::read_link(path).unwrap();
    assert_eq!(ns(&format!("/proc/{pid}/ns/mnt")), ns(&mounts.path("mnt")));
    assert_eq!(said(&b, 2), "the container's\nthe container's\n");
    assert_eq!(
        text(&b.oci(&["exec", &b.id, "cat", "/etc/marker"])),
        "the container's\n"
    );
    // Who is in it keeps his root, and his mounts.
    assert_eq!(
        fs::read_link(format!("/proc/{}/root", mounts.0.id())).unwrap(),
        roots
    );
    assert!(std::path::Path::new(&format!("/proc/{}/root/usr/bin/unshare", mounts.0.id())).exists());
    // A second root over the first: the first cannot go before it.
    let mut second = Bundle::new("exec sleep 1000");
    second.config["linux"]["namespaces"][1]["path"] = json!(mounts.path("mnt"));
    up(&second, &[]);
    assert_eq!(
        text(&b.oci(&["exec", &b.id, "cat", "/etc/marker"])),
        "the container's\n"
    );
    let out = b.oci(&["delete", "--force", &b.id]);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(message.contains("another root lies over"), "{message}");
    down(&second);
    down(&b);
    assert_eq!(
        look("grep -c . /proc/self/mountinfo"),
        before,
        "the namespace is as it was"
    );
    // A creation that fails leaves it so too.
    b.config["process"]["args"] = json!(["/no/such/program"]);
    b.refusal();
    assert_eq!(look("grep -c . /proc/self/mountinfo"), before);
    for set in ["bounding", "effective", "permitted"] {
        b.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_ADMIN"]));
    }
    assert!(b.refusal().contains("could unmount its root"));
}

#[test]
fn a_mount_namespace_whose_root_is_shared_is_refused() {
    let mounts = Namespace::new(
        std::process::Command::new("unshare").args(["-m", "--propagation", "shared", "sleep", "1000"]),
        "mnt",
    );
    let mut b = Bundle::new("true");
    b.config["linux"]["namespaces"][1]["path"] = json!(mounts.path("mnt"));
    let message = b.refusal();
    assert!(message.contains("its root is shared"), "{message}");
    b.config["linux"]["namespaces"][1]["path"] = json!("/proc/self/ns/uts");
    assert!(b.refusal().contains("join mount namespace"));
}

#[test]
fn a_time_namespace_is_made_and_joined() {
    let time = |pid: &str| {
        fs::read_link(format!("/proc/{pid}/ns/time"))
            .unwrap()
            .display()
            .to_string()
    };
    let mut a = Bundle::new("exec sleep 1000");
    a.set("/linux/namespaces/-", json!({"type": "time"}));
    assert!(a.create().0);
    let pid = a.state()["pid"].to_string();
    assert_ne!(time(&pid), time("self"));
    let mut b = Bundle::new("readlink /proc/self/ns/time");
    b.set(
        "/linux/namespaces/-",
        json!({"type": "time", "path": format!("/proc/{pid}/ns/time")}),
    );
    assert_eq!(b.output().trim(), time(&pid));
}

#[test]
fn namespaces_are_joined_by_path() {
    let a = Bundle::new("exec sleep 1000");
    assert!(a.create().0);
    let pid = a.state()["pid"].as_i64().unwrap();
    let mut b = Bundle::new("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; hostname");
    let ns = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    b.set(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "pid"}, ns("network", "net"), ns("ipc", "ipc"), ns("uts", "uts")]),
    );
    b.set("/hostname", json!(null));
    let out = b.output();
    let link = |file: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{file}"))
            .unwrap()
            .display()
            .to_string()
    };
    assert_eq!(
        out.lines().collect::<Vec<_>>(),
        [link("net"), link("ipc"), "edge".into()]
    );
    // A shared pid namespace: the other's first process is pid 1 there.
    b.set("/linux/namespaces", json!([{"type": "mount"}, ns("pid", "pid")]));
    b.set(
        "/process/args",
        json!(["/bin/sh", "-c", "cat /proc/1/comm; test $$ != 1"]),
    );
    assert!(!b.output().is_empty());
}
