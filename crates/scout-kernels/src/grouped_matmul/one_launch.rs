//! All experts in one launch of our own kernel. A loop of products leaves much of the GPU idle where rows are few: one of
//! them may have 40 tiles for 132 multiprocessors, and the next one waits until the last of them is done.

use std::sync::Arc;

use scout_core::DType;
use scout_device::cuda::dnn::SumOrder;
use scout_device::cuda::{Argument, CudaDevice, FactorForm, Grid, Problem, Product, TensorMap};
use scout_device::{Matrices, Tensor};

use crate::Result;
use crate::cuda::{count, sources};

/// Rows that an expert has on average, of those that have any, up to which this was measured in turns with the loop, on an
/// H200 with Scout's experts: with 128 rows it was 7 to 31 % faster, with 256 rows 8 to 22 %, and with 2,048 rows still
/// 4 to 6 %, all with earlier builds of both; with 1,024 rows, at the power limit, up to 2 %. The loop was a tenth faster for
/// gate and up forward with 192 rows, which leave a quarter of two tiles empty.
pub(crate) const MOST_ROWS: usize = 2048;
/// Matrices that are narrower, or sum over less, leave most of a tile unused.
const LEAST_EXTENT: usize = 128;
/// As the kernel has them.
const MOST_EXPERTS: usize = 128;
const ROWS: usize = 128;
const LINE: u32 = 64;
const THREADS: u32 = 384;
/// Multiprocessors whose blocks work on two tiles together.
const BLOCKS_OF_CLUSTER: u32 = 2;
/// From where the second-level swizzle pattern begins again: the kernel rounds the begin of its memory up to this.
const PATTERN: u32 = 1024;

/// How many columns of the result a block works on at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// Leaves less of the GPU idle in the last round.
    Narrow,
    /// Reads shared memory less often for each product.
    Wide,
}

impl Tile {
    fn columns(self) -> usize {
        match self {
            Tile::Narrow => 128,
            Tile::Wide => 256,
        }
    }

    fn name(self, transposed: bool) -> &'static str {
        match (self, transposed) {
            (Tile::Narrow, false) => "grouped_matmul_nn_128",
            (Tile::Narrow, true) => "grouped_matmul_nt_128",
            (Tile::Wide, false) => "grouped_matmul_nn_256",
            (Tile::Wide, true) => "grouped_matmul_nt_256",
        }
    }

    /// Stages of 128 bytes of every row and column, each with two barriers of 8 bytes.
    fn shared_memory(self) -> u32 {
        let num_stages = match self {
            Tile::Narrow => 6,
            Tile::Wide => 4,
        };
        PATTERN + num_stages * (128 * (ROWS + self.columns()) as u32 + 16)
    }

    /// Pairs of tiles, which are what clusters share out among themselves: two tiles of rows, or, where one is left over,
    /// two of columns.
    fn num_pairs(self, offsets: &[u32], width: usize) -> usize {
        let column_tiles = width.div_ceil(self.columns());
        let of_expert = |ends: &[u32]| {
            let row_tiles = (ends[1] as usize - ends[0] as usize).div_ceil(ROWS);
            row_tiles / 2 * column_tiles + row_tiles % 2 * column_tiles.div_ceil(2)
        };
        offsets.windows(2).map(of_expert).sum()
    }

    /// The one with which the last cluster is done first. All clusters work equally long on a pair.
    fn choose(offsets: &[u32], width: usize, num_clusters: usize) -> Tile {
        let time = |tile: Tile| tile.num_pairs(offsets, width).div_ceil(num_clusters) * tile.columns();
        // Narrow tiles were up to a twentieth slower where all multiprocessors had work.
        if time(Tile::Narrow) * 21 < time(Tile::Wide) * 20 { Tile::Narrow } else { Tile::Wide }
    }
}

/// How many clusters take part: where there are many rounds, as few as are done as soon as all of them would be. With 64 in
/// place of 66, three of Scout's products did 0.3 to 1.4 % more at the power limit. With fewer rounds it would be many
/// fewer clusters, which was not measured.
fn busy_clusters(num_pairs: usize, num_clusters: usize) -> usize {
    const MANY: usize = 5;
    let rounds = num_pairs.div_ceil(num_clusters);
    if rounds < MANY { num_pairs.min(num_clusters) } else { num_pairs.div_ceil(rounds) }
}

/// Whether this is the way to multiply `a` with matrices `b`. Where runs must agree bit by bit it does not depend on how many rows
/// come together, for that depends on where experts are computed.
pub(crate) fn is_faster(device: &CudaDevice, a: &Tensor, b: &Matrices, offsets: &[u32]) -> bool {
    let is_fixed = device.sum_order() == SumOrder::Fixed;
    can(device, a, b, offsets) && (is_fixed || mean_rows(offsets) <= MOST_ROWS)
}

/// Whether the kernel takes such factors.
pub(crate) fn can(device: &CudaDevice, a: &Tensor, b: &Matrices, offsets: &[u32]) -> bool {
    device.properties().architecture == 90
        && offsets.len() <= MOST_EXPERTS + 1
        && b.others().dims()[1..].iter().all(|&extent| extent >= LEAST_EXTENT && extent.is_multiple_of(8))
        && std::iter::once(a).chain(b.tensors()).all(TensorMap::fits)
        && a.dtype() == DType::BF16
}

/// Of the experts that have any, rounded up.
fn mean_rows(offsets: &[u32]) -> usize {
    let num_busy = offsets.windows(2).filter(|ends| ends[0] < ends[1]).count();
    let num_rows = offsets.last().map_or(0, |&rows| rows as usize);
    num_rows.div_ceil(num_busy.max(1))
}

