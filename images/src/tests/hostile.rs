//! Images that are wrong in one way: each refused, by name, with nothing left in the store.

use super::*;
use crate::Limits;
use proptest::prelude::*;

fn refused(archive: &Archive, parts: &[&str]) {
    let refusal = Fixture::new().refusal(archive);
    for part in parts {
        assert!(refusal.contains(part), "expected {part:?} in: {refusal}");
    }
}

#[test]
fn tampered_blob() {
    for at in 0..3 {
        let mut archive = Archive::image("pump:1", &[base()]);
        let last = archive.blobs[at].1.len() - 1;
        archive.blobs[at].1[last] ^= 1;
        let digest = archive.blobs[at].0.to_string();
        refused(&archive, &["test.tar", &digest, "altered", "copy the file again"]);
    }
}

#[test]
fn wrong_size() {
    let mut archive = Archive::image("pump:1", &[base()]);
    archive.top[0]["size"] = json!(7);
    refused(&archive, &["manifest sha256:", "its descriptor says 7"]);
    let mut archive = Archive::new();
    let mut layer = archive.blob(LAYER, &base());
    layer["size"] = json!(1);
    let top = archive.manifest_of("amd64", vec![layer], &[Digest::of(&base()).to_string()]);
    archive.top.push(top);
    archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    refused(&archive, &["layer sha256:", "its descriptor says 1"]);
}

#[test]
fn wrong_architecture() {
    let mut archive = Archive::new();
    let top = archive.manifest("arm64", &[base()]);
    archive.top.push(top);
    archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    refused(
        &archive,
        &[
            "no image for linux/amd64",
            "there is linux/arm64",
            "build or export",
        ],
    );
    // The descriptor lies, the config does not.
    archive.top[0]["platform"]["architecture"] = json!("amd64");
    refused(&archive, &["no image for linux/amd64", "there is linux/arm64"]);
}

#[test]
fn symlinked_dev_proc_sys() {
    for name in ["dev", "proc", "sys"] {
        let path = format!("/{name}");
        let link = Tar::default().symlink(name, "/").end();
        refused(
            &Archive::image("pump:1", std::slice::from_ref(&link)),
            &[&path, "a symbolic link", "empty folder"],
        );
        let file = Tar::default().file(name, "").end();
        refused(&Archive::image("pump:1", &[file]), &[&path, "a file"]);
        // Also by a later layer, and under a layer that has nothing to say.
        let nothing = Tar::default().file("other", "").end();
        refused(
            &Archive::image("pump:1", &[base(), link.clone(), nothing]),
            &[&path, "a symbolic link"],
        );
        // A folder, a whiteout or an opaque root above the link: the link is not seen.
        for above in [
            Tar::default().dir(name).end(),
            Tar::default().file(&format!(".wh.{name}"), "").end(),
            Tar::default().file(".wh..wh..opq", "").end(),
        ] {
            let fixture = Fixture::new();
            let loaded = fixture
                .load(&Archive::image("pump:1", &[link.clone(), above]))
                .unwrap();
            fixture.store.image(&loaded.digest).unwrap();
        }
    }
}

#[test]
fn a_mount_point_swapped_in_the_store_is_refused_at_launch() {
    let fixture = Fixture::new();
    let loaded = fixture.load(&Archive::image("pump:1", &[base()])).unwrap();
    let dev = fixture.store.image(&loaded.digest).unwrap().layers[0].join("dev");
    fs::remove_dir(&dev).unwrap();
    std::os::unix::fs::symlink("/tmp", &dev).unwrap();
    assert!(matches!(
        fixture.store.image(&loaded.digest),
        Err(ImageError::MountPoint { name: "dev", .. })
    ));
    assert_eq!(fixture.store.verify().unwrap().len(), 2);
}

#[test]
fn truncated_archive() {
    let fixture = Fixture::new();
    let whole = Archive::image("pump:1", &[base()]).tar();
    for end in (0..whole.len() - 1024).step_by(487) {
        fixture.refusal_of(&whole[..end]);
    }
    let packed = gzip(&whole);
    for end in (0..packed.len()).step_by(97) {
        fixture.refusal_of(&packed[..end]);
    }
}

#[test]
fn truncated_layer() {
    let whole = gzip(&base());
    let mut archive = Archive::new();
    let layer = archive.blob(LAYER_GZIP, &whole[..whole.len() - 9]);
    let top = archive.manifest_of("amd64", vec![layer], &[Digest::of(&base()).to_string()]);
    archive.top.push(top);
    archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    refused(&archive, &["layer sha256:", "reading the layer", "cut short"]);
}

#[test]
fn a_layer_that_is_not_its_diff_id() {
    let other = Tar::default().file("other", "").end();
    let make = || {
        let mut archive = Archive::new();
        let layer = archive.blob(LAYER_GZIP, &gzip(&other));
        let top = archive.manifest_of("amd64", vec![layer], &[Digest::of(&base()).to_string()]);
        archive.top.push(top);
        archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:2"});
        archive
    };
    refused(
        &make(),
        &["diff_id", "built", &Digest::of(&base()).to_string()]
            .map(|p| if p == "built" { "build it again" } else { p }),
    );
    // Nor when the true layer is there already.
    let fixture = Fixture::new();
    fixture.load(&Archive::image("pump:1", &[base()])).unwrap();
    assert!(fixture.refusal(&make()).contains("diff_id"));
}

