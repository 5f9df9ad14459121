//! Who may ask what on the agent's socket: real processes of other users, told apart by the kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use berth_tests::agent::{Agent, binary};
use libtest_mimic::Trial;

use crate::test;

/// Groups of the tests' own: numbers that no group of a node has.
const READ: u32 = 47_110;
const OPERATE: u32 = 47_111;
const ADMIN: u32 = 47_112;
/// An ordinary user.
const USER: u32 = 47_000;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "roles::each group may do what its role says and no more",
            each_group,
        ),
        test("roles::without groups the socket is root's alone", root_alone),
    ]
}

const WORKLOAD: &str = "apiVersion: berth/v1\nkind: Workload\nmetadata: {name: web}\nspec:\n  image: berth-sample-busybox:latest\n  \
                        command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {signal: SIGKILL}\n";

fn started() -> Result<Agent> {
    let mut agent = Agent::prepare("roles")?;
    for folder in ["", "run"] {
        fs::set_permissions(agent.path(folder), fs::Permissions::from_mode(0o755))?;
    }
    let groups = [READ, OPERATE, ADMIN].map(|g| g.to_string());
    let [read, operate, admin] = &groups;
    agent.spawn(&[
        "--read-group",
        read,
        "--operate-group",
        operate,
        "--admin-group",
        admin,
    ])?;
    agent.apply(WORKLOAD)?;
    agent.wait_for("it runs", |a| Ok(a.in_state("running")?.len() == 1))?;
    // An ordinary user must reach the program itself.
    let program = agent.path("berth");
    fs::copy(binary(), &program)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    Ok(agent)
}

/// A berth command of an ordinary user with one group, as its own or as a further one.
fn of_user(agent: &Agent, gid: u32, further: Option<u32>, args: &[&str]) -> Result<Output> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &USER.to_string(), "--regid", &gid.to_string()]);
    match further {
        Some(further) => command.args(["--groups", &further.to_string()]),
        None => command.arg("--clear-groups"),
    };
    for (flag, folder) in [
        ("--run-dir", "run"),
        ("--state-dir", "state"),
        ("--config-dir", "config"),
    ] {
        if flag == "--run-dir" {
            command.arg(agent.path("berth"));
        }
        command.arg(flag).arg(agent.path(folder));
    }
    command.args(args).output().context("setpriv: util-linux")
}

fn each_group() -> Result<()> {
    let mut agent = started()?;
    let file = agent.path("more.yaml");
    fs::write(&file, WORKLOAD.replace("web", "more"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let file = file.display().to_string();
    let look: &[&[&str]] = &[&["ps"], &["inspect", "web"], &["events"], &["prove", "web"]];
    let operate: &[&[&str]] = &[
        &["freeze", "web"],
        &["thaw", "web"],
        &["restart", "web"],
        &["stop", "web"],
        &["start", "web"],
    ];
    let admin: &[&[&str]] = &[
        &["apply", &file],
        &["delete", &file],
        &["run", "berth-sample-busybox:latest", "true"],
    ];
    let may = |what: &str, gid, further, list: &[&[&str]], yes: bool| -> Result<()> {
        for args in list {
            let output = of_user(&agent, gid, further, args)?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if yes {
                // `run` reads the log file of the container, which is root's: what the agent answered counts.
                ensure!(
                    output.status.success() || args[0] == "run" && !text.contains("role"),
                    "{what}: berth {args:?}: {text}"
                );
            } else {
                ensure!(
                    output.status.code() == Some(1) && text.contains("role"),
                    "{what}: berth {args:?}: {text}"
                );
            }
        }
        Ok(())
    };
    may("nobody", USER, None, look, false)?;
    may("nobody", USER, Some(4711), operate, false)?;
    may("read", READ, None, look, true)?;
    may("read", READ, None, operate, false)?;
    may("read", USER, Some(READ), admin, false)?;
    may("operate", USER, Some(OPERATE), look, true)?;
    may("operate", USER, Some(OPERATE), operate, true)?;
    may("operate", OPERATE, None, admin, false)?;
    may("admin", USER, Some(ADMIN), operate, true)?;
    may("admin", USER, Some(ADMIN), admin, true)?;
    // What was refused and what was done is on record with who it was.
    let records = agent.json(&["audit", "ls", "--chain", "agent", "--uid", &USER.to_string()])?;
    let records = records.as_array().context("a list")?.clone();
    let found = |kind: &str, role: &str, result: &str, text: &str| {
        records.iter().any(|r| {
            r["kind"] == kind
                && r["who"]["role"] == role
                && r["result"] == result
                && r["text"].as_str().is_some_and(|t| t.contains(text))
        })
    };
    ensure!(found("refused", "none", "refused", "no role"), "{records:#?}");
    ensure!(
        found("refused", "read", "refused", "`stop` needs the role operate"),
        "{records:#?}"
    );
    ensure!(
        found("refused", "operate", "refused", "`apply` needs the role admin"),
        "{records:#?}"
    );
    ensure!(found("api", "operate", "ok", "freeze"), "{records:#?}");
    ensure!(found("api", "admin", "ok", "apply"), "{records:#?}");
    // The monitors and the launcher hear root alone, whatever the role.
    let output = of_user(&agent, USER, Some(ADMIN), &["exec", "web", "true"])?;
    ensure!(!output.status.success(), "exec went through");
    agent.wait_for("the records hold", |a| {
        Ok(a.try_run(&["audit", "verify"])?.status.success())
    })?;
    agent.finish()
}

fn root_alone() -> Result<()> {
    let mut agent = Agent::prepare("rootonly")?;
    agent.spawn(&[
        "--read-group",
        "no-such-group",
        "--operate-group",
        "no-such-group",
        "--admin-group",
        "no-such-group",
    ])?;
    let mode = fs::metadata(agent.path("run/api.sock"))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    agent.finish()
}
