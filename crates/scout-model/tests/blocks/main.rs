//! The blocks as one who does not know their code sees them: against candle's autograd, against themselves with less
//! memory, other company or no company at all. Recorded numbers of other programs are compared elsewhere.

#![forbid(unsafe_code)]

mod autograd;
mod documents;
mod dropout;
mod keep;
mod reference;
mod residual;
mod rig;
