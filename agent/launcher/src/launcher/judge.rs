//! Is a request allowed, and what exactly is to be made? Everything that is looked up on the node is looked up
//! here: the image, the profile, mount sources; then [`crate::compose`] and the runtime's own checks.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use berth_images::Digest;
use berth_policies::OnDrift;
use berth_rt::cpu::CpuSet;
use berth_runtime::{Context, Plan};
use nix::poll::{PollFd, PollFlags, poll};

use super::Launcher;
use crate::check::{self, refuse};
use crate::compose::{Inputs, chain, compose};
use crate::policy::Policy;
use crate::wire::{LaunchRequest, Refusal};
use crate::{paths, relabel, secrets, uevent, users};

/// What an accepted request becomes.
pub(super) struct Judged {
    pub(super) plan: Plan,
    pub(super) program: Vec<String>,
    pub(super) policy: Arc<Policy>,
    pub(super) secrets: secrets::Ready,
    pub(super) relabel: Vec<(std::path::PathBuf, String)>,
    pub(super) on_drift: OnDrift,
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
        self.fresh(&request.id)?;
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
        let policy = self
            .policy
            .read()
            .map_err(|e| refusal("policy", e.to_string(), e.hint()))?;
        let profile = self.profiles.resolve(&request.profile);
        let profile = profile.map_err(|e| refusal("profile", chain(&e), e.hint()))?;
        policy.judge(request, profile)?;
        secrets::check(request, &policy, &self.paths)?;
        if profile.loud {
            eprintln!(
                "berth launcher: {} of {} gets profile {}",
                request.id, request.workload, profile.name
            );
        }
        let on_drift = profile.on_drift.max(request.on_drift);
        mark("profile");
        let storage = self.paths.storage(&request.id);
        let network = request
            .cni
            .as_ref()
            .map(|cni| crate::cni::prepare(&self.paths, &request.id, &crate::compose::host(request), cni));
        let network = network.transpose()?;
        let undo = |e: Refusal| {
            drop(crate::cni::detach(&self.paths, &request.id));
            secrets::detach(&self.paths.secrets(&request.id));
            if request.udev {
                uevent::forget(&self.paths, &request.id);
            }
            e
        };
        // Where a partition must be the child of one, those with cores of their own have a folder of their own.
        let chained = (!request.placement.shared)
            .then(|| berth_rt::partition::chained(&self.hierarchy, &self.config.cgroup_parent))
            .flatten();
        let cgroup_parent = chained.as_deref().unwrap_or(&self.config.cgroup_parent);
        let mut secrets = secrets::Ready::new(&request.secrets, &request.id, &self.paths).map_err(undo)?;
        let udev = request
            .udev
            .then(|| uevent::folders(&self.paths, &request.id))
            .transpose()
            .map_err(|e| undo(refusal("udev", e.to_string(), None)))?;
        let composed = compose(&Inputs {
            request,
            image: &image.config,
            layers: &image.layers,
            user: &user,
            profile,
            cgroup_parent,
            storage: &storage,
            sources: &sources,
            network: network.as_ref(),
            secrets: secrets.folders(),
            udev: udev.as_ref(),
            oom_score_adj: self.oom_score_adj,
        });
        let mut composed = composed.map_err(undo)?;
        mark("compose");
        self.labels.apply(&request.id, &mut composed.spec).map_err(undo)?;
        if let Err(refused) = self.ranges.apply(&request.id, &mut composed.spec) {
            self.labels.free(&request.id);
            return Err(undo(refused));
        }
        if !request.secrets.is_empty() {
            // With the container's maps and its label, which are known by now.
            secrets.place = secrets::Place::of(&composed.spec);
        }
        let labelled = composed
            .spec
            .linux()
            .as_ref()
            .and_then(|l| l.mount_label().clone());
        let relabel = relabel::wanted(&request.mounts, labelled.as_deref()).map_err(|refused| {
            self.labels.free(&request.id);
            self.ranges.free(&request.id);
            undo(refused)
        })?;
        if let (Some((folder, _)), Some(label)) = (&udev, labelled)
            && let Err(e) = uevent::label(folder, &label)
        {
            self.labels.free(&request.id);
            self.ranges.free(&request.id);
            return Err(undo(refusal("udev", format!("label {label}: {e}"), None)));
        }
        mark("labels");
        let containers = self.paths.run.join("containers");
        let context = Context {
            state_root: &containers,
            hierarchy: &self.hierarchy,
            cgroup_parent,
            detached: false,
        };
        let bundle = self.paths.container(&request.id);
        let writable = [&composed.extensions.upper, &composed.extensions.work];
        let made: std::io::Result<()> = writable
            .into_iter()
            .flatten()
            .try_for_each(|f| paths::make_dir(f, 0o755));
        let plan = made
            .map_err(|e| refusal("storage", e.to_string(), None))
            .and_then(|()| {
                Plan::prepare(
                    &request.id,
                    &bundle,
                    &composed.spec,
                    &composed.extensions,
                    &context,
                )
                .map_err(|e| refusal("plan", chain(&e), e.hint()))
            });
        if plan.is_err() {
            drop(paths::remove_tree(&storage));
            self.labels.free(&request.id);
            self.ranges.free(&request.id);
            drop(crate::cni::detach(&self.paths, &request.id));
            secrets.detach();
            if request.udev {
                uevent::forget(&self.paths, &request.id);
            }
        }
        mark("plan");
        Ok(Judged {
            plan: plan?,
            program: composed.program,
            policy,
            secrets,
            relabel,
            on_drift,
            timing,
        })
    }

    /// Nothing that an earlier container of that id wrote is used again.
    fn fresh(&mut self, id: &str) -> Result<(), Refusal> {
        match self.paths.set_aside(id) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.clean();
                Ok(())
            }
            Err(e) => {
                let hint = format!("what an earlier {id} wrote cannot be taken away: remove it by hand");
                Err(refusal("storage", e.to_string(), Some(hint)))
            }
        }
    }

    /// Nobody else may have the id: no monitor lives under it, and nothing a dead one left.
    fn free_id(&mut self, id: &str) -> Result<(), Refusal> {
        let hint = Some("release it first; of a dead monitor: sweep it".to_owned());
        let used = |what: String| {
            Err(refusal(
                "request",
                format!("id {id} is in use: {what}"),
                hint.clone(),
            ))
        };
        if let Some(n) = self.watched.iter().position(|w| w.id == id) {
            // One that was released takes its socket away, says its last word and ends: that is a moment. One that
            // was just forked has no socket yet either, and stays.
            let leaves = !self.paths.monitors().join(format!("{id}.sock")).exists();
            let mut fds = [PollFd::new(self.watched[n].pidfd.as_fd(), PollFlags::POLLIN)];
            if !leaves || poll(&mut fds, 200u16) != Ok(1) {
                return used("its monitor lives".into());
            }
            self.watched.swap_remove(n);
        }
        if self.monitor_lives(id) {
            return used("its monitor lives".into());
        }
        let folder = self.paths.container(id);
        if folder.exists() {
            used(folder.display().to_string())
        } else {
            Ok(())
        }
    }

    /// The mounts' sources, none of them a path no container may see, and none reached through a symbolic link: who
    /// may write where the link lies (another container, for one) decides what it leads to.
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
            if source != mount.source {
                return Err(refusal(
                    "request",
                    format!("mount source {shown} is reached through a symbolic link"),
                    Some(format!("name {} itself", source.display())),
                ));
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
