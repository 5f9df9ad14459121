//! `extends` followed to its end, and the changes of each profile made in order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Problem, ProfileError};
use crate::names::{self, CAPABILITIES};
use crate::profile::{DeviceRule, Limit, OnDrift, Profile, Seccomp, Sets};
use crate::spec::{
    CapabilitiesSpec, ListSpec, OnMissing, ProfileSpec, SeccompSpec, UserNamespace, namespace_of, problem,
};
use crate::{DEFAULT, origin, seccomp};

/// The shipped profiles by name, in the order they are shown.
static SHIPPED: [(&str, &str); 6] = [
    ("strict", include_str!("../profiles/strict.json")),
    ("realtime", include_str!("../profiles/realtime.json")),
    ("device-worker", include_str!("../profiles/device-worker.json")),
    (
        "network-function",
        include_str!("../profiles/network-function.json"),
    ),
    ("system", include_str!("../profiles/system.json")),
    ("privileged", include_str!("../profiles/privileged.json")),
];

/// The shipped profile that is loud. (A test holds that to the documents.)
const LOUD: &str = "privileged";

/// The names of the shipped profiles, strictest first.
pub fn shipped_names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|s| s.0)
}

/// Is it said aloud wherever it is used, by itself or by what it builds on? A profile that does not resolve is not.
pub fn is_loud(name: &str, custom: &BTreeMap<String, ProfileSpec>) -> bool {
    let mut next = name;
    // As many steps as there are profiles: a circle ends.
    for _ in 0..=custom.len() {
        match custom.get(next) {
            Some(spec) if spec.loud => return true,
            Some(spec) => next = spec.extends.as_deref().unwrap_or(DEFAULT),
            None => return next == LOUD,
        }
    }
    false
}

/// A shipped profile as written. (A test reads every one of them.)
pub fn shipped(name: &str) -> Option<ProfileSpec> {
    let (_, text) = SHIPPED.iter().find(|s| s.0 == name)?;
    serde_json::from_str(text).ok()
}

/// The profile `name` with all it extends. `custom`: the documents of kind SecurityProfile by name.
///
/// # Errors
/// [`ProfileError`]: unknown name, a circle, a field that is wrong anywhere in the chain.
pub fn resolve(name: &str, custom: &BTreeMap<String, ProfileSpec>) -> Result<Profile, ProfileError> {
    let mut chain: Vec<(String, ProfileSpec)> = Vec::new();
    let mut next = Some(name.to_owned());
    while let Some(name) = next {
        if let Some(start) = chain.iter().position(|(known, _)| *known == name) {
            let mut circle: Vec<String> = chain[start..].iter().map(|(n, _)| n.clone()).collect();
            circle.push(name);
            return Err(ProfileError::Circle { chain: circle });
        }
        let spec = match (shipped(&name), custom.get(&name)) {
            (Some(_), Some(_)) => return Err(ProfileError::Shipped { name }),
            (Some(spec), None) => spec,
            (None, Some(spec)) => spec.clone(),
            (None, None) => return Err(no_such(name, custom)),
        };
        let base = spec
            .extends
            .clone()
            .or_else(|| (name != DEFAULT).then(|| DEFAULT.to_owned()));
        chain.push((name, spec));
        next = base;
    }
    let mut profile = nothing(name, chain.iter().map(|(n, _)| n.clone()).collect());
    for (name, spec) in chain.iter().rev() {
        let wrong = |problem| ProfileError::Field {
            name: name.clone(),
            problem,
        };
        if let Some(problem) = spec.validate().into_iter().next() {
            return Err(wrong(problem));
        }
        merge(&mut profile, spec)
            .and_then(|()| agrees(&profile))
            .map_err(wrong)?;
        origin::mark(&mut profile, name);
    }
    Ok(profile)
}

fn no_such(name: String, custom: &BTreeMap<String, ProfileSpec>) -> ProfileError {
    let known: Vec<&str> = SHIPPED
        .iter()
        .map(|s| s.0)
        .chain(custom.keys().map(String::as_str))
        .collect();
    let nearest = names::nearest(&name, known).map(str::to_owned);
    ProfileError::Unknown { name, nearest }
}

