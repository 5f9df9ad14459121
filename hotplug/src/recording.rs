//! A recording of devices: what was there, what happened, and what /sys said, one JSON object a line.
//!
//! ```text
//! {"berthRecording":1,"source":"udev"}
//! {"folder":{"devpath":"/devices/…","uevent":"…","subsystem":"usb","driver":"ftdi_sio","attributes":{"idVendor":"0403"}}}
//! {"there":{"devpath":"/devices/…","properties":{…}}}
//! {"event":{"at":1250,"action":"add","seqnum":7,"device":{…}}}
//! ```
//! A folder stands before the first line that needs it, and again whenever it says something else. Invariants: a
//! recording holds text only and is read without root and without this machine's /sys; what it says is as little
//! trusted as a device: paths are checked, lengths bounded ([`crate::safe`]), links never followed; the same file gives
//! the same events. Attributes whose reading does something (`rom`, `vpd`, `config`, `resource…`) are left out.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::device::{Device, Record};
use crate::event::{Action, Event};
use crate::{safe, sysfs};

/// Version of the format.
const VERSION: u32 = 1;
/// Longest line, bytes.
const LINE_MAX: u64 = 4 << 20;
/// Most attributes of one folder.
const ATTRIBUTES_MAX: usize = 256;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// What a folder of /sys says from now on.
    Folder(Folder),
    /// A device that was there when the recording began.
    There(Record),
    /// Something happened.
    Event(Happened),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    berth_recording: u32,
    source: String,
}

/// A folder of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Folder {
    /// Its path below /sys.
    pub devpath: String,
    /// Its `uevent` file.
    #[serde(default)]
    pub uevent: String,
    /// Where its link `subsystem` leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// Where its link `driver` leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Attributes, those one folder below too (`power/control`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// An event, and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Happened {
    /// Milliseconds since the recording began.
    pub at: u64,
    /// What.
    pub action: Action,
    /// The kernel's number.
    #[serde(default)]
    pub seqnum: u64,
    /// To which device.
    pub device: Record,
    /// DEVPATH_OLD of a `move`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devpath_old: Option<String>,
}

/// Why a recording cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordingError {
    /// The file.
    #[error("{0}")]
    File(#[from] io::Error),
    /// A line is no line of a recording.
    #[error("line {line}: {message}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
}

impl RecordingError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        matches!(self, RecordingError::Line { .. })
            .then(|| "recordings are made by `berth device record`".to_owned())
    }
}

impl Folder {
    /// Reads the folder of the device at `devpath`; `None`: there is none.
    pub fn read(sys_root: &Path, devpath: &str) -> Option<Folder> {
        let dir = sysfs::device_dir(sys_root, devpath);
        let uevent = sysfs::read_bounded(&dir.join("uevent"))?;
        let mut folder = Folder {
            devpath: devpath.to_owned(),
            uevent: sysfs::into_text(uevent),
            subsystem: sysfs::link_name(sys_root, devpath, "subsystem"),
            driver: sysfs::link_name(sys_root, devpath, "driver"),
            attributes: BTreeMap::new(),
        };
        let mut names = sysfs::attribute_names(sys_root, devpath);
        for below in ["power", "queue", "device", "sriov_numvfs"] {
            if !dir.join(below).join("uevent").exists() {
                let of = sysfs::attribute_names(sys_root, &format!("{devpath}/{below}"));
                names.extend(of.into_iter().map(|name| format!("{below}/{name}")));
            }
        }
        let quiet = |name: &str| {
            let last = name.rsplit('/').next().unwrap_or(name);
            !matches!(last, "uevent" | "rom" | "vpd" | "config" | "remove" | "rescan")
                && !last.starts_with("resource")
                // Counters: each look would be another.
                && !matches!(last, "stat" | "inflight" | "runtime_active_time" | "runtime_suspended_time")
        };
        for name in names.into_iter().filter(|name| quiet(name)).take(ATTRIBUTES_MAX) {
            if let Some(value) =
                sysfs::attribute(sys_root, devpath, &name).filter(|v| !v.contains('\u{fffd}'))
            {
                folder.attributes.insert(name, value);
            }
        }
        Some(folder)
    }

