//! The OCI command line alone, as a program: what `berth oci` runs. The integration tests drive it.

fn main() {
    std::process::exit(berth_runtime::oci::main(std::env::args_os().skip(1)));
}
