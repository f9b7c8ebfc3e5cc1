//! Routed rows between the router and the experts. Where other ranks keep some of the experts, rows travel there and results
//! come back; where all are here, they stay.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use scout_device::{Counts, Dealt, Result, Round, RowExchange, Tensor};
use scout_kernels::router::Routing;

use crate::pass::{KeptOfLayer, Pass};

/// Where the routed rows of one layer are computed, forward and back.
#[derive(Debug)]
pub enum Destination {
    /// On this rank, in the order of the routing.
    Here,
    /// On the ranks that keep their experts.
    Keepers(Arc<Dealt>),
}

/// Rows, sorted by expert, on their way to the experts. Those that set out first are asked for first.
pub enum SetOut<'a> {
    /// They stay, and are made anew whenever they are asked for.
    Here(Box<dyn Fn() -> Result<Tensor> + 'a>),
    UnderWay {
        exchange: &'a dyn RowExchange,
        round: Round,
        arrived: OnceCell<Tensor>,
    },
}

/// What `rows` makes, which `routing` has sorted, sets out. What is queued until it arrives computes meanwhile.
pub fn set_out<'a>(routing: &Routing, pass: &Pass<'a>, rows: impl Fn() -> Result<Tensor> + 'a) -> Result<SetOut<'a>> {
    let Some(exchange) = pass.exchange else { return Ok(SetOut::Here(Box::new(rows))) };
    let round = exchange.set_out(&rows()?, Counts::New(&routing.offsets_tensor()?))?;
    Ok(SetOut::UnderWay { exchange, round, arrived: OnceCell::new() })
}

/// Results on their way from the experts.
pub enum SentBack<'a> {
    Here(Tensor),
    UnderWay(&'a dyn RowExchange),
}

impl SentBack<'_> {
    /// Those of the rows that this rank had sent.
    pub fn come_back(self) -> Result<Tensor> {
        match self {
            SentBack::Here(results) => Ok(results),
            SentBack::UnderWay(exchange) => exchange.come_back(),
        }
    }
}

impl SetOut<'_> {
    /// What is to be computed here.
    pub fn arrive(&self) -> Result<Tensor> {
        match self {
            SetOut::Here(rows) => rows(),
            SetOut::UnderWay { exchange, round, arrived } => {
                if arrived.get().is_none() {
                    arrived.set(exchange.arrive(*round)?.0).expect("looked at above");
                }
                Ok(arrived.get().expect("set above").clone())
            }
        }
    }

    /// Takes what is under way, if it is, before what has set out behind it.
    pub fn take(&self) -> Result<()> {
        match self {
            SetOut::Here(_) => Ok(()),
            SetOut::UnderWay { .. } => self.arrive().map(drop),
        }
    }

    /// The same for the first time, and where rows of this layer are computed from now on.
    pub fn arrive_and_stay(self, routing: &Routing, pass: &Pass) -> Result<(Tensor, Destination)> {
        match self {
            SetOut::Here(rows) => Ok((rows()?, Destination::Here)),
            SetOut::UnderWay { exchange, round, .. } => {
                let (rows, dealt) = exchange.arrive(round)?;
                pass.count_arrivals(&dealt);
                routing.free_message()?; // rows came behind the counts of all ranks, so nobody waits
                Ok((rows, Destination::Keepers(dealt)))
            }
        }
    }
}

impl Destination {
    /// Rows `offsets[e]..offsets[e + 1]` of those that are computed here belong to the `e`-th expert that is here. The first
    /// call for a routing may wait, as [`Routing::offsets`] does.
    pub fn offsets<'a>(&'a self, routing: &'a Routing) -> Result<&'a [u32]> {
        match self {
            Destination::Here => Ok(routing.offsets()?),
            Destination::Keepers(dealt) => Ok(dealt.offsets()),
        }
    }

    /// Which experts of so many are here.
    pub fn experts(&self, num_experts: usize) -> Range<usize> {
        match self {
            Destination::Here => 0..num_experts,
            Destination::Keepers(dealt) => dealt.own_experts(),
        }
    }

    /// Whether what is made of the rows of a layer that is to be kept is kept.
    pub fn kept(&self, pass: &Pass) -> KeptOfLayer {
        match self {
            Destination::Here => KeptOfLayer::ALL,
            Destination::Keepers(dealt) => pass.kept_rows.keep(dealt),
        }
    }

    /// As [`set_out`], for rows of a routing whose rows have travelled before.
    pub fn set_out_again<'a>(&self, pass: &Pass<'a>, rows: impl Fn() -> Result<Tensor> + 'a) -> Result<SetOut<'a>> {
        let (Destination::Keepers(dealt), Some(exchange)) = (self, pass.exchange) else {
            return Ok(SetOut::Here(Box::new(rows)));
        };
        let round = exchange.set_out(&rows()?, Counts::Known(dealt))?;
        Ok(SetOut::UnderWay { exchange, round, arrived: OnceCell::new() })
    }

    /// Results of what was computed here set out for the ranks that had sent the rows. What is queued until they have come back
    /// computes meanwhile.
    pub fn send_back<'a>(&self, results: Tensor, pass: &Pass<'a>) -> Result<SentBack<'a>> {
        let (Destination::Keepers(dealt), Some(exchange)) = (self, pass.exchange) else {
            return Ok(SentBack::Here(results));
        };
        exchange.send_back(&results, dealt)?;
        Ok(SentBack::UnderWay(exchange))
    }
}
