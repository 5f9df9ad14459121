//! The parser of udev's match grammar.
//!
//! Lexical rules as in systemd's `udev-rules.c`: clauses are separated by white space and commas; values are
//! in double quotes, `\"` is a quote and any other backslash stands for itself; `e"…"` takes C escapes,
//! `i"…"` compares without case, `ei` and `ie` both. Invariant: every error points at the character. Match keys only:
//! PROGRAM, RESULT and IMPORT run things, and no device may make this process run anything.

use super::constants::CONSTANTS;
use super::{Key, Line, Match, ParseError, Pattern, Test};
use crate::event::Action;
use crate::template::Template;
use crate::{glob, safe, sysfs};

/// Longest text of a whole match, in bytes.
const TEXT_MAX: usize = 64 * 1024;

/// Key, does it take `{argument}`.
const KEYS: &[(&str, Braces)] = &[
    ("ACTION", Braces::No),
    ("ATTR", Braces::Yes),
    ("ATTRS", Braces::Yes),
    ("CONST", Braces::Yes),
    ("DEVPATH", Braces::No),
    ("DRIVER", Braces::No),
    ("DRIVERS", Braces::No),
    ("ENV", Braces::Yes),
    ("KERNEL", Braces::No),
    ("KERNELS", Braces::No),
    ("NAME", Braces::No),
    ("SUBSYSTEM", Braces::No),
    ("SUBSYSTEMS", Braces::No),
    ("SYMLINK", Braces::No),
    ("SYSCTL", Braces::Yes),
    ("TAG", Braces::No),
    ("TAGS", Braces::No),
    ("TEST", Braces::May),
];

/// Does a key take `{argument}`?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Braces {
    No,
    Yes,
    May,
}

/// Keys of udev that are no match of a device, and what to do instead.
const OTHERS: &[(&str, &str)] = &[
    ("GOTO", "a match has no jumps: write one rule for each case"),
    (
        "GROUP",
        "the node belongs to root inside; `device.mode` says who may open it",
    ),
    ("IMPORT", "properties come from the kernel and udevd"),
    ("LABEL", "a match has no jumps: write one rule for each case"),
    ("MODE", "set device.mode in the rule"),
    ("OPTIONS", "it is no match"),
    (
        "OWNER",
        "the node belongs to root inside; `device.mode` says who may open it",
    ),
    ("PROGRAM", "programs are not run for a match"),
    ("RESULT", "programs are not run for a match"),
    ("RUN", "name the workload in the rule"),
    ("SECLABEL", "labels come from the security profile"),
];

pub(super) fn parse(text: &str) -> Result<Match, ParseError> {
    if text.len() > TEXT_MAX {
        return Err(ParseError {
            line: 1,
            column: 1,
            message: format!("the match is {} bytes long, {TEXT_MAX} are allowed", text.len()),
            hint: None,
        });
    }
    let mut reader = Reader {
        rest: text,
        line: 1,
        column: 1,
    };
    let mut lines = Vec::new();
    let mut tests: Vec<Test> = Vec::new();
    let mut end_line = |tests: &mut Vec<Test>| {
        if !tests.is_empty() {
            let tests = std::mem::take(tests);
            let mut order: Vec<usize> = (0..tests.len()).collect();
            order.sort_by_key(|n| tests[*n].key.cost());
            lines.push(Line { tests, order });
        }
    };
    loop {
        match reader.peek() {
            None => break,
            Some('\n') => {
                end_line(&mut tests);
                reader.next();
            }
            Some('\\') if reader.rest.starts_with("\\\n") || reader.rest.starts_with("\\\r\n") => {
                while reader.next() != Some('\n') {}
            }
            Some('#') if tests.is_empty() => {
                while reader.peek().is_some_and(|c| c != '\n') {
                    reader.next();
                }
            }
            Some(c) if c == ',' || c.is_ascii_whitespace() => {
                reader.next();
            }
            Some(_) => tests.push(reader.clause()?),
        }
    }
    end_line(&mut tests);
    if lines.is_empty() {
        return Err(reader.error(
            "there is no clause",
            Some("e.g. SUBSYSTEM==\"tty\", KERNEL==\"ttyUSB*\""),
        ));
    }
    Ok(Match { lines })
}

