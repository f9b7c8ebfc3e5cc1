//! A model folder's tokenizer: text to ids and back. Knows nothing of conversations.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::json::Json;

const END_OF_TURN: &str = "<|eot|>";
const BEGIN_OF_TEXT: &str = "<|begin_of_text|>";

/// `tokenizer.json` together with the names in `tokenizer_config.json`.
///
/// Having one proves that the vocabulary has the beginning of a text and the end of a turn.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eot: u32,
    bos_token: String,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where it is there, `tokenizer_config.json` of a model folder.
    pub fn load(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|cause| DataError::Read { path: path.clone(), cause })?;
        let bos_token = read_config(folder)?.and_then(|config| token_name(&config, "bos_token"));
        Tokenizer::from_bytes(&bytes, &path, bos_token)
    }

    fn from_bytes(bytes: &[u8], path: &Path, bos_token: Option<String>) -> Result<Tokenizer> {
        let failed = |cause| DataError::Tokenizer { path: path.to_path_buf(), cause };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(failed)?;
        // A file may carry the cut and the padding of the run that saved it. They are that run's, not ours, and
        // would shorten texts without a word.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let find =
            |token: &str| inner.token_to_id(token).ok_or_else(|| DataError::MissingToken { token: token.to_string() });
        let bos_token = bos_token.unwrap_or_else(|| BEGIN_OF_TEXT.to_string());
        let (bos, eot) = (find(&bos_token)?, find(END_OF_TURN)?);
        Ok(Tokenizer { inner, bos, eot, bos_token })
    }

    /// The ids of a text. Nothing is put in front; special tokens standing in the text are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(DataError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text as the tokenizer frames it on its own: with the beginning of a text in front.
    pub fn encode_with_bos(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(DataError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(DataError::Encode)
    }

    /// The id of a token by its exact name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.inner.token_to_id(name)
    }

    /// Tokens including the special ones. The embedding table may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Rows an embedding table must have for every id: ids may leave holes, so this can be more than there are tokens.
    pub fn num_ids(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1)
    }

    /// The beginning of a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The end of a turn.
    pub fn eot(&self) -> u32 {
        self.eot
    }

    pub fn bos_token(&self) -> &str {
        &self.bos_token
    }
}

/// `tokenizer_config.json`, where the folder has one.
pub(crate) fn read_config(folder: &Path) -> Result<Option<Json>> {
    let path: PathBuf = folder.join("tokenizer_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
            return Err(DataError::File { path, problem: "is not UTF-8".to_string() });
        }
        Err(cause) => return Err(DataError::Read { path, cause }),
    };
    Json::parse(&text).map(Some).map_err(|cause| DataError::Tokenizer { path, cause: Box::new(cause) })
}

/// A token's name, which is either a text or an object around it.
pub(crate) fn token_name(config: &Json, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_text().or_else(|| value.get("content")?.as_text()).map(str::to_string)
}
