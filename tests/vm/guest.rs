//! Boot one guest, run one script in it, print what it says, leave with its exit code: for trying things out.
//!
//! `cargo run -p berth-tests --bin berth-guest -- [--arch amd64] [--kernel linux-image-6.12-rt-amd64] [--isolcpus 2-3] SCRIPT`

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::agent::workspace;
use berth_tests::vm::{Config, Vm};

fn main() -> Result<ExitCode> {
    let (mut arch, mut kernel) = ("amd64".to_string(), "linux-image-6.12-rt-amd64".to_string());
    let (mut isolcpus, mut script) = (String::new(), None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kernel" => kernel = args.next().context("--kernel needs a Debian meta package")?,
            "--arch" => arch = args.next().context("--arch needs amd64 or arm64")?,
            "--isolcpus" => isolcpus = args.next().context("--isolcpus needs a CPU list")?,
            _ if script.is_none() => script = Some(arg),
            other => bail!("one script only; {other:?} is too much"),
        }
    }
    let script = script.context("say which script the guest is to run")?;
    let out = std::env::var_os("RIG_OUT").map_or_else(|| workspace().join(".rig"), Into::into);
    std::fs::create_dir_all(&out)?;
    let built = Command::new(workspace().join("tests/vm/image/build.sh"))
        .arg(&out)
        .args([&arch, &kernel])
        .status()?;
    ensure!(built.success(), "the guest image could not be built");
    let config = Config {
        image: out.join(format!("{arch}-{kernel}")),
        arch,
        isolcpus,
        append: String::new(),
        qemu: Vec::new(),
        memory: 1024,
        share: workspace(),
    };
    let mut vm = Vm::boot(&config, &out.join(format!("guest-{}", std::process::id())))?;
    eprintln!("ready after {:.1} s", vm.boot_seconds);
    let (code, output) = vm.run(&script)?;
    print!("{output}");
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
