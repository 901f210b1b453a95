//! EC2 and Auto Scaling: what a rolling update observes and does.
