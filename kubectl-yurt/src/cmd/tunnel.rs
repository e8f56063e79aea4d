//! `tunnel`: how the edge nodes' sessions stand ([`status`]), and where the way to one of them ends ([`diagnose`]).

pub mod diagnose;
pub mod status;
