//! What layers become on disk: whiteouts as overlayfs shows them, and nothing outside the folder, ever.

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::process::Command;

use super::*;
use crate::LayerError;
use crate::limits::{Budget, Limits};
use crate::unpack::unpack;
use proptest::prelude::*;

/// A folder to unpack into, beside a canary.
struct Cage {
    dir: tempfile::TempDir,
}

impl Cage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/file"), "sings").unwrap();
        Self { dir }
    }

    fn fs(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    fn unpack(&self, tar: Vec<u8>) -> Result<crate::layer::Found, LayerError> {
        let limits = Limits {
            entries: 1000,
            bytes: 1 << 20,
            layers: 1,
        };
        unpack(&tar[..], &self.fs(), &mut Budget::new(limits)).map(|unpacked| unpacked.found)
    }

    fn canary_sings(&self) -> bool {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        let canary = self.dir.path().join("canary");
        names == ["canary", "fs"]
            && fs::read_dir(&canary).unwrap().count() == 1
            && fs::read_to_string(canary.join("file")).unwrap() == "sings"
            && canary.join("file").metadata().unwrap().nlink() == 1
            && canary.join("file").metadata().unwrap().mode() & 0o7777 == 0o644
    }
}

#[test]
fn escapes_are_refused_or_stay_inside() {
    let cage = Cage::new();
    let outside = cage.dir.path().join("canary").to_str().unwrap().to_string();
    let refused: Vec<(Tar, &str)> = vec![
        (Tar::default().file("/etc/passwd", "x"), "absolute"),
        (Tar::default().file("../canary/file", "x"), "'..'"),
        (Tar::default().file("a/../../canary/file", "x"), "'..'"),
        (Tar::default().hard_link("a", "../canary/file"), "'..'"),
        (
            Tar::default().hard_link("a", &format!("{outside}/file")),
            "absolute",
        ),
        // A symbolic link to the outside means the inside: there is no such folder there.
        (
            Tar::default().symlink("out", &outside).hard_link("a", "out/file"),
            "does not have",
        ),
        (
            Tar::default().symlink("out", &outside).file("out/file", "x"),
            "no folder inside",
        ),
        (
            Tar::default()
                .symlink("out", "../../canary")
                .file("out/file", "x"),
            "no folder inside",
        ),
        (
            Tar::default()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/file", "x"),
            "open the folder",
        ),
        (
            Tar::default()
                .symlink("out", "../canary")
                .hard_link("a", "out/file"),
            "does not have",
        ),
        (Tar::default().hard_link("a", "b").file("b", "x"), "does not have"),
        (Tar::default().dir("d").hard_link("a", "d"), "no file"),
        (Tar::default().file(".wh.x", "").hard_link("a", "x"), "no file"),
        (
            Tar::default().raw(b"sda", EntryType::Block, 0o666, b"", b""),
            "device node",
        ),
        (
            Tar::default().raw(b"null", EntryType::Char, 0o666, b"", b""),
            "device node",
        ),
        (Tar::default().file(".wh.", ""), "hides no name"),
        (Tar::default().file(".wh...", ""), "hides no name"),
        (Tar::default().file(".wh..wh.plnk", ""), "hides no name"),
        (Tar::default().file(".wh.a", "content"), "no empty file"),
        (Tar::default().file(".wh.a/b", ""), "through a whiteout"),
        (
            Tar::default().dir("d").file("d/x", "").file("d", ""),
            "has filled",
        ),
        (Tar::default().file("f", "").file("f/x", ""), "no folder inside"),
        (
            Tar::default()
                .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/x")])
                .dir("d"),
            "overlayfs",
        ),
        (
            Tar::default().pax(&[("GNU.sparse.major", b"1")]).file("f", ""),
            "sparse",
        ),
        (
            Tar::default().pax(&[("path", b"/etc/x")]).file("f", ""),
            "absolute",
        ),
        (
            Tar::default().pax(&[("path", b"a\0b")]).file("f", ""),
            "zero byte",
        ),
        (
            Tar::default().pax(&[("uid", b"4294967295")]).file("f", ""),
            "owner",
        ),
        (Tar::default().file(&"n/".repeat(2000), ""), "bytes, the most is"),
    ];
    for (tar, part) in refused {
        let cage = Cage::new();
        let error = cage.unpack(tar.end()).unwrap_err().to_string();
        assert!(error.contains(part), "expected {part:?} in: {error}");
        assert!(cage.canary_sings(), "{part}: {error}");
    }
    // What a link inside leads to, inside, is used.
    let tar = Tar::default()
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "/usr/lib")
        .file("lib/x", "1");
    cage.unpack(tar.end()).unwrap();
    assert_eq!(fs::read_to_string(cage.fs().join("usr/lib/x")).unwrap(), "1");
    // A file over a link replaces the link.
    let cage = Cage::new();
    let link = cage.dir.path().join("canary/file");
    let tar = Tar::default()
        .symlink("a", link.to_str().unwrap())
        .file("a", "new")
        .symlink("d", &outside)
        .dir("d");
    cage.unpack(tar.end()).unwrap();
    assert!(cage.canary_sings());
    assert!(cage.fs().join("a").symlink_metadata().unwrap().is_file());
    assert!(cage.fs().join("d").symlink_metadata().unwrap().is_dir());
}

