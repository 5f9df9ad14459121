//! The network of an ordinary workload, made by the node's CNI plug-ins (CNI specification 1.0): ADD once the container's
//! namespace is there and before its program runs, CHECK with every whole proof, DEL when it has ended.
//!
//! ```text
//! STATE/cni/ID.json        what was added and how, from before the first ADD until the last DEL succeeded
//! RUN/network/ID/netns     the namespace, so that DEL finds it after a crash
//! RUN/network/ID/hosts, hostname, resolv.conf     what the container sees in /etc
//! RUN/network/layer/etc/   empty files of those names: places to mount them on in an image that has none
//! ```
//! Invariants: a network and its plug-ins come from root's own folders ([`config`], [`plugin`]); no word of a
//! request becomes a path; the record is written before anything is added, so that whoever comes after a crash, or
//! after a boot, can take it away; DEL goes on after an error and tells all of them.

mod config;
mod plugin;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::paths::{self, Paths};
use crate::wire::{CniRequest, Refusal};

pub(crate) use config::bare;
use config::{CniError, Network};

/// Name of the interface inside.
const INTERFACE: &str = "eth0";
/// So long one plug-in may take.
const ADD_LIMIT: Duration = Duration::from_secs(30);
const DEL_LIMIT: Duration = Duration::from_secs(10);
/// Files of /etc that tell a program of its network.
const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// What was added; kept until it is taken away.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    version: u32,
    id: String,
    network: Network,
    /// `runtimeConfig` of the plug-ins that take port mappings.
    ports: Value,
    /// Result of the last plug-in so far.
    result: Option<Value>,
    /// Types of the plug-ins whose CHECK held right after their ADD. (portmap of Debian 12 looks for rules of IPv6 that
    /// its ADD does not make for a network without it: its word later would say nothing.)
    #[serde(default)]
    asked: Vec<String>,
}

fn folder(paths: &Paths, id: &str) -> PathBuf {
    paths.run.join("network").join(id)
}

fn record_path(paths: &Paths, id: &str) -> PathBuf {
    paths.state.join("cni").join(format!("{id}.json"))
}

/// Ids with a network that was not taken away.
pub(crate) fn known(paths: &Paths) -> Vec<String> {
    let entries = fs::read_dir(paths.state.join("cni"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|e| {
            e.file_name()
                .into_string()
                .ok()?
                .strip_suffix(".json")
                .map(str::to_owned)
        })
        .collect()
}

fn refusal(error: &CniError) -> Refusal {
    Refusal {
        stage: "network".into(),
        message: crate::compose::chain(error),
        hint: error.hint(),
    }
}

/// What can be known before anything is made: the network is there, its plug-ins are, and they take the ports.
fn wanted(paths: &Paths, request: &CniRequest) -> Result<Network, CniError> {
    let folders = [paths.config.join("cni"), PathBuf::from("/etc/cni/net.d")];
    let network = config::find(&folders, &request.network)?;
    for plugin in &network.plugins {
        plugin::find(config::kind(plugin))?;
    }
    if !request.ports.is_empty() && !network.plugins.iter().any(takes_ports) {
        return Err(CniError::NoPorts {
            network: request.network.clone(),
        });
    }
    Ok(network)
}

fn takes_ports(plugin: &Value) -> bool {
    plugin["capabilities"]["portMappings"] == Value::Bool(true)
}

/// The two folders a container with such a network needs: its files, and the layer with places for them.
pub(crate) fn prepare(
    paths: &Paths,
    id: &str,
    host: &str,
    request: &CniRequest,
) -> Result<(PathBuf, PathBuf), Refusal> {
    wanted(paths, request).map_err(|e| refusal(&e))?;
    let make = || -> io::Result<(PathBuf, PathBuf)> {
        let layer = paths.run.join("network/layer");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(layer.join("etc"))?;
        let own = folder(paths, id);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&own)?;
        for name in FILES {
            let place = layer.join("etc").join(name);
            if !place.exists() {
                fs::write(place, "")?;
            }
            fs::write(own.join(name), "")?;
        }
        fs::write(own.join("hostname"), format!("{host}\n"))?;
        Ok((fs::canonicalize(own)?, fs::canonicalize(layer)?))
    };
    make().map_err(|e| Refusal {
        stage: "network".into(),
        message: format!("{}: {e}", folder(paths, id).display()),
        hint: None,
    })
}

