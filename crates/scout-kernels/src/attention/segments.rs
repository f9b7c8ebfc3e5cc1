//! Where the segments of a batch lie, and what a GPU was told of them: sent there once, whichever layers ask.

use std::fmt;
use std::sync::{Arc, Mutex};

use scout_device::Tensor;
use scout_device::cuda::CudaDevice;
use scout_device::cuda::attention::Documents;
use scout_device::cuda::dnn::{DocumentIndex, Heads};

use crate::{Result, check};

/// Tokens `borders[i]..borders[i + 1]` form a segment. Made once for a batch and shown to every layer: the first one
/// on a GPU sends there what its kernels read, and the memory is given back when this is dropped.
pub struct Segments {
    // Invariant: begins with 0 and never falls.
    borders: Vec<u32>,
    sent: Mutex<Vec<Sent>>,
}

struct Sent {
    device: Arc<CudaDevice>,
    what: What,
}

enum What {
    /// For cuDNN, which counts in elements of these heads.
    Documents(Heads, Documents),
    /// For our own kernels, of so many tokens: `[tiles, 4]`.
    Tiles(u32, Tensor),
}

impl Segments {
    /// Fails unless `borders` begin at 0 and never fall.
    pub fn new(borders: Vec<u32>) -> Result<Segments> {
        let num_tokens = borders.last().map_or(0, |&last| last as usize);
        check::offsets("attention: segments", &borders, num_tokens)?;
        Ok(Segments { borders, sent: Mutex::default() })
    }

    /// Where segments begin and the last one ends.
    pub fn borders(&self) -> &[u32] {
        &self.borders
    }

    pub fn num_tokens(&self) -> usize {
        self.borders[self.borders.len() - 1] as usize
    }

    /// As cuDNN reads them.
    pub(super) fn documents(&self, device: &Arc<CudaDevice>, heads: Heads) -> Result<Documents> {
        let find = |what: &What| match what {
            What::Documents(of, documents) if *of == heads => Some(documents.clone()),
            _ => None,
        };
        self.find_or_send(device, find, || {
            let index = DocumentIndex::new(&self.borders, heads, device.sum_order())?;
            let documents = Documents::send(&index, device)?;
            Ok((What::Documents(heads, documents.clone()), documents))
        })
    }

    /// As our own kernels read them: first token and end of each tile of `size` tokens, beginning and end of its segment.
    pub(super) fn tiles(&self, device: &Arc<CudaDevice>, size: u32) -> Result<Tensor> {
        let find = |what: &What| match what {
            What::Tiles(of, tiles) if *of == size => Some(tiles.clone()),
            _ => None,
        };
        self.find_or_send(device, find, || {
            let tiles = tiles(&self.borders, size);
            let shape = [tiles.len() / 4, 4];
            let tiles = device.send(&Tensor::from_u32(tiles, shape)?)?;
            Ok((What::Tiles(size, tiles.clone()), tiles))
        })
    }

    fn find_or_send<T>(
        &self,
        device: &Arc<CudaDevice>,
        find: impl Fn(&What) -> Option<T>,
        send: impl FnOnce() -> Result<(What, T)>,
    ) -> Result<T> {
        let mut sent = self.sent.lock().expect("no holder of this lock panics");
        let mut of_device = sent.iter().filter(|sent| Arc::ptr_eq(&sent.device, device));
        if let Some(found) = of_device.find_map(|sent| find(&sent.what)) {
            return Ok(found);
        }
        let (what, found) = send()?;
        sent.push(Sent { device: device.clone(), what });
        Ok(found)
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.borders.fmt(f)
    }
}

fn tiles(borders: &[u32], size: u32) -> Vec<u32> {
    let mut tiles = Vec::new();
    for ends in borders.windows(2) {
        for first in (ends[0]..ends[1]).step_by(size as usize) {
            tiles.extend([first, ends[1].min(first.saturating_add(size)), ends[0], ends[1]]);
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_segment_and_cross_no_border() {
        assert!(tiles(&[0], 32).is_empty() && tiles(&[0, 0], 32).is_empty());
        let expected = [[0, 1, 0, 1], [1, 33, 1, 34], [33, 34, 1, 34], [34, 66, 34, 66]].concat();
        assert_eq!(tiles(&[0, 1, 34, 34, 66], 32), expected);
        assert_eq!(tiles(&[0, 66, 67], 64), [[0, 64, 0, 66], [64, 66, 0, 66], [66, 67, 66, 67]].concat());
    }

    #[test]
    fn borders_that_mean_nothing_are_refused() {
        for (borders, is_ok) in [
            (vec![0], true),
            (vec![0, 0, 3], true),
            (vec![], false),
            (vec![1, 3], false),
            (vec![0, 3, 2, 5], false),
            (vec![0, 3, 2], false),
        ] {
            assert_eq!(Segments::new(borders.clone()).is_ok(), is_ok, "{borders:?}");
        }
    }
}
