//! Files and folders → a checked [`Set`] and every fault.
//!
//! Only [`check`] and [`load`] touch the file system (`files`).

mod files;
mod foreign;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use berth_rt::topology::Topology;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::cross::{self, Faulty};
use crate::document::{ApiVersion, Document, Kind, Metadata, Origin};
use crate::fault::{Fault, Problem, Severity};
use crate::recover::{self, Outcome, Placed};
use crate::set::Set;
use crate::specs::Spec;
use crate::tree::{self, Node, Parsed};

/// Most files of one run.
const MAX_FILES: usize = 1000;

/// A text that was read elsewhere, such as a request's body.
#[derive(Debug, Clone)]
pub struct Source {
    /// What faults call it.
    pub name: PathBuf,
    /// YAML.
    pub text: String,
}

/// What documents are checked against beside each other.
#[derive(Debug, Clone, Copy)]
pub struct Against<'a> {
    /// The documents that are there already.
    pub base: &'a Set,
    /// The node they are for; without it a `Node` is checked only as far as that needs none.
    pub topology: Option<&'a Topology>,
}

impl<'a> From<&'a Set> for Against<'a> {
    fn from(base: &'a Set) -> Self {
        Self { base, topology: None }
    }
}

/// What came of reading documents.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The documents that were read, without those that were there before. Consistent together with those
    /// where there is no fault; to be thrown away where there is one.
    pub set: Set,
    /// In the order of files, then by line. Any of them refuses the set.
    pub faults: Vec<Fault>,
    /// Probably not what was meant.
    pub warnings: Vec<Fault>,
}

impl Report {
    /// The set, or the faults.
    ///
    /// # Errors
    /// Every fault.
    pub fn into_result(self) -> Result<Set, Vec<Fault>> {
        if self.faults.is_empty() {
            Ok(self.set)
        } else {
            Err(self.faults)
        }
    }
}

/// Reads files and folders (`*.yaml` and `*.yml` directly in them) as a whole configuration.
///
/// # Errors
/// Every fault of every file.
pub fn load(paths: &[PathBuf]) -> Result<Set, Vec<Fault>> {
    check(paths, &Set::default()).into_result()
}

/// As [`load`], onto the documents that are there already: what those hold may be named, and what is read
/// takes the place of theirs with the same kind and name.
///
/// `against` is a `&Set`, or an [`Against`] with the node's topology.
pub fn check<'a>(paths: &[PathBuf], against: impl Into<Against<'a>>) -> Report {
    let Against { base, topology } = against.into();
    let mut reading = Reading {
        topology,
        ..Reading::default()
    };
    let mut files = Vec::new();
    for path in paths {
        reading.collect(path, &mut files);
    }
    let mut seen = Vec::new();
    for file in files {
        let real = fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
        if seen.contains(&real) {
            continue;
        }
        seen.push(real);
        if seen.len() > MAX_FILES {
            reading.whole(
                &file,
                format!("more than {MAX_FILES} files"),
                Some("join documents into fewer files"),
            );
            break;
        }
        reading.begin_file();
        if let Some(text) = reading.read(&file) {
            reading.text(&file, &text);
        }
    }
    reading.finish(base)
}

/// As [`check`], of texts that were read elsewhere.
pub fn check_sources<'a>(sources: &[Source], against: impl Into<Against<'a>>) -> Report {
    let Against { base, topology } = against.into();
    let mut reading = Reading {
        topology,
        ..Reading::default()
    };
    for source in sources {
        reading.begin_file();
        reading.text(&source.name, &source.text);
    }
    reading.finish(base)
}