/// Rows of `a` times the matrix of their expert, or its transpose. The factors are such as [`can`] lets pass.
pub(crate) fn by_expert(
    device: &Arc<CudaDevice>,
    a: &Tensor,
    b: &Matrices,
    offsets: &[u32],
    transposed: bool,
) -> Result<Tensor> {
    const WHAT: &str = "grouped matmul";
    let (num_rows, inner) = (a.dims()[0], a.dims()[1]);
    let width = if transposed { b.others().dims()[1] } else { b.others().dims()[2] };
    let num_clusters = (device.properties().num_multiprocessors / BLOCKS_OF_CLUSTER).max(1) as usize;
    let tile = Tile::choose(offsets, width, num_clusters);
    let kernel = device.kernel(&sources::GROUPED_MATMUL, tile.name(transposed))?;
    let lines = if transposed { tile.columns() as u32 / 2 } else { LINE };
    let rows = TensorMap::new(device, a, &[LINE, LINE])?;
    let map = |tensor| TensorMap::new(device, tensor, &[1, lines, LINE]);
    let (which_are_own, own) = b.own();
    let (others, own) = (map(b.others())?, map(own)?);
    let mut of_experts = [0; MOST_EXPERTS + 1];
    of_experts[..offsets.len()].copy_from_slice(offsets);
    let busy = count(WHAT, busy_clusters(tile.num_pairs(offsets, width), num_clusters))?;
    let grid = Grid { shared_memory: tile.shared_memory(), ..Grid::new(BLOCKS_OF_CLUSTER * busy, THREADS) };
    let mut y = device.buffer(a.dtype(), [num_rows, width])?;
    let mut arguments = [
        Argument::Map(&rows),
        Argument::Map(&others),
        Argument::Map(&own),
        Argument::U32(count(WHAT, which_are_own.start)?),
        Argument::U32(count(WHAT, which_are_own.len())?),
        Argument::Numbers(&of_experts),
        Argument::Out(&mut y),
        Argument::U32(count(WHAT, offsets.len() - 1)?),
        Argument::U32(count(WHAT, width)?),
        Argument::U32(count(WHAT, inner)?),
    ];
    // SAFETY: factors are read through their maps, which give zeros for what is outside of them. Offsets rise from 0 to
    // the number of rows (`mod.rs` checked), and a tile of expert `e` writes no row but those from `offsets[e]` to
    // `offsets[e + 1]` and no column from `width` on, eight at a time: `width` and the begin of `y` are multiples of that.
    unsafe { device.launch_products(&kernel, grid, &mut arguments, || products(a, b, offsets, transposed)) }?;
    Ok(y.into_tensor())
}

/// What a profile shows: the products that a loop over the experts would compute.
fn products(a: &Tensor, b: &Matrices, offsets: &[u32], transposed: bool) -> (String, Vec<Product>) {
    let (inner, leading) = (a.dims()[1], b.others().dims()[2]);
    let width = if transposed { b.others().dims()[1] } else { leading };
    let of_expert = |m: usize| {
        let a = FactorForm { transposed: false, leading: inner };
        let b = FactorForm { transposed, leading };
        let (factors, result) = (DType::BF16, DType::BF16);
        let problem = Problem { m, n: width, k: inner, a, b, leading: width, factors, result, alignment: 16 };
        Product { problem, adds: false }
    };
    let rows = offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).filter(|&rows| rows > 0);
    let name = format!("experts · {inner}x{width}{}", if transposed { "ᵀ" } else { "" });
    (name, rows.map(of_expert).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_shared_out_in_pairs_of_rows_or_else_of_columns() {
        for (offsets, width, narrow, wide) in [
            (&[0, 0][..], 512, 0, 0),
            (&[0, 1], 512, 2, 1),
            (&[0, 128], 640, 3, 2),
            (&[0, 129], 640, 5, 3),
            (&[0, 257], 640, 8, 5),
            (&[0, 0, 256, 300], 1024, 8 + 4, 4 + 2),
        ] {
            assert_eq!(Tile::Narrow.num_pairs(offsets, width), narrow, "{offsets:?}");
            assert_eq!(Tile::Wide.num_pairs(offsets, width), wide, "{offsets:?}");
        }
    }

    #[test]
    fn tiles_are_wide_unless_that_leaves_many_multiprocessors_idle() {
        let equal = |rows: u32| -> Vec<u32> { (0..=16).map(|expert| expert * rows).collect() };
        for (rows, width, expected) in [
            (128, 16384, Tile::Wide),
            (128, 5120, Tile::Narrow),
            (256, 16384, Tile::Wide),
            (256, 5120, Tile::Wide),
            (384, 16384, Tile::Wide),
        ] {
            assert_eq!(Tile::choose(&equal(rows), width, 66), expected, "{rows} {width}");
        }
    }

    #[test]
    fn as_few_clusters_as_do_not_delay_the_last_round() {
        for (num_pairs, expected) in
            [(0, 0), (1, 1), (66, 66), (67, 66), (264, 66), (265, 53), (320, 64), (1280, 64), (2048, 64), (4096, 66)]
        {
            assert_eq!(busy_clusters(num_pairs, 66), expected, "{num_pairs}");
        }
    }

    #[test]
    fn a_block_takes_no_more_shared_memory_than_there_is() {
        for tile in [Tile::Narrow, Tile::Wide] {
            assert!(tile.shared_memory() <= 227 << 10, "{tile:?}");
        }
    }

    #[test]
    fn rows_are_few_by_what_experts_with_rows_have() {
        for (offsets, expected) in
            [(&[0][..], 0), (&[0, 0], 0), (&[0, 5], 5), (&[0, 0, 100, 100], 100), (&[0, 100, 201], 101)]
        {
            assert_eq!(mean_rows(offsets), expected, "{offsets:?}");
        }
    }
}
