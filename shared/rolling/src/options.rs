//! How to roll: the flags of `kops rolling-update cluster`, and what Kopsline adds to them.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::spec::{Role, Selection};

/// How to roll. Names and defaults are those of `kops rolling-update cluster` (kOps 1.36
/// `cmd/kops/rolling-update_cluster.go`) where kOps has the setting. Durations are ISO 8601 (`PT15S`) in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches of a command")]
pub struct RollOptions {
    /// Which groups.
    #[serde(flatten)]
    pub selection: Selection,
    /// Replace up-to-date instances too.
    pub force: bool,
    /// Work with the cloud alone: nothing is tainted, detached, drained or validated.
    pub cloudonly: bool,
    /// How long to wait after a bastion was terminated; kOps: 15 s.
    pub bastion_interval: SignedDuration,
    /// How long to wait after a control-plane instance was terminated; kOps: 15 s.
    pub control_plane_interval: SignedDuration,
    /// How long to wait after a node or API server was terminated; kOps: 15 s.
    pub node_interval: SignedDuration,
    /// Wait until a group has its target number of instances in service before it loses another one. kOps with
    /// `--cloudonly` only sleeps the interval; with validation it counts instances that the cloud does not call in service.
    /// Without this, two control-plane instances may be down at once under `cloudonly`.
    pub wait_for_replacement: bool,
    /// How long the cluster may take to validate, and a group to have its instances again, before the roll fails; kOps:
    /// 15 min. One look is always taken.
    pub validation_timeout: SignedDuration,
    /// How many validations in a row must pass after an instance was detached or terminated; kOps: 2. With 0 only the
    /// validation before a group remains.
    pub validate_count: u32,
    /// Whether a cluster that does not validate in time stops the roll; kOps: yes. The control plane's quorum is kept even
    /// without this.
    pub fail_on_validate_error: bool,
    /// Failures that were there when the roll began do not block it; new ones do. Never excused: a control-plane group that
    /// lacks instances, a control-plane node that is not ready, the API's name. kOps lets every failure block.
    pub validation_baseline: bool,
    /// How long to wait between the end of a drain and the termination; kOps: 5 s.
    pub post_drain_delay: SignedDuration,
    /// How long a drain may take; 0 for no limit. kOps: 15 min.
    pub drain_timeout: SignedDuration,
    /// Whether an instance that cannot be cordoned, deregistered or drained stops its group; kOps: yes. Without this it is
    /// terminated anyway.
    pub fail_on_drain_error: bool,
    /// What to do when a drain is stuck; unset, `fail_on_drain_error` decides between [`StuckDrain::Fail`] and
    /// [`StuckDrain::Force`], as in kOps.
    pub on_stuck_drain: Option<StuckDrain>,
    /// How long a question about a stuck drain stays open before `fail_on_drain_error` decides.
    pub drain_decision_timeout: SignedDuration,
    /// A drain is stuck at once, not after `drain_timeout`, when a budget that refuses a pod can never allow its eviction.
    pub detect_hopeless_budgets: bool,
    /// Suspend the process `AZRebalance`, which terminates instances by itself, while a group is rolled.
    pub suspend_rebalance: bool,
    /// Ask after each instance; one at a time. kOps prompts on its terminal.
    pub interactive: bool,
    /// Stop for approval, or for `pause_for`, once so much is replaced.
    pub pause_after: Option<PauseAfter>,
    /// How long the pause of `pause_after` is; unset, until somebody says to go on.
    pub pause_for: Option<SignedDuration>,
}

/// What to do when a drain is stuck: it took longer than `drain_timeout`, or a budget can never allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckDrain {
    /// The group stops; a control-plane group stops the roll. kOps with `--fail-on-drain-error`.
    Fail,
    /// Delete the remaining pods and terminate the instance. kOps without `--fail-on-drain-error` terminates it.
    Force,
    /// Leave the instance as it was and go on with the next one.
    Skip,
    /// Ask, for as long as `drain_decision_timeout`.
    Ask,
}

/// When a roll stops by itself for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseAfter {
    /// Once, when so many per cent of the instances are replaced.
    Percent(u8),
    /// After the first instance of each group that has more.
    FirstOfEachGroup,
}

impl Default for RollOptions {
    fn default() -> Self {
        let interval = SignedDuration::from_secs(15);
        Self {
            selection: Selection::default(),
            force: false,
            cloudonly: false,
            bastion_interval: interval,
            control_plane_interval: interval,
            node_interval: interval,
            wait_for_replacement: true,
            validation_timeout: SignedDuration::from_mins(15),
            validate_count: 2,
            fail_on_validate_error: true,
            validation_baseline: true,
            post_drain_delay: SignedDuration::from_secs(5),
            drain_timeout: SignedDuration::from_mins(15),
            fail_on_drain_error: true,
            on_stuck_drain: None,
            drain_decision_timeout: SignedDuration::from_hours(1),
            detect_hopeless_budgets: true,
            suspend_rebalance: true,
            interactive: false,
            pause_after: None,
            pause_for: None,
        }
    }
}

impl RollOptions {
    /// How long to wait after an instance of this role was terminated.
    pub fn interval(&self, role: Role) -> SignedDuration {
        match role {
            Role::Bastion => self.bastion_interval,
            Role::ControlPlane => self.control_plane_interval,
            Role::ApiServer | Role::Node => self.node_interval,
        }
    }

    /// What becomes of a stuck drain about which nobody is asked, or nobody answers.
    pub(crate) fn undecided_drain(&self) -> StuckDrain {
        if self.fail_on_drain_error { StuckDrain::Fail } else { StuckDrain::Force }
    }
}