/// Destination and name of each file that is mounted.
pub(crate) fn files() -> impl Iterator<Item = (PathBuf, &'static str)> {
    FILES.into_iter().map(|name| (Path::new("/etc").join(name), name))
}

/// Adds the network to the namespace of `pid`. What a failure leaves is taken away by [`detach`].
///
/// # Errors
/// Which plug-in said what.
pub(crate) fn attach(
    paths: &Paths,
    id: &str,
    host: &str,
    pid: i32,
    request: &CniRequest,
) -> Result<(), Refusal> {
    let network = wanted(paths, request).map_err(|e| refusal(&e))?;
    let ports: Vec<Value> = request
        .ports
        .iter()
        .map(|p| json!({"hostPort": p.host, "containerPort": p.container, "protocol": p.protocol, "hostIP": p.address.map(|a| a.to_string()).unwrap_or_default()}))
        .collect();
    let mut record = Record {
        version: crate::wire::VERSION,
        id: id.to_owned(),
        network,
        ports: ports.into(),
        result: None,
        asked: Vec::new(),
    };
    let file = |e: io::Error| Refusal {
        stage: "network".into(),
        message: e.to_string(),
        hint: None,
    };
    let netns = hold(paths, id, pid).map_err(file)?;
    record.store(paths).map_err(file)?;
    for plugin in record.network.plugins.clone() {
        let said = record
            .call("ADD", &plugin, Some(&netns), ADD_LIMIT)
            .map_err(|e| refusal(&e))?;
        let Some(result) = said else {
            return Err(refusal(&CniError::Said {
                plugin: config::kind(&plugin).to_owned(),
                command: "ADD",
                message: "nothing: no result".into(),
            }));
        };
        record.result = Some(result);
        record.store(paths).map_err(file)?;
    }
    if record.network.can_check() {
        for plugin in record.network.plugins.clone() {
            match record.call("CHECK", &plugin, Some(&netns), DEL_LIMIT) {
                Ok(_) => record.asked.push(config::kind(&plugin).to_owned()),
                Err(e) => eprintln!("berth monitor of {id}: network: not asked again: {e}"),
            }
        }
        record.store(paths).map_err(file)?;
    }
    let result = record.result.clone().unwrap_or_default();
    let own = folder(paths, id);
    fs::write(own.join("hosts"), hosts(host, &addresses(&result))).map_err(file)?;
    fs::write(own.join("resolv.conf"), resolvers(&result)).map_err(file)
}

/// Asks the plug-ins whether what they added is still so; `None`: there is no network, or nobody who can be asked.
pub(crate) fn check(paths: &Paths, id: &str) -> Option<Result<Vec<IpAddr>, String>> {
    let record = Record::load(paths, id).ok()??;
    if record.asked.is_empty() {
        return None;
    }
    let netns = folder(paths, id).join("netns");
    let asked = |plugin: &&Value| record.asked.iter().any(|kind| kind == config::kind(plugin));
    for plugin in record.network.plugins.iter().filter(asked) {
        if let Err(e) = record.call("CHECK", plugin, Some(&netns), DEL_LIMIT) {
            return Some(Err(crate::compose::chain(&e)));
        }
    }
    Some(Ok(addresses(&record.result.unwrap_or_default())))
}

