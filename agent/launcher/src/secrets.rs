//! Secrets: files of the node's owner, put into a container's /run/secrets and nowhere else.
//!
//! A request names a secret and where it lies; its content is read here, right before the container is made, and goes
//! into a tmpfs of the container's own: read-only, nosuid, nodev, noexec, noswap where the kernel has it (6.4). The
//! tmpfs is attached at RUN/secrets/ID for the moment the container is made; then only the container has it.
//!
//! Invariants: a source lies in ETC/secrets, in a folder of the policy's `secrets`, or is a systemd credential of the launcher's; it is a regular
//! file of root's that nobody else can read, in folders that nobody else can write, reached through no symbolic link, 1 MiB at most. No
//! content is in a request, a state file, a log, an environment or an error; the copy here is overwritten when it
//! has been written. A secret that changes is seen by the next launch.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::paths::{self, Paths};
use crate::policy::Policy;
use crate::wire::{BindMount, LaunchRequest, Refusal, SecretGrant};

/// Where they are inside.
pub(crate) const INSIDE: &str = "/run/secrets";
/// Most bytes of one.
const MOST: u64 = 1 << 20;
/// Most of them.
const MANY: usize = 64;

fn no(message: String, hint: Option<String>) -> Refusal {
    Refusal {
        stage: "secrets".into(),
        message,
        hint,
    }
}

/// Is what is asked for well formed, and may it be asked for? Nothing is opened.
///
/// # Errors
/// The first secret that is not.
pub(crate) fn check(request: &LaunchRequest, policy: &Policy, paths: &Paths) -> Result<(), Refusal> {
    let secrets = &request.secrets;
    if secrets.is_empty() {
        return Ok(());
    }
    let over =
        |m: &&BindMount| m.destination.starts_with(INSIDE) || Path::new(INSIDE).starts_with(&m.destination);
    if let Some(mount) = request.mounts.iter().find(over) {
        return Err(no(
            format!("a mount at {} lies over {INSIDE}", mount.destination.display()),
            None,
        ));
    }
    if secrets.len() > MANY {
        return Err(no(format!("{} secrets: {MANY} at most", secrets.len()), None));
    }
    for (n, secret) in secrets.iter().enumerate() {
        let name = &secret.name;
        let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(right) {
            return Err(no(
                format!("name {name:?}: 1 to 64 letters, digits, '.', '_' and '-', no '.' first"),
                None,
            ));
        }
        if secrets[..n].iter().any(|other| other.name == *name) {
            return Err(no(format!("{name} is given twice"), None));
        }
        if secret.mode > 0o777 {
            return Err(no(format!("mode {:o} of {name}: 0 to 777", secret.mode), None));
        }
        source(secret, policy, paths)?;
    }
    Ok(())
}

/// The file a secret is read from.
fn source(secret: &SecretGrant, policy: &Policy, paths: &Paths) -> Result<PathBuf, Refusal> {
    match (&secret.file, &secret.credential) {
        (Some(file), None) => {
            let plain = file
                .components()
                .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
            let own = paths.config.join("secrets");
            let below = |folder: &PathBuf| file.starts_with(folder) && file != folder;
            if plain && file.is_absolute() && (below(&own) || policy.secrets.iter().any(below)) {
                return Ok(file.clone());
            }
            let hint = format!(
                "put it into {}, or name its folder in `secrets` of the launcher's policy",
                own.display()
            );
            Err(no(
                format!("{}: {} may not be asked for", secret.name, file.display()),
                Some(hint),
            ))
        }
        (None, Some(credential)) => {
            let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            if credential.is_empty() || credential.starts_with('.') || !credential.bytes().all(right) {
                return Err(no(
                    format!("{}: {credential:?} is no credential's name", secret.name),
                    None,
                ));
            }
            match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(folder) => Ok(Path::new(&folder).join(credential)),
                None => {
                    let hint =
                        "LoadCredential= in berth-launcher.service gives the launcher credentials".to_owned();
                    Err(no(
                        format!("{}: this launcher has no credentials", secret.name),
                        Some(hint),
                    ))
                }
            }
        }
        _ => Err(no(
            format!("{}: either a file or a credential", secret.name),
            None,
        )),
    }
}

