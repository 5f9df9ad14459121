//! The node's CPUs and memory nodes, from `/sys/devices/system/cpu` and `/sys/devices/system/node`.
//!
//! A CPU that is offline has no `topology` folder; it is listed as offline with itself as its only sibling. A kernel without
//! NUMA has no `node` folder: everything is then on node 0.

use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cgroup::FileError;
use crate::cgroup::file;
use crate::cpu::CpuSet;

/// One logical CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// Number of its core within the package (`core_id`); its own number while it is offline.
    pub core: i64,
    /// Number of its package (`physical_package_id`); -1 where the firmware does not tell.
    pub package: i64,
    /// Its memory node.
    pub node: u32,
    /// The hardware threads of its core, itself among them (`thread_siblings_list`).
    pub siblings: CpuSet,
    /// Whether it is online.
    pub online: bool,
}

/// One memory node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// Whether it has memory.
    pub memory: bool,
}

/// What the node is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Topology {
    /// Every CPU that is there, rising.
    pub cpus: Vec<Cpu>,
    /// Every memory node that is online, rising.
    pub nodes: Vec<Node>,
    /// The CPUs that `isolcpus=` or isolated partitions keep out of load balancing.
    pub isolated: CpuSet,
    /// The CPUs of `nohz_full=`.
    pub nohz_full: CpuSet,
}

