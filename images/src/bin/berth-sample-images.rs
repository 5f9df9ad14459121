//! Writes the project's two sample images as OCI archives, from files alone: no registry, no container tool.
//!
//! ```text
//! berth-sample-images OUT_DIR --busybox PATH --worker PATH [--arch amd64|arm64]
//! OUT_DIR/berth-sample-busybox.tar     berth-sample-busybox:latest   base layer
//! OUT_DIR/berth-sample-worker.tar      berth-sample-worker:latest    the same base layer, and the device worker
//! ```
//! Invariant: the same two programs give the same bytes, whoever runs this, wherever and whenever: entries are in
//! a fixed order, with fixed owners, modes and times, and every document has its keys sorted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use berth_images::Digest;
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use tar::{EntryType, Header};

const USAGE: &str = "usage: berth-sample-images OUT_DIR --busybox PATH --worker PATH [--arch amd64|arm64]";
/// Links in /bin to busybox.
const APPLETS: &str = include_str!("../../samples/busybox/applets");
const PASSWD: &str = include_str!("../../samples/busybox/etc/passwd");
const GROUP: &str = include_str!("../../samples/busybox/etc/group");
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

type Failure = Box<dyn std::error::Error>;

struct Args {
    out: PathBuf,
    busybox: PathBuf,
    worker: PathBuf,
    arch: String,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("berth-sample-images: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("berth-sample-images: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut out, mut busybox, mut worker) = (None, None, None);
    let mut arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
    .to_string();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--busybox" => busybox = Some(PathBuf::from(value()?)),
            "--worker" => worker = Some(PathBuf::from(value()?)),
            "--arch" => arch = value()?,
            other if other.starts_with('-') => return Err(format!("unknown argument {other:?}")),
            _ if out.is_none() => out = Some(PathBuf::from(word)),
            _ => return Err(format!("a second folder {word:?}")),
        }
    }
    if !["amd64", "arm64"].contains(&arch.as_str()) {
        return Err(format!("architecture {arch:?}: expected amd64 or arm64"));
    }
    Ok(Args {
        out: out.ok_or("OUT_DIR is missing")?,
        busybox: busybox.ok_or("--busybox is missing")?,
        worker: worker.ok_or("--worker is missing")?,
        arch,
    })
}

fn run(args: &Args) -> Result<(), Failure> {
    let program = |path: &Path| -> Result<Vec<u8>, Failure> {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        check_static(&bytes, &args.arch).map_err(|problem| format!("{}: {problem}", path.display()))?;
        Ok(bytes)
    };
    let base = base_layer(&program(&args.busybox)?)?;
    let mut top = Layer::default();
    top.file("bin/device-worker", 0o755, &program(&args.worker)?)?;
    let top = top.finish()?;
    fs::create_dir_all(&args.out)?;
    let shell = Sample {
        name: "berth-sample-busybox",
        title: "berth sample: a shell",
        entrypoint: None,
        cmd: &["/bin/sh"],
        layers: &[&base],
    };
    let worker = Sample {
        name: "berth-sample-worker",
        title: "berth sample: a real-time worker on a device",
        entrypoint: Some("/bin/device-worker"),
        cmd: &[],
        layers: &[&base, &top],
    };
    for sample in [shell, worker] {
        let path = args.out.join(format!("{}.tar", sample.name));
        let temp = args
            .out
            .join(format!(".{}.tar.{}", sample.name, std::process::id()));
        let written = sample.archive(&args.arch).and_then(|bytes| {
            let mut file = File::create(&temp)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            Ok(fs::rename(&temp, &path)?)
        });
        if let Err(error) = written {
            // The error below is the one to report; the file may not be there at all.
            let _ = fs::remove_file(&temp);
            return Err(format!("{}: {error}", path.display()).into());
        }
        println!("{}", path.display());
    }
    Ok(())
}

/// Refuses what would not run alone in an image: no ELF, another architecture, or a program with an interpreter.
fn check_static(bytes: &[u8], arch: &str) -> Result<(), String> {
    let number = |at: usize, size: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err("no 64-bit little-endian ELF program".into());
    }
    let machine = match number(18, 2) {
        Some(62) => "amd64",
        Some(183) => "arm64",
        _ => "another architecture",
    };
    if machine != arch {
        return Err(format!("a program for {machine}, expected {arch}"));
    }
    let table = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(start), Some(size), Some(count)) = table else {
        return Err("a cut ELF header".into());
    };
    for index in 0..count {
        let at = usize::try_from(start.saturating_add(index * size)).map_err(|error| error.to_string())?;
        match number(at, 4) {
            Some(3) => return Err("a dynamic program: build it with -C target-feature=+crt-static".into()),
            Some(_) => {}
            None => return Err("a cut program header".into()),
        }
    }
    Ok(())
}

