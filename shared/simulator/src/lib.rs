//! A simulated cloud and cluster for rolling updates.
mod arena;
mod faults;
mod happening;
mod random;
mod world;
pub use arena::*;
pub use faults::Faults;
pub use happening::*;
pub use random::Random;
pub use world::*;
