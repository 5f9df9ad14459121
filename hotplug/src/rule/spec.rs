//! The `HotplugRule` document: its `spec`, validation, and the compiled rule.
//!
//! Invariants: unknown keys are refused; [`RuleSpec::validate`] finds every fault in one run; a [`Rule`]
//! exists only for a spec without faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Match, Matched, View};
use crate::safe;
use crate::template::{RenderError, Template};

/// Longest `settle`.
const SETTLE_MAX: Duration = Duration::from_secs(600);
/// Most armed containers of one rule.
const ARMED_MAX: u32 = 64;

/// `spec` of a `HotplugRule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Lines of udev's match grammar; all must hold.
    #[serde(rename = "match")]
    pub matches: String,
    /// Name of the workload that runs for the device.
    pub workload: String,
    /// The device's node goes into the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSpec>,
    /// The device, a network interface, goes into the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceSpec>,
    /// Environment variables beside the workload's own; values are templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvSpec>,
    /// Arguments behind the workload's own; templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Labels of the container; values are templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How long nothing may happen to the device before it counts as there; 0 to 10 minutes, 0 by default.
    #[serde(default)]
    pub settle: Settle,
    /// Containers kept created and waiting for a device, 0 to 64.
    #[serde(default)]
    pub armed: u32,
    /// Of several rules that match a device the highest counts; 0 by default.
    #[serde(default)]
    pub priority: i32,
}

/// How the device's node gets into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceSpec {
    /// `r`, `w`, `m` (mknod) in any order; `rw` by default.
    #[serde(default = "access_default")]
    pub access: String,
    /// Path inside, below /dev; the host's path by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Mode of the node inside, octal; `0660` by default.
    #[serde(default = "mode_default")]
    pub mode: String,
}

fn access_default() -> String {
    "rw".to_owned()
}

fn mode_default() -> String {
    "0660".to_owned()
}

impl DeviceSpec {
    /// `mode` as a number; `None` where it is not three or four octal digits up to 0777.
    pub fn mode_bits(&self) -> Option<u32> {
        let plain = (3..=4).contains(&self.mode.len()) && self.mode.bytes().all(|b| b.is_ascii_digit());
        u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| plain && *mode <= 0o777)
    }
}

/// How the interface gets into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceSpec {
    /// Its name inside; the host's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvSpec {
    /// Name.
    pub name: String,
    /// Value, a template.
    pub value: String,
}

/// A duration as text: `200ms`, `2s`, `1m`, `0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Settle(pub Duration);

impl TryFrom<String> for Settle {
    type Error = String;

    fn try_from(text: String) -> Result<Settle, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: Option<u64> = text[..digits].parse().ok();
        let milliseconds = match (number, &text[digits..]) {
            (Some(0), "") => Some(0),
            (Some(n), "ms") => Some(n),
            (Some(n), "s") => n.checked_mul(1000),
            (Some(n), "m") => n.checked_mul(60_000),
            _ => None,
        };
        match milliseconds {
            Some(n) => Ok(Settle(Duration::from_millis(n))),
            None => Err(format!(
                "{:?} is no duration, e.g. 200ms, 2s, 1m",
                safe::show(&text, 32)
            )),
        }
    }
}

impl From<Settle> for String {
    fn from(settle: Settle) -> String {
        settle.to_string()
    }
}

impl fmt::Display for Settle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

