//! Boot one guest, run one script in it, print what it says, leave with its exit code: for trying things out.
//!
//! `cargo run -p berth-tests --bin berth-guest -- [--arch amd64] [--kernel linux-image-6.12-rt-amd64] [--flavour busybox] [--isolcpus 2-3] [--append KERNEL_ARGUMENTS] [--small] [--share FOLDER] SCRIPT`
//! `--small`: one CPU, nothing to plug into. `--share`: the folder that the guest sees as /host (default: this
//! workspace, by 9p), on a disk, for kernels without 9p.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use berth_tests::vm::{Config, Shape, Vm, make_disk, out};

fn main() -> Result<ExitCode> {
    let (mut arch, mut kernel) = ("amd64".to_string(), "linux-image-6.12-rt-amd64".to_string());
    let (mut flavour, mut isolcpus, mut script) = ("busybox".to_string(), String::new(), None);
    let mut append = String::new();
    let (mut small, mut share) = (false, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kernel" => kernel = args.next().context("--kernel needs a Debian meta package")?,
            "--arch" => arch = args.next().context("--arch needs amd64 or arm64")?,
            "--flavour" => {
                flavour = args
                    .next()
                    .context("--flavour needs busybox, busybox-selinux or systemd")?
            }
            "--isolcpus" => isolcpus = args.next().context("--isolcpus needs a CPU list")?,
            "--append" => append = args.next().context("--append needs kernel arguments")?,
            "--small" => small = true,
            "--share" => share = Some(PathBuf::from(args.next().context("--share needs a folder")?)),
            _ if script.is_none() => script = Some(arg),
            other => bail!("one script only; {other:?} is too much"),
        }
    }
    let script = script.context("say which script the guest is to run")?;
    let mut config = Config::new(&arch, &kernel, &flavour)?;
    config.isolcpus = isolcpus;
    config.append = append;
    if small {
        config.shape = Shape::Small;
    }
    let dir = tempfile::Builder::new().prefix("guest.").tempdir_in(out())?;
    if let Some(share) = share {
        let disk = dir.path().join("host.ext4");
        make_disk(&disk, &share, 256)?;
        config.host = Some(disk);
    }
    let mut vm = Vm::boot(&config, &dir.path().join("guest"))?;
    eprintln!("ready after {:.1} s", vm.boot_seconds);
    let (code, output) = vm.run(&script)?;
    print!("{output}");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