struct Reader<'t> {
    rest: &'t str,
    line: u32,
    column: u32,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn take(&mut self, text: &str) -> bool {
        let there = self.rest.starts_with(text);
        if there {
            text.chars().for_each(|_| {
                self.next();
            });
        }
        there
    }

    fn word(&mut self, of: impl Fn(char) -> bool) -> &'t str {
        let start = self.rest;
        while self.peek().is_some_and(&of) {
            self.next();
        }
        &start[..start.len() - self.rest.len()]
    }

    fn error(&self, message: impl Into<String>, hint: Option<&str>) -> ParseError {
        let hint = hint.map(str::to_owned);
        ParseError {
            line: self.line,
            column: self.column,
            message: message.into(),
            hint,
        }
    }

    fn blanks(&mut self) {
        self.word(|c| c == ' ' || c == '\t');
    }

    fn clause(&mut self) -> Result<Test, ParseError> {
        let (line, column) = (self.line, self.column);
        let at = |error: ParseError| ParseError {
            line,
            column,
            ..error
        };
        let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            let found = self
                .peek()
                .map(|c| c.escape_debug().to_string())
                .unwrap_or_default();
            return Err(self.error(
                format!("expected a key, found `{found}`"),
                Some("a clause is KEY==\"value\" or KEY!=\"value\""),
            ));
        }
        let Some((_, takes_argument)) = KEYS.iter().find(|(key, _)| *key == name) else {
            return Err(at(unknown_key(name)));
        };
        let argument = self.argument(name, *takes_argument)?;
        self.blanks();
        let equal = self.operator(name)?;
        self.blanks();
        let value_at = (self.line, self.column);
        let (value, fold) = self.value()?;
        let mode = match (name, &argument) {
            ("TEST", Some(mode)) => Some(test_mode(mode).ok_or_else(|| {
                at(self.error(
                    format!("{:?} is no mode", safe::show(mode, 16)),
                    Some("octal, 1 to 7777, e.g. TEST{0444}"),
                ))
            })?),
            _ => None,
        };
        let argument = argument.unwrap_or_default();
        let key = match name {
            "ACTION" => Key::Action,
            "ATTR" => Key::Attr(argument),
            "ATTRS" => Key::Attrs(argument),
            "DEVPATH" => Key::Devpath,
            "DRIVER" => Key::Driver,
            "DRIVERS" => Key::Drivers,
            "ENV" => Key::Env(argument),
            "KERNEL" => Key::Kernel,
            "KERNELS" => Key::Kernels,
            "SUBSYSTEM" => Key::Subsystem,
            "SUBSYSTEMS" => Key::Subsystems,
            "NAME" => Key::Name,
            "SYMLINK" => Key::Symlink,
            "SYSCTL" => Key::Sysctl(argument),
            "CONST" => Key::Const(argument),
            "TEST" => Key::Test(mode),
            "TAG" => Key::Tag,
            _ => Key::Tags,
        };
        let pattern = Pattern::new(value, fold);
        check(&key, &pattern).map_err(|(message, hint)| ParseError {
            line: value_at.0,
            column: value_at.1,
            message,
            hint,
        })?;
        Ok(Test {
            key,
            equal,
            pattern,
            line,
            column,
        })
    }

    fn argument(&mut self, key: &str, takes: Braces) -> Result<Option<String>, ParseError> {
        if self.peek() != Some('{') {
            return match takes {
                Braces::Yes => Err(self.error(
                    format!("{key} needs a name in braces"),
                    Some("e.g. ATTR{idVendor}"),
                )),
                Braces::No | Braces::May => Ok(None),
            };
        }
        if takes == Braces::No {
            return Err(self.error(format!("{key} takes no name in braces"), None));
        }
        self.next();
        let start = self.error(String::new(), None);
        let name = self.word(|c| c != '}' && c != '\n' && c != '"');
        let wrong = |message: &str, hint: Option<&str>| ParseError {
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
            ..start.clone()
        };
        if !self.take("}") {
            return Err(wrong("`{` without `}`", None));
        }
        if name.is_empty() {
            return Err(wrong("the name in braces is empty", None));
        }
        if name.len() > safe::NAME_MAX || name.chars().any(safe::is_control) {
            return Err(wrong(
                "the name in braces is too long or has control characters",
                None,
            ));
        }
        match key {
            "ATTR" | "ATTRS" => {
                attribute_name(name).map_err(|(message, hint)| wrong(&message, Some(&hint)))?
            }
            "SYSCTL" => {
                Template::parse(name).map_err(|e| wrong(&e.message, e.hint.as_deref()))?;
                if name.split(['/', '.']).all(str::is_empty) || name.split('/').any(|part| part == "..") {
                    return Err(wrong(
                        "this is no name below /proc/sys",
                        Some("e.g. SYSCTL{kernel/ostype}"),
                    ));
                }
            }
            "CONST" if !CONSTANTS.contains(&name) => {
                return Err(wrong(
                    &format!("there is no constant {:?}", safe::show(name, 32)),
                    Some("known: arch virt"),
                ));
            }
            _ => {}
        }
        Ok(Some(name.to_owned()))
    }

    /// `==` or `!=`.
    fn operator(&mut self, key: &str) -> Result<bool, ParseError> {
        if self.take("==") {
            return Ok(true);
        }
        if self.take("!=") {
            return Ok(false);
        }
        let assignment = ["+=", "-=", ":=", "="]
            .into_iter()
            .find(|op| self.rest.starts_with(op));
        Err(match assignment {
            Some(op) => self.error(
                format!("`{op}` assigns; a match only compares"),
                Some(&format!("write {key}==\"…\" or {key}!=\"…\"")),
            ),
            None => self.error(format!("expected == or != after {key}"), None),
        })
    }

    fn value(&mut self) -> Result<(String, bool), ParseError> {
        let (mut escaped, mut fold) = (false, false);
        loop {
            match self.peek() {
                Some('e') if !escaped => escaped = true,
                Some('i') if !fold => fold = true,
                _ => break,
            }
            self.next();
        }
        let start = self.error(
            "this string is never closed",
            Some("a value ends with \" on its own line"),
        );
        if !self.take("\"") {
            return Err(self.error("expected a value in double quotes", None));
        }
        let mut value = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(start),
                Some('"') => {
                    self.next();
                    return Ok((value, fold));
                }
                Some('\\') if escaped => value.push(self.escape()?),
                Some('\\') if self.rest.starts_with("\\\"") => {
                    self.next();
                    value.extend(self.next());
                }
                Some('\0') => return Err(self.error("a value cannot hold a NUL character", None)),
                Some(c) => {
                    value.push(c);
                    self.next();
                }
            }
        }
    }

    /// One C escape of an `e"…"` string.
    fn escape(&mut self) -> Result<char, ParseError> {
        let wrong = self.error(
            "unknown escape",
            Some("known: \\a \\b \\f \\n \\r \\t \\v \\s \\\\ \\\" \\' \\xHH \\OOO \\uHHHH \\UHHHHHHHH"),
        );
        self.next();
        let (digits, radix) = match self.next() {
            Some('a') => return Ok('\x07'),
            Some('b') => return Ok('\x08'),
            Some('f') => return Ok('\x0c'),
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('v') => return Ok('\x0b'),
            Some('s') => return Ok(' '),
            Some(c @ ('\\' | '"' | '\'')) => return Ok(c),
            Some('x') => (self.digits(2, 16), 16),
            Some('u') => (self.digits(4, 16), 16),
            Some('U') => (self.digits(8, 16), 16),
            Some(c @ '0'..='3') => (self.digits(2, 8).map(|d| format!("{c}{d}")), 8),
            _ => return Err(wrong),
        };
        let code = digits.and_then(|d| u32::from_str_radix(&d, radix).ok());
        code.and_then(char::from_u32).filter(|c| *c != '\0').ok_or(wrong)
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<String> {
        (0..count)
            .map(|_| {
                self.peek()
                    .filter(|c| c.is_digit(radix))
                    .and_then(|_| self.next())
            })
            .collect()
    }
}

