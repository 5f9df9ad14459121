//! A store that came with the firmware: below the writable one, and hashed before it is believed.

use super::*;
use crate::{Stores, seal_of};

/// A preloaded store with one image of two layers, its seal, an empty writable store, and a folder for marks.
struct Node {
    firmware: Fixture,
    node: Fixture,
    digest: Digest,
}

impl Node {
    fn new() -> Self {
        let firmware = Fixture::new();
        let top = Tar::default().dir("etc/").file("etc/pump", "1").end();
        let digest = firmware
            .load(&Archive::image("pump:1", &[base(), top]))
            .unwrap()
            .digest;
        let node = Node {
            firmware,
            node: Fixture::new(),
            digest,
        };
        node.write_seal();
        fs::create_dir(node.marks()).unwrap();
        node
    }

    fn dir(&self) -> &Path {
        self.firmware.store.root()
    }

    fn write_seal(&self) {
        let seal = self.firmware.store.seal().unwrap();
        fs::write(seal_of(self.dir()), format!("{seal}\n")).unwrap();
    }

    fn marks(&self) -> PathBuf {
        self.node.dir.path().join("marks")
    }

    fn stores_of(&self, boot: &str) -> Stores {
        let marks = Some((self.marks(), boot.to_string()));
        Stores::open(self.node.store.root(), Mode::Read, self.dir(), marks).unwrap()
    }

    fn launch(&self, boot: &str) -> Result<crate::Image, String> {
        let stores = self.stores_of(boot);
        let told = |e: ImageError| format!("{e} [{}]", e.hint().unwrap_or_default());
        stores
            .image(&stores.resolve("pump:1").map_err(told)?)
            .map_err(told)
    }

    /// The unpacked file of the image's top layer.
    fn file(&self) -> PathBuf {
        let found = self.firmware.store.image(&self.digest).unwrap().layers[0].join("etc/pump");
        assert!(found.is_file());
        found
    }
}

#[test]
fn an_image_of_the_firmware_is_found_below_and_hashed_once_in_a_boot() {
    let node = Node::new();
    let image = node.launch("boot-1").unwrap();
    assert!(image.layers[0].starts_with(node.dir()));
    let listed = node.stores_of("boot-1").list().unwrap();
    assert!(listed[0].preloaded && listed[0].entry.problem.is_none());
    // Marked: in this boot it is not hashed again, in the next it is.
    fs::write(node.file(), "2").unwrap();
    node.launch("boot-1").unwrap();
    let refused = node.launch("boot-2").unwrap_err();
    assert!(
        refused.contains("altered: the tree is") && refused.contains("firmware"),
        "{refused}"
    );
}

#[test]
fn the_writable_store_goes_first() {
    let node = Node::new();
    node.launch("boot").unwrap();
    let newer = node
        .node
        .load(&Archive::image("pump:1", &[base()]))
        .unwrap()
        .digest;
    let stores = node.stores_of("boot");
    assert_eq!(stores.resolve("pump:1").unwrap(), newer);
    assert!(stores.image(&newer).unwrap().layers[0].starts_with(node.node.store.root()));
    let listed = stores.list().unwrap();
    assert_eq!((listed.len(), listed[0].preloaded), (1, false));
    // What runs from the firmware's image can still be told by its digest.
    assert!(stores.image(&node.digest).is_ok());
}

#[test]
fn a_preloaded_store_that_was_tampered_with_gives_nothing() {
    let layer_json = |node: &Node| node.file().ancestors().nth(3).unwrap().join("layer.json");
    type Tampering = (&'static str, fn(&Node), &'static str);
    let cases: [Tampering; 6] = [
        (
            "content",
            |n| fs::write(n.file(), "2").unwrap(),
            "altered: the tree is",
        ),
        (
            "mode",
            |n| {
                use std::os::unix::fs::PermissionsExt;
                fs::set_permissions(n.file(), fs::Permissions::from_mode(0o4755)).unwrap();
            },
            "altered: the tree is",
        ),
        (
            "index",
            |n| {
                let path = n.dir().join("index.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text.replacen('{', "{ ", 1)).unwrap();
            },
            "its seal is",
        ),
        (
            "no seal",
            |n| fs::remove_file(seal_of(n.dir())).unwrap(),
            "images.seal",
        ),
        (
            "a seal that is none",
            |n| fs::write(seal_of(n.dir()), "sha256:12").unwrap(),
            "images.seal",
        ),
        (
            "manifest",
            |n| {
                let path = n.dir().join("blobs/sha256").join(n.digest.hex());
                let text = fs::read_to_string(&path).unwrap();
                fs::write(&path, text + " ").unwrap();
            },
            "has been altered",
        ),
    ];
    for (what, tamper, expected) in cases {
        let node = Node::new();
        tamper(&node);
        let refused = node.launch("boot").unwrap_err();
        assert!(refused.contains(expected), "{what}: {refused}");
    }
    // A layer and its record changed together: the record is under the seal.
    let node = Node::new();
    let (file, record) = (node.file(), layer_json(&node));
    fs::write(&file, "2").unwrap();
    let mut marker: Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
    marker["tree"] = json!(crate::tree::digest(&record.with_file_name("fs")).unwrap());
    fs::write(&record, marker.to_string()).unwrap();
    assert!(node.launch("boot").unwrap_err().contains("its seal is"));
    let listed = node.stores_of("boot").list().unwrap();
    assert!(listed[0].entry.problem.as_ref().unwrap().contains("its seal is"));
}

#[test]
fn without_a_preloaded_store_nothing_changes_and_a_process_without_marks_launches_nothing_of_it() {
    let node = Node::new();
    let none = Stores::open(node.node.store.root(), Mode::Read, &node.dir().join("none"), None).unwrap();
    assert!(matches!(none.resolve("pump:1"), Err(ImageError::NotFound { .. })));
    let unmarked = Stores::open(node.node.store.root(), Mode::Read, node.dir(), None).unwrap();
    assert!(matches!(
        unmarked.image(&node.digest),
        Err(ImageError::Sealed { .. })
    ));
    let empty = node.node.dir.path().join("no store yet");
    let below = Stores::open(&empty, Mode::Read, node.dir(), None).unwrap();
    assert_eq!(
        below.resolve("pump:1").unwrap(),
        node.digest,
        "the firmware's images are there before any other"
    );
    assert!(!empty.exists());
    let missing = unmarked.resolve("valve:1").unwrap_err();
    assert!(
        missing.hint().unwrap().contains("pump:1"),
        "both stores' names are told"
    );
}
