//! What is made with the job's token: proofs of knowing it, keys for links. It is compared in constant time and never
//! shown, in no message, no log and no debug print.

use std::fmt;

use scout_core::Token;

pub(crate) const KEY_LEN: usize = 32;

/// What a proof is made with: the token itself, or something derived from it for one link.
#[derive(Clone)]
pub(crate) struct Key([u8; KEY_LEN]);

impl Key {
    /// The key of the ranks that share `token`.
    pub fn of_job(token: &Token) -> Key {
        Key(*token.bytes())
    }

    /// Where the system itself says who is at the other end, the same words are exchanged under a key that is no secret.
    pub fn of_one_host() -> Key {
        Key(*blake3::hash(b"scout-dist: ranks of one host").as_bytes())
    }

    /// The proof that whoever made it knows this key and means these words. `purpose` keeps one kind of proof from being
    /// shown as another.
    pub fn proof(&self, purpose: &str, words: &[&[u8]]) -> Proof {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for words in [purpose.as_bytes()].iter().chain(words) {
            // With its length in front, no part can lend bytes to the next.
            hasher.update(&(words.len() as u64).to_le_bytes());
            hasher.update(words);
        }
        Proof(hasher.finalize())
    }

    /// Another key, which tells nothing about this one.
    pub fn derive(&self, purpose: &str, words: &[&[u8]]) -> Key {
        Key(*self.proof(purpose, words).0.as_bytes())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Compared in constant time, by `blake3` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof(blake3::Hash);

impl Proof {
    pub fn bytes(&self) -> &[u8; KEY_LEN] {
        self.0.as_bytes()
    }

    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Proof {
        Proof(blake3::Hash::from_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show_the_token_it_is_of() {
        assert_eq!(format!("{:?}", Key::of_job(&Token::generate().unwrap())), "Key(redacted)");
    }

    #[test]
    fn a_proof_depends_on_key_purpose_and_every_word() {
        let key = Key::of_job(&Token::generate().unwrap());
        let proof = key.proof("hello", &[b"ab", b"c"]);
        assert_eq!(proof, Proof::from_bytes(*key.proof("hello", &[b"ab", b"c"]).bytes()));
        assert_ne!(proof, key.proof("hello", &[b"a", b"bc"]));
        assert_ne!(proof, key.proof("welcome", &[b"ab", b"c"]));
        assert_ne!(proof, key.derive("link", &[]).proof("hello", &[b"ab", b"c"]));
        assert_ne!(proof, Key::of_one_host().proof("hello", &[b"ab", b"c"]));
    }
}
