//! What anybody may use of the hub. Every bound that depends on who asks, or that keeps the process small, stands
//! here, with its reason, and nowhere else.
//!
//! The process has 64 MiB of its own memory (what is mapped from the store does not count), whatever
//! clients do. Nothing is refused for lack of it: each kind of thing that a client can make the hub hold has a bound of
//! its own, for one peer address before anybody is known, for one identity afterwards, and for all of them together.
//! kubelet, which comes with the node's certificate, has a share of its own everywhere, that nobody else can use.
//!
//! ```text
//! accept ─ ARRIVING ─▶ handshake ─ CONNECTIONS ─▶ head ─ Reviews ─▶ identity ─ Account: streams, lists ─▶ body: unsent
//! ```
//!
//! | what may be held | by all but kubelet | by kubelet |
//! |---|---|---|
//! | forwarded answers that nobody reads | [`FORWARDED`] × [`FORWARDED_WINDOW`] | |
//! | connections: TLS, HTTP/2, unread bodies | 2 × [`CONNECTIONS`] × 40 KiB | [`KUBELET_CONNECTIONS`] |
//! | requests that wait for a review | [`REVIEWS_WAITING`] × 40 KiB | none |
//! | answers that are not sent yet | [`OTHERS`]`.unsent` | [`KUBELET`]`.unsent` |
//! | whole lists that are being sent | [`OTHERS`]`.lists` | [`KUBELET`]`.lists` |
//! | events for watchers that keep up | [`RINGS`] | [`RINGS`] |
//! | what watches begin with | [`AHEAD`] | [`AHEAD`] |
//! | events for views that are fed | [`TAP`] and a burst a source, of which there are a handful | |
//! | pages of upstream's lists | [`LARGE_PAGES`] × about 6 × [`PAGE_BYTES`] | the same |
//! | answers to be remembered | [`OBSERVED`] and 2 × [`UNWRITTEN`], together with kubelet | |

mod accounts;
mod observed;
mod pages;
mod reviews;

use std::time::Duration;

use crate::offline::remember::Bounds;
use yurt_node::accept::http::{Buffers, Http};
use yurt_node::accept::{Limits, Over};

pub(crate) use accounts::{Accounts, Flow};
pub(crate) use observed::{Collected, Observed};
pub(crate) use pages::PageSize;
pub(crate) use reviews::Reviews;

/// Connections of a listener that are not through their handshake. It takes milliseconds on a node; who takes longer
/// holds up those behind it, no longer than [`HANDSHAKE`].
pub(crate) const fn arriving(of_the_node: bool) -> Limits {
    // Processes of the node all come from one address.
    let per_peer = if of_the_node { None } else { Some(16) };
    Limits { total: 128, per_peer, over: Over::Wait }
}
/// A handshake that takes longer is given up.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// Connections of a listener, kubelet's apart. A hundred pods with two clients each are two hundred.
pub(crate) const CONNECTIONS: usize = 384;
/// Of one pod. client-go opens another one for every 100 watches or so.
const CONNECTIONS_OF_A_PEER: usize = 64;
/// kubelet's own. It opens a few, and may open them anew before the old ones are gone.
pub(crate) const KUBELET_CONNECTIONS: usize = 64;
/// Who has shown no credential that counts by then has come for something else.
pub(crate) const AUTHENTICATED_WITHIN: Duration = Duration::from_secs(30);

/// The places of a listener's connections after the handshake.
pub(crate) const fn connections(of_the_node: bool) -> Limits {
    let per_peer = if of_the_node { None } else { Some(CONNECTIONS_OF_A_PEER) };
    Limits { total: CONNECTIONS, per_peer, over: Over::Drop }
}

/// The places of kubelet's connections.
pub(crate) const fn connections_of_kubelet() -> Limits {
    Limits { total: KUBELET_CONNECTIONS, per_peer: None, over: Over::Drop }
}

/// A request's head. net/http takes 1 MiB, of which a URL is 64 KiB at most here (`http::Uri`), and a token 16 KiB. Who
/// is not known yet can have a hub hold one on every connection.
const HEAD: u32 = 128 << 10;
const KUBELET_HEAD: u32 = 1 << 20;

