//! The JSON documents of an image (index, manifest, config), checked for what berth relies on.
//!
//! Pure: bytes in, document or problem out. Docker's schema 2 media types have the same shapes and are taken too.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};

use crate::digest::Digest;

/// Largest index, manifest or config in bytes, as registries have it.
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;

/// What a descriptor points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
}

/// The kind of an entry of an index, or its media type where it is neither.
pub(crate) fn kind(descriptor: &Descriptor) -> Result<Kind, String> {
    match descriptor.media_type().as_ref() {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Ok(Kind::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Ok(Kind::Manifest),
        other => Err(format!("media type {other}")),
    }
}

/// How a layer of this media type is compressed; `Err` names a type that is not read.
pub(crate) fn compression(media_type: &MediaType) -> Result<Compression, String> {
    match media_type.as_ref() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Compression::Gzip),
        other => Err(format!("media type {other}")),
    }
}

/// The sha256 digest of a descriptor.
pub(crate) fn digest(descriptor: &Descriptor) -> Result<Digest, String> {
    descriptor
        .digest()
        .as_ref()
        .parse()
        .map_err(|error| format!("{error}"))
}

/// An index: version 2, and its own media type, where written, that of an index.
pub(crate) fn index(bytes: &[u8]) -> Result<ImageIndex, String> {
    let index: ImageIndex = parse(bytes)?;
    version(index.schema_version())?;
    if let Some(own) = index.media_type() {
        expect(
            own,
            &[
                "application/vnd.oci.image.index.v1+json",
                "application/vnd.docker.distribution.manifest.list.v2+json",
            ],
        )?;
    }
    Ok(index)
}

/// A manifest: version 2, an image config, digests that are sha256, no artifact.
pub(crate) fn manifest(bytes: &[u8]) -> Result<ImageManifest, String> {
    let manifest: ImageManifest = parse(bytes)?;
    version(manifest.schema_version())?;
    if let Some(own) = manifest.media_type() {
        expect(
            own,
            &[
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ],
        )?;
    }
    let config = manifest.config().media_type();
    expect(
        config,
        &[
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        ],
    )
    .map_err(|problem| format!("config: {problem}: this is no container image"))?;
    digest(manifest.config()).map_err(|problem| format!("config: {problem}"))?;
    for (at, layer) in manifest.layers().iter().enumerate() {
        digest(layer).map_err(|problem| format!("layers[{at}]: {problem}"))?;
    }
    Ok(manifest)
}

/// A config and its diff_ids, bottom layer first.
pub(crate) fn config(bytes: &[u8]) -> Result<(ImageConfiguration, Vec<Digest>), String> {
    let config: ImageConfiguration = parse(bytes)?;
    if config.rootfs().typ() != "layers" {
        return Err(format!(
            "rootfs.type is {:?}, expected \"layers\"",
            config.rootfs().typ()
        ));
    }
    let mut diff_ids = Vec::new();
    for (at, text) in config.rootfs().diff_ids().iter().enumerate() {
        diff_ids.push(
            text.parse()
                .map_err(|error| format!("rootfs.diff_ids[{at}]: {error}"))?,
        );
    }
    Ok((config, diff_ids))
}

/// The `oci-layout` file: version 1.x.
pub(crate) fn layout(bytes: &[u8]) -> Result<(), String> {
    let layout: oci_spec::image::OciLayout = parse(bytes)?;
    let version = layout.image_layout_version();
    if version.split('.').next() != Some("1") {
        return Err(format!("imageLayoutVersion is {version:?}, expected 1.0.0"));
    }
    Ok(())
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("malformed JSON: {error}"))
}

fn version(version: u32) -> Result<(), String> {
    if version == 2 {
        Ok(())
    } else {
        Err(format!("schemaVersion is {version}, expected 2"))
    }
}

fn expect(found: &MediaType, wanted: &[&str]) -> Result<(), String> {
    if wanted.contains(&found.as_ref()) {
        return Ok(());
    }
    Err(format!(
        "mediaType is {:?}, expected {:?}",
        found.as_ref(),
        wanted[0]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_that_are_something_else_are_refused() {
        let zero = format!("sha256:{}", "0".repeat(64));
        let good = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{zero}","size":2}},"layers":[]}}"#
        );
        assert!(manifest(good.as_bytes()).is_ok());
        let table = [
            (good.replace(":2,\"config", ":1,\"config"), "schemaVersion is 1"),
            (good.replace("config.v1", "other.v1"), "no container image"),
            (
                good.replace("sha256:", "sha512:")
                    .replace(&"0".repeat(64), &"0".repeat(128)),
                "sha512",
            ),
            (
                good.replace(
                    "\"layers\":[]",
                    "\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"layers\":[]",
                ),
                "mediaType is",
            ),
            (good[..40].to_string(), "malformed JSON"),
        ];
        for (text, part) in table {
            let problem = manifest(text.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
        assert!(
            config(br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"x","diff_ids":[]}}"#).is_err()
        );
        assert!(
            config(
                br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["../x"]}}"#
            )
            .is_err()
        );
        assert!(layout(br#"{"imageLayoutVersion":"2.0.0"}"#).is_err());
    }

    #[test]
    fn layer_media_types() {
        let of = |text: &str| compression(&MediaType::from(text));
        assert_eq!(
            of("application/vnd.oci.image.layer.v1.tar"),
            Ok(Compression::None)
        );
        assert_eq!(
            of("application/vnd.oci.image.layer.v1.tar+gzip"),
            Ok(Compression::Gzip)
        );
        assert!(
            of("application/vnd.oci.image.layer.v1.tar+zstd")
                .unwrap_err()
                .contains("zstd")
        );
        assert!(of("application/octet-stream").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (manifest(&bytes), index(&bytes), config(&bytes), layout(&bytes));
        }
    }
}
