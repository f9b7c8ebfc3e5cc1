//! Real jobs of several processes: every way of starting one gives the same losses, and whatever ends one rank ends all
//! of them, in time and with the reason. What is inside a meeting or a collective is tested beside those.

#![forbid(unsafe_code)]

mod attack;
mod chaos;
mod dice;
mod elastic;
mod faults;
mod hangs;
mod meeting;
mod orphans;
mod processes;
mod sentence;
mod slurm;
mod started;
mod starters;
mod toy;
