//! What the plugin knows about a cluster and does to it, without a word about how that is shown: nothing here prints.
//!
//! What is read: what a node says about itself ([`node`], [`autonomy`]) and reports while something is done to it
//! ([`report`]), the nodes' own agents ([`node_agents`]), what carries connections to Services ([`data_path`]), the pods
//! that carry our components ([`pods`]) and whether those are up ([`components`]), a live view of it all ([`view`]), the
//! pods of a workload ([`workload`]). What is done: the objects ([`manifests`], [`objects`]) with
//! the definition of our custom resource ([`definition`]), a roll-out over many nodes ([`rollout`]), taking our marks
//! off a node ([`unmark`]) and everything out of the cluster ([`teardown`]), under a lock ([`lock`]) and with the
//! permissions that it takes ([`access`]).

pub mod access;
pub mod autonomy;
pub mod components;
pub mod data_path;
pub mod definition;
pub mod lock;
pub mod manifests;
pub mod node;
pub mod node_agents;
pub mod objects;
pub mod pods;
pub mod report;
pub mod rollout;
#[cfg(test)]
pub(crate) mod samples;
pub mod sweep;
pub mod teardown;
pub mod unmark;
pub mod view;
pub mod workload;
