//! How the flat run of an adapter's numbers is cut, so that ranks can sum its gradients while the backward pass still makes
//! others. Only arithmetic: nothing here moves a number between ranks.

use std::ops::Range;

/// A run in a few equal buckets, each in as many equal slices as there are ranks. A rank's part is its slice of every
/// bucket, one behind the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    // Invariant: slices of all buckets and ranks cover the run once; padding lies behind its last number.
    num_buckets: usize,
    slice_len: usize,
    world_size: usize,
}

/// Buckets of one run of which something may still be added to. They are completed from the last on.
#[derive(Debug)]
pub struct Unsent {
    buckets: Buckets,
    /// Those before it.
    end: usize,
}

/// 24 MiB of f32. Much smaller ones would cost more in beginning a collective than in moving bytes; and the first bucket is
/// what is left to be summed when the backward pass ends, so they are not much larger either.
const LEAST: usize = 6 << 20;
/// Each is a call for which the host stops, about as long as for queueing a block.
const MOST_BUCKETS: usize = 16;
/// Slices begin at lines of memory in f32 and in bf16: only from there does NCCL move wide words.
const GRAIN: usize = 64;

impl Buckets {
    /// For a run of `len` numbers. One rank has nothing to sum: everything is its one slice, without padding.
    pub fn new(len: usize, world_size: usize) -> Buckets {
        if world_size == 1 {
            return Buckets { num_buckets: 1, slice_len: len, world_size };
        }
        let num_buckets = (len / LEAST).clamp(1, MOST_BUCKETS);
        let slice_len = len.div_ceil(num_buckets * world_size).next_multiple_of(GRAIN);
        Buckets { num_buckets, slice_len, world_size }
    }

    /// Of the whole run, padding included.
    pub fn padded_len(self) -> usize {
        self.num_buckets * self.bucket_len()
    }

    /// Of what one rank has of it.
    pub fn part_len(self) -> usize {
        self.num_buckets * self.slice_len
    }

    pub fn all(self) -> Range<usize> {
        0..self.num_buckets
    }

    /// Where a bucket lies in the whole run.
    pub fn in_whole(self, bucket: usize) -> Range<usize> {
        bucket * self.bucket_len()..(bucket + 1) * self.bucket_len()
    }

    /// Where a rank's slice of a bucket lies in its part.
    pub fn in_part(self, bucket: usize) -> Range<usize> {
        bucket * self.slice_len..(bucket + 1) * self.slice_len
    }

    /// Those buckets that hold nothing before `element`.
    pub fn wholly_from(self, element: usize) -> Range<usize> {
        let first = element.div_ceil(self.bucket_len().max(1)); // an empty adapter has an empty bucket
        first.min(self.num_buckets)..self.num_buckets
    }

    /// A rank's part of a whole run, which may lack its padding.
    pub fn part(self, rank: usize, whole: &[f32]) -> Vec<f32> {
        let mut part = vec![0.0; self.part_len()];
        for bucket in self.all() {
            let slice = self.slice_in_whole(bucket, rank);
            let found = &whole[slice.start.min(whole.len())..slice.end.min(whole.len())];
            part[self.in_part(bucket)][..found.len()].copy_from_slice(found);
        }
        part
    }

    /// The whole run, padding included, of the parts of all ranks, which lie one behind the other.
    pub fn whole(self, parts: &[f32]) -> Vec<f32> {
        let mut whole = Vec::with_capacity(self.padded_len());
        for bucket in self.all() {
            for rank in 0..self.world_size {
                whole.extend_from_slice(&parts[rank * self.part_len()..][self.in_part(bucket)]);
            }
        }
        whole
    }

    fn slice_in_whole(self, bucket: usize, rank: usize) -> Range<usize> {
        let start = self.in_whole(bucket).start + rank * self.slice_len;
        start..start + self.slice_len
    }

    fn bucket_len(self) -> usize {
        self.slice_len * self.world_size
    }
}

impl Unsent {
    pub fn all_of(buckets: Buckets) -> Unsent {
        Unsent { buckets, end: buckets.num_buckets }
    }