#[test]
fn tar_bomb_limits() {
    let many = (0..50).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), ""));
    let large = Tar::default().file("large", &"x".repeat(200_000));
    let table = [
        (
            vec![many.clone().end()],
            Limits {
                entries: 49,
                ..Limits::default()
            },
            "more than 49 entries",
        ),
        (
            vec![many.clone().end(), base()],
            Limits {
                entries: 51,
                ..Limits::default()
            },
            "more than 51 entries",
        ),
        (
            vec![large.clone().end()],
            Limits {
                bytes: 100_000,
                ..Limits::default()
            },
            "more than 100000 bytes",
        ),
        // Zeros after the end of the archive count too.
        (
            vec![[base(), vec![0; 300_000]].concat()],
            Limits {
                bytes: 100_000,
                ..Limits::default()
            },
            "more than 100000 bytes",
        ),
        (
            vec![base(), many.end()],
            Limits {
                layers: 1,
                ..Limits::default()
            },
            "layers: 2, the limit is 1",
        ),
    ];
    for (layers, limits, part) in table {
        let fixture = Fixture::new();
        let bytes = Archive::image("pump:1", &layers).tar();
        let options = LoadOptions {
            architecture: Some("amd64"),
            limits,
            ..LoadOptions::default()
        };
        let error = fixture
            .store
            .load_from(Source::Stream("x", &mut &bytes[..]), &options)
            .unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert!(error.hint().is_some());
        assert!(fixture.listing().is_empty());
    }
    // The archive itself.
    let bytes = Archive::image("pump:1", &[large.end()]).tar();
    let limits = Limits {
        bytes: 300,
        ..Limits::default()
    };
    let options = LoadOptions {
        architecture: Some("amd64"),
        limits,
        ..LoadOptions::default()
    };
    let error = Fixture::new()
        .store
        .load_from(Source::Stream("x", &mut &bytes[..]), &options)
        .unwrap_err();
    assert!(error.to_string().contains("bytes of the archive"), "{error}");
}

#[test]
fn an_index_that_names_itself_a_million_times_ends() {
    let mut archive = Archive::new();
    let mut inner = archive.manifest("arm64", &[base()]);
    for _ in 0..3 {
        let index = json!({"schemaVersion": 2, "manifests": vec![inner.clone(); 100]}).to_string();
        inner = archive.blob(INDEX, index.as_bytes());
    }
    inner["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    archive.top.push(inner);
    refused(&archive, &["entries of indexes", "1000"]);
}

#[test]
fn other_forms_are_refused_with_the_way_out() {
    let fixture = Fixture::new();
    let docker = Tar::default()
        .file("manifest.json", "[]")
        .file("repositories", "{}")
        .end();
    assert!(
        fixture
            .refusal_of(&docker)
            .contains("skopeo copy docker-archive:")
    );
    assert!(fixture.refusal_of(&base()).contains("no oci-layout"));
    assert!(fixture.refusal_of(b"").contains("empty"));
    assert!(
        fixture
            .refusal_of(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0])
            .contains("zstd")
    );
    assert!(fixture.refusal_of(b"hello, world").contains("test.tar"));
    let mut archive = Archive::new();
    let layer = archive.blob("application/vnd.oci.image.layer.v1.tar+zstd", b"x");
    let top = archive.manifest_of("amd64", vec![layer], &[Digest::of(b"x").to_string()]);
    archive.top.push(top);
    archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    refused(
        &archive,
        &["tar+zstd is not supported", "--dest-compress-format gzip"],
    );
    // zstd under gzip's name.
    let mut archive = Archive::new();
    let layer = archive.blob(LAYER_GZIP, &[0x28, 0xb5, 0x2f, 0xfd, 0]);
    let top = archive.manifest_of("amd64", vec![layer], &[Digest::of(b"x").to_string()]);
    archive.top.push(top);
    archive.top[0]["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    refused(&archive, &["zstd compression is not supported"]);
}

#[test]
fn missing_blobs_and_malformed_documents() {
    for (at, role) in [(0, "layer"), (1, "config"), (2, "manifest")] {
        let mut archive = Archive::image("pump:1", &[base()]);
        archive.blobs.remove(at);
        refused(&archive, &[role, "is missing", "incomplete"]);
    }
    let mut archive = Archive::image("pump:1", &[]);
    refused(&archive, &["no layer"]);
    archive.top[0]["mediaType"] = json!("application/vnd.example+json");
    refused(&archive, &["application/vnd.example+json"]);
    let mut archive = Archive::new();
    let mut top = archive.blob(MANIFEST, b"{\"schemaVersion\":2");
    top["platform"] = json!({"os": "linux", "architecture": "amd64"});
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "pump:1"});
    archive.top.push(top);
    refused(&archive, &["manifest sha256:", "malformed JSON"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_flipped_byte_is_refused_or_harmless(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let fixture = Fixture::new();
        let mut bytes = Archive::image("pump:1", &[base()]).tar();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if fixture.load_bytes(&bytes).is_ok() {
            // Padding, a time or a name of an owner: what was stored is sound all the same.
            prop_assert!(fixture.store.verify().unwrap().is_empty());
        } else {
            prop_assert!(fixture.listing().is_empty());
        }
    }
}
