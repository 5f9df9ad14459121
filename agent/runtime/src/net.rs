//! Network interfaces by rtnetlink: moved into a container's namespace (`IFLA_NET_NS_FD`), renamed in the same
//! request, or a VLAN of one made there; MTU, addresses, brought up; given back; and what the kernel shows of them.
//!
//! Invariants: requests are synchronous and acknowledged; to speak inside a namespace the calling thread enters it
//! for as long as it takes to open a socket, and is back before anything else happens.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use thiserror::Error;

use crate::plan::Interface;
use crate::proof::InterfacePromise;

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
    /// Another one inside has the name.
    #[error("network interface `{name}` cannot be `{inside}` inside: the name is taken there")]
    Taken {
        /// The name outside.
        name: String,
        /// The name inside.
        inside: String,
    },
    /// The kernel made no VLAN.
    #[error("cannot make VLAN {id} of network interface `{name}`: {source}")]
    Vlan {
        /// The name of the interface below.
        name: String,
        /// 802.1Q id.
        id: u16,
        /// The kernel's answer.
        source: io::Error,
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
            Self::Taken { .. } => Some("choose another name inside: `interface.name` of the rule".into()),
            Self::Vlan { source, .. } => match source.raw_os_error()? {
                libc::EOPNOTSUPP => Some("load the kernel module 8021q".into()),
                libc::EEXIST => Some("another has this VLAN of the interface already".into()),
                _ => None,
            },
            Self::Refused { source, name, what } if *what == "give an address to" => {
                match source.raw_os_error()? {
                    libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => Some(format!(
                        "IPv6 may be off for {name} (net.ipv6.conf.default.disable_ipv6)"
                    )),
                    _ => None,
                }
            }
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

/// This thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

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
    let own = open_namespace(OWN)?;
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

fn find(socket: &Socket, name: &str) -> Result<LinkMessage, NetError> {
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
        .into_iter()
        .find_map(|a| match a {
            RouteNetlinkMessage::NewLink(link) if name_of(&link) == Some(name) => Some(link),
            _ => None,
        })
        .ok_or_else(|| NetError::NotFound {
            name: name.to_owned(),
        })
}

/// The network namespace of a process.
///
/// # Errors
/// [`NetError::Socket`].
pub(crate) fn namespace_of(pid: Pid) -> Result<OwnedFd, NetError> {
    open_namespace(&format!("/proc/{pid}/ns/net"))
}

/// Move an interface into a network namespace, or make a VLAN of it there; then its MTU, up, its addresses. What
/// cannot be done whole is undone.
///
/// # Errors
/// [`NetError`]; a name that is taken inside is found before anything is done.
pub(crate) fn move_into(
    interface: &Interface,
    namespace: BorrowedFd<'_>,
) -> Result<InterfacePromise, NetError> {
    let name = &interface.name;
    let outside = socket()?;
    let there = find(&outside, name)?;
    let index = there.header.index;
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
    let inside = socket_inside(namespace)?;
    match find(&inside, inside_name) {
        Err(NetError::NotFound { .. }) => {}
        Err(e) => return Err(e),
        Ok(_) => {
            return Err(NetError::Taken {
                name: name.clone(),
                inside: inside_name.clone(),
            });
        }
    }
    let refused = |what| {
        move |source| NetError::Refused {
            what,
            name: name.clone(),
            source,
        }
    };
    let mut link = LinkMessage::default();
    link.attributes
        .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    link.attributes.push(LinkAttribute::IfName(inside_name.clone()));
    match interface.vlan {
        None => {
            link.header.index = index;
            request(&outside, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map_err(refused("move"))?;
        }
        Some(id) => {
            // A VLAN is up no longer than what it lies on.
            set_up(&outside, index).map_err(refused("bring up"))?;
            link.attributes.push(LinkAttribute::Link(index));
            link.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            ]));
            let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            request(&outside, RouteNetlinkMessage::NewLink(link), flags).map_err(|source| {
                NetError::Vlan {
                    name: name.clone(),
                    id,
                    source,
                }
            })?;
        }
    }
    let promise = InterfacePromise {
        index: find(&inside, inside_name)?.header.index,
        name: inside_name.clone(),
        outside: name.clone(),
        mtu: interface.mtu,
        mtu_before: interface.mtu.and(mtu_of(&there)),
        vlan: interface.vlan,
        addresses: interface
            .addresses
            .iter()
            .map(|(a, length)| format!("{a}/{length}"))
            .collect(),
    };
    let configured =
        configure(&inside, promise.index, interface).map_err(|(what, source)| NetError::Refused {
            what,
            name: name.clone(),
            source,
        });
    match configured {
        Ok(()) => Ok(promise),
        Err(e) => {
            // The reason is told, not what follows from it.
            drop(give_back(namespace, &[promise]));
            Err(e)
        }
    }
}

