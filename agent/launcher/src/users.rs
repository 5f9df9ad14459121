//! The `User` of an image configuration → numbers, with the image's own /etc/passwd and /etc/group.
//!
//! Invariants: the host's user database is never asked; a name the image does not have is refused, never 0; the
//! files are looked for the way overlayfs shows them (topmost layer first, a 0/0 character device hides, no
//! links are followed).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Most bytes read of either file.
const MOST: u64 = 1 << 20;

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder, where the image names one.
    pub home: Option<String>,
}

/// The user `text` (`USER`, `USER:GROUP`, names or numbers; empty: root) of an image with these layers,
/// topmost first.
///
/// # Errors
/// In words: what is not there, and what could not be read.
pub fn of_image(text: &str, layers: &[PathBuf]) -> Result<User, String> {
    let read = |path: &str| match find(layers, path) {
        Ok(text) => Ok(text.unwrap_or_default()),
        Err(e) => Err(format!("/{path} of the image: {e}")),
    };
    resolve(text, &read("etc/passwd")?, &read("etc/group")?)
}

/// The same from the text of both files. Pure.
///
/// # Errors
/// In words.
pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, named_group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|fields| {
            fields.len() >= 6
                && (fields[0] == name || (number(name).is_some() && number(fields[2]) == number(name)))
        });
    let field = |n: usize| entry.as_ref().map(|fields| fields[n]);
    let uid = number(name)
        .or_else(|| field(2).and_then(number))
        .ok_or_else(|| format!("user {name:?} is not in /etc/passwd of the image"))?;
    let mut groups = Vec::new();
    let gid = match named_group {
        Some(named) => number(named)
            .or_else(|| group_of(group, named))
            .ok_or_else(|| format!("group {named:?} is not in /etc/group of the image"))?,
        None => {
            let login = field(0).unwrap_or(name);
            groups = member_of(group, login);
            field(3).and_then(number).unwrap_or(0)
        }
    };
    groups.retain(|g| *g != gid);
    let home = field(5).filter(|home| home.starts_with('/')).map(str::to_owned);
    Ok(User {
        uid,
        gid,
        groups,
        home,
    })
}

/// A plain decimal id; the highest number means "no id" to the kernel.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| plain && *n != u32::MAX)
}

fn group_of(group: &str, name: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1).and_then(number))
            .flatten()
    })
}

fn member_of(group: &str, login: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.len() == 4 && fields[3].split(',').any(|m| m == login);
            member.then(|| number(fields[2])).flatten()
        })
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn find(layers: &[PathBuf], path: &str) -> io::Result<Option<String>> {
    let (folder, name) = path.split_once('/').unwrap_or((".", path));
    for layer in layers {
        let Some(dir) = open(layer, folder, OFlag::O_DIRECTORY)? else {
            continue;
        };
        match open_at(&dir, name, OFlag::O_NONBLOCK)? {
            Some(file) => {
                let meta = file.metadata()?;
                if meta.file_type().is_char_device() && meta.rdev() == 0 {
                    return Ok(None);
                }
                if !meta.is_file() || meta.len() > MOST {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "not a file of at most 1 MiB",
                    ));
                }
                let mut text = Vec::new();
                file.take(MOST).read_to_end(&mut text)?;
                return Ok(Some(String::from_utf8_lossy(&text).into_owned()));
            }
            None if opaque(&dir) => return Ok(None),
            None => {}
        }
    }
    Ok(None)
}

/// overlayfs: nothing of the layers below shows in this folder.
fn opaque(dir: &File) -> bool {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| matches!(xattr::get_deref(&path, name), Ok(Some(value)) if value == b"y"))
}

fn open(layer: &Path, path: &str, flags: OFlag) -> io::Result<Option<File>> {
    open_at(&File::open(layer)?, path, flags)
}

fn open_at(dir: &File, path: &str, flags: OFlag) -> io::Result<Option<File>> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | flags)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
        );
    match openat2(dir, path, how) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(nix::Error::ENOENT) => Ok(None),
        // A whiteout: opening the device 0/0 finds no driver.
        Err(nix::Error::ENXIO | nix::Error::ENODEV) => whiteout(dir, path),
        Err(e) => Err(e.into()),
    }
}

fn whiteout(dir: &File, path: &str) -> io::Result<Option<File>> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(Some(openat2(dir, path, how)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:w:/var/www:/bin/false\nbad line\nodd:x:nan:7:o:/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\ndialout:x:20:www,other\nvideo:x:44:other,www\n";

    #[test]
    fn users() {
        let user = |uid, gid, groups: &[u32]| Ok((uid, gid, groups.to_vec()));
        let cases = [
            ("", user(0, 0, &[])),
            ("0", user(0, 0, &[])),
            ("root", user(0, 0, &[])),
            ("www", user(33, 33, &[20, 44])),
            ("33", user(33, 33, &[20, 44])),
            ("www:dialout", user(33, 20, &[])),
            ("www:7", user(33, 7, &[])),
            ("1000", user(1000, 0, &[])),
            ("1000:1001", user(1000, 1001, &[])),
            (
                "nobody",
                Err("user \"nobody\" is not in /etc/passwd of the image"),
            ),
            ("odd", Err("user \"odd\" is not in /etc/passwd of the image")),
            (
                "www:audio",
                Err("group \"audio\" is not in /etc/group of the image"),
            ),
            (
                "4294967295",
                Err("user \"4294967295\" is not in /etc/passwd of the image"),
            ),
            ("-1", Err("user \"-1\" is not in /etc/passwd of the image")),
        ];
        for (text, expected) in cases {
            let found = resolve(text, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups));
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn the_topmost_file_counts_and_links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let path = temp.path().join(name);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            path
        };
        let (top, low) = (layer("top"), layer("low"));
        std::fs::write(low.join("etc/passwd"), "app:x:5:5::/:\n").unwrap();
        let layers = [top.clone(), low];
        assert_eq!(of_image("app", &layers).unwrap().uid, 5);
        std::fs::write(top.join("etc/passwd"), "app:x:6:6::/:\n").unwrap();
        assert_eq!(of_image("app", &layers).unwrap().uid, 6);
        std::fs::remove_file(top.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", top.join("etc/passwd")).unwrap();
        assert!(of_image("app", &layers).is_err());
    }
}