/// Nobody but root may put another file in its place.
fn of_root(name: &str, path: &Path) -> Result<(), Refusal> {
    for folder in path.ancestors().skip(1) {
        let meta = fs::symlink_metadata(folder)
            .map_err(|e| no(format!("{name}: {}: {e}", folder.display()), None))?;
        let open = meta.mode() & 0o022 != 0 && meta.mode() & libc::S_ISVTX == 0;
        if meta.uid() != 0 || open {
            return Err(no(
                format!(
                    "{name}: folder {} can be written by others than root (owner {}, mode {:o})",
                    folder.display(),
                    meta.uid(),
                    meta.mode() & 0o7777
                ),
                Some(format!("chown root {0}; chmod go-w {0}", folder.display())),
            ));
        }
    }
    Ok(())
}

/// The content, after the file it is in has been looked at.
fn content(name: &str, path: &Path) -> Result<Vec<u8>, Refusal> {
    let fail = |e: io::Error| no(format!("{name}: {}: {e}", path.display()), None);
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = openat2(AT_FDCWD, path, how).map_err(|e| match e {
        Errno::ELOOP => no(
            format!("{name}: {} is reached through a symbolic link", path.display()),
            Some("name the file itself".into()),
        ),
        e => fail(e.into()),
    })?;
    of_root(name, path)?;
    let opened = File::from(opened);
    let meta = opened.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(no(format!("{name}: {} is no regular file", path.display()), None));
    }
    if meta.uid() != 0 || meta.mode() & 0o077 != 0 {
        return Err(no(
            format!(
                "{name}: {} can be read by others than root (owner {}, mode {:o})",
                path.display(),
                meta.uid(),
                meta.mode() & 0o7777
            ),
            Some(format!("chown root {0}; chmod go= {0}", path.display())),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(MOST)).unwrap_or(0) + 1);
    let read = opened.take(MOST + 1).read_to_end(&mut bytes).map_err(fail);
    if bytes.len() as u64 > MOST || read.is_err() {
        wipe(&mut bytes);
        read?;
        return Err(no(format!("{name}: more than {MOST} bytes"), None));
    }
    Ok(bytes)
}

/// Overwrites a copy; the compiler may not leave that out.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// A container's id on the host.
fn outside(id: u32, maps: Option<&Vec<LinuxIdMapping>>) -> Option<u32> {
    match maps {
        None => Some(id),
        Some(maps) => maps.iter().find_map(|map| {
            let at = id.checked_sub(map.container_id())?;
            (at < map.size()).then(|| map.host_id() + at)
        }),
    }
}

/// What the monitor needs to know of the container beside the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    uids: Option<Vec<LinuxIdMapping>>,
    gids: Option<Vec<LinuxIdMapping>>,
    label: Option<String>,
}

impl Place {
    /// Of a composed and labelled document.
    pub(crate) fn of(spec: &Spec) -> Place {
        let linux = spec.linux().as_ref();
        let some = |maps: Option<Vec<LinuxIdMapping>>| maps.filter(|maps| !maps.is_empty());
        Place {
            uids: some(linux.and_then(|l| l.uid_mappings().clone())),
            gids: some(linux.and_then(|l| l.gid_mappings().clone())),
            label: linux.and_then(|l| l.mount_label().clone()),
        }
    }
}

/// The place of one container's secrets: an empty folder from the moment a request is judged until its container is
/// made. Without secrets there is none, and nothing here does anything.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    folders: Option<(PathBuf, PathBuf)>,
    /// Whose they become.
    pub(crate) place: Place,
}

impl Ready {
    /// Makes the folder, where there are secrets.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(secrets: &[SecretGrant], id: &str, paths: &Paths) -> Result<Ready, Refusal> {
        if secrets.is_empty() {
            return Ok(Ready::default());
        }
        let make = || -> io::Result<(PathBuf, PathBuf)> {
            let (folder, layer) = (paths.secrets(id), paths.state.join("places"));
            paths::make_dir(&folder, 0o700)?;
            let place = layer.join(INSIDE.trim_start_matches('/'));
            if !place.exists() {
                // Read by every container: 0755, whatever this process's mask says.
                for folder in [&layer, &layer.join("run"), &place] {
                    paths::make_dir(folder, 0o755)?;
                    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
                }
            }
            Ok((fs::canonicalize(folder)?, fs::canonicalize(layer)?))
        };
        Ok(Ready {
            folders: Some(make().map_err(|e| no(e.to_string(), None))?),
            place: Place::default(),
        })
    }

    /// What is mounted into the container, and the layer that has a place for it.
    pub(crate) fn folders(&self) -> Option<&(PathBuf, PathBuf)> {
        self.folders.as_ref()
    }

    /// Attaches the tmpfs and fills it; false where there are no secrets.
    ///
    /// # Errors
    /// A source that cannot be had, or the kernel's; nothing is attached then.
    pub(crate) fn attach(
        &self,
        secrets: &[SecretGrant],
        policy: &Policy,
        paths: &Paths,
    ) -> Result<bool, Refusal> {
        let Some((target, _)) = &self.folders else {
            return Ok(false);
        };
        let done = fill(secrets, target, &self.place, policy, paths);
        if done.is_err() {
            detach(target);
        }
        done.map(|()| true)
    }

    /// Takes it off the host; what the container has stays.
    pub(crate) fn detach(&self) {
        if let Some((folder, _)) = &self.folders {
            detach(folder);
        }
    }
}

