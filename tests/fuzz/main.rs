//! A mutation fuzzer of small size: OCI configurations, mount options, image archives. Runs on stable Rust (cargo-fuzz and
//! its coverage need nightly), in the process, from seeds of its own and a dictionary of the words that matter.
//!
//! What is held: nothing panics, nothing takes long, an answer is an answer or a refusal with words; a plan changes
//! nothing on the disk; an image writes nothing beside its store. `PROPTEST_RNG_SEED` picks the cases, `BERTH_ROUNDS` multiplies
//! them.

mod images;
mod oci;
mod random;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};

use random::Random;

/// One input must be answered within this.
const LONGEST: Duration = Duration::from_secs(10);

/// Try so many cases; the number of the one that fails is told with the seed.
fn fuzz(
    name: &'static str,
    cases: usize,
    mut one: impl FnMut(&mut Random) -> Result<bool> + Send + 'static,
) -> Trial {
    let rounds: usize = std::env::var("BERTH_ROUNDS")
        .ok()
        .and_then(|r| r.parse().ok())
        .unwrap_or(1);
    Trial::test(format!("fuzz::{name}"), move || {
        let seed = random::seed();
        // Of both kinds there must be some, or the fuzzer only knocks at the door.
        let mut answers = [0, 0];
        for case in 0..cases * rounds {
            let mut random = Random::new(seed, case);
            let begun = Instant::now();
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(&mut random)));
            let slow = begun.elapsed();
            let told = match done {
                Ok(Ok(taken)) => {
                    answers[usize::from(taken)] += 1;
                    ensure_fast(slow)
                }
                Ok(Err(e)) => Err(e),
                Err(_) => Err(anyhow::anyhow!("it panics")),
            };
            told.map_err(|e| Failed::from(format!("PROPTEST_RNG_SEED={seed}, case {case}: {e:#}")))?;
        }
        match answers {
            [0, _] | [_, 0] => Err(Failed::from(format!(
                "{} refused, {} taken",
                answers[0], answers[1]
            ))),
            _ => Ok(()),
        }
    })
}

fn ensure_fast(took: Duration) -> Result<()> {
    ensure!(took < LONGEST, "it takes {took:?}");
    Ok(())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = vec![
        fuzz("OCI configuration", 3000, oci::configuration()),
        fuzz("bytes for config.json", 3000, oci::bytes()),
        fuzz("mount options", 3000, oci::mount_options()),
        fuzz("paths of image layers", 60, images::paths()),
        fuzz("bytes of image archives", 60, images::bytes()),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}
