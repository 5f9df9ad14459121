//! Texts filled in from a device: udev's substitutions, strict.
//!
//! Interface: udev(7), "The NAME, SYMLINK … fields support simple string substitutions". Supported:
//! `$kernel %k`, `$number %n`, `$devpath %p`, `$devnode %N`, `$major %M`, `$minor %m`, `$env{X} %E{X}`,
//! `$attr{X} %s{X}`, `$driver`, `$id %b`, `$name`, `$sys %S`, `$root %r`, `$$`, `%%`. Invariants: unlike in
//! udev nothing becomes empty in silence: an unknown property or attribute is an error that lists the device's
//! own, and a value with control characters or of more than 4096 bytes is refused.

use std::fmt;

use thiserror::Error;

use crate::device::Device;
use crate::rule::{Matched, View};
use crate::{safe, sysfs};

/// A text with substitutions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Kernel,
    Number,
    Devpath,
    Devnode,
    Major,
    Minor,
    Driver,
    Id,
    Sys,
    Root,
    Name,
    Env(String),
    Attr(String),
}

/// Long name, short character, takes `{…}`.
const NAMES: &[(&str, char, bool)] = &[
    ("attr", 's', true),
    ("devnode", 'N', false),
    ("devpath", 'p', false),
    ("driver", '\0', false),
    ("env", 'E', true),
    ("id", 'b', false),
    ("kernel", 'k', false),
    ("major", 'M', false),
    ("minor", 'm', false),
    ("name", '\0', false),
    ("number", 'n', false),
    ("root", 'r', false),
    ("sys", 'S', false),
];