fn set_up(socket: &Socket, index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(socket, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

fn set_mtu(socket: &Socket, index: u32, mtu: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::Mtu(mtu));
    request(socket, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

/// Down, as older kernels want it, and renamed.
fn rename(socket: &Socket, index: u32, name: &str) -> io::Result<()> {
    let mut down = LinkMessage::default();
    down.header.index = index;
    down.header.change_mask = LinkFlags::Up;
    request(socket, RouteNetlinkMessage::SetLink(down), NLM_F_ACK)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    request(socket, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

/// MTU, up, addresses, in this order: what is up has its MTU, and an IPv6 address needs an interface that is up.
fn configure(inside: &Socket, index: u32, interface: &Interface) -> Result<(), (&'static str, io::Error)> {
    if let Some(mtu) = interface.mtu {
        set_mtu(inside, index, mtu).map_err(|e| ("set the MTU of", e))?;
    }
    set_up(inside, index).map_err(|e| ("bring up", e))?;
    for (address, length) in &interface.addresses {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = *length;
        message.header.family = match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        // Of use from the first instruction on: nobody waits a second for an answer that a twin would give.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Local(*address),
            AddressAttribute::Address(*address),
        ];
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        request(inside, RouteNetlinkMessage::NewAddress(message), flags)
            .map_err(|e| ("give an address to", e))?;
    }
    Ok(())
}

/// Move interfaces out of a network namespace, into the caller's, under the names and with the MTU they had there; VLANs
/// are deleted. One that has gone is no error.
pub(crate) fn give_back(namespace: BorrowedFd<'_>, all: &[InterfacePromise]) -> Vec<NetError> {
    if all.is_empty() {
        return Vec::new();
    }
    let opened = open_namespace(OWN).and_then(|own| Ok((own, socket_inside(namespace)?, socket()?)));
    let (own, inside, outside) = match opened {
        Ok(opened) => opened,
        Err(e) => return vec![e],
    };
    let mut errors = Vec::new();
    for one in all {
        let mut link = LinkMessage::default();
        link.header.index = one.index;
        let done = if one.vlan.is_some() {
            request(&inside, RouteNetlinkMessage::DelLink(link), NLM_F_ACK).map(drop)
        } else {
            // The kernel tells of a move under the old name, and of the new one after that: whoever listens outside
            // would take it for another card. Where the name is taken inside, it must.
            if one.name != one.outside {
                drop(rename(&inside, one.index, &one.outside));
            }
            link.attributes.push(LinkAttribute::NetNsFd(own.as_raw_fd()));
            link.attributes.push(LinkAttribute::IfName(one.outside.clone()));
            request(&inside, RouteNetlinkMessage::SetLink(link), NLM_F_ACK).and_then(|_| {
                let Some(mtu) = one.mtu_before else { return Ok(()) };
                let index = find(&outside, &one.outside)
                    .map_err(io::Error::other)?
                    .header
                    .index;
                set_mtu(&outside, index, mtu)
            })
        };
        match done {
            Err(source) if source.raw_os_error() != Some(libc::ENODEV) => errors.push(NetError::Refused {
                what: "give back",
                name: one.outside.clone(),
                source,
            }),
            _ => {}
        }
    }
    errors
}

/// An interface as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: Option<u32>,
    pub(crate) vlan: Option<u16>,
    /// `ADDRESS/LENGTH`.
    pub(crate) addresses: Vec<String>,
}

impl State {
    /// Is it all that `promised` says?
    pub(crate) fn covers(&self, promised: &State) -> bool {
        self.name == promised.name
            && (self.up || !promised.up)
            && (promised.mtu.is_none() || self.mtu == promised.mtu)
            && self.vlan == promised.vlan
            && promised.addresses.iter().all(|a| self.addresses.contains(a))
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.up {
            f.write_str(" up")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(id) = self.vlan {
            write!(f, " vlan {id}")?;
        }
        self.addresses.iter().try_for_each(|a| write!(f, " {a}"))
    }
}

/// Every interface in the network namespace whose file is `path`.
///
/// # Errors
/// [`NetError`].
pub(crate) fn states(path: &Path) -> Result<Vec<State>, NetError> {
    let inside = socket_inside(open_namespace(&path.to_string_lossy())?.as_fd())?;
    let dump = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = request(&inside, dump, NLM_F_DUMP).map_err(failed("list network interfaces"))?;
    let dump = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses = request(&inside, dump, NLM_F_DUMP).map_err(failed("list addresses"))?;
    let states = links.iter().filter_map(|a| match a {
        RouteNetlinkMessage::NewLink(link) => Some(State {
            index: link.header.index,
            name: name_of(link)?.to_owned(),
            up: link.header.flags.contains(LinkFlags::Up),
            mtu: mtu_of(link),
            vlan: vlan_of(link),
            addresses: addresses
                .iter()
                .filter_map(|a| address_of(a, link.header.index))
                .collect(),
        }),
        _ => None,
    });
    Ok(states.collect())
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn vlan_of(link: &LinkMessage) -> Option<u16> {
    let infos = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(all)) => all.iter().find_map(|i| match i {
            InfoVlan::Id(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    })
}

/// `ADDRESS/LENGTH` where it is one of interface `index`.
fn address_of(answer: &RouteNetlinkMessage, index: u32) -> Option<String> {
    let RouteNetlinkMessage::NewAddress(address) = answer else {
        return None;
    };
    let find = |local: bool| {
        address.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(a) if local => Some(*a),
            AddressAttribute::Address(a) if !local => Some(*a),
            _ => None,
        })
    };
    // IPv6 has no IFA_LOCAL but on links between two points.
    let own = (address.header.index == index).then(|| find(true).or_else(|| find(false)))??;
    Some(format!("{own}/{}", address.header.prefix_len))
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