fn fill(
    secrets: &[SecretGrant],
    target: &Path,
    place: &Place,
    policy: &Policy,
    paths: &Paths,
) -> Result<(), Refusal> {
    let fail = |what: &str, e: io::Error| no(format!("{what} {}: {e}", target.display()), None);
    let label = place
        .label
        .as_ref()
        .map_or_else(String::new, |label| format!(",context=\"{label}\""));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = |noswap: &str| {
        format!(
            "mode=0755,size={}{noswap}{label}",
            (secrets.len() as u64 + 1) * (MOST + 4096)
        )
    };
    let attached = [",noswap", ""].into_iter().find_map(|noswap| {
        match mount(
            Some("secrets"),
            target,
            Some("tmpfs"),
            flags,
            Some(options(noswap).as_str()),
        ) {
            // A kernel before 6.4 does not know the word.
            Err(Errno::EINVAL) if !noswap.is_empty() => None,
            done => Some(done),
        }
    });
    attached
        .unwrap_or(Err(Errno::EINVAL))
        .map_err(|e| fail("mounting", e.into()))?;
    mount(
        None::<&str>,
        target,
        None::<&str>,
        MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|e| fail("making private", e.into()))?;
    for secret in secrets {
        let path = source(secret, policy, paths)?;
        let mut bytes = content(&secret.name, &path)?;
        let written = put(secret, &bytes, target, place);
        wipe(&mut bytes);
        written?;
    }
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(
        None::<&str>,
        target,
        None::<&str>,
        read_only,
        Some(options("").as_str()),
    )
    .map_err(|e| fail("making read-only", e.into()))
}

fn put(secret: &SecretGrant, bytes: &[u8], target: &Path, place: &Place) -> Result<(), Refusal> {
    let name = &secret.name;
    let (uid, gid) = (
        outside(secret.uid, place.uids.as_ref()),
        outside(secret.gid, place.gids.as_ref()),
    );
    let (Some(uid), Some(gid)) = (uid, gid) else {
        return Err(no(
            format!(
                "{name}: {}:{} is nobody in this container",
                secret.uid, secret.gid
            ),
            None,
        ));
    };
    let path = target.join(name);
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(bytes)?;
        fchown(&file, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(secret.mode))
    };
    write().map_err(|e| no(format!("{name}: {e}"), None))
}

