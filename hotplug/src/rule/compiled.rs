//! A rule ready for use: its match, its devices, its templates; and what it offers to one device.
//!
//! Invariants: a [`Rule`] exists only for a spec without faults; every rule has at least one member (a rule without
//! `bundle` has one, without a name); nothing a device says reaches a path, a name or an argument before it was
//! checked here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::checks::is_template;
use super::{
    DeviceSpec, EnvSpec, FilesystemSpec, Identity, InterfaceSpec, Matched, Need, Problem, RuleSpec, Tree,
    UnplugPolicy, View,
};
use crate::event::Action;
use crate::safe;
use crate::template::{RenderError, Template};

/// A rule ready for use.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `metadata.name`.
    pub name: String,
    /// Its document.
    pub spec: RuleSpec,
    /// Its match; of a bundle: any of its devices'.
    pub matches: Tree,
    /// Its devices.
    pub members: Vec<Member>,
    label: Option<Template>,
    by: Option<Template>,
    env: Vec<(String, Template)>,
    args: Vec<Template>,
    labels: Vec<(String, Template)>,
    mounts: Vec<(Template, Template, bool)>,
}

/// One device of a rule.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name in a bundle; empty where it is the only one.
    pub name: String,
    /// Its match.
    pub matches: Tree,
    /// How its node goes in.
    pub device: Option<DeviceSpec>,
    /// How it goes in as an interface.
    pub interface: Option<InterfaceSpec>,
    /// How its file system goes in.
    pub filesystem: Option<FilesystemSpec>,
    path: Option<Template>,
    inside: Option<Template>,
    env: Vec<(String, Template)>,
}

/// The templates of a rule, filled in for one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rendered {
    /// Which of the rule's workloads: the same text is the same one.
    pub slot: String,
    /// What follows the workload's name in the container's.
    pub label: Option<String>,
    /// What of the rule this device can be.
    pub offers: Vec<Offer>,
    /// Environment: name, value.
    pub env: Vec<(String, String)>,
    /// Arguments.
    pub args: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Source, destination, read-only.
    pub mounts: Vec<(String, String, bool)>,
}

/// One member that a device can be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Index in [`Rule::members`].
    pub member: usize,
    /// Path of its node inside; the host's where absent.
    pub path: Option<String>,
    /// Name of the interface inside; the host's where absent.
    pub interface: Option<String>,
    /// Environment that comes with it.
    pub env: Vec<(String, String)>,
}

/// Parses templates and keeps their faults.
struct Templates<'f>(&'f mut Vec<Problem>);

impl Templates<'_> {
    fn parse(&mut self, path: String, text: &str) -> Option<Template> {
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                self.0.push(Problem {
                    path,
                    at: Some((1, error.column)),
                    message: error.message,
                    hint: error.hint,
                });
                None
            }
        }
    }

    fn optional(&mut self, path: &str, text: Option<&String>) -> Option<Template> {
        text.and_then(|text| self.parse(path.to_owned(), text))
    }

    fn env(&mut self, path: &str, env: &[EnvSpec]) -> Vec<(String, Template)> {
        let parse = |(n, e): (usize, &EnvSpec)| {
            Some((
                e.name.clone(),
                self.parse(format!("{path}env[{n}].value"), &e.value)?,
            ))
        };
        env.iter().enumerate().filter_map(parse).collect()
    }
}

