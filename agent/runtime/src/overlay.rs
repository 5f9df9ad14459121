//! The root file system from an image's layers: overlayfs, or a read-only bind mount of the only layer.
//!
//! fsconfig(2) cuts a value at 256 bytes, so each layer is a parameter of its own (`lowerdir+`, Linux 6.7). An older kernel
//! refuses that word when it is set (6.5, 6.6) or when the file system is made (before); there mount(2) takes one
//! list of a page at most, in which the layers stand as `/proc/self/fd/N`: short, and with nothing to escape.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::MsFlags;

use crate::report::{Failure, Step};
use crate::rootfs::open_dir;
use crate::sys::mount::{self as sys, FsContext, attr};

const STEP: &str = "mount overlay";

/// Mounts the layers (topmost first) on the directory `at`; without `upper` (and its work directory) read-only. A single
/// layer without `upper` is a read-only bind mount: overlayfs wants two. Returns the mount's root.
pub(crate) fn mount(
    lower: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
    at: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let fd = if let ([only], None) = (lower, upper) {
        let tree = sys::clone_tree(AT_FDCWD, only, false).step(STEP, only)?;
        sys::set_attributes(tree.as_fd(), false, attr::RDONLY, 0, libc::MS_PRIVATE).step(STEP, only)?;
        tree
    } else {
        match by_parameters(lower, upper, at, label) {
            Ok(fd) => fd,
            // A kernel that knows the word says more than that.
            Err(first) if first.errno == Errno::EINVAL => {
                return by_list(lower, upper, at, label)
                    .map_err(|second| if first.detail.is_empty() { second } else { first });
            }
            Err(first) => return Err(first),
        }
    };
    let target = open_dir(at).step(STEP, at)?;
    sys::attach(fd.as_fd(), target.as_fd()).step(STEP, at)?;
    Ok(fd)
}

/// A detached mount, each layer a parameter.
fn by_parameters(
    lower: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
    at: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let context = FsContext::open("overlay").step(STEP, at)?;
    let words = |errno, path: &Path| Failure::new(STEP, path, errno).with(context.message());
    context.set("source", b"overlay").map_err(|e| words(e, at))?;
    for layer in lower {
        context
            .set("lowerdir+", layer.as_os_str().as_bytes())
            .map_err(|e| words(e, layer))?;
    }
    options(context, upper, at, label)
}

/// What is not a lower layer, and the mount.
fn options(
    context: FsContext,
    upper: Option<&(PathBuf, PathBuf)>,
    at: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let words = |errno, path: &Path| Failure::new(STEP, path, errno).with(context.message());
    if let Some((upper, work)) = upper {
        context
            .set("upperdir", upper.as_os_str().as_bytes())
            .map_err(|e| words(e, upper))?;
        context
            .set("workdir", work.as_os_str().as_bytes())
            .map_err(|e| words(e, work))?;
    }
    if let Some(label) = label {
        context
            .set("context", label.as_bytes())
            .map_err(|e| words(e, at))?;
    }
    let flags = if upper.is_none() { attr::RDONLY } else { 0 };
    context
        .mount(flags)
        .map_err(|(errno, message)| Failure::new(STEP, at, errno).with(message))
}

/// A detached mount, each lower layer a descriptor of a detached mount; `None`: this kernel takes none (Linux 6.13 the
/// first descriptors, 6.15 those of detached mounts).
pub(crate) fn by_descriptors(
    lower: &[OwnedFd],
    upper: Option<&(PathBuf, PathBuf)>,
    at: &Path,
    label: Option<&str>,
) -> Result<Option<OwnedFd>, Failure> {
    let context = FsContext::open("overlay").step(STEP, at)?;
    let words = |errno, path: &Path| Failure::new(STEP, path, errno).with(context.message());
    context.set("source", b"overlay").map_err(|e| words(e, at))?;
    for layer in lower {
        // The helper tells what is wrong where it is not this: the kernels of the guests answer with three different errors.
        if context.set_descriptor("lowerdir+", layer.as_fd()).is_err() {
            return Ok(None);
        }
    }
    match options(context, upper, at, label) {
        Err(failure) if failure.errno == Errno::EINVAL => Ok(None),
        other => other.map(Some),
    }
}

