//! Boot one guest, run one script in it, print what it says, leave with its exit code: for trying things out.
//!
//! `cargo run -p berth-tests --bin berth-guest -- [--arch amd64] [--kernel linux-image-6.12-rt-amd64] [--flavour busybox] [--isolcpus 2-3] [--append KERNEL_ARGUMENTS] SCRIPT`

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use berth_tests::vm::{Config, Vm, out};

fn main() -> Result<ExitCode> {
    let (mut arch, mut kernel) = ("amd64".to_string(), "linux-image-6.12-rt-amd64".to_string());
    let (mut flavour, mut isolcpus, mut script) = ("busybox".to_string(), String::new(), None);
    let mut append = String::new();
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
            _ if script.is_none() => script = Some(arg),
            other => bail!("one script only; {other:?} is too much"),
        }
    }
    let script = script.context("say which script the guest is to run")?;
    let mut config = Config::new(&arch, &kernel, &flavour)?;
    config.isolcpus = isolcpus;
    config.append = append;
    let mut vm = Vm::boot(&config, &out().join(format!("guest-{}", std::process::id())))?;
    eprintln!("ready after {:.1} s", vm.boot_seconds);
    let (code, output) = vm.run(&script)?;
    print!("{output}");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
