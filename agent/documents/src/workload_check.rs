//! What the fields of a workload say about each other, and the ranges that a type alone does not hold. Pure.
//!
//! Each refusal names the range and what to change. The bounds are the kernel's: sched(7), sched_setattr(2),
//! cgroups(7).

use std::collections::BTreeSet;
use std::path::Path;

use berth_rt::sched::Scheduler;

use crate::document::shown;
use crate::fault::Problem;
use crate::values::{AbsolutePath, Duration};
use crate::workload::{
    Cni, CpuRequest, Isolation, Mount, Network, PIDS_MAX, Policy, Realtime, Scheduling, Secret, WorkloadSpec,
};

/// The kernel refuses a SCHED_DEADLINE runtime below 2^10 ns.
const DEADLINE_MIN_NS: u64 = 1024;
/// The kernel's bound on a SCHED_DEADLINE period where sched_deadline_period_max_us is not lowered: 2^22 us.
const DEADLINE_MAX_NS: u64 = (1 << 22) * 1000;
const MEMORY_MIN: u64 = 1024 * 1024;

const GRACE_MAX: Duration = Duration::from_secs(3600);
/// Paths inside that belong to the runtime.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl WorkloadSpec {
    /// Every problem of this spec by itself; paths start with `spec`.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.image(&mut problems);
        self.process(&mut problems);
        if self.isolation == Isolation::Required && self.cpus == CpuRequest::Shared {
            problems.push(
                Problem::new("spec.isolation", "`required` with shared cores")
                    .expected("`any`, or whole cores")
                    .hint("shared cores are never isolated: set spec.cpus to a number of cores")
                    .rests_on(&["spec.cpus"]),
            );
        }
        if let Some(realtime) = &self.realtime {
            self.realtime(realtime, &mut problems);
        }
        if let Some(memory) = self.memory.filter(|memory| memory.bytes() < MEMORY_MIN) {
            problems.push(
                Problem::new("spec.memory", format!("found {memory}"))
                    .expected("1Mi or more")
                    .hint("sizes without a suffix are bytes: write 64Mi for 64 MiB"),
            );
        }
        if let Some(pids) = self.pids.filter(|pids| !(1..=PIDS_MAX).contains(pids)) {
            problems.push(
                Problem::new("spec.pids", format!("found {pids}"))
                    .expected("1 to 4194304")
                    .hint("the workload's own first process is one"),
            );
        }
        self.lifecycle(&mut problems);
        mounts(&self.mounts, &mut problems);
        if let Network::Cni(cni) = &self.network {
            network(cni, &mut problems);
        }
        secrets(&self.secrets, &self.mounts, &mut problems);
        problems
    }

    fn image(&self, problems: &mut Vec<Problem>) {
        if !is_reference(&self.image) {
            problems.push(
                Problem::new("spec.image", format!("found `{}`", shown(&self.image)))
                    .expected("an image reference: name[:tag] or name@sha256:<64 hex digits>, in lower case")
                    .hint("`berth image ls` lists the images of this node"),
            );
        }
    }

    fn process(&self, problems: &mut Vec<Problem>) {
        if self
            .command
            .as_ref()
            .is_some_and(|command| command.first().is_none_or(String::is_empty))
        {
            problems.push(
                Problem::new("spec.command", "there is no program to run")
                    .expected("a list with the program first")
                    .hint("take `command` away to run the image's entrypoint"),
            );
        }
        for (field, list) in [("command", &self.command), ("args", &self.args)] {
            for (index, text) in list.iter().flatten().enumerate() {
                if text.contains('\0') {
                    problems.push(nul(&format!("spec.{field}[{index}]")));
                }
            }
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for (index, variable) in self.env.iter().enumerate() {
            let path = format!("spec.env[{index}].name");
            if !is_env_name(&variable.name) {
                problems.push(
                    Problem::new(&path, format!("found `{}`", shown(&variable.name)))
                        .expected("letters, digits and `_`, not a digit first"),
                );
            } else if !seen.insert(&variable.name) {
                problems.push(
                    Problem::new(&path, format!("`{}` is set twice", variable.name))
                        .expected("each variable once"),
                );
            }
            if variable.value.contains('\0') {
                problems.push(nul(&format!("spec.env[{index}].value")));
            }
        }
    }

    fn realtime(&self, realtime: &Realtime, problems: &mut Vec<Problem>) {
        if let Some(scheduling) = &realtime.scheduler {
            scheduling.validate(problems);
            if scheduling.policy == Policy::Deadline {
                let refused = |path: &str, message: &str| {
                    Problem::new(path, message)
                        .expected("whole cores and `isolation: required` beside policy deadline")
                        .hint(
                            "the kernel admits a pinned SCHED_DEADLINE task only in a cpuset partition of its own",
                        )
                        .rests_on(&["spec.realtime.scheduler.policy"])
                };
                if self.cpus == CpuRequest::Shared {
                    problems.push(refused("spec.cpus", "found shared cores"));
                }
                if self.isolation != Isolation::Required {
                    problems.push(refused("spec.isolation", "found `any`"));
                }
            }
        }
        if realtime.timer_slack.is_some_and(|slack| slack.as_nanos() == 0) {
            problems.push(
                Problem::new("spec.realtime.timerSlack", "found 0s")
                    .expected("1ns or more")
                    .hint("to the kernel 0 means its own default; 1ns is the least slack there is"),
            );
        }
        let cores = match self.cpus {
            CpuRequest::Shared => None,
            CpuRequest::Whole(cores) => Some(cores.get()),
        };
        realtime.check_wishes(cores, problems);
        let Some(budget) = realtime.budget else { return };
        let mut whole = true;
        for (field, time) in [("runtime", budget.runtime), ("period", budget.period)] {
            if time.as_nanos() == 0 || time.as_nanos() % 1000 != 0 {
                whole = false;
                problems.push(
                    Problem::new(format!("spec.realtime.budget.{field}"), format!("found {time}"))
                        .expected("whole microseconds, 1us or more")
                        .hint("the kernel keeps this budget in microseconds"),
                );
            }
        }
        if whole && budget.runtime > budget.period {
            problems.push(
                Problem::new(
                    "spec.realtime.budget.runtime",
                    format!("found {} in a period of {}", budget.runtime, budget.period),
                )
                .expected("at most the period")
                .rests_on(&["spec.realtime.budget.period"]),
            );
        }
    }

    fn lifecycle(&self, problems: &mut Vec<Problem>) {
        if self.restart.limit == 0 {
            problems.push(
                Problem::new("spec.restart.limit", "found 0")
                    .expected("1 or more")
                    .hint("for no restart at all write `policy: never`"),
            );
        }
        if self.restart.window.as_nanos() == 0 {
            problems.push(
                Problem::new("spec.restart.window", "found 0s")
                    .expected("more than 0s")
                    .hint("restarts are counted within this time"),
            );
        }
        if self.stop.grace > GRACE_MAX {
            problems.push(
                Problem::new("spec.stop.grace", format!("found {}", self.stop.grace))
                    .expected("at most 1h")
                    .hint("stop, restart and upgrade wait as long as this"),
            );
        }
    }
}

