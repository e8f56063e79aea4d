//! One session a server, however many addresses lead there.
//!
//! Each address has its task, and which server an address leads to shows only in that server's HELLO. The task that
//! hears an id first claims it; the others stand by until the claim is given up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use yurt_api::tunnel::ServerId;

/// Who has which server. At most one entry an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(Arc<Mutex<HashMap<ServerId, Holder>>>);

/// The address that a server was claimed through.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) address: String,
    /// Cancelled when it gives the server up.
    pub(super) gave_up: CancellationToken,
}

impl Claims {
    /// Claims a server for an address; the address that has it already otherwise.
    pub(super) fn claim(&self, server: &ServerId, address: &str) -> Result<Claim, Holder> {
        let mut all = self.lock();
        if let Some(holder) = all.get(server) {
            return Err(holder.clone());
        }
        let holder = Holder { address: address.to_owned(), gave_up: CancellationToken::new() };
        let gave_up = holder.gave_up.clone();
        all.insert(server.clone(), holder);
        Ok(Claim { claims: self.clone(), server: server.clone(), gave_up })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServerId, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server is this task's until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Claims,
    server: ServerId,
    gave_up: CancellationToken,
}

impl Claim {
    /// Which one.
    pub(super) fn server(&self) -> &ServerId {
        &self.server
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.server);
        self.gave_up.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_one_addresss_until_that_gives_it_up() {
        let claims = Claims::default();
        let (one, two) = (ServerId::new("cp-1").unwrap(), ServerId::new("cp-2").unwrap());
        let first = claims.claim(&one, "vpn:10262").unwrap();
        let _other = claims.claim(&two, "192.0.2.7:10262").unwrap();
        let holder = claims.claim(&one, "192.0.2.6:10262").unwrap_err();
        assert_eq!((holder.address.as_str(), holder.gave_up.is_cancelled()), ("vpn:10262", false));
        drop(first);
        assert!(holder.gave_up.is_cancelled());
        assert_eq!(claims.claim(&one, "192.0.2.6:10262").unwrap().server(), &one);
    }
}
