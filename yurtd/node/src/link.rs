//! Whether the API servers can be reached. The hub decides it; who else dials out from the node wants to know.

/// Where the link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Nothing is known yet: the process has just started.
    Unknown,
    /// At least one API server answers.
    Online,
    /// None does.
    Offline,
}