impl Scheduling {
    /// The kernel's view of it. Of a spec that [`WorkloadSpec::validate`] refuses it says nothing useful:
    /// values out of range are cut to it, absent ones are 0.
    pub fn to_kernel(&self) -> Scheduler {
        let nice = self.nice.unwrap_or(0).clamp(-20, 19) as i32;
        let priority = self.priority.unwrap_or(0).clamp(0, 99) as u32;
        let nanos = |time: Option<Duration>| time.map_or(0, Duration::as_nanos);
        match self.policy {
            Policy::Other => Scheduler::Other { nice },
            Policy::Batch => Scheduler::Batch { nice },
            Policy::Idle => Scheduler::Idle,
            Policy::Fifo => Scheduler::Fifo { priority },
            Policy::Rr => Scheduler::Rr { priority },
            Policy::Deadline => Scheduler::Deadline {
                runtime: nanos(self.runtime),
                deadline: nanos(self.deadline.or(self.period)),
                period: nanos(self.period),
            },
        }
    }

    /// Which fields go with the policy, and their ranges.
    fn validate(&self, problems: &mut Vec<Problem>) {
        const BASE: &str = "spec.realtime.scheduler";
        let policy = self.policy.as_str();
        let fifo = matches!(self.policy, Policy::Fifo | Policy::Rr);
        let nice = matches!(self.policy, Policy::Other | Policy::Batch);
        let deadline = self.policy == Policy::Deadline;
        for (field, there, wanted, required, users) in [
            ("priority", self.priority.is_some(), fifo, fifo, "fifo and rr"),
            ("nice", self.nice.is_some(), nice, false, "other and batch"),
            ("runtime", self.runtime.is_some(), deadline, deadline, "deadline"),
            ("deadline", self.deadline.is_some(), deadline, false, "deadline"),
            ("period", self.period.is_some(), deadline, deadline, "deadline"),
        ] {
            let path = format!("{BASE}.{field}");
            if there && !wanted {
                problems.push(
                    Problem::new(&path, format!("`{field}` with policy {policy}"))
                        .expected(format!("`{field}` only with policy {users}"))
                        .rests_on(&["spec.realtime.scheduler.policy"]),
                );
            } else if required && !there {
                problems.push(
                    Problem::new(&path, format!("policy {policy} without `{field}`"))
                        .expected(if fifo {
                            "priority: 1 to 99"
                        } else {
                            "runtime and period, such as 1ms and 10ms"
                        })
                        .rests_on(&["spec.realtime.scheduler.policy"]),
                );
            }
        }
        if let Some(priority) = self.priority.filter(|priority| !(1..=99).contains(priority)) {
            problems.push(
                Problem::new(format!("{BASE}.priority"), format!("found {priority}"))
                    .expected("1 to 99, where 99 is the highest")
                    .hint("the kernel's own interrupt threads run at 50"),
            );
        }
        if let Some(value) = self.nice.filter(|value| !(-20..=19).contains(value)) {
            problems.push(
                Problem::new(format!("{BASE}.nice"), format!("found {value}"))
                    .expected("-20 to 19, where -20 gets the most time"),
            );
        }
        if deadline {
            self.deadline_bounds(problems);
        }
    }

