//! The surge: instances are detached, so that their group launches others before they go (kOps 1.36
//! `pkg/instancegroups/instancegroups.go`, `detachInstance`).

use super::later;
use super::turn::{Called, Site, Turn};
use crate::command::Action;
use crate::inventory::Status;
use crate::state::{Call, Gate, GateAfter, GroupRoll, InstancePhase, InstanceRoll, Origin};

impl Turn<'_> {
    /// Fills the group's slots from the end of its list. An instance that is detached already takes a slot; one that cannot
    /// be detached does not, so the next one is tried. Says whether the surge is over.
    ///
    /// Where no instance was up to date, one is detached alone, and proves the configuration when the cluster validates.
    /// In kOps a detachment that fails counts as a proof too; here it does not.
    pub(super) fn surge(&mut self, site: &Site, group: &mut GroupRoll) -> bool {
        if group.instances.iter().any(|instance| matches!(instance.phase, InstancePhase::Detaching { .. })) {
            return false;
        }
        let mut free = group.surge;
        let mut candidates = Vec::new();
        for (index, instance) in group.instances.iter().enumerate().rev() {
            if free == 0 {
                break;
            }
            let can_be_detached = instance.phase == InstancePhase::Waiting && !instance.not_detached;
            if instance.is_detached() {
                free -= 1;
            } else if can_be_detached && instance.origin != Origin::WarmPool {
                free -= 1;
                candidates.push(index);
            }
        }
        let alone = group.first_alone && !group.proven;
        let detached = group.instances.iter().any(|instance| instance.detached.is_some());
        if group.unvalidated && (candidates.is_empty() || (alone && detached)) {
            group.unvalidated = false;
            let at = later(self.now, self.options.interval(site.role));
            group.gate = Some(Gate { since: at, not_before: Some(at), ..self.new_gate(GateAfter::Detaching) });
            return matches!(self.gate(group), Ok(true)) && self.surge(site, group);
        }
        if candidates.is_empty() {
            return true;
        }
        if self.held_back() {
            return false;
        }
        if self.unwell(group) {
            group.gate = Some(self.gate_again(true));
            return matches!(self.gate(group), Ok(true)) && self.surge(site, group);
        }
        candidates.truncate(if alone { 1 } else { usize::MAX });
        for index in candidates {
            if let Some(instance) = group.instances.get_mut(index) {
                self.detach(site, instance, false, Call::new(self.now));
            }
        }
        false
    }

    /// Tags an instance and detaches it then, so that nobody loses it in between.
    pub(super) fn detach(&mut self, site: &Site, instance: &mut InstanceRoll, marked: bool, call: Call) {
        let (mut marked, mut call) = (marked, call);
        loop {
            let (auto_scaling_group, id) = (site.auto_scaling_group.clone(), instance.id.clone());
            let is_so = marked && self.fresh && self.view.instance(&id).is_some_and(|seen| seen.status == Status::Detached);
            let action = if marked {
                Action::Detach { auto_scaling_group, instance: id }
            } else {
                Action::MarkDetached { auto_scaling_group, instance: id }
            };
            let called = if is_so { Called::Done } else { self.call(site, Some(&instance.clone()), &mut call, &action) };
            match called {
                Called::Busy => {
                    instance.phase = InstancePhase::Detaching { marked, call };
                    return;
                }
                Called::Refused(_) => {
                    (instance.phase, instance.not_detached) = (InstancePhase::Waiting, true);
                    return;
                }
                Called::Done if marked => {
                    (instance.phase, instance.detached) = (InstancePhase::Waiting, Some(self.now));
                    self.condemned.insert(instance.id.clone());
                    return;
                }
                Called::Done => (marked, call) = (true, Call::new(self.now)),
            }
        }
    }
}
