//! Power cuts and damage: the store opens, what it names is whole, and loading again mends it.

use super::*;
use crate::crash;

/// Cuts the power at each point of `change` in turn, and checks what lies there after each.
fn at_every_point(prepare: impl Fn(&Fixture), change: impl Fn(&Fixture) -> Result<(), ImageError>) -> u32 {
    for n in 0..200 {
        let fixture = Fixture::new();
        prepare(&fixture);
        crash::after(Some(n));
        let result = change(&fixture);
        let cut = crash::cut();
        crash::after(None);
        assert_eq!(result.is_err(), cut, "point {n}: {result:?}");
        // After the power is back: it opens, and everything it names is whole.
        let store = Store::open(fixture.store.root(), Mode::Write).unwrap();
        for entry in store.list().unwrap() {
            assert_eq!(entry.problem, None, "point {n}");
            store.image(&entry.digest).unwrap();
        }
        assert!(
            store.verify().unwrap().is_empty(),
            "point {n}: {:?}",
            store.verify()
        );
        // The change can be made again, and nothing is left over.
        change(&fixture).unwrap();
        assert!(store.verify().unwrap().is_empty());
        store.gc(&[]).unwrap();
        assert!(store.names("tmp").unwrap().is_empty());
        if !cut {
            return n;
        }
    }
    panic!("the change has no end");
}

#[test]
fn a_power_cut_at_any_point_of_a_load_leaves_a_store_that_opens() {
    let archive = Archive::image("pump:1", &[base(), Tar::default().file("a", "1").end()]);
    let points = at_every_point(|_| {}, |fixture| fixture.load(&archive).map(|_| ()));
    assert!(points > 15, "only {points} points were passed");
}

#[test]
fn a_power_cut_while_an_image_is_replaced_keeps_the_old_or_the_new() {
    let old = Archive::image("pump:1", &[base()]);
    let new = Archive::image("pump:1", &[base(), Tar::default().file("a", "1").end()]);
    at_every_point(
        |fixture| {
            fixture.load(&old).unwrap();
        },
        |fixture| fixture.load(&new).map(|_| ()),
    );
}

#[test]
fn a_power_cut_while_a_store_is_made() {
    for n in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        crash::after(Some(n));
        let result = Store::open(dir.path().join("images"), Mode::Write);
        let cut = crash::cut();
        crash::after(None);
        assert_eq!(result.is_err(), cut);
        let store = Store::open(dir.path().join("images"), Mode::Write).unwrap();
        assert!(store.list().unwrap().is_empty());
        if !cut {
            assert!(n > 5, "only {n} points were passed");
            return;
        }
    }
    panic!("making a store has no end");
}

#[test]
fn a_half_unpacked_layer_is_never_used_and_is_unpacked_again() {
    let fixture = Fixture::new();
    let archive = Archive::image("pump:1", &[base()]);
    let loaded = fixture.load(&archive).unwrap();
    let folder = fixture
        .store
        .root()
        .join("layers")
        .join(Digest::of(&base()).hex());
    // As if the folder had its name, but not all of its content.
    fs::remove_file(folder.join("layer.json")).unwrap();
    fs::remove_file(folder.join("fs/bin/sh")).unwrap();
    let error = fixture.store.image(&loaded.digest).unwrap_err();
    assert!(error.to_string().contains("not completely unpacked"), "{error}");
    assert!(error.hint().unwrap().contains("load the image again"));
    assert!(fixture.store.list().unwrap()[0].problem.is_some());
    assert_eq!(fixture.load(&archive).unwrap().unpacked, 1);
    let image = fixture.store.image(&loaded.digest).unwrap();
    assert_eq!(
        fs::read_to_string(image.layers[0].join("bin/sh")).unwrap(),
        "shell"
    );
    // A cut marker, and one of another layer.
    let marker = fs::read(folder.join("layer.json")).unwrap();
    fs::write(folder.join("layer.json"), &marker[..marker.len() / 2]).unwrap();
    assert!(matches!(
        fixture.store.image(&loaded.digest),
        Err(ImageError::Damaged { .. })
    ));
    let other = String::from_utf8(marker)
        .unwrap()
        .replace(&Digest::of(&base()).hex(), &Digest::of(b"").hex());
    fs::write(folder.join("layer.json"), other).unwrap();
    assert!(matches!(
        fixture.store.image(&loaded.digest),
        Err(ImageError::Damaged { .. })
    ));
}

#[test]
fn verify_finds_every_change_and_loading_again_mends_it() {
    let archive = Archive::image("pump:1", &[base()]);
    let fs_of = |fixture: &Fixture| {
        fixture
            .store
            .root()
            .join("layers")
            .join(Digest::of(&base()).hex())
            .join("fs")
    };
    type Change<'a> = dyn Fn(&Fixture) + 'a;
    let changes: [(&str, &Change<'_>); 6] = [
        ("content", &|f| {
            fs::write(fs_of(f).join("bin/sh"), "shexl").unwrap()
        }),
        ("mode", &|f| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(fs_of(f).join("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap();
        }),
        ("owner", &|f| {
            std::os::unix::fs::lchown(fs_of(f).join("bin/sh"), Some(5), None).unwrap()
        }),
        ("a file more", &|f| fs::write(fs_of(f).join("more"), "").unwrap()),
        ("an attribute", &|f| {
            xattr::set(fs_of(f).join("bin"), "trusted.overlay.opaque", b"y").unwrap()
        }),
        ("blob", &|f| {
            fs::write(f.store.names("blobs/sha256").unwrap()[0].0.clone(), "x").unwrap()
        }),
    ];
    for (what, change) in changes {
        let fixture = Fixture::new();
        fixture.load(&archive).unwrap();
        assert!(fixture.store.verify().unwrap().is_empty());
        change(&fixture);
        assert!(
            !fixture.store.verify().unwrap().is_empty(),
            "{what} was not found"
        );
        fixture.load(&archive).unwrap();
        assert!(
            fixture.store.verify().unwrap().is_empty(),
            "{what} was not mended"
        );
    }
}

#[test]
fn a_tampered_manifest_in_the_store_is_refused_at_launch() {
    let fixture = Fixture::new();
    let loaded = fixture.load(&Archive::image("pump:1", &[base()])).unwrap();
    let path = fixture.store.blob_path(&loaded.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(b' ');
    fs::write(&path, bytes).unwrap();
    assert!(matches!(
        fixture.store.image(&loaded.digest),
        Err(ImageError::Tampered { .. })
    ));
    // What an image needs cannot be told: nothing is deleted.
    let before = fixture.listing();
    assert!(fixture.store.gc(&[]).is_err());
    assert_eq!(fixture.listing(), before);
}

#[test]
fn what_is_no_store_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Store::open(dir.path().join("none"), Mode::Read),
        Err(ImageError::Missing { .. })
    ));
    fs::write(dir.path().join("letters"), "").unwrap();
    assert!(matches!(
        Store::open(dir.path(), Mode::Write),
        Err(ImageError::Format { .. })
    ));
    assert!(dir.path().join("letters").exists());
    let fixture = Fixture::new();
    fs::write(fixture.store.root().join("berth-store"), "2\n").unwrap();
    for mode in [Mode::Read, Mode::Write] {
        let error = Store::open(fixture.store.root(), mode).unwrap_err();
        assert!(error.to_string().contains("\"2\\n\""), "{error}");
    }
}
