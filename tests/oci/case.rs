//! One case: what is put into a bundle's configuration, what the program in it sees, and the fields that this shows.
//!
//! Pure. In every text `{dir}`, `{id}`, `{rootfs}`, `{cgroup}` and `{if}` stand for the bundle's folder, the
//! container's id, its root file system, its cgroup's path and the name of a network interface of the case's own.

use serde_json::{Value, json};

/// How the container is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `run`, to its end.
    Run,
    /// `run --detach`; [`Case::host`] is run while it is up.
    Stay,
    /// `run --detach` with a console socket where the configuration asks for a terminal.
    Console,
    /// `run`, and somebody takes the seccomp listener.
    Listener,
}

/// What the machine must have for the effect; without it the field must be refused by this name.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    /// One of these must be there.
    pub(crate) any: Vec<String>,
    /// The word that a refusal names.
    pub(crate) word: String,
}

/// A case and its assertions.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) fields: Vec<&'static str>,
    pub(crate) set: Vec<(String, Value)>,
    pub(crate) script: String,
    pub(crate) wants: Vec<String>,
    pub(crate) lacks: Vec<String>,
    /// The run is refused (or fails), rather than ending with 0.
    pub(crate) refused: bool,
    pub(crate) mode: Mode,
    /// Shell on the host: before the run, while it is up (`Stay`), after it.
    pub(crate) before: String,
    pub(crate) host: String,
    pub(crate) after: String,
    /// Resources for `update` in `{dir}/update.json`; the fields stand there, not in the configuration.
    pub(crate) update: Option<Value>,
    /// A field that cannot be left out: another value in its place.
    pub(crate) instead: Vec<(&'static str, Value)>,
    pub(crate) need: Option<Need>,
    /// (runtime, why it is not asked)
    pub(crate) peers: Vec<(&'static str, &'static str)>,
}

/// A new case; `name` is said when it fails.
pub(crate) fn case(name: &'static str, fields: &[&'static str]) -> Case {
    Case {
        name,
        fields: fields.to_vec(),
        set: Vec::new(),
        script: "true".into(),
        wants: Vec::new(),
        lacks: Vec::new(),
        refused: false,
        mode: Mode::Run,
        before: String::new(),
        host: String::new(),
        after: String::new(),
        update: None,
        instead: Vec::new(),
        need: None,
        peers: Vec::new(),
    }
}

impl Case {
    /// Set a JSON pointer; `-` appends to an array.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        self.set.push((pointer.to_owned(), value));
        self
    }

    pub(crate) fn sh(mut self, script: &str) -> Self {
        self.script = script.to_owned();
        self
    }

    /// A line (or part of one) of what was said.
    pub(crate) fn want(mut self, text: &str) -> Self {
        self.wants.push(text.to_owned());
        self
    }

    pub(crate) fn lack(mut self, text: &str) -> Self {
        self.lacks.push(text.to_owned());
        self
    }

    pub(crate) fn refused(mut self) -> Self {
        self.refused = true;
        self
    }

    pub(crate) fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn before(mut self, shell: &str) -> Self {
        self.before = shell.to_owned();
        self
    }

    /// While the container is up.
    pub(crate) fn host(mut self, shell: &str) -> Self {
        self.mode = Mode::Stay;
        self.host = shell.to_owned();
        self
    }

    pub(crate) fn after(mut self, shell: &str) -> Self {
        self.after = shell.to_owned();
        self
    }

    pub(crate) fn update(mut self, resources: Value) -> Self {
        self.update = Some(json!({"linux": {"resources": resources}}));
        self
    }

    pub(crate) fn instead(mut self, field: &'static str, value: Value) -> Self {
        self.instead.push((field, value));
        self
    }

    pub(crate) fn need(mut self, any: &[&str], word: &str) -> Self {
        self.need = Some(Need {
            any: any.iter().map(|p| (*p).to_owned()).collect(),
            word: word.to_owned(),
        });
        self
    }

    /// The value of a cgroup file, on v1 and on v2: `controller/file` and `file`.
    pub(crate) fn cgroup(mut self, v1: &[&str], v2: &[&str], word: &str) -> Self {
        let mut any = Vec::new();
        let mut script = String::new();
        for file in v1 {
            let (controller, file) = file.split_once('/').unwrap_or((file, ""));
            any.push(format!("/sys/fs/cgroup/{controller}/{{probe}}/{file}"));
            script += &format!("cat /cg/{controller}{{cgroup}}/{file} 2>/dev/null; ");
        }
        for file in v2 {
            any.push(format!("/sys/fs/cgroup/{{probe}}/{file}"));
            script += &format!("cat /cg{{cgroup}}/{file} 2>/dev/null; ");
        }
        self.script = script + "true";
        self.need = Some(Need {
            any,
            word: word.to_owned(),
        });
        self
    }

    pub(crate) fn not(mut self, runtime: &'static str, why: &'static str) -> Self {
        self.peers.push((runtime, why));
        self
    }

    /// Neither of Debian 12's crun 1.8.1 and runc 1.1.5 knows the field.
    pub(crate) fn no_peer(self, why: &'static str) -> Self {
        self.not("crun", why).not("runc", why)
    }

    /// Does the runtime get this case? Why not.
    pub(crate) fn skipped(&self, runtime: &str) -> Option<&'static str> {
        self.peers
            .iter()
            .find(|(r, _)| *r == runtime)
            .map(|(_, why)| *why)
    }
}

