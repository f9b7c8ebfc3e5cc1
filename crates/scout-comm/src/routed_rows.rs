//! Routed rows on their way to the ranks that keep their experts, and results on their way back.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_core::DType;
use scout_device::{Buffer, Counts, Dealt, Device, DeviceError, Piece, Round, RowExchange, Tensor};

use crate::communicator::Communicator;
use crate::error::{CommError, Result};
use crate::gpu::{Ranks, RowsOnGpus, RowsSize};
use crate::job::Job;
use crate::words;

/// How the rows of a job travel. All of its ranks hold the same kind.
#[derive(Debug)]
pub enum RoutedRows {
    OnHost(RowsOnHost),
    OnGpus(Box<RowsOnGpus>),
}

impl RoutedRows {
    /// Every rank calls it with the same size; all fail where one does.
    pub fn connect(device: &Device, job: &Job, size: RowsSize) -> Result<RoutedRows> {
        Ok(match device {
            Device::Cpu => RoutedRows::OnHost(RowsOnHost::new(job.comm.clone())),
            Device::Cuda(device) => {
                RoutedRows::OnGpus(Box::new(RowsOnGpus::connect(Ranks { device, comm: &*job.comm }, size)?))
            }
        })
    }

    /// What blocks see of it.
    pub fn exchange(&self) -> &dyn RowExchange {
        match self {
            RoutedRows::OnHost(rows) => rows,
            RoutedRows::OnGpus(rows) => &**rows,
        }
    }

    /// How long arithmetic on a GPU has stood still for rows. Stops the host until it is past all exchanges. On the host waits
    /// are the communicator's.
    pub fn waited(&self) -> Result<Duration> {
        match self {
            RoutedRows::OnHost(_) => Ok(Duration::ZERO),
            RoutedRows::OnGpus(rows) => rows.waited(),
        }
    }

    /// The end of all exchanges; every rank calls it. Without it memory that others have mapped stays until the process ends.
    pub fn leave(self, comm: &dyn Communicator) -> Result<()> {
        match self {
            RoutedRows::OnHost(_) => Ok(()),
            RoutedRows::OnGpus(rows) => rows.leave(comm),
        }
    }
}

/// By collectives among ranks that compute on the host: every rank hears all rows and takes its own. Right, and not fast.
pub struct RowsOnHost {
    comm: Arc<dyn Communicator>,
    under_way: Mutex<UnderWay>,
    coming_back: Mutex<Option<(Tensor, Arc<Dealt>)>>,
}

#[derive(Default)]
struct UnderWay {
    /// Of the rows that set out last.
    round: Round,
    rows: VecDeque<(Round, Tensor, Arc<Dealt>)>,
}

impl fmt::Debug for RowsOnHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rows of {} ranks on the host", self.comm.mesh().size())
    }
}

impl RowsOnHost {
    pub fn new(comm: Arc<dyn Communicator>) -> RowsOnHost {
        RowsOnHost { comm, under_way: Mutex::default(), coming_back: Mutex::default() }
    }

    fn deal(&self, offsets: &Tensor) -> Result<Dealt> {
        let own: Vec<u8> = offsets.u32s()?.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let all = words::of_any_length(&*self.comm, own)?;
        let numbers = |bytes: Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(Dealt::new(self.comm.mesh().rank().0, all.into_iter().map(numbers).collect())?)
    }

    /// The rows of all ranks, each beginning at a multiple of the length that is also returned.
    fn hear(&self, rows: &Tensor, most_rows: usize) -> Result<(Buffer, usize)> {
        let (_, width) = rows.dims2(WHAT)?;
        let mut own = rows.to_f32_vec()?;
        own.resize(most_rows * width, 0.0);
        let all = Buffer::zeros(DType::F32, own.len() * self.comm.mesh().size())?;
        let len = own.len();
        Ok((self.comm.all_gather(&Buffer::from_f32(own), all)?.wait()?, len))
    }

    fn arrived(&self, sorted: &Tensor, dealt: &Dealt) -> Result<Tensor> {
        let (size, own) = (self.comm.mesh().size(), self.comm.mesh().rank().0);
        let most = (0..size).map(|rank| dealt.num_sent_by(rank)).max().unwrap_or(0);
        let pieces = |from| dealt.pieces(from, own).map(|Piece { sent, arrives }| (sent, arrives)).collect();
        self.moved(sorted, (most, dealt.num_arriving()), pieces)
    }

    fn returned(&self, results: &Tensor, dealt: &Dealt) -> Result<Tensor> {
        let (size, own) = (self.comm.mesh().size(), self.comm.mesh().rank().0);
        let most = (0..size).map(|rank| dealt.num_arriving_at(rank)).max().unwrap_or(0);
        let pieces = |to| dealt.pieces(own, to).map(|Piece { sent, arrives }| (arrives, sent)).collect();
        self.moved(results, (most, dealt.num_sent()), pieces)
    }

    /// `num_rows` rows out of those of all ranks, of whom none has more than `most`: `pieces` says which of a rank's become
    /// which of them.
    fn moved(
        &self,
        own: &Tensor,
        (most, num_rows): (usize, usize),
        pieces: impl Fn(usize) -> Vec<(Range<usize>, Range<usize>)>,
    ) -> Result<Tensor> {
        let ((all, len), (_, width)) = (self.hear(own, most)?, own.dims2(WHAT)?);
        let (all, mut rows) = (all.f32s()?, vec![0.0; num_rows * width]);
        for other in 0..self.comm.mesh().size() {
            for (from, to) in pieces(other) {
                let heard = &all[other * len..][from.start * width..from.end * width];
                rows[to.start * width..to.end * width].copy_from_slice(heard);
            }
        }
        Ok(Tensor::from_f32(rows, [num_rows, width])?)
    }
}

