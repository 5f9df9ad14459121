//! Secrets: in the container and nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::agent::Agent;
use libtest_mimic::Trial;

use crate::journey::{pid, wait_running};
use crate::test;

const WORD: &str = "wEJkq7-the-secret-itself";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "secrets::in a read-only tmpfs inside, and nowhere outside",
            delivered,
        ),
        test("secrets::a file that others can read is refused", refused),
    ]
}

fn workload(extra: &str) -> String {
    format!(
        "apiVersion: berth/v1\nkind: Workload\nmetadata: {{name: keeper}}\nspec:\n  image: berth-sample-busybox:latest\n  \
         command: [\"/bin/sleep\", \"1000\"]\n  cpus: shared\n  stop: {{signal: SIGKILL}}\n  restart: {{policy: never}}\n{extra}"
    )
}

fn secret(agent: &Agent, content: &str) -> Result<String> {
    let folder = agent.path("config/secrets");
    fs::create_dir_all(&folder)?;
    let file = folder.join("token");
    fs::write(&file, content)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    Ok(file.display().to_string())
}

/// Every file below `folder` that holds `word`.
fn holding(folder: &Path, word: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        if kind.as_ref().is_ok_and(|k| k.is_dir()) {
            holding(&path, word, found);
        } else if kind.is_ok_and(|k| k.is_file())
            && fs::read(&path).is_ok_and(|bytes| bytes.windows(word.len()).any(|w| w == word.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
}

fn delivered() -> Result<()> {
    let mut agent = Agent::prepare("secrets")?;
    // As LoadCredential= gives them to the launcher's unit.
    let credentials = agent.path("credentials");
    fs::create_dir(&credentials)?;
    fs::write(credentials.join("key"), "of-systemd")?;
    fs::set_permissions(credentials.join("key"), fs::Permissions::from_mode(0o400))?;
    agent.enter(vec![
        "env".into(),
        format!("CREDENTIALS_DIRECTORY={}", credentials.display()),
    ]);
    agent.spawn(&[])?;
    let file = secret(&agent, WORD)?;
    agent.apply(&workload(&format!(
        "  secrets: [{{name: token, file: {file}, mode: \"0440\", uid: 0, gid: 5}}, {{name: key, credential: key, mode: \"0444\", uid: 7}}]\n"
    )))?;
    wait_running(&mut agent, "keeper", 1)?;
    let inside = |script: &str| agent.ok(&["exec", "keeper", "sh", "-c", script]);
    ensure!(
        inside("cat /run/secrets/token")?.trim() == WORD,
        "another content"
    );
    ensure!(
        inside("stat -c '%a %u %g' /run/secrets/token")?.trim() == "440 0 5",
        "another mode or owner"
    );
    ensure!(
        inside("cat /run/secrets/key; stat -c ' %a %u %g' /run/secrets/key")?.trim() == "of-systemd 444 7 0",
        "the credential"
    );
    let mounted = inside("grep ' /run/secrets ' /proc/self/mounts")?;
    for flag in ["tmpfs", "ro,", "nosuid", "nodev", "noexec"] {
        ensure!(mounted.contains(flag), "{flag}: {mounted}");
    }
    agent.refused(&[
        "exec",
        "keeper",
        "sh",
        "-c",
        "echo x > /run/secrets/new || exit 1",
    ])?;
    agent.refused(&[
        "exec",
        "keeper",
        "sh",
        "-c",
        "env | grep -q secret-itself || exit 1",
    ])?;
    let proof = agent.json(&["prove", "keeper"])?.to_string();
    ensure!(
        proof.contains("/run/secrets"),
        "the proof has no row of it: {proof}"
    );
    // Outside: the file it came from, and nothing else.
    let mut found = Vec::new();
    for folder in ["run", "state", "config"] {
        holding(&agent.path(folder), WORD, &mut found);
    }
    ensure!(found == [file.clone()], "{found:?}");
    ensure!(!agent.log().contains(WORD), "it is in the log");
    for command in [
        &["inspect", "keeper", "-o", "json"][..],
        &["events"],
        &["audit", "ls", "-o", "json"],
        &["prove", "keeper"],
    ] {
        ensure!(!agent.ok(command)?.contains(WORD), "berth {command:?} shows it");
    }
    let main = pid(&agent, "keeper")?;
    for of in ["environ", "cmdline"] {
        let text = fs::read_to_string(format!("/proc/{main}/{of}")).context(of)?;
        ensure!(!text.contains(WORD), "{of}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        !mounts.contains("/secrets/keeper"),
        "still attached outside: {mounts}"
    );
    // What is written there later is seen by the next container.
    secret(&agent, "another one")?;
    ensure!(
        agent.ok(&["exec", "keeper", "cat", "/run/secrets/token"])?.trim() == WORD,
        "it changed under the container"
    );
    agent.ok(&["restart", "keeper"])?;
    ensure!(
        agent.ok(&["exec", "keeper", "cat", "/run/secrets/token"])?.trim() == "another one",
        "not rotated"
    );
    agent.finish()
}

fn refused() -> Result<()> {
    let mut agent = Agent::start("nosecret")?;
    let file = secret(&agent, WORD)?;
    let link = agent.path("config/secrets/link");
    std::os::unix::fs::symlink(&file, &link)?;
    let cases = [
        (file.clone(), 0o644, "can be read by others"),
        (link.display().to_string(), 0o600, "token: "),
        ("/etc/shadow".to_owned(), 0o600, "may not be asked for"),
        (
            agent.path("config/secrets/none").display().to_string(),
            0o600,
            "No such file",
        ),
    ];
    for (path, mode, word) in cases {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        agent.apply(&workload(&format!(
            "  secrets: [{{name: token, file: {path}}}]\n"
        )))?;
        agent.wait_for("it is refused", |a| {
            Ok(a.ok(&["inspect", "keeper"])?.contains(word))
        })?;
        agent.ok(&["delete", &agent.path("documents.yaml").display().to_string()])?;
        agent.wait_for("it is gone", |a| {
            Ok(a.json(&["ps"])?.as_array().is_some_and(Vec::is_empty))
        })?;
    }
    ensure!(!agent.log().contains(WORD), "it is in the log");
    agent.finish()
}