    fn deadline_bounds(&self, problems: &mut Vec<Problem>) {
        const RUNTIME: &str = "spec.realtime.scheduler.runtime";
        const DEADLINE: &str = "spec.realtime.scheduler.deadline";
        const PERIOD: &str = "spec.realtime.scheduler.period";
        let out = |path: &str, message: String, expected: &str, rests: &[&str]| {
            Problem::new(path, message)
                .expected(expected)
                .hint("1024 ns <= runtime <= deadline <= period")
                .rests_on(rests)
        };
        if let Some(runtime) = self.runtime {
            if runtime.as_nanos() < DEADLINE_MIN_NS {
                problems.push(out(RUNTIME, format!("found {runtime}"), "1024ns or more", &[]));
            }
            if let Some(deadline) = self.deadline.filter(|deadline| runtime > *deadline) {
                let message = format!("runtime {runtime} is longer than the deadline, {deadline}");
                problems.push(out(RUNTIME, message, "at most the deadline", &[DEADLINE]));
            } else if let Some(period) = self
                .period
                .filter(|period| self.deadline.is_none() && runtime > *period)
            {
                let message = format!("runtime {runtime} is longer than the period, {period}");
                problems.push(out(RUNTIME, message, "at most the period", &[DEADLINE, PERIOD]));
            }
        }
        if let (Some(deadline), Some(period)) = (self.deadline, self.period)
            && deadline > period
        {
            let message = format!("deadline {deadline} is later than the period, {period}");
            problems.push(out(DEADLINE, message, "at most the period", &[PERIOD]));
        }
        if let Some(period) = self.period.filter(|period| period.as_nanos() > DEADLINE_MAX_NS) {
            problems.push(
                Problem::new(PERIOD, format!("found {period}"))
                    .expected("at most 4194304us (about 4.19 s)")
                    .hint("the kernel's sched_deadline_period_max_us is the bound"),
            );
        }
    }
}

impl Policy {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Batch => "batch",
            Self::Idle => "idle",
            Self::Fifo => "fifo",
            Self::Rr => "rr",
            Self::Deadline => "deadline",
        }
    }
}

impl WorkloadSpec {
    /// Whether a network interface may be moved into it.
    pub fn takes_interfaces(&self) -> bool {
        self.network != Network::Host
    }
}

fn network(cni: &Cni, problems: &mut Vec<Problem>) {
    let first = cni
        .network
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !first || cni.network.len() > 64 || !cni.network.bytes().all(rest) {
        problems.push(
            Problem::new(
                "spec.network.cni.network",
                format!("found `{}`", shown(&cni.network)),
            )
            .expected("letters, digits, `.`, `_` and `-`, at most 64, a letter or digit first")
            .hint("it is the `name` in a .conflist of /etc/berth/cni or /etc/cni/net.d, not a path"),
        );
    }
    let mut seen = BTreeSet::new();
    for (index, port) in cni.ports.iter().enumerate() {
        let at = |field: &str| format!("spec.network.cni.ports[{index}].{field}");
        for (field, number) in [("host", port.host), ("container", port.container)] {
            if number == 0 {
                problems.push(Problem::new(at(field), "found 0").expected("1 to 65535"));
            }
        }
        if !seen.insert((port.host, port.protocol, port.address)) {
            problems.push(
                Problem::new(
                    at("host"),
                    format!("port {}/{} is given twice", port.host, port.protocol.as_str()),
                )
                .expected("each port of the node once"),
            );
        }
    }
}