#[test]
fn owners_modes_times_and_attributes_are_the_layers() {
    let cage = Cage::new();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tar = Tar::default().pax(&[
        ("uid", b"1000"),
        ("gid", b"100"),
        ("mtime", b"1234567890.5"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"x"),
        ("RHT.security.selinux", b"label"),
    ]);
    tar = tar
        .raw(b"ping", EntryType::Regular, 0o4755, b"", b"x")
        .hard_link("again", "ping");
    tar = tar
        .raw(b"d", EntryType::Directory, 0o1777, b"", b"")
        .file("d/x", "")
        .raw(b"p", EntryType::Fifo, 0o622, b"", b"");
    let found = cage.unpack(tar.end()).unwrap();
    let meta = cage.fs().join("ping").metadata().unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()),
        (1000, 100, 0o4755, 2)
    );
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(
        xattr::get(cage.fs().join("ping"), "security.capability")
            .unwrap()
            .unwrap(),
        capability
    );
    assert_eq!(xattr::get(cage.fs().join("ping"), "user.note").unwrap(), None);
    assert_eq!(found.dropped, ["ping: user.note", "ping: RHT.security.selinux"]);
    let dir = cage.fs().join("d").metadata().unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o1777, 1_000_000_000));
    let pipe = cage.fs().join("p").symlink_metadata().unwrap();
    assert!(pipe.file_type().is_fifo());
    assert_eq!(pipe.mode() & 0o7777, 0o622);
}

#[test]
fn whiteouts_hide_what_is_below_in_a_real_overlay() {
    let lower = Tar::default()
        .dir("dev/")
        .dir("a/")
        .file("a/old", "1")
        .file("gone", "1")
        .dir("gone-dir/")
        .file("gone-dir/x", "1")
        .dir("was/")
        .file("was/below", "1")
        .dir("both/")
        .file("both/below", "1")
        .file("file", "1")
        .end();
    let upper = Tar::default()
        .dir("a/")
        .file("a/.wh..wh..opq", "")
        .file("a/new", "2")
        .file(".wh.gone", "")
        .file(".wh.gone-dir", "")
        // The whiteout and the folder of the same name, in both orders.
        .file(".wh.was", "")
        .dir("was/")
        .file("was/above", "2")
        .dir("both/")
        .file("both/above", "2")
        .file(".wh.both", "")
        .file(".wh.file", "")
        .file("file", "2")
        .end();
    let fixture = Fixture::new();
    let loaded = fixture
        .load(&Archive::image("pump:1", &[lower.clone(), upper.clone()]))
        .unwrap();
    let seen = overlay_listing(&fixture.store.image(&loaded.digest).unwrap().layers);
    assert_eq!(seen, "a a/new both both/above dev file=2 was was/above");
    // An opaque root hides everything below it.
    let root = Tar::default().file("only", "3").file(".wh..wh..opq", "").end();
    let loaded = fixture
        .load(&Archive::image("pump:2", &[lower, upper, root]))
        .unwrap();
    let layers = fixture.store.image(&loaded.digest).unwrap().layers;
    assert_eq!(layers.len(), 1);
    assert!(layers[0].join("only").exists());
}

