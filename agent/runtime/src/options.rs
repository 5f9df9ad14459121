//! Mount options in the words of the OCI specification and mount(8) → attributes for the mount system calls.
//!
//! Pure. Invariants: an option that would be without effect is refused by name; what is no flag word goes to the
//! file system as a parameter, and the kernel refuses parameters it does not know.

use crate::sys::mount::attr;

/// The options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `Some(recursive)` for `bind` and `rbind`.
    pub(crate) bind: Option<bool>,
    /// `MOUNT_ATTR_*` bits to set and to clear on this mount.
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// The same for this mount and everything below it (`rro`, `rnosuid`, …).
    pub(crate) set_below: u64,
    pub(crate) clear_below: u64,
    /// `MS_SHARED`, … and whether recursively, in order.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// A tmpfs begins with what the image has at its place.
    pub(crate) copy_up: bool,
    /// `Some(recursive)` for `idmap` and `ridmap`.
    pub(crate) idmap: Option<bool>,
    /// Parameters of the file system.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// Why an option is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Known and not supported.
    #[error("mount option \"{option}\" is not supported: {why}")]
    Unsupported {
        /// The option.
        option: String,
        /// The reason.
        why: &'static str,
    },
    /// A file system parameter on a bind mount.
    #[error("mount option \"{option}\" has no effect on a bind mount")]
    NotForBind {
        /// The option.
        option: String,
    },
}

const MS_PRIVATE: u64 = libc::MS_PRIVATE;
const MS_SHARED: u64 = libc::MS_SHARED;
const MS_SLAVE: u64 = libc::MS_SLAVE;
const MS_UNBINDABLE: u64 = libc::MS_UNBINDABLE;

/// Flag words: name, bits, true to set and false to clear.
const FLAGS: &[(&str, u64, bool)] = &[
    ("ro", attr::RDONLY, true),
    ("rw", attr::RDONLY, false),
    ("nosuid", attr::NOSUID, true),
    ("suid", attr::NOSUID, false),
    ("nodev", attr::NODEV, true),
    ("dev", attr::NODEV, false),
    ("noexec", attr::NOEXEC, true),
    ("exec", attr::NOEXEC, false),
    ("nodiratime", attr::NODIRATIME, true),
    ("diratime", attr::NODIRATIME, false),
    ("nosymfollow", attr::NOSYMFOLLOW, true),
    ("symfollow", attr::NOSYMFOLLOW, false),
];

/// Access-time words: they share one field of three bits.
const ATIMES: &[(&str, u64)] = &[
    ("noatime", attr::NOATIME),
    ("atime", attr::RELATIME),
    ("relatime", attr::RELATIME),
    // mount(2) without MS_RELATIME: relatime is what the kernel does by itself since Linux 2.6.30.
    ("norelatime", attr::RELATIME),
    ("strictatime", attr::STRICTATIME),
    ("nostrictatime", attr::RELATIME),
];

const PROPAGATIONS: &[(&str, u64)] = &[
    ("private", MS_PRIVATE),
    ("shared", MS_SHARED),
    ("slave", MS_SLAVE),
    ("unbindable", MS_UNBINDABLE),
];

/// Words every OCI runtime of this version knows; for `features`.
pub(crate) fn words() -> Vec<String> {
    let plain = FLAGS.iter().map(|f| f.0).chain(ATIMES.iter().map(|a| a.0));
    let mut all: Vec<String> = plain.flat_map(|w| [w.to_owned(), format!("r{w}")]).collect();
    all.extend(
        PROPAGATIONS
            .iter()
            .flat_map(|(w, _)| [(*w).to_owned(), format!("r{w}")]),
    );
    all.extend(
        [
            "async",
            "bind",
            "defaults",
            "dirsync",
            "idmap",
            "loud",
            "rbind",
            "ridmap",
            "silent",
            "sync",
            "tmpcopyup",
        ]
        .map(str::to_owned),
    );
    all.sort();
    all
}

/// Recursive or plain form of a word in a table, by its name.
fn lookup<T: Copy>(table: &[(&str, T)], word: &str) -> Option<(T, bool)> {
    let find = |w: &str| table.iter().find(|(name, _)| *name == w).map(|(_, t)| *t);
    find(word)
        .map(|t| (t, false))
        .or_else(|| word.strip_prefix('r').and_then(find).map(|t| (t, true)))
}

/// The words that would be without effect on this mount, were they passed on: parameters of a file system on a bind
/// mount, `name=value` alone. A word without a value may be a misspelt flag, and stays refused.
pub(crate) fn idle(fs_type: &str, words: &[String]) -> Vec<String> {
    let bind = fs_type == "bind" || words.iter().any(|w| w == "bind" || w == "rbind");
    let idle = words.iter().filter(|w| bind && w.contains('='));
    idle.cloned().collect()
}

