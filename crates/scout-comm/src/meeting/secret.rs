//! The job's secret and what is made with it: proofs of knowing it, keys for links. It is compared in constant time and
//! never shown, in no message, no log and no debug print.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{CommError, Result};

pub(crate) const KEY_LEN: usize = 32;
pub(crate) const NONCE_LEN: usize = 32;

/// 256 bits that only the ranks of one job know.
#[derive(Clone)]
pub struct Token([u8; KEY_LEN]);

impl Token {
    /// A new one, from the operating system.
    pub fn generate() -> Result<Token> {
        Ok(Token(random()?))
    }

    /// Reads 64 hexadecimal digits, as the launcher hands them to its ranks.
    pub fn from_hex(digits: &str) -> Result<Token> {
        let digits = digits.trim().as_bytes();
        // The digits themselves stay out of the message, wrong as they may be.
        let wrong = || CommError::BadToken { problem: format!("needs {} hexadecimal digits", 2 * KEY_LEN) };
        if digits.len() != 2 * KEY_LEN {
            return Err(wrong());
        }
        let mut token = [0; KEY_LEN];
        for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(wrong);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Token(token))
    }

    /// Reads a file of 64 hexadecimal digits that belongs to this user and that nobody else can read.
    pub fn from_file(path: &Path) -> Result<Token> {
        let unread = |cause| CommError::TokenFile { path: path.to_path_buf(), cause };
        let mut file = File::open(path).map_err(unread)?;
        // Asked of the open file, so that nobody can exchange it in between.
        let about = file.metadata().map_err(unread)?;
        let refused = |problem: String| Err(CommError::OpenToOthers { path: path.to_path_buf(), problem });
        if !about.is_file() {
            return refused("is not a plain file".to_string());
        }
        if about.uid() != rustix::process::geteuid().as_raw() {
            return refused(format!("belongs to user {}", about.uid()));
        }
        if about.mode() & 0o077 != 0 {
            return refused(format!("can be used by others (mode {:04o})", about.mode() & 0o7777));
        }
        let mut digits = String::new();
        file.by_ref().take(1024).read_to_string(&mut digits).map_err(unread)?;
        Token::from_hex(&digits)
    }

    /// For the environment of the ranks, and for nothing else.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn key(&self) -> Key {
        Key(self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redacted")
    }
}

/// What a proof is made with: the token itself, or something derived from it for one link.
#[derive(Clone)]
pub(crate) struct Key([u8; KEY_LEN]);

impl Key {
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

/// Bytes nobody can guess.
pub(crate) fn random() -> Result<[u8; NONCE_LEN]> {
    let mut bytes = [0; NONCE_LEN];
    let mut filled = 0;
    while filled < NONCE_LEN {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| CommError::NoRandomness { cause: errno.into() })?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_travels_as_digits_and_shows_itself_nowhere_else() {
        let token = Token::generate().unwrap();
        let digits = token.to_hex();
        assert_eq!(digits.len(), 64);
        assert_eq!(Token::from_hex(&format!("{digits}\n")).unwrap().0, token.0);
        assert_ne!(Token::generate().unwrap().0, token.0);
        for shown in [format!("{token:?}"), format!("{token}"), format!("{:?}", token.key())] {
            assert!(shown.contains("redacted") && !shown.contains(&digits[..8]), "{shown}");
        }
    }

    #[test]
    fn digits_that_are_no_token_are_refused_without_being_repeated() {
        for wrong in ["", "abc", &"g".repeat(64), &"0".repeat(63), &"ä".repeat(32)] {
            let error = Token::from_hex(wrong).unwrap_err();
            assert_eq!(error.to_string(), "the job's token needs 64 hexadecimal digits");
        }
    }

    #[test]
    fn a_token_file_must_be_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::generate().unwrap();
        std::fs::write(&path, token.to_hex()).unwrap();
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o666, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match Token::from_file(&path) {
                Ok(read) => assert!(is_good && read.0 == token.0, "{mode:o}"),
                Err(error) => {
                    assert!(!is_good, "{mode:o}: {error}");
                    assert_eq!(error.exit_code(), scout_core::ExitCode::PermissionDenied);
                    assert!(error.hint().unwrap().contains("chmod 600"), "{:?}", error.hint());
                }
            }
        }
        let missing = Token::from_file(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.exit_code(), scout_core::ExitCode::MissingInput);
    }

    #[test]
    fn a_proof_depends_on_key_purpose_and_every_word() {
        let key = Token::generate().unwrap().key();
        let proof = key.proof("hello", &[b"ab", b"c"]);
        assert_eq!(proof, Proof::from_bytes(*key.proof("hello", &[b"ab", b"c"]).bytes()));
        assert_ne!(proof, key.proof("hello", &[b"a", b"bc"]));
        assert_ne!(proof, key.proof("welcome", &[b"ab", b"c"]));
        assert_ne!(proof, key.derive("link", &[]).proof("hello", &[b"ab", b"c"]));
        assert_ne!(proof, Key::of_one_host().proof("hello", &[b"ab", b"c"]));
    }
}
