//! User namespaces and idmapped mounts: the maps, checked before anything is made.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{self as oci, Linux, LinuxIdMapping, LinuxNamespaceType};

use super::{Extensions, PlanError, checks};
use crate::options::Options;
use crate::proof::IdMap;
use crate::recipe::{IdMapping, Node, Users, outside};

fn maps(list: Option<&Vec<LinuxIdMapping>>) -> Vec<IdMap> {
    let lines = list.into_iter().flatten();
    lines
        .map(|m| IdMap {
            inside: m.container_id(),
            outside: m.host_id(),
            count: m.size(),
        })
        .collect()
}

fn text(maps: &[IdMap]) -> String {
    maps.iter()
        .map(|m| format!("{} {} {}\n", m.inside, m.outside, m.count))
        .collect()
}

/// What the kernel would refuse with a bare EINVAL.
fn sound(maps: &[IdMap]) -> Result<(), String> {
    if maps.len() > 340 {
        return Err(format!("{} lines are more than the kernel's 340", maps.len()));
    }
    for (i, map) in maps.iter().enumerate() {
        let last = |first: u32| first.checked_add(map.count.saturating_sub(1));
        if map.count == 0 {
            return Err(format!("line {i} has size 0"));
        }
        let (Some(inside), Some(out)) = (last(map.inside), last(map.outside)) else {
            return Err(format!("line {i} goes past the last id"));
        };
        if inside == u32::MAX || out == u32::MAX {
            return Err(format!("line {i} has id {}, which means none", u32::MAX));
        }
        for other in &maps[..i] {
            let over = |a: u32, b: u32| a < b.saturating_add(other.count) && b < a.saturating_add(map.count);
            if over(map.inside, other.inside) || over(map.outside, other.outside) {
                return Err(format!("line {i} overlaps an earlier one"));
            }
        }
    }
    Ok(())
}

/// A user namespace that is there already, and its maps.
pub(super) type Joined = (OwnedFd, Vec<IdMap>, Vec<IdMap>);

/// The user namespace that is joined by its path.
pub(super) fn joined(linux: Option<&Linux>) -> Result<Option<Joined>, PlanError> {
    let Some(path) = checks::joined(linux, LinuxNamespaceType::User) else {
        return Ok(None);
    };
    let refuse = |why: String| {
        let hint = "name one that root made beside the runtime's own, with its maps written";
        let why = format!("type user: `{}`: {why}", path.display());
        PlanError::refused_hint("linux.namespaces", why, hint)
    };
    let fd = crate::users::open(&path).map_err(refuse)?;
    let (uids, gids) = crate::users::maps(&fd).map_err(refuse)?;
    let given = |list: Option<&Vec<LinuxIdMapping>>| Some(maps(list)).filter(|m| !m.is_empty());
    for (field, given, own) in [
        (
            "linux.uidMappings",
            given(linux.and_then(|l| l.uid_mappings().as_ref())),
            &uids,
        ),
        (
            "linux.gidMappings",
            given(linux.and_then(|l| l.gid_mappings().as_ref())),
            &gids,
        ),
    ] {
        let same = |mut given: Vec<IdMap>| {
            let mut own = own.clone();
            given.sort_unstable();
            own.sort_unstable();
            given == own
        };
        if !given.is_none_or(same) {
            let why = "they are not those of the user namespace that is joined";
            return Err(PlanError::refused(field, why));
        }
    }
    Ok(Some((fd, uids, gids)))
}

/// The users of a new user namespace, or of one that is joined.
pub(super) fn of(linux: Option<&Linux>, extensions: &Extensions, joined: Option<&Joined>) -> Users {
    if let Some((_, uids, gids)) = joined {
        return Users {
            uids: uids.clone(),
            gids: gids.clone(),
            idmap_root: extensions.idmap_root,
        };
    }
    Users {
        uids: maps(linux.and_then(|l| l.uid_mappings().as_ref())),
        gids: maps(linux.and_then(|l| l.gid_mappings().as_ref())),
        idmap_root: extensions.idmap_root,
    }
}