/// What is granted to a connection. Clients written in Go end idle ones after 90 s themselves, and open another
/// connection when they have as many streams, one a watch.
pub(crate) const fn http(kubelet: bool) -> Http {
    let buffers = if kubelet {
        Buffers::USUAL
    } else {
        // Local clients: the round trip is microseconds.
        Buffers { stream_unread: 64 << 10, unread: 64 << 10, stream_unsent: 16 << 10 }
    };
    Http {
        first_head: AUTHENTICATED_WITHIN,
        idle: Duration::from_secs(300),
        head_bytes: if kubelet { KUBELET_HEAD } else { HEAD },
        streams: if kubelet { 1024 } else { 512 },
        buffers,
    }
}

/// TokenReviews at a time: a pod that sends rubbish must not keep the link busy.
const REVIEWS_AT_ONCE: usize = 4;
/// Requests that wait for one, with their heads (a token may have 16 KiB, a URL 64 KiB).
pub(crate) const REVIEWS_WAITING: usize = 64;
/// Of one peer address. A pod that has just started asks for some dozens of collections at the same moment; those of
/// the node's own processes all come from one address.
const REVIEWS_WAITING_OF_A_PEER: usize = 32;
/// Waiting and review together. Whoever asks is told to come again.
pub(crate) const REVIEWED_WITHIN: Duration = Duration::from_secs(8);
/// Reviews a second, of all and of one peer, and how many may come at once after a pause. A token is reviewed once, and
/// what kubelet requests through the hub not even that.
const REVIEW_RATE: (f64, f64) = (10.0, 60.0);
const REVIEW_RATE_OF_A_PEER: (f64, f64) = (2.0, 20.0);
/// Peer addresses whose reviews are counted.
const REVIEWED_PEERS: usize = 1024;
/// Tokens that are known at most; those that expire first go first.
pub(crate) const KNOWN_TOKENS: usize = 4096;
/// Tokens that were refused and are not asked about again for a while.
pub(crate) const REFUSED_TOKENS: usize = 512;
/// Refused tokens that the hub itself asks about again; of others the next refusal counts.
pub(crate) const DOUBTED_TOKENS: usize = 64;
/// What is kept of the reason, in characters.
pub(crate) const REFUSAL_CHARS: usize = 200;

/// What an identity may have under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Requests and watches.
    pub(crate) streams: usize,
    /// Bytes of answers that were made and not yet sent.
    pub(crate) unsent: usize,
    /// Bytes of whole lists in memory; what does not fit is sent from the store, piece by piece.
    pub(crate) lists: usize,
    /// Lists that are sent that way, and watches that begin so, half as many at most. Each is a thread, and a state of
    /// the store that is not freed meanwhile.
    pub(crate) readers: usize,
}

/// kubelet: a watch for every Secret and ConfigMap that its pods use.
pub(crate) const KUBELET: Share =
    Share { streams: usize::MAX, unsent: 8 << 20, lists: 16 << 20, readers: 16 };
/// Anybody else. An operator has a watch a resource; several pods may be one identity.
pub(crate) const IDENTITY: Share = Share { streams: 1024, unsent: 3 << 20, lists: 6 << 20, readers: 16 };
/// All others together.
pub(crate) const OTHERS: Share = Share { streams: 4096, unsent: 8 << 20, lists: 12 << 20, readers: 32 };
/// How long a watch that begins waits for one of them.
const READER_WITHIN: Duration = Duration::from_secs(1);
/// Identities that are counted before those with nothing under way are forgotten.
pub(crate) const COUNTED: usize = 256;
/// A body is handed to HTTP in pieces of this size, so that what waits for a reader is one of them.
pub(crate) const PIECE: usize = 64 << 10;
/// While an identity's share is used up its streams look again this often.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A connection on which a reader has taken nothing for so long of what there is for it is closed: HTTP/2 cannot end
/// one stream whose window is shut. (kube-apiserver ends a watch whose reader is slower than milliseconds.)
pub(crate) const STALLED: Duration = Duration::from_secs(30);
/// And a list that is read out of the store has to be sent in this time.
pub(crate) const LIST_WITHIN: Duration = Duration::from_secs(180);
/// How often that is looked for.
pub(crate) const LOOK_FOR_STALLED: Duration = Duration::from_secs(5);