/// Takes it off the host; what the container has stays.
pub(crate) fn detach(target: &Path) {
    // Nothing attached, or no such folder: then there is nothing to take away.
    while umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    if let Err(e) = fs::remove_dir(target)
        && e.kind() != io::ErrorKind::NotFound
    {
        eprintln!("berth launcher: {}: {e}", target.display());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn grant(file: &Path) -> SecretGrant {
        SecretGrant {
            name: "token".into(),
            file: Some(file.to_owned()),
            credential: None,
            mode: 0o400,
            uid: 0,
            gid: 0,
        }
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_what_is_roots_alone_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(temp.path()).unwrap().join("secrets");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("token");
        fs::write(&file, "word").unwrap();
        let read = |path: &Path| content("token", path).map_err(|e| e.message);
        for (bits, good) in [
            (0o600, true),
            (0o400, true),
            (0o700, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
            (0o602, false),
        ] {
            mode(&file, bits);
            assert_eq!(read(&file).is_ok(), good, "{bits:o}");
        }
        mode(&file, 0o600);
        assert_eq!(read(&file).unwrap(), b"word");
        let (link, around) = (folder.join("link"), folder.parent().unwrap().join("around"));
        symlink(&file, &link).unwrap();
        symlink(&folder, &around).unwrap();
        for path in [link, around.join("token")] {
            let message = read(&path).unwrap_err();
            assert!(message.contains("symbolic link"), "{message}");
        }
        for bits in [0o720, 0o702, 0o777] {
            mode(&folder, bits);
            let message = read(&file).unwrap_err();
            assert!(
                message.contains("folder") && message.contains("others than root"),
                "{message}"
            );
        }
        // As /tmp: others can add files there, and cannot put one in the place of root's.
        mode(&folder, 0o1777);
        assert!(read(&file).is_ok());
        assert!(read(&folder).unwrap_err().contains("no regular file"));
        fs::write(&file, vec![1; usize::try_from(MOST).unwrap()]).unwrap();
        assert!(read(&file).is_ok());
        fs::write(&file, vec![1; usize::try_from(MOST).unwrap() + 1]).unwrap();
        assert!(read(&file).unwrap_err().contains("more than"));
        if nix::unistd::geteuid().is_root() {
            fs::write(&file, "word").unwrap();
            std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
            assert!(read(&file).unwrap_err().contains("owner 65534"));
        }
    }

    #[test]
    fn what_may_be_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let paths = Paths {
            run: temp.path().join("run"),
            state: temp.path().join("state"),
            config: "/etc/berth".into(),
        };
        let mut policy = Policy::default();
        let base = crate::check::tests::request();
        let asked = |secrets: Vec<SecretGrant>, policy: &Policy| {
            let request = LaunchRequest {
                secrets,
                ..base.clone()
            };
            check(&request, policy, &paths).map_err(|e| e.message)
        };
        let at = |path: &str| vec![grant(Path::new(path))];
        assert_eq!(asked(Vec::new(), &policy), Ok(()));
        assert_eq!(asked(at("/etc/berth/secrets/token"), &policy), Ok(()));
        for path in [
            "/etc/shadow",
            "/etc/berth/secrets",
            "/etc/berth/secrets/../../shadow",
            "/etc/berth/secrets-not/a",
            "etc/berth/secrets/a",
            "/srv/keys/a",
        ] {
            let message = asked(at(path), &policy).unwrap_err();
            assert!(message.contains("may not be asked for"), "{message}");
        }
        policy.secrets = vec!["/srv/keys".into()];
        assert_eq!(asked(at("/srv/keys/a"), &policy), Ok(()));
        let one = grant(Path::new("/etc/berth/secrets/token"));
        type Change = fn(&mut SecretGrant);
        let wrong: [(&str, Change); 6] = [
            ("name", |s| s.name = "../up".into()),
            ("name", |s| s.name = ".bashrc".into()),
            ("name", |s| s.name = String::new()),
            ("mode", |s| s.mode = 0o4400),
            ("either", |s| s.file = None),
            ("either", |s| s.credential = Some("token".into())),
        ];
        for (word, change) in wrong {
            let mut secret = one.clone();
            change(&mut secret);
            let message = asked(vec![secret], &policy).unwrap_err();
            assert!(message.contains(word), "{word}: {message}");
        }
        assert!(
            asked(vec![one.clone(), one.clone()], &policy)
                .unwrap_err()
                .contains("twice")
        );
        let many = (0..=MANY).map(|n| SecretGrant {
            name: format!("s{n}"),
            ..one.clone()
        });
        assert!(asked(many.collect(), &policy).unwrap_err().contains("at most"));
        let mut request = base.clone();
        request.secrets = vec![one];
        for (destination, good) in [
            ("/run", false),
            ("/run/secrets/x", false),
            ("/run/secretsx", true),
        ] {
            request.mounts = vec![BindMount {
                source: "/srv".into(),
                destination: destination.into(),
                read_only: true,
                relabel: None,
            }];
            assert_eq!(check(&request, &policy, &paths).is_ok(), good, "{destination}");
        }
    }

    #[test]
    fn an_owner_inside_is_one_outside() {
        let map = |inside: u32, outside: u32, size: u32| {
            let map = oci_spec::runtime::LinuxIdMappingBuilder::default();
            map.container_id(inside)
                .host_id(outside)
                .size(size)
                .build()
                .unwrap()
        };
        let maps = vec![map(0, 65536, 10), map(100, 200_000, 1)];
        for (inside, expected) in [
            (0, Some(65536)),
            (9, Some(65545)),
            (10, None),
            (100, Some(200_000)),
            (101, None),
        ] {
            assert_eq!(outside(inside, Some(&maps)), expected, "{inside}");
        }
        assert_eq!(outside(7, None), Some(7));
    }
}
