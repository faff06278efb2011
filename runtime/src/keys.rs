//! Keys that a fleet trusts: ed25519, in the files that `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write.
//!
//! What is private is held in a type that prints nothing of it, and no error quotes a key file.

use crate::sealed;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
};
use ed25519_dalek::{SigningKey, VerifyingKey};
use models::files::{self, FileError};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It holds something else.
    #[error("{file}: {found}, expected {expected}")]
    Kind {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What is needed, and how to come by it.
        expected: &'static str,
    },
    /// The system has no random numbers to give.
    #[error("no key can be made: the system gives no random numbers: {reason}")]
    Random {
        /// Its words.
        reason: String,
    },
}

const PRIVATE: &str =
    "an ed25519 private key in PEM (`runtime keygen`, or `openssl genpkey -algorithm ed25519`)";
const PUBLIC: &str = "an ed25519 public key in PEM (`runtime keygen` writes it too, `openssl pkey -in KEY -pubout` makes it from a private one)";

/// Reads a private key: PKCS#8 in PEM, not encrypted.
pub fn read_private(file: &Path) -> Result<SigningKey, KeyError> {
    let text = read(file)?;
    let refused = |found| KeyError::Kind { file: file.to_owned(), found, expected: PRIVATE };
    match label(&text) {
        Some("PRIVATE KEY") => {}
        Some("PUBLIC KEY") => return Err(refused("holds a public key")),
        Some("ENCRYPTED PRIVATE KEY") => return Err(refused("holds a private key that is encrypted")),
        Some(_) => return Err(refused("holds a key of another kind")),
        None => return Err(refused("is not a key in PEM")),
    }
    // Its reasons are not told: they would help nobody who can read the file.
    SigningKey::from_pkcs8_pem(&text).map_err(|_| refused("holds a damaged key, or one of another kind"))
}

/// Reads a public key: SubjectPublicKeyInfo in PEM.
pub fn read_public(file: &Path) -> Result<VerifyingKey, KeyError> {
    let text = read(file)?;
    let refused = |found| KeyError::Kind { file: file.to_owned(), found, expected: PUBLIC };
    match label(&text) {
        Some("PUBLIC KEY") => {}
        Some(label) if label.ends_with("PRIVATE KEY") => {
            return Err(refused("holds a private key, which no robot should have"));
        }
        Some(_) => return Err(refused("holds a key of another kind")),
        None => return Err(refused("is not a key in PEM")),
    }
    VerifyingKey::from_public_key_pem(&text)
        .map_err(|_| refused("holds a damaged key, or one of another kind"))
}

/// Makes a new pair: the private key at `private`, which nobody else may read, the public one at `public`. Neither may exist.
pub fn generate(private: &Path, public: &Path) -> Result<VerifyingKey, KeyError> {
    for file in [private, public] {
        if file.exists() {
            return Err(FileError::Exists { file: file.to_owned() }.into());
        }
    }
    let random = |error: &dyn std::fmt::Display| KeyError::Random { reason: error.to_string() };
    let mut pair = KeypairBytes { secret_key: [0; 32], public_key: None };
    getrandom::fill(&mut pair.secret_key).map_err(|error| random(&error))?;
    let key = SigningKey::from_bytes(&pair.secret_key).verifying_key();
    // Without the public half: with it, it would be a version that OpenSSL 3.0 does not read.
    let text = pair.to_pkcs8_pem(LineEnding::LF).map_err(|error| random(&error))?;
    let public_text = key.to_public_key_pem(LineEnding::LF).map_err(|error| random(&error))?;
    let write = || -> io::Result<()> {
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(private)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()
    };
    write().map_err(FileError::io(private))?;
    files::write_atomic(public, |out| out.write_all(public_text.as_bytes())).inspect_err(|_| {
        // Half a pair is of no use; the error that matters is the one being reported.
        let _ = fs::remove_file(private);
    })?;
    Ok(key)
}

/// A public key as people tell it from another: the beginning of its SHA-256.
pub fn name(key: &VerifyingKey) -> String {
    sealed::name_of(key.as_bytes())
}

