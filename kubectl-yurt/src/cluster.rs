//! What the plugin knows about a cluster and does to it, without a word about how that is shown:
//! the objects ([`manifests`], [`objects`]), what a node says about itself ([`node`]), the pods that carry our
//! components ([`pods`]), a live view of it all ([`view`]), the lock ([`lock`]), permissions ([`access`]), the
//! definition of our custom resource ([`definition`]).

pub mod access;
pub mod definition;
pub mod lock;
pub mod manifests;
pub mod node;
pub mod objects;
pub mod pods;
pub mod release;
pub mod rollout;
pub mod teardown;
pub mod view;