/// The faults of each document of a set by itself.
pub(crate) fn own_problems(set: &Set) -> Vec<(String, Vec<Problem>)> {
    fn each<T: Spec>(
        kind: Kind,
        documents: &BTreeMap<String, Document<T>>,
        out: &mut Vec<(String, Vec<Problem>)>,
    ) {
        for (key, document) in documents {
            let mut problems = document.metadata.validate();
            problems.extend(document.spec.problems(None));
            if key != document.name() {
                problems.push(
                    Problem::new("metadata.name", format!("found `{}`", document.name())).expected(key),
                );
            }
            out.push((format!("{kind} `{key}`"), problems));
        }
    }
    let mut out = Vec::new();
    each(Kind::Node, &set.nodes, &mut out);
    each(Kind::SecurityProfile, &set.profiles, &mut out);
    each(Kind::Workload, &set.workloads, &mut out);
    each(Kind::HotplugRule, &set.rules, &mut out);
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope<T> {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: Kind,
    metadata: Metadata,
    spec: T,
}

/// A document's tree, kept until the cross checks have told their faults at their places.
struct Kept {
    file: PathBuf,
    file_index: usize,
    root: Node,
    poisoned: Vec<String>,
}

#[derive(Default)]
struct Reading<'a> {
    topology: Option<&'a Topology>,
    set: Set,
    /// With the file's number, for the order.
    faults: Vec<(usize, Fault)>,
    warnings: Vec<(usize, Fault)>,
    kept: BTreeMap<(Kind, String), Kept>,
    faulty: Faulty,
    /// Whether documents exist of which not even the name is known.
    lost: bool,
    file_index: usize,
}

