//! A netlink socket to nftables: sends a transaction and waits for the kernel's verdict.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::NftError;
use super::message::Messages;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
/// The kernel works on a transaction before it answers; this is for one that does not.
const ANSWER: Duration = Duration::from_secs(10);

pub(super) struct Netfilter {
    socket: TokioSocket,
    sequence: u32,
}

/// What one message from the kernel says about a request.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    sequence: u32,
    /// 0, or the negative `errno`.
    error: i32,
}

impl Netfilter {
    pub(super) fn open() -> Result<Self, NftError> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(NftError::Socket)?;
        socket.socket_mut().bind_auto().map_err(NftError::Socket)?;
        // A batch is one datagram: 20,000 nodes are half a megabyte.
        let _ = socket2::SockRef::from(socket.socket_ref()).set_send_buffer_size(4 * 1024 * 1024);
        socket.socket_ref().connect(&SocketAddr::new(0, 0)).map_err(NftError::Socket)?;
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends a transaction; all of it has happened, or nothing.
    pub(super) async fn transact(&mut self, messages: Messages) -> Result<(), NftError> {
        self.query(messages).await
    }

    /// Sends a request whose answer but for its verdict does not matter.
    pub(super) async fn query(&mut self, messages: Messages) -> Result<(), NftError> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(messages.len());
        let (bytes, last) = messages.numbered(first);
        let exchange = async {
            self.socket.send(&bytes).await.map_err(NftError::Socket)?;
            loop {
                let (datagram, _) = self.socket.recv_from_full().await.map_err(NftError::Socket)?;
                if let Some(verdict) = verdict(&datagram, first, last)? {
                    return verdict;
                }
            }
        };
        tokio::time::timeout(ANSWER, exchange).await.unwrap_or(Err(NftError::Answer))
    }
}

/// The verdict about the request with the sequence numbers `first` to `last`, if the datagram has it: its
/// first error, or the acknowledgement of `last`. Answers to earlier requests are skipped.
pub(super) fn verdict(
    mut datagram: &[u8],
    first: u32,
    last: u32,
) -> Result<Option<Result<(), NftError>>, NftError> {
    let span = last.wrapping_sub(first);
    while !datagram.is_empty() {
        let (verdict, rest) = next(datagram).ok_or(NftError::Answer)?;
        datagram = rest;
        let Some(Verdict { sequence, error }) = verdict else { continue };
        if sequence.wrapping_sub(first) > span {
            continue;
        }
        if error != 0 {
            return Ok(Some(Err(NftError::Refused(io::Error::from_raw_os_error(error.saturating_neg())))));
        }
        if sequence == last {
            return Ok(Some(Ok(())));
        }
    }
    Ok(None)
}

/// Takes one message off; `Some(None)` is one that is no verdict.
fn next(datagram: &[u8]) -> Option<(Option<Verdict>, &[u8])> {
    let header = datagram.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    if kind != NLMSG_ERROR {
        return Some((None, rest));
    }
    let error = i32::from_ne_bytes(*message[HEADER..].first_chunk::<4>()?);
    Some((Some(Verdict { sequence, error }), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sequence: u32, errno: i32) -> Vec<u8> {
        let mut message = 36u32.to_ne_bytes().to_vec();
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend(0u16.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(errno.to_ne_bytes());
        message.extend([0; 16]);
        message
    }

    fn is_refused(outcome: Result<Option<Result<(), NftError>>, NftError>, errno: i32) -> bool {
        matches!(outcome, Ok(Some(Err(NftError::Refused(error)))) if error.raw_os_error() == Some(errno))
    }

    #[test]
    fn the_acknowledgement_of_the_last_message_is_success() {
        assert!(matches!(verdict(&error(7, 0), 3, 7), Ok(Some(Ok(())))));
        assert!(matches!(verdict(&error(6, 0), 3, 7), Ok(None)));
    }

    #[test]
    fn any_error_of_the_request_is_failure() {
        let datagram = [error(4, -17), error(7, 0)].concat();
        assert!(is_refused(verdict(&datagram, 3, 7), 17));
        assert!(is_refused(verdict(&error(3, -1), 3, 7), 1));
    }

    #[test]
    fn answers_to_earlier_requests_are_skipped() {
        let datagram = [error(2, -17), error(7, 0)].concat();
        assert!(matches!(verdict(&datagram, 3, 7), Ok(Some(Ok(())))));
        assert!(matches!(verdict(&error(u32::MAX, -1), 3, 7), Ok(None)));
        // Around the end of the numbers.
        assert!(matches!(verdict(&error(1, 0), u32::MAX, 1), Ok(Some(Ok(())))));
    }

    #[test]
    fn half_a_message_is_an_error_and_no_panic() {
        let whole = error(7, 0);
        for length in 1..20 {
            assert!(matches!(verdict(&whole[..length], 3, 7), Err(NftError::Answer)));
        }
        let mut lying = whole.clone();
        lying[0] = 8;
        assert!(matches!(verdict(&lying, 3, 7), Err(NftError::Answer)));
    }
}
