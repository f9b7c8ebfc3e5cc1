//! The secret by which the ranks of one job know each other. It travels as digits and shows itself nowhere else, in no
//! message, no log and no debug print.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::exit::ExitCode;
use crate::private::{NotPrivate, expect_private_file};
use crate::random::{NoRandomness, random};

const TOKEN_LEN: usize = 32;

/// 256 bits that only the ranks of one job know.
#[derive(Clone)]
pub struct Token([u8; TOKEN_LEN]);

/// Why there is no token where one was expected. The digits themselves stay out of it, wrong as they may be.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("could not read the job's token from `{}`", path.display())]
    Unread {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    NotPrivate(#[from] NotPrivate),
    #[error("the job's token needs {} hexadecimal digits", 2 * TOKEN_LEN)]
    Malformed,
}

impl Token {
    /// A new one, from the operating system.
    pub fn generate() -> Result<Token, NoRandomness> {
        random().map(Token)
    }

    /// Reads 64 hexadecimal digits, as the launcher hands them to its ranks.
    pub fn from_hex(digits: &str) -> Result<Token, TokenError> {
        let digits = digits.trim().as_bytes();
        if digits.len() != 2 * TOKEN_LEN {
            return Err(TokenError::Malformed);
        }
        let mut token = [0; TOKEN_LEN];
        for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(TokenError::Malformed);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Token(token))
    }

    /// Reads a file of 64 hexadecimal digits that belongs to this user and that nobody else can read.
    pub fn from_file(path: &Path) -> Result<Token, TokenError> {
        let unread = |cause| TokenError::Unread { path: path.to_path_buf(), cause };
        let mut file = File::open(path).map_err(unread)?;
        expect_private_file(&file, path)?;
        let mut digits = String::new();
        file.by_ref().take(1024).read_to_string(&mut digits).map_err(unread)?;
        Token::from_hex(&digits)
    }

    /// For the environment of the ranks, and for nothing else.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// For making keys of them, and for nothing else.
    pub fn bytes(&self) -> &[u8; TOKEN_LEN] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

impl TokenError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            TokenError::Unread { cause, .. } => ExitCode::of_io(cause, ExitCode::MissingInput),
            TokenError::NotPrivate(cause) => cause.exit_code(),
            TokenError::Malformed => ExitCode::BadConfig,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            TokenError::Unread { .. } => None,
            TokenError::NotPrivate(cause) => cause.hint(),
            TokenError::Malformed => Some("`openssl rand -hex 32` writes one".to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_travels_as_digits_and_shows_itself_nowhere_else() {
        let token = Token::generate().unwrap();
        let digits = token.to_hex();
        assert_eq!(digits.len(), 64);
        assert_eq!(Token::from_hex(&format!("{digits}\n")).unwrap().0, token.0);
        assert_ne!(Token::generate().unwrap().0, token.0);
        assert_eq!(format!("{token:?}"), "Token(not shown)");
    }

    #[test]
    fn digits_that_are_no_token_are_refused_without_being_repeated() {
        for wrong in ["", "abc", &"g".repeat(64), &"0".repeat(63), &"ä".repeat(32)] {
            let error = Token::from_hex(wrong).unwrap_err();
            assert_eq!(error.to_string(), "the job's token needs 64 hexadecimal digits");
            assert_eq!(error.exit_code(), ExitCode::BadConfig);
        }
    }

    #[test]
    fn a_token_file_must_be_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::generate().unwrap();
        fs::write(&path, token.to_hex()).unwrap();
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o666, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match Token::from_file(&path) {
                Ok(read) => assert!(is_good && read.0 == token.0, "{mode:o}"),
                Err(error) => {
                    assert!(!is_good, "{mode:o}: {error}");
                    assert_eq!(error.exit_code(), ExitCode::PermissionDenied);
                    assert!(error.hint().unwrap().contains("chmod 600"), "{:?}", error.hint());
                }
            }
        }
        let missing = Token::from_file(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.exit_code(), ExitCode::MissingInput);
    }
}
