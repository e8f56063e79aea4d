//! The way in: how pods come to the hub. They use the address that Kubernetes gives them, the ClusterIP of Service
//! `default/kubernetes`, and a table of ours on the node sends new connections there to the hub.
//!
//! ```text
//! kubelet's pods, Service, when kubelet came ──excluded──▶ Wanted ──keep──▶ /run/yurt/way-in.json
//!                                                                                │ (hold: `yurtd address hold`)
//!        /readyz, doctor ◀──keep── Told ── /run/yurt-address/way-in.json ◀───────┴──▶ table `inet yurt-edge`
//! ```
//!
//! Connections over IPv4 are led to 169.254.2.1, those over IPv6 to fd6b:7975:7274::1, where the Service has such an
//! address ([`crate::serve::ipv6`]).
//!
//! The hub, which strangers talk to, has no right to change the node's network; the process that holds its addresses has
//! ([`hold`]). Who may not be sent to the hub is said by exclusion ([`excluded`]): a pod that is new is covered from its
//! first packet on, before kubelet has told of its address.
//!
//! The other way is by the environment ([`crate::filter`]): kubelet is shown the Service with the hub's address. It is
//! for data paths that no table sees (kube-proxy's work done in eBPF) and kernels without one.

mod choice;
mod document;
pub(crate) mod excluded;
pub(crate) mod hold;
mod keep;
pub(crate) mod pod;
mod since;

use std::path::PathBuf;

use yurt_api::names;

pub(crate) use self::choice::{Chosen, Grounds, choose};
pub(crate) use self::keep::{Keeper, State};
pub(crate) use self::since::Since;

/// Where hub and holder of the address tell each other.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folder that the hub writes to.
    pub hub: PathBuf,
    /// Folder that the holder writes to.
    pub holder: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { hub: names::RUNTIME_DIR.into(), holder: names::ADDRESS_RUNTIME_DIR.into() }
    }
}

impl Places {
    fn wanted(&self) -> PathBuf {
        self.hub.join(names::WAY_IN_FILE)
    }

    fn told(&self) -> PathBuf {
        self.holder.join(names::WAY_IN_FILE)
    }
}
