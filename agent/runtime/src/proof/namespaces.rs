//! The namespaces of a process beside the reader's own, and the id maps of its user namespace: /proc/PID/ns (namespaces(7)),
//! uid_map and gid_map (user_namespaces(7)).

use std::path::Path;

use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::Mode;

use super::facts::{Facts, maps};
use super::procfs::{Process, id_map};
use super::{IdMap, NamespaceKind, NamespacePromise, Promise};

/// The namespaces of the kinds that are wanted now.
pub(super) fn facts(
    facts: &mut Facts,
    promise: &Promise,
    process: &Process,
    proc_root: &Path,
    wanted: impl Fn(&NamespaceKind) -> bool,
) {
    let mut asked = promise
        .namespaces
        .iter()
        .filter(|(kind, _)| wanted(kind))
        .peekable();
    if asked.peek().is_none() {
        return;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let own = nix::fcntl::open(&proc_root.join("self/ns"), flags, Mode::empty());
    for (kind, promised) in asked {
        let file = format!("ns/{}", kind.as_str());
        let (name, source) = (format!("namespace.{}", kind.as_str()), process.source(&file));
        let actual = match process.link(&file) {
            Ok(actual) => actual,
            Err(e) => {
                facts.unreadable(name, format!("{promised:?}"), source, &e);
                continue;
            }
        };
        let host = own
            .as_ref()
            .map_err(|e| *e)
            .and_then(|own| readlinkat(own, kind.as_str()))
            .map(|host| host.to_string_lossy().into_owned());
        let (words, holds) = match (promised, &host) {
            (NamespacePromise::Joined { inode }, _) => {
                let words = format!("{}:[{inode}]", kind.as_str());
                let holds = words == actual;
                (words, holds)
            }
            (_, Err(e)) => {
                facts.unreadable(
                    name,
                    "known host namespace",
                    format!("{}/self/{file}", proc_root.display()),
                    e,
                );
                continue;
            }
            (NamespacePromise::New, Ok(host)) => (format!("not the host's {host}"), *host != actual),
            (NamespacePromise::Host, Ok(host)) => (host.clone(), *host == actual),
        };
        facts.add(name, words, actual, source, holds);
    }
}

/// Maps of user and group ids.
pub(super) fn id_maps(facts: &mut Facts, promise: &Promise, process: &Process) {
    for (name, promised) in [("uid_map", &promise.uid_map), ("gid_map", &promise.gid_map)] {
        let Some(promised) = promised else { continue };
        let source = process.source(name);
        let mut promised: Vec<IdMap> = promised.clone();
        promised.sort_unstable();
        match process.read(name).map(|text| id_map(&text).ok_or(text)) {
            Ok(Ok(actual)) => facts.add(name, maps(&promised), maps(&actual), source, promised == actual),
            Ok(Err(text)) => facts.add(name, maps(&promised), text, source, false),
            Err(e) => facts.unreadable(name, maps(&promised), source, &e),
        }
    }
}