impl RuleSpec {
    /// Compiles it.
    ///
    /// # Errors
    /// Every fault.
    pub fn compile(&self, name: &str) -> Result<Rule, Vec<Problem>> {
        let mut faults = self.check_fields();
        let members = self.members(&mut faults);
        let mut templates = Templates(&mut faults);
        let rule = Rule {
            name: name.to_owned(),
            spec: self.clone(),
            matches: match members.as_slice() {
                [one] => one.matches.clone(),
                many => Tree::Any(many.iter().map(|member| member.matches.clone()).collect()),
            },
            members,
            label: templates.optional("name", self.name.as_ref()),
            by: templates.optional("bundle.by", self.bundle.as_ref().and_then(|b| b.by.as_ref())),
            env: templates.env("", &self.env),
            args: (self.args.iter().enumerate())
                .filter_map(|(n, text)| templates.parse(format!("args[{n}]"), text))
                .collect(),
            labels: (self.labels.iter())
                .filter_map(|(key, value)| {
                    let path = format!("labels.{}", safe::show(key, 64));
                    Some((key.clone(), templates.parse(path, value)?))
                })
                .collect(),
            mounts: (self.mounts.iter().enumerate())
                .filter_map(|(n, mount)| {
                    Some((
                        templates.parse(format!("mounts[{n}].source"), &mount.source)?,
                        templates.parse(format!("mounts[{n}].destination"), &mount.destination)?,
                        mount.read_only,
                    ))
                })
                .collect(),
        };
        for (n, mount) in self.mounts.iter().enumerate() {
            for (field, text) in [("source", &mount.source), ("destination", &mount.destination)] {
                if !text.starts_with('/') || !is_template(text) && !safe::is_plain_path(text) {
                    faults.push(Problem::new(
                        format!("mounts[{n}].{field}"),
                        format!("{:?} is no absolute path", safe::show(text, 64)),
                        Some("it begins with / and has no . or .. parts"),
                    ));
                }
            }
        }
        if self.bundle.is_some() {
            // There is no one device that could answer for the whole.
            let texts = (self.env.iter().map(|e| &e.value))
                .chain(&self.args)
                .chain(self.labels.values())
                .chain(self.name.iter())
                .chain(self.mounts.iter().flat_map(|m| [&m.source, &m.destination]));
            if let Some(text) = texts.into_iter().find(|text| is_template(text)) {
                faults.push(Problem::new(
                    "bundle",
                    format!(
                        "the rule has the template {:?}, and several devices",
                        safe::show(text, 64)
                    ),
                    Some("put env with templates into the devices of the bundle"),
                ));
            }
        }
        if faults.is_empty() { Ok(rule) } else { Err(faults) }
    }

    fn members(&self, faults: &mut Vec<Problem>) -> Vec<Member> {
        let mut members = Vec::new();
        let of_bundle = |name: &str| {
            let all = self.bundle.iter().flat_map(|b| &b.devices);
            all.into_iter()
                .find(|m| m.name == name)
                .and_then(|m| m.filesystem.clone())
        };
        let mut add = |path: &str,
                       name: &str,
                       tree,
                       device: &Option<DeviceSpec>,
                       interface: &Option<InterfaceSpec>,
                       env: &[EnvSpec],
                       faults: &mut Vec<Problem>| {
            let mut templates = Templates(faults);
            let inside = interface.as_ref().and_then(|i| i.name.as_ref());
            members.push(Member {
                name: name.to_owned(),
                matches: tree,
                path: templates.optional(
                    &format!("{path}device.path"),
                    device.as_ref().and_then(|d| d.path.as_ref()),
                ),
                // Interface names may hold a % where they hold no template.
                inside: match inside.filter(|name| !name.contains('$')) {
                    Some(name) => Some(Template::literal(name)),
                    None => templates.optional(&format!("{path}interface.name"), inside),
                },
                env: templates.env(path, env),
                device: device.clone(),
                interface: interface.clone(),
                filesystem: match path {
                    "" => self.filesystem.clone(),
                    _ => of_bundle(name),
                },
            });
        };
        if let Some(matches) = &self.matches {
            match matches.compile("match") {
                Ok(tree) => add("", "", tree, &self.device, &self.interface, &[], faults),
                Err(found) => faults.extend(found),
            }
        }
        for (n, one) in self.bundle.iter().flat_map(|b| b.devices.iter().enumerate()) {
            let path = format!("bundle.devices[{n}].");
            match one.matches.compile(&format!("{path}match")) {
                Ok(tree) => add(
                    &path,
                    &one.name,
                    tree,
                    &one.device,
                    &one.interface,
                    &one.env,
                    faults,
                ),
                Err(found) => faults.extend(found),
            }
        }
        members
    }
}