/// One fault of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where in the spec: `match`, `env[1].value`, `device.mode`.
    pub path: String,
    /// Line and column inside that text, from 1, where it has its own grammar.
    pub at: Option<(u32, u32)>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Problem {
    fn new(path: impl Into<String>, message: impl Into<String>, hint: Option<&str>) -> Problem {
        Problem {
            path: path.into(),
            at: None,
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// A rule ready for use.
#[derive(Debug, Clone)]
pub struct Rule {
    /// `metadata.name`.
    pub name: String,
    /// Its document.
    pub spec: RuleSpec,
    /// Its match.
    pub matches: Match,
    env: Vec<(String, Template)>,
    args: Vec<Template>,
    labels: Vec<(String, Template)>,
}

/// The templates of a rule, filled in for one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    /// Environment: name, value.
    pub env: Vec<(String, String)>,
    /// Arguments.
    pub args: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl RuleSpec {
    /// Every fault of the spec; empty: it is good.
    pub fn validate(&self) -> Vec<Problem> {
        self.compile("").err().unwrap_or_default()
    }

    /// Compiles it.
    ///
    /// # Errors
    /// Every fault.
    pub fn compile(&self, name: &str) -> Result<Rule, Vec<Problem>> {
        let mut faults = self.check_fields();
        let parsed = Match::parse(&self.matches).and_then(|matches| match matches.contradiction() {
            Some(error) => Err(error),
            None => Ok(matches),
        });
        let matches = parsed.map_err(|error| {
            let at = Some((error.line, error.column));
            faults.push(Problem {
                path: "match".to_owned(),
                at,
                message: error.message,
                hint: error.hint,
            });
        });
        let mut template = |path: String, text: &str| {
            Template::parse(text)
                .map_err(|error| {
                    let at = Some((1, error.column));
                    faults.push(Problem {
                        path,
                        at,
                        message: error.message,
                        hint: error.hint,
                    });
                })
                .ok()
        };
        let env: Vec<_> = (self.env.iter().enumerate())
            .filter_map(|(n, e)| Some((e.name.clone(), template(format!("env[{n}].value"), &e.value)?)))
            .collect();
        let args: Vec<_> = self
            .args
            .iter()
            .enumerate()
            .filter_map(|(n, a)| template(format!("args[{n}]"), a))
            .collect();
        let labels: Vec<_> = (self.labels.iter())
            .filter_map(|(key, value)| {
                Some((
                    key.clone(),
                    template(format!("labels.{}", safe::show(key, 64)), value)?,
                ))
            })
            .collect();
        match matches {
            Ok(matches) if faults.is_empty() => Ok(Rule {
                name: name.to_owned(),
                spec: self.clone(),
                matches,
                env,
                args,
                labels,
            }),
            _ => Err(faults),
        }
    }

    fn check_fields(&self) -> Vec<Problem> {
        let mut faults = Vec::new();
        let mut fault = |path: &str, message: String, hint: &str| {
            faults.push(Problem::new(path, message, Some(hint).filter(|h| !h.is_empty())));
        };
        if self.workload.is_empty() {
            fault(
                "workload",
                "is empty".to_owned(),
                "name a Workload with `run: onDevice`",
            );
        }
        if self.device.is_some() && self.interface.is_some() {
            fault(
                "interface",
                "a device is either a node or an interface".to_owned(),
                "write two rules",
            );
        }
        if let Some(device) = &self.device {
            let letters: BTreeSet<char> = device.access.chars().collect();
            if letters.is_empty()
                || letters.len() != device.access.chars().count()
                || letters.iter().any(|c| !"rwm".contains(*c))
            {
                let found = safe::show(&device.access, 16);
                fault(
                    "device.access",
                    format!("{found:?} is no access"),
                    "of r, w and m, each once",
                );
            }
            if device.mode_bits().is_none() {
                let found = safe::show(&device.mode, 16);
                fault(
                    "device.mode",
                    format!("{found:?} is no mode"),
                    "octal, \"0000\" to \"0777\", quoted",
                );
            }
            if let Some(path) = &device.path
                && !(path.starts_with("/dev/") && safe::is_plain_path(path))
            {
                let found = safe::show(path, 64);
                fault(
                    "device.path",
                    format!("{found:?} is no path below /dev"),
                    "e.g. /dev/port",
                );
            }
        }
        if let Some(name) = self.interface.as_ref().and_then(|i| i.name.as_ref())
            && (!safe::is_interface_name(name) || name == "lo" || name.contains('%'))
        {
            let found = safe::show(name, 32);
            fault(
                "interface.name",
                format!("{found:?} is no name for it"),
                "1 to 15 characters, no / : %, not lo",
            );
        }
        if self.settle.0 > SETTLE_MAX {
            fault("settle", format!("{} is too long", self.settle), "at most 10m");
        }
        if self.armed > ARMED_MAX {
            fault("armed", format!("{} is too many", self.armed), "0 to 64");
        }
        let mut names = BTreeSet::new();
        for (n, env) in self.env.iter().enumerate() {
            let path = format!("env[{n}].name");
            let shown = safe::show(&env.name, 64);
            let first = env
                .name
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            if !first
                || env.name.len() > 255
                || !env.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            {
                fault(
                    &path,
                    format!("{shown:?} is no variable name"),
                    "letters, digits and _, not a digit first",
                );
            } else if !names.insert(&env.name) {
                fault(&path, format!("{shown} is there twice"), "");
            }
        }
        for key in self.labels.keys() {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            if key.is_empty() || key.len() > 253 || !key.chars().all(fits) {
                let found = safe::show(key, 64);
                fault(
                    "labels",
                    format!("{found:?} is no label name"),
                    "letters, digits and . _ - /",
                );
            }
        }
        faults
    }
}

impl Rule {
    /// Fills in env, args and labels for a device.
    ///
    /// # Errors
    /// Every template that cannot be filled in, with its place in the spec.
    pub fn render(&self, view: &View<'_>, matched: &Matched) -> Result<Rendered, Vec<(String, RenderError)>> {
        let mut rendered = Rendered::default();
        let mut errors = Vec::new();
        let mut fill = |path: String, template: &Template| {
            template
                .render(view, matched)
                .map_err(|error| errors.push((path, error)))
                .ok()
        };
        for (n, (name, template)) in self.env.iter().enumerate() {
            rendered
                .env
                .extend(fill(format!("env[{n}].value"), template).map(|v| (name.clone(), v)));
        }
        for (n, template) in self.args.iter().enumerate() {
            rendered.args.extend(fill(format!("args[{n}]"), template));
        }
        for (key, template) in &self.labels {
            rendered
                .labels
                .extend(fill(format!("labels.{key}"), template).map(|v| (key.clone(), v)));
        }
        if errors.is_empty() {
            Ok(rendered)
        } else {
            Err(errors)
        }
    }
}
