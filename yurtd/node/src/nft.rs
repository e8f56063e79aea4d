//! Tables of ours in the kernel's nftables: written in one transaction, looked at, put back, taken away.
//!
//! ```text
//! Table ──messages (table)──▶ bytes (message) ──Netfilter (socket)──▶ kernel ──answers (dump)──▶ Seen
//! ```
//!
//! A role says what its [`Table`] is; [`Held`] keeps it. The kernel could give the table to our socket (`flags owner`);
//! that is not asked for, because then an administrator could not remove the rules while the process runs.
//!
//! The image has no `nft` program, so messages are written and read here. Of them only what our tables need: sets of
//! addresses, with or without ports, chains of type `nat`, rules that send TCP connections somewhere else.

mod dump;
pub(crate) mod fuzzing;
mod held;
mod message;
mod socket;
mod table;

use std::io;

pub use self::held::Held;
pub use self::table::{Action, Chain, Family, Hook, Match, Rule, Set, Table};

/// Why the kernel has not what it should, or does not say what it has.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket fails.
    #[error("netlink: {0}")]
    Socket(io::Error),
    /// The kernel refuses.
    #[error("the kernel refuses the nftables table: {0}")]
    Refused(io::Error),
    /// The kernel does not answer as it should.
    #[error("unexpected answer from the kernel")]
    Answer,
    /// The rules were changed while they were read.
    #[error("the rules were changed while they were read")]
    Changed,
}

#[cfg(test)]
mod tests;
