//! Is a request allowed, and what exactly is to be made? Everything that is looked up on the node is looked up
//! here: the image, the profile, mount sources; then [`crate::compose`] and the runtime's own checks.

use std::path::{Path, PathBuf};
use std::time::Instant;

use berth_images::Digest;
use berth_rt::cpu::CpuSet;
use berth_runtime::{Context, Plan};

use super::Launcher;
use crate::check::{self, refuse};
use crate::compose::{Inputs, chain, compose};
use crate::users;
use crate::wire::{LaunchRequest, Refusal};

/// What an accepted request becomes.
pub(super) struct Judged {
    pub(super) plan: Plan,
    pub(super) program: Vec<String>,
    pub(super) writable: bool,
    pub(super) timing: Vec<(String, u64)>,
}

fn refusal(stage: &str, message: String, hint: Option<String>) -> Refusal {
    Refusal {
        stage: stage.into(),
        message,
        hint,
    }
}

impl Launcher {
    pub(super) fn judge(&mut self, request: &LaunchRequest, mut begun: Instant) -> Result<Judged, Refusal> {
        let mut timing = Vec::with_capacity(16);
        let mut mark = |step: &str| {
            let now = Instant::now();
            let micros = u64::try_from((now - begun).as_micros()).unwrap_or(u64::MAX);
            timing.push((step.to_owned(), micros));
            begun = now;
        };
        check::check(request, &online()?)?;
        self.free_id(&request.id)?;
        mark("check");
        let digest: Digest = request.image.parse().map_err(|e| refuse(format!("image: {e}")))?;
        let image = self
            .store()?
            .image(&digest)
            .map_err(|e| refusal("image", chain(&e), e.hint()))?;
        let named = image
            .config
            .config()
            .as_ref()
            .and_then(|c| c.user().clone())
            .unwrap_or_default();
        let user = users::of_image(&named, &image.layers).map_err(|e| refusal("image", e, None))?;
        mark("image");
        let sources = self.sources(request)?;
        let profile = self.profiles.resolve(&request.profile);
        let profile = profile.map_err(|e| refusal("profile", chain(&e), e.hint()))?;
        if profile.loud {
            eprintln!(
                "berth launcher: {} of {} gets profile {}",
                request.id, request.workload, profile.name
            );
        }
        mark("profile");
        let storage = self.paths.storage(&request.id);
        let composed = compose(&Inputs {
            request,
            image: &image.config,
            layers: &image.layers,
            user: &user,
            profile,
            cgroup_parent: &self.config.cgroup_parent,
            storage: &storage,
            sources: &sources,
            oom_score_adj: self.oom_score_adj,
        })?;
        mark("compose");
        let containers = self.paths.run.join("containers");
        let context = Context {
            state_root: &containers,
            hierarchy: &self.hierarchy,
            cgroup_parent: &self.config.cgroup_parent,
            detached: false,
        };
        let bundle = self.paths.container(&request.id);
        let plan = Plan::prepare(
            &request.id,
            &bundle,
            &composed.spec,
            &composed.extensions,
            &context,
        )
        .map_err(|e| refusal("plan", chain(&e), e.hint()))?;
        mark("plan");
        Ok(Judged {
            plan,
            program: composed.program,
            writable: composed.extensions.upper.is_some(),
            timing,
        })
    }

    /// Nobody else may have the id: no monitor lives under it, and nothing a dead one left.
    fn free_id(&self, id: &str) -> Result<(), Refusal> {
        let hint = Some("release it first; of a dead monitor: sweep it".to_owned());
        if self.watched.iter().any(|w| w.id == id) || self.monitor_lives(id) {
            return Err(refusal(
                "request",
                format!("id {id} is in use: its monitor lives"),
                hint,
            ));
        }
        if self.paths.container(id).exists() {
            return Err(refusal(
                "request",
                format!("id {id} is in use: {}", self.paths.container(id).display()),
                hint,
            ));
        }
        Ok(())
    }

    /// The mounts' sources with every link followed, none of them a path no container may see.
    fn sources(&self, request: &LaunchRequest) -> Result<Vec<PathBuf>, Refusal> {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = [
            real(&self.paths.run),
            real(&self.paths.state),
            real(&self.paths.config),
        ];
        let own: Vec<&Path> = own.iter().map(PathBuf::as_path).collect();
        let mut sources = Vec::with_capacity(request.mounts.len());
        for mount in &request.mounts {
            let shown = mount.source.display();
            let source = std::fs::canonicalize(&mount.source)
                .map_err(|e| refusal("request", format!("mount source {shown}: {e}"), None))?;
            if let Some(reason) = check::forbidden_source(&source, &own) {
                return Err(refuse(format!(
                    "mount source {shown} ({}): {reason}",
                    source.display()
                )));
            }
            sources.push(source);
        }
        Ok(sources)
    }
}

fn online() -> Result<CpuSet, Refusal> {
    let path = "/sys/devices/system/cpu/online";
    let text = std::fs::read_to_string(path).map_err(|e| refuse(format!("{path}: {e}")))?;
    text.trim().parse().map_err(|e| refuse(format!("{path}: {e}")))
}