    /// Makes the folder below `sys_root`, in the place of what was there.
    ///
    /// # Errors
    /// A path that is not plain, and what the kernel says.
    pub fn write(&self, sys_root: &Path) -> io::Result<()> {
        let wrong = |text: &str| io::Error::other(format!("{:?} is no plain path", safe::show(text, 128)));
        if !self.devpath.starts_with("/devices/") || !safe::is_plain_path(&self.devpath) {
            return Err(wrong(&self.devpath));
        }
        let dir = sysfs::device_dir(sys_root, &self.devpath);
        std::fs::create_dir_all(&dir)?;
        // Devices below it stay; what was the folder's own goes.
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                std::fs::remove_file(entry.path())?;
            }
        }
        std::fs::write(dir.join("uevent"), &self.uevent)?;
        for (link, name) in [("subsystem", &self.subsystem), ("driver", &self.driver)] {
            if let Some(name) = name {
                // Only its last part is ever read.
                symlink(format!("/recorded/{}", name.replace('/', "!")), dir.join(link))?;
            }
        }
        for (name, value) in &self.attributes {
            if !safe::is_plain_path(&format!("/{name}")) || value.len() > safe::VALUE_MAX {
                return Err(wrong(name));
            }
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            if path.is_dir() || matches!(name.as_str(), "uevent" | "subsystem" | "driver") {
                return Err(wrong(name));
            }
            std::fs::write(path, format!("{value}\n"))?;
        }
        Ok(())
    }
}

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder<W> {
    out: W,
    sys_root: PathBuf,
    folders: BTreeMap<String, Folder>,
}

impl<W: Write> Recorder<W> {
    /// Begins one. `source`: `udev` or `kernel`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn begin(mut out: W, sys_root: &Path, source: &str) -> io::Result<Recorder<W>> {
        let head = Head {
            berth_recording: VERSION,
            source: source.to_owned(),
        };
        line(&mut out, &head)?;
        Ok(Recorder {
            out,
            sys_root: sys_root.to_owned(),
            folders: BTreeMap::new(),
        })
    }

    /// A device that is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn there(&mut self, device: &Device) -> io::Result<()> {
        self.folders_of(device.devpath())?;
        line(&mut self.out, &Line::There(record(device)))
    }

    /// An event, `at` milliseconds after the begin.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn event(&mut self, at: u64, event: &Event) -> io::Result<()> {
        if event.action == Action::Remove {
            self.folders.remove(event.device.devpath());
        } else {
            self.folders_of(event.device.devpath())?;
        }
        let happened = Happened {
            at,
            action: event.action,
            seqnum: event.seqnum,
            device: record(&event.device),
            devpath_old: event.devpath_old.clone(),
        };
        line(&mut self.out, &Line::Event(happened))
    }

    /// The device's folder and those above it, where they say something new.
    fn folders_of(&mut self, devpath: &str) -> io::Result<()> {
        let mut path = Some(devpath.to_owned());
        let mut found = Vec::new();
        while let Some(at) = path {
            found.extend(Folder::read(&self.sys_root, &at));
            path = sysfs::parent(&self.sys_root, &at);
        }
        for folder in found.into_iter().rev() {
            if self.folders.get(&folder.devpath) != Some(&folder) {
                line(&mut self.out, &Line::Folder(folder.clone()))?;
                self.folders.insert(folder.devpath.clone(), folder);
            }
        }
        Ok(())
    }
}

fn record(device: &Device) -> Record {
    device.clone().into()
}

fn line<W: Write>(out: &mut W, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value).map_err(io::Error::other)?;
    writeln!(out, "{text}")?;
    out.flush()
}