/// Where every chain starts: the strictest value of each field.
fn nothing(name: &str, chain: Vec<String>) -> Profile {
    Profile {
        name: name.into(),
        chain,
        loud: false,
        capabilities: BTreeSet::new(),
        ambient: BTreeSet::new(),
        no_new_privileges: true,
        readonly_root: true,
        namespaces: names::NAMESPACES.iter().map(|n| (*n).to_owned()).collect(),
        own_users: true,
        idmap_mounts: true,
        mount_flags: BTreeSet::new(),
        devices: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        rlimits: BTreeMap::new(),
        seccomp: Seccomp::Unconfined,
        selinux_label: None,
        mount_label: None,
        apparmor_profile: None,
        sets: Sets::default(),
        sysctls: BTreeMap::new(),
        landlock: None,
        core_scheduling: false,
        dumpable: true,
        on_drift: OnDrift::Report,
        skip: BTreeSet::new(),
        lines: Vec::new(),
    }
}

/// What a profile says must agree with what it builds on.
fn agrees(profile: &Profile) -> Result<(), Problem> {
    for name in profile.sysctls.keys() {
        let needed = namespace_of(name).filter(|n| !profile.namespaces.contains(*n));
        if let Some(needed) = needed {
            let message = format!("the container has no {needed} namespace of its own");
            let hint = Some(format!("add `{needed}` to namespaces, or take the sysctl out"));
            return Err(problem(&format!("spec.sysctls.{name}"), message, hint));
        }
    }
    if profile.selinux_label.is_some() && profile.apparmor_profile.is_some() {
        let message = "a process has an SELinux label or an AppArmor profile, not both".to_owned();
        let hint = Some("the other one is a base profile's: extend another".into());
        return Err(problem("spec.apparmorProfile", message, hint));
    }
    let within = [
        ("effective", profile.effective(), "permitted", profile.permitted()),
        ("ambient", &profile.ambient, "permitted", profile.permitted()),
        ("ambient", &profile.ambient, "inheritable", profile.inheritable()),
        ("permitted", profile.permitted(), "bounding", profile.bounding()),
    ];
    for (name, set, of, outer) in within {
        if let Some(one) = set.difference(outer).next() {
            let message = format!("`{one}` is not in the {of} set");
            let hint = Some(format!("add it to `{of}`, or take it out of `{name}`"));
            return Err(problem(&format!("spec.capabilities.{name}"), message, hint));
        }
    }
    Ok(())
}

fn merge(profile: &mut Profile, spec: &ProfileSpec) -> Result<(), Problem> {
    profile.loud |= spec.loud;
    if let Some(caps) = &spec.capabilities {
        capabilities(profile, caps)?;
    }
    profile.no_new_privileges = spec.no_new_privileges.unwrap_or(profile.no_new_privileges);
    profile.readonly_root = spec.readonly_root.unwrap_or(profile.readonly_root);
    if let Some(list) = &spec.namespaces {
        profile.namespaces = list.iter().cloned().collect();
    }
    profile.own_users = spec
        .user_namespace
        .map_or(profile.own_users, |u| u == UserNamespace::Own);
    profile.idmap_mounts = spec.idmap_mounts.unwrap_or(profile.idmap_mounts);
    if let Some(list) = &spec.mount_flags {
        profile.mount_flags = list.iter().cloned().collect();
    }
    if let Some(list) = &spec.masked_paths {
        change("spec.maskedPaths", &mut profile.masked_paths, list, |text| {
            Ok(text.to_owned())
        })?;
    }
    if let Some(list) = &spec.readonly_paths {
        change("spec.readonlyPaths", &mut profile.readonly_paths, list, |text| {
            Ok(text.to_owned())
        })?;
    }
    if let Some(list) = &spec.devices {
        change("spec.devices", &mut profile.devices, list, DeviceRule::parse)?;
    }
    for (name, limit) in &spec.rlimits {
        let limit = Limit {
            soft: limit.soft.value(),
            hard: limit.hard.value(),
            up_to: limit.up_to,
        };
        profile.rlimits.insert(name.clone(), limit);
    }
    for (name, value) in &spec.sysctls {
        profile.sysctls.insert(name.clone(), value.clone());
    }
    if spec.landlock.is_some() {
        profile.landlock.clone_from(&spec.landlock);
    }
    profile.core_scheduling = spec.core_scheduling.unwrap_or(profile.core_scheduling);
    profile.dumpable = spec.dumpable.unwrap_or(profile.dumpable);
    profile.on_drift = spec.on_drift.unwrap_or(profile.on_drift);
    for (mechanism, answer) in &spec.on_missing {
        match answer {
            OnMissing::Refuse => profile.skip.remove(mechanism),
            OnMissing::Skip => profile.skip.insert(*mechanism),
        };
    }
    match &spec.seccomp {
        None => {}
        Some(SeccompSpec::Edit(edit)) => profile.seccomp = seccomp::edit(&profile.seccomp, edit)?,
        Some(SeccompSpec::Filter(filter)) => profile.seccomp = Seccomp::Filter(filter.clone()),
        Some(SeccompSpec::File(file)) => {
            let message = format!("{} was not read", file.file.display());
            return Err(problem("spec.seccomp.file", message, None));
        }
    }
    for (mine, theirs) in [
        (&mut profile.selinux_label, &spec.selinux_label),
        (&mut profile.mount_label, &spec.mount_label),
        (&mut profile.apparmor_profile, &spec.apparmor_profile),
    ] {
        if theirs.is_some() {
            mine.clone_from(theirs);
        }
    }
    Ok(())
}

