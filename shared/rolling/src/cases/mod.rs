//! The rows of kOps' own test suite (1.36 `pkg/instancegroups`), what the suite leaves open, and what Kopsline adds.

mod cloudonly;
mod control;
mod drains;
mod durability;
mod gaps;
mod progress;
mod rows;
mod world;
