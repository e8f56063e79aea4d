//! Randomness for pauses and renewals: those who began together must not go on together.

use ring::rand::{SecureRandom, SystemRandom};

/// Uniform over all `u32`. Without randomness it is the largest: late, and no reason to stop.
pub fn random() -> u32 {
    let mut bytes = [0; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u32::from_ne_bytes(bytes),
        Err(_) => u32::MAX,
    }
}
