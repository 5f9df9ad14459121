//! The launcher alone, for this crate's tests: `launcher RUN STATE ETC CGROUP_PARENT [PROOF_INTERVAL_MS]`.

use std::process::ExitCode;
use std::time::Duration;

use berth_launcher::launcher::{self, LauncherConfig};

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let interval = if args.len() == 5 { args.pop() } else { None };
    let Ok([run, state, config, cgroup_parent]) = <[String; 4]>::try_from(args) else {
        eprintln!("usage: launcher RUN STATE ETC CGROUP_PARENT [PROOF_INTERVAL_MS]");
        return ExitCode::from(2);
    };
    let interval = interval.map_or(Ok(2000), |text| text.parse());
    let Ok(interval) = interval else {
        return ExitCode::from(2);
    };
    let config = LauncherConfig {
        run_dir: run.into(),
        state_dir: state.into(),
        config_dir: config.into(),
        preloaded_dir: "/nonexistent".into(),
        cgroup_parent,
        proof_interval: Duration::from_millis(interval),
        ..LauncherConfig::default()
    };
    match launcher::main(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("launcher: {e}");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}