/// Reads a recording, line by line.
#[derive(Debug)]
pub struct Reader<R> {
    lines: R,
    number: u64,
    sys_root: PathBuf,
}

impl<R: BufRead> Reader<R> {
    /// Opens one; `sys_root` is where its /sys will be made.
    ///
    /// # Errors
    /// [`RecordingError`]: it is none, or of a version this one does not know.
    pub fn open(lines: R, sys_root: &Path) -> Result<Reader<R>, RecordingError> {
        let mut reader = Reader {
            lines,
            number: 0,
            sys_root: sys_root.to_owned(),
        };
        let head: Option<Head> = reader.read()?;
        match head {
            Some(head) if head.berth_recording == VERSION => Ok(reader),
            Some(head) => Err(reader.wrong(format!("version {} is not known", head.berth_recording))),
            None => Err(reader.wrong("it is empty".to_owned())),
        }
    }

    /// Number of the last line read.
    pub fn line(&self) -> u64 {
        self.number
    }

    fn wrong(&self, message: String) -> RecordingError {
        RecordingError::Line {
            line: self.number,
            message,
        }
    }

    fn read<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, RecordingError> {
        let mut text = Vec::new();
        self.number += 1;
        let mut bounded = io::Read::take(&mut self.lines, LINE_MAX + 1);
        let length = bounded.read_until(b'\n', &mut text)?;
        if length == 0 {
            return Ok(None);
        }
        if length as u64 > LINE_MAX {
            return Err(self.wrong(format!("longer than {LINE_MAX} bytes")));
        }
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| self.wrong(safe::show(&e.to_string(), 200)))
    }

    /// The next device or event; folders are made below the root on the way, and taken away when a device goes.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn step(&mut self) -> Result<Option<Step>, RecordingError> {
        while let Some(line) = self.read()? {
            match line {
                Line::Folder(folder) => folder
                    .write(&self.sys_root)
                    .map_err(|e| self.wrong(e.to_string()))?,
                Line::There(record) => return Ok(Some(Step::There(self.device(record)))),
                Line::Event(happened) => {
                    let device = self.device(happened.device);
                    let event = Event {
                        action: happened.action,
                        seqnum: happened.seqnum,
                        device,
                        devpath_old: happened.devpath_old,
                    };
                    return Ok(Some(Step::Event(happened.at, Box::new(event))));
                }
            }
        }
        Ok(None)
    }

    /// After the event was taken in: a folder that is gone is gone here too.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear(&self, event: &Event) -> io::Result<()> {
        let devpath = event.device.devpath();
        let gone = match event.action {
            Action::Remove => devpath,
            Action::Move => event.devpath_old.as_deref().unwrap_or_default(),
            _ => return Ok(()),
        };
        if !gone.starts_with("/devices/") || !safe::is_plain_path(gone) {
            return Ok(());
        }
        match std::fs::remove_dir_all(sysfs::device_dir(&self.sys_root, gone)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn device(&self, record: Record) -> Device {
        Record {
            sys_root: self.sys_root.clone(),
            ..record
        }
        .into()
    }
}

