//! Where else a record goes: journald (its native protocol) or syslog (RFC 3164 on a local socket).
//!
//! Invariants: sending never blocks; a record that the other side does not take is in the chain all the same, and
//! is counted. A record holds no control character, so no field needs journald's length-prefixed form.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::Record;

/// journald's native socket.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// syslog's socket.
const SYSLOG: &str = "/dev/log";
/// LOG_AUTHPRIV.
const FACILITY: u32 = 10;

/// A further receiver.
#[derive(Debug, Default)]
pub struct Sink {
    to: Option<(Form, PathBuf)>,
    lost: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Journal,
    Syslog,
}

impl Sink {
    /// Nobody.
    pub fn none() -> Sink {
        Sink::default()
    }

    /// journald, at `socket` or where it always is.
    pub fn journald(socket: Option<&Path>) -> Sink {
        Sink::to(Form::Journal, socket.unwrap_or(Path::new(JOURNAL)))
    }

    /// syslog, at `socket` or where it always is.
    pub fn syslog(socket: Option<&Path>) -> Sink {
        Sink::to(Form::Syslog, socket.unwrap_or(Path::new(SYSLOG)))
    }

    /// From its name: `none`, `journald`, `syslog`.
    pub fn named(name: &str) -> Option<Sink> {
        match name {
            "none" => Some(Sink::none()),
            "journald" => Some(Sink::journald(None)),
            "syslog" => Some(Sink::syslog(None)),
            _ => None,
        }
    }

    fn to(form: Form, path: &Path) -> Sink {
        Sink {
            to: Some((form, path.to_owned())),
            lost: AtomicU64::new(0),
        }
    }

    /// Records that were not taken.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn send(&self, chain: &str, record: &Record) {
        let Some((form, path)) = &self.to else { return };
        let text = match form {
            Form::Journal => journal(chain, record),
            Form::Syslog => syslog(chain, record),
        };
        // A socket for each record: the receiver may have been started anew.
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to(text.as_bytes(), path)
        });
        if sent.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn words(record: &Record) -> String {
    format!(
        "{} {} {}: {}",
        record.kind, record.subject, record.result, record.text
    )
}

/// 4 (warning) where it did not go well, else 6 (information).
fn priority(record: &Record) -> u32 {
    if record.result == "ok" { 6 } else { 4 }
}

fn journal(chain: &str, record: &Record) -> String {
    let mut text = format!(
        "MESSAGE={}\nPRIORITY={}\nSYSLOG_FACILITY={FACILITY}\nSYSLOG_IDENTIFIER=berth-audit\nBERTH_AUDIT_CHAIN={chain}\n\
         BERTH_AUDIT_SEQ={}\nBERTH_AUDIT_HASH={}\nBERTH_AUDIT_KIND={}\nBERTH_AUDIT_SUBJECT={}\nBERTH_AUDIT_RESULT={}\n",
        words(record),
        priority(record),
        record.seq,
        record.hash,
        record.kind,
        record.subject,
        record.result,
    );
    if let Some(who) = &record.who {
        text += &format!("BERTH_AUDIT_UID={}\nBERTH_AUDIT_PID={}\n", who.uid, who.pid);
    }
    text
}

fn syslog(chain: &str, record: &Record) -> String {
    let uid = record
        .who
        .as_ref()
        .map_or(String::new(), |who| format!(" uid={}", who.uid));
    format!(
        "<{}>berth-audit[{}]: chain={chain} seq={} hash={}{uid} {}",
        FACILITY * 8 + priority(record),
        record.by,
        record.seq,
        record.hash,
        words(record)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chain, Entry, Limits};

    #[test]
    fn journald_and_syslog_get_each_record_and_a_missing_one_is_counted() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let mut bytes = [0; 4096];
        for (sink, expected) in [
            (
                Sink::journald(Some(&path)),
                "BERTH_AUDIT_SUBJECT=web\\u{a}PRIORITY=0\n",
            ),
            (Sink::syslog(Some(&path)), "<84>berth-audit["),
        ] {
            let chain = Chain::open(&temp.path().join("chain"), Limits::default(), sink).unwrap();
            chain
                .append(Entry::new("refused", "web\nPRIORITY=0", "no").result("refused"))
                .unwrap();
            let n = receiver.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
            assert!(text.contains(expected), "{text}");
            drop(chain);
        }
        let chain = Chain::open(
            &temp.path().join("chain"),
            Limits::default(),
            Sink::syslog(Some(&temp.path().join("none"))),
        )
        .unwrap();
        chain.append(Entry::new("x", "y", "z")).unwrap();
        assert_eq!(chain.sink().lost(), 1);
    }
}
