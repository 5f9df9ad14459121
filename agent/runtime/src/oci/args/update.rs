//! `update`: a file with resources, or single limits.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::{Bad, Command, Update, Word, Words, unknown};

pub(super) fn parse(words: &mut Words<'_>) -> Result<Command, Bad> {
    let mut resources = LinuxResources::default();
    let (mut cpu, mut memory) = (LinuxCpu::default(), LinuxMemory::default());
    let mut file = None;
    let mut ids = Vec::new();
    while let Some(word) = words.next() {
        let option = match word {
            Word::Value(id) => {
                ids.push(id.to_string_lossy().into_owned());
                continue;
            }
            Word::Option(option) => option,
        };
        let mut text = || words.value(&option).map(|v| v.to_string_lossy().into_owned());
        match option.as_str() {
            "-r" | "--resources" => file = Some(PathBuf::from(text()?)),
            "--cpu-period" => drop(cpu.set_period(Some(number(&option, &text()?)?))),
            "--cpu-quota" => drop(cpu.set_quota(Some(number(&option, &text()?)?))),
            "--cpu-burst" => drop(cpu.set_burst(Some(number(&option, &text()?)?))),
            "--cpu-share" => drop(cpu.set_shares(Some(number(&option, &text()?)?))),
            "--cpu-rt-period" => drop(cpu.set_realtime_period(Some(number(&option, &text()?)?))),
            "--cpu-rt-runtime" => drop(cpu.set_realtime_runtime(Some(number(&option, &text()?)?))),
            "--cpu-idle" => drop(cpu.set_idle(Some(number(&option, &text()?)?))),
            "--cpuset-cpus" => drop(cpu.set_cpus(Some(text()?))),
            "--cpuset-mems" => drop(cpu.set_mems(Some(text()?))),
            "--memory" => drop(memory.set_limit(Some(bytes(&option, &text()?)?))),
            "--memory-reservation" => drop(memory.set_reservation(Some(bytes(&option, &text()?)?))),
            "--memory-swap" => drop(memory.set_swap(Some(bytes(&option, &text()?)?))),
            "--pids-limit" => {
                let mut pids = LinuxPids::default();
                pids.set_limit(number(&option, &text()?)?);
                resources.set_pids(Some(pids));
            }
            "--blkio-weight" => {
                let mut io = LinuxBlockIo::default();
                io.set_weight(Some(number(&option, &text()?)?));
                resources.set_block_io(Some(io));
            }
            _ => return Err(unknown(&option, " of update")),
        }
        words.no_value_left("update")?;
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    let [id] = &ids[..] else {
        return Err(Bad(
            format!("update: {} arguments, wanted 1..=1", ids.len()),
            Some("an ID".into()),
        ));
    };
    let id = id.clone();
    let asked = resources != LinuxResources::default();
    match file {
        Some(_) if asked => {
            let hint = Some("say it all in the --resources file".to_owned());
            Err(Bad("update: limits beside --resources".into(), hint))
        }
        Some(file) => Ok(Command::Update {
            id,
            source: Update::File(file),
        }),
        None if asked => Ok(Command::Update {
            id,
            source: Update::Words(Box::new(resources)),
        }),
        None => Err(Bad("update: nothing is to be changed".into(), None)),
    }
}

fn number<T: std::str::FromStr>(option: &str, text: &str) -> Result<T, Bad> {
    let bad = || Bad(format!("{option} `{text}` is no number in its range"), None);
    text.parse().map_err(|_| bad())
}

/// A number of bytes, with k, m or g behind it where that is shorter; -1: no limit.
fn bytes(option: &str, text: &str) -> Result<i64, Bad> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b');
    let (digits, unit) = match digits.as_bytes().last() {
        Some(b'k') => (&digits[..digits.len() - 1], 1 << 10),
        Some(b'm') => (&digits[..digits.len() - 1], 1 << 20),
        Some(b'g') => (&digits[..digits.len() - 1], 1i64 << 30),
        _ => (digits, 1),
    };
    let number = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| Bad(format!("{option} `{text}` is no number of bytes"), None))
}
