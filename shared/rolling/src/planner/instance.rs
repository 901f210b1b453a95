//! One instance: cordoned, excluded, deregistered, drained, terminated (kOps 1.36
//! `pkg/instancegroups/instancegroups.go`, `drainTerminateAndWait`).

use jiff::{SignedDuration, Timestamp};

use super::turn::{Called, Site, Turn};
use super::wait::WaitReason;
use super::{MOMENT, later};
use crate::command::Action;
use crate::event::What;
use crate::spec::{Manager, Role};
use crate::state::{Call, Drain, GroupError, InstancePhase, InstanceRoll, Preparation};

/// How often to look whether the control plane is strong again.
const POLL: SignedDuration = SignedDuration::from_secs(5);
/// How long the cloud may list an instance as if nobody had terminated it.
const SHOWN: SignedDuration = SignedDuration::from_secs(30);

impl InstanceRoll {
    /// Whether something of it is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.phase.is_in_flight() || matches!(self.phase, InstancePhase::Detaching { .. })
    }
}

impl Turn<'_> {
    /// The instance's turn has come. What is no node is terminated as it is, as kOps does.
    pub(super) fn begin_instance(&mut self, site: &Site, instance: &mut InstanceRoll) -> Result<(), GroupError> {
        instance.started = Some(self.now);
        self.condemned.insert(instance.id.clone());
        if self.options.cloudonly || site.role == Role::Bastion {
            self.terminate(site, instance);
            return Ok(());
        }
        let Some(node) = self.view.node_of(&instance.id) else {
            self.tell_of(&site.name, Some(instance), What::DrainIgnored { error: "it has not joined the cluster as a node".to_owned() });
            self.terminate(site, instance);
            return Ok(());
        };
        instance.node = Some(node.name.clone());
        instance.phase = InstancePhase::Preparing { step: Preparation::Cordon, call: Call::new(self.now) };
        self.instance(site, instance)
    }

    /// Decides on the instance's termination.
    pub(super) fn terminate(&mut self, site: &Site, instance: &mut InstanceRoll) {
        // One of before its turn was taken back counts, too.
        let attempts = 1 + u32::from(instance.condemned.is_some());
        instance.phase = InstancePhase::Terminating { attempts, not_before: self.now };
        instance.condemned = Some(self.now);
        self.condemned.insert(instance.id.clone());
        self.command(&site.name, Some(instance), Action::Terminate { instance: instance.id.clone() });
    }

    /// Carries on what is in progress with the instance, as far as it goes now.
    pub(super) fn instance(&mut self, site: &Site, instance: &mut InstanceRoll) -> Result<(), GroupError> {
        if self.aborting && instance.phase.is_draining() {
            // It is given back together with the rest of its group.
            instance.phase = InstancePhase::Waiting;
            self.withdraw_questions_about(&instance.id);
            return Ok(());
        }
        match instance.phase.clone() {
            InstancePhase::Preparing { step, call } => return self.prepare(site, instance, step, call),
            InstancePhase::Draining(drain) => return self.drain(site, instance, drain),
            InstancePhase::Settling { since } => return self.settle(site, instance, since),
            // An abort takes back what can be seen not to have happened.
            InstancePhase::Terminating { .. } if self.aborting && self.is_still_there(&instance.id) => match self.shows(instance) {
                None => instance.phase = InstancePhase::Waiting,
                Some(at) => self.wait(at, WaitReason::News { group: site.name.clone() }),
            },
            InstancePhase::Terminating { attempts, not_before } if not_before <= self.now => {
                instance.phase = InstancePhase::Terminating { attempts: attempts.saturating_add(1), not_before: self.now };
                instance.condemned = Some(self.now);
                self.command(&site.name, Some(instance), Action::Terminate { instance: instance.id.clone() });
            }
            InstancePhase::Terminating { not_before, .. } => {
                let call = "terminate".to_owned();
                self.wait(not_before, WaitReason::Retry { group: site.name.clone(), instance: instance.id.clone(), call });
            }
            InstancePhase::Terminated if self.aborting => instance.phase = InstancePhase::Done,
            InstancePhase::Terminated => {
                let reason = WaitReason::Interval { group: site.name.clone(), instance: instance.id.clone() };
                self.wait(later(instance.terminated.unwrap_or(self.now), self.options.interval(site.role)), reason);
            }
            InstancePhase::Returning { why, call } => self.return_instance(site, instance, why, call),
            InstancePhase::Waiting
            | InstancePhase::Detaching { .. }
            | InstancePhase::Done
            | InstancePhase::Vanished
            | InstancePhase::Skipped { .. }
            | InstancePhase::Failed { .. } => {}
        }
        Ok(())
    }

    /// When the cloud's lists will show what became of the instance's termination; `None` if they show it now, or if none was
    /// asked for. Where an answer was lost they may list it for a while though it is terminated.
    pub(super) fn shows(&self, instance: &InstanceRoll) -> Option<Timestamp> {
        let at = later(instance.condemned?, SHOWN);
        (at > self.now || !self.fresh).then(|| at.max(later(self.now, MOMENT)))
    }

    /// Terminates a drained instance after a pause, unless its group or the control plane has lost others meanwhile.
    fn settle(&mut self, site: &Site, instance: &mut InstanceRoll, since: Timestamp) -> Result<(), GroupError> {
        let end = later(since, self.options.post_drain_delay);
        if self.now < end {
            self.wait(end, WaitReason::PostDrainDelay { group: site.name.clone(), instance: instance.id.clone() });
            return Ok(());
        }
        let weakness = match site.role {
            Role::ControlPlane => self.weakness(&instance.id),
            _ if self.options.wait_for_replacement && !instance.is_detached() => self.scarcity(site, &instance.id),
            _ => None,
        };
        let Some(weakness) = weakness else {
            self.terminate(site, instance);
            return Ok(());
        };
        let deadline = later(end, self.options.validation_timeout);
        if self.now >= deadline {
            let message = format!("{} is drained, but was not terminated: {weakness}", instance.id);
            return Err(self.give_up(instance, message, true));
        }
        let failures = vec![weakness];
        self.wait(later(self.now, POLL).min(deadline), WaitReason::Validation { group: site.name.clone(), failures, deadline });
        Ok(())
    }

    /// Cordons, excludes and deregisters, each as far as it is not so already, and begins the drain then.
    fn prepare(&mut self, site: &Site, instance: &mut InstanceRoll, step: Preparation, call: Call) -> Result<(), GroupError> {
        let (mut step, mut call) = (step, call);
        loop {
            match self.preparation(site, instance, step, &mut call) {
                Called::Busy => {
                    instance.phase = InstancePhase::Preparing { step, call };
                    return Ok(());
                }
                Called::Refused(error) => self.not_prepared(site, instance, step, &error)?,
                Called::Done => {}
            }
            if step == Preparation::Cordon {
                instance.cordoned = Some(self.now);
            }
            step = match step {
                Preparation::Cordon => Preparation::Exclude,
                Preparation::Exclude => Preparation::Deregister,
                Preparation::Deregister => {
                    let now = self.now;
                    let drain = Drain { began: now, since: now, not_before: now, asked: 0, forced: None, remaining: 0, blocker: None };
                    instance.phase = InstancePhase::Draining(drain.clone());
                    return self.drain(site, instance, drain);
                }
            };
            call = Call::new(self.now);
        }
    }

    /// One preparation; done too if there is nothing to do.
    fn preparation(&mut self, site: &Site, instance: &mut InstanceRoll, step: Preparation, call: &mut Call) -> Called {
        let Some(name) = instance.node.clone() else { return Called::Done };
        let seen = self.view.node(&name);
        if seen.is_none() && self.facts.is_ok() && call.attempts == 0 && step != Preparation::Deregister {
            // The node went away; as in kOps, what remains is to terminate the instance.
            return Called::Done;
        }
        // What is so already is so by somebody else, unless the roll has decided on it before.
        let new = call.attempts == 0;
        let (is_so, held, action) = match step {
            Preparation::Cordon => {
                (seen.is_some_and(|node| node.unschedulable), &mut instance.held.cordoned, Action::Cordon { node: name })
            }
            Preparation::Exclude => (
                seen.is_some_and(|node| node.excluded_from_load_balancers),
                &mut instance.held.excluded,
                Action::ExcludeFromLoadBalancers { node: name },
            ),
            Preparation::Deregister if !self.deregisters(site) => return Called::Done,
            Preparation::Deregister => {
                let action = Action::Deregister { auto_scaling_group: site.auto_scaling_group.clone(), instance: instance.id.clone() };
                (false, &mut instance.held.deregistered, action)
            }
        };
        if is_so && (new || self.fresh) {
            return Called::Done;
        }
        *held = true;
        self.call(site, Some(&instance.clone()), call, &action)
    }

    /// Whether instances of the group are taken out of load balancers: not if the API would lose its last one (kOps 1.36
    /// `cmd/kops/rolling-update_cluster.go`), and Karpenter's instances are in none.
    fn deregisters(&self, site: &Site) -> bool {
        if site.manager == Manager::Karpenter {
            return false;
        }
        let serves_api = |role| matches!(role, Role::ControlPlane | Role::ApiServer);
        let api_servers = self.inventory.cluster.groups.iter().filter(|group| serves_api(group.role));
        !serves_api(site.role) || api_servers.map(|group| group.min_size).sum::<u32>() > 1
    }

    /// A preparation failed: as kOps, the group stops, or the instance goes on to its end. Kopsline still drains it.
    fn not_prepared(&mut self, site: &Site, instance: &mut InstanceRoll, step: Preparation, error: &str) -> Result<(), GroupError> {
        let what = match step {
            Preparation::Cordon => "could not be cordoned",
            Preparation::Exclude => "could not be excluded from load balancers",
            Preparation::Deregister => "could not be taken out of its load balancers",
        };
        let (name, node) = (&instance.id, instance.node.as_deref().unwrap_or_default());
        let message = format!("{name} (node {node}) {what}: {error}");
        self.drain_error(site, instance, message, step == Preparation::Deregister)
    }

    /// An error of the drain, which stops the group unless `fail_on_drain_error` is off.
    pub(super) fn drain_error(
        &mut self,
        site: &Site,
        instance: &mut InstanceRoll,
        message: String,
        stops_roll: bool,
    ) -> Result<(), GroupError> {
        if self.options.fail_on_drain_error {
            return Err(self.give_up(instance, message, stops_roll));
        }
        self.tell_of(&site.name, Some(instance), What::DrainIgnored { error: message });
        Ok(())
    }

    /// The instance is left where it is, and its group stops.
    pub(super) fn give_up(&mut self, instance: &mut InstanceRoll, message: String, stops_roll: bool) -> GroupError {
        instance.phase = InstancePhase::Failed { error: message.clone() };
        self.withdraw_questions_about(&instance.id);
        GroupError { message, stops_roll }
    }
}
