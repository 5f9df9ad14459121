//! Image archives: layers with hostile paths and links, and bytes changed anywhere in the archive. Nothing may be written
//! beside the store.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use berth_images::{Digest, Mode, Store};
use serde_json::json;

use crate::random::Random;

/// Parts of paths at which something may turn.
const PARTS: &[&str] = &[
    "a",
    "b",
    "dev",
    "etc",
    "..",
    ".",
    "",
    "/",
    ".wh.a",
    ".wh..wh..opq",
    ".wh.",
    "...",
    "\u{0}",
    "beside",
    "a\\b",
    "\u{fffd}",
];

/// One entry of a tar stream: name and link as they are, type as it is.
fn entry(tar: &mut Vec<u8>, name: &[u8], kind: u8, link: &[u8], content: &[u8]) {
    let mut header = [0u8; 512];
    let put = |header: &mut [u8; 512], at: usize, bytes: &[u8], most: usize| {
        let n = bytes.len().min(most);
        header[at..at + n].copy_from_slice(&bytes[..n]);
    };
    put(&mut header, 0, name, 100);
    put(&mut header, 100, b"0000755\0", 8);
    put(&mut header, 108, b"0000000\0", 8);
    put(&mut header, 116, b"0000000\0", 8);
    put(
        &mut header,
        124,
        format!("{:011o}\0", content.len()).as_bytes(),
        12,
    );
    put(&mut header, 136, b"00000000000\0", 12);
    header[156] = kind;
    put(&mut header, 157, link, 100);
    put(&mut header, 257, b"ustar  \0", 8);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes(), 8);
    tar.extend(header);
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// A whole archive of the OCI layout with these layers.
fn archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut blob = |media: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        let name = format!("blobs/{}", digest.replace(':', "/"));
        entry(&mut tar, name.as_bytes(), b'0', b"", bytes);
        json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    };
    let arch = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let described: Vec<_> = layers
        .iter()
        .map(|l| blob("application/vnd.oci.image.layer.v1.tar", l))
        .collect();
    let config = json!({"architecture": arch, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": described});
    let mut manifest = blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "fuzz:1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
    entry(&mut tar, b"index.json", b'0', b"", index.as_bytes());
    entry(
        &mut tar,
        b"oci-layout",
        b'0',
        b"",
        br#"{"imageLayoutVersion": "1.0.0"}"#,
    );
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Load it into a new store: an answer in words or an image, and nothing beside the store.
fn load(bytes: &[u8]) -> Result<bool> {
    let dir = tempfile::Builder::new().prefix("berth-oci-fuzz-").tempdir()?;
    fs::create_dir(dir.path().join("beside"))?;
    fs::write(dir.path().join("beside/canary"), "as it was")?;
    let file = dir.path().join("fuzz.tar");
    fs::write(&file, bytes)?;
    let store = Store::open(dir.path().join("store"), Mode::Write)?;
    let said = store.load(&file, None);
    if let Err(e) = &said {
        ensure!(!e.to_string().trim().is_empty(), "a refusal without words: {e:?}");
    }
    drop(store);
    beside(dir.path())?;
    Ok(said.is_ok())
}

fn beside(dir: &Path) -> Result<()> {
    let names = |path: &Path| -> Result<Vec<String>> {
        let mut names: Vec<String> = fs::read_dir(path)?
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(names)
    };
    let (top, inner) = (names(dir)?, names(&dir.join("beside"))?);
    ensure!(
        top == ["beside", "fuzz.tar", "store"] && inner == ["canary"],
        "beside the store: {top:?} {inner:?}"
    );
    ensure!(
        fs::read_to_string(dir.join("beside/canary"))? == "as it was",
        "the canary was written"
    );
    Ok(())
}

fn path(random: &mut Random) -> Vec<u8> {
    let mut text: String = if random.below(6) == 0 {
        "/".into()
    } else {
        String::new()
    };
    for n in 0..=random.below(5) {
        if n > 0 {
            text.push('/');
        }
        let part: &str = random.pick::<&str>(PARTS);
        text.push_str(part);
    }
    let mut bytes = text.into_bytes();
    if random.below(8) == 0 {
        random.mutate(&mut bytes);
    }
    bytes
}

fn layer(random: &mut Random) -> Vec<u8> {
    let mut tar = Vec::new();
    for _ in 0..random.below(12) {
        let kind = *random.pick(b"0000555122234613gx7L");
        let link = if random.below(4) == 0 {
            b"../../../beside/canary".to_vec()
        } else {
            path(random)
        };
        let content: &[u8] = if kind == b'0' {
            b"written by the image"
        } else {
            b""
        };
        entry(&mut tar, &path(random), kind, &link, content);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

pub(crate) fn paths() -> impl FnMut(&mut Random) -> Result<bool> + Send {
    |random| {
        let layers: Vec<Vec<u8>> = (0..=random.below(3)).map(|_| layer(random)).collect();
        load(&archive(&layers))
    }
}

pub(crate) fn bytes() -> impl FnMut(&mut Random) -> Result<bool> + Send {
    |random| {
        let layers = [layer(random)];
        let mut bytes = archive(&layers);
        random.mutate(&mut bytes);
        load(&bytes)
    }
}
