//! Link arguments of the binary. `berth oci` is started once for each step of a container, so what the dynamic
//! loader does counts.
//!
//! - libgcc's unwinder is linked statically where the toolchain has it so (one library less to load); it is only
//!   used for backtraces, as a panic aborts.
//! - Relative relocations are packed (DT_RELR, glibc 2.36): less to read, and half a megabyte less of a file.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_LINKER");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo:rustc-link-arg-bins=-Wl,--hash-style=gnu");
    let linker = std::env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    let found = Command::new(linker)
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    if found.is_some_and(|path| Path::new(path.trim()).is_absolute() && Path::new(path.trim()).exists()) {
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}