/// Substitutions of udev that berth does not have.
const OTHERS: &[(&str, char)] = &[
    ("links", '\0'),
    ("parent", 'P'),
    ("result", 'c'),
    ("tempnode", '\0'),
];

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("column {column}: {message}{}", hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct TemplateError {
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// Why a template cannot be filled in for a device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RenderError {
    /// The device has no such property.
    #[error("{device} has no property {name}; it has: {}", known.join(" "))]
    UnknownProperty {
        /// The device.
        device: String,
        /// The property.
        name: String,
        /// Names of the properties it has.
        known: Vec<String>,
    },
    /// Neither the device nor the matched parent has such an attribute.
    #[error("{device} has no attribute {name}; it has: {}", known.join(" "))]
    UnknownAttribute {
        /// The device.
        device: String,
        /// The attribute.
        name: String,
        /// Names of the attributes in its own folder.
        known: Vec<String>,
    },
    /// The device has nothing for a substitution (`$devnode` of a network interface …).
    #[error("{device} has no {what}")]
    Nothing {
        /// The device.
        device: String,
        /// What is missing, e.g. `$devnode`.
        what: &'static str,
    },
    /// What came out is not what is needed there.
    #[error("{device}: {template} is {value:?}, which {why}")]
    Unfit {
        /// The device.
        device: String,
        /// The template.
        template: String,
        /// What it became, shortened and safe to print.
        value: String,
        /// What it must be.
        why: &'static str,
    },
    /// The device cannot be known by what the rule says.
    #[error("{0}")]
    Identity(String),
    /// What the device says cannot be handed on.
    #[error("{device}: the value of {name} {source}: {value:?}")]
    Unsafe {
        /// The device.
        device: String,
        /// The substitution or `the whole text`.
        name: String,
        /// The value, shortened and safe to print.
        value: String,
        /// Why.
        source: safe::Unsafe,
    },
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError`] for an unknown substitution, a missing `{…}`, a control character or a text of more
    /// than 4096 bytes.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        if let Err(reason) = safe::text(text) {
            let column = match reason {
                safe::Unsafe::Control { offset, .. } => text[..offset].chars().count() + 1,
                safe::Unsafe::TooLong { .. } => 1,
            };
            return Err(TemplateError {
                column: column as u32,
                message: format!("the text {reason}"),
                hint: None,
            });
        }
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if c != '$' && c != '%' {
                plain.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
            let column = text[..text.len() - rest.len()].chars().count() as u32 + 1;
            let wrong = |message: String, hint: Option<String>| TemplateError {
                column,
                message,
                hint,
            };
            let after = &rest[1..];
            if let Some(left) = after.strip_prefix(c) {
                plain.push(c);
                rest = left;
                continue;
            }
            let found = match c {
                // The longest name first would not matter: none is the start of another.
                '$' => NAMES.iter().find(|(name, ..)| after.starts_with(name)),
                _ => NAMES
                    .iter()
                    .find(|(_, short, _)| *short != '\0' && after.starts_with(*short)),
            };
            let Some((name, _, takes)) = found else {
                return Err(unknown(c, after, column));
            };
            let mut left = if c == '$' {
                &after[name.len()..]
            } else {
                &after[1..]
            };
            let mut argument = String::new();
            if *takes {
                let inner = left.strip_prefix('{').and_then(|l| l.split_once('}'));
                let Some((inside, behind)) = inner.filter(|(inside, _)| !inside.is_empty()) else {
                    let hint = Some(format!("write ${name}{{NAME}}"));
                    return Err(wrong(format!("{c}{} needs a name in braces", &after[..1]), hint));
                };
                argument = inside.to_owned();
                left = behind;
            }
            rest = left;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(match *name {
                "attr" => Part::Attr(argument),
                "devnode" => Part::Devnode,
                "devpath" => Part::Devpath,
                "driver" => Part::Driver,
                "env" => Part::Env(argument),
                "id" => Part::Id,
                "kernel" => Part::Kernel,
                "major" => Part::Major,
                "minor" => Part::Minor,
                "name" => Part::Name,
                "number" => Part::Number,
                "root" => Part::Root,
                _ => Part::Sys,
            });
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Template { parts })
    }

    /// Parts of the path that its fixed texts make.
    pub(crate) fn literal_parts(&self) -> usize {
        let slashes = |part: &Part| match part {
            Part::Text(text) => text.matches('/').count(),
            _ => 0,
        };
        1 + self.parts.iter().map(slashes).sum::<usize>()
    }

    /// A text without substitutions, as it stands.
    pub(crate) fn literal(text: &str) -> Template {
        Template {
            parts: vec![Part::Text(text.to_owned())],
        }
    }

    /// Is there any substitution in it?
    pub fn is_literal(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Fills it in as udev does inside a match: what is not there is empty.
    pub(crate) fn render_or_empty(&self, view: &View<'_>) -> String {
        let matched = Matched::default();
        self.parts
            .iter()
            .map(|part| part.value(view, &matched, view.device()).unwrap_or_default())
            .collect()
    }

    /// Fills it in. `matched` comes from [`crate::rule::Match::matches`].
    ///
    /// # Errors
    /// [`RenderError`]: nothing unknown becomes empty, nothing unsafe is handed on.
    pub fn render(&self, view: &View<'_>, matched: &Matched) -> Result<String, RenderError> {
        let device = view.device();
        let mut out = String::new();
        for part in &self.parts {
            let value = part.value(view, matched, device)?;
            refuse_unsafe(device, &part.to_string(), &value)?;
            out.push_str(&value);
        }
        refuse_unsafe(device, "the whole text", &out)?;
        Ok(out)
    }
}

impl Part {
    fn value(&self, view: &View<'_>, matched: &Matched, device: &Device) -> Result<String, RenderError> {
        let need = |value: Option<String>, what: &'static str| {
            value.ok_or_else(|| RenderError::Nothing {
                device: device.to_string(),
                what,
            })
        };
        let known = |names: Vec<String>| names.iter().take(100).map(|name| safe::show(name, 64)).collect();
        match self {
            Part::Text(text) => Ok(text.clone()),
            Part::Kernel => Ok(view.sysname().to_owned()),
            Part::Number => need(device.sysnum(), "$number"),
            Part::Devpath => Ok(device.devpath().to_owned()),
            Part::Devnode => need(device.devnode().map(str::to_owned), "$devnode"),
            Part::Major => need(device.devnum().map(|n| n.major.to_string()), "$major"),
            Part::Minor => need(device.devnum().map(|n| n.minor.to_string()), "$minor"),
            Part::Driver => need(
                view.matched_driver(matched)
                    .map(str::to_owned)
                    .or_else(|| device.driver()),
                "$driver",
            ),
            Part::Id => need(
                view.matched_name(matched).map(str::to_owned),
                "$id (no KERNELS, ATTRS … in the rule)",
            ),
            Part::Sys => Ok(device.sys_root().to_string_lossy().into_owned()),
            Part::Root => Ok("/dev".to_owned()),
            Part::Name => Ok(device
                .interface()
                .or_else(|| device.devnode().and_then(|node| node.strip_prefix("/dev/")))
                .unwrap_or(view.sysname())
                .to_owned()),
            Part::Env(name) => {
                device
                    .property(name)
                    .map(str::to_owned)
                    .ok_or_else(|| RenderError::UnknownProperty {
                        device: device.to_string(),
                        name: name.clone(),
                        known: known(device.properties().keys().cloned().collect()),
                    })
            }
            Part::Attr(name) => view
                .attribute(name, matched)
                .map(|value| {
                    value
                        .trim_end_matches(|c: char| c.is_ascii_whitespace())
                        .to_owned()
                })
                .ok_or_else(|| RenderError::UnknownAttribute {
                    device: device.to_string(),
                    name: name.clone(),
                    known: known(sysfs::attribute_names(device.sys_root(), device.devpath())),
                }),
        }
    }
}

fn refuse_unsafe(device: &Device, name: &str, value: &str) -> Result<(), RenderError> {
    safe::text(value).map_err(|source| RenderError::Unsafe {
        device: device.to_string(),
        name: name.to_owned(),
        value: safe::show(value, 80),
        source,
    })
}

fn unknown(sign: char, after: &str, column: u32) -> TemplateError {
    let word: String = match sign {
        '$' => after
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .take(32)
            .collect(),
        _ => after.chars().take(1).collect(),
    };
    let other = OTHERS.iter().any(|(name, short)| match sign {
        '$' => *name == word,
        _ => *short != '\0' && word.starts_with(*short),
    });
    let near = NAMES
        .iter()
        .map(|(name, ..)| (strsim::damerau_levenshtein(&word, name), *name))
        .min()
        .filter(|(distance, name)| sign == '$' && *distance <= 1 + name.len() / 3);
    let message = match (word.is_empty(), other) {
        (true, _) => format!("`{sign}` stands alone"),
        (_, true) => format!("the substitution {sign}{word} is not supported"),
        _ => format!("unknown substitution {sign}{word}"),
    };
    let hint = match near {
        Some((_, name)) if !other => format!("did you mean ${name}?"),
        _ => format!(
            "write {sign}{sign} for a {sign} itself; known: {}",
            NAMES.map_names()
        ),
    };
    TemplateError {
        column,
        message,
        hint: Some(hint),
    }
}

trait MapNames {
    fn map_names(&self) -> String;
}

impl MapNames for [(&str, char, bool)] {
    fn map_names(&self) -> String {
        self.iter()
            .map(|(name, ..)| format!("${name}"))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Text(text) => f.write_str(&text.replace('$', "$$").replace('%', "%%")),
            Part::Kernel => f.write_str("$kernel"),
            Part::Number => f.write_str("$number"),
            Part::Devpath => f.write_str("$devpath"),
            Part::Devnode => f.write_str("$devnode"),
            Part::Major => f.write_str("$major"),
            Part::Minor => f.write_str("$minor"),
            Part::Driver => f.write_str("$driver"),
            Part::Id => f.write_str("$id"),
            Part::Sys => f.write_str("$sys"),
            Part::Root => f.write_str("$root"),
            Part::Name => f.write_str("$name"),
            Part::Env(name) => write!(f, "$env{{{name}}}"),
            Part::Attr(name) => write!(f, "$attr{{{name}}}"),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| part.fmt(f))
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