/// A layer as its two digests and its compressed bytes.
struct Packed {
    diff_id: Digest,
    blob: Vec<u8>,
}

/// A layer being written.
struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.0.append_data(
            &mut Self::header(EntryType::Directory, mode, 0),
            format!("{path}/"),
            io::empty(),
        )
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.0.append_data(
            &mut Self::header(EntryType::Regular, mode, content.len() as u64),
            path,
            content,
        )
    }

    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0
            .append_link(&mut Self::header(EntryType::Symlink, 0o777, 0), path, target)
    }

    fn finish(self) -> io::Result<Packed> {
        let tar = self.0.into_inner()?;
        let mut gzip = GzBuilder::new()
            .mtime(0)
            .operating_system(255)
            .write(Vec::new(), Compression::new(9));
        gzip.write_all(&tar)?;
        Ok(Packed {
            diff_id: Digest::of(&tar),
            blob: gzip.finish()?,
        })
    }
}

/// busybox with its links, and the folders every container wants.
fn base_layer(busybox: &[u8]) -> Result<Packed, Failure> {
    let mut layer = Layer::default();
    let dirs = [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sbin", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("var", 0o755),
        ("var/tmp", 0o1777),
    ];
    for (path, mode) in dirs {
        layer.dir(path, mode)?;
    }
    layer.file("bin/busybox", 0o755, busybox)?;
    for applet in APPLETS.split_whitespace() {
        layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer.file("etc/group", 0o644, GROUP.as_bytes())?;
    layer.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    Ok(layer.finish()?)
}

/// One image.
struct Sample<'a> {
    name: &'a str,
    title: &'a str,
    entrypoint: Option<&'a str>,
    cmd: &'a [&'a str],
    layers: &'a [&'a Packed],
}

impl Sample<'_> {
    /// The whole archive.
    fn archive(&self, arch: &str) -> Result<Vec<u8>, Failure> {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<String>>();
        let label = |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.to_string());
        let labels = [
            label("title", self.title),
            label("licenses", "Apache-2.0 AND GPL-2.0-only"),
        ];
        let mut config = ConfigBuilder::default()
            .user("0:0")
            .env(words(&[PATH]))
            .working_dir("/")
            .labels(std::collections::HashMap::from(labels));
        if let Some(entrypoint) = self.entrypoint {
            config = config.entrypoint(words(&[entrypoint]));
        }
        if !self.cmd.is_empty() {
            config = config.cmd(words(self.cmd));
        }
        let diff_ids: Vec<String> = self
            .layers
            .iter()
            .map(|layer| layer.diff_id.to_string())
            .collect();
        let config = ImageConfigurationBuilder::default()
            .created("1970-01-01T00:00:00Z")
            .architecture(Arch::from(arch))
            .os(Os::Linux)
            .config(config.build()?)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(diff_ids)
                    .build()?,
            )
            .build()?;

        let mut blobs = BTreeMap::new();
        let mut add = |kind: MediaType, bytes: Vec<u8>| -> Result<Descriptor, Failure> {
            let digest = Digest::of(&bytes);
            let descriptor = Descriptor::new(kind, bytes.len() as u64, digest.hex().parse::<Sha256Digest>()?);
            blobs.insert(digest.hex(), bytes);
            Ok(descriptor)
        };
        let config = add(MediaType::ImageConfig, sorted(&config)?)?;
        let mut layers = Vec::new();
        for layer in self.layers {
            layers.push(add(MediaType::ImageLayerGzip, layer.blob.clone())?);
        }
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()?;
        let mut manifest = add(MediaType::ImageManifest, sorted(&manifest)?)?;
        let name = (
            "org.opencontainers.image.ref.name".to_string(),
            format!("{}:latest", self.name),
        );
        manifest.set_annotations(Some([name].into()));
        manifest.set_platform(Some(
            PlatformBuilder::default()
                .architecture(Arch::from(arch))
                .os(Os::Linux)
                .build()?,
        ));
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests([manifest])
            .build()?;

        let mut archive = Layer::default();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.file("index.json", 0o644, &sorted(&index)?)?;
        archive.dir("blobs", 0o755)?;
        archive.dir("blobs/sha256", 0o755)?;
        for (hex, bytes) in &blobs {
            archive.file(&format!("blobs/sha256/{hex}"), 0o644, bytes)?;
        }
        Ok(archive.0.into_inner()?)
    }
}

/// JSON with sorted keys: maps in memory have no order of their own.
fn sorted(document: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    Ok(serde_json::to_vec(&serde_json::to_value(document)?)?)
}