/// Where a container has its secrets.
const SECRETS: &str = "/run/secrets";

fn secrets(secrets: &[Secret], mounts: &[Mount], problems: &mut Vec<Problem>) {
    for (index, mount) in mounts.iter().enumerate().filter(|_| !secrets.is_empty()) {
        let destination = &mount.destination;
        if destination.is_within(SECRETS) || Path::new(SECRETS).starts_with(destination.as_path()) {
            problems.push(
                Problem::new(
                    format!("spec.mounts[{index}].destination"),
                    format!("`{destination}` lies over the secrets in {SECRETS}"),
                )
                .expected("another destination, or no secrets"),
            );
        }
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, secret) in secrets.iter().enumerate() {
        let at = |field: &str| format!("spec.secrets[{index}].{field}");
        let name = &secret.name;
        let right = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(right) {
            problems.push(
                Problem::new(at("name"), format!("found `{}`", shown(name)))
                    .expected("1 to 64 letters, digits, `.`, `_` and `-`, no `.` first"),
            );
        } else if !seen.insert(name) {
            problems.push(
                Problem::new(at("name"), format!("`{name}` is given twice")).expected("each name once"),
            );
        }
        if secret.file.is_some() == secret.credential.is_some() {
            problems.push(
                Problem::new(
                    format!("spec.secrets[{index}]"),
                    "neither or both of `file` and `credential`",
                )
                .expected("one of them"),
            );
        }
        if secret.mode_bits().is_none() {
            problems.push(
                Problem::new(at("mode"), format!("found `{}`", shown(&secret.mode)))
                    .expected("an octal mode from \"0\" to \"0777\""),
            );
        }
    }
}

fn mounts(mounts: &[Mount], problems: &mut Vec<Problem>) {
    let mut seen: BTreeSet<&AbsolutePath> = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = format!("spec.mounts[{index}].destination");
        let destination = &mount.destination;
        if destination.as_str() == "/" {
            problems.push(
                Problem::new(&path, "a mount over `/` would hide the image")
                    .expected("a folder below the root, such as `/data`"),
            );
        } else if let Some(reserved) = RESERVED
            .into_iter()
            .find(|reserved| destination.is_within(reserved))
        {
            problems.push(
                Problem::new(&path, format!("found `{destination}`"))
                    .expected("a path outside /proc, /sys and /dev")
                    .hint(match reserved {
                        "/dev" => "devices come in by a HotplugRule's `device`",
                        _ => "the runtime mounts these itself, so that no workload sees a false one",
                    }),
            );
        } else if !seen.insert(destination) {
            problems.push(
                Problem::new(&path, format!("`{destination}` is mounted twice"))
                    .expected("each destination once"),
            );
        }
    }
}

fn nul(path: &str) -> Problem {
    Problem::new(path, "the text holds a NUL character").expected("text without NUL")
}

pub(crate) fn is_env_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// `name[:tag][@sha256:hex]`, the name as in the OCI distribution specification with an optional host first.
fn is_reference(text: &str) -> bool {
    let (rest, digest) = text
        .split_once('@')
        .map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    if let Some(digest) = digest {
        let Some(hex) = digest.strip_prefix("sha256:") else {
            return false;
        };
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return false;
        }
    }
    let tag_at = rest.rfind(':').filter(|at| !rest[*at..].contains('/'));
    let (name, tag) = tag_at.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
    let tag_ok = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && tag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !tag.starts_with(['.', '-'])
    });
    let part_ok = |(index, part): (usize, &str)| {
        let port = if index == 0 && name.contains('/') {
            part.rsplit_once(':')
        } else {
            None
        };
        let host = match port {
            Some((host, port)) if port.parse::<u16>().is_ok() => host,
            Some(_) => return false,
            None => part,
        };
        !host.is_empty()
            && host
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
            && host.starts_with(|c: char| c.is_ascii_alphanumeric())
            && host.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    tag_ok && name.len() <= 255 && name.split('/').enumerate().all(part_ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for good in [
            "a",
            "a:1",
            "berth-sample-worker:latest",
            "host.example:5000/a/b:v1.2",
            "a/b_c",
            &digest,
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "",
            "A",
            "a:",
            "a b",
            "a:/b",
            "host:x/a",
            "a@sha256:12",
            "a//b",
            "-a",
            "a:.x",
            "../a",
            "a@md5:1",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn env_names() {
        for (name, good) in [
            ("A", true),
            ("_a9", true),
            ("9a", false),
            ("", false),
            ("A-B", false),
            ("A=B", false),
        ] {
            assert_eq!(is_env_name(name), good, "{name}");
        }
    }
}
