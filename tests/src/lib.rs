//! The testbed, and the story that is played on it.
//!
//! A real kubeadm cluster on one machine: systemd machines in network namespaces, the edge behind
//! NAT, upstream Kubernetes binaries, nothing mocked. From the bottom up:
//!
//! - [`run`], [`wait`]: a command with a deadline; a condition with a deadline.
//! - [`paths`], [`lock`], [`leftovers`]: where things live, one testbed at a time, and removing what
//!   a dead run left behind.
//! - [`deps`], [`build`]: Debian packages, the Go programs, images and the machines' root; cached.
//! - [`net`], [`cgroup`], [`machine`]: the wide-area network with its sites, and the machines in it.
//! - [`cluster`], [`kubectl`]: Kubernetes on those machines, and the unmodified kubectl to talk to it.
//! - [`collect`]: what is kept when a test fails.
//! - [`sections`]: what a program is made of.
//! - `repository`, in the tests alone: what the repository says about itself.
//! - [`observe`], [`story`]: looking at a cluster from outside, and the story that must come true on it.

pub mod build;
pub mod cgroup;
pub mod cluster;
pub mod collect;
pub mod deps;
pub mod kubectl;
pub mod leftovers;
pub mod lock;
pub mod machine;
pub mod net;
pub mod observe;
pub mod paths;
#[cfg(test)]
mod repository;
pub mod run;
pub mod sections;
pub mod story;
pub mod wait;
