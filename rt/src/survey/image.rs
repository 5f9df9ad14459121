//! What only another kernel mends: PREEMPT_RT and the size of a base page.

use super::{State, Survey};

impl Survey<'_> {
    pub(super) fn image(&mut self) {
        if let Some(wanted) = self.spec.realtime.kernel {
            let text = |on: bool| if on { "PREEMPT_RT" } else { "not PREEMPT_RT" };
            let actual = self.machine.realtime();
            let mut finding = self.finding("realtime-kernel", "/sys/kernel/realtime", text(wanted));
            finding.actual = Some(format!("{} ({})", text(actual), self.machine.release()));
            // Nobody is disturbed by a real-time kernel that was not asked for.
            if wanted && !actual {
                finding.state = State::Missing;
                finding.reason = Some(self.why("CONFIG_PREEMPT_RT"));
                let cost = crate::knob::find(finding.knob).map_or("", |knob| knob.cost);
                finding.mend = Some(format!(
                    "boot a kernel with CONFIG_PREEMPT_RT, such as linux-image-rt of Debian; else {cost}"
                ));
            }
            self.findings.push(finding);
        }
        if let Some(wanted) = self.spec.kernel.page_size {
            let mut finding =
                self.finding("page-size", "KernelPageSize in /proc/1/smaps", wanted.to_string());
            let smaps = self
                .machine
                .read("/proc/1/smaps")
                .or_else(|| self.machine.read("/proc/self/smaps"));
            let kib = smaps.as_deref().unwrap_or_default().lines().find_map(|line| {
                let number = line.strip_prefix("KernelPageSize:")?.trim().strip_suffix(" kB")?;
                number.trim().parse::<u64>().ok()
            });
            finding.actual = kib.map(|kib| format!("{kib}k"));
            match kib {
                Some(kib) if kib == wanted.kib() => {}
                Some(_) => {
                    finding.state = State::Missing;
                    finding.reason = Some("the size of a page is the kernel image's".into());
                    finding.mend = Some(format!("boot a kernel with pages of {wanted}"));
                }
                None => {
                    finding.state = State::Refused;
                    finding.reason = Some("smaps of process 1 cannot be read; are you root?".into());
                }
            }
            self.findings.push(finding);
        }
    }
}
