//! A netlink socket to nftables: sends a transaction, or a question, and waits for the kernel's verdict.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::NftError;
use super::message::Messages;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// What is dumped changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const HEADER: usize = 16;
/// The kernel works on a transaction before it answers; this is for one that does not.
const ANSWER: Duration = Duration::from_secs(10);
/// The largest transaction, bytes: 100,000 kubelets with IPv6 addresses are 4 MiB of messages, and the kernel counts what
/// it needs to hold them, too.
const BUFFER: usize = 16 << 20;

pub(super) struct Netfilter {
    socket: TokioSocket,
    sequence: u32,
}

/// What one message from the kernel says about a request.
enum Says<'a> {
    /// How it went: 0, or the negative `errno`.
    Verdict(i32),
    /// The answer.
    Something(&'a [u8]),
}

struct Message<'a> {
    sequence: u32,
    interrupted: bool,
    says: Says<'a>,
}

impl Netfilter {
    pub(super) fn open() -> Result<Self, NftError> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(NftError::Socket)?;
        socket.socket_mut().bind_auto().map_err(NftError::Socket)?;
        // A batch is one datagram, and the kernel refuses one that is larger than the buffer. Beyond
        // `net.core.wmem_max` (208 KiB mostly, 10,000 nodes) only who may administer the network is given any.
        if let Err(error) =
            rustix::net::sockopt::set_socket_send_buffer_size_force(socket.socket_ref(), BUFFER)
        {
            tracing::debug!(%error, "the send buffer is as large as anybody's");
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket.socket_ref(), BUFFER);
        }
        socket.socket_ref().connect(&SocketAddr::new(0, 0)).map_err(NftError::Socket)?;
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends a transaction; all of it has happened, or nothing.
    pub(super) async fn transact(&mut self, messages: Messages) -> Result<(), NftError> {
        self.ask(messages, |_| Ok(())).await
    }

    /// Sends a question, and gives each message of the answer away.
    pub(super) async fn ask(
        &mut self,
        messages: Messages,
        mut take: impl FnMut(&[u8]) -> Result<(), NftError>,
    ) -> Result<(), NftError> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(messages.len());
        let (bytes, last) = messages.numbered(first);
        let exchange = async {
            self.socket.send(&bytes).await.map_err(NftError::Socket)?;
            loop {
                let (datagram, _) = self.socket.recv_from_full().await.map_err(NftError::Socket)?;
                if let Some(verdict) = verdict(&datagram, first, last, &mut take)? {
                    return verdict;
                }
            }
        };
        tokio::time::timeout(ANSWER, exchange).await.unwrap_or(Err(NftError::Answer))
    }
}

/// The verdict about the request with the sequence numbers `first` to `last`, if the datagram has it: its
/// first error, or the acknowledgement or end of `last`. What it says before goes to `take`. Answers to earlier requests
/// are skipped.
pub(super) fn verdict(
    mut datagram: &[u8],
    first: u32,
    last: u32,
    take: &mut impl FnMut(&[u8]) -> Result<(), NftError>,
) -> Result<Option<Result<(), NftError>>, NftError> {
    let span = last.wrapping_sub(first);
    while !datagram.is_empty() {
        let (message, rest) = next(datagram).ok_or(NftError::Answer)?;
        datagram = rest;
        if message.sequence.wrapping_sub(first) > span {
            continue;
        }
        if message.interrupted {
            return Ok(Some(Err(NftError::Changed)));
        }
        match message.says {
            Says::Something(answer) => take(answer)?,
            Says::Verdict(0) if message.sequence == last => return Ok(Some(Ok(()))),
            Says::Verdict(0) => {}
            Says::Verdict(error) => {
                let error = io::Error::from_raw_os_error(error.saturating_neg());
                return Ok(Some(Err(NftError::Refused(error))));
            }
        }
    }
    Ok(None)
}

/// Takes one message off.
fn next(datagram: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let header = datagram.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let flags = u16::from_ne_bytes([header[6], header[7]]);
    let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    let message = datagram.get(..length).filter(|message| message.len() >= HEADER)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    let says = match kind {
        NLMSG_ERROR | NLMSG_DONE => Says::Verdict(i32::from_ne_bytes(*message[HEADER..].first_chunk::<4>()?)),
        _ => Says::Something(message),
    };
    let interrupted = flags & NLM_F_DUMP_INTR != 0 && kind != NLMSG_ERROR;
    Some((Message { sequence, interrupted, says }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(datagram: &[u8], first: u32, last: u32) -> Result<Option<Result<(), NftError>>, NftError> {
        super::verdict(datagram, first, last, &mut |_| Ok(()))
    }

    fn message(kind: u16, flags: u16, sequence: u32, rest: &[u8]) -> Vec<u8> {
        let mut message = ((16 + rest.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(rest);
        message
    }

    /// Where anybody's buffer is as small as kernels make it, a batch for 20,000 kubelets is refused otherwise.
    #[tokio::test]
    #[ignore = "needs root"]
    async fn kernel_gives_a_buffer_for_the_largest_transaction() {
        let netfilter = Netfilter::open().unwrap();
        let size = socket2::SockRef::from(netfilter.socket.socket_ref()).send_buffer_size().unwrap();
        assert!(size >= BUFFER, "{size}");
    }

    fn error(sequence: u32, errno: i32) -> Vec<u8> {
        message(NLMSG_ERROR, 0, sequence, &[&errno.to_ne_bytes()[..], &[0; 16]].concat())
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

    #[test]
    fn an_answer_of_many_messages_ends_with_the_one_that_says_so() {
        let part = message(0x0a06, 2, 7, b"rule");
        let end = message(NLMSG_DONE, 2, 7, &[0; 4]);
        let mut taken = Vec::new();
        let mut take = |part: &[u8]| {
            taken.push(part.to_vec());
            Ok(())
        };
        assert!(matches!(super::verdict(&[part.clone(), part.clone()].concat(), 7, 7, &mut take), Ok(None)));
        assert!(matches!(super::verdict(&[part.clone(), end].concat(), 7, 7, &mut take), Ok(Some(Ok(())))));
        assert_eq!(taken, [part.clone(), part.clone(), part]);
        let interrupted = message(NLMSG_DONE, 2 | NLM_F_DUMP_INTR, 7, &[0; 4]);
        assert!(matches!(verdict(&interrupted, 7, 7), Ok(Some(Err(NftError::Changed)))));
    }
}
