//! Secrets at rest: AES-256-GCM under a key in a file of its own, which can live on another medium than the store.
//!
//! A sealed value is `nonce (12) ++ ciphertext ++ tag (16)`; the record's key is authenticated with it, so that values
//! cannot be swapped on the disk. Nonces are random: 2^32 values under one key are far beyond an edge node's life.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::StoreError;

const KEY_LEN: usize = 32;

/// Seals and opens values.
pub(crate) struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// By how much a sealed value is longer: the nonce and the tag of AES-256-GCM.
    pub(super) const OVERHEAD: usize = NONCE_LEN + 16;

    /// Reads the key, or makes one (0600) if there is none.
    pub(super) fn load(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        let random = SystemRandom::new();
        let bytes = match fs::read(path) {
            Ok(bytes) if bytes.len() == KEY_LEN => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
                bytes
            }
            // A power cut before the rename below cannot leave this; something else wrote it. Whatever was sealed with
            // the true key is lost either way, and the probe in `meta` will say so.
            Ok(_) => Self::create(path, &random).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(path, &random).map_err(failed)?
            }
            // A file system has made something else of it: it is kept, and lost like one that is too short.
            Err(_) if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) => {
                fs::rename(path, path.with_extension("key.damaged")).map_err(failed)?;
                Self::create(path, &random).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes)
            .map_err(|_| StoreError::Failed(format!("{} is no key", path.display())))?;
        Ok(Self { key: LessSafeKey::new(key), random })
    }

    fn create(path: &Path, random: &SystemRandom) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; KEY_LEN];
        random.fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(bytes)
    }

    /// Seals a value for the record `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Failed`] when the system has no randomness.
    pub(crate) fn seal(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = |_| StoreError::Failed("cannot seal a value".to_owned());
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + value.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(key), &mut sealed[NONCE_LEN..])
            .map_err(failed)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Opens a value of the record `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] when it was not sealed for this record with this key.
    pub(crate) fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let damaged = || StoreError::Damaged("a sealed value does not open".to_owned());
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut value = rest.to_vec();
        let length = self.key.open_in_place(nonce, Aad::from(key), &mut value).map_err(|_| damaged())?.len();
        value.truncate(length);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_for_its_own_record_alone() {
        let dir = tempfile::tempdir().unwrap();
        let sealer = Sealer::load(&dir.path().join("key")).unwrap();
        let sealed = sealer.seal(b"a", b"secret").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(sealer.open(b"a", &sealed).unwrap(), b"secret");
        assert!(sealer.open(b"b", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(sealer.open(b"a", &bent).is_err());
            assert!(sealer.open(b"a", &sealed[..at]).is_err());
        }
    }

    #[test]
    fn the_key_file_is_private_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = Sealer::load(&path).unwrap().seal(b"a", b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Sealer::load(&path).unwrap().open(b"a", &sealed).unwrap(), b"secret");
    }
}
