//! Attention by plain loops on the host, in f32 with sums over a row in f64. Only threads make it bearable.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use scout_device::cuda::dnn::Heads;

/// Rows of scores that one piece of work covers.
const ROWS: usize = 256;

/// Rows `start..` of one query head in one document.
struct Piece {
    head: usize,
    document: [usize; 2],
    rows: [usize; 2],
}

pub struct Reference<'a> {
    pub heads: Heads,
    pub scale: f32,
    pub borders: &'a [u32],
}

impl Reference<'_> {
    /// Context `[T, nq, d]` and log sum exp `[T, nq]`.
    pub fn forward(&self, [q, k, v]: [&[f32]; 3]) -> [Vec<f32>; 2] {
        let size = self.heads.size;
        let context = Mutex::new(vec![0.0; q.len()]);
        let log_sum_exp = Mutex::new(vec![0.0; q.len() / size]);
        self.in_pieces(|piece| {
            for row in piece.rows[0]..piece.rows[1] {
                let query = self.query(q, row, piece.head);
                let columns = piece.document[0]..row + 1;
                let mut scores: Vec<f32> =
                    columns.clone().map(|column| dot(query, self.kv(k, column, piece.head)) * self.scale).collect();
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
                let sum: f64 = scores.iter().map(|&power| f64::from(power)).sum();
                let mut attended = vec![0.0; size];
                for (column, power) in columns.zip(scores) {
                    add((f64::from(power) / sum) as f32, self.kv(v, column, piece.head), &mut attended);
                }
                let at = row * self.heads.query + piece.head;
                context.lock().unwrap()[at * size..][..size].copy_from_slice(&attended);
                log_sum_exp.lock().unwrap()[at] = (f64::from(largest) + sum.ln()) as f32;
            }
        });
        [context.into_inner().unwrap(), log_sum_exp.into_inner().unwrap()]
    }

    /// dq, dk and dv.
    pub fn backward(&self, dcontext: &[f32], [q, k, v]: [&[f32]; 3], [context, lse]: [&[f32]; 2]) -> [Vec<f32>; 3] {
        let size = self.heads.size;
        let [dq, dk, dv] = [q, k, v].map(|like| Mutex::new(vec![0.0; like.len()]));
        self.in_pieces(|piece| {
            let columns = piece.document[0]..piece.rows[1];
            let mut own_dk = vec![0.0; columns.len() * size];
            let mut own_dv = own_dk.clone();
            for row in piece.rows[0]..piece.rows[1] {
                let [query, dout, out] = [q, dcontext, context].map(|x| self.query(x, row, piece.head));
                let (less, lse) = (dot(dout, out), lse[row * self.heads.query + piece.head]);
                let mut own_dq = vec![0.0; size];
                for column in columns.start..row + 1 {
                    let (key, value) = (self.kv(k, column, piece.head), self.kv(v, column, piece.head));
                    let probability = (dot(query, key) * self.scale - lse).exp();
                    let dscore = probability * (dot(dout, value) - less) * self.scale;
                    let at = (column - columns.start) * size;
                    add(probability, dout, &mut own_dv[at..at + size]);
                    add(dscore, query, &mut own_dk[at..at + size]);
                    add(dscore, key, &mut own_dq);
                }
                let at = (row * self.heads.query + piece.head) * size;
                dq.lock().unwrap()[at..at + size].copy_from_slice(&own_dq);
            }
            for (own, all) in [(own_dk, &dk), (own_dv, &dv)] {
                let mut all = all.lock().unwrap();
                for (column, own) in columns.clone().zip(own.chunks_exact(size)) {
                    add(1.0, own, &mut all[self.kv_start(column, piece.head)..][..size]);
                }
            }
        });
        [dq, dk, dv].map(|gradient| gradient.into_inner().unwrap())
    }

    fn query<'a>(&self, x: &'a [f32], row: usize, head: usize) -> &'a [f32] {
        &x[(row * self.heads.query + head) * self.heads.size..][..self.heads.size]
    }

    fn kv<'a>(&self, x: &'a [f32], column: usize, head: usize) -> &'a [f32] {
        &x[self.kv_start(column, head)..][..self.heads.size]
    }

    fn kv_start(&self, column: usize, query_head: usize) -> usize {
        let head = query_head / (self.heads.query / self.heads.kv);
        (column * self.heads.kv + head) * self.heads.size
    }

    /// Runs `work` for every piece, on all processors.
    fn in_pieces(&self, work: impl Fn(&Piece) + Sync) {
        let mut pieces = Vec::new();
        for pair in self.borders.windows(2) {
            let document = [pair[0] as usize, pair[1] as usize];
            for start in (document[0]..document[1]).step_by(ROWS) {
                let rows = [start, document[1].min(start + ROWS)];
                pieces.extend((0..self.heads.query).map(|head| Piece { head, document, rows }));
            }
        }
        let next = AtomicUsize::new(0);
        let num_threads = std::thread::available_parallelism().map_or(1, |number| number.get());
        std::thread::scope(|scope| {
            for _ in 0..num_threads {
                scope.spawn(|| {
                    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                        work(piece);
                    }
                });
            }
        });
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum()
}

fn add(factor: f32, x: &[f32], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += factor * x;
    }
}
