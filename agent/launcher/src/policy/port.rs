//! Ports of the node that lead into a container: `8080`, `8000-8099/tcp`, `192.0.2.1:53/udp`, `[2001:db8::1]:443`.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wire::PortRequest;

/// Ports, of one protocol or any, of one of the node's addresses or any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortWord {
    address: Option<IpAddr>,
    ports: RangeInclusive<u16>,
    protocol: Option<String>,
}

impl PortWord {
    /// Any protocol, any address.
    pub(super) fn range(ports: RangeInclusive<u16>) -> PortWord {
        PortWord {
            address: None,
            ports,
            protocol: None,
        }
    }

    /// Does it cover what is asked for? A request for every address is covered by no single one.
    pub(super) fn covers(&self, port: &PortRequest) -> bool {
        self.ports.contains(&port.host)
            && self.protocol.as_ref().is_none_or(|p| *p == port.protocol)
            && self.address.is_none_or(|a| port.address == Some(a))
    }
}

impl FromStr for PortWord {
    type Err = String;

    fn from_str(text: &str) -> Result<PortWord, String> {
        let wrong = || format!("{text:?}: ports such as `8080`, `8000-8099/tcp` or `192.0.2.1:53/udp`");
        let (place, protocol) = match text.split_once('/') {
            Some((place, protocol)) if ["tcp", "udp", "sctp"].contains(&protocol) => (place, Some(protocol)),
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        let (address, ports) = match place.rsplit_once(':') {
            None => (None, place),
            Some((address, ports)) => {
                let bare = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                    Some(six) if six.contains(':') => six,
                    Some(_) => return Err(wrong()),
                    None if address.contains(':') => return Err(wrong()),
                    None => address,
                };
                (Some(bare.parse().map_err(|_| wrong())?), ports)
            }
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |word: &str| word.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(wrong);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        Ok(PortWord {
            address,
            ports: first..=last,
            protocol: protocol.map(str::to_owned),
        })
    }
}

impl TryFrom<String> for PortWord {
    type Error = String;

    fn try_from(text: String) -> Result<PortWord, String> {
        text.parse()
    }
}

impl From<PortWord> for String {
    fn from(word: PortWord) -> String {
        word.to_string()
    }
}

impl fmt::Display for PortWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(six)) => write!(f, "[{six}]:")?,
            Some(four) => write!(f, "{four}:")?,
            None => {}
        }
        write!(f, "{}", self.ports.start())?;
        if self.ports.start() != self.ports.end() {
            write!(f, "-{}", self.ports.end())?;
        }
        match &self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_words() {
        for text in [
            "8080",
            "8000-8099/tcp",
            "192.0.2.1:53/udp",
            "[2001:db8::1]:443-444",
        ] {
            assert_eq!(text.parse::<PortWord>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "0",
            "70000",
            "9-8",
            "80/icmp",
            "x:80",
            "::1:80",
            "[::1]",
            "80-",
            "80/",
            "[192.0.2.1]:80",
        ] {
            assert!(text.parse::<PortWord>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_word_covers() {
        let ask = |host: u16, protocol: &str, address: Option<&str>| PortRequest {
            host,
            container: 80,
            protocol: protocol.into(),
            address: address.map(|a| a.parse().unwrap()),
        };
        for (word, host, protocol, address, covered) in [
            ("8000-8099/tcp", 8000, "tcp", None, true),
            ("8000-8099/tcp", 8099, "tcp", Some("192.0.2.1"), true),
            ("8000-8099/tcp", 8100, "tcp", None, false),
            ("8000-8099/tcp", 8000, "udp", None, false),
            ("192.0.2.1:53", 53, "udp", Some("192.0.2.1"), true),
            ("192.0.2.1:53", 53, "udp", Some("192.0.2.2"), false),
            ("192.0.2.1:53", 53, "udp", None, false),
        ] {
            let word = word.parse::<PortWord>().unwrap();
            assert_eq!(
                word.covers(&ask(host, protocol, address)),
                covered,
                "{word} {host}"
            );
        }
    }
}