/// mount(2) with one list of options, for kernels before 6.7.
fn by_list(
    lower: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
    at: &Path,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let mut held = Vec::with_capacity(lower.len() + 2);
    let mut hold = |path: &Path| -> Result<String, Failure> {
        let fd = open_dir(path).step(STEP, path)?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        held.push(fd);
        Ok(name)
    };
    let layers: Vec<String> = lower.iter().map(|layer| hold(layer)).collect::<Result<_, _>>()?;
    let mut options = format!("lowerdir={}", layers.join(":"));
    if let Some((upper, work)) = upper {
        options += &format!(",upperdir={},workdir={}", hold(upper)?, hold(work)?);
    }
    if let Some(label) = label {
        options += &format!(",context=\"{label}\"");
    }
    if options.len() >= 4096 {
        let detail = format!(
            "{} layers are more than a kernel before Linux 6.7 takes",
            lower.len()
        );
        return Err(Failure::new(STEP, at, Errno::E2BIG).with(Some(detail)));
    }
    let flags = if upper.is_none() {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    nix::mount::mount(
        Some("overlay"),
        at,
        Some("overlay"),
        flags,
        Some(options.as_str()),
    )
    .step(STEP, at)?;
    // Opened by its path again: this is the mount that now lies on top there.
    open_dir(at).step(STEP, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::fs;

    type Way = fn(&[PathBuf], Option<&(PathBuf, PathBuf)>, &Path, Option<&str>) -> Result<OwnedFd, Failure>;

    /// Layers as descriptors of detached mounts.
    fn by_clones(
        lower: &[PathBuf],
        upper: Option<&(PathBuf, PathBuf)>,
        at: &Path,
        label: Option<&str>,
    ) -> Result<OwnedFd, Failure> {
        let clone = |path: &PathBuf| sys::clone_tree(AT_FDCWD, path, false).unwrap();
        let layers: Vec<_> = lower.iter().map(clone).collect();
        if let Some(mounted) = by_descriptors(&layers, upper, at, label)? {
            return Ok(mounted);
        }
        let names = nix::sys::utsname::uname().unwrap();
        let release = names.release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
        let release = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(
            release < (6, 15),
            "{release:?} takes descriptors of detached mounts"
        );
        by_parameters(lower, upper, at, label)
    }

    /// All ways give the same tree: the topmost layer wins, and without an upper nothing can be written.
    #[test]
    fn every_way_shows_the_topmost_layer_and_writes_to_the_upper_one() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // A thread of its own: its mount namespace ends with it.
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            sys::set_root_attributes(true, 0, libc::MS_PRIVATE).unwrap();
            let all = std::env::temp_dir().join(format!("berth-overlay-{}", std::process::id()));
            fs::create_dir(&all).unwrap();
            nix::mount::mount(Some("tmpfs"), &all, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            for (ways, way) in [
                ("new", by_parameters as Way),
                ("old", by_list),
                ("newest", by_clones),
            ] {
                let base = all.join(ways);
                let [top, low, upper, work, at] =
                    ["top,with:signs", "low", "upper", "work", "at"].map(|n| base.join(n));
                for folder in [&top, &low, &upper, &work, &at] {
                    fs::create_dir_all(folder).unwrap();
                }
                fs::write(top.join("both"), "top").unwrap();
                fs::write(low.join("both"), "low").unwrap();
                fs::write(low.join("one"), "low").unwrap();
                let lower = [top, low];
                for upper in [None, Some((upper, work))] {
                    let fd: OwnedFd = way(&lower, upper.as_ref(), &at, None).unwrap();
                    let root = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                    assert_eq!(fs::read(root.join("both")).unwrap(), b"top", "{ways}");
                    assert_eq!(fs::read(root.join("one")).unwrap(), b"low", "{ways}");
                    assert_eq!(
                        fs::write(root.join("new"), "x").is_ok(),
                        upper.is_some(),
                        "{ways}"
                    );
                    if let Some((upper, _)) = &upper {
                        assert!(upper.join("new").exists(), "{ways}");
                    }
                }
            }
            nix::mount::umount2(&all, nix::mount::MntFlags::MNT_DETACH).unwrap();
            fs::remove_dir(&all).unwrap();
        });
        thread.join().unwrap();
    }
}
