//! Rows between GPUs of one host: copy engines write each rank's rows straight to the places where the kernels of the ranks
//! that keep the experts read them, and results straight back. No kernel and no copy in between.
//!
//! A place is written again only when it was read, and that needs no asking. What a rank sends it made after the results of the
//! exchange before had come from all ranks, and a rank returns results after it has read what had arrived; so whoever
//! receives rows has read all that arrived in the exchange before, and whoever receives results has read those of the one
//! before. Between two results rows set out at most twice, and their places take turns.
//!
//! Who tells the others how many rows come needs no host either: counts go from GPU to GPU in front of the rows, and the host
//! of each rank learns those of all at once, while its GPU computes something else.

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scout_core::{ByteCount, DType, Mesh};
use scout_device::cuda::{Arena, CudaDevice, DeviceBuffer, Event, Numbers, Priority, Stream};
use scout_device::{Counts, Dealt, DeviceError, Purpose, Round, RowExchange, Tensor};

use super::exchange;
use super::mapped::{self, Lines, OfOthers};
use super::waits::Waits;
use super::ways::Ranks;
use crate::communicator::Communicator;
use crate::error::Result;
use crate::routed_rows::out_of_order;

/// Given back by [`RowsOnGpus::leave`]; dropped, it is left to the end of the process, for others may be under way to it.
pub struct RowsOnGpus {
    device: Arc<CudaDevice>,
    mesh: Mesh,
    size: RowsSize,
    said: ManuallyDrop<Lines<3>>,
    others: ManuallyDrop<OfOthers>,
    /// What carries rows of this rank to others.
    outward: Arc<Stream>,
    waits: Waits,
    state: ManuallyDrop<Mutex<State>>,
}

/// How large exchanges are at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsSize {
    pub num_experts: usize,
    /// Rows of one rank, of the one that has most.
    pub most_rows: usize,
    pub width: usize,
    pub dtype: DType,
}

/// Where in the memory of every rank what arrives lies, in bytes.
struct Places {
    /// Of rows, which take turns.
    arrivals: [usize; 2],
    results: usize,
    counts: usize,
    end: usize,
}

/// Which of the places for rows those of `round` arrive at.
fn place(round: Round) -> usize {
    round.0 as usize % 2
}

/// What ranks say to each other, on a line each.
const COUNTS_ARE_THERE: usize = 0;
const ROWS_ARE_THERE: usize = 1;
const RESULTS_ARE_THERE: usize = 2;

struct State {
    /// Where rows arrive, in turns.
    arrivals: [DeviceBuffer; 2],
    results: DeviceBuffer,
    /// Offsets of all ranks.
    counts: DeviceBuffer,
    /// Of the rows that set out last, and of the results that were sent back last.
    set_out: Round,
    sent_back: Round,
    /// In the order in which they set out, at most two.
    under_way: VecDeque<UnderWay>,
    coming_back: Option<Sent>,
}

struct UnderWay {
    round: Round,
    rows: Going,
}

enum Going {
    /// When the host knows how many everybody sends.
    WhenCounted {
        rows: Tensor,
        numbers: Numbers,
    },
    Already(Sent),
}

/// What is being carried to others.
struct Sent {
    dealt: Arc<Dealt>,
    /// Past when all of it is there, as far as this rank is concerned.
    done: Event,
    // Held, never read: memory that is given back while it is read from is taken again at once, and arithmetic then waits.
    _tensor: Tensor,
}

impl RowsSize {
    /// Numbers that hosts learn of each exchange, one for each rank and expert and one more for each rank: as many as a message
    /// holds.
    pub const MOST_COUNTS: usize = 1024;

    /// What an exchange takes of each of so many GPUs. All rows may be for the experts of one rank.
    pub fn bytes(&self, world_size: usize) -> ByteCount {
        ByteCount(self.places(world_size).end as u64)
    }