/// Mounts the layers in a mount namespace of a child's own, and lists what is seen.
fn overlay_listing(layers: &[PathBuf]) -> String {
    let at = tempfile::tempdir().unwrap();
    let lower: Vec<&str> = layers.iter().map(|path| path.to_str().unwrap()).collect();
    let script = r#"mount -t overlay overlay -o "lowerdir=$1" "$2" && cd "$2" &&
        find . -mindepth 1 | sed 's,^\./,,' | LC_ALL=C sort | sed "s,^file\$,file=$(cat file 2>&1)," | tr '\n' ' '"#;
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            "sh",
            &lower.join(":"),
        ])
        .arg(at.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

#[test]
fn a_folder_without_an_entry_must_not_change_the_one_below() {
    let below = |mode| {
        Tar::default()
            .raw(b"tmp", EntryType::Directory, mode, b"", b"")
            .end()
    };
    let implied = Tar::default().file("tmp/x", "").end();
    let fixture = Fixture::new();
    let refusal = fixture.refusal(&Archive::image("pump:1", &[below(0o1777), implied.clone()]));
    assert!(
        refusal.contains("/tmp") && refusal.contains("mode 1777") && refusal.contains("tmp/"),
        "{refusal}"
    );
    let link = Tar::default().symlink("tmp", "var").end();
    assert!(
        fixture
            .refusal(&Archive::image("pump:1", &[link, implied.clone()]))
            .contains("a symbolic link")
    );
    // The same mode, an entry of its own, or one above: nothing is lost.
    fixture
        .load(&Archive::image("pump:1", &[below(0o755), implied.clone()]))
        .unwrap();
    let own = Tar::default()
        .file("tmp/x", "")
        .raw(b"tmp/", EntryType::Directory, 0o1777, b"", b"")
        .end();
    fixture
        .load(&Archive::image("pump:2", &[below(0o1777), own]))
        .unwrap();
    fixture
        .load(&Archive::image(
            "pump:3",
            &[below(0o1777), implied, below(0o1777)],
        ))
        .unwrap();
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        // Few names, so that entries meet; few refusals, which end a layer.
        20 => Just(b"a".to_vec()),
        20 => Just(b"b".to_vec()),
        1 => Just(b"..".to_vec()),
        1 => Just(b".".to_vec()),
        1 => Just(b"canary".to_vec()),
        1 => Just(b"file".to_vec()),
        1 => Just(b".wh.a".to_vec()),
        1 => Just(b".wh..wh..opq".to_vec()),
        1 => Just(b"".to_vec()),
        1 => proptest::collection::vec(1u8..=255, 1..6),
    ];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_entries_never_escape(entries in proptest::collection::vec((name(), 0u8..7, name(), any::<bool>()), 1..12)) {
        let cage = Cage::new();
        let outside = cage.dir.path().as_os_str().as_encoded_bytes().to_vec();
        let mut tar = Tar::default();
        for (path, kind, link, absolute) in entries {
            let kind = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Symlink,
                EntryType::Link, EntryType::Fifo, EntryType::Regular][usize::from(kind)];
            let link = match (absolute, link.len() % 3) {
                (true, 0) => [&outside[..], b"/canary"].concat(),
                (true, 1) => b"../canary".to_vec(),
                (true, _) => [&outside[..], b"/canary/", &link[..]].concat(),
                (false, _) => link,
            };
            tar = tar.raw(&path, kind, 0o777, &link, b"");
        }
        let _ = cage.unpack(tar.end());
        prop_assert!(cage.canary_sings());
    }

    #[test]
    fn random_bytes_behind_a_link_never_escape(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
        let cage = Cage::new();
        let mut tar = Tar::default().symlink("a", "../canary");
        tar.0.extend(bytes);
        let _ = cage.unpack(tar.end());
        prop_assert!(cage.canary_sings());
    }
}

#[test]
fn a_link_in_the_cage_is_a_link_to_the_test_too() {
    // The canary would be reached by a careless program: the cage is worth something.
    let cage = Cage::new();
    symlink("../canary", cage.fs().join("out")).unwrap();
    fs::write(cage.fs().join("out/file"), "x").unwrap();
    assert!(!cage.canary_sings());
}