/// The topology could not be read.
#[derive(Debug, Error)]
#[error("cannot read the CPU topology: {0}")]
pub struct TopologyError(#[from] FileError);

impl Topology {
    /// Reads the topology below `sys_root` (`/sys`).
    ///
    /// # Errors
    /// [`TopologyError`] for a file that is missing or not of the kernel's form.
    pub fn read(sys_root: &Path) -> Result<Topology, TopologyError> {
        let cpu_root = sys_root.join("devices/system/cpu");
        let online: CpuSet = file::parse(&cpu_root.join("online"))?;
        let present: CpuSet = file::parse(&cpu_root.join("present"))?;
        let nodes = nodes(&sys_root.join("devices/system/node"), &present)?;
        let mut cpus = Vec::new();
        for id in present.iter() {
            let topology = cpu_root.join(format!("cpu{id}/topology"));
            let node = nodes
                .iter()
                .find(|node| node.cpus.contains(id))
                .map_or(0, |node| node.id);
            cpus.push(if online.contains(id) {
                Cpu {
                    id,
                    core: file::parse(&topology.join("core_id"))?,
                    package: file::parse(&topology.join("physical_package_id"))?,
                    node,
                    siblings: file::parse(&topology.join("thread_siblings_list"))?,
                    online: true,
                }
            } else {
                let siblings = [id].into_iter().collect();
                Cpu {
                    id,
                    core: i64::from(id),
                    package: -1,
                    node,
                    siblings,
                    online: false,
                }
            });
        }
        // A kernel without nohz_full prints ` (null)` in some versions: that is no list, and no CPU.
        let list = |name: &str| -> Result<CpuSet, FileError> {
            let text = file::read_if_there(&cpu_root.join(name))?.unwrap_or_default();
            Ok(text.trim().parse().unwrap_or_default())
        };
        Ok(Topology {
            cpus,
            nodes,
            isolated: list("isolated")?,
            nohz_full: list("nohz_full")?,
        })
    }

    /// The CPUs that are online.
    #[must_use]
    pub fn online(&self) -> CpuSet {
        self.cpus
            .iter()
            .filter(|cpu| cpu.online)
            .map(|cpu| cpu.id)
            .collect()
    }

    /// The nodes that have memory.
    #[must_use]
    pub fn memory_nodes(&self) -> CpuSet {
        self.nodes
            .iter()
            .filter(|node| node.memory)
            .map(|node| node.id)
            .collect()
    }
}

/// The memory nodes; one node with everything where the kernel has no NUMA.
fn nodes(root: &Path, present: &CpuSet) -> Result<Vec<Node>, FileError> {
    let Some(online) = file::read_if_there(&root.join("online"))? else {
        return Ok(vec![Node {
            id: 0,
            cpus: present.clone(),
            memory: true,
        }]);
    };
    let bad = |_| {
        let source = std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("`{online}` is not a list"),
        );
        FileError::new("read", &root.join("online"), source)
    };
    let online: CpuSet = online.parse().map_err(bad)?;
    let memory = match file::read_if_there(&root.join("has_memory"))? {
        Some(_) => file::parse(&root.join("has_memory"))?,
        None => online.clone(),
    };
    online
        .iter()
        .map(|id| {
            let cpus = file::parse(&root.join(format!("node{id}/cpulist")))?;
            Ok(Node {
                id,
                cpus,
                memory: memory.contains(id),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn two_nodes_two_threads_a_core_and_one_cpu_offline() {
        let root = tempfile::tempdir().unwrap();
        let base = "devices/system/cpu";
        write(
            root.path(),
            &[
                ("devices/system/cpu/online", "0-2\n"),
                ("devices/system/cpu/present", "0-3\n"),
                ("devices/system/cpu/isolated", "2\n"),
                ("devices/system/cpu/nohz_full", " (null)\n"),
                ("devices/system/node/online", "0-1\n"),
                ("devices/system/node/has_memory", "0\n"),
                ("devices/system/node/node0/cpulist", "0-1\n"),
                ("devices/system/node/node1/cpulist", "2-3\n"),
            ],
        );
        for (id, core, package, siblings) in [(0, 0, 0, "0-1"), (1, 0, 0, "0-1"), (2, 0, 1, "2")] {
            let folder = format!("{base}/cpu{id}/topology");
            write(
                root.path(),
                &[
                    (&format!("{folder}/core_id"), &format!("{core}\n")),
                    (&format!("{folder}/physical_package_id"), &format!("{package}\n")),
                    (
                        &format!("{folder}/thread_siblings_list"),
                        &format!("{siblings}\n"),
                    ),
                ],
            );
        }
        let topology = Topology::read(root.path()).unwrap();
        assert_eq!(topology.online().to_string(), "0-2");
        assert_eq!(topology.memory_nodes().to_string(), "0");
        assert_eq!(topology.isolated.to_string(), "2");
        assert!(topology.nohz_full.is_empty());
        assert_eq!(topology.cpus[1].siblings.to_string(), "0-1");
        assert_eq!((topology.cpus[2].node, topology.cpus[2].package), (1, 1));
        assert!(!topology.cpus[3].online);
        assert_eq!(topology.nodes[1].cpus.to_string(), "2-3");
    }

    #[test]
    fn a_kernel_without_numa_has_one_node() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("devices/system/cpu/online", "0\n"),
                ("devices/system/cpu/present", "0\n"),
                ("devices/system/cpu/cpu0/topology/core_id", "0\n"),
                ("devices/system/cpu/cpu0/topology/physical_package_id", "-1\n"),
                ("devices/system/cpu/cpu0/topology/thread_siblings_list", "0\n"),
            ],
        );
        let topology = Topology::read(root.path()).unwrap();
        assert_eq!(topology.memory_nodes().to_string(), "0");
        assert_eq!(topology.cpus[0].package, -1);
        fs::remove_file(root.path().join("devices/system/cpu/cpu0/topology/core_id")).unwrap();
        let error = Topology::read(root.path()).unwrap_err().to_string();
        assert!(error.contains("core_id"), "{error}");
    }

    #[test]
    fn this_machine_is_read() {
        let topology = Topology::read(Path::new("/sys")).unwrap();
        for cpu in topology.cpus.iter().filter(|cpu| cpu.online) {
            assert!(cpu.siblings.contains(cpu.id), "{cpu:?}");
        }
        assert!(!topology.memory_nodes().is_empty());
    }
}
