//! The account of memory: who holds how many bytes, and how many it has been at most. It allocates nothing itself.

use std::sync::{Arc, Mutex, MutexGuard};

use scout_core::ByteCount;

use crate::{DeviceError, Result};

/// What bytes are held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The shard of the weights that this rank keeps.
    Shard,
    /// Whole units, gathered for use.
    Gathered,
    /// Rows of other ranks for experts of this one, and results for rows of this one.
    Arriving,
    /// Trained parameters, their gradients and the optimizer's moments.
    Trained,
    /// What a step computes and keeps until its backward pass.
    Activations,
    /// Scratch memory of libraries and kernels.
    Workspace,
    /// Memory of the host that a GPU reads and writes by itself.
    Pinned,
}

pub const PURPOSES: [Purpose; 7] = [
    Purpose::Shard,
    Purpose::Gathered,
    Purpose::Arriving,
    Purpose::Trained,
    Purpose::Activations,
    Purpose::Workspace,
    Purpose::Pinned,
];

impl Purpose {
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Shard => "weight shard",
            Purpose::Gathered => "gathered units",
            Purpose::Arriving => "rows of other ranks",
            Purpose::Trained => "what is trained and its optimizer",
            Purpose::Activations => "activations",
            Purpose::Workspace => "workspace",
            Purpose::Pinned => "pinned host memory",
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Line {
    now: u64,
    peak: u64,
}

#[derive(Debug)]
struct Book {
    lines: [Line; PURPOSES.len()],
    total: Line,
    budget: Option<u64>,
}

impl Book {
    fn table(&self) -> String {
        let mut text = format!("{:<22} {:>12} {:>12}", "bytes held for", "now", "at most");
        let named = PURPOSES.iter().map(|purpose| (purpose.name(), self.lines[*purpose as usize]));
        for (name, line) in named.filter(|(_, line)| line.peak > 0).chain([("together", self.total)]) {
            let (now, peak) = (ByteCount(line.now).to_string(), ByteCount(line.peak).to_string());
            text.push_str(&format!("\n{name:<22} {now:>12} {peak:>12}"));
        }
        text
    }
}

/// A shared account. Clones see the same book.
#[derive(Debug, Clone)]
pub struct Account {
    // Invariant: `total.now` is the sum of the lines, and never above the budget.
    book: Arc<Mutex<Book>>,
}

/// Bytes taken from an account; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a lease gives its bytes back at once"]
pub struct Lease {
    account: Account,
    purpose: Purpose,
    bytes: u64,
}

impl Account {
    /// With a budget, a lease that would pass it is refused.
    pub fn new(budget: Option<ByteCount>) -> Account {
        let book = Book { lines: Default::default(), total: Line::default(), budget: budget.map(|b| b.0) };
        Account { book: Arc::new(Mutex::new(book)) }
    }

    pub fn lease(&self, purpose: Purpose, bytes: ByteCount) -> Result<Lease> {
        let mut book = self.lock();
        if let Some(budget) = book.budget
            && book.total.now + bytes.0 > budget
        {
            return Err(DeviceError::OutOfMemory {
                purpose: purpose.name().to_string(),
                wanted: bytes,
                in_use: ByteCount(book.total.now),
                budget: ByteCount(budget),
                table: book.table(),
            });
        }
        let Book { lines, total, .. } = &mut *book;
        for line in [&mut lines[purpose as usize], total] {
            line.now += bytes.0;
            line.peak = line.peak.max(line.now);
        }
        Ok(Lease { account: self.clone(), purpose, bytes: bytes.0 })
    }

    pub fn in_use(&self, purpose: Purpose) -> ByteCount {
        ByteCount(self.lock().lines[purpose as usize].now)
    }

    pub fn peak(&self, purpose: Purpose) -> ByteCount {
        ByteCount(self.lock().lines[purpose as usize].peak)
    }

    /// Where the bytes are: a line for each purpose that has or had any.
    pub fn table(&self) -> String {
        self.lock().table()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no holder of this lock panics")
    }

    /// The most bytes held at one time, all purposes together.
    pub fn peak_total(&self) -> ByteCount {
        ByteCount(self.lock().total.peak)
    }
}

impl Lease {
    pub fn bytes(&self) -> ByteCount {
        ByteCount(self.bytes)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A poisoned lock means a panic is already on its way out; the account is of no use then.
        if let Ok(mut book) = self.account.book.lock() {
            book.lines[self.purpose as usize].now -= self.bytes;
            book.total.now -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_knows_now_and_peak_and_keeps_its_budget() {
        let account = Account::new(Some(ByteCount(100)));
        let shard = account.lease(Purpose::Shard, ByteCount(60)).unwrap();
        let slot = account.lease(Purpose::Gathered, ByteCount(40)).unwrap();
        let refused = account.lease(Purpose::Gathered, ByteCount(1)).unwrap_err();
        assert_eq!(refused.exit_code(), scout_core::ExitCode::DeviceUnavailable);
        let hint = refused.hint().unwrap();
        for part in ["per_device_train_batch_size", "cutoff_len", "device_memory", "\nweight shard", "\ntogether"] {
            assert!(hint.contains(part), "{hint}");
        }
        assert_eq!(slot.bytes(), ByteCount(40));
        drop(slot);
        assert_eq!(account.in_use(Purpose::Gathered), ByteCount(0));
        assert_eq!(account.peak(Purpose::Gathered), ByteCount(40));
        let second = account.lease(Purpose::Gathered, ByteCount(30)).unwrap();
        assert_eq!(account.peak(Purpose::Gathered), ByteCount(40));
        assert_eq!(account.peak_total(), ByteCount(100));
        drop((shard, second));
        assert_eq!(account.in_use(Purpose::Shard), ByteCount(0));
    }
}