/// Fills in templates and keeps what cannot be filled in.
struct Filler<'v> {
    view: &'v View<'v>,
    matched: Matched,
    errors: Vec<(String, RenderError)>,
}

impl Filler<'_> {
    fn fill(&mut self, path: String, template: &Template) -> Option<String> {
        match template.render(self.view, &self.matched) {
            Ok(text) => Some(text),
            Err(error) => {
                self.errors.push((path, error));
                None
            }
        }
    }

    fn checked(
        &mut self,
        path: String,
        template: &Template,
        fits: fn(&str) -> Result<(), &'static str>,
    ) -> Option<String> {
        let text = self.fill(path.clone(), template)?;
        match fits(&text) {
            Ok(()) => Some(text),
            Err(why) => {
                let error = RenderError::Unfit {
                    device: self.view.device().to_string(),
                    template: safe::show(&template.to_string(), 80),
                    value: safe::show(&text, 80),
                    why,
                };
                self.errors.push((path, error));
                None
            }
        }
    }

    fn env(&mut self, path: &str, env: &[(String, Template)]) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for (n, (name, template)) in env.iter().enumerate() {
            out.extend(
                self.fill(format!("{path}env[{n}].value"), template)
                    .map(|v| (name.clone(), v)),
            );
        }
        out
    }
}

fn fits_node(path: &str) -> Result<(), &'static str> {
    match path.starts_with("/dev/") && safe::is_plain_path(path) {
        true => Ok(()),
        false => Err("is no path below /dev"),
    }
}

fn fits_interface(name: &str) -> Result<(), &'static str> {
    match safe::is_interface_name(name) && name != "lo" && !name.contains('%') {
        true => Ok(()),
        false => Err("is no name for an interface"),
    }
}

fn fits_path(path: &str) -> Result<(), &'static str> {
    match path.starts_with('/') && safe::is_plain_path(path) {
        true => Ok(()),
        false => Err("is no absolute path without . and .. parts"),
    }
}

fn fits_label(label: &str) -> Result<(), &'static str> {
    match label.is_empty() {
        true => Err("is empty"),
        false => Ok(()),
    }
}

impl Rule {
    /// What the rule makes of the device under `view`. `matched` comes from [`Rules::choose`](super::Rules::choose).
    ///
    /// # Errors
    /// Every template that cannot be filled in and what the device cannot be known by, with its place in the spec.
    pub fn render(&self, view: &View<'_>, matched: &Matched) -> Result<Rendered, Vec<(String, RenderError)>> {
        let mut filler = Filler {
            view,
            matched: matched.clone(),
            errors: Vec::new(),
        };
        let mut rendered = Rendered {
            slot: view.device().key().0,
            env: filler.env("", &self.env),
            ..Rendered::default()
        };
        for (n, template) in self.args.iter().enumerate() {
            rendered.args.extend(filler.fill(format!("args[{n}]"), template));
        }
        for (key, template) in &self.labels {
            let value = filler.fill(format!("labels.{key}"), template);
            rendered.labels.extend(value.map(|v| (key.clone(), v)));
        }
        for (n, (source, destination, read_only)) in self.mounts.iter().enumerate() {
            // What a device says of itself must not lead elsewhere: checked as one path, and each part as a name.
            let source = filler.path(format!("mounts[{n}].source"), source);
            let destination = filler.path(format!("mounts[{n}].destination"), destination);
            rendered
                .mounts
                .extend(source.zip(destination).map(|(s, d)| (s, d, *read_only)));
        }
        self.place(view, &mut filler, &mut rendered);
        if let Some(template) = &self.label {
            rendered.label = filler.checked("name".to_owned(), template, fits_label);
        }
        for (n, member) in self.members.iter().enumerate() {
            let Some(matched) = self.member_matches(member, view, matched) else {
                continue;
            };
            let path = match self.spec.bundle {
                Some(_) => format!("bundle.devices[{n}]."),
                None => String::new(),
            };
            filler.matched = matched;
            let offer = Offer {
                member: n,
                path: (member.path.as_ref())
                    .and_then(|t| filler.checked(format!("{path}device.path"), t, fits_node)),
                interface: (member.inside.as_ref())
                    .and_then(|t| filler.checked(format!("{path}interface.name"), t, fits_interface)),
                env: filler.env(&path, &member.env),
            };
            rendered.offers.push(offer);
        }
        if filler.errors.is_empty() {
            Ok(rendered)
        } else {
            Err(filler.errors)
        }
    }

