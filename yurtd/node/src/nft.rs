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

use rustix::io::Errno;

pub use self::held::Held;
pub use self::table::{Action, Chain, Family, Hook, Match, Rule, Set, Table};

/// Something is short, or somebody was quicker.
const PASSING: [Errno; 7] =
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::INTR, Errno::AGAIN, Errno::BUSY];

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

impl NftError {
    /// Whether it says nothing of what the kernel can do: the next try may go another way.
    pub fn is_passing(&self) -> bool {
        let error = match self {
            Self::Changed | Self::Answer => return true,
            Self::Socket(error) | Self::Refused(error) => error,
        };
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        code.is_some_and(|code| PASSING.contains(&code))
    }
}

#[cfg(test)]
mod tests;
