//! What a sound image becomes, in each form it can come in.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn an_archive_is_loaded_listed_and_given_out() {
    let fixture = Fixture::new();
    let top = Tar::default().dir("etc/").file("etc/pump", "1").end();
    let loaded = fixture
        .load(&Archive::image("pump:1", &[base(), top.clone()]))
        .unwrap();
    assert_eq!(
        (
            loaded.reference.to_string().as_str(),
            loaded.layers,
            loaded.unpacked
        ),
        ("pump:1", 2, 2)
    );
    let reader = Store::open(fixture.store.root(), Mode::Read).unwrap();
    assert_eq!(reader.resolve("pump:1").unwrap(), loaded.digest);
    assert_eq!(reader.resolve(&loaded.digest.to_string()).unwrap(), loaded.digest);
    assert_eq!(
        reader.resolve(&format!("pump@{}", loaded.digest)).unwrap(),
        loaded.digest
    );
    let image = reader.image(&loaded.digest).unwrap();
    assert_eq!(
        image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(),
        &["/bin/sh"]
    );
    assert!(
        image.layers[0].ends_with(format!("layers/{}/fs", Digest::of(&top).hex())),
        "topmost first"
    );
    assert_eq!(
        std::fs::read_to_string(image.layers[0].join("etc/pump")).unwrap(),
        "1"
    );
    assert_eq!(
        std::fs::read_to_string(image.layers[1].join("bin/sh")).unwrap(),
        "shell"
    );
    let list = reader.list().unwrap();
    assert_eq!(
        (list.len(), list[0].platform.as_str(), list[0].problem.as_deref()),
        (1, "linux/amd64", None)
    );
    let inspection = reader.inspect("pump:1").unwrap();
    assert_eq!(inspection.layers[1].diff_id, Digest::of(&top));
    assert!(reader.verify().unwrap().is_empty());
    assert!(matches!(
        reader.remove("pump:1", &[]),
        Err(ImageError::ReadOnly { .. })
    ));
    assert_eq!(fixture.store.root().metadata().unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_gzipped_archive_and_a_layout_folder_give_the_same_image() {
    let archive = Archive::image("pump:1", &[base()]);
    let plain = Fixture::new().load(&archive).unwrap().digest;
    assert_eq!(
        Fixture::new().load_bytes(&gzip(&archive.tar())).unwrap().digest,
        plain
    );
    let fixture = Fixture::new();
    let layout = fixture.dir.path().join("layout");
    archive.layout(&layout);
    let options = LoadOptions {
        name: Some("other:2"),
        architecture: Some("amd64"),
        ..LoadOptions::default()
    };
    let loaded = fixture.store.load_from(Source::Path(&layout), &options).unwrap();
    assert_eq!(
        (loaded.digest, loaded.reference.to_string().as_str()),
        (plain, "other:2")
    );
    // A link in a layout folder is not followed.
    let blob = layout.join("blobs/sha256").join(archive.blobs[0].0.hex());
    std::fs::rename(&blob, fixture.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(fixture.dir.path().join("elsewhere"), &blob).unwrap();
    assert!(
        Fixture::new()
            .store
            .load_from(Source::Path(&layout), &options)
            .is_err()
    );
}

#[test]
fn two_images_share_a_layer_that_is_unpacked_once() {
    let fixture = Fixture::new();
    let one = fixture
        .load(&Archive::image(
            "one:1",
            &[base(), Tar::default().file("a", "1").end()],
        ))
        .unwrap();
    let shared = fixture.store.image(&one.digest).unwrap().layers[1].clone();
    let inode = shared.join("bin/sh").metadata().unwrap().ino();
    let two = fixture
        .load(&Archive::image(
            "two:1",
            &[base(), Tar::default().file("b", "2").end()],
        ))
        .unwrap();
    assert_eq!((one.unpacked, two.unpacked), (2, 1));
    assert_eq!(fixture.store.image(&two.digest).unwrap().layers[1], shared);
    assert_eq!(
        shared.join("bin/sh").metadata().unwrap().ino(),
        inode,
        "unpacked a second time"
    );
    assert_eq!(fixture.store.names("layers").unwrap().len(), 3);
    // Removing one keeps what the other needs.
    let freed = fixture.store.remove("one:1", &[]).unwrap();
    assert_eq!(freed.layers, 1);
    fixture.store.image(&two.digest).unwrap();
    assert!(fixture.store.verify().unwrap().is_empty());
    fixture.store.remove("two:1", &[]).unwrap();
    assert!(fixture.listing().is_empty(), "{:?}", fixture.listing());
}

#[test]
fn the_nodes_architecture_is_chosen_through_nested_indexes() {
    let mut archive = Archive::new();
    let arm = archive.manifest("arm64", &[Tar::default().file("arm", "").end()]);
    let amd = archive.manifest("amd64", &[base()]);
    let attestation = json!({"mediaType": MANIFEST, "digest": Digest::of(b"x").to_string(), "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"}});
    let inner = json!({"schemaVersion": 2, "manifests": [arm, attestation, amd]}).to_string();
    let mut top = archive.blob(INDEX, inner.as_bytes());
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    archive.top.push(top);
    let fixture = Fixture::new();
    let loaded = fixture.load(&archive).unwrap();
    assert_eq!(loaded.digest.to_string(), amd["digest"].as_str().unwrap());
    let bytes = archive.tar();
    let options = LoadOptions {
        architecture: Some("arm64"),
        ..LoadOptions::default()
    };
    let loaded = fixture
        .store
        .load_from(Source::Stream("x", &mut &bytes[..]), &options)
        .unwrap();
    assert_eq!(loaded.digest.to_string(), arm["digest"].as_str().unwrap());
    let options = LoadOptions {
        architecture: Some("riscv64"),
        ..LoadOptions::default()
    };
    let error = fixture
        .store
        .load_from(Source::Stream("x", &mut &bytes[..]), &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("linux/riscv64") && error.contains("linux/amd64, linux/arm64, unknown/unknown"),
        "{error}"
    );
}

#[test]
fn an_archive_of_several_images_needs_a_name() {
    let mut archive = Archive::image("one:1", &[base()]);
    let mut two = archive.manifest("amd64", &[Tar::default().file("two", "").end()]);
    two["annotations"] = json!({"io.containerd.image.name": "site.example/two:2"});
    archive.top.push(two);
    let fixture = Fixture::new();
    let refusal = fixture.refusal(&archive);
    assert!(
        refusal.contains("one:1, site.example/two:2") && refusal.contains("--name"),
        "{refusal}"
    );
    let bytes = archive.tar();
    let load = |name| {
        let options = LoadOptions {
            name: Some(name),
            architecture: Some("amd64"),
            ..LoadOptions::default()
        };
        fixture
            .store
            .load_from(Source::Stream("x", &mut &bytes[..]), &options)
    };
    assert!(load("three").is_err());
    assert_eq!(
        load("site.example/two:2").unwrap().reference.to_string(),
        "site.example/two:2"
    );
    // A bare tag is no name.
    let mut bare = Archive::image("latest", &[base()]);
    assert!(
        fixture
            .load(&bare)
            .unwrap_err()
            .to_string()
            .contains("does not name")
    );
    bare.top[0]["annotations"] = json!({});
    assert!(fixture.load(&bare).is_err());
}

#[test]
fn an_image_in_use_is_not_removed_and_gc_keeps_it() {
    let fixture = Fixture::new();
    let old = fixture.load(&Archive::image("pump:1", &[base()])).unwrap();
    let error = fixture.store.remove("pump:1", &[old.digest]).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    // A new image under the old name: the old one runs on, unnamed.
    let new = fixture
        .load(&Archive::image("pump:1", &[Tar::default().file("new", "").end()]))
        .unwrap();
    assert_eq!(fixture.store.gc(&[old.digest]).unwrap(), crate::Freed::default());
    fixture.store.image(&old.digest).unwrap();
    let freed = fixture.store.gc(&[]).unwrap();
    assert_eq!((freed.blobs, freed.layers), (3, 1));
    assert!(matches!(
        fixture.store.image(&old.digest),
        Err(ImageError::NotFound { .. })
    ));
    fixture.store.image(&new.digest).unwrap();
    let error = fixture.store.remove("pmup:1", &[]).unwrap_err();
    assert!(error.hint().unwrap().contains("pump:1"));
}

#[test]
fn concurrent_loads_end_with_all_images_whole() {
    let fixture = Fixture::new();
    let archives: Vec<Vec<u8>> = (0..6)
        .map(|n| {
            Archive::image(
                &format!("pump:{n}"),
                &[base(), Tar::default().file("n", &n.to_string()).end()],
            )
            .tar()
        })
        .collect();
    std::thread::scope(|scope| {
        for bytes in &archives {
            scope.spawn(|| fixture.load_bytes(bytes).unwrap());
        }
        // A reader beside them always sees whole images.
        scope.spawn(|| {
            for _ in 0..50 {
                for entry in fixture.store.list().unwrap() {
                    assert_eq!(entry.problem, None);
                }
            }
        });
    });
    assert_eq!(fixture.store.list().unwrap().len(), 6);
    assert_eq!(fixture.store.names("layers").unwrap().len(), 7);
    assert!(fixture.store.verify().unwrap().is_empty());
    assert!(fixture.store.names("tmp").unwrap().is_empty());
}
