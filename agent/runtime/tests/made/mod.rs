//! Containers made by the library, in a test program of one thread.
#![allow(dead_code)] // each test program uses its part
#![allow(clippy::unwrap_used)] // helpers of tests

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use berth_rt::cgroup::Hierarchy;
use berth_runtime::{Container, Context, Extensions, Plan, Stdio};

use crate::common::Bundle;

/// A container's output: the read end of a pipe.
pub(crate) struct Made {
    pub(crate) container: Container,
    pub(crate) output: File,
}

pub(crate) fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

pub(crate) fn stdio(out: OwnedFd) -> Stdio {
    let err = out.try_clone().unwrap();
    Stdio {
        stdin: File::open("/dev/null").unwrap().into(),
        stdout: out,
        stderr: err,
    }
}

pub(crate) fn hierarchy() -> Hierarchy {
    Hierarchy::discover(Path::new("/")).unwrap()
}

pub(crate) fn plan(b: &Bundle, extensions: &Extensions) -> Plan {
    let spec = serde_json::from_value(b.config.clone()).unwrap();
    let (root, hierarchy) = (b.root(), hierarchy());
    let context = Context {
        state_root: &root,
        hierarchy: &hierarchy,
        cgroup_parent: "",
        detached: false,
    };
    Plan::prepare(&b.id, &b.dir, &spec, extensions, &context).unwrap()
}

pub(crate) fn make(b: &Bundle, extensions: &Extensions) -> Made {
    let (output, write) = pipe();
    let container = plan(b, extensions).create(stdio(write)).unwrap();
    Made { container, output }
}

impl Made {
    /// Wait for the end, free it, give what it wrote.
    pub(crate) fn finish(mut self, b: &Bundle) -> String {
        self.container.wait().unwrap();
        self.container.delete().unwrap();
        b.assert_nothing_left();
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::with_capacity(1, &mut self.output)
            .read_line(&mut line)
            .unwrap();
        line.trim_end().to_owned()
    }
}

/// Run the cases whose name has the first argument in it, one after the other.
pub(crate) fn run(all: &[(&str, fn())]) {
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for (name, case) in all {
        if only.as_ref().is_none_or(|o| name.contains(o.as_str())) {
            case();
            println!("test {name} ... ok");
        }
    }
}