/// Every device node can be given to its owner.
pub(super) fn own(users: &Users, nodes: &[Node]) -> Result<(), PlanError> {
    for node in nodes {
        if outside(&users.uids, node.uid).is_none() || outside(&users.gids, node.gid).is_none() {
            let why = format!(
                "`{}`: its owner {}:{} is not mapped in the user namespace",
                node.path.display(),
                node.uid,
                node.gid
            );
            return Err(PlanError::refused_hint(
                "linux.devices",
                why,
                "map the ids (0 too) in linux.uidMappings and linux.gidMappings",
            ));
        }
    }
    Ok(())
}

/// uid_map and gid_map as text; both empty without a user namespace.
pub(super) fn id_maps(linux: Option<&Linux>) -> Result<(String, String), PlanError> {
    if checks::joined(linux, LinuxNamespaceType::User).is_some() {
        return Ok(<_>::default());
    }
    let uids = maps(linux.and_then(|l| l.uid_mappings().as_ref()));
    let gids = maps(linux.and_then(|l| l.gid_mappings().as_ref()));
    let own = checks::has_own(linux, LinuxNamespaceType::User);
    for (field, map) in [("linux.uidMappings", &uids), ("linux.gidMappings", &gids)] {
        if own && map.is_empty() {
            return Err(PlanError::refused_hint(
                field,
                "a user namespace without mappings has no users",
                format!("add {field} to the configuration"),
            ));
        }
        if !own && !map.is_empty() {
            return Err(PlanError::refused(
                field,
                "the container has no user namespace of its own",
            ));
        }
        sound(map).map_err(|why| PlanError::refused(field, why))?;
    }
    Ok((text(&uids), text(&gids)))
}

/// How the ids of one mount are shown.
pub(super) fn mapping(
    mount: &oci::Mount,
    options: &Options,
    own_users: bool,
) -> Result<Option<IdMapping>, String> {
    let uids = maps(mount.uid_mappings().as_ref());
    let gids = maps(mount.gid_mappings().as_ref());
    let recursive = options.idmap.unwrap_or(false);
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) if options.idmap.is_none() => Ok(None),
        (true, true) if own_users => Ok(Some(IdMapping {
            recursive,
            maps: None,
        })),
        (true, true) => Err("idmap needs uidMappings and gidMappings, or a user namespace".into()),
        (true, false) => Err("gidMappings is there without uidMappings".into()),
        (false, true) => Err("uidMappings is there without gidMappings".into()),
        (false, false) => {
            sound(&uids).map_err(|why| format!("uidMappings: {why}"))?;
            sound(&gids).map_err(|why| format!("gidMappings: {why}"))?;
            Ok(Some(IdMapping {
                recursive,
                maps: Some((text(&uids), text(&gids))),
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_the_kernel_would_not_take() {
        let map = |lines: &[(u32, u32, u32)]| {
            let lines = lines.iter();
            lines
                .map(|(inside, outside, count)| IdMap {
                    inside: *inside,
                    outside: *outside,
                    count: *count,
                })
                .collect::<Vec<_>>()
        };
        assert!(sound(&map(&[(0, 100_000, 1000), (1000, 1000, 1)])).is_ok());
        for (lines, word) in [
            (&[(0, 5, 0)][..], "size 0"),
            (&[(0, u32::MAX - 1, 9)], "past the last"),
            (&[(0, 100, 10), (9, 500, 1)], "overlaps"),
            (&[(0, 100, 10), (20, 105, 1)], "overlaps"),
            (&[(u32::MAX, 1, 1)], "means none"),
        ] {
            assert!(sound(&map(lines)).unwrap_err().contains(word), "{lines:?}");
        }
        assert!(sound(&map(&vec![(0, 0, 1); 341])).unwrap_err().contains("340"));
    }
}