    /// Those of which nothing is missing any more, now that `element` and all behind it are complete.
    pub fn complete(&mut self, element: usize) -> impl Iterator<Item = usize> + use<> {
        let start = self.buckets.wholly_from(element).start.min(self.end);
        let complete = start..self.end;
        self.end = start;
        complete.rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short runs by way of cuts that only long ones have: every number of buckets, and lengths around their borders.
    fn cuts() -> impl Iterator<Item = (Buckets, usize)> {
        (1..=9).flat_map(|world_size| {
            let (most_buckets, grains) = if world_size == 1 { (1, vec![0, 1, 100]) } else { (16, vec![0, 1, 3, 7]) };
            (1..=most_buckets).flat_map(move |num_buckets| {
                // Only an empty run has an empty bucket, and that is its only one.
                let grains = grains.clone().into_iter().filter(move |&slice_len| slice_len > 0 || num_buckets == 1);
                grains.flat_map(move |slice_len| {
                    let buckets = Buckets { num_buckets, slice_len, world_size };
                    let padded = buckets.padded_len();
                    [0, 1, padded / 2, padded.saturating_sub(1), padded].map(|len| (buckets, len.min(padded)))
                })
            })
        })
    }

    /// Lengths of adapters, in numbers, with those about which the number of buckets changes.
    fn lengths() -> Vec<usize> {
        let of_buckets = (1..=18).flat_map(|buckets| [buckets * LEAST - 1, buckets * LEAST, buckets * LEAST + 1]);
        let short = [0, 1, 2, 3, 5, 8, 63, 64, 65, 127, 576, 577, 1000, 12_345];
        short.into_iter().chain(of_buckets).chain([750_000_000]).collect()
    }

    #[test]
    fn a_run_is_cut_into_few_equal_buckets_with_little_padding() {
        for len in lengths() {
            for world_size in 2..=9 {
                let buckets = Buckets::new(len, world_size);
                let (count, size) = (buckets.all().len(), buckets.in_whole(0).len());
                assert!((1..=16).contains(&count), "{len} on {world_size}: {buckets:?}");
                assert_eq!(size % world_size, 0, "{len} on {world_size}");
                assert_eq!((count * size, count * size / world_size), (buckets.padded_len(), buckets.part_len()));
                assert!(buckets.padded_len() >= len && buckets.padded_len() - len < count * world_size * 65, "{len}");
                // From 24 MiB to less than 48, with its padding, where there are neither too few numbers nor too many.
                assert!(count == 1 || size >= LEAST, "{len} on {world_size}: {size}");
                assert!(count == 16 || size < 2 * LEAST + 64 * world_size, "{len} on {world_size}: {size}");
                assert!(
                    (0..count).all(|bucket| (2 * buckets.in_part(bucket).start).is_multiple_of(128)),
                    "{buckets:?}"
                );
            }
        }
    }

    #[test]
    fn one_rank_has_everything_without_padding() {
        for len in lengths() {
            let buckets = Buckets::new(len, 1);
            assert_eq!((buckets.all(), buckets.padded_len(), buckets.part_len()), (0..1, len, len));
        }
    }

    #[test]
    fn every_number_is_in_one_slice_and_comes_back_to_its_place() {
        for (buckets, len) in cuts() {
            let values: Vec<f32> = (1..=len).map(|value| value as f32).collect();
            let parts: Vec<Vec<f32>> = (0..buckets.world_size).map(|rank| buckets.part(rank, &values)).collect();
            assert!(parts.iter().all(|part| part.len() == buckets.part_len()), "{buckets:?}");
            let mut expected = values.clone();
            expected.resize(buckets.padded_len(), 0.0);
            assert_eq!(buckets.whole(&parts.concat()), expected, "{buckets:?} of {len}");
            // Padding makes no difference.
            assert!((0..buckets.world_size).all(|rank| buckets.part(rank, &expected) == parts[rank]), "{buckets:?}");
        }
    }

    /// What reduce-scatter and all-gather do, bucket by bucket, is what `part` and `whole` say.
    #[test]
    fn collectives_over_buckets_end_where_the_parts_are() {
        for (buckets, len) in cuts() {
            let values: Vec<f32> = (1..=len).map(|value| value as f32).collect();
            let mut padded = values.clone();
            padded.resize(buckets.padded_len(), 0.0);
            for rank in 0..buckets.world_size {
                let mut part = vec![f32::NAN; buckets.part_len()];
                for bucket in buckets.all() {
                    let bucket_of_all = &padded[buckets.in_whole(bucket)];
                    let count = bucket_of_all.len() / buckets.world_size;
                    part[buckets.in_part(bucket)].copy_from_slice(&bucket_of_all[rank * count..(rank + 1) * count]);
                }
                assert_eq!(part, buckets.part(rank, &values), "{buckets:?} of {len} for {rank}");
            }
        }
    }

    #[test]
    fn a_bucket_is_complete_when_it_holds_nothing_before_the_element() {
        for (buckets, _) in cuts() {
            for element in 0..=buckets.padded_len() + 1 {
                let complete = buckets.wholly_from(element);
                assert_eq!(complete.end, buckets.num_buckets);
                for bucket in buckets.all() {
                    let is_complete = buckets.in_whole(bucket).start >= element;
                    assert_eq!(complete.contains(&bucket), is_complete, "{buckets:?}, bucket {bucket} from {element}");
                }
            }
        }
    }

    #[test]
    fn walking_back_sends_every_bucket_once() {
        for (buckets, len) in cuts() {
            for layers in [1, 2, 5, 48] {
                let mut unsent = Unsent::all_of(buckets);
                let walk = (0..layers).rev().map(|layer| len * layer / layers);
                let mut sent: Vec<usize> = walk.flat_map(|element| unsent.complete(element)).collect();
                // What is complete stays so, whatever is said later.
                sent.extend(unsent.complete(len).chain(unsent.complete(0)));
                assert!(sent.iter().copied().eq(buckets.all().rev()), "{buckets:?} of {len}: {sent:?}");
            }
        }
    }
}