/// What a recording says next.
#[derive(Debug)]
pub enum Step {
    /// A device was there when it began.
    There(Device),
    /// An event, milliseconds after the begin.
    Event(u64, Box<Event>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Match;
    use crate::rule::{View, explain};
    use proptest::prelude::*;

    fn tree(root: &Path) -> Device {
        let port = Folder {
            devpath: "/devices/usb1/1-1".into(),
            uevent: "DEVTYPE=usb_device\n".into(),
            subsystem: Some("usb".into()),
            driver: Some("usb".into()),
            attributes: [
                ("idVendor".to_owned(), "0403".to_owned()),
                ("power/control".to_owned(), "auto".to_owned()),
            ]
            .into(),
        };
        port.write(root).unwrap();
        let tty = Folder {
            devpath: "/devices/usb1/1-1/tty/ttyUSB0".into(),
            uevent: "MAJOR=188\nMINOR=0\nDEVNAME=ttyUSB0\n".into(),
            subsystem: Some("tty".into()),
            ..Folder::default()
        };
        tty.write(root).unwrap();
        assert_eq!(Folder::read(root, "/devices/usb1/1-1").unwrap(), port);
        Device::from_sysfs(root, Path::new("/devices/usb1/1-1/tty/ttyUSB0")).unwrap()
    }

    #[test]
    fn what_was_recorded_is_matched_the_same() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let device = tree(from.path());
        let mut text = Vec::new();
        let mut recorder = Recorder::begin(&mut text, from.path(), "kernel").unwrap();
        recorder.there(&device).unwrap();
        let event = |action| Event {
            action,
            ..Event::added(device.clone())
        };
        std::fs::write(from.path().join("devices/usb1/1-1/idVendor"), "0404\n").unwrap();
        recorder.event(5, &event(Action::Change)).unwrap();
        recorder.event(9, &event(Action::Remove)).unwrap();
        let mut reader = Reader::open(&text[..], to.path()).unwrap();
        let holds = |device: &Device, vendor: &str| {
            let rule = Match::parse(&format!("SUBSYSTEM==\"tty\", ATTRS{{idVendor}}==\"{vendor}\"")).unwrap();
            assert_eq!(
                explain(&rule, device, Action::Add).holds,
                rule.matches(&View::new(device), Action::Add).is_some()
            );
            rule.matches(&View::new(device), Action::Add).is_some()
        };
        let Some(Step::There(there)) = reader.step().unwrap() else {
            panic!()
        };
        assert_eq!(there.devnode(), Some("/dev/ttyUSB0"));
        assert!(holds(&there, "0403"));
        let Some(Step::Event(5, changed)) = reader.step().unwrap() else {
            panic!()
        };
        assert!(holds(&changed.device, "0404"));
        let Some(Step::Event(9, gone)) = reader.step().unwrap() else {
            panic!()
        };
        reader.clear(&gone).unwrap();
        assert!(!gone.device.exists() && to.path().join("devices/usb1/1-1").is_dir());
        assert!(reader.step().unwrap().is_none());
    }

    #[test]
    fn hostile_recordings_are_refused() {
        let folder = |devpath: &str, name: &str| {
            format!(
                "{{\"berthRecording\":1,\"source\":\"x\"}}\n{{\"folder\":{{\"devpath\":{},\"attributes\":{{{}:\"x\"}}}}}}\n",
                serde_json::to_string(devpath).unwrap(),
                serde_json::to_string(name).unwrap()
            )
        };
        for (text, message) in [
            (String::new(), "empty"),
            ("x\n".to_owned(), "line 1"),
            (
                "{\"berthRecording\":9,\"source\":\"x\"}\n".to_owned(),
                "version 9",
            ),
            (folder("/devices/../../etc", "a"), "no plain path"),
            (folder("/etc", "a"), "no plain path"),
            (folder("/devices/a", "../../../etc/x"), "no plain path"),
            (folder("/devices/a", "uevent"), "no plain path"),
            (folder("/devices/a", "driver"), "no plain path"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let run = || -> Result<(), RecordingError> {
                let mut reader = Reader::open(text.as_bytes(), root.path())?;
                while reader.step()?.is_some() {}
                Ok(())
            };
            let error = run().unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_lines_are_read_to_an_end(text in "[ -~\n]{0,200}") {
            let root = tempfile::tempdir().unwrap();
            let text = format!("{{\"berthRecording\":1,\"source\":\"x\"}}\n{text}");
            let mut reader = Reader::open(text.as_bytes(), root.path()).unwrap();
            while let Ok(Some(_)) = reader.step() {}
        }
    }
}