/// An attribute of the device (`idVendor`, `power/control`), with substitutions, or of another one
/// (`[dmi/id]sys_vendor`).
fn attribute_name(name: &str) -> Result<(), (String, String)> {
    if name.starts_with('/') {
        return Err((
            "an attribute is relative to its device".to_owned(),
            "leave out the first /".to_owned(),
        ));
    }
    if name.starts_with('[') {
        return match sysfs::other_device(name) {
            Some((_, _, attribute)) if !attribute.is_empty() => Ok(()),
            _ => Err((
                "another device's attribute is [subsystem/name]attribute".to_owned(),
                "e.g. ATTR{[dmi/id]sys_vendor}".to_owned(),
            )),
        };
    }
    match Template::parse(name) {
        Ok(_) => Ok(()),
        Err(error) => Err((error.message, error.hint.unwrap_or_default())),
    }
}

/// The mode of `TEST{mode}`.
fn test_mode(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| plain && (1..=0o7777).contains(mode))
}

fn unknown_key(name: &str) -> ParseError {
    let upper = name.to_ascii_uppercase();
    let (message, hint) = match OTHERS.iter().find(|(key, _)| *key == upper) {
        Some((key, hint)) => (format!("{key} cannot be used in a match"), (*hint).to_owned()),
        None => {
            let near = KEYS
                .iter()
                .map(|(key, _)| (strsim::damerau_levenshtein(&upper, key), *key))
                .min()
                .filter(|(distance, key)| *distance <= 1 + key.len() / 3);
            let hint = match near {
                Some((_, key)) => format!("did you mean {key}?"),
                None => format!(
                    "known: {}",
                    KEYS.iter().map(|(k, _)| *k).collect::<Vec<_>>().join(" ")
                ),
            };
            (format!("unknown key {}", safe::show(name, 32)), hint)
        }
    };
    ParseError {
        line: 0,
        column: 0,
        message,
        hint: Some(hint),
    }
}

