//! How far a roll says it is, at every moment of it.

use jiff::SignedDuration;

use super::world::*;
use crate::forecast::History;
use crate::spec::Role;
use crate::state::{Outcome, RollState};

#[test]
fn what_is_under_way_is_named_and_what_is_left_comes_to_nothing() {
    let mut world = World::single(as_kops(), "nodes", Role::Node, 4, 4);
    world.start();
    let progress = |state: &RollState| state.progress(&History::default());
    let before = progress(world.state.as_ref().unwrap());
    assert_eq!((before.summary.waiting, before.groups[0].instances.len()), (4, 0), "nothing is under way");
    let (mut left, mut named) = (before.remaining.unwrap(), 0);
    assert!(left > SignedDuration::ZERO);
    while world.step().is_none() {
        let now = progress(world.state.as_ref().unwrap());
        let remaining = now.remaining.unwrap();
        named = named.max(now.groups[0].instances.len());
        assert!(now.groups[0].instances.len() <= now.groups[0].at_once.max(1) + 1, "{now:?}");
        if now.summary.finished == 3 {
            left = left.min(remaining);
        }
    }
    assert!(named > 0 && left < before.remaining.unwrap(), "{named} {left}");
    let end = progress(world.state.as_ref().unwrap());
    assert_eq!((end.remaining, end.groups[0].state.as_str(), end.summary.finished), (None, "done", 4));
    assert!(matches!(end.outcome, Outcome::Done { .. }) && end.groups[0].instances.is_empty(), "{end:?}");
}
