//! The way in: how pods come to the hub. They use the address that Kubernetes gives them, the ClusterIP of Service
//! `default/kubernetes`, and a table of ours on the node sends new connections there to the hub.
//!
//! ```text
//! kubelet's pods, Service, when kubelet came ──excluded──▶ Wanted ──keep──▶ /run/yurt/way-in.json
//!                                                                                │ (hold: `yurtd address hold`)
//!        /readyz, doctor ◀──keep── Told ── /run/yurt-address/way-in.json ◀───────┴──▶ table `inet yurt-edge`
//! ```
//!
//! The hub, which strangers talk to, has no right to change the node's network; the process that holds its address has
//! ([`hold`]). Who may not be sent to the hub is said by exclusion ([`excluded`]): a pod that is new is covered from its
//! first packet on, before kubelet has told of its address.
//!
//! The other way is by the environment ([`crate::filter`]): kubelet is shown the Service with the hub's address. It is
//! for data paths that no table sees (kube-proxy's work done in eBPF) and kernels without one.

mod document;
pub(crate) mod excluded;
pub(crate) mod hold;
mod keep;
pub(crate) mod pod;
mod since;

use std::path::PathBuf;
use std::time::Duration;

use yurt_api::names;
use yurt_node::config::WayIn;

pub(crate) use self::document::Told;
pub(crate) use self::keep::{Keeper, State};
pub(crate) use self::since::{CaSince, Since};

/// How long the hub waits at its start for what the holder of the address says of the kernel. It says so before the hub's
/// unit starts.
const SAID_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

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

/// Which way it is, as long as this process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: WayIn,
    /// Why it is not the one that was asked for.
    pub(crate) why: Option<String>,
}

/// Takes the way that was asked for, or the one by the environment if the node cannot have a table.
pub(crate) async fn choose(asked: WayIn, places: &Places) -> Chosen {
    if asked == WayIn::Environment {
        return Chosen { way: asked, why: None };
    }
    let deadline = tokio::time::Instant::now() + SAID_WITHIN;
    loop {
        if let Ok(Some(told)) = Told::read(&places.told()) {
            let chosen = chosen(&told);
            if let Some(why) = &chosen.why {
                tracing::warn!(why, "pods are led to the hub by their environment");
            }
            return chosen;
        }
        if tokio::time::Instant::now() >= deadline {
            let why = format!("{} has not said whether the kernel can do it", names::UNIT_ADDRESS);
            tracing::warn!(why, "pods are led to the hub by their environment");
            return Chosen { way: WayIn::Environment, why: Some(why) };
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn chosen(told: &Told) -> Chosen {
    match &told.unable {
        None => Chosen { way: WayIn::Service, why: None },
        Some(why) => Chosen { way: WayIn::Environment, why: Some(why.clone()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_cannot_or_a_holder_that_says_nothing_leaves_the_way_by_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { hub: dir.path().join("hub"), holder: dir.path().to_owned() };
        let silent = choose(WayIn::Service, &places).await;
        assert!(silent.way == WayIn::Environment && silent.why.is_some());
        let told = Told { unable: Some("no nf_tables".into()), ..Told::default() };
        told.write(&places.told()).unwrap();
        let unable = choose(WayIn::Service, &places).await;
        assert_eq!(unable, Chosen { way: WayIn::Environment, why: Some("no nf_tables".into()) });
        Told::default().write(&places.told()).unwrap();
        assert_eq!(choose(WayIn::Service, &places).await, Chosen { way: WayIn::Service, why: None });
        let asked = Chosen { way: WayIn::Environment, why: None };
        assert_eq!(choose(WayIn::Environment, &places).await, asked);
    }
}
