//! Kernel arguments as boot loaders and builds take them.
//!
//! GRUB and Yocto add to what stands there; extlinux and U-Boot have the whole line, so it is made from the one that the
//! kernel was booted with: what the wanted arguments replace is taken out, and so is what the loader itself puts in
//! (`BOOT_IMAGE=`, `initrd=`).

use super::compare::{Compared, InForce, split};

/// A line for /etc/default/grub.d/50-berth.cfg, a shell fragment.
#[must_use]
pub fn grub(compared: &[Compared]) -> String {
    let line = escaped(&joined(compared), &['"', '\\', '$', '`']);
    format!("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {line}\"")
}

/// A line for a machine's or a distribution's configuration in Yocto.
#[must_use]
pub fn yocto(compared: &[Compared]) -> String {
    format!(
        "APPEND:append = \" {}\"",
        escaped(&joined(compared), &['"', '\\'])
    )
}

/// The `APPEND` line of extlinux.conf (U-Boot's distro boot, syslinux).
#[must_use]
pub fn extlinux(compared: &[Compared], current: &str) -> String {
    format!("APPEND {}", merged(compared, current))
}

/// U-Boot's environment.
#[must_use]
pub fn u_boot(compared: &[Compared], current: &str) -> String {
    format!(
        "setenv bootargs '{}'",
        merged(compared, current).replace('\'', "'\\''")
    )
}

/// The arguments, divided by blanks.
#[must_use]
pub fn joined(compared: &[Compared]) -> String {
    let texts: Vec<&str> = compared.iter().map(|one| one.argument.text.as_str()).collect();
    texts.join(" ")
}

/// The whole line: `current` without what is replaced, and the wanted arguments behind it.
#[must_use]
pub fn merged(compared: &[Compared], current: &str) -> String {
    let name = |word: &str| -> String {
        let plain: String = word.chars().filter(|c| *c != '"').collect();
        plain.split('=').next().unwrap_or_default().replace('-', "_")
    };
    let wanted: Vec<String> = compared.iter().map(|one| name(&one.argument.text)).collect();
    let repeats = ["console", "module_blacklist"];
    let kept = split(current).into_iter().filter(|word| {
        let name = name(word);
        if name == "BOOT_IMAGE" || name == "initrd" {
            return false;
        }
        if repeats.contains(&name.as_str()) {
            return !compared
                .iter()
                .any(|one| one.argument.text == *word && one.in_force == InForce::Yes);
        }
        !wanted.contains(&name)
    });
    let words: Vec<String> = kept
        .chain(compared.iter().map(|one| one.argument.text.clone()))
        .collect();
    words.join(" ")
}

fn escaped(text: &str, special: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