const WHAT: &str = "rows between ranks";

impl RowExchange for RowsOnHost {
    fn set_out(&self, sorted: &Tensor, counts: Counts) -> scout_device::Result<Round> {
        let dealt = match counts {
            Counts::New(offsets) => Arc::new(self.deal(offsets).map_err(of_ranks)?),
            Counts::Known(dealt) => dealt.clone(),
        };
        let mut under_way = self.under_way.lock().expect("no holder of this lock panics");
        let round = under_way.round.next();
        under_way.round = round;
        under_way.rows.push_back((round, sorted.clone(), dealt));
        Ok(round)
    }

    fn arrive(&self, round: Round) -> scout_device::Result<(Tensor, Arc<Dealt>)> {
        let rows = &mut self.under_way.lock().expect("no holder of this lock panics").rows;
        let (_, sorted, dealt) = rows.pop_front_if(|(first, ..)| *first == round).ok_or_else(out_of_order)?;
        Ok((self.arrived(&sorted, &dealt).map_err(of_ranks)?, dealt))
    }

    fn send_back(&self, results: &Tensor, dealt: &Arc<Dealt>) -> scout_device::Result<()> {
        let mut coming_back = self.coming_back.lock().expect("no holder of this lock panics");
        if coming_back.is_some() {
            return Err(out_of_order());
        }
        *coming_back = Some((results.clone(), dealt.clone()));
        Ok(())
    }

    fn come_back(&self) -> scout_device::Result<Tensor> {
        let coming_back = self.coming_back.lock().expect("no holder of this lock panics").take();
        let (results, dealt) = coming_back.ok_or_else(out_of_order)?;
        self.returned(&results, &dealt).map_err(of_ranks)
    }
}

/// For the model, which knows no ranks.
pub(crate) fn of_ranks(cause: CommError) -> DeviceError {
    match cause {
        CommError::Device(cause) => cause,
        cause => DeviceError::Gather(Box::new(cause)),
    }
}

pub(crate) fn out_of_order() -> DeviceError {
    let problem = "found other rows under way, or none, expected those that are asked for and no others before them";
    DeviceError::Value { what: WHAT, problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::local_group;

    const WIDTH: usize = 3;

    /// Row `row` of a rank as it sets out.
    fn value(rank: usize, row: usize) -> f32 {
        (100 * rank + row) as f32
    }

    fn tensor(values: impl Iterator<Item = f32>) -> Tensor {
        let values: Vec<f32> = values.flat_map(|value| [value; WIDTH]).collect();
        let len = values.len() / WIDTH;
        Tensor::from_f32(values, [len, WIDTH]).unwrap()
    }

    #[test]
    fn rows_of_all_ranks_reach_their_experts_and_what_becomes_of_them_comes_back() {
        // Four experts on two ranks; one rank has no rows at all in the second exchange.
        for offsets in [[[0, 2, 3, 3, 7], [0, 4, 4, 5, 5]], [[0, 0, 0, 0, 0], [0, 1, 1, 2, 4]]] {
            std::thread::scope(|scope| {
                for comm in local_group(2, Duration::from_secs(20)) {
                    scope.spawn(move || {
                        let rank = comm.mesh().rank().0;
                        let rows = RowsOnHost::new(Arc::new(comm));
                        assert!(rows.arrive(Round(1)).is_err());
                        let own = offsets[rank].map(|offset: u32| offset);
                        let num_rows = own[4] as usize;
                        let sorted = tensor((0..num_rows).map(|row| value(rank, row)));
                        let told = Tensor::from_u32(own.to_vec(), [5]).unwrap();
                        let first = rows.set_out(&sorted, Counts::New(&told)).unwrap();
                        let (arrived, dealt) = rows.arrive(first).unwrap();
                        let found = arrived.to_f32_vec().unwrap();
                        for from in 0..2 {
                            for piece in dealt.pieces(from, rank) {
                                for (sent, arrives) in piece.sent.zip(piece.arrives) {
                                    assert_eq!(found[arrives * WIDTH..][..WIDTH], [value(from, sent); WIDTH]);
                                }
                            }
                        }
                        let doubled = tensor(found.chunks(WIDTH).map(|row| 2.0 * row[0]));
                        assert!(rows.come_back().is_err());
                        rows.send_back(&doubled, &dealt).unwrap();
                        assert!(rows.send_back(&arrived, &dealt).is_err(), "the first have not come back");
                        let back = rows.come_back().unwrap().to_f32_vec().unwrap();
                        let expected = tensor((0..num_rows).map(|row| 2.0 * value(rank, row)));
                        assert_eq!(back, expected.to_f32_vec().unwrap());
                        // Again, now that all know who sends what; others right behind them.
                        let again = rows.set_out(&sorted, Counts::Known(&dealt)).unwrap();
                        let halves = tensor((0..num_rows).map(|row| 0.5 * value(rank, row)));
                        let behind = rows.set_out(&halves, Counts::Known(&dealt)).unwrap();
                        assert!(rows.arrive(behind).is_err() && rows.arrive(first).is_err());
                        assert_eq!(rows.arrive(again).unwrap().0.to_f32_vec().unwrap(), found);
                        let half: Vec<f32> = found.iter().map(|value| 0.5 * value).collect();
                        assert_eq!(rows.arrive(behind).unwrap().0.to_f32_vec().unwrap(), half);
                    });
                }
            });
        }
    }
}
