//! What goes wrong.

/// How often things go wrong: once in so many chances, 0 for never. The default is a quiet world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// A call fails before it has any effect, in a way that may pass.
    pub refused: u32,
    /// A call has its effect, yet its answer is lost.
    pub answer_lost: u32,
    /// A call is throttled, and so are those of the next ten seconds.
    pub throttled: u32,
    /// The host is killed before or after an effect: a checkpoint stored, a command executed.
    pub kill: u32,
    /// A second host begins a step while the first is in one.
    pub duplicate: u32,
    /// Within half a minute an instance dies by itself; its group lists it for a while.
    pub death: u32,
    /// Within half a minute an instance is gone from every list at once.
    pub vanish: u32,
    /// Within half a minute a node stops being ready, and recovers after some minutes.
    pub sickness: u32,
    /// Within half a minute a group of nodes grows by one instance.
    pub growth: u32,
    /// Within half a minute the Kubernetes API goes away for some minutes.
    pub outage: u32,
    /// Within half a minute the host's client certificate expires; another process gets another one.
    pub expiry: u32,
    /// A replacement never joins the cluster.
    pub never_joins: u32,
    /// An observation shows the cloud as it was at the last one, unless it has changed long ago.
    pub stale: u32,
    /// The cloud or the API cannot be observed this time.
    pub blind: u32,
}

impl Faults {
    /// A bad day, such as a rehearsal shows: calls fail now and then, the host is killed and doubled, instances die, nodes
    /// fall sick, the API goes away, and what is seen may be old.
    pub fn of_a_bad_day() -> Self {
        Self {
            refused: 25,
            answer_lost: 40,
            throttled: 60,
            kill: 40,
            duplicate: 60,
            death: 40,
            vanish: 120,
            sickness: 30,
            growth: 120,
            outage: 60,
            expiry: 120,
            never_joins: 0,
            stale: 12,
            blind: 40,
        }
    }

    /// Faults that strike as time passes, not as calls are made.
    pub(crate) fn strike_by_time(&self) -> bool {
        [self.death, self.vanish, self.sickness, self.growth, self.outage, self.expiry].iter().any(|times| *times > 0)
    }

    /// Whether anything beyond the host's calls changes the cloud: then the end of a roll depends on its pace.
    pub fn change_the_world(&self) -> bool {
        [self.death, self.vanish, self.sickness, self.growth, self.outage, self.never_joins].iter().any(|times| *times > 0)
    }
}