/// Takes away what was added, last plug-in first; nothing added is no error. What fails is kept for the next try.
///
/// # Errors
/// Everything that failed.
pub(crate) fn detach(paths: &Paths, id: &str) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    let own = folder(paths, id);
    let netns = own.join("netns");
    match Record::load(paths, id) {
        Ok(Some(record)) => {
            let held = is_namespace(&netns).then_some(netns.as_path());
            for plugin in record.network.plugins.iter().rev() {
                if let Err(e) = record.call("DEL", plugin, held, DEL_LIMIT) {
                    errors.push(crate::compose::chain(&e));
                }
            }
        }
        Ok(None) => {}
        Err(e) => errors.push(e.to_string()),
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if netns.exists() {
        // One that was never mounted is a plain file.
        let _ = umount2(&netns, MntFlags::MNT_DETACH);
    }
    for done in [
        paths::remove_tree(&own),
        paths::remove_file(&record_path(paths, id)),
    ] {
        errors.extend(done.err().map(|e| e.to_string()));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Keeps the network namespace of `pid` under a name.
fn hold(paths: &Paths, id: &str, pid: i32) -> io::Result<PathBuf> {
    let path = folder(paths, id).join("netns");
    fs::File::create(&path)?;
    let from = PathBuf::from(format!("/proc/{pid}/ns/net"));
    mount(Some(&from), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(path)
}

/// Whether the file is a namespace of nsfs; after a boot it is a plain file, or none.
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 == NSFS_MAGIC)
}

impl Record {
    fn call(
        &self,
        command: &'static str,
        plugin: &Value,
        netns: Option<&Path>,
        limit: Duration,
    ) -> Result<Option<Value>, CniError> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.network.version.clone().into();
        config["name"] = self.network.name.clone().into();
        if takes_ports(plugin) {
            config["runtimeConfig"] = json!({"portMappings": self.ports});
        }
        if let Some(result) = &self.result {
            config["prevResult"] = result.clone();
        }
        plugin::call(
            &plugin::Call {
                kind: config::kind(plugin),
                command,
                id: &self.id,
                netns,
                interface: INTERFACE,
                limit,
            },
            &config,
        )
    }

    fn store(&self, paths: &Paths) -> io::Result<()> {
        let path = record_path(paths, &self.id);
        paths::make_dir(path.parent().unwrap_or(Path::new("/")), 0o700)?;
        let new = path.with_extension("new");
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        fs::write(&new, text)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &path)
    }

    fn load(paths: &Paths, id: &str) -> io::Result<Option<Record>> {
        let path = record_path(paths, id);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The container's addresses in a result.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    ips.iter()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

fn hosts(name: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        text.push_str(&format!("{address} {name}\n"));
    }
    text
}

/// What the plug-ins said of name servers; else those of the node that can be reached from another namespace.
fn resolvers(result: &Value) -> String {
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        // A word that would begin a line of its own is none.
        let word = |v: &Value| {
            v.as_str()
                .filter(|s| !s.contains(char::is_whitespace))
                .map(str::to_owned)
        };
        list.iter().filter_map(word).collect()
    };
    let dns = &result["dns"];
    let servers = words(&dns["nameservers"]);
    if servers.is_empty() {
        let nodes = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
        let texts = nodes.iter().filter_map(|path| fs::read_to_string(path).ok());
        return texts
            .map(|t| reachable(&t))
            .find(|t| t.contains("nameserver"))
            .unwrap_or_default();
    }
    let mut text: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
    if let Some(domain) = dns["domain"]
        .as_str()
        .filter(|d| !d.is_empty() && !d.contains(char::is_whitespace))
    {
        text.push_str(&format!("domain {domain}\n"));
    }
    for (key, list) in [
        ("search", words(&dns["search"])),
        ("options", words(&dns["options"])),
    ] {
        if !list.is_empty() {
            text.push_str(&format!("{key} {}\n", list.join(" ")));
        }
    }
    text
}

/// A resolv.conf without servers on the node's own loopback.
fn reachable(text: &str) -> String {
    let own = |line: &str| {
        let server = line.trim().strip_prefix("nameserver").map(str::trim);
        let address = server.and_then(|s| s.split('%').next()?.parse::<IpAddr>().ok());
        address.is_some_and(|a| a.is_loopback())
    };
    text.lines()
        .filter(|l| !own(l))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_result() {
        let result = json!({"ips": [{"address": "10.1.0.7/24"}, {"address": "fd00::7/64"}, {"address": 3}],
            "dns": {"nameservers": ["10.1.0.1", "a\nb"], "search": ["x.test", "y.test"], "domain": "x.test"}});
        let found = addresses(&result);
        assert_eq!(found.len(), 2);
        assert!(hosts("web", &found).contains("10.1.0.7 web\nfd00::7 web\n"));
        assert_eq!(
            resolvers(&result),
            "nameserver 10.1.0.1\ndomain x.test\nsearch x.test y.test\n"
        );
        let node = "nameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\nsearch a\n";
        assert_eq!(reachable(node), "nameserver 192.0.2.1\nsearch a\n");
    }
}
