//! `exec`: options end at the container's id; what follows belongs to the program.

use std::path::PathBuf;

use super::{Bad, Word, Words, unknown};

/// What is to run, in the words of the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::oci) struct ExecArgs {
    pub(in crate::oci) id: String,
    pub(in crate::oci) args: Vec<String>,
    pub(in crate::oci) process: Option<PathBuf>,
    pub(in crate::oci) terminal: bool,
    pub(in crate::oci) console: Option<PathBuf>,
    pub(in crate::oci) detach: bool,
    pub(in crate::oci) pid_file: Option<PathBuf>,
    pub(in crate::oci) cwd: Option<String>,
    pub(in crate::oci) env: Vec<String>,
    /// User and group.
    pub(in crate::oci) user: Option<(u32, Option<u32>)>,
    pub(in crate::oci) groups: Vec<u32>,
    pub(in crate::oci) capabilities: Vec<String>,
    pub(in crate::oci) no_new_privs: bool,
    pub(in crate::oci) label: Option<String>,
    pub(in crate::oci) preserved: u32,
    pub(in crate::oci) while_paused: bool,
    pub(in crate::oci) cgroups: Vec<String>,
}

pub(super) fn parse(words: &mut Words<'_>) -> Result<ExecArgs, Bad> {
    let mut o = ExecArgs::default();
    while let Some(word) = words.next() {
        let option = match word {
            Word::Value(id) => {
                o.id = id.to_string_lossy().into_owned();
                break;
            }
            Word::Option(option) => option,
        };
        let mut text = || words.value(&option).map(|v| v.to_string_lossy().into_owned());
        match option.as_str() {
            "-p" | "--process" => o.process = Some(text()?.into()),
            "-t" | "--tty" => o.terminal = true,
            "--console-socket" => o.console = Some(text()?.into()),
            "-d" | "--detach" => o.detach = true,
            "--pid-file" => o.pid_file = Some(text()?.into()),
            "--cwd" => o.cwd = Some(text()?),
            "-e" | "--env" => o.env.push(text()?),
            "-u" | "--user" => o.user = Some(user(&text()?)?),
            "-g" | "--additional-gids" => {
                let value = text()?;
                let group = value.parse();
                o.groups
                    .push(group.map_err(|_| Bad(format!("{option} `{value}` is no group id"), None))?);
            }
            "-c" | "--cap" => o.capabilities.push(text()?),
            "--preserve-fds" => o.preserved = super::descriptors(text()?.as_ref())?,
            "--cgroup" => o.cgroups.push(text()?),
            "--ignore-paused" => o.while_paused = true,
            "--no-new-privs" => o.no_new_privs = true,
            "--process-label" | "--apparmor" => o.label = Some(text()?),
            _ => return Err(unknown(&option, " of exec")),
        }
        words.no_value_left("exec")?;
    }
    let rest = words.words.get(words.at..).unwrap_or_default();
    o.args = rest.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let hint = Some("exec [options] ID PROGRAM [ARGUMENT…]".to_owned());
    if o.id.is_empty() {
        return Err(Bad("exec: no container is named".into(), hint));
    }
    match (&o.process, o.args.is_empty()) {
        (None, true) => return Err(Bad("exec: no program is named".into(), hint)),
        (Some(_), false) => {
            let hint = Some("the program stands in the --process file".to_owned());
            return Err(Bad("exec: both --process and a program are named".into(), hint));
        }
        _ => {}
    }
    let words_too = !o.env.is_empty()
        || !o.groups.is_empty()
        || !o.capabilities.is_empty()
        || o.cwd.is_some()
        || o.user.is_some()
        || o.label.is_some()
        || o.no_new_privs;
    if o.process.is_some() && words_too {
        let hint = Some("say it in the --process file".to_owned());
        return Err(Bad(
            "exec: options beside --process that stand in it".into(),
            hint,
        ));
    }
    Ok(o)
}

fn user(text: &str) -> Result<(u32, Option<u32>), Bad> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let bad = || Bad(format!("--user `{text}` is not UID[:GID]"), None);
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    Ok((number(uid)?, gid.map(number).transpose()?))
}