/// Forwarded requests under way, kubelet's apart: connections to the API server have 100 streams each. Every one may
/// hold [`FORWARDED_WINDOW`] for a client that does not read.
pub(crate) const FORWARDED: usize = 200;
/// Of one identity.
pub(crate) const FORWARDED_OF_ONE: usize = FORWARDED / 4;
/// At 50 ms of round trip 2.5 MB/s.
pub(crate) const FORWARDED_WINDOW: u32 = 128 << 10;

/// Events of a view that wait for the views that are fed from it, which share them. Only Services and EndpointSlices
/// have such views, in two encodings.
pub(crate) const TAP: usize = 1 << 20;

/// How long upstream's next events wait for a watcher to take what is there. One that takes longer has to find out from
/// the store what has become of each object. kube-apiserver ends its watch.
pub(crate) const KEEPS_UP: Duration = Duration::from_secs(2);
/// Bytes of events that a view keeps in memory for watchers that keep up: two of the largest bursts that come from
/// upstream at once, so that one is sent while the next is written.
pub(crate) const RING: usize = 512 << 10;
/// And those of all of kubelet's views, and of everybody else's. Beyond that each has an equal part.
pub(crate) const RINGS: usize = 3 << 20;

/// Bytes that watches read when they begin, before they can send them: kubelet's, and everybody else's. Beyond that a
/// watch reads when it can send.
pub(crate) const AHEAD: usize = 2 << 20;

/// Views a node may have. An edge node has some dozens; more is somebody inventing selectors.
pub(crate) const VIEWS: usize = if cfg!(test) { 20 } else { 2000 };
/// Views that are kubelet's alone, and that anybody else may have at most.
pub(crate) const VIEWS_OF_ONE: usize = VIEWS / 4;

/// A selector with more bytes is not kept as a view, but forwarded: views are in memory with their selectors, and there
/// may be thousands.
pub(crate) const SELECTOR: usize = 2 << 10;

/// Decompressed bytes that a page of upstream's list should have. A page is in memory about six times on its way:
/// compressed, decompressed, its items, sealed, as a record, as pages of the database.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// A page with more is given up and asked for again with fewer objects.
pub(crate) const PAGE_LIMIT: usize = 3 << 20;
/// Unless it is one object. etcd takes 1.5 MiB in protobuf; in JSON that may be more.
pub(crate) const OBJECT_LIMIT: usize = 16 << 20;
/// Compressed bytes of a page that nobody has to wait for.
pub(crate) const SMALL_PAGE: usize = 64 << 10;
/// Pages with more at a time, kubelet's and everybody else's; others wait.
pub(crate) const LARGE_PAGES: usize = 2;
/// Bytes of a list's changed objects that are collected to be told as a difference. A list that differs by more starts
/// the view over: one transaction with all of it would be in memory as a whole.
pub(crate) const DIFFERENCE: usize = if cfg!(test) { 256 << 10 } else { 8 << 20 };

/// Bytes of the store that the views of one identity may have, and those of all but kubelet, of every 20 bytes of its
/// map. A collection that is larger is forwarded.
const STORED_OF_20: (u64, u64) = (2, 14);

/// Whether an identity's views, and all others' together, may have so much of a store of `map` bytes.
pub(crate) fn may_store(own: u64, others: u64, map: u64) -> bool {
    let (of_one, of_all) = STORED_OF_20;
    own <= map / 20 * of_one && others <= map / 20 * of_all
}

/// Remembered answers, a quarter of them kubelet's alone. A custom resource or a Secret may have a mebibyte; most have
/// some kilobytes.
pub(crate) const ANSWERS: Bounds = Bounds { answer: 512 << 10, total: 8 << 20, count: 1024 };
/// Discovery, which is everybody's.
pub(crate) const DISCOVERY: Bounds = Bounds { answer: 2 << 20, total: 8 << 20, count: 256 };
/// Bytes of remembered answers that wait to be written, in each of the two memories. A disk may hang for half a minute.
pub(crate) const UNWRITTEN: usize = 2 << 20;
/// Bytes of a remembered answer without its compression.
pub(crate) const UNPACKED: usize = 8 << 20;
/// Bytes of answers that are collected on their way to clients, to be remembered. Beyond that they just pass.
const OBSERVED: usize = 4 << 20;