fn read(file: &Path) -> Result<String, FileError> {
    let bytes = fs::read(file).map_err(FileError::io(file))?;
    // What is not text is no key, which the label tells.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// What stands in the first line of a PEM file.
fn label(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The example of RFC 8410, section 10, in openssl's layout.
    const PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    /// The keys of a fleet are made where openssl is, and its files must mean the same pair here.
    #[test]
    fn openssls_files_are_one_pair() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("k.pem"), dir.path().join("p.pem"));
        fs::write(&private, PRIVATE_PEM).unwrap();
        fs::write(&public, PUBLIC_PEM.replace('\n', "\r\n")).unwrap();
        let key = read_private(&private).unwrap();
        assert_eq!(key.verifying_key(), read_public(&public).unwrap());
    }

    /// A key that others can read signs for others.
    #[test]
    fn a_new_pair_fits_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("k.pem"), dir.path().join("p.pem"));
        let key = generate(&private, &public).unwrap();
        assert_eq!(
            (read_private(&private).unwrap().verifying_key(), read_public(&public).unwrap()),
            (key, key)
        );
        assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        // The length of openssl's own: the version without the public half.
        assert_eq!(fs::read_to_string(&private).unwrap().len(), PRIVATE_PEM.len());
        let before = fs::read(&private).unwrap();
        assert!(matches!(generate(&private, &dir.path().join("q.pem")), Err(KeyError::File(_))));
        assert!(matches!(generate(&dir.path().join("j.pem"), &public), Err(KeyError::File(_))));
        assert_eq!(fs::read(&private).unwrap(), before);
        let other = dir.path().join("other.pem");
        assert_ne!(generate(&other, &dir.path().join("o.pem")).unwrap(), key);
        // What is printed of a key by accident.
        let secret = read_private(&private).unwrap();
        let secret_hex = files::hex(secret.as_bytes());
        let bytes = format!("{:?}", secret.as_bytes());
        let printed = format!("{secret:?}");
        assert!(
            !printed.contains(&secret_hex) && !printed.contains(bytes.trim_matches(['[', ']'])),
            "{printed}"
        );
    }

    /// Mixed up files are the commonest mistake, and none may print what it holds.
    #[test]
    fn wrong_key_files_are_named_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k.pem");
        let refused = |text: &str, words: [&str; 2]| {
            fs::write(&file, text).unwrap();
            let both = [read_private(&file).err(), read_public(&file).err()];
            for (error, words) in both.into_iter().zip(words) {
                let message = error.unwrap().to_string();
                assert!(message.contains(words) && message.contains("k.pem"), "{message} lacks {words}");
                let quoted = text.lines().find(|line| line.len() > 20 && message.contains(line));
                assert_eq!(quoted, None, "{message}");
            }
        };
        let kind = "one of another kind";
        refused("no key at all, but a line of some length\n", ["not a key in PEM"; 2]);
        refused("", ["not a key in PEM"; 2]);
        // The same numbers as an X25519 key, and under the label of openssl's older EC keys.
        refused(&PRIVATE_PEM.replace("K2Vw", "K2Vu"), [kind, "holds a private key"]);
        refused(
            &PRIVATE_PEM.replace("PRIVATE", "EC PRIVATE"),
            ["a key of another kind", "holds a private key"],
        );
        let cut = PRIVATE_PEM.replace("MC4C", "");
        refused(&cut, ["damaged", "holds a private key"]);
        let encrypted = PRIVATE_PEM.replace("PRIVATE", "ENCRYPTED PRIVATE");
        refused(&encrypted, ["is encrypted", "holds a private key"]);
        fs::write(&file, PUBLIC_PEM).unwrap();
        assert!(read_private(&file).unwrap_err().to_string().contains("holds a public key"));
        fs::write(&file, PUBLIC_PEM.replace("MCow", "MCoo")).unwrap();
        assert!(read_public(&file).unwrap_err().to_string().contains("damaged"));
        fs::remove_file(&file).unwrap();
        assert!(read_public(&file).unwrap_err().to_string().contains("No such file"));
    }
}
