//! A response's body as HTTP gets it: in pieces, each counted until it is sent, and none while the caller has its share
//! of unsent bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Body, BoxError};
use crate::limits::{Flow, LOOK_AGAIN, PIECE};

/// A body that counts.
pub(crate) struct Metered {
    inner: Body,
    flow: Arc<Flow>,
    /// What is left of a frame.
    rest: Bytes,
    again: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    /// Counts `inner` on the account of `flow`.
    pub(crate) fn new(inner: Body, flow: Arc<Flow>) -> Self {
        Self { inner, flow, rest: Bytes::new(), again: None }
    }

    /// Ready when there is room for another piece.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.flow.may_send() {
            let again = self.again.get_or_insert_with(|| Box::pin(sleep(LOOK_AGAIN)));
            ready!(again.as_mut().poll(cx));
            self.again = None;
        }
        Poll::Ready(())
    }
}

impl hyper::body::Body for Metered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        ready!(self.poll_room(cx));
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(self.flow.sending(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;
    use crate::caller::{Caller, Credential, Identity};
    use crate::limits::{Accounts, IDENTITY};
    use crate::serve::respond::full;
    use yurt_node::token::BearerToken;

    fn flow(accounts: &Accounts) -> Arc<Flow> {
        let credential = Credential::Bearer(BearerToken::new("t"));
        accounts.of(&Caller { identity: Identity::new("web"), credential }).stream().unwrap()
    }

    #[tokio::test]
    async fn a_body_comes_in_pieces_and_says_how_long_it_is() {
        let text: Bytes = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut body = Metered::new(full(text.slice(..3 * PIECE + 5)), flow(&Accounts::new()));
        assert_eq!(body.size_hint().exact(), Some(3 * PIECE as u64 + 5));
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), body.size_hint().exact()), (PIECE, Some(2 * PIECE as u64 + 5)));
        assert!(!body.is_end_stream());
        let rest = body.collect().await.unwrap().to_bytes();
        assert!([first, rest].concat() == text[..3 * PIECE + 5]);
        assert!(Metered::new(full(Bytes::new()), flow(&Accounts::new())).is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_holds_no_more_than_its_share_and_goes_on_when_it_reads() {
        let accounts = Accounts::new();
        let text = Bytes::from(vec![7; 4 * IDENTITY.unsent]);
        let mut body = Metered::new(full(text.clone()), flow(&accounts));
        let mut taken = Vec::new();
        while let Some(frame) = body.frame().now_or_never() {
            taken.push(frame.unwrap().unwrap().into_data().unwrap());
        }
        let held: usize = taken.iter().map(Bytes::len).sum();
        assert!((IDENTITY.unsent..IDENTITY.unsent + PIECE).contains(&held), "{held}");
        let another = Metered::new(full(text.clone()), flow(&accounts)).frame().now_or_never();
        assert!(another.is_none(), "the share is the identity's, not the stream's");
        taken.clear();
        let mut rest = 0;
        while let Some(frame) = body.frame().await {
            rest += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(held + rest, text.len());
    }
}
