//! Every value is stored with a checksum of itself, its key and its table: LMDB has none, and a card that flips a bit says
//! nothing. CRC-32, as Ethernet and ext4 have it: against accidents, not against people (what is secret is sealed).
//!
//! A record that does not match is damaged, which costs its view alone.

use super::StoreError;

const LENGTH: usize = 4;

/// How long a value is with its checksum.
pub(super) fn stored(length: usize) -> usize {
    length + LENGTH
}

/// What follows a value.
pub(super) fn of(table: u32, key: &[u8], value: &[u8]) -> [u8; LENGTH] {
    let mut hasher = crc32fast::Hasher::new_with_initial(table);
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

/// The value without its checksum, if that is right.
pub(super) fn verified<'v>(table: u32, key: &[u8], stored: &'v [u8]) -> Result<&'v [u8], StoreError> {
    match stored.split_last_chunk() {
        Some((value, found)) if *found == of(table, key, value) => Ok(value),
        _ => Err(StoreError::Damaged("its checksum does not match".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_good_at_its_own_place_alone() {
        let stored = |table, key: &[u8]| [b"value".as_slice(), &of(table, key, b"value")].concat();
        let good = stored(1, b"key");
        assert_eq!(verified(1, b"key", &good).unwrap(), b"value");
        for (table, key) in [(2, b"key"), (1, b"kez")] {
            assert!(verified(table, key, &good).is_err());
        }
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(verified(1, b"key", &bad).is_err(), "bit {at}");
        }
        assert!(verified(1, b"key", b"").is_err());
    }
}