    fn places(&self, world_size: usize) -> Places {
        let after = |start: usize, bytes: u64| (start + bytes as usize).next_multiple_of(Arena::GRAIN);
        let arriving = self.bytes_of_rows(world_size * self.most_rows).0;
        let second = after(0, arriving);
        let results = after(second, arriving);
        let counts = after(results, self.bytes_of_rows(self.most_rows).0);
        let num_counts = world_size * (self.num_experts + 1);
        Places { arrivals: [0, second], results, counts, end: after(counts, 4 * num_counts as u64) }
    }

    fn bytes_of_rows(&self, rows: usize) -> ByteCount {
        self.dtype.size() * (rows * self.width) as u64
    }
}

impl RowsOnGpus {
    /// Asks the driver for the memory and shows it to all others. Every rank calls it with the same size; all fail where one
    /// does.
    pub fn connect(Ranks { device, comm }: Ranks, size: RowsSize) -> Result<RowsOnGpus> {
        mapped::must_be_one_host(comm)?;
        let (mesh, compute) = (comm.mesh(), device.compute());
        let bytes = size.bytes(mesh.size());
        let own = device.arena("rows of other ranks", Purpose::Arriving, bytes, compute);
        let own =
            exchange::must_agree(comm, own.and_then(|arena| Ok((State::of(&size, mesh, (device, &arena))?, arena))))?;
        let (state, arena) = own;
        let mapped = (|| {
            let outward = Arc::new(exchange::must_agree(comm, Stream::new(device.context(), Priority::High))?);
            Ok((outward, OfOthers::map(device, &arena, comm)?, Lines::between(device, comm)?))
        })();
        let (outward, others, said) = match mapped {
            Ok(mapped) => mapped,
            Err(error) => {
                // Others may have it mapped.
                std::mem::forget((state, arena));
                return Err(error);
            }
        };
        Ok(RowsOnGpus {
            device: device.clone(),
            mesh,
            size,
            said: ManuallyDrop::new(said),
            others: ManuallyDrop::new(others),
            outward,
            waits: Waits::of(device),
            state: ManuallyDrop::new(Mutex::new(state)),
        })
    }

    pub fn waited(&self) -> Result<Duration> {
        Ok(self.waits.waited()?)
    }

    pub fn leave(self, comm: &dyn Communicator) -> Result<()> {
        let RowsOnGpus { device, said, others, outward, state, .. } = self;
        let unmap = || drop((ManuallyDrop::into_inner(said), ManuallyDrop::into_inner(others)));
        let free = || drop(ManuallyDrop::into_inner(state));
        mapped::part((&device, comm), &[outward], unmap, free)
    }

    /// Tells all ranks how many rows come from this one, and fetches what they tell.
    fn tell(&self, state: &mut State, round: Round, offsets: &Tensor) -> Result<Numbers> {
        let RowsOnGpus { mesh, size, said, others, outward, .. } = self;
        let each = size.num_experts + 1;
        offsets.expect_dims(WHAT, &[each])?;
        let (own, start) = (mesh.rank().0 * each, size.places(mesh.size()).counts);
        for rank in mapped::rotation(*mesh) {
            others.of(rank).push(ByteCount((start + 4 * own) as u64), offsets, outward)?;
            said.raise(COUNTS_ARE_THERE, rank, round.0, outward)?;
        }
        state.counts.copy_from_on(own, offsets, outward)?;
        said.wait_for_all(COUNTS_ARE_THERE, round.0, outward)?;
        Ok(Numbers::send_on(&self.device, &state.counts.view(), outward)?)
    }

    /// Writes rows where the ranks that keep their experts will read them.
    fn queue_rows(&self, state: &mut State, round: Round, rows: &Tensor, dealt: &Dealt) -> Result<Event> {
        let RowsOnGpus { mesh, size, said, others, outward, .. } = self;
        let (own, place) = (mesh.rank().0, place(round));
        let start = size.places(mesh.size()).arrivals[place] as u64;
        for rank in mapped::rotation(*mesh) {
            for piece in dealt.pieces(own, rank) {
                let to = ByteCount(start) + size.bytes_of_rows(piece.arrives.start);
                others.of(rank).push(to, &rows.rows(piece.sent.start, piece.sent.len())?, outward)?;
            }
            said.raise(ROWS_ARE_THERE, rank, round.0, outward)?;
        }
        for piece in dealt.pieces(own, own) {
            let sent = rows.rows(piece.sent.start, piece.sent.len())?;
            state.arrivals[place].copy_from_on(piece.arrives.start * size.width, &sent, outward)?;
        }
        rows.is_pushed(outward)?;
        Ok(outward.record()?)
    }

