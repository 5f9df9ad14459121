//! Network interfaces by rtnetlink: moved into a container's namespace (`IFLA_NET_NS_FD`), renamed in the same
//! request, brought up inside.
//!
//! Invariants: requests are synchronous and acknowledged; to speak inside a namespace the calling thread enters it
//! for as long as it takes to open a socket, and is back before anything else happens.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use thiserror::Error;

use crate::plan::Interface;

/// Why an interface could not be handled.
#[derive(Debug, Error)]
pub enum NetError {
    /// There is none of that name.
    #[error("network interface `{name}` does not exist")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Another interface has the name now.
    #[error("network interface `{name}` has index {actual}, not {expected}")]
    Index {
        /// The name.
        name: String,
        /// The index that was asked for.
        expected: u32,
        /// The index it has.
        actual: u32,
    },
    /// The kernel refused.
    #[error("cannot {what} network interface `{name}`: {source}")]
    Refused {
        /// `move`, `bring up`, ….
        what: &'static str,
        /// The name.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A namespace or a socket.
    #[error("cannot {what}: {source}")]
    Socket {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl NetError {
    /// The setting to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { name } => Some(format!(
                "`ip link` lists what is there; is {name} in another namespace?"
            )),
            Self::Refused { source, name, .. } => match source.raw_os_error()? {
                libc::EEXIST => Some("choose another name inside with `rename`".into()),
                libc::EINVAL => Some(format!(
                    "{name} may be bound to its namespace (netns-local), as bridges are"
                )),
                libc::EPERM => Some("run with CAP_NET_ADMIN".into()),
                _ => None,
            },
            _ => None,
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Socket {
        what: what.into(),
        source,
    }
}

fn open_namespace(path: &str) -> Result<OwnedFd, NetError> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(format!("open {path}"))(e.into()))
}

fn socket() -> Result<Socket, NetError> {
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open a netlink socket"))?;
    socket.bind_auto().map_err(failed("bind a netlink socket"))?;
    Ok(socket)
}

/// A netlink socket in another network namespace.
fn socket_inside(namespace: BorrowedFd<'_>) -> Result<Socket, NetError> {
    let own = open_namespace("/proc/self/ns/net")?;
    let enter = |fd: BorrowedFd<'_>| {
        setns(fd, CloneFlags::CLONE_NEWNET).map_err(|e| failed("enter a network namespace")(e.into()))
    };
    enter(namespace)?;
    let opened = socket();
    enter(own.as_fd())?;
    opened
}

/// Send one request and collect the answers up to the acknowledgement.
fn request(
    socket: &Socket,
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (data, _) = match socket.recv_from_full() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let mut rest = &data[..];
        while !rest.is_empty() {
            let invalid = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| invalid(e.to_string()))?;
            let length = (answer.header.length as usize).next_multiple_of(4);
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => {
                    return match error.code {
                        None => Ok(answers),
                        Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
                    };
                }
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                _ => {}
            }
            if length == 0 || length >= rest.len() {
                break;
            }
            rest = &rest[length..];
        }
    }
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn find(socket: &Socket, name: &str) -> Result<u32, NetError> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answers = request(socket, RouteNetlinkMessage::GetLink(link), NLM_F_ACK).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::ENODEV) => NetError::NotFound {
                name: name.to_owned(),
            },
            _ => NetError::Refused {
                what: "find",
                name: name.to_owned(),
                source,
            },
        }
    })?;
    answers
        .iter()
        .find_map(|a| match a {
            RouteNetlinkMessage::NewLink(link) if name_of(link) == Some(name) => Some(link.header.index),
            _ => None,
        })
        .ok_or_else(|| NetError::NotFound {
            name: name.to_owned(),
        })
}

/// Move an interface into the network namespace of a process.
///
/// # Errors
/// [`NetError`].
pub(crate) fn move_in(interface: &Interface, pid: Pid) -> Result<(), NetError> {
    move_into(interface, open_namespace(&format!("/proc/{pid}/ns/net"))?.as_fd())
}

/// Move an interface into a network namespace.
///
/// # Errors
/// [`NetError`].
pub(crate) fn move_into(interface: &Interface, namespace: BorrowedFd<'_>) -> Result<(), NetError> {
    let name = &interface.name;
    let outside = socket()?;
    let index = find(&outside, name)?;
    if let Some(expected) = interface.index
        && expected != index
    {
        return Err(NetError::Index {
            name: name.clone(),
            expected,
            actual: index,
        });
    }
    let inside_name = interface
        .rename
        .as_ref()
        .filter(|n| !n.is_empty())
        .unwrap_or(name);
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes
        .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    link.attributes.push(LinkAttribute::IfName(inside_name.clone()));
    let refused = |what| {
        move |source| NetError::Refused {
            what,
            name: interface.name.clone(),
            source,
        }
    };
    request(&outside, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map_err(refused("move"))?;
    let inside = socket_inside(namespace)?;
    let index = find(&inside, inside_name)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(&inside, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map_err(refused("bring up"))?;
    Ok(())
}

/// Name and index of every interface in the network namespace of a process.
///
/// # Errors
/// [`NetError`].
pub(crate) fn list_inside(pid: Pid) -> Result<Vec<(String, u32)>, NetError> {
    let inside = socket_inside(open_namespace(&format!("/proc/{pid}/ns/net"))?.as_fd())?;
    let dump = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = request(&inside, dump, NLM_F_DUMP).map_err(failed("list network interfaces"))?;
    Ok(answers
        .iter()
        .filter_map(|a| match a {
            RouteNetlinkMessage::NewLink(link) => Some((name_of(link)?.to_owned(), link.header.index)),
            _ => None,
        })
        .collect())
}
