//! Who may ask what on api.sock: roles by group.
//!
//! | role | by | may |
//! |---|---|---|
//! | admin | uid 0, group berth-admin | everything |
//! | operate | group berth-operate | what read may; stop, start, restart, kill, freeze, thaw what is declared |
//! | read | group berth-read | look |
//!
//! The kernel says who it is (SO_PEERCRED, SO_PEERGROUPS: what the peer was when it connected). Groups are looked up
//! once, at start: a gid given as a number needs no such group. Invariants: a peer without a role gets one answer
//! and no more; every operation has its role here, and a new one does not compile without.

use std::io;
use std::os::fd::BorrowedFd;

use berth_audit::Who;
use berth_launcher::socket;

use crate::api::Op;

/// What somebody may do; each holds those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Stop, start, …: nothing new.
    Operate,
    /// Everything.
    Admin,
}

impl Role {
    /// The word for people, the audit log and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::None => "none",
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }
}

/// Names or numbers of the groups.
#[derive(Debug, Clone)]
pub(crate) struct GroupNames {
    pub read: String,
    pub operate: String,
    pub admin: String,
}

/// The node's groups.
const GROUPS: &str = "/etc/group";

/// The number of a group in the text of group(5): `name:password:number:members`.
fn number_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The groups of this node; those that it does not have give nobody a role.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Groups {
    read: Option<u32>,
    operate: Option<u32>,
    admin: Option<u32>,
}

impl Groups {
    /// Looks them up.
    ///
    /// # Errors
    /// The group database, /etc/group (group(5)), cannot be read. Other sources of nsswitch.conf(5) are not asked: they are
    /// shared libraries, and berth is one static file. A group from there is named by its number.
    pub(crate) fn find(names: &GroupNames) -> io::Result<Groups> {
        let mut database = None;
        let mut find = |name: &str| -> io::Result<Option<u32>> {
            if let Ok(gid) = name.parse() {
                return Ok(Some(gid));
            }
            let text = match &mut database {
                Some(text) => text,
                none => none.insert(std::fs::read_to_string(GROUPS)?),
            };
            Ok(number_of(text, name))
        };
        Ok(Groups {
            read: find(&names.read)?,
            operate: find(&names.operate)?,
            admin: find(&names.admin)?,
        })
    }

    /// Is there anybody but root who may ask?
    pub(crate) fn any(self) -> bool {
        self.read.or(self.operate).or(self.admin).is_some()
    }

    /// The role of a user with these groups.
    pub(crate) fn role(self, uid: u32, gid: u32, groups: &[u32]) -> Role {
        let member = |group: Option<u32>| group.is_some_and(|g| g == gid || groups.contains(&g));
        match () {
            () if uid == 0 || member(self.admin) => Role::Admin,
            () if member(self.operate) => Role::Operate,
            () if member(self.read) => Role::Read,
            () => Role::None,
        }
    }

    /// Who is at the other end, and what it may do.
    pub(crate) fn who(self, socket: BorrowedFd<'_>) -> io::Result<(Who, Role)> {
        let who = socket::who(socket)?;
        let role = self.role(who.uid, who.gid, &socket::groups(socket)?);
        let role_word = Some(role.as_str().to_owned());
        Ok((
            Who {
                role: role_word,
                ..who
            },
            role,
        ))
    }
}

/// The role an operation needs.
pub(crate) fn needed(op: &Op) -> Role {
    match op {
        Op::Hello
        | Op::Ps
        | Op::Inspect { .. }
        | Op::Resolve { .. }
        | Op::Documents
        | Op::Plan(_)
        | Op::Prove { .. }
        | Op::Events { .. }
        | Op::Wait { .. }
        | Op::Node
        | Op::Sandbox => Role::Read,
        Op::Stop { .. }
        | Op::Start { .. }
        | Op::Restart { .. }
        | Op::Kill { .. }
        | Op::Freeze { .. }
        | Op::Thaw { .. } => Role::Operate,
        Op::Apply(_) | Op::Run { .. } => Role::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_the_text_of_the_database() {
        let text = "root:x:0:\nberth-read:x:990:a,b\nbroken\nberth-rea:x:991:\nworse:x:many:\n";
        for (name, want) in [
            ("root", Some(0)),
            ("berth-read", Some(990)),
            ("berth-rea", Some(991)),
            ("berth", None),
            ("broken", None),
            ("worse", None),
            ("", None),
        ] {
            assert_eq!(number_of(text, name), want, "{name:?}");
        }
    }

    #[test]
    fn the_strongest_group_decides_and_root_needs_none() {
        let groups = Groups {
            read: Some(10),
            operate: Some(20),
            admin: Some(30),
        };
        for (uid, gid, list, role) in [
            (0, 0, &[][..], Role::Admin),
            (1000, 1000, &[][..], Role::None),
            (1000, 10, &[][..], Role::Read),
            (1000, 1000, &[5, 10][..], Role::Read),
            (1000, 10, &[20][..], Role::Operate),
            (1000, 1000, &[10, 20, 30][..], Role::Admin),
        ] {
            assert_eq!(groups.role(uid, gid, list), role, "{uid} {gid} {list:?}");
        }
        assert_eq!(
            Groups::default().role(1000, 0, &[0]),
            Role::None,
            "no group of that name: nobody"
        );
        assert!(!Groups::default().any() && Role::Admin > Role::Operate && Role::Operate > Role::Read);
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        let names = |read: &str| GroupNames {
            read: read.into(),
            operate: "no-such-group-here".into(),
            admin: "0".into(),
        };
        let groups = Groups::find(&names("root")).unwrap();
        assert_eq!(
            (groups.read, groups.operate, groups.admin),
            (Some(0), None, Some(0))
        );
    }
}
