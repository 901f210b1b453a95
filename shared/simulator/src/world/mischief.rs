//! What goes wrong by itself.

use jiff::SignedDuration;
use kopsline_rolling::{Manager, Role};

use super::{Event, World};
use crate::arena::InstanceId;
use crate::happening::What;

impl World {
    /// Whether faults still strike.
    pub fn faulty(&self) -> bool {
        self.now < self.faults_end
    }

    pub(super) fn mischief(&mut self) {
        if !self.faulty() {
            return;
        }
        let faults = self.faults;
        if self.strikes(faults.death)
            && let Some(victim) = self.victim()
        {
            self.tell(|world| What::Died { instance: world.instances[victim].id.clone(), group: world.group_name(victim) });
            self.die(victim, true);
        }
        if self.strikes(faults.vanish)
            && let Some(victim) = self.victim()
        {
            self.tell(|world| What::Died { instance: world.instances[victim].id.clone(), group: world.group_name(victim) });
            self.die(victim, false);
        }
        if self.strikes(faults.sickness) && self.kubernetes {
            self.sicken();
        }
        if self.strikes(faults.growth) {
            self.grow();
        }
        if self.strikes(faults.outage) && self.kubernetes && self.outage_until.is_none() {
            let length = SignedDuration::from_secs(i64::from(self.random.between(20, 240)));
            self.outage_until = Some(self.now.after(length));
            self.later(length, Event::OutageOver);
            self.tell(|_| What::ApiDown);
        }
        if self.strikes(faults.expiry) && self.kubernetes {
            self.certificate_valid = false;
            self.tell(|_| What::CertificateExpired);
        }
        self.later(SignedDuration::from_secs(30), Event::Mischief);
    }

    pub(super) fn outage_over(&mut self) {
        self.outage_until = None;
        self.schedulable = true;
        self.tell(|_| What::ApiUp);
    }

    /// An instance that may die: the loss of another control-plane instance must not cost the quorum, since then nothing
    /// could be said about what a roll may do.
    fn victim(&mut self) -> Option<InstanceId> {
        let (up, all) = self.members();
        let spare = up > all / 2 + 1;
        let may_die: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.alive() && (spare || self.groups[instance.group].spec.role != Role::ControlPlane))
            .map(|(id, _)| id)
            .collect();
        self.random.pick(&may_die).copied()
    }

    fn sicken(&mut self) {
        let well: Vec<_> = self.live_nodes().filter(|(_, node)| node.ready).map(|(id, _)| id).collect();
        let Some(&node) = self.random.pick(&well) else { return };
        let length = SignedDuration::from_secs(i64::from(self.random.between(30, 300)));
        self.nodes[node].sick_until = Some(self.now.after(length));
        self.node_lost(node);
        self.later(length, Event::Recover(node));
    }

    fn grow(&mut self) {
        let may_grow: Vec<_> = self
            .groups
            .iter()
            .filter(|(_, group)| group.spec.role == Role::Node && group.spec.manager == Manager::CloudGroup)
            .map(|(id, _)| id)
            .collect();
        if let Some(&group) = self.random.pick(&may_grow) {
            self.groups[group].desired += 1;
            self.changed();
            self.tell(|world| What::Grew { group: world.groups[group].spec.name.clone() });
            self.launch(group);
        }
    }
}
