//! One call of a plug-in: a program of root's own folders, its parameters in the environment, its configuration on
//! standard input, its result on standard output.
//!
//! Invariants: nothing of the launcher's environment goes along; a plug-in that hangs is killed; one that says
//! too much is cut off.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use std::os::fd::AsFd;

use super::config::{CniError, trusted};

/// Where plug-ins are looked for, in this order.
const FOLDERS: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
/// Most bytes of a result.
const LONGEST: usize = 1 << 20;

/// What is called and for whom.
pub(super) struct Call<'a> {
    pub(super) kind: &'a str,
    pub(super) command: &'static str,
    pub(super) id: &'a str,
    pub(super) netns: Option<&'a Path>,
    pub(super) interface: &'a str,
    pub(super) limit: Duration,
}

/// The folders that are root's alone.
fn folders() -> Vec<&'static str> {
    FOLDERS
        .into_iter()
        .filter(|f| trusted(Path::new(f)).is_ok_and(|m| m.is_dir()))
        .collect()
}

/// The program of a plug-in.
pub(super) fn find(kind: &str) -> Result<PathBuf, CniError> {
    let refuse = |reason: String| CniError::Plugin {
        kind: kind.to_owned(),
        reason,
    };
    for folder in folders() {
        let path = Path::new(folder).join(kind);
        let Ok(real) = std::fs::canonicalize(&path) else {
            continue;
        };
        let meta = trusted(&real).map_err(refuse)?;
        trusted(real.parent().unwrap_or(Path::new("/"))).map_err(refuse)?;
        if !meta.is_file() {
            return Err(refuse(format!("{} is no file", real.display())));
        }
        return Ok(real);
    }
    Err(refuse(format!("it is not in {}", FOLDERS.join(", "))))
}

/// Calls it.
pub(super) fn call(call: &Call<'_>, config: &Value) -> Result<Option<Value>, CniError> {
    let said = |message: String| CniError::Said {
        plugin: call.kind.to_owned(),
        command: call.command,
        message,
    };
    let program = find(call.kind)?;
    let mut command = Command::new(&program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.id)
        .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
        .env("CNI_IFNAME", call.interface)
        .env("CNI_PATH", folders().join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|e| said(format!("{}: {e}", program.display())))?;
    let done = talk(&mut child, config, call.limit);
    if done.is_err() {
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    let status = child.wait().map_err(|e| said(e.to_string()))?;
    let text = done.map_err(said)?;
    let value: Option<Value> = serde_json::from_slice(&text).ok();
    if status.success() {
        return Ok(value.filter(Value::is_object));
    }
    let word = |key: &str| {
        value
            .as_ref()
            .and_then(|v| v[key].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let message = match (word("msg"), word("details")) {
        (msg, _) if msg.is_empty() => status.to_string(),
        (msg, details) if details.is_empty() => msg,
        (msg, details) => format!("{msg}: {details}"),
    };
    Err(said(message))
}

/// Writes the configuration, reads what comes until its end or the time is over.
fn talk(child: &mut std::process::Child, config: &Value, limit: Duration) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + limit;
    let (Some(stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no pipes".into());
    };
    let text = serde_json::to_vec(config).map_err(|e| e.to_string())?;
    // A plug-in that does not read must not hold this process.
    crate::socket::set_nonblocking(&stdin, true).map_err(|e| e.to_string())?;
    let (mut stdin, mut written, mut answer) = (Some(stdin), 0, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("it took more than {} s", limit.as_secs()));
        }
        let mut fds = vec![PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        if let Some(stdin) = &stdin {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        let millis = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready.get(1) == Some(&true)
            && let Some(pipe) = &mut stdin
        {
            match pipe.write(&text[written..]) {
                Ok(n) => written += n,
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => written = text.len(), // it reads no more: its answer says why
            }
            if written == text.len() {
                stdin = None;
            }
        }
        if ready[0] {
            let mut chunk = [0; 4096];
            match stdout.read(&mut chunk) {
                Ok(0) => return Ok(answer),
                Ok(n) if answer.len() + n > LONGEST => {
                    return Err(format!("it says more than {LONGEST} bytes"));
                }
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: u64) -> Result<Vec<u8>, String> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let config = serde_json::json!({"long": "x".repeat(200_000)});
        let done = talk(&mut child, &config, Duration::from_millis(limit));
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
        child.wait().unwrap();
        done
    }

    #[test]
    fn what_plugins_may_do() {
        assert_eq!(run("wc -c", 20_000).unwrap().trim_ascii(), b"200011");
        assert_eq!(
            run("echo said without reading", 20_000).unwrap(),
            b"said without reading\n"
        );
        assert!(run("sleep 60", 100).unwrap_err().contains("it took more"));
        assert!(run("yes", 20_000).unwrap_err().contains("more than"));
    }

    #[test]
    fn a_plugin_that_is_not_there() {
        let error = find("no-such-plugin").unwrap_err();
        assert!(error.to_string().contains("/usr/lib/cni") && error.hint().is_some());
    }
}
