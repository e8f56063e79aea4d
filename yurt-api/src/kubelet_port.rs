//! Kubelet ports of edge nodes that share an address: 192.168.0.100 in two shops.
//!
//! For the API server a kubelet is an address and a port, which a Node says in its status. Where two Nodes would say the
//! same, the controller gives one of them a port of its own, as a label ([`names::LABEL_KUBELET_PORT`]); the hub of the node
//! publishes it in the Node's status, and the tunnel server leads what comes there to that node's kubelet, which goes on
//! listening where it did. Nobody ever listens on such a port: it is a name.

use std::ops::RangeInclusive;

use crate::{names, node::Map};

/// The ports that are given. They are within those that Linux takes for outgoing connections (32768 to 60999), so that
/// nobody configures a server to listen there, and beyond the NodePorts of Services (30000 to 32767).
pub const RANGE: RangeInclusive<u16> = 40_000..=49_999;

/// Whether a port is one that is given.
pub fn is_given(port: u16) -> bool {
    RANGE.contains(&port)
}

/// The port that was given to a node, by its labels. What is no port of [`RANGE`] is none.
pub fn of(labels: Option<&Map>) -> Option<u16> {
    parse(labels?.get(names::LABEL_KUBELET_PORT)?)
}

/// A port of [`RANGE`], written as the controller writes it.
pub fn parse(text: &str) -> Option<u16> {
    let port = text.parse().ok().filter(|port| is_given(*port))?;
    (port.to_string() == text).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_controller_writes_is_a_port() {
        let of = |text: &str| of(Some(&[(names::LABEL_KUBELET_PORT.to_owned(), text.to_owned())].into()));
        assert_eq!((of("40000"), of("49999")), (Some(40_000), Some(49_999)));
        for text in ["", "10250", "39999", "50000", "+40000", "040000", "40000 ", "105536", "x"] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(super::of(None), None);
    }
}
