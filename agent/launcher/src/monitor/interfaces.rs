//! The container's network interfaces: watched while they are inside, given back outside.
//!
//! Invariants: what was moved in goes back under the name and with the MTU it had, when it is taken, when a launch
//! fails and when the container has ended (left to itself the kernel gives a physical one back under its name inside, and
//! destroys a virtual one); what has gone by itself is promised no longer.

use std::fs::File;
use std::os::fd::AsFd;

use super::{Links, Monitor};
use crate::compose::chain;
use crate::wire::{Event, InterfaceGrant, Refusal};

fn refusal(message: String) -> Refusal {
    Refusal {
        stage: "interface".into(),
        message,
        hint: None,
    }
}

impl Monitor<'_> {
    pub(super) fn watch_links(&mut self, interfaces: &[InterfaceGrant]) -> Result<(), Refusal> {
        let names: Vec<String> = interfaces.iter().map(|i| i.inside().clone()).collect();
        let Some(pid) = self.pid.filter(|_| !names.is_empty()) else {
            return Ok(());
        };
        let watched = match &mut self.links {
            Some(links) => links.add(&names),
            None => Links::open(pid, &names).map(|links| self.links = Some(links)),
        };
        watched.map_err(|e| refusal(format!("watching {}: {e}", names.join(", "))))
    }

    /// Interfaces that have gone inside.
    pub(super) fn on_links(&mut self) {
        for (index, name) in self.links.as_mut().map(Links::read).unwrap_or_default() {
            if let Some(container) = &mut self.container {
                container.forget_interface(index);
            }
            self.request.interfaces.retain(|i| *i.inside() != name);
            self.tell(&Event::InterfaceGone { name });
        }
    }

    /// Interfaces go back outside; what it does not have is none.
    pub(super) fn take_interfaces(&mut self, interfaces: &[InterfaceGrant]) -> Result<(), Refusal> {
        if interfaces.is_empty() {
            return Ok(());
        }
        self.on_links();
        let names: Vec<&str> = interfaces.iter().map(|i| i.name.as_str()).collect();
        let (Some(container), Some(links)) = (&mut self.container, &mut self.links) else {
            return Ok(());
        };
        let goes = |name: &str| names.contains(&name);
        let indexes: Vec<u32> = container
            .interfaces()
            .iter()
            .filter(|i| goes(&i.outside))
            .map(|i| i.index)
            .collect();
        links.forget(&indexes);
        let errors = container.give_interfaces_back(links.namespace(), Some(&names));
        self.request.interfaces.retain(|i| !goes(&i.name));
        match errors.first() {
            None => Ok(()),
            Some(e) => Err(Refusal {
                hint: e.hint(),
                ..refusal(chain(e))
            }),
        }
    }

    /// All of them, at the end of the container or of its launch. What cannot be given back is told to the log.
    pub(super) fn give_interfaces_back(&mut self) {
        let Some(container) = self.container.as_mut().filter(|c| !c.interfaces().is_empty()) else {
            return;
        };
        let opened = self
            .pid
            .and_then(|pid| File::open(format!("/proc/{pid}/ns/net")).ok());
        let namespace = match (&self.links, &opened) {
            (Some(links), _) => links.namespace(),
            (None, Some(file)) => file.as_fd(),
            (None, None) => return,
        };
        for e in container.give_interfaces_back(namespace, None) {
            eprintln!("berth monitor of {}: {}", self.request.id, chain(&e));
        }
    }
}
