//! Where the testbed keeps things.
//!
//! Everything that a run makes has a name under [`STATE`] or starts with [`PREFIX`], so that what a
//! killed run left can be recognised without any record of it.

use std::path::PathBuf;

/// Roots of the machines, the kubeconfig and the consoles of the cluster that exists now.
pub const STATE: &str = "/var/lib/yurt-testbed";

/// How the names of our network namespaces and host interfaces start.
pub const PREFIX: &str = "yurt-";

/// The folder of the machine's cgroups, below every controller.
pub const CGROUP: &str = "yurt-testbed";

/// What is expensive to make and does not belong to one run: binaries, images, the machines' root.
pub fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    base.join("yurt-testbed")
}

pub fn state() -> PathBuf {
    PathBuf::from(STATE)
}

/// The admin kubeconfig of the cluster that exists now; valid from the host.
pub fn kubeconfig() -> PathBuf {
    state().join("kubeconfig")
}

/// The sources that this crate carries beside its Rust code.
pub fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testbed")
}

/// The root of the repository.
pub fn workspace() -> PathBuf {
    let crate_folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().map(PathBuf::from).unwrap_or(crate_folder)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| workspace().join("target"))
}
