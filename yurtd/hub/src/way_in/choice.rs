//! Which way in it is, as long as this process runs.
//!
//! kubelet is shown the Service in the way by the environment with the hub's address, keeps it, and gives it to pods. So a
//! hub that had to take this way, and is started again in the same boot, stays with it until the keeper has seen that: it
//! restarts kubelet then, and reports whose environment leads to the hub.
//!
//! A kernel may be able to lead IPv4 and not IPv6, or the reverse; then it depends on the Service's addresses, which
//! nobody has asked for yet at a node's very first start.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use yurt_api::names;
use yurt_node::config::WayIn;

use super::Places;
use super::document::Told;

/// How long the hub waits at its start for what the holder of the address says of the kernel. It says so before the hub's
/// unit starts.
const SAID_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
/// In the state's folder.
const FILE: &str = "way-in.json";

/// Which way it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: WayIn,
    /// Why it is not the one that was asked for.
    pub(crate) why: Option<String>,
}

/// That a hub had to take the way by the environment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Taken {
    /// In this boot.
    boot_id: String,
    why: String,
}

/// What else the choice depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grounds<'a> {
    /// The way that was asked for.
    pub(crate) asked: WayIn,
    /// The way of which the keeper knows.
    pub(crate) seen: Option<WayIn>,
    /// This boot; empty if it has no name.
    pub(crate) boot: &'a str,
    /// The state's folder.
    pub(crate) state_dir: &'a Path,
}

/// Takes the way that was asked for, or the one by the environment if the node cannot have a table, or could not when
/// pods were begun that nobody knows of. `services` finds the addresses of the Service out, nothing when it cannot.
pub(crate) async fn choose(
    grounds: Grounds<'_>,
    places: &Places,
    services: impl AsyncFnOnce() -> BTreeSet<IpAddr>,
) -> Chosen {
    if grounds.asked == WayIn::Environment {
        return Chosen { way: WayIn::Environment, why: None };
    }
    let file = grounds.state_dir.join(FILE);
    let unseen = taken(&file, grounds.boot).filter(|_| grounds.seen != Some(WayIn::Environment));
    let why = match unseen {
        Some(why) => Some(why),
        None => unable(places, services).await,
    };
    let Some(why) = why else {
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %file.display(), "that pods were led by their environment stays written down");
        }
        return Chosen { way: WayIn::Service, why: None };
    };
    tracing::warn!(why, "pods are led to the hub by their environment");
    let taken = Taken { boot_id: grounds.boot.to_owned(), why: why.clone() };
    if let Err(error) = save(&file, &taken) {
        tracing::warn!(%error, path = %file.display(), "the way by which pods are led cannot be written down");
    }
    Chosen { way: WayIn::Environment, why: Some(why) }
}