    fn queue_results(&self, state: &mut State, results: &Tensor, dealt: &Dealt) -> Result<Event> {
        let RowsOnGpus { mesh, size, said, others, outward, .. } = self;
        let own = mesh.rank().0;
        let start = size.places(mesh.size()).results as u64;
        for rank in mapped::rotation(*mesh) {
            for piece in dealt.pieces(rank, own) {
                let to = ByteCount(start) + size.bytes_of_rows(piece.sent.start);
                others.of(rank).push(to, &results.rows(piece.arrives.start, piece.arrives.len())?, outward)?;
            }
            said.raise(RESULTS_ARE_THERE, rank, state.sent_back.0, outward)?;
        }
        for piece in dealt.pieces(own, own) {
            let came = results.rows(piece.arrives.start, piece.arrives.len())?;
            state.results.copy_from_on(piece.sent.start * size.width, &came, outward)?;
        }
        results.is_pushed(outward)?;
        Ok(outward.record()?)
    }

    /// What is queued on the stream to others from now on begins when arithmetic that is queued by now is done.
    fn follow_arithmetic(&self) -> scout_device::Result<()> {
        self.outward.wait_for(&self.device.compute().record()?)
    }

    /// Lets arithmetic wait until all ranks have come to `round` of `line`, and what this rank sends is past `done`.
    fn wait_for_all(&self, line: usize, round: Round, done: &Event) -> Result<()> {
        let compute = self.device.compute();
        let wait = || -> Result<()> {
            self.said.wait_for_all(line, round.0, compute)?;
            Ok(compute.wait_for(done)?)
        };
        Ok(self.waits.wait("waiting for rows", || wait().map_err(crate::routed_rows::of_ranks))?)
    }

    fn must_fit(&self, rows: &Tensor, most: usize) -> scout_device::Result<()> {
        let (num_rows, width) = rows.dims2(WHAT)?;
        if num_rows > most || width != self.size.width || rows.dtype() != self.size.dtype {
            let expected = format!("at most {most} rows of {} in {}", self.size.width, self.size.dtype);
            return Err(DeviceError::Shape { what: WHAT, found: rows.shape().clone(), expected });
        }
        Ok(())
    }

