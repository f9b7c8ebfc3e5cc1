//! Numbers that every tile needs.

#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub query: usize,
    pub kv: usize,
    pub size: usize,
    pub scale: f32,
}

impl Heads {
    /// Query heads that share a key and value head.
    pub fn group(self) -> usize {
        self.query / self.kv
    }

    pub fn query_width(self) -> usize {
        self.query * self.size
    }

    pub fn kv_width(self) -> usize {
        self.kv * self.size
    }
}
