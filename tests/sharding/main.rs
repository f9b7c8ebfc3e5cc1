//! Whether sharding changes nothing: the same bits as with whole weights, the same losses on any number of ranks, memory
//! and reads as planned, and every recorded number on any number of ranks.

mod backends;
mod equality;
mod memory;
mod plan;
mod reads;
mod recorded;
mod rig;
