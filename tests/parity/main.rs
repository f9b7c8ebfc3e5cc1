//! Whether this program computes what the recorded reference numbers say, and whether its own check of that would notice
//! if it did not.

mod damage;
mod mutations;
mod natural;
mod recorded;
mod reference;
mod symptoms;