fn capabilities(profile: &mut Profile, spec: &CapabilitiesSpec) -> Result<(), Problem> {
    let expand = |list: &[String]| -> BTreeSet<&'static str> {
        let all = list.iter().any(|n| n == "ALL");
        CAPABILITIES
            .into_iter()
            .filter(|known| all || list.iter().any(|n| n == known))
            .collect()
    };
    if let Some(set) = &spec.set {
        profile.capabilities = expand(set);
    }
    let dropped = expand(&spec.drop);
    if let Some(name) = dropped
        .iter()
        .find(|name| !spec.drop.iter().any(|n| n == "ALL") && !profile.capabilities.contains(*name))
    {
        let message = format!("`{name}` is not there to be dropped");
        return Err(problem(
            "spec.capabilities.drop",
            message,
            Some("remove it".into()),
        ));
    }
    profile.capabilities.retain(|name| !dropped.contains(name));
    profile.capabilities.extend(expand(&spec.add));
    match &spec.ambient {
        None => profile.ambient.retain(|name| !dropped.contains(name)),
        Some(list) => profile.ambient = expand(list),
    }
    for (mine, theirs) in [
        (&mut profile.sets.bounding, &spec.bounding),
        (&mut profile.sets.permitted, &spec.permitted),
        (&mut profile.sets.effective, &spec.effective),
        (&mut profile.sets.inheritable, &spec.inheritable),
    ] {
        match theirs {
            Some(list) => *mine = Some(expand(list)),
            None => mine
                .iter_mut()
                .for_each(|set| set.retain(|name| !dropped.contains(name))),
        }
    }
    if profile.sets.permitted.is_some() || profile.sets.inheritable.is_some() {
        return Ok(());
    }
    match profile.ambient.difference(&profile.capabilities).next() {
        None => Ok(()),
        Some(name) => {
            let message = format!("`{name}` is ambient without being granted");
            Err(problem(
                "spec.capabilities.ambient",
                message,
                Some(format!("add `{name}` to `add`")),
            ))
        }
    }
}

fn change<T: PartialEq>(
    path: &str,
    list: &mut Vec<T>,
    spec: &ListSpec,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<(), Problem> {
    let parse = |text: &String| parse(text).map_err(|m| problem(path, format!("`{text}`: {m}"), None));
    if let Some(set) = &spec.set {
        *list = set.iter().map(parse).collect::<Result<_, _>>()?;
    }
    for text in &spec.drop {
        let item = parse(text)?;
        let at = list.iter().position(|known| *known == item).ok_or_else(|| {
            problem(
                path,
                format!("`{text}` is not there to be dropped"),
                Some("remove it from `drop`".into()),
            )
        })?;
        list.remove(at);
    }
    for text in &spec.add {
        let item = parse(text)?;
        if !list.contains(&item) {
            list.push(item);
        }
    }
    Ok(())
}