    fn member_matches(&self, member: &Member, view: &View<'_>, matched: &Matched) -> Option<Matched> {
        match self.spec.bundle {
            // Evaluated already.
            None => Some(matched.clone()),
            Some(_) => member.matches.matches(view, Action::Add),
        }
    }

    /// Which of the rule's workloads the device belongs to.
    fn place(&self, view: &View<'_>, filler: &mut Filler<'_>, rendered: &mut Rendered) {
        if self.spec.bundle.is_some() {
            rendered.slot = "bundle".to_owned();
            rendered.label = Some(self.name.clone());
            // `$id` in `by` is of the device's own member.
            let of = self
                .members
                .iter()
                .find_map(|m| m.matches.matches(view, Action::Add));
            filler.matched = of.unwrap_or_default();
            if let Some(by) = &self.by
                && let Some(group) = filler.checked("bundle.by".to_owned(), by, fits_label)
            {
                rendered.slot = format!("bundle:{group}");
                rendered.label = Some(group);
            }
        } else if self.spec.unplug.then == UnplugPolicy::HandOver {
            rendered.slot = "any".to_owned();
            rendered.label = Some(self.name.clone());
        } else if let Some(identity) = self.spec.identity {
            match identity.of(view.device()) {
                Ok(text) => {
                    rendered.label = Some(label_of(identity, &text));
                    rendered.slot = text;
                }
                Err(why) => filler
                    .errors
                    .push(("identity".to_owned(), RenderError::Identity(why))),
            }
        }
    }

    /// How many of its devices must be there.
    pub fn need(&self) -> usize {
        let need = self.spec.bundle.as_ref().map_or(Need::All, |bundle| bundle.need);
        need.of(self.members.len())
    }

    /// Does it look at removals only?
    pub fn of_removals(&self) -> bool {
        self.spec.trigger.contains(&Action::Remove)
    }

    /// Does the device count, of which these events were seen since it is there? `bound`: a driver has it.
    pub fn triggered(&self, seen: impl Fn(Action) -> bool, bound: bool) -> bool {
        self.spec.trigger.is_empty()
            || self.spec.trigger.iter().any(|action| match action {
                Action::Add => true,
                Action::Bind => bound || seen(Action::Bind),
                Action::Remove => false,
                action => seen(*action),
            })
    }
}

impl Filler<'_> {
    /// A path: what the device fills in adds no parts to it.
    fn path(&mut self, path: String, template: &Template) -> Option<String> {
        let text = self.checked(path.clone(), template, fits_path)?;
        if text.split('/').count() == template.literal_parts() {
            return Some(text);
        }
        self.errors.push((
            path,
            RenderError::Unfit {
                device: self.view.device().to_string(),
                template: safe::show(&template.to_string(), 80),
                value: safe::show(&text, 80),
                why: "has more parts than the template: a value with a / in it",
            },
        ));
        None
    }
}

/// The part of a container's name: the serial number or address itself, of a path its end.
fn label_of(identity: Identity, text: &str) -> String {
    let text = text.split_once(':').map_or(text, |(_, rest)| rest);
    let from = match identity {
        // The end tells more than the beginning.
        Identity::Path => text.char_indices().rev().nth(39).map_or(0, |(at, _)| at),
        _ => 0,
    };
    text[from..].trim_start_matches(['/', ':', '-', '.']).to_owned()
}