/// What a value cannot be: it would never hold, or not mean what it seems to.
fn check(key: &Key, pattern: &Pattern) -> Result<(), (String, Option<String>)> {
    if pattern.text.len() > safe::TEXT_MAX {
        return Err((format!("the value is longer than {} bytes", safe::TEXT_MAX), None));
    }
    if matches!(key, Key::Test(_)) {
        if pattern.fold {
            return Err(("TEST takes a path, not a pattern".to_owned(), None));
        }
        if pattern.text.is_empty() {
            return Err((
                "TEST needs a path".to_owned(),
                Some("relative to the device's folder, or absolute".to_owned()),
            ));
        }
        return Template::parse(&pattern.text)
            .map(drop)
            .map_err(|error| (error.message, error.hint));
    }
    let split_set = |part: &str| part.contains('[') && !part.contains(']');
    if pattern.text.contains('|') && glob::is_glob(&pattern.text) && pattern.alternatives().any(split_set) {
        return Err((
            "`|` separates alternatives even between [ and ]".to_owned(),
            Some("write the alternatives out".to_owned()),
        ));
    }
    if *key == Key::Action && !glob::is_glob(&pattern.text) {
        for word in pattern.alternatives() {
            let known = word.to_ascii_lowercase().parse::<Action>().is_ok();
            if !known || (!pattern.fold && word.to_ascii_lowercase() != word) {
                return Err((
                    format!("there is no action {:?}", safe::show(word, 32)),
                    Some(format!("known: {}", Action::ALL.map(Action::as_str).join(" "))),
                ));
            }
        }
    }
    Ok(())
}