/// Why the node cannot have a table for the Service, as its holder says.
async fn unable(places: &Places, services: impl AsyncFnOnce() -> BTreeSet<IpAddr>) -> Option<String> {
    let deadline = tokio::time::Instant::now() + SAID_WITHIN;
    loop {
        if let Ok(Some(told)) = Told::read(&places.told()) {
            if told.unable.is_none() && told.unable_ipv6.is_none() {
                return None;
            }
            let services = services().await;
            // Nearly all clusters have an IPv4 address there.
            let ipv4 = services.is_empty() || services.iter().any(IpAddr::is_ipv4);
            let ipv6 = services.iter().any(IpAddr::is_ipv6);
            let of_ipv6 = |why| format!("not at an IPv6 address: {why}");
            return told.unable.filter(|_| ipv4).or(told.unable_ipv6.filter(|_| ipv6).map(of_ipv6));
        }
        if tokio::time::Instant::now() >= deadline {
            return Some(format!("{} has not said whether the kernel can do it", names::UNIT_ADDRESS));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why the way by the environment was taken in this boot.
fn taken(file: &Path, boot: &str) -> Option<String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        // Nobody knows.
        Err(error) => return Some(format!("{} cannot be read: {error}", file.display())),
    };
    let taken: Taken = serde_json::from_slice(&text).ok()?;
    (taken.boot_id == boot && !boot.is_empty()).then_some(taken.why)
}

fn save(file: &Path, taken: &Taken) -> io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(taken)?)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    struct Node {
        dir: TempDir,
        places: Places,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let places = Places { hub: dir.path().join("hub"), holder: dir.path().to_owned() };
            std::fs::create_dir(dir.path().join("state")).unwrap();
            Self { dir, places }
        }

        fn holder_says(&self, unable: Option<&str>) {
            self.holder_says_of_both(unable, None);
        }

        fn holder_says_of_both(&self, unable: Option<&str>, unable_ipv6: Option<&str>) {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let told = Told { unable: owned(unable), unable_ipv6: owned(unable_ipv6), ..Told::default() };
            told.write(&self.places.told()).unwrap();
        }

        /// The hub starts.
        async fn chooses(&self, asked: WayIn, seen: Option<WayIn>, boot: &str) -> (WayIn, Option<String>) {
            self.chooses_for(&[], asked, seen, boot).await
        }

        /// In a cluster whose Service has these addresses.
        async fn chooses_for(
            &self,
            services: &[&str],
            asked: WayIn,
            seen: Option<WayIn>,
            boot: &str,
        ) -> (WayIn, Option<String>) {
            let state_dir = self.dir.path().join("state");
            let grounds = Grounds { asked, seen, boot, state_dir: &state_dir };
            let services = async || services.iter().map(|ip| ip.parse().unwrap()).collect();
            let chosen = choose(grounds, &self.places, services).await;
            (chosen.way, chosen.why)
        }
    }

    const NO_TABLES: &str = "no nf_tables";

    fn environment() -> (WayIn, Option<String>) {
        (WayIn::Environment, Some(NO_TABLES.to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_cannot_or_a_holder_that_says_nothing_leaves_the_way_by_the_environment() {
        let node = Node::new();
        let silent = node.chooses(WayIn::Service, None, "one").await;
        assert!(silent.0 == WayIn::Environment && silent.1.is_some());
        let node = Node::new();
        node.holder_says(Some(NO_TABLES));
        assert_eq!(node.chooses(WayIn::Service, None, "one").await, environment());
        assert_eq!(node.chooses(WayIn::Environment, None, "one").await, (WayIn::Environment, None));
        let node = Node::new();
        node.holder_says(None);
        assert_eq!(node.chooses(WayIn::Service, None, "one").await, (WayIn::Service, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_can_lead_one_family_alone_leads_pods_where_the_service_is_of_that_one() {
        let (ipv4, ipv6) = ("10.96.0.1", "fd00:10:96::1");
        let table: [(_, _, &[&str], _); 8] = [
            (None, Some("no IPv6"), &[ipv4], true),
            (None, Some("no IPv6"), &[ipv6], false),
            (None, Some("no IPv6"), &[ipv4, ipv6], false),
            // Nobody knows: as it was before.
            (None, Some("no IPv6"), &[], true),
            (Some(NO_TABLES), None, &[ipv6], true),
            (Some(NO_TABLES), None, &[ipv4], false),
            (Some(NO_TABLES), None, &[], false),
            (None, None, &[ipv6], true),
        ];
        for (unable, unable_ipv6, services, able) in table {
            let node = Node::new();
            node.holder_says_of_both(unable, unable_ipv6);
            let (way, why) = node.chooses_for(services, WayIn::Service, None, "one").await;
            assert_eq!(
                (way == WayIn::Service, why.is_none()),
                (able, able),
                "{unable:?} {services:?} {why:?}"
            );
        }
        let node = Node::new();
        node.holder_says_of_both(None, Some("no IPv6"));
        let (_, why) = node.chooses_for(&[ipv6], WayIn::Service, None, "one").await;
        assert_eq!(why.as_deref(), Some("not at an IPv6 address: no IPv6"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_had_to_take_the_environment_stays_with_it_until_the_keeper_knows_or_the_node_is_booted()
     {
        let node = Node::new();
        node.holder_says(Some(NO_TABLES));
        let seen = Some(WayIn::Service);
        assert_eq!(node.chooses(WayIn::Service, seen, "one").await, environment());
        // Its first look at what the hub wants, nothing, was good.
        node.holder_says(None);
        for _ in 0..2 {
            assert_eq!(node.chooses(WayIn::Service, seen, "one").await, environment(), "begun again");
        }
        let service = (WayIn::Service, None);
        assert_eq!(node.chooses(WayIn::Service, Some(WayIn::Environment), "one").await, service);
        assert_eq!(node.chooses(WayIn::Service, seen, "one").await, service, "the keeper saw that as well");
        node.holder_says(Some(NO_TABLES));
        assert_eq!(node.chooses(WayIn::Service, seen, "one").await, environment());
        node.holder_says(None);
        assert_eq!(node.chooses(WayIn::Service, seen, "two").await, service, "nothing runs from then");
        assert_eq!(node.chooses(WayIn::Service, seen, "").await, service, "nobody knows which boot it is");
        std::fs::write(node.dir.path().join("state").join(FILE), "{").unwrap();
        assert_eq!(node.chooses(WayIn::Service, seen, "one").await, service, "damaged");
    }
}