    fn on_the_way<T>(&self, name: &str, queue: impl FnOnce() -> Result<T>) -> scout_device::Result<T> {
        self.device.communicate(&self.outward, || name.to_string(), || queue().map_err(crate::routed_rows::of_ranks))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

const WHAT: &str = "rows between GPUs";

impl State {
    fn of(size: &RowsSize, mesh: Mesh, (device, arena): (&Arc<CudaDevice>, &Arena)) -> scout_device::Result<State> {
        let world_size = mesh.size();
        let Places { arrivals: [first, second], results, counts, .. } = size.places(world_size);
        let rows = |start, count: usize| {
            let bytes = size.bytes_of_rows(count).0 as usize;
            let block = arena.take_at(Purpose::Arriving, start, bytes)?;
            DeviceBuffer::new(device, block, size.dtype, [count, size.width])
        };
        let len = world_size * (size.num_experts + 1);
        let counts = arena.take_at(Purpose::Arriving, counts, 4 * len)?;
        let state = State {
            arrivals: [rows(first, world_size * size.most_rows)?, rows(second, world_size * size.most_rows)?],
            results: rows(results, size.most_rows)?,
            counts: DeviceBuffer::new(device, counts, DType::U32, [len])?,
            set_out: Round::default(),
            sent_back: Round::default(),
            under_way: VecDeque::new(),
            coming_back: None,
        };
        // What was queued on these places, if anything, is over before others write there.
        device.finish()?;
        Ok(state)
    }
}

impl RowExchange for RowsOnGpus {
    fn set_out(&self, sorted: &Tensor, counts: Counts) -> scout_device::Result<Round> {
        self.must_fit(sorted, self.size.most_rows)?;
        let mut state = self.state();
        state.set_out = state.set_out.next();
        let round = state.set_out;
        self.follow_arithmetic()?;
        let rows = match counts {
            Counts::New(offsets) => {
                let numbers = self.on_the_way("counts of rows", || self.tell(&mut state, round, offsets))?;
                Going::WhenCounted { rows: sorted.clone(), numbers }
            }
            Counts::Known(dealt) => {
                let done = self.on_the_way("rows", || self.queue_rows(&mut state, round, sorted, dealt))?;
                Going::Already(Sent { dealt: dealt.clone(), done, _tensor: sorted.clone() })
            }
        };
        state.under_way.push_back(UnderWay { round, rows });
        Ok(round)
    }

    fn arrive(&self, round: Round) -> scout_device::Result<(Tensor, Arc<Dealt>)> {
        let mut state = self.state();
        let first = state.under_way.pop_front_if(|first| first.round == round);
        let UnderWay { rows, .. } = first.ok_or_else(out_of_order)?;
        let Sent { dealt, done, .. } = match rows {
            Going::Already(sent) => sent,
            Going::WhenCounted { rows, numbers } => {
                let of_ranks = numbers.get()?.chunks(self.size.num_experts + 1).map(<[u32]>::to_vec).collect();
                let dealt = Arc::new(Dealt::new(self.mesh.rank().0, of_ranks)?);
                let done = self.on_the_way("rows", || self.queue_rows(&mut state, round, &rows, &dealt))?;
                Sent { dealt, done, _tensor: rows }
            }
        };
        self.wait_for_all(ROWS_ARE_THERE, round, &done).map_err(crate::routed_rows::of_ranks)?;
        Ok((state.arrivals[place(round)].view().rows(0, dealt.num_arriving())?, dealt))
    }

    fn send_back(&self, results: &Tensor, dealt: &Arc<Dealt>) -> scout_device::Result<()> {
        self.must_fit(results, self.mesh.size() * self.size.most_rows)?;
        let mut state = self.state();
        if state.coming_back.is_some() {
            return Err(out_of_order());
        }
        state.sent_back = state.sent_back.next();
        self.follow_arithmetic()?;
        let done = self.on_the_way("results", || self.queue_results(&mut state, results, dealt))?;
        state.coming_back = Some(Sent { dealt: dealt.clone(), done, _tensor: results.clone() });
        Ok(())
    }

    fn come_back(&self) -> scout_device::Result<Tensor> {
        let mut state = self.state();
        let Sent { dealt, done, .. } = state.coming_back.take().ok_or_else(out_of_order)?;
        self.wait_for_all(RESULTS_ARE_THERE, state.sent_back, &done).map_err(crate::routed_rows::of_ranks)?;
        state.results.view().rows(0, dealt.num_sent())
    }
}

impl fmt::Debug for RowsOnGpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} between {} GPUs", self.size, self.mesh.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_lies_one_behind_the_other() {
        let size = RowsSize { num_experts: 16, most_rows: 300, width: 5, dtype: DType::BF16 };
        for world_size in [1, 2, 8] {
            let Places { arrivals: [first, second], results, counts, end } = size.places(world_size);
            let rows = |count: usize| 2 * 5 * count;
            let lens = [rows(world_size * 300), rows(world_size * 300), rows(300), 4 * world_size * 17];
            let starts = [first, second, results, counts, end];
            for (ends, len) in starts.windows(2).zip(lens) {
                assert!(ends[0] % Arena::GRAIN == 0 && (len..len + Arena::GRAIN).contains(&(ends[1] - ends[0])));
            }
            assert_eq!((first, size.bytes(world_size)), (0, ByteCount(end as u64)));
        }
    }

    #[test]
    fn rows_that_set_out_one_after_the_other_arrive_at_different_places() {
        let rounds = std::iter::successors(Some(Round(u32::MAX - 1)), |round| Some(round.next()));
        assert_eq!(rounds.take(4).map(place).collect::<Vec<_>>(), [0, 1, 0, 1]);
    }
}
