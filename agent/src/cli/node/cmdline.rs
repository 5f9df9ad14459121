//! `berth node cmdline`: the kernel arguments that a document means, and which of them the running kernel lacks.

use anyhow::bail;
use berth_rt::cmdline::{Arch, Compared, InForce, Parts, Platform, Vendor, format};
use berth_rt::survey::{boot, parts};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::daemon::settings::Folders;

use super::super::table::{self, NONE};
use super::super::{DONE, Format, Outcome, OutputArgs};
use super::FromArgs;

#[derive(Debug, Args)]
pub(in crate::cli) struct CmdlineArgs {
    #[command(flatten)]
    from: FromArgs,
    /// For whom the arguments are written
    #[arg(long = "for", value_name = "LOADER", default_value = "people")]
    loader: Loader,
    /// For another machine, of this architecture: the document is not compared with this node
    #[arg(long, value_name = "ARCH")]
    arch: Option<ArchArg>,
    /// Maker of that machine's processor
    #[arg(long, value_name = "VENDOR", requires = "arch")]
    vendor: Option<VendorArg>,
    /// Generation of an Intel processor, as /sys/devices/cpu/caps/pmu_name has it
    #[arg(long, value_name = "NAME", requires = "arch")]
    pmu_name: Option<String>,
    /// That machine's kernel is PREEMPT_RT
    #[arg(long, requires = "arch")]
    realtime_kernel: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Loader {
    /// A table: in force, pending, or another value there
    People,
    /// The arguments alone, in one line
    Plain,
    /// A line for /etc/default/grub.d
    Grub,
    /// The APPEND line of extlinux.conf
    Extlinux,
    /// A command for U-Boot's environment
    UBoot,
    /// A line for a Yocto configuration
    Yocto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArchArg {
    #[value(name = "x86_64", alias = "amd64")]
    X86,
    #[value(name = "aarch64", alias = "arm64")]
    Arm64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VendorArg {
    Intel,
    Amd,
    Other,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    node: &'a str,
    platform: &'a Platform,
    /// Absent with --arch.
    current: Option<&'a str>,
    arguments: &'a [Compared],
    line: String,
}

pub(super) fn main(folders: &Folders, args: &CmdlineArgs) -> Outcome {
    let (wanted, platform, parts, current) = match args.arch {
        None => {
            let machine = args.from.machine();
            let topology = machine.topology()?;
            let wanted = args.from.wanted(folders, Some(&topology))?;
            let parts = parts(&wanted.spec, &topology);
            (wanted, machine.platform(), parts, Some(machine.command_line()))
        }
        Some(arch) => {
            let wanted = args.from.wanted(folders, None)?;
            let cpus = &wanted.spec.cpus;
            let parts = match (&cpus.housekeeping, &cpus.isolated) {
                (Some(housekeeping), Some(isolated)) => Parts {
                    housekeeping: housekeeping.union(&cpus.shared.clone().unwrap_or_default()),
                    isolated: isolated.clone(),
                },
                (None, None) => Parts::default(),
                _ => bail!(
                    "Node `{}`: with --arch both spec.cpus.housekeeping and spec.cpus.isolated must be given: that machine's CPUs are not known here",
                    wanted.name
                ),
            };
            let platform = Platform {
                arch: match arch {
                    ArchArg::X86 => Arch::X86,
                    ArchArg::Arm64 => Arch::Arm64,
                },
                vendor: match (args.vendor, arch) {
                    (Some(VendorArg::Intel), _) => Vendor::Intel,
                    (Some(VendorArg::Amd), _) => Vendor::Amd,
                    (Some(VendorArg::Other), _) | (None, ArchArg::Arm64) => Vendor::Other,
                    (None, ArchArg::X86) => {
                        bail!("--arch x86_64 needs --vendor: arguments differ between Intel and AMD")
                    }
                },
                pmu_name: args.pmu_name.clone(),
                realtime: args.realtime_kernel,
            };
            (wanted, platform, parts, None)
        }
    };
    let spec = wanted.spec.effective();
    let line = current.clone().unwrap_or_default();
    let compared = boot(&spec, &parts, &platform, &line);
    if args.output.output == Format::Json {
        table::json(&Shown {
            node: &wanted.name,
            platform: &platform,
            current: current.as_deref(),
            arguments: &compared,
            line: format::joined(&compared),
        })?;
        return Ok(DONE);
    }
    match args.loader {
        Loader::People => people(&compared, current.is_some())?,
        Loader::Plain => println!("{}", format::joined(&compared)),
        Loader::Grub => println!("{}", format::grub(&compared)),
        Loader::Yocto => println!("{}", format::yocto(&compared)),
        Loader::Extlinux => println!("{}", format::extlinux(&compared, &line)),
        Loader::UBoot => println!("{}", format::u_boot(&compared, &line)),
    }
    Ok(DONE)
}

fn people(compared: &[Compared], here: bool) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = compared
        .iter()
        .map(|one| {
            let state = match one.in_force {
                _ if !here => NONE,
                InForce::Yes => "in force",
                InForce::Pending => "pending boot",
                InForce::Other => "pending boot, another value now",
            };
            let now = one.now.clone().unwrap_or_else(|| NONE.to_owned());
            vec![
                one.argument.text.clone(),
                one.argument.knob.to_owned(),
                state.to_owned(),
                now,
            ]
        })
        .collect();
    table::print(&["ARGUMENT", "KNOB", "STATE", "NOW"], &rows)?;
    if here {
        let pending = compared.iter().filter(|one| one.in_force != InForce::Yes).count();
        println!("{pending} pending, {} in force", compared.len() - pending);
    }
    Ok(())
}
