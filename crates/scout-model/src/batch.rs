//! A flat run of tokens: documents one behind the other, never padding, with the positions that are scored.

use scout_device::{Device, Tensor};
use scout_kernels::attention::Segments;
use scout_kernels::lora::TokenKeys;

use crate::error::{ModelError, Result};

/// One document of a batch: its tokens and a number that names the sample everywhere (dropout depends on it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub sample_id: u64,
    pub tokens: Vec<u32>,
}

/// A scored position: the logits at `row` of the flat run predict `token`, and their loss counts `weight` times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub row: u32,
    pub token: u32,
    pub weight: f32,
}

/// Experts chosen beforehand, one `[T]` tensor a layer: a recorded routing that is replayed.
pub type Routes = Vec<Tensor>;

/// What one forward and backward pass works on. May be empty: a rank without rows still walks through every unit.
#[derive(Debug)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub ids: Tensor,
    /// Position of each token inside its document, `[T]`.
    pub positions: Tensor,
    /// Where documents begin and the last one ends: attention on layers without rotation.
    pub documents: Segments,
    /// The same, cut again at every multiple of the chunk size: attention on layers with rotation.
    pub chunks: Segments,
    pub token_keys: TokenKeys,
    /// Scored rows of the flat run, `[N]`, with the tokens they predict and how much each counts.
    pub target_rows: Tensor,
    pub target_tokens: Tensor,
    pub target_weights: Tensor,
    /// The same weights where the loss is added up, on the host.
    pub weights_on_host: Tensor,
    /// Which expert of each layer takes which token, where that was decided beforehand.
    pub routes: Option<Routes>,
}

/// Pairs of positions that see each other, causal: on layers that see whole documents, and on those that see chunks of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttendedPairs {
    pub in_documents: u64,
    pub in_chunks: u64,
}

impl Batch {
    /// Fails when a target lies outside the run.
    pub fn new(documents: &[Document], targets: &[Target], chunk_size: usize) -> Result<Batch> {
        let num_tokens: usize = documents.iter().map(|document| document.tokens.len()).sum();
        if let Some(target) = targets.iter().find(|target| target.row as usize >= num_tokens) {
            return Err(ModelError::Batch(format!("target row {} lies outside {num_tokens} tokens", target.row)));
        }
        let mut ids = Vec::with_capacity(num_tokens);
        let mut positions = Vec::with_capacity(num_tokens);
        let mut samples = Vec::with_capacity(num_tokens);
        let (mut document_starts, mut chunk_starts) = (vec![0], vec![0]);
        for document in documents.iter().filter(|document| !document.tokens.is_empty()) {
            let start = ids.len();
            ids.extend_from_slice(&document.tokens);
            positions.extend(0..document.tokens.len() as u32);
            samples.resize(ids.len(), document.sample_id);
            let cuts = (start + chunk_size..ids.len()).step_by(chunk_size);
            chunk_starts.extend(cuts.chain([ids.len()]).map(|cut| cut as u32));
            document_starts.push(ids.len() as u32);
        }
        let num_targets = targets.len();
        let weights = Tensor::from_f32(targets.iter().map(|t| t.weight).collect(), [num_targets])?;
        Ok(Batch {
            ids: Tensor::from_u32(ids, [num_tokens])?,
            token_keys: TokenKeys::new(&samples, &positions)?,
            positions: Tensor::from_u32(positions, [num_tokens])?,
            documents: Segments::new(document_starts)?,
            chunks: Segments::new(chunk_starts)?,
            target_rows: Tensor::from_u32(targets.iter().map(|t| t.row).collect(), [num_targets])?,
            target_tokens: Tensor::from_u32(targets.iter().map(|t| t.token).collect(), [num_targets])?,
            weights_on_host: weights.clone(),
            target_weights: weights,
            routes: None,
        })
    }

    /// The same batch where it is to be computed. To a GPU all copies are queued; from host to host nothing is copied.
    pub fn to_device(&self, device: &Device) -> Result<Batch> {
        let send = |tensor: &Tensor| match device {
            Device::Cpu => Ok(tensor.clone()),
            Device::Cuda(gpu) => gpu.send(tensor),
        };
        let routes = self.routes.as_ref().map(|routes| routes.iter().map(send).collect::<scout_device::Result<_>>());
        Ok(Batch {
            ids: send(&self.ids)?,
            positions: send(&self.positions)?,
            documents: Segments::new(self.documents.borders().to_vec())?,
            chunks: Segments::new(self.chunks.borders().to_vec())?,
            token_keys: self.token_keys.to_device(device)?,
            target_rows: send(&self.target_rows)?,
            target_tokens: send(&self.target_tokens)?,
            target_weights: send(&self.target_weights)?,
            weights_on_host: self.weights_on_host.clone(),
            routes: routes.transpose()?,
        })
    }

    pub fn num_tokens(&self) -> usize {
        self.ids.num_elements()
    }

    pub fn attended_pairs(&self) -> AttendedPairs {
        let inside = |segments: &Segments| {
            let lengths = segments.borders().windows(2).map(|bound| u64::from(bound[1] - bound[0]));
            lengths.map(|len| len * (len + 1) / 2).sum()
        };
        AttendedPairs { in_documents: inside(&self.documents), in_chunks: inside(&self.chunks) }
    }

    pub fn num_targets(&self) -> usize {
        self.target_rows.num_elements()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(len: usize) -> Document {
        Document { sample_id: len as u64, tokens: vec![7; len] }
    }

    #[test]
    fn chunks_are_counted_from_the_start_of_each_document() {
        for (lengths, chunk_size, documents, chunks) in [
            (vec![5, 3], 4, vec![0, 5, 8], vec![0, 4, 5, 8]),
            (vec![4, 8, 9], 4, vec![0, 4, 12, 21], vec![0, 4, 8, 12, 16, 20, 21]),
            (vec![1, 1], 8192, vec![0, 1, 2], vec![0, 1, 2]),
            (vec![], 4, vec![0], vec![0]),
            (vec![0, 2], 4, vec![0, 2], vec![0, 2]),
        ] {
            let run: Vec<Document> = lengths.iter().map(|&len| document(len)).collect();
            let batch = Batch::new(&run, &[], chunk_size).unwrap();
            assert_eq!(batch.documents.borders(), documents, "{lengths:?}");
            assert_eq!(batch.chunks.borders(), chunks, "{lengths:?}");
        }
        // Ten pairs in the first chunk and one in the second, where fifteen are in the document; six in the other.
        let pairs = Batch::new(&[document(5), document(3)], &[], 4).unwrap().attended_pairs();
        assert_eq!(pairs, AttendedPairs { in_documents: 15 + 6, in_chunks: 10 + 1 + 6 });
    }

    #[test]
    fn positions_restart_in_every_document_and_targets_stay_inside() {
        let batch = Batch::new(&[document(3), document(2)], &[], 4).unwrap();
        assert_eq!(&*batch.positions.u32s().unwrap(), &[0, 1, 2, 0, 1]);
        let names = batch.token_keys.names().u32s().unwrap().to_vec();
        assert_eq!(names, [3, 0, 0, 3, 0, 1, 3, 0, 2, 2, 0, 0, 2, 0, 1]);
        let outside = Target { row: 5, token: 0, weight: 1.0 };
        assert!(Batch::new(&[document(3), document(2)], &[outside], 4).is_err());
    }
}
