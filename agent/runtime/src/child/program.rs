//! Which file a container's first argument means, and executing it.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::recipe::Process;
use crate::report::Failure;
use crate::sys::process as sys;

/// The files that argv[0] may mean, in order: itself where it has a slash, else below each part of PATH.
fn candidates(program: &CStr, env: &[CString]) -> Vec<CString> {
    let program = program.to_bytes();
    if program.contains(&b'/') {
        return CString::new(program).into_iter().collect();
    }
    let path = env
        .iter()
        .rev()
        .find_map(|e| e.to_bytes().strip_prefix(b"PATH="))
        .unwrap_or(b"");
    path.split(|b| *b == b':')
        .map(|dir| if dir.is_empty() { &b"."[..] } else { dir })
        .filter_map(|dir| CString::new([dir, b"/", program].concat()).ok())
        .collect()
}

/// See at create time that there is something to execute.
pub(crate) fn find_program(process: &Process) -> Result<(), Failure> {
    let Some(program) = process.args.first() else {
        return Err(Failure::refused("exec", "", "process.args is empty"));
    };
    let name = Path::new(OsStr::from_bytes(program.to_bytes()));
    let mut worst = Errno::ENOENT;
    for file in candidates(program, &process.env) {
        let path = Path::new(OsStr::from_bytes(file.to_bytes()));
        match access(path, AccessFlags::X_OK).and_then(|()| nix::sys::stat::stat(path)) {
            Ok(stat) if crate::rootfs::is_dir(&stat) => worst = Errno::EACCES,
            Ok(_) => return Ok(()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => worst = errno,
        }
    }
    let mut failure = Failure::new("executable file", name, worst);
    if !program.to_bytes().contains(&b'/') {
        failure.detail = "not found in $PATH".to_owned();
    }
    Err(failure)
}

/// exec; on failure say so and end.
pub(super) fn exec(process: &Process, start: (Vec<CString>, Vec<CString>), tell: RawFd) -> ! {
    let (args, more) = start;
    let args = if args.is_empty() { &process.args } else { &args };
    let mut env = Vec::with_capacity(process.env.len() + more.len());
    // A name that comes again replaces the earlier one.
    let name = |pair: &CString| pair.to_bytes().split(|b| *b == b'=').next().map(<[u8]>::to_vec);
    let replaced: Vec<_> = more.iter().map(name).collect();
    env.extend(
        process
            .env
            .iter()
            .filter(|e| more.is_empty() || !replaced.contains(&name(e)))
            .cloned(),
    );
    env.extend(more);
    super::give_up(tell, &exec_first(args, &env))
}

/// Try every candidate; returns the failure that says most.
pub(crate) fn exec_first(args: &[CString], env: &[CString]) -> Failure {
    let Some(program) = args.first() else {
        return Failure::refused("exec", "", "process.args is empty");
    };
    let (argv, envp) = (sys::pointers(args), sys::pointers(env));
    let mut worst = Errno::ENOENT;
    for file in candidates(program, env) {
        match sys::exec(&file, &argv, &envp) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            errno => worst = errno,
        }
    }
    Failure::new("exec", OsStr::from_bytes(program.to_bytes()), worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(words: &[&str]) -> Vec<CString> {
        words.iter().map(|w| CString::new(*w).unwrap()).collect()
    }

    #[test]
    fn where_a_program_is_looked_for() {
        assert_eq!(candidates(c"bin/x", &c(&["PATH=/a"])), c(&["bin/x"]));
        assert_eq!(
            candidates(c"x", &c(&["PATH=/a", "PATH=/b::/c"])),
            c(&["/b/x", "./x", "/c/x"])
        );
        assert_eq!(candidates(c"x", &c(&["A=1"])), c(&["./x"]));
    }
}