/// Parse the options of a mount of `fs_type` (`bind` counts as the option).
pub(crate) fn parse(fs_type: &str, words: &[String]) -> Result<Options, OptionError> {
    let mut o = Options::default();
    if words.iter().any(|w| w == "rbind") {
        o.bind = Some(true);
    } else if fs_type == "bind" || words.iter().any(|w| w == "bind") {
        o.bind = Some(false);
    }
    for word in words {
        let flag = FLAGS
            .iter()
            .find(|f| f.0 == word)
            .map(|f| (f, false))
            .or_else(|| {
                let plain = word.strip_prefix('r')?;
                FLAGS.iter().find(|f| f.0 == plain).map(|f| (f, true))
            });
        if let Some(((_, bits, on), below)) = flag {
            let (set, clear) = if below {
                (&mut o.set_below, &mut o.clear_below)
            } else {
                (&mut o.set, &mut o.clear)
            };
            if *on {
                *set |= bits;
                *clear &= !bits;
            } else {
                *clear |= bits;
                *set &= !bits;
            }
        } else if let Some((bits, below)) = lookup(ATIMES, word) {
            let (set, clear) = if below {
                (&mut o.set_below, &mut o.clear_below)
            } else {
                (&mut o.set, &mut o.clear)
            };
            *set = (*set & !attr::ATIME) | bits;
            *clear |= attr::ATIME;
        } else if let Some((bits, below)) = lookup(PROPAGATIONS, word) {
            o.propagation.push((bits, below));
        } else {
            other_word(&mut o, fs_type, word)?;
        }
    }
    Ok(o)
}

fn other_word(o: &mut Options, fs_type: &str, word: &str) -> Result<(), OptionError> {
    let unsupported = |why| {
        Err(OptionError::Unsupported {
            option: word.to_owned(),
            why,
        })
    };
    match word {
        // `silent` and `loud` ask mount(2) for fewer or more kernel messages; fsopen(2) has no such switch.
        "bind" | "rbind" | "defaults" | "async" | "silent" | "loud" => {}
        "tmpcopyup" if fs_type == "tmpfs" && o.bind.is_none() => o.copy_up = true,
        "tmpcopyup" => return unsupported("only a tmpfs is filled from the image"),
        "remount" => return unsupported("every mount is made once"),
        "idmap" => o.idmap = Some(o.idmap.unwrap_or(false)),
        "ridmap" => o.idmap = Some(true),
        "mand" | "nomand" | "iversion" | "noiversion" => return unsupported("the kernel has removed it"),
        "z" | "Z" => {
            return unsupported("files are labelled beforehand (berth_shared_file_t), never at a launch");
        }
        "" => return unsupported("it is empty"),
        _ if o.bind.is_some() => {
            return Err(OptionError::NotForBind {
                option: word.to_owned(),
            });
        }
        _ => {
            let (key, value) = word
                .split_once('=')
                .map_or((word, None), |(k, v)| (k, Some(v.to_owned())));
            o.data.push((key.to_owned(), value));
        }
    }
    Ok(())
}

/// `linux.rootfsPropagation` → flag and whether recursively.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    lookup(PROPAGATIONS, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fs: &str, words: &[&str]) -> Result<Options, OptionError> {
        parse(fs, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_atime_data_and_propagation() {
        let o = of(
            "tmpfs",
            &[
                "nosuid",
                "strictatime",
                "mode=755",
                "size=64k",
                "ro",
                "rw",
                "rslave",
            ],
        )
        .unwrap();
        assert_eq!(
            (o.set, o.clear),
            (attr::NOSUID | attr::STRICTATIME, attr::ATIME | attr::RDONLY)
        );
        assert_eq!(
            o.data,
            [
                ("mode".into(), Some("755".into())),
                ("size".into(), Some("64k".into()))
            ]
        );
        assert_eq!((o.propagation, o.bind), (vec![(MS_SLAVE, true)], None));
    }

    #[test]
    fn recursive_words_and_binds() {
        let o = of("none", &["rbind", "rro", "rnoatime", "private"]).unwrap();
        assert_eq!(
            (o.bind, o.set, o.set_below),
            (Some(true), 0, attr::RDONLY | attr::NOATIME)
        );
        assert_eq!(o.propagation, [(MS_PRIVATE, false)]);
        assert_eq!(of("bind", &[]).unwrap().bind, Some(false));
        // "relatime" begins with r and is not the recursive form of "elatime"
        assert_eq!(of("bind", &["relatime"]).unwrap().clear, attr::ATIME);
        assert_eq!(of("bind", &["rrelatime"]).unwrap().clear_below, attr::ATIME);
    }

    #[test]
    fn what_a_bind_mount_passes_over() {
        let words = ["bind", "mode=755", "size=1k", "ro", "nosuit"].map(str::to_owned);
        assert_eq!(idle("none", &words), ["mode=755", "size=1k"]);
        assert_eq!(idle("tmpfs", &words[1..]), [""; 0]);
        assert_eq!(idle("bind", &words[1..]).len(), 2);
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        for word in ["remount", "mand", "", "z", "Z"] {
            for words in [&[word][..], &["rbind", word]] {
                let refused = of("tmpfs", words);
                assert!(
                    matches!(refused, Err(OptionError::Unsupported { .. })),
                    "{words:?}"
                );
            }
        }
        assert_eq!(
            of("bind", &["size=1"]),
            Err(OptionError::NotForBind {
                option: "size=1".into()
            })
        );
        assert_eq!(
            of("none", &["size=1", "bind"]),
            Err(OptionError::NotForBind {
                option: "size=1".into()
            })
        );
    }
}
