//! Every parser of what comes over a wire, as a function that takes any bytes and panics when what must hold of every
//! input does not.
//!
//! What only its crate can see is checked in that crate's `fuzzing` module; what is public is checked here. The same
//! table serves libFuzzer (`main.rs`, `make fuzz`) and the sample that `cargo test` runs (`tests/sample.rs`). A folder
//! of `corpus/` has the inputs that each begins with, and every input that was once a defect.

use bytes::BytesMut;
use yurt_api::tunnel::{MAX_FRAME, decode, encode};
use yurt_hub::fuzzing as hub;
use yurt_keeper::fuzzing as keeper;
use yurt_node::fuzzing as node;
use yurt_tunnel::fuzzing as tunnel;

/// A parser and its name, which is that of its folder in `corpus/`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// For people and for `FUZZ_TARGET`.
    pub name: &'static str,
    /// Panics when the input shows a defect.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "hub-request", run: hub::request },
    Target { name: "hub-query", run: hub::query },
    Target { name: "hub-accept", run: hub::accept },
    Target { name: "hub-list", run: hub::list },
    Target { name: "hub-watch", run: hub::watch },
    Target { name: "hub-object", run: hub::object },
    Target { name: "hub-status", run: hub::status },
    Target { name: "hub-status-patch", run: hub::status_patch },
    Target { name: "hub-filter", run: hub::filter },
    Target { name: "hub-endpoint-slice", run: hub::endpoint_slice },
    Target { name: "hub-token", run: hub::token },
    Target { name: "hub-token-keys", run: hub::token_keys },
    Target { name: "hub-lease", run: hub::lease },
    Target { name: "tunnel-frame", run: tunnel_frame },
    Target { name: "tunnel-mux", run: tunnel::mux },
    Target { name: "tunnel-websocket", run: tunnel::websocket },
    Target { name: "tunnel-pod-request", run: tunnel::pod_request },
    Target { name: "keeper-kubeconfig", run: keeper::kubeconfig },
    Target { name: "node-certificate", run: node::certificate },
    Target { name: "node-api-list", run: node::api_list },
    Target { name: "node-api-watch", run: node::api_watch },
    Target { name: "node-nft-table", run: node::nft_table },
    Target { name: "node-nft-answer", run: node::nft_answer },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

/// The tunnel's frame decoder: it takes no more than it was given, and what it accepts is what the encoder writes.
fn tunnel_frame(input: &[u8]) {
    let mut rest = BytesMut::from(input);
    loop {
        let before = rest.clone();
        match decode(&mut rest) {
            Ok(Some(frame)) => {
                let taken = before.len() - rest.len();
                assert!(taken <= MAX_FRAME);
                let mut again = BytesMut::new();
                encode(&frame, &mut again);
                assert_eq!(again, before[..taken]);
            }
            Ok(None) => {
                assert_eq!(rest, before);
                break;
            }
            Err(_) => break,
        }
    }
}