impl Reading<'_> {
    fn begin_file(&mut self) {
        self.file_index += 1;
    }

    fn text(&mut self, file: &Path, text: &str) {
        let Parsed {
            documents,
            faults,
            lost,
        } = tree::parse(text);
        self.lost |= lost;
        for fault in faults {
            self.faults.push((
                self.file_index,
                Fault {
                    file: file.to_owned(),
                    line: fault.pos.line,
                    column: fault.pos.column,
                    path: String::new(),
                    message: fault.message,
                    expected: fault.expected,
                    hint: fault.hint,
                    severity: Severity::Error,
                },
            ));
        }
        for root in documents {
            self.document(file, root);
        }
    }

    fn document(&mut self, file: &Path, root: Node) {
        let kind = root.entry("kind").and_then(|entry| entry.value.text());
        if kind == Some(foreign::KIND) {
            return self.foreign(file, root);
        }
        match Kind::ALL.into_iter().find(|known| kind == Some(known.as_str())) {
            Some(Kind::Node) => self.typed(file, root, Kind::Node, |set| &mut set.nodes),
            Some(Kind::Workload) => self.typed(file, root, Kind::Workload, |set| &mut set.workloads),
            Some(Kind::HotplugRule) => self.typed(file, root, Kind::HotplugRule, |set| &mut set.rules),
            Some(Kind::SecurityProfile) => {
                self.typed(file, root, Kind::SecurityProfile, |set| &mut set.profiles)
            }
            None => {
                // Its spec cannot be judged, all else can.
                self.lost = true;
                let Outcome {
                    faults,
                    value,
                    poisoned,
                    dead,
                } = recover::read::<Envelope<IgnoredAny>>(&root);
                self.placed(file, faults);
                if let Some(envelope) = value {
                    let problems = envelope.metadata.validate();
                    self.problems(file, &root, problems, &poisoned, &dead);
                }
            }
        }
    }

    fn typed<T: Spec>(
        &mut self,
        file: &Path,
        root: Node,
        kind: Kind,
        place: fn(&mut Set) -> &mut BTreeMap<String, Document<T>>,
    ) {
        let Outcome {
            value,
            faults,
            poisoned,
            dead,
        } = recover::read::<Envelope<T>>(&root);
        self.placed(file, faults);
        let mut value = value;
        let folder = file.parent().unwrap_or(Path::new(""));
        let lost = value.as_mut().and_then(|envelope| envelope.spec.inline(folder));
        let folded = value
            .as_mut()
            .map(|envelope| envelope.spec.fold(&mut envelope.metadata));
        // The name as it is written: a document that is refused still has it.
        let named = root
            .entry("metadata")
            .and_then(|metadata| metadata.value.entry("name"));
        let Some(name) = named.and_then(|entry| entry.value.text()).map(str::to_owned) else {
            self.lost = true;
            return;
        };
        if let Some(envelope) = &value {
            let mut problems = envelope.metadata.validate();
            problems.extend(envelope.spec.problems(self.topology));
            problems.extend(lost);
            problems.extend(folded.unwrap_or_default());
            self.problems(file, &root, problems, &poisoned, &dead);
        }
        let value = value.map(|envelope| (envelope.metadata, envelope.spec));
        self.keep(file, root, (kind, name), value, poisoned, place);
    }

    /// Puts a document into the set, unless there is one of its name, or another node, already.
    fn keep<T: Spec>(
        &mut self,
        file: &Path,
        root: Node,
        key: (Kind, String),
        value: Option<(Metadata, T)>,
        poisoned: Vec<String>,
        place: fn(&mut Set) -> &mut BTreeMap<String, Document<T>>,
    ) {
        let (kind, name) = key.clone();
        if let Some(first) = self.kept.get(&key) {
            let at = recover::place(&first.root, "metadata.name");
            let problem = Problem::new(
                "metadata.name",
                format!("a second {kind} `{}`", crate::document::shown(&name)),
            )
            .expected(format!(
                "each name once; {}:{}:{} has it first",
                first.file.display(),
                at.line,
                at.column
            ))
            .hint("rename or remove one of the two");
            self.problems(file, &root, vec![problem], &[], &HashSet::new());
            return;
        }
        if kind == Kind::Node
            && let Some(first) = self
                .kept
                .iter()
                .find(|((kind, _), _)| *kind == Kind::Node)
                .map(|(_, kept)| kept)
        {
            let at = recover::place(&first.root, "kind");
            let problem = Problem::new("kind", "a second Node")
                .expected(format!(
                    "one; {}:{}:{} is the first",
                    first.file.display(),
                    at.line,
                    at.column
                ))
                .hint("a node has one profile: join the two");
            self.problems(file, &root, vec![problem], &[], &HashSet::new());
            return;
        }
        match value {
            // A faulty document is kept too: what others say of it is judged, where it is not itself at fault.
            Some((metadata, spec)) => {
                let origin = Origin {
                    file: file.to_owned(),
                    line: root.pos.line,
                    column: root.pos.column,
                };
                place(&mut self.set).insert(
                    name,
                    Document {
                        metadata,
                        spec,
                        origin: Some(origin),
                    },
                );
            }
            None => {
                self.faulty.insert(key.clone());
            }
        }
        self.kept.insert(
            key,
            Kept {
                file: file.to_owned(),
                file_index: self.file_index,
                root,
                poisoned,
            },
        );
    }

    fn placed(&mut self, file: &Path, faults: Vec<Placed>) {
        for Placed { pos, problem } in faults {
            self.push(self.file_index, file, pos, problem, Severity::Error);
        }
    }

    /// Problems of a typed document, less those that only follow from faults told already.
    fn problems(
        &mut self,
        file: &Path,
        root: &Node,
        problems: Vec<Problem>,
        poisoned: &[String],
        dead: &HashSet<u32>,
    ) {
        for mut problem in problems {
            problem.path = recover::real_path(root, &problem.path, dead);
            let rests_on = problem
                .rests_on
                .iter()
                .map(|path| recover::real_path(root, path, dead));
            let mut paths = rests_on.chain([problem.path.clone()]);
            if !paths.any(|path| is_poisoned(poisoned, &path)) {
                let pos = pos_of(root, &problem);
                self.push(self.file_index, file, pos, problem, Severity::Error);
            }
        }
    }

    fn push(&mut self, index: usize, file: &Path, pos: tree::Pos, problem: Problem, severity: Severity) {
        let Problem {
            path,
            message,
            expected,
            hint,
            ..
        } = problem;
        let (line, column) = (pos.line, pos.column);
        let fault = Fault {
            file: file.to_owned(),
            line,
            column,
            path,
            message,
            expected,
            hint,
            severity,
        };
        match severity {
            Severity::Error => self.faults.push((index, fault)),
            Severity::Warning => self.warnings.push((index, fault)),
        }
    }

    fn finish(mut self, base: &Set) -> Report {
        self.against(base);
        let sorted = |mut faults: Vec<(usize, Fault)>| {
            faults.sort_by(|(a_file, a), (b_file, b)| {
                (a_file, a.line, a.column).cmp(&(b_file, b.line, b.column))
            });
            // What an alias repeats is told once.
            faults.dedup_by(|(_, a), (_, b)| {
                (&a.file, a.line, a.column, &a.message) == (&b.file, b.line, b.column, &b.message)
            });
            faults.into_iter().map(|(_, fault)| fault).collect()
        };
        Report {
            set: self.set,
            faults: sorted(self.faults),
            warnings: sorted(self.warnings),
        }
    }

    /// The checks between documents.
    fn against(&mut self, base: &Set) {
        let (merged, _) = base.apply(&self.set);
        // Whether some rule does not say which workload it uses.
        let unclear = self.kept.iter().any(|((kind, _), kept)| {
            *kind == Kind::HotplugRule && is_poisoned(&kept.poisoned, "spec.workload")
        });
        for found in cross::problems(&merged, &self.faulty) {
            let unknown = found.problem.message.starts_with("there is no ");
            // A document that could not be read may be the one that is missed.
            if self.lost && (unknown || found.warning) {
                continue;
            }
            let Some(kept) = self.kept.get(&(found.kind, found.name.clone())) else {
                self.without_place(&found);
                continue;
            };
            let other = found.rests_on.as_ref().and_then(|(kind, name, path)| {
                self.kept.get(&(*kind, name.clone())).map(|other| (other, *path))
            });
            if is_poisoned(&kept.poisoned, &found.problem.path)
                || other.is_some_and(|(other, path)| is_poisoned(&other.poisoned, path))
                || found.warning && unclear
            {
                continue;
            }
            let pos = recover::place(&kept.root, &found.problem.path);
            let (file, index) = (kept.file.clone(), kept.file_index);
            let severity = if found.warning {
                Severity::Warning
            } else {
                Severity::Error
            };
            self.push(index, &file, pos, found.problem, severity);
        }
        let other = base
            .nodes
            .keys()
            .find(|name| !self.set.nodes.contains_key(*name))
            .cloned();
        if let (Some(other), Some((name, document))) = (other, self.set.nodes.iter().next()) {
            let Some(kept) = self.kept.get(&(Kind::Node, name.clone())) else {
                return;
            };
            let there = base
                .nodes
                .get(&other)
                .and_then(|d| d.origin.as_ref())
                .map(|o| format!(" ({o})"));
            let problem = Problem::new("metadata.name", format!("a second Node, `{}`", document.name()))
                .expected(format!(
                    "`{other}`, the node that is there{}",
                    there.unwrap_or_default()
                ))
                .hint("delete the other first, or give this one its name");
            let pos = recover::place(&kept.root, "metadata.name");
            let (file, index) = (kept.file.clone(), kept.file_index);
            self.push(index, &file, pos, problem, Severity::Error);
        }
    }

    /// A fault that new documents bring about in one that was there before.
    fn without_place(&mut self, found: &cross::Cross) {
        if found.warning {
            return;
        }
        let problem = &found.problem;
        let fault = Fault {
            file: PathBuf::from(format!("({} {}, which is there already)", found.kind, found.name)),
            line: 0,
            column: 0,
            path: problem.path.clone(),
            message: problem.message.clone(),
            expected: problem.expected.clone(),
            hint: problem.hint.clone(),
            severity: Severity::Error,
        };
        self.faults.push((usize::MAX, fault));
    }
}

/// Whether a field, or something above or below it, is itself at fault.
fn is_poisoned(poisoned: &[String], path: &str) -> bool {
    poisoned.iter().any(|poison| recover::related(path, poison))
}

fn pos_of(root: &Node, problem: &Problem) -> tree::Pos {
    let inside = problem
        .inside
        .and_then(|inside| Some((recover::node_at(root, &problem.path)?, inside)));
    match inside {
        Some((node, inside)) => recover::place_inside(node, inside),
        None => recover::place(root, &problem.path),
    }
}