/// One change of a configuration.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// As the case has it.
    Nothing,
    /// The field is left out.
    Without(String),
    /// The field has another value.
    Instead(String, Value),
}

impl Change {
    /// Change the document; was the field there? Of an array it is the last element: the case's own.
    pub(crate) fn apply(&self, document: &mut Value) -> bool {
        match self {
            Change::Nothing => true,
            Change::Without(path) => at(document, path, None),
            Change::Instead(path, value) => at(document, path, Some(value)),
        }
    }
}

fn at(value: &mut Value, path: &str, put: Option<&Value>) -> bool {
    let (part, rest) = path.split_once('.').map_or((path, None), |(p, r)| (p, Some(r)));
    let (key, array) = part.strip_suffix("[]").map_or((part, false), |k| (k, true));
    let Some(map) = value.as_object_mut() else {
        return false;
    };
    let keys: Vec<String> = match key {
        "{}" => map.keys().cloned().collect(),
        _ => map.keys().filter(|k| *k == key).cloned().collect(),
    };
    let mut found = false;
    for key in keys {
        match (rest, put) {
            (None, None) => found |= map.remove(&key).is_some(),
            (None, Some(new)) => found |= map.insert(key, new.clone()).is_some(),
            (Some(rest), _) => {
                let inner = map.get_mut(&key).and_then(|inner| match array {
                    true => inner.as_array_mut().and_then(|list| list.last_mut()),
                    false => Some(inner),
                });
                found |= inner.is_some_and(|inner| at(inner, rest, put));
            }
        }
    }
    found
}

/// Set a JSON pointer.
pub(crate) fn set(document: &mut Value, pointer: &str, value: Value) -> bool {
    let Some((parent, key)) = pointer.rsplit_once('/') else {
        return false;
    };
    match document.pointer_mut(parent) {
        Some(Value::Object(map)) => {
            map.insert(key.to_owned(), value);
            true
        }
        Some(Value::Array(list)) if key == "-" => {
            list.push(value);
            true
        }
        _ => false,
    }
}

/// Put the words of a lab in the place of the braces, in every text of a document.
pub(crate) fn fill(value: &mut Value, words: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = words(text),
        Value::Array(list) => list.iter_mut().for_each(|v| fill(v, words)),
        Value::Object(map) => {
            let old = std::mem::take(map);
            for (key, mut value) in old {
                fill(&mut value, words);
                map.insert(words(&key), value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_taken_away_or_changed_at_its_place() {
        let whole = json!({"a": {"b": [{"c": 1}, {"c": 2, "d": 3}], "x y": {"e": 1}}});
        let changed = |change: Change| {
            let mut document = whole.clone();
            assert!(change.apply(&mut document), "{change:?}");
            document
        };
        let last = |value| json!({"a": {"b": [{"c": 1}, value], "x y": {"e": 1}}});
        assert_eq!(changed(Change::Without("a.b[].c".into())), last(json!({"d": 3})));
        assert_eq!(
            changed(Change::Instead("a.b[].c".into(), json!(7))),
            last(json!({"c": 7, "d": 3}))
        );
        assert_eq!(changed(Change::Without("a".into())), json!({}));
        assert_eq!(changed(Change::Without("a.{}".into())), json!({"a": {}}));
        assert!(!Change::Without("a.b[].z".into()).apply(&mut whole.clone()));
        assert!(!Change::Without("z".into()).apply(&mut whole.clone()));
    }
}
