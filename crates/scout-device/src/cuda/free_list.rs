//! Which parts of a run of memory are free, and what must have happened before each is written again. Numbers only: no
//! memory is touched, so all of it is tested without a GPU.

use std::collections::BTreeMap;

/// Free parts of `0..capacity`, each with the fences that its next user must wait for.
#[derive(Debug)]
pub struct FreeList<F> {
    // Invariant: parts do not overlap and never touch each other; those that would are one part with both's fences.
    parts: BTreeMap<usize, Part<F>>,
    capacity: usize,
    free: usize,
}

#[derive(Debug)]
struct Part<F> {
    len: usize,
    fences: Vec<F>,
}

/// Memory handed out, and what its user must wait for first.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<F> {
    pub start: usize,
    pub fences: Vec<F>,
}

impl<F: Clone> FreeList<F> {
    pub fn new(capacity: usize) -> FreeList<F> {
        let mut parts = BTreeMap::new();
        if capacity > 0 {
            parts.insert(0, Part { len: capacity, fences: Vec::new() });
        }
        FreeList { parts, capacity, free: capacity }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn free(&self) -> usize {
        self.free
    }

    /// The longest run that could be taken now.
    pub fn largest(&self) -> usize {
        self.parts.values().map(|part| part.len).max().unwrap_or(0)
    }

    /// Takes `len` from the smallest part that has them, from its beginning; `None` where none has. What activations
    /// of one size leave behind is therefore taken by those of the same size in the next layer.
    pub fn take(&mut self, len: usize) -> Option<Taken<F>> {
        if len == 0 {
            return Some(Taken { start: 0, fences: Vec::new() });
        }
        let (&start, _) = self.parts.iter().filter(|(_, part)| part.len >= len).min_by_key(|(_, part)| part.len)?;
        let part = self.parts.remove(&start)?;
        if part.len > len {
            self.parts.insert(start + len, Part { len: part.len - len, fences: part.fences.clone() });
        }
        self.free -= len;
        Some(Taken { start, fences: part.fences })
    }

    /// Takes exactly `start..start + len`; `None` where not all of it is free.
    pub fn take_at(&mut self, start: usize, len: usize) -> Option<Taken<F>> {
        if len == 0 {
            return Some(Taken { start, fences: Vec::new() });
        }
        let (&begin, found) = self.parts.range(..=start).next_back()?;
        let (before, after) = (start - begin, (begin + found.len).checked_sub(start + len)?);
        let part = self.parts.remove(&begin)?;
        for (start, len) in [(begin, before), (start + len, after)] {
            if len > 0 {
                self.parts.insert(start, Part { len, fences: part.fences.clone() });
            }
        }
        self.free -= len;
        Some(Taken { start, fences: part.fences })
    }

    /// Gives `start..start + len` back; its next user waits for `fences`.
    pub fn give(&mut self, start: usize, len: usize, fences: Vec<F>) {
        if len == 0 {
            return;
        }
        let mut part = Part { len, fences };
        let mut at = start;
        if let Some((&before, found)) = self.parts.range(..start).next_back()
            && before + found.len == start
        {
            let found = self.parts.remove(&before).expect("was just found");
            part = Part { len: found.len + part.len, fences: [found.fences, part.fences].concat() };
            at = before;
        }
        if let Some(after) = self.parts.remove(&(start + len)) {
            part = Part { len: part.len + after.len, fences: [part.fences, after.fences].concat() };
        }
        self.parts.insert(at, part);
        self.free += len;
    }

    /// Forgets fences that nobody has to wait for any more.
    pub fn retain_fences(&mut self, mut must_wait: impl FnMut(&F) -> bool) {
        for part in self.parts.values_mut() {
            part.fences.retain(&mut must_wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(start: usize, fences: &[u32]) -> Option<Taken<u32>> {
        Some(Taken { start, fences: fences.to_vec() })
    }

    #[test]
    fn what_is_given_back_joins_its_neighbours_and_keeps_their_fences() {
        let mut list = FreeList::new(100);
        assert_eq!(list.take(30), taken(0, &[]));
        assert_eq!(list.take(30), taken(30, &[]));
        assert_eq!(list.take(40), taken(60, &[]));
        assert_eq!(list.take(1), None);
        list.give(0, 30, vec![1]);
        list.give(60, 40, vec![2]);
        assert_eq!((list.free(), list.largest()), (70, 40));
        list.give(30, 30, vec![]);
        assert_eq!((list.free(), list.largest()), (100, 100));
        assert_eq!(list.take(10), taken(0, &[1, 2]));
        list.retain_fences(|&fence| fence == 2);
        assert_eq!(list.take(90), taken(10, &[2]));
    }

    #[test]
    fn the_tightest_part_is_taken() {
        let mut list: FreeList<u32> = FreeList::new(100);
        for _ in 0..5 {
            list.take(20);
        }
        list.give(0, 40, vec![]);
        list.give(60, 20, vec![]);
        assert_eq!(list.take(20), taken(60, &[]));
        assert_eq!(list.take(20), taken(0, &[]));
        assert_eq!(list.take(0), taken(0, &[]));
        assert_eq!(list.take(21), None);
    }

    #[test]
    fn a_part_in_the_middle_can_be_taken_where_it_is_free() {
        let mut list = FreeList::new(100);
        assert_eq!(list.take_at(20, 30), taken(20, &[]));
        list.give(20, 30, vec![1]);
        assert_eq!(list.take_at(40, 60), taken(40, &[1]));
        assert_eq!(list.take_at(39, 2), None);
        assert_eq!(list.take_at(90, 20), None);
        assert_eq!(list.take_at(0, 40), taken(0, &[1]));
        assert_eq!((list.free(), list.take_at(0, 0), list.take_at(0, 1)), (0, taken(0, &[]), None));
    }

    #[test]
    fn no_byte_is_handed_out_twice_and_none_is_lost() {
        let mut list: FreeList<u32> = FreeList::new(1000);
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut state = 1u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (pick, len) = ((state >> 33) as usize, (state >> 20) as usize % 90 + 1);
            if pick % 2 == 0 || held.is_empty() {
                if let Some(part) = list.take(len) {
                    let clear =
                        |&(start, held): &(usize, usize)| part.start + len <= start || start + held <= part.start;
                    assert!(held.iter().all(clear) && part.start + len <= 1000);
                    held.push((part.start, len));
                }
            } else {
                let (start, len) = held.swap_remove(pick % held.len());
                list.give(start, len, vec![]);
            }
            assert_eq!(list.free() + held.iter().map(|(_, len)| len).sum::<usize>(), 1000);
        }
        for (start, len) in held {
            list.give(start, len, vec![]);
        }
        assert_eq!(list.largest(), 1000);
    }
}
