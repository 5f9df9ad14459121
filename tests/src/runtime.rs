//! An OCI runtime as a program: create, start, run, exec, state, delete, each with a time limit.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::agent::binary;
use anyhow::{Context, Result};

/// A runtime that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command of the runtime left.
#[derive(Debug)]
pub struct Done {
    /// It ended with 0.
    pub good: bool,
    /// It did not end in time and was killed.
    pub hung: bool,
    /// Standard output and standard error.
    pub text: String,
}

/// The program and the words before its own options.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    words: Vec<String>,
    crun: bool,
}

impl Runtime {
    /// `berth`, a program in PATH, or a path.
    pub fn named(name: &str) -> Result<Runtime> {
        if name == "berth" {
            return Ok(Runtime {
                program: binary(),
                words: vec!["oci".into()],
                crun: false,
            });
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut found = path
            .split(':')
            .chain(["/usr/sbin"])
            .map(|dir| Path::new(dir).join(name));
        let program = found
            .find(|p| p.is_file())
            .with_context(|| format!("no {name}: apt-get install {name}"))?;
        Ok(Runtime {
            program,
            words: Vec::new(),
            crun: name == "crun",
        })
    }

    /// Is it the project's own?
    pub fn is_berth(&self) -> bool {
        self.words == ["oci"]
    }

    /// Its name and version, one line.
    pub fn version(&self) -> String {
        let name = self
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name == "berth" {
            return name;
        }
        let output = Command::new(&self.program).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        let version = text.ok().and_then(|t| t.lines().next().map(str::to_owned));
        version.unwrap_or(name).replace(" version", "")
    }

    /// crun refuses a node that has the v2 hierarchy beside v1's: it gets a mount namespace without it.
    pub fn hybrid_is_refused(&self) -> bool {
        let crun = self.program.file_name().is_some_and(|n| n == "crun");
        (crun || self.crun) && Path::new("/sys/fs/cgroup/unified").exists()
    }

    /// The same runtime from a copy of its program, which an attack may harm.
    pub fn copied(&self, to: &Path) -> Result<(Runtime, PathBuf)> {
        fs::copy(&self.program, to).with_context(|| format!("copy {}", self.program.display()))?;
        let copy = Runtime {
            program: to.to_owned(),
            words: self.words.clone(),
            crun: self.crun,
        };
        Ok((copy, to.to_owned()))
    }

    /// A command of it, with this state root.
    pub fn command(&self, root: &Path, args: &[&str]) -> Command {
        let mut command = if self.hybrid_is_refused() {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-c"]);
            command.args(["umount /sys/fs/cgroup/unified; exec \"$@\"", "sh"]);
            command.arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.words).arg("--root").arg(root).args(args);
        command.stdin(Stdio::null()).current_dir("/");
        command
    }
}

/// Run a command with a time limit; its words go through a file, so that a container that stays holds no pipe.
pub fn within(command: &mut Command, folder: &Path) -> Result<Done> {
    let path = folder.join("words");
    let file = fs::File::create(&path)?;
    command.stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let mut bytes = Vec::new();
    fs::File::open(&path)?.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(Done {
        good: status.is_some_and(|s| s.success()),
        hung: status.is_none(),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    })
}
